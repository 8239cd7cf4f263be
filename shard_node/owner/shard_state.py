"""What a node says about a shard that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from annheal.model.collection import Collection
from annheal.model.measures.recall import RECALL_UNKNOWN
from annheal.model.topology.manifest import IndexKind
from annheal.model.topology.shard import ShardId, ShardPhase
from annheal.model.topology.state import SegmentState, ShardState
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.recall_curves import measured_visits, plain_ef


@dataclass(frozen=True, slots=True)
class SegmentNote:
    """What was measured of a segment on live queries, in the band that is worst off.

    `visited`: rows that a query without a filter compares, 0 where it is not known.
    """

    recall: float
    ef: int
    rebuild: bool
    stuck: bool
    visited: float = 0.0


def with_recall(state: ShardState, notes: Mapping[str, SegmentNote]) -> ShardState:
    """Return `state` with what was measured of its segments, `notes` by segment id."""
    if not notes:
        return state
    return replace(state, segments=tuple(_noted(one, notes) for one in state.segments))


def describe(
    shard: ShardId,
    view: ShardView,
    *,
    node_id: str,
    collection: Collection,
    epoch: int,
    wal_slots: int,
) -> ShardState:
    """Describe a served shard; `wal_slots` are the log slots behind its checkpoint."""
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
            *(_of_segment(shard.number, held, collection) for held in view.segments),
            *(
                _of_growing(shard.number, growing, position, collection.model.name)
                for position, growing in enumerate(view.growing)
            ),
        ),
    )


def describe_unserved(shard: ShardId, *, node_id: str, error: str) -> ShardState:
    """Describe a shard that is being opened, or that failed with `error`."""
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


def _noted(segment: SegmentState, notes: Mapping[str, SegmentNote]) -> SegmentState:
    note = notes.get(segment.segment_id)
    if note is None:
        return segment
    return replace(
        segment,
        recall=note.recall,
        ef=note.ef,
        rebuild=note.rebuild,
        stuck=note.stuck,
        visited=note.visited,
    )


def _of_segment(number: int, held: SegmentView, collection: Collection) -> SegmentState:
    entry = held.segment.entry
    goal = collection.settings
    ef, baseline = 0, 0.0
    if held.segment.kind is IndexKind.HNSW:
        curve = held.segment.recall_curve
        ef = plain_ef(curve, k=goal.recall_k, objective=goal.recall_objective) or 0
        baseline = measured_visits(curve, k=goal.recall_k, ef=ef)
    return SegmentState(
        shard=number,
        segment_id=entry.segment_id,
        tier=entry.tier.value,
        model=entry.model,
        index_kind=held.segment.kind.value,
        rows=held.segment.rows,
        dead_rows=held.deletes.dead_count,
        size_bytes=entry.size_bytes,
        generation=entry.generation,
        created_at_s=entry.created_at_s,
        min_sequence=entry.min_sequence,
        max_sequence=entry.max_sequence,
        recall=RECALL_UNKNOWN,
        ef=ef,
        visited_baseline=baseline,
        built_for=held.segment.meta.build.reason,
        without_kernels=held.segment.kind is IndexKind.HNSW and not held.segment.index.walk_ready,
    )


def _of_growing(number: int, growing: GrowingView, position: int, model: str) -> SegmentState:
    return SegmentState(
        shard=number,
        segment_id=f"growing-{position}",
        tier="growing",
        model=model,
        index_kind="flat",
        rows=growing.rows,
        dead_rows=growing.dead_count,
        size_bytes=growing.rows * growing.vectors.shape[1] * 4,
        generation=0,
        created_at_s=0.0,
        min_sequence=int(growing.sequences[0]),
        max_sequence=int(growing.sequences[growing.rows - 1]),
    )
