"""Builds one new segment from the live rows of a task's sources. Blocking: runs in a thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.bands import bands_time_s, has_bands, measure_bands
from annheal.compactor.build.base_plan import drift_reason
from annheal.compactor.build.calibrate import (
    EF_LIMIT,
    Calibration,
    held_out_count,
    is_damaged,
    meets_objective,
    misses_own_rows,
    own_recall,
)
from annheal.compactor.build.gather import gather_rows, gather_vectors, newest_only
from annheal.compactor.build.incremental import Base, BaseChoice, choose_base
from annheal.compactor.build.models import (
    has_model,
    index_of,
    output_places,
    read_as,
    read_by_model,
    skipped_of,
)
from annheal.compactor.build.order import RowOrder, vector_labels
from annheal.compactor.build.storage import calibrate_stored, with_storage
from annheal.compactor.fetch import Source
from annheal.index import (
    VectorIndex,
    add_copies,
    build_flat,
    build_hnsw,
    is_base,
    merge_hnsw,
    set_search_threads,
)
from annheal.index.kernels.catalog import MERGE_KERNELS, SEARCH_KERNELS, Kernel, walk_over
from annheal.index.kernels.loaded import wait_loaded
from annheal.model.collection import (
    Collection,
    IndexSettings,
    ModelSpec,
    VectorStorage,
)
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import SegmentEntry, Tier, VectorPartEntry
from annheal.model.topology.task import TaskReason
from annheal.runtime.clock import monotonic_s
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.segment import (
    BuildInfo,
    GraphHistory,
    GraphKind,
    RecallPoint,
    Segment,
    write_segment,
)
from annheal.segment.parts.write import write_part
from annheal.segment.write import without_nan

KERNEL_WAIT_S = 0.25
"""Seconds between two reports of progress, and checks for a cancelled task, during the wait."""
HNSW_ROWS_MIN = 2_000
"""A segment with fewer rows gets no graph: a scan of all rows is faster than a walk, and exact.

Measured with 384 dimensions, one thread, ef 64, time per query of a scan and of a walk: 44 and
55 us at 2,000 rows, 87 and 52 us at 5,000.
"""
BUILD_STRENGTHS = ((1, 1), (2, 2), (3, 4))
"""Factors of M and of efConstruction, tried in turn until the graph meets the objective."""
REBUILD_REASONS = (TaskReason.RECALL, TaskReason.WALK_COST)
"""Tasks that always rebuild: the graph of the source finds too little or takes too long."""
M_MAX = 64
EF_CONSTRUCTION_MAX = 800

_NO_GRAPH = GraphHistory()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build.

    Attributes:
        segment_id: id of the new segment.
        tier: tier of the new segment.
        collection: gives schema, index settings and recall objective.
        threads: threads of the build, at least 1.
        created_at_s: seconds since the epoch.
        on_progress: called with the share done in [0, 1] when it changes, and repeatedly while the
            build waits for kernels; an error that it raises ends the build.
        reason: why the task was planned.
        logged_queries: (n, d) sampled live queries of the sources' model; None without any.
        rebuild: whether to build the graph from nothing, even if a source has a good base.
        yield_point: called between the slices of longer steps; what it raises ends the build.
        without_model: vectors of this model are left out.
    """

    segment_id: str
    tier: Tier
    collection: Collection
    threads: int
    created_at_s: float
    on_progress: Callable[[float], None]
    reason: TaskReason = TaskReason.MERGE
    logged_queries: Float32Matrix | None = None
    rebuild: bool = False
    yield_point: YieldPoint = no_yield_point
    without_model: str = ""


@dataclass(frozen=True, slots=True)
class _Built:
    """An index with its build settings, its recall curve and the history of its graph.

    A flat index has no settings, no curve and no history.
    """

    index: VectorIndex
    settings: IndexSettings | None = None
    curve: tuple[RecallPoint, ...] = ()
    graph: GraphHistory = _NO_GRAPH


def build_segment(
    sources: Sequence[Source], order: BuildOrder, *, directory: Path
) -> SegmentEntry | None:
    """Write the live rows of `sources` to `directory` as one segment; None if no row is live.

    Its own index is that of the collection's first model; the vectors of its other models become
    parts, each in a folder of its own. Those of models that were removed, and of
    `order.without_model`, are left out.

    Rows keep their sequences, and their order with three exceptions. The rows of the base, if there
    is one, come first. The held-out rows, random ones that measure the recall of the graph before
    they are added to it, come after the others of the graph. Rows equal to one of the graph come
    last (`annheal.index.copies`). Raises what `order.on_progress` and `order.yield_point` raise.
    """
    set_search_threads(order.threads)
    kept = newest_only(sources, [source.deletes.live_rows() for source in sources])
    if not sum(map(len, kept)):
        return None
    model, *others = [
        one for one in order.collection.usable_models if one.name != order.without_model
    ]
    others = [one for one in others if any(has_model(source.segment, one) for source in sources)]
    steps = [
        _step(order, one, number, 1 + len(others)) for number, one in enumerate([model, *others])
    ]
    read = [replace(source, segment=read_as(source.segment, model)) for source in sources]
    chosen = _choose(read, kept, steps[0])
    rows = gather_rows(
        chosen.sources,
        chosen.kept,
        chosen.order.positions,
        model=model,
        schema=order.collection.schema,
        yield_point=order.yield_point,
    )
    built = _build_index(without_nan(rows.vectors), model, steps[0], read, chosen)
    generation = 1 + max(source.segment.entry.generation for source in sources)
    entry = write_segment(
        directory,
        segment_id=order.segment_id,
        tier=order.tier,
        model=model,
        schema=order.collection.schema,
        rows=rows,
        created_at_s=order.created_at_s,
        index=built.index,
        build=_build_info(built, sources, order, generation),
        yield_point=order.yield_point,
    )
    if not others:
        return entry
    places = output_places(sources, read, chosen)
    del rows, built  # frees their memory before the next graph is built
    parts: list[VectorPartEntry] = []
    for other, step in zip(others, steps[1:], strict=True):
        part_id = f"{order.segment_id}-{len(parts)}"
        part = _build_part(
            sources, kept, places, other, step, directory / part_id, entry.rows, generation
        )
        if part is not None:
            parts.append(part)
    return replace(entry, parts=tuple(parts))


def _build_part(
    sources: Sequence[Source],
    kept: Sequence[npt.NDArray[np.int64]],
    places: Sequence[npt.NDArray[np.int64]],
    model: ModelSpec,
    order: BuildOrder,
    directory: Path,
    segment_rows: int,
    generation: int,
) -> VectorPartEntry | None:
    """Write the vectors of a further model of the rows `kept`; None if no row has one.

    `places` are the rows of the output of the rows of each source.
    """
    read, read_kept, read_places = read_by_model(sources, kept, places, model)
    if not read:
        return None
    chosen = _choose(read, read_kept, order)
    vectors = gather_vectors(
        chosen.sources,
        chosen.kept,
        chosen.order.positions,
        dimension=model.dimension,
        yield_point=order.yield_point,
    )
    built = _build_index(vectors, model, order, read, chosen)
    numbers = [index_of(read, source) for source in chosen.sources]
    rows = np.concatenate(
        [read_places[n][rows] for n, rows in zip(numbers, chosen.kept, strict=True)]
    )[chosen.order.positions]
    return write_part(
        directory,
        segment_id=order.segment_id,
        part_id=directory.name,
        model=model,
        index=built.index,
        rows=rows,
        segment_rows=segment_rows,
        created_at_s=order.created_at_s,
        build=_build_info(built, read, order, generation),
        skipped=skipped_of(sources, model),
        yield_point=order.yield_point,
    )


def _choose(
    sources: Sequence[Source], kept: Sequence[npt.NDArray[np.int64]], order: BuildOrder
) -> BaseChoice:
    return choose_base(
        sources,
        kept,
        vector_labels(sources, kept, yield_point=order.yield_point),
        hold_out=held_out_rows,
        allowed=_allowed_settings(order.collection),
        collection_settings=order.collection.settings,
        rebuild_why=_rebuild_why(sources, order),
    )


def _build_info(
    built: _Built, sources: Sequence[Source], order: BuildOrder, generation: int
) -> BuildInfo:
    return BuildInfo(
        settings=built.settings,
        generation=generation,
        sources=tuple(source.segment.id for source in sources),
        recall_curve=built.curve,
        reason=order.reason.value,
        graph=built.graph,
    )


def _step(order: BuildOrder, model: ModelSpec, number: int, count: int) -> BuildOrder:
    """Return the order of the graph `number` of `count`, of `model`.

    Logged queries are of the model that serves.
    """
    return replace(
        order,
        on_progress=lambda done: order.on_progress((number + done) / count),
        logged_queries=order.logged_queries if model == order.collection.model else None,
    )


def held_out_rows(total: int) -> npt.NDArray[np.int64]:
    """Return the positions, ascending, of the held-out rows among `total` rows.

    They are random, and always the same for the same `total`; empty below `HNSW_ROWS_MIN`.
    """
    if total < HNSW_ROWS_MIN:
        return np.empty(0, dtype=np.int64)
    chosen = np.random.default_rng(total).choice(total, held_out_count(total), replace=False)
    return np.sort(chosen).astype(np.int64)


def first_strength(segments: Sequence[Segment], *, yield_point: YieldPoint = no_yield_point) -> int:
    """Return the index in `BUILD_STRENGTHS` of the first graph that a `recall` task builds.

    0 when a source's graph is damaged (its recall is below its own curve): the usual settings are
    good enough. Else 1: live queries are harder than the rows, and need a stronger graph.
    """
    damaged = any(is_damaged(segment, yield_point=yield_point) for segment in segments)
    return 0 if damaged else 1


def _rebuild_why(sources: Sequence[Source], order: BuildOrder) -> str:
    """Return why no source's graph may be extended, "" when one may be.

    Waits for the kernels that extend a graph if a source has one.
    """
    if order.rebuild:
        return "a rebuild was requested"
    if order.reason in REBUILD_REASONS:
        return f"the task is a rewrite for {order.reason.value}"
    has_graph = any(is_base(source.segment.index) for source in sources)
    if has_graph and not _has_kernels(MERGE_KERNELS, order, done=0.0):
        return f"the kernels that extend a graph ({', '.join(MERGE_KERNELS)}) are missing"
    return ""


def _has_kernels(kernels: Sequence[Kernel], order: BuildOrder, *, done: float) -> bool:
    """Wait until `kernels` are loaded; log and return False if they cannot be compiled.

    On a new machine it takes a minute or two to compile them.
    """
    if wait_loaded(kernels, interval_s=KERNEL_WAIT_S, on_wait=lambda: order.on_progress(done)):
        return True
    _log.warning(
        "segment %s is built without %s, which could not be compiled",
        order.segment_id,
        ", ".join(kernels),
    )
    return False


def _allowed_settings(collection: Collection) -> list[IndexSettings]:
    """Return the settings that graphs of the collection may be built with, weakest first."""
    return [
        IndexSettings(
            m=min(M_MAX, collection.index.m * m_factor),
            ef_construction=min(EF_CONSTRUCTION_MAX, collection.index.ef_construction * ef_factor),
        )
        for m_factor, ef_factor in BUILD_STRENGTHS
    ]


def _build_index(
    vectors: Float32Matrix,
    model: ModelSpec,
    order: BuildOrder,
    sources: Sequence[Source],
    chosen: BaseChoice,
) -> _Built:
    """Return an index that meets the recall objective.

    Tried in turn: the base's graph, extended; graphs of growing strength, built from nothing; a
    flat index, in which every search is exact.
    """
    collection_settings = order.collection.settings
    # With an objective of 1 every search is exact: a graph would never be walked.
    size = chosen.order.graph_size
    graph = size >= HNSW_ROWS_MIN and collection_settings.recall_objective < 1.0
    if graph and chosen.base is not None:
        extended = _extend_graph(vectors, model, order, chosen.base, chosen.order)
        if extended is not None:
            return extended
    first = 0
    if order.reason is TaskReason.RECALL:
        segments = [source.segment for source in sources]
        first = first_strength(segments, yield_point=order.yield_point)
    for settings in _allowed_settings(order.collection)[first:] if graph else ():
        index, measured, bands = _build_graph(
            vectors, model, order, settings, row_order=chosen.order
        )
        curve = _decisive_curve(measured, settings, order)
        if _meets(index, curve, order, settings):
            # An extended graph is later compared with the curve of the held-out rows: logged
            # queries change. It is stored apart only if it is not the segment's curve already.
            reference = measured.held_out if measured.logged_are_harder else ()
            history = GraphHistory(kind=GraphKind.FULL, reference=reference)
            return _Built(index, settings, measured.curve + bands, history)
        del index  # frees its memory before the next graph is built
    if graph:
        _log.warning(
            "segment %s: no graph of its %d different vectors meets the recall objective; the"
            " segment is written without a graph, and every search compares all its rows",
            order.segment_id,
            size,
        )
    index = build_flat(vectors, metric=model.metric)
    order.on_progress(1.0)
    return _Built(index)


def _extend_graph(
    vectors: Float32Matrix, model: ModelSpec, order: BuildOrder, base: Base, row_order: RowOrder
) -> _Built | None:
    """Return an index whose graph extends that of `base`; None when a rebuild is needed instead.

    The graph must not have drifted (`drift_reason`) and must meet the objective.
    """
    collection_settings = order.collection.settings
    size = row_order.graph_size
    index, measured, bands = _build_graph(
        vectors, model, order, base.settings, row_order=row_order, base=base
    )
    drift = drift_reason(
        measured.held_out,
        base.reference,
        k=collection_settings.recall_k,
        objective=collection_settings.recall_objective,
        growth=size / base.reference_rows,
    )
    if drift:
        _log.warning(
            "segment %s: rebuilt, because the extended graph of %s is worse: %s",
            order.segment_id,
            base.id,
            drift,
        )
        return None
    decisive = _decisive_curve(measured, base.settings, order)
    if not _meets(index, decisive, order, base.settings):
        return None
    curve = (*measured.curve, *bands, *base.bands(size))
    return _Built(index, base.settings, curve, base.history(size))


def _decisive_curve(
    measured: Calibration, settings: IndexSettings, order: BuildOrder
) -> tuple[RecallPoint, ...]:
    """Return the curve that has to meet the objective.

    For the strongest graph it is the curve of the held-out rows, even if logged queries are harder:
    the alternative is a flat index, too slow for a large segment. If live queries stay below the
    objective, the node raises ef and reports it.
    """
    strongest = settings == _allowed_settings(order.collection)[-1]
    return measured.held_out if strongest else measured.curve


def _meets(
    index: VectorIndex,
    curve: Sequence[RecallPoint],
    order: BuildOrder,
    settings: IndexSettings,
) -> bool:
    """Return whether a graph meets the objective on `curve` and for its own rows; log if not."""
    collection_settings = order.collection.settings
    k, objective = collection_settings.recall_k, collection_settings.recall_objective
    if not meets_objective(curve, k=k, objective=objective):
        points = [p.recall for p in curve if p.k == k and not p.band]
        which, recall = "held-out rows or logged queries", max(points, default=0.0)
    else:
        which, recall = "its own rows", own_recall(index, k=k, yield_point=order.yield_point)
        if recall >= objective and not misses_own_rows(index, curve, yield_point=order.yield_point):
            return True
    _log.warning(
        "segment %s: recall %.4f of %s at ef %d with %s does not meet the objective of %s",
        order.segment_id,
        recall,
        which,
        EF_LIMIT,
        settings,
        objective,
    )
    return False


def _build_graph(
    vectors: Float32Matrix,
    model: ModelSpec,
    order: BuildOrder,
    settings: IndexSettings,
    *,
    row_order: RowOrder,
    base: Base | None = None,
) -> tuple[VectorIndex, Calibration, tuple[RecallPoint, ...]]:
    """Return a graph of `vectors`, its calibration without filters, and its points under filters.

    Which of them are copies, and of which rows, is said by `row_order`.
    The graph extends that of `base`, if given. Then nothing is measured under filters as long as
    the points of the base still hold (`Base.bands`), and no points are returned for them.
    """
    in_graph, copies = vectors[: row_order.graph_size], vectors[row_order.graph_size :]
    held_out = held_out_count(len(in_graph))
    queries = np.ascontiguousarray(in_graph[len(in_graph) - held_out :])
    found: list[tuple[VectorStorage, Calibration, tuple[RecallPoint, ...]]] = []
    collection_settings = order.collection.settings
    started_s = monotonic_s()

    def measure(part: VectorIndex) -> None:
        limit_s = bands_time_s(monotonic_s() - started_s)
        if has_bands(part.rows):
            needed = (*SEARCH_KERNELS, walk_over(collection_settings.storage))
            _has_kernels(needed, order, done=part.rows / len(in_graph))
        stored = calibrate_stored(
            part,
            queries,
            settings=collection_settings,
            all_vectors=in_graph,
            logged_queries=order.logged_queries,
            yield_point=order.yield_point,
        )
        measured = stored.calibration
        if measured.logged_are_harder:
            _log.info(
                "segment %s: logged queries have a lower recall than held-out rows",
                order.segment_id,
            )
        bands: tuple[RecallPoint, ...] = ()
        if base is None or not base.bands(len(in_graph)):
            bands = measure_bands(
                stored.index,
                measured.queries,
                k=collection_settings.recall_k,
                limit_s=limit_s,
                yield_point=order.yield_point,
            )
        found.append((stored.index.storage, measured, bands))

    build = partial(build_hnsw, metric=model.metric)
    if base is not None:
        build = partial(merge_hnsw, base.index, base.kept)
    index = build(
        in_graph,
        settings=settings,
        threads=order.threads,
        on_progress=lambda done: order.on_progress(done / len(in_graph)),
        probe_rows=held_out,
        probe=measure,
    )
    storage, measured, bands = found[-1]
    index = add_copies(index, copies, row_order.originals, yield_point=order.yield_point)
    return with_storage(index, storage, yield_point=order.yield_point), measured, bands
