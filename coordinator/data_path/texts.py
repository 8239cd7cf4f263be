"""Texts of searches and upserts, embedded here before they are vectors like any other."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from annheal.coordinator.data_path.embedder_watch import EmbedderMetrics, EmbedderWatch
from annheal.embedding.checks import validate_text_models
from annheal.embedding.host import EmbedderHost
from annheal.embedding.registry import make_embedder
from annheal.embedding.source import NoSource, render_records
from annheal.embedding.texts import (
    Embedded,
    Fault,
    NoVector,
    Purpose,
    TextEmbedder,
    refuse_missing,
)
from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
)
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.limits import QUERY_TEXTS_MAX, UPSERT_TEXTS_MAX
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.model.records import Float32Matrix, ModelVectors, RecordBatch
from annheal.model.texts.spec import EmbedderSpec, EmbedderTest, TextModel
from annheal.model.texts.template import parse_template
from annheal.model.validation import validate_batch, validate_ids
from annheal.model.write import TextRecords
from annheal.runtime.clock import monotonic_s, wall_s
from annheal.runtime.deadline import Deadline
from annheal.runtime.offload import Offload
from annheal.runtime.part_tracker import PartTracker

EMBEDDERS_MAX: Final = 32
"""Embedders that are kept; beyond, the one that was not used for longest is closed."""
PROBE_FRESH_S: Final = 60.0
"""An embedder that has answered within so many seconds is not asked by health checks."""
PROBE_TEXT: Final = "health"
FURTHER_TIME_SHARE: Final = 0.5
"""Share of a write's time that the embedders of models which do not serve may take."""
_RETRY_AFTER_S: Final = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    embedder: TextEmbedder
    tracker: PartTracker


@dataclass(frozen=True, slots=True)
class _Key:
    """Collections that say the same share an embedder, its connections and its limits."""

    spec: EmbedderSpec
    dimension: int
    metric: Metric


class Texts:
    """The embedders of a coordinator; at most `texts_max` texts are embedded at a time.

    Args:
        host: keys and models.
        offload: threads for work that would hold the event loop up.
        texts_max: beyond, calls are refused with a retry hint.
        process: the name under which this process reports.

    `metrics` are counted in once they are set.
    """

    def __init__(
        self,
        host: EmbedderHost,
        *,
        offload: Offload,
        texts_max: int,
        process: str,
    ) -> None:
        self._host = host
        self._offload = offload
        self._texts_max = texts_max
        self.metrics: EmbedderMetrics | None = None
        self._process = process
        self._texts = 0
        self._embedders: dict[_Key, _Kept] = {}
        self._in_use: dict[_Key, int] = {}

    @property
    def under_way(self) -> int:
        """Texts that are being embedded."""
        return self._texts

    @property
    def embedder_count(self) -> int:
        """Embedders that are kept."""
        return len(self._embedders)

    async def check(self, collection: Collection) -> None:
        """Raise `InvalidArgument` for what is wrong with the embedders, or cannot be made here."""
        validate_text_models(collection)
        for number, model in enumerate(collection.models):
            found = collection.text_model(model.name)
            if found is None:
                continue
            try:
                made = make_embedder(found.embedder, dimension=model.dimension, host=self._host)
            except InvalidArgument as error:
                raise _within(error, f"models[{number}].embedder") from error
            await made.close()

    async def queries(
        self,
        collection: Collection,
        texts: Sequence[str],
        *,
        model: ModelSpec | None = None,
        deadline: Deadline,
    ) -> Float32Matrix:
        """Return queries (n, d) float32 for texts, of `model` or else of the serving model.

        Raises:
            InvalidArgument: there are too many texts, or one of them cannot be embedded.
            FailedPrecondition: the model has no embedder, or its set-up is wrong.
            ResourceExhausted, Unavailable, DeadlineExceeded: the embedder does not answer for now.
        """
        _check_count(len(texts), QUERY_TEXTS_MAX)
        found = await self.embed(
            collection, texts, model=model, purpose=Purpose.QUERY, deadline=deadline
        )
        refuse_missing(found, place=lambda row: f"texts[{row}]")
        return found.vectors

    async def records(
        self, collection: Collection, records: RecordBatch | TextRecords, *, deadline: Deadline
    ) -> RecordBatch:
        """Return the records with the vectors of their texts, or of their source.

        Records that have vectors are returned as they are. The others are validated before an
        embedder is asked. Raises as `queries` does; the error names the records that cannot be
        embedded. Every other model of the collection that has an embedder makes vectors of them
        too; what it cannot embed has none, and a backfill makes it later.
        """
        if isinstance(records, RecordBatch):
            return records
        text_model = text_model_of(collection)
        _check_count(len(records), UPSERT_TEXTS_MAX)
        if records.texts is None and not text_model.source:
            raise InvalidArgument.of(
                "vectors",
                f"are missing, and so are texts; model {text_model.model!r} of collection"
                f" {collection.name!r} has no source that would make them of the records",
            )
        rendered = await self._offload.run(_texts_of, collection, text_model, records)
        missing = {row: one for row, one in enumerate(rendered) if isinstance(one, NoSource)}
        if missing:
            faults = {row: NoVector(Fault.EMPTY, one.reason) for row, one in missing.items()}
            refuse_missing(Embedded(_NO_VECTORS, faults), place=records.place)
        texts = [one for one in rendered if isinstance(one, str)]
        others = [
            one
            for one in collection.usable_models
            if one != collection.model and collection.text_model(one.name) is not None
        ]
        found, *further = await asyncio.gather(
            self.embed(collection, texts, purpose=Purpose.DOCUMENT, deadline=deadline),
            *(self._further(collection, one, records, deadline) for one in others),
        )
        assert isinstance(found, Embedded)
        refuse_missing(found, place=records.place)
        return dataclasses.replace(
            records.with_vectors(found.vectors),
            model=collection.tag_of(collection.model),
            further=tuple(one for one in further if isinstance(one, ModelVectors)),
        )

    async def _further(
        self, collection: Collection, model: ModelSpec, records: TextRecords, deadline: Deadline
    ) -> ModelVectors | None:
        """Return vectors of another model than the serving one, NaN for records without a text.

        None when its embedder does not answer: a write does not fail for it, and takes at most
        `FURTHER_TIME_SHARE` of its time for it.
        """
        text_model = text_model_of(collection, model)
        rendered: Sequence[str | NoSource] = records.texts or ()
        if records.texts is None and text_model.source:
            rendered = await self._offload.run(_rendered, text_model, records)
        places = [place for place, one in enumerate(rendered) if isinstance(one, str)]
        if not places:
            return None
        try:
            found = await self.embed(
                collection,
                [one for one in rendered if isinstance(one, str)],
                model=model,
                purpose=Purpose.DOCUMENT,
                deadline=Deadline.after(FURTHER_TIME_SHARE * deadline.remaining_s),
            )
        except AnnhealError as error:
            _log.warning(
                "records of %s are written without vectors of %s, which come later: %s",
                collection.name,
                model.name,
                error.message,
            )
            return None
        vectors = np.full((len(records), model.dimension), np.nan, dtype=np.float32)
        vectors[places] = found.vectors
        missing = [places[number] for number in found.missing]
        vectors[missing] = np.nan
        return ModelVectors(model.name, vectors)

    async def embed(
        self,
        collection: Collection,
        texts: Sequence[str],
        *,
        model: ModelSpec | None = None,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Embedded:
        """Return a vector or a reason for every text, by the embedder of `model`.

        Without one it is that of the serving model.
        """
        key = _key_of(collection, model)
        if self._texts + len(texts) > self._texts_max:
            raise ResourceExhausted(
                f"{self._texts} texts are being embedded; the limit is {self._texts_max}",
                reason="EMBEDDER_BUSY",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._texts += len(texts)
        try:
            with self._using(key):
                kept = await self._kept(key)
                watch = EmbedderWatch(collection.name, tracker=kept.tracker, metrics=self.metrics)
                return await kept.embedder.embed(
                    texts, purpose=purpose, deadline=deadline, observer=watch
                )
        finally:
            self._texts -= len(texts)

    async def test(
        self,
        collection: Collection,
        text: str,
        *,
        model: ModelSpec,
        as_query: bool,
        deadline: Deadline,
    ) -> EmbedderTest:
        """Embed one text, and say what came of it; raises as `queries` does."""
        began_s = monotonic_s()
        purpose = Purpose.QUERY if as_query else Purpose.DOCUMENT
        found = await self.embed(
            collection, [text], model=model, purpose=purpose, deadline=deadline
        )
        refuse_missing(found, place=lambda row: "text")
        seconds = monotonic_s() - began_s
        kept = self._embedders.get(_key_of(collection, model))
        return EmbedderTest(
            model=model.name,
            embedder="" if kept is None else kept.embedder.name,
            dimension=found.vectors.shape[1],
            norm=float(np.linalg.norm(found.vectors[0])),
            duration_s=seconds,
        )

    async def look(
        self, collections: Sequence[Collection], *, timeout_s: float
    ) -> tuple[PartHealth, ...]:
        """Return whether the embedders of the collections' models work.

        Those that have not answered within the last minute are asked for one vector. Of many, the
        first `EMBEDDERS_MAX` are looked at.
        """
        with_texts = [
            (one, model)
            for one in collections
            for model in one.usable_models
            if one.text_model(model.name) is not None
        ]
        by_key = {_key_of(one, model): (one, model) for one, model in reversed(with_texts)}
        looked = list(by_key.items())[:EMBEDDERS_MAX]
        return tuple(
            await asyncio.gather(*(self._look(key, *one, timeout_s) for key, one in looked))
        )

    async def _look(
        self, key: _Key, collection: Collection, model: ModelSpec, timeout_s: float
    ) -> PartHealth:
        try:
            kept = await self._kept(key)
        except AnnhealError as error:  # a kind that is not installed here
            tracker = PartTracker(PartKind.EMBEDDER, process=self._process, place=key.spec.kind)
            tracker.failed(error)
            return tracker.health
        if wall_s() - kept.tracker.health.succeeded_at_s > PROBE_FRESH_S:
            try:
                found = await self.embed(
                    collection,
                    [PROBE_TEXT],
                    model=model,
                    purpose=Purpose.QUERY,
                    deadline=Deadline.after(timeout_s),
                )
            except AnnhealError as error:
                kept.tracker.failed(error)
            else:
                for one in found.missing.values():
                    kept.tracker.failed(one.reason)
        return kept.tracker.health

    async def close(self) -> None:
        """Close every embedder."""
        kept = list(self._embedders.values())
        self._embedders.clear()
        for one in kept:
            await one.embedder.close()

    async def _kept(self, key: _Key) -> _Kept:
        found = self._embedders.pop(key, None)
        if found is None:
            made = make_embedder(key.spec, dimension=key.dimension, host=self._host)
            tracker = PartTracker(PartKind.EMBEDDER, process=self._process, place=made.name)
            found = _Kept(TextEmbedder(made, key.spec, metric=key.metric), tracker)
        self._embedders[key] = found  # the last is the one used last
        unused = [one for one in self._embedders if one not in self._in_use and one != key]
        for old in unused[: max(0, len(self._embedders) - EMBEDDERS_MAX)]:
            await self._embedders.pop(old).embedder.close()
        return found

    @contextmanager
    def _using(self, key: _Key) -> Iterator[None]:
        self._in_use[key] = self._in_use.get(key, 0) + 1
        try:
            yield
        finally:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]


def text_model_of(collection: Collection, model: ModelSpec | None = None) -> TextModel:
    """Return how `model`, else the serving one, embeds texts; raises `FailedPrecondition`."""
    name = (model or collection.model).name
    found = collection.text_model(name)
    if found is None:
        raise FailedPrecondition(
            f"collection {collection.name!r} has no embedder for its model {name!r}: send vectors,"
            " or name an embedder when a collection is created or a model is added",
            reason="NO_EMBEDDER",
        )
    return found


def _key_of(collection: Collection, model: ModelSpec | None = None) -> _Key:
    spec = model or collection.model
    return _Key(text_model_of(collection, spec).embedder, spec.dimension, spec.metric)


_NO_VECTORS: Float32Matrix = np.empty((0, 0), dtype=np.float32)


def _texts_of(
    collection: Collection, text_model: TextModel, records: TextRecords
) -> list[str | NoSource]:
    """Return the text of every record, after everything but the vectors was validated."""
    validate_ids(records.ids, rows_max=UPSERT_TEXTS_MAX)
    stand_in = np.zeros((len(records), collection.model.dimension), dtype=np.float32)
    stand_in[:, 0] = 1.0
    batch = dataclasses.replace(
        records.with_vectors(stand_in), model=collection.tag_of(collection.model)
    )
    validate_batch(batch, collection=collection)
    if records.texts is not None:
        return list(records.texts)
    return _rendered(text_model, records)


def _rendered(text_model: TextModel, records: TextRecords) -> list[str | NoSource]:
    template = parse_template(text_model.source)
    return render_records(template, attributes=records.attributes, payloads=records.payloads)


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise InvalidArgument.of(
            "texts", f"{count} given; the server embeds at most {limit} texts a call"
        )


def _within(error: InvalidArgument, field: str) -> InvalidArgument:
    """Return `error` with its fields as parts of `field`."""
    violations = [
        FieldViolation(f"{field}.{one.field}", one.description) for one in error.violations
    ]
    text = "; ".join(f"{one.field}: {one.description}" for one in violations)
    return InvalidArgument(text or error.message, violations=violations, reason=error.reason)
