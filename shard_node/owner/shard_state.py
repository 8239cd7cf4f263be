"""The states of shards that a node reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from annheal.model.collection import Collection
from annheal.model.measures.recall import RECALL_UNKNOWN
from annheal.model.topology.manifest import IndexKind
from annheal.model.topology.shard import ShardId, ShardPhase
from annheal.model.topology.state import ModelCoverage, SegmentState, ShardState
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.recall_curves import measured_visits, plain_ef


@dataclass(frozen=True, slots=True)
class MeasuredSegment:
    """What was measured of a segment with live queries, in the band of lowest recall.

    `rebuild`: the controller asks for a rebuild. `visited`: rows that a query without a filter
    compares, 0 where it is not known.
    """

    recall: float
    ef: int
    rebuild: bool
    stuck: bool
    visited: float = 0.0


def with_recall(
    state: ShardState, measured: Mapping[str, MeasuredSegment], view: ShardView
) -> ShardState:
    """Return `state` with what was `measured` of its segments, by the id of what was searched.

    `view` is what the serving model searches: segments, or vector parts of them.
    """
    if not measured:
        return state
    by_part = {held.segment.id: held.segment.graph_ids[0] for held in view.segments}
    measured = {by_part.get(name, name): found for name, found in measured.items()}
    segments = tuple(_with_measured(one, measured.get(one.segment_id)) for one in state.segments)
    return replace(state, segments=segments)


def describe(
    shard: ShardId,
    view: ShardView,
    *,
    node_id: str,
    collection: Collection,
    epoch: int,
    wal_slots: int,
) -> ShardState:
    """Return the state of a served shard; `wal_slots` are its log slots after the checkpoint."""
    return ShardState(
        collection_id=shard.collection_id,
        shard=shard.number,
        node_id=node_id,
        phase=ShardPhase.SERVING.value,
        epoch=epoch,
        live_rows=view.live_rows,
        dead_rows=view.dead_rows,
        unindexed_rows=view.unindexed_rows,
        applied_sequence=view.sequence,
        wal_slots=wal_slots,
        memory_bytes=view.memory_bytes,
        segments=(
            *(
                _of_segment(shard.number, segment_view, collection)
                for segment_view in view.segments
            ),
            *(
                _of_growing(shard.number, growing, position, collection)
                for position, growing in enumerate(view.growing)
            ),
        ),
    )


def describe_unserved(shard: ShardId, *, node_id: str, error: str) -> ShardState:
    """Return the state of a shard that is being opened, or that failed with `error`."""
    phase = ShardPhase.FAILED if error else ShardPhase.LOADING
    return ShardState(
        collection_id=shard.collection_id,
        shard=shard.number,
        node_id=node_id,
        phase=phase.value,
        epoch=0,
        live_rows=0,
        dead_rows=0,
        unindexed_rows=0,
        applied_sequence=0,
        wal_slots=0,
        memory_bytes=0,
        error=error,
    )


def _with_measured(segment: SegmentState, measured: MeasuredSegment | None) -> SegmentState:
    if measured is None:
        return segment
    return replace(
        segment,
        recall=measured.recall,
        ef=measured.ef,
        rebuild=measured.rebuild,
        stuck=measured.stuck,
        visited=measured.visited,
    )


def _of_segment(number: int, segment_view: SegmentView, collection: Collection) -> SegmentState:
    segment = segment_view.segment
    entry = segment.entry
    settings = collection.settings
    ef, baseline = 0, 0.0
    serving = segment_view.of_model(collection.model.name)
    if serving is not None and serving.segment.kind is IndexKind.HNSW:
        curve = serving.segment.recall_curve
        ef = plain_ef(curve, k=settings.recall_k, objective=settings.recall_objective) or 0
        baseline = measured_visits(curve, k=settings.recall_k, ef=ef)
    return SegmentState(
        shard=number,
        segment_id=entry.segment_id,
        tier=entry.tier.value,
        model=entry.model,
        index_kind=segment.kind.value,
        rows=segment.rows,
        dead_rows=segment_view.deletes.dead_count,
        size_bytes=entry.size_bytes,
        generation=entry.generation,
        created_at_s=entry.created_at_s,
        min_sequence=entry.min_sequence,
        max_sequence=entry.max_sequence,
        recall=RECALL_UNKNOWN,
        ef=ef,
        visited_baseline=baseline,
        built_for=segment.meta.build.reason,
        without_kernels=segment.kind is IndexKind.HNSW and not segment.index.walk_ready,
        models=_coverage(segment_view, collection),
    )


def _coverage(held: SegmentView, collection: Collection) -> tuple[ModelCoverage, ...]:
    """Return how far the live rows have vectors of each model, removed ones included."""
    if len(collection.models) == 1:
        return ()
    found: list[ModelCoverage] = []
    for model in collection.models:
        view = held.of_model(model.name)
        if view is None:
            found.append(ModelCoverage(model.name, 0, held.live_count))
            continue
        part = held.segment.entry.part_of(model.name)
        found.append(
            ModelCoverage(
                model.name,
                view.live_count,
                held.live_count - view.live_count,
                index_kind=view.segment.kind.value,
                size_bytes=0 if part is None else part.size_bytes,
                skipped=0 if part is None else part.skipped,
                waits=part is not None
                and view.segment.kind is IndexKind.FLAT
                and not view.segment.meta.build.generation,
            )
        )
    return tuple(found)


def _of_growing(
    number: int, growing: GrowingView, position: int, collection: Collection
) -> SegmentState:
    models: list[ModelCoverage] = []
    for model in collection.models if len(collection.models) > 1 else ():
        view = growing.of_model(model.name)
        rows = 0 if view is None else view.live_count
        kind = IndexKind.FLAT.value if rows else ""
        models.append(ModelCoverage(model.name, rows, growing.live_count - rows, kind))
    return SegmentState(
        shard=number,
        segment_id=f"growing-{position}",
        tier="growing",
        model=growing.model,
        index_kind=IndexKind.FLAT.value,
        rows=growing.rows,
        dead_rows=growing.dead_count,
        size_bytes=growing.memory_bytes,
        generation=0,
        created_at_s=0.0,
        min_sequence=int(growing.sequences[0]),
        max_sequence=int(growing.sequences[growing.rows - 1]),
        models=tuple(models),
    )
