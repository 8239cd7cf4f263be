"""Which segments are rewritten, and why. Pure: shard states that nodes report in, new tasks out.

A flushed segment is flat: a search compares each of its rows and is exact. Flat segments are merged
into one with a graph when there are enough of them, when the shard had no write for a while, or
when too many rows have no graph (`merge_rule`). A segment is rewritten alone when its share of dead
rows, the recall of live queries or their walk cost passes a limit (`degraded_rule`). No segment is
in two unfinished tasks. docs/operations/compaction.md explains the rules with their figures.
"""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Iterable, Sequence

from annheal.coordinator.compaction.degraded_rule import plan_degraded, rebuilt_for_recall
from annheal.coordinator.compaction.merge_rule import BACKPRESSURE_SHARE, plan_merge
from annheal.coordinator.compaction.rules import (
    PRIORITY_MANUAL,
    CompactionSettings,
    NewId,
    Rewrite,
    ShardObservation,
    busy_segments,
    first_within_limits,
    free_segments,
    is_flat,
    size_order,
    task_for,
    tier_of,
)
from annheal.errors import NotFound
from annheal.model.collection import Collection
from annheal.model.topology.manifest import Tier
from annheal.model.topology.shard import ShardPhase
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

__all__ = [
    "CompactionSettings",
    "ShardObservation",
    "busy_segments",
    "plan_compactions",
    "plan_manual",
    "plan_named",
    "tier_of",
    "within_budget",
]

_SEGMENTS_SHOWN = 8  # in an error message


def plan_compactions(
    collection: Collection,
    shards: Sequence[ShardObservation],
    tasks: Iterable[CompactionTask],
    *,
    now_s: float,
    settings: CompactionSettings,
    new_id: NewId,
) -> tuple[CompactionTask, ...]:
    """Return new tasks: at most one merge for each shard, and one for each degraded segment.

    Shards that no node serves are skipped. `tasks` are all known tasks of the collection, finished
    ones included; `now_s` is seconds since the epoch.
    """
    tasks = tuple(tasks)
    rebuilt = rebuilt_for_recall(tasks)
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=settings.failed_pause_s)
    planned: list[CompactionTask] = []
    for shard in sorted(shards, key=lambda shard: shard.state.shard):
        if not _is_served(collection, shard.state):
            continue
        free = free_segments(shard.state, busy)
        merge = plan_merge(collection, shard, free, settings)
        rewrites = [] if merge is None else [merge]
        taken = {source.segment_id for rewrite in rewrites for source in rewrite.sources}
        taken |= {segment_id for number, segment_id in busy if number == shard.state.shard}
        rest = [segment for segment in shard.state.segments if segment.segment_id not in taken]
        rewrites += plan_degraded(collection, rest, rebuilt, settings)
        planned += [
            task_for(collection, shard.state.shard, rewrite, now_s=now_s, id=new_id())
            for rewrite in rewrites
        ]
    return tuple(planned)


def within_budget(
    planned: Iterable[CompactionTask],
    tasks: Iterable[CompactionTask],
    *,
    settings: CompactionSettings,
) -> tuple[CompactionTask, ...]:
    """Return those of `planned` that fit into the cluster's budget beside its unfinished `tasks`.

    The budget is `tasks_max` and `tasks_bytes_max`. Tasks are taken by priority, highest first,
    then by estimated bytes, smallest first. If no task is unfinished, the first one is taken
    whatever its size. The rules plan the others again in a later round.
    """
    unfinished = [task for task in tasks if task.phase in (TaskPhase.PENDING, TaskPhase.BUILT)]
    count, size_bytes = len(unfinished), sum(task.estimated_bytes for task in unfinished)
    allowed: list[CompactionTask] = []
    for task in sorted(planned, key=lambda task: (-task.priority, task.estimated_bytes, task.id)):
        fits = size_bytes + task.estimated_bytes <= settings.tasks_bytes_max
        if count < settings.tasks_max and (fits or not count):
            allowed.append(task)
            count += 1
            size_bytes += task.estimated_bytes
    return tuple(allowed)


def plan_manual(
    collection: Collection,
    states: Sequence[ShardState],
    tasks: Iterable[CompactionTask],
    *,
    now_s: float,
    new_id: NewId,
    settings: CompactionSettings,
    shard: int | None = None,
    tier: Tier | None = None,
) -> tuple[CompactionTask, ...]:
    """Return the tasks that an operator's request for a full compaction leads to.

    They rewrite `shard` (every shard when None), or its segments of `tier`, as few large segments
    within the collection's limits. A segment that would be rewritten alone is left out if it has no
    dead rows and has a graph or is too small for one. A large flat segment is tried again.
    Segments of unfinished tasks are left out, those of failed tasks are not.
    """
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=0.0)
    why = "all of the collection" if tier is None else f"all of tier {tier.value}"
    planned: list[CompactionTask] = []
    for state in sorted(states, key=lambda state: state.shard):
        selected = shard is None or state.shard == shard
        if not selected or not _is_served(collection, state):
            continue
        free = [
            segment
            for segment in free_segments(state, busy)
            if tier is None or segment.tier == tier.value
        ]
        for sources in _packed(collection, free, settings):
            if len(sources) > 1 or not _is_clean(collection, sources[0], settings):
                planned.append(_manual_task(collection, state, sources, why, now_s, new_id()))
    return tuple(planned)


def plan_named(
    collection: Collection,
    states: Sequence[ShardState],
    tasks: Iterable[CompactionTask],
    *,
    segment_ids: AnyOf[str],
    now_s: float,
    new_id: NewId,
    settings: CompactionSettings,
) -> tuple[CompactionTask, ...]:
    """Return the tasks that rewrite the segments `segment_ids`, those of one shard together.

    No rule has to ask for the rewrite. Segments of unfinished tasks are left out. Raises `NotFound`
    for an id that no flushed segment of `states` has.
    """
    present = {
        segment.segment_id
        for state in states
        for segment in state.segments
        if segment.tier != Tier.GROWING
    }
    unknown = sorted(set(segment_ids) - present)
    if unknown:
        some = ", ".join(sorted(present)[:_SEGMENTS_SHOWN]) or "none"
        more = (
            f" and {len(present) - _SEGMENTS_SHOWN} more" if len(present) > _SEGMENTS_SHOWN else ""
        )
        raise NotFound(
            f"{collection.name} has no segment {unknown[0]!r}; there are: {some}{more}",
            reason="SEGMENT_NOT_FOUND",
            metadata={"segment": unknown[0], "collection": collection.name},
        )
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=0.0)
    planned: list[CompactionTask] = []
    for state in sorted(states, key=lambda state: state.shard):
        if not _is_served(collection, state):
            continue
        free = free_segments(state, busy)
        named = [segment for segment in free if segment.segment_id in segment_ids]
        for sources in _packed(collection, named, settings):
            planned.append(_manual_task(collection, state, sources, "named", now_s, new_id()))
    return tuple(planned)


def _is_served(collection: Collection, state: ShardState) -> bool:
    return state.collection_id == collection.id and state.phase == ShardPhase.SERVING


def _manual_task(
    collection: Collection,
    state: ShardState,
    sources: Sequence[SegmentState],
    why: str,
    now_s: float,
    id: str,
) -> CompactionTask:
    rewrite = Rewrite(tuple(sources), TaskReason.MANUAL, PRIORITY_MANUAL, f"requested: {why}")
    return task_for(collection, state.shard, rewrite, now_s=now_s, id=id)


def _packed(
    collection: Collection, segments: Iterable[SegmentState], settings: CompactionSettings
) -> list[list[SegmentState]]:
    """Return the segments in groups, smallest first, each as large as a task's limits allow."""
    rest = sorted(segments, key=size_order)
    packed: list[list[SegmentState]] = []
    while rest:
        sources = first_within_limits(collection, rest, sources_max=settings.sources_max)
        packed.append(sources)
        rest = rest[len(sources) :]
    return packed


def _is_clean(collection: Collection, segment: SegmentState, settings: CompactionSettings) -> bool:
    """Return whether a rewrite of this segment alone has no use.

    A small flat segment needs no graph, unless its rows alone bring the shard close to refusing
    writes (`BACKPRESSURE_SHARE`).
    """
    if segment.dead_rows:
        return False
    if not is_flat(segment):
        return True
    limit = BACKPRESSURE_SHARE * collection.settings.unindexed_rows_max
    causes_backpressure = segment.tier == Tier.HOT and segment.rows >= limit
    return segment.rows < settings.graph_rows_min and not causes_backpressure
