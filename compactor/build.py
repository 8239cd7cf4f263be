"""Merging the live rows of the sources into the files of one new segment. Runs in a thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import InvariantViolation
from annheal.index import VectorIndex, build_flat, build_hnsw, set_search_threads
from annheal.model.collection import (
    Collection,
    CollectionSettings,
    IndexSettings,
    ModelSpec,
    Schema,
)
from annheal.model.manifest import SegmentEntry, Tier
from annheal.model.records import ARROW_TYPES, Float32Matrix, arrow_schema
from annheal.model.task import TaskReason
from annheal.routing import hash_ids
from annheal.segment import BuildInfo, RecallPoint, Segment, SegmentRows, write_segment
from annheal.segment.rows import decoded
from compactor.bands import budget_s, measure_bands
from compactor.calibrate import (
    EF_LIMIT,
    Calibration,
    calibrate,
    finds_less,
    is_damaged,
    meets_objective,
    own_recall,
    probe_count,
)
from compactor.fetch import Source

HNSW_ROWS_MIN = 2_000
"""Below this, comparing everything is faster than walking a graph, and exact.

Measured at 384 dimensions, one thread, ef 64, per query: 44 against 55 us at 2,000 rows, 87
against 52 us at 5,000.
"""
STRENGTHENINGS = ((1, 1), (2, 2), (3, 4))
"""What M and efConstruction are multiplied by, in turn, until the graph meets the objective."""
M_MAX = 64
EF_CONSTRUCTION_MAX = 800

_COPY_ROWS = 10_000
"""Rows copied at once: numpy keeps the interpreter's lock meanwhile (2 ms at 384 floats)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build. `on_progress` gets the share done in [0, 1]; what it raises ends the build.

    `logged` (n, d) are sampled live queries, in the model of the sources, to calibrate with.
    """

    segment_id: str
    tier: Tier
    collection: Collection
    threads: int
    created_at_s: float
    on_progress: Callable[[float], None]
    reason: TaskReason = TaskReason.MERGE
    logged: Float32Matrix | None = None


def build_segment(
    sources: Sequence[Source], order: BuildOrder, *, directory: Path
) -> SegmentEntry | None:
    """Write the live rows of `sources` as one segment; None when no row lives.

    Rows keep their sequences and their order, but for `probe_count` random ones that move to the
    end of a segment with a graph: they measure its recall before they are added to it.
    """
    set_search_threads(order.threads)
    model = _common_model(sources)
    rows = gather_rows(sources, model=model, schema=order.collection.schema)
    if rows is None:
        return None
    first = 0
    if order.reason is TaskReason.RECALL:
        first = first_strengthening([source.segment for source in sources])
    index, settings, curve = _build_index(rows, model, order, first=first)
    return write_segment(
        directory,
        segment_id=order.segment_id,
        tier=order.tier,
        model=model,
        schema=order.collection.schema,
        rows=rows,
        created_at_s=order.created_at_s,
        index=index,
        build=BuildInfo(
            settings=settings,
            generation=1 + max(source.segment.entry.generation for source in sources),
            sources=tuple(source.segment.id for source in sources),
            recall_curve=curve,
            reason=order.reason.value,
        ),
    )


def gather_rows(
    sources: Sequence[Source], *, model: ModelSpec, schema: Schema
) -> SegmentRows | None:
    """Return the live rows of all sources in order, ready for a build; None when there are none."""
    kept = [source.deletes.live_rows() for source in sources]
    kept = _newest_only(sources, kept)
    total = sum(map(len, kept))
    if not total:
        return None
    held_out = _held_out(total)
    order = np.concatenate([np.setdiff1d(np.arange(total), held_out), held_out])
    taken = [pa.array(rows, type=pa.int64()) for rows in kept]
    payloads = pa.concat_arrays(
        [s.segment.payloads.take(rows) for s, rows in zip(sources, taken, strict=True)]
    )
    ids = pa.concat_arrays(
        [s.segment.ids.take(rows) for s, rows in zip(sources, taken, strict=True)]
    )
    sequences = np.concatenate(
        [s.segment.sequences[rows] for s, rows in zip(sources, kept, strict=True)]
    )
    moved = pa.array(order, type=pa.int64())
    return SegmentRows(
        ids=ids.take(moved),
        sequences=sequences[order],
        vectors=_gather_vectors(sources, kept, order, dimension=model.dimension),
        attributes=_gather_attributes(sources, taken, schema).take(moved)
        if schema
        else pa.RecordBatch.from_arrays([], names=[]),
        payloads=payloads.take(moved),
    )


def _held_out(total: int) -> npt.NDArray[np.int64]:
    """Return the rows that measure the graph; the choice depends on nothing but their number."""
    if total < HNSW_ROWS_MIN:
        return np.empty(0, dtype=np.int64)
    chosen = np.random.default_rng(total).choice(total, probe_count(total), replace=False)
    return np.sort(chosen).astype(np.int64)


def _gather_vectors(
    sources: Sequence[Source],
    kept: Sequence[npt.NDArray[np.int64]],
    order: npt.NDArray[np.int64],
    *,
    dimension: int,
) -> Float32Matrix:
    """Copy every live vector straight to its place, so that memory holds them once."""
    vectors = np.empty((len(order), dimension), dtype=np.float32)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    start = 0
    for source, rows in zip(sources, kept, strict=True):
        stored = source.segment.vectors
        for first in range(0, len(rows), _COPY_ROWS):
            chunk = rows[first : first + _COPY_ROWS]
            vectors[place[start : start + len(chunk)]] = stored[chunk]
            start += len(chunk)
    return vectors


def _gather_attributes(
    sources: Sequence[Source], taken: Sequence[Any], schema: Schema
) -> pa.RecordBatch:
    """Return the collection's columns; one that a source does not have is null in its rows."""
    parts = [
        decoded(source.segment.attributes.take(rows))
        for source, rows in zip(sources, taken, strict=True)
        if source.segment.attributes.num_columns
    ]
    columns: list[pa.Array[Any]] = []
    for field in schema:
        wanted = ARROW_TYPES[field.type]
        pieces: list[pa.Array[Any]] = []
        remaining = iter(parts)
        for source, rows in zip(sources, taken, strict=True):
            part = next(remaining) if source.segment.attributes.num_columns else None
            if part is None or field.name not in part.schema.names:
                pieces.append(
                    pa.array([None], type=wanted).take(np.zeros(len(rows), dtype=np.int64))
                )
            else:
                pieces.append(part.column(field.name))
        columns.append(pa.concat_arrays(pieces))
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(schema))


def _newest_only(
    sources: Sequence[Source], kept: Sequence[npt.NDArray[np.int64]]
) -> list[npt.NDArray[np.int64]]:
    """Return `kept` without rows that a newer row of the same id replaces (INV-3, INV-6).

    One version of a manifest holds no such rows; were there any, the answer would be wrong for
    ever after, and looking costs one sort of hashes.
    """
    hashes = np.concatenate(
        [
            hash_ids(source.segment.ids.take(pa.array(rows, type=pa.int64())))
            for source, rows in zip(sources, kept, strict=True)
        ]
    )
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == len(hashes):
        return list(kept)
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    starts = np.cumsum([0, *map(len, kept)])
    newest: dict[str, tuple[int, int]] = {}
    dropped: set[int] = set()
    for position in suspects.tolist():
        number = int(np.searchsorted(starts, position, side="right")) - 1
        row = kept[number][position - starts[number]]
        segment = sources[number].segment
        record_id = segment.ids_at(np.array([row]))[0]
        sequence = int(segment.sequences[row])
        older = newest.get(record_id)
        if older is None or sequence > older[0]:
            newest[record_id] = (sequence, position)
            if older is not None:
                dropped.add(older[1])
        else:
            dropped.add(position)
    if dropped:
        _log.error("%d rows of the sources are replaced by newer live rows", len(dropped))
    gone = np.array(sorted(dropped), dtype=np.int64)
    return [
        np.delete(rows, gone[(gone >= start) & (gone < start + len(rows))] - start)
        for rows, start in zip(kept, starts.tolist()[:-1], strict=True)
    ]


def first_strengthening(segments: Sequence[Segment]) -> int:
    """Return the strengthening to begin with when live queries miss too much in `segments`.

    A graph that does not even find what its recall curve says is damaged: the usual one does. One
    that does serves other queries than its rows resemble: it needs to be stronger.
    """
    return 0 if any(map(is_damaged, segments)) else 1


def _build_index(
    rows: SegmentRows, model: ModelSpec, order: BuildOrder, *, first: int
) -> tuple[VectorIndex, IndexSettings | None, tuple[RecallPoint, ...]]:
    """Return an index that meets the recall objective, its settings, and what was measured."""
    goal = order.collection.settings
    # Queries that must miss nothing are answered exactly: a graph would never be walked.
    graph = len(rows) >= HNSW_ROWS_MIN and goal.recall_objective < 1.0
    strengthenings = STRENGTHENINGS[first:] if graph else ()
    for step, (m_times, ef_times) in enumerate(strengthenings, start=1):
        settings = IndexSettings(
            m=min(M_MAX, order.collection.index.m * m_times),
            ef_construction=min(
                EF_CONSTRUCTION_MAX, order.collection.index.ef_construction * ef_times
            ),
        )
        index, measured, bands = _build_graph(rows.vectors, model, order, settings)
        # The strongest graph is kept if rows are found in it: what live queries miss even so, the
        # node widens ef for, and says. Comparing a large segment exactly would be no answer.
        judged = measured.held_out if step == len(strengthenings) else measured.curve
        if _is_good(index, judged, order.segment_id, settings, goal):
            return index, settings, measured.curve + bands
        del index  # before the next one is built
    if strengthenings:
        _log.warning(
            "segment %s: no graph of its %d rows meets the objective, as happens when many vectors"
            " are equal; it is written without one, and every search compares its rows exactly",
            order.segment_id,
            len(rows),
        )
    index = build_flat(rows.vectors, metric=model.metric)
    order.on_progress(1.0)
    return index, None, ()


def _is_good(
    index: VectorIndex,
    curve: Sequence[RecallPoint],
    segment_id: str,
    settings: IndexSettings,
    goal: CollectionSettings,
) -> bool:
    """Return whether a graph finds rows that it has not seen and its own; log what it misses."""
    if not meets_objective(curve, k=goal.recall_k, objective=goal.recall_objective):
        points = [p.recall for p in curve if p.k == goal.recall_k and not p.band]
        which, recall = "new rows or live queries", max(points, default=0.0)
    else:
        which, recall = "its own rows", own_recall(index, k=goal.recall_k)
        if recall >= goal.recall_objective and not finds_less(index, curve):
            return True
    _log.warning(
        "segment %s: recall %.4f of %s at ef %d with %s does not meet the objective of %s",
        segment_id,
        recall,
        which,
        EF_LIMIT,
        settings,
        goal.recall_objective,
    )
    return False


def _build_graph(
    vectors: Float32Matrix, model: ModelSpec, order: BuildOrder, settings: IndexSettings
) -> tuple[VectorIndex, Calibration, tuple[RecallPoint, ...]]:
    """Return a graph with what was measured of it without filters, and with them."""
    probes = probe_count(len(vectors))
    queries = np.ascontiguousarray(vectors[len(vectors) - probes :])
    found: list[tuple[Calibration, tuple[RecallPoint, ...]]] = []
    k = order.collection.settings.recall_k
    started_s = time.monotonic()

    def measure(part: VectorIndex) -> None:
        limit_s = budget_s(time.monotonic() - started_s)
        measured = calibrate(part, queries, k=k, logged=order.logged)
        if measured.live_are_harder:
            _log.info("segment %s: live queries are harder than rows", order.segment_id)
        found.append((measured, measure_bands(part, measured.probes, k=k, limit_s=limit_s)))

    index = build_hnsw(
        vectors,
        metric=model.metric,
        settings=settings,
        threads=order.threads,
        on_progress=lambda done: order.on_progress(done / len(vectors)),
        probe_rows=probes,
        probe=measure,
    )
    return index, *found[-1]


def _common_model(sources: Sequence[Source]) -> ModelSpec:
    models = {source.segment.meta.model for source in sources}
    if len(models) != 1:
        names = sorted(model.name for model in models)
        raise InvariantViolation(f"a compaction cannot merge vectors of {names}")
    return models.pop()
