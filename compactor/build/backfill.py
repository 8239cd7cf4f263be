"""Vectors of another model for the rows of one segment, made from their texts by an embedder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from annheal.compactor.fetch import Source
from annheal.embedding.source import NoSource, render_records
from annheal.embedding.texts import Embedded, Purpose
from annheal.errors import InvalidArgument
from annheal.model.collection import ModelSpec
from annheal.model.records import Float32Matrix, Projection, lacking
from annheal.model.texts.template import Template
from annheal.model.topology.migration.state import (
    SKIP_REASONS_MAX,
    SKIPPED_NAMED_MAX,
    SkipCount,
    SkippedRecord,
)
from annheal.model.validation import validate_vectors
from annheal.runtime.deadline import Deadline
from annheal.runtime.tasks import run_all

CHUNK_ROWS: Final = 512
"""Rows that are read and embedded together."""
CHUNKS_AT_ONCE: Final = 2
"""While one chunk is embedded the next is read, so that the embedder never waits."""
CHUNK_TIMEOUT_S: Final = 600.0
"""Seconds for one chunk, retries and rate limits included; then the attempt fails, and is repeated.
"""
NO_SOURCE: Final = "no_source"
OTHER_REASON: Final = "other"

Rows = npt.NDArray[np.int64]


class TextsEmbedder(Protocol):
    """The part of `annheal.embedding.texts.TextEmbedder` that a backfill needs."""

    async def embed(
        self, texts: Sequence[str], *, purpose: Purpose, deadline: Deadline
    ) -> Embedded:
        """Return a vector or a reason for every text."""
        ...


class Pace(Protocol):
    """Says when the next rows may be embedded."""

    async def allow(self, rows: int) -> bool:
        """Return True when so many more rows may be embedded, False when the work must end here."""
        ...


InThread: TypeAlias = Callable[
    [Callable[[], list[str | NoSource]]], Awaitable[list[str | NoSource]]
]
"""Runs work that would hold the event loop up."""


@dataclass(slots=True)
class Filled:
    """What became of the rows of one segment.

    Attributes:
        rows: (n,) int64, rows that have a vector now, older ones included.
        vectors: (n, d) float32, theirs.
        made: how many of them are new.
        skipped: rows without a vector, by reason.
        skipped_records: the first of these, with the reason in words.
        complete: whether every row was tried.
    """

    rows: Rows
    vectors: Float32Matrix
    made: int = 0
    skipped: tuple[SkipCount, ...] = ()
    skipped_records: tuple[SkippedRecord, ...] = ()
    complete: bool = True


@dataclass(slots=True)
class _Skipped:
    shard: int
    model: str
    counts: Counter[str] = field(default_factory=Counter)
    records: list[SkippedRecord] = field(default_factory=list)

    def add(self, record_id: str, reason: str, words: str) -> None:
        if reason not in self.counts and len(self.counts) >= SKIP_REASONS_MAX - 1:
            reason = OTHER_REASON
        self.counts[reason] += 1
        if len(self.records) < SKIPPED_NAMED_MAX:
            self.records.append(SkippedRecord(record_id, self.shard, self.model, words))


async def fill_segment(
    source: Source,
    model: ModelSpec,
    template: Template,
    embedder: TextsEmbedder,
    *,
    shard: int,
    pace: Pace,
    in_thread: InThread,
    on_progress: Callable[[float], None],
) -> Filled:
    """Embed the text of every live row of `source` that has no vector of `model`.

    Rows that the embedder refuses, or that have no text, are skipped and counted. `in_thread` runs
    work that would hold the event loop up. Raises what the embedder raises when it does not answer
    at all; nothing is kept then.
    """
    segment = source.segment
    live = source.deletes.live_rows()
    known = segment.vectors_of(model.name, live, dimension=model.dimension)
    absent = lacking(known)
    todo = live[absent]
    skipped = _Skipped(shard, model.name)
    made: dict[int, tuple[Rows, Float32Matrix]] = {}
    chunks = _chunks(todo)
    tried = 0
    complete = True

    async def work() -> None:
        nonlocal tried, complete
        for number, rows in chunks:
            if not await pace.allow(len(rows)):
                complete = False
                return
            texts = await in_thread(partial(_texts, source, rows, template))
            made[number] = await _embedded(source, rows, texts, model, embedder, skipped)
            tried += len(rows)
            on_progress(tried / len(todo))

    await run_all((work() for _ in range(CHUNKS_AT_ONCE)), name="backfill")
    parts = [made[number] for number in sorted(made)]
    present = ~absent
    return Filled(
        rows=np.concatenate([live[present], *(rows for rows, _ in parts)]),
        vectors=np.concatenate([known[present], *(vectors for _, vectors in parts)]),
        made=sum(len(rows) for rows, _ in parts),
        skipped=tuple(SkipCount(reason, n) for reason, n in sorted(skipped.counts.items())),
        skipped_records=tuple(skipped.records),
        complete=complete,
    )


def _chunks(rows: Rows) -> Iterator[tuple[int, Rows]]:
    for number, start in enumerate(range(0, len(rows), CHUNK_ROWS)):
        yield number, rows[start : start + CHUNK_ROWS]


def _texts(source: Source, rows: Rows, template: Template) -> list[str | NoSource]:
    records = source.segment.take(rows, Projection(attributes=None, payload=True))
    assert records.attributes is not None
    assert records.payloads is not None
    return render_records(template, attributes=records.attributes, payloads=records.payloads)


async def _embedded(
    source: Source,
    rows: Rows,
    texts: Sequence[str | NoSource],
    model: ModelSpec,
    embedder: TextsEmbedder,
    skipped: _Skipped,
) -> tuple[Rows, Float32Matrix]:
    """Return the rows that got a vector, and the vectors as they are stored."""
    ids = source.segment.ids_at(rows)
    with_text = [place for place, text in enumerate(texts) if isinstance(text, str)]
    for record_id, text in zip(ids, texts, strict=True):
        if isinstance(text, NoSource):
            skipped.add(record_id, NO_SOURCE, text.reason)
    found = await embedder.embed(
        [text for text in texts if isinstance(text, str)],
        purpose=Purpose.DOCUMENT,
        deadline=Deadline.after(CHUNK_TIMEOUT_S),
    )
    for number, missing in sorted(found.missing.items()):
        skipped.add(ids[with_text[number]], missing.fault.value, missing.reason)
    good: list[int] = []
    vectors: list[Float32Matrix] = []
    for number, place in enumerate(with_text):
        if number in found.missing:
            continue
        try:
            # One by one: a vector that cannot be stored must not take others with it.
            vectors.append(validate_vectors(found.vectors[number : number + 1], model=model))
        except InvalidArgument as error:
            skipped.add(ids[place], "bad_vector", error.message)
        else:
            good.append(place)
    stored = np.concatenate(vectors) if vectors else np.empty((0, model.dimension), np.float32)
    return rows[np.array(good, dtype=np.int64)], stored
