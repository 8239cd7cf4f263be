"""Merging the live rows of the sources into the files of one new segment. Runs in a thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.bands import budget_s, measure_bands
from annheal.compactor.build.calibrate import (
    EF_LIMIT,
    Calibration,
    finds_less,
    is_damaged,
    meets_objective,
    own_recall,
    probe_count,
)
from annheal.compactor.build.gather import gather_rows, newest_only
from annheal.compactor.build.incremental import Base, choose_base
from annheal.compactor.build.merge_plan import drift_of
from annheal.compactor.build.storage import as_stored, calibrate_stored
from annheal.compactor.fetch import Source
from annheal.errors import InvariantViolation
from annheal.index import VectorIndex, build_flat, build_hnsw, merge_hnsw, set_search_threads
from annheal.model.collection import (
    Collection,
    CollectionSettings,
    IndexSettings,
    ModelSpec,
    VectorStorage,
)
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import SegmentEntry, Tier
from annheal.model.topology.task import TaskReason
from annheal.segment import (
    BuildInfo,
    GraphHistory,
    GraphKind,
    RecallPoint,
    Segment,
    SegmentRows,
    write_segment,
)

HNSW_ROWS_MIN = 2_000
"""Below this, comparing everything is faster than walking a graph, and exact.

Measured at 384 dimensions, one thread, ef 64, per query: 44 against 55 us at 2,000 rows, 87
against 52 us at 5,000.
"""
STRENGTHENINGS = ((1, 1), (2, 2), (3, 4))
"""What M and efConstruction are multiplied by, in turn, until the graph meets the objective."""
ANEW_REASONS = (TaskReason.RECALL, TaskReason.WALK_COST)
"""A graph that is rewritten because it finds too little, or too slowly, is not gone on with."""
M_MAX = 64
EF_CONSTRUCTION_MAX = 800

_NO_GRAPH = GraphHistory()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build. `on_progress` gets the share done in [0, 1]; what it raises ends the build.

    `logged_queries` (n, d) are sampled live queries, in the model of the sources.
    `anew`: with a new graph, whatever graphs the sources have.
    """

    segment_id: str
    tier: Tier
    collection: Collection
    threads: int
    created_at_s: float
    on_progress: Callable[[float], None]
    reason: TaskReason = TaskReason.MERGE
    logged_queries: Float32Matrix | None = None
    anew: bool = False


@dataclass(frozen=True, slots=True)
class _Built:
    """An index, what its graph was built with, and what was measured of it."""

    index: VectorIndex
    settings: IndexSettings | None = None
    curve: tuple[RecallPoint, ...] = ()
    graph: GraphHistory = _NO_GRAPH


def build_segment(
    sources: Sequence[Source], order: BuildOrder, *, directory: Path
) -> SegmentEntry | None:
    """Write the live rows of `sources` as one segment; None when no row lives.

    Rows keep their sequences and their order, with two exceptions in a segment with a graph:
    `probe_count` random ones move to the end, because they measure its recall before they are added
    to it; and the rows of the source whose graph is gone on with come first.
    """
    set_search_threads(order.threads)
    model = _common_model(sources)
    kept = newest_only(sources, [source.deletes.live_rows() for source in sources])
    if not sum(map(len, kept)):
        return None
    held_out = held_out_rows(sum(map(len, kept)))
    chosen = choose_base(
        sources,
        kept,
        held_out,
        allowed=_settings_of(order.collection),
        goal=order.collection.settings,
        anew=order.anew or order.reason in ANEW_REASONS,
    )
    rows = gather_rows(
        chosen.sources, chosen.kept, held_out, model=model, schema=order.collection.schema
    )
    built = _build_index(rows, model, order, sources, base=chosen.base)
    return write_segment(
        directory,
        segment_id=order.segment_id,
        tier=order.tier,
        model=model,
        schema=order.collection.schema,
        rows=rows,
        created_at_s=order.created_at_s,
        index=built.index,
        build=BuildInfo(
            settings=built.settings,
            generation=1 + max(source.segment.entry.generation for source in sources),
            sources=tuple(source.segment.id for source in sources),
            recall_curve=built.curve,
            reason=order.reason.value,
            graph=built.graph,
        ),
    )


def held_out_rows(total: int) -> npt.NDArray[np.int64]:
    """Return the rows that measure the graph; the choice depends on nothing but their number."""
    if total < HNSW_ROWS_MIN:
        return np.empty(0, dtype=np.int64)
    chosen = np.random.default_rng(total).choice(total, probe_count(total), replace=False)
    return np.sort(chosen).astype(np.int64)


def first_strengthening(segments: Sequence[Segment]) -> int:
    """Return the strengthening to begin with when live queries miss too much in `segments`.

    A graph that does not even find what its recall curve says is damaged: the usual one does. One
    that does serves other queries than its rows resemble: it needs to be stronger.
    """
    return 0 if any(map(is_damaged, segments)) else 1


def _settings_of(collection: Collection) -> list[IndexSettings]:
    """Return what graphs of the collection may be built with, weakest first."""
    return [
        IndexSettings(
            m=min(M_MAX, collection.index.m * m_times),
            ef_construction=min(EF_CONSTRUCTION_MAX, collection.index.ef_construction * ef_times),
        )
        for m_times, ef_times in STRENGTHENINGS
    ]


def _build_index(
    rows: SegmentRows,
    model: ModelSpec,
    order: BuildOrder,
    sources: Sequence[Source],
    *,
    base: Base | None,
) -> _Built:
    """Return an index that meets the recall objective, on the graph of `base` if it is as good."""
    goal = order.collection.settings
    # Queries that must miss nothing are answered exactly: a graph would never be walked.
    graph = len(rows) >= HNSW_ROWS_MIN and goal.recall_objective < 1.0
    if graph and base is not None:
        merged = _merged_graph(rows, model, order, base)
        if merged is not None:
            return merged
    first = 0
    if order.reason is TaskReason.RECALL:
        first = first_strengthening([source.segment for source in sources])
    for settings in _settings_of(order.collection)[first:] if graph else ():
        index, measured, bands = _build_graph(rows.vectors, model, order, settings)
        if _is_good(index, _judged(measured, settings, order), order.segment_id, settings, goal):
            # Later graphs are compared with what rows say of this one: live queries change.
            reference = measured.held_out if measured.live_are_harder else ()
            history = GraphHistory(kind=GraphKind.FULL, reference=reference)
            return _Built(index, settings, measured.curve + bands, history)
        del index  # before the next one is built
    if graph:
        _log.warning(
            "segment %s: no graph of its %d rows meets the objective, as happens when many vectors"
            " are equal; it is written without one, and every search compares its rows exactly",
            order.segment_id,
            len(rows),
        )
    index = build_flat(rows.vectors, metric=model.metric)
    order.on_progress(1.0)
    return _Built(index)


def _merged_graph(
    rows: SegmentRows, model: ModelSpec, order: BuildOrder, base: Base
) -> _Built | None:
    """Return an index on the graph of `base`, None when it finds less than a rebuilt one would."""
    goal = order.collection.settings
    index, measured, bands = _build_graph(rows.vectors, model, order, base.settings, base=base)
    drift = drift_of(
        measured.held_out,
        base.reference,
        k=goal.recall_k,
        objective=goal.recall_objective,
        growth=len(rows) / base.reference_rows,
    )
    if drift:
        _log.warning("segment %s: built anew, not on %s: %s", order.segment_id, base.id, drift)
        return None
    judged = _judged(measured, base.settings, order)
    if not _is_good(index, judged, order.segment_id, base.settings, goal):
        return None
    curve = (*measured.curve, *bands, *base.bands(len(rows)))
    return _Built(index, base.settings, curve, base.history(len(rows)))


def _judged(
    measured: Calibration, settings: IndexSettings, order: BuildOrder
) -> tuple[RecallPoint, ...]:
    """Return the curve that has to meet the objective.

    The strongest graph is kept if rows are found in it: what live queries miss even so, the node
    widens ef for, and says. Comparing a large segment exactly would be no answer.
    """
    strongest = settings == _settings_of(order.collection)[-1]
    return measured.held_out if strongest else measured.curve


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
    vectors: Float32Matrix,
    model: ModelSpec,
    order: BuildOrder,
    settings: IndexSettings,
    *,
    base: Base | None = None,
) -> tuple[VectorIndex, Calibration, tuple[RecallPoint, ...]]:
    """Return a graph with what was measured of it without filters, and with them.

    With filters nothing is measured where what was measured of the `base` still holds.
    """
    probes = probe_count(len(vectors))
    queries = np.ascontiguousarray(vectors[len(vectors) - probes :])
    found: list[tuple[VectorStorage, Calibration, tuple[RecallPoint, ...]]] = []
    goal = order.collection.settings
    started_s = time.monotonic()

    def measure(part: VectorIndex) -> None:
        limit_s = budget_s(time.monotonic() - started_s)
        stored = calibrate_stored(
            part, queries, goal=goal, every=vectors, logged=order.logged_queries
        )
        measured = stored.calibration
        if measured.live_are_harder:
            _log.info("segment %s: live queries are harder than rows", order.segment_id)
        bands: tuple[RecallPoint, ...] = ()
        if base is None or not base.bands(len(vectors)):
            bands = measure_bands(stored.index, measured.probes, k=goal.recall_k, limit_s=limit_s)
        found.append((stored.index.storage, measured, bands))

    build = partial(build_hnsw, metric=model.metric)
    if base is not None:
        build = partial(merge_hnsw, base.index, base.kept)
    index = build(
        vectors,
        settings=settings,
        threads=order.threads,
        on_progress=lambda done: order.on_progress(done / len(vectors)),
        probe_rows=probes,
        probe=measure,
    )
    storage, measured, bands = found[-1]
    return as_stored(index, storage), measured, bands


def _common_model(sources: Sequence[Source]) -> ModelSpec:
    models = {source.segment.meta.model for source in sources}
    if len(models) != 1:
        names = sorted(model.name for model in models)
        raise InvariantViolation(f"a compaction cannot merge vectors of {names}")
    return models.pop()
