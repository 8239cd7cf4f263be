"""Which segments to rewrite, and why. Pure: what nodes report goes in, tasks come out.

Flushed segments are flat: exact, but searched row by row. The plan turns them into graphs when
there are enough of them, when nothing was written for a while, or when too many rows have no graph
(`compaction_merge`). Segments that dead rows, live queries' recall or the cost of their walks speak
against are rewritten by themselves (`compaction_wear`). No segment is ever in two unfinished
tasks. docs/operations/compaction.md explains the rules with their figures.
"""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Iterable, Sequence

from annheal.coordinator.compaction.merge_rule import PRESSURE_SHARE, plan_merge
from annheal.coordinator.compaction.rules import (
    PRIORITY_MANUAL,
    CompactionSettings,
    NewId,
    Rewrite,
    ShardObservation,
    busy_segments,
    by_size,
    fitting,
    free_segments,
    is_flat,
    task_of,
    tier_of,
)
from annheal.coordinator.compaction.wear_rule import plan_worn, rebuilt_segments
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

_NAMED_SHOWN = 8


def plan_compactions(
    collection: Collection,
    shards: Sequence[ShardObservation],
    tasks: Iterable[CompactionTask],
    *,
    now_s: float,
    settings: CompactionSettings,
    new_id: NewId,
) -> tuple[CompactionTask, ...]:
    """Return the tasks to add: at most one merge a shard, and one task for each worn segment.

    Shards that are not served are skipped. `tasks` are all tasks known; `now_s` is seconds since
    the epoch; `new_id` gives each task its id.
    """
    tasks = tuple(tasks)
    rebuilt = rebuilt_segments(tasks)
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=settings.failed_pause_s)
    planned: list[CompactionTask] = []
    for shard in sorted(shards, key=lambda one: one.state.shard):
        if not _is_served(collection, shard.state):
            continue
        free = free_segments(collection, shard.state, busy)
        merge = plan_merge(collection, shard, free, settings)
        rewrites = [] if merge is None else [merge]
        taken = {one.segment_id for rewrite in rewrites for one in rewrite.sources}
        taken |= {segment_id for number, segment_id in busy if number == shard.state.shard}
        rest = [one for one in shard.state.segments if one.segment_id not in taken]
        rewrites += plan_worn(collection, rest, rebuilt, settings)
        planned += [
            task_of(collection, shard.state.shard, one, now_s=now_s, id=new_id())
            for one in rewrites
        ]
    return tuple(planned)


def within_budget(
    planned: Iterable[CompactionTask],
    tasks: Iterable[CompactionTask],
    *,
    settings: CompactionSettings,
) -> tuple[CompactionTask, ...]:
    """Return those of `planned` that the cluster's budget allows beside its unfinished `tasks`.

    The highest priority first, then the smallest. When nothing is unfinished one task is allowed,
    however large it is. What is left out is planned again later.
    """
    open_tasks = [one for one in tasks if one.phase in (TaskPhase.PENDING, TaskPhase.BUILT)]
    count, size_bytes = len(open_tasks), sum(one.estimated_bytes for one in open_tasks)
    allowed: list[CompactionTask] = []
    for task in sorted(planned, key=lambda one: (-one.priority, one.estimated_bytes, one.id)):
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
    """Return the tasks that rewrite a shard (all when None) into as few clean segments as may be.

    What was left flat because no graph served it is tried again. `tier`: only segments of this
    tier. A lone segment without dead rows that has a graph, or is too small for one, is left
    alone. Segments of unfinished tasks are left out; failed tasks do not hold anything back.
    """
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=0.0)
    why = "all of the collection" if tier is None else f"all of tier {tier.value}"
    planned: list[CompactionTask] = []
    for state in sorted(states, key=lambda one: one.shard):
        wanted = shard is None or state.shard == shard
        if not wanted or not _is_served(collection, state):
            continue
        free = [
            one
            for one in free_segments(collection, state, busy)
            if tier is None or one.tier == tier.value
        ]
        for group in _packed(collection, free, settings):
            if len(group) > 1 or not _is_clean(collection, group[0], settings):
                planned.append(_manual_task(collection, state, group, why, now_s, new_id()))
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
    """Return the tasks that rewrite the named segments, those of one shard together.

    They are rewritten even when nothing speaks for it. Those of unfinished tasks are left out.
    Raises `NotFound` for a name that no flushed segment of `states` has.
    """
    present = {
        one.segment_id for state in states for one in state.segments if one.tier != Tier.GROWING
    }
    unknown = sorted(set(segment_ids) - present)
    if unknown:
        some = ", ".join(sorted(present)[:_NAMED_SHOWN]) or "none"
        more = f" and {len(present) - _NAMED_SHOWN} more" if len(present) > _NAMED_SHOWN else ""
        raise NotFound(
            f"{collection.name} has no segment {unknown[0]!r}; there are: {some}{more}",
            reason="SEGMENT_NOT_FOUND",
            metadata={"segment": unknown[0], "collection": collection.name},
        )
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=0.0)
    planned: list[CompactionTask] = []
    for state in sorted(states, key=lambda one: one.shard):
        if not _is_served(collection, state):
            continue
        free = free_segments(collection, state, busy)
        named = [one for one in free if one.segment_id in segment_ids]
        for group in _packed(collection, named, settings):
            planned.append(_manual_task(collection, state, group, "named", now_s, new_id()))
    return tuple(planned)


def _is_served(collection: Collection, state: ShardState) -> bool:
    return state.collection_id == collection.id and state.phase == ShardPhase.SERVING


def _manual_task(
    collection: Collection,
    state: ShardState,
    group: Sequence[SegmentState],
    why: str,
    now_s: float,
    id: str,
) -> CompactionTask:
    rewrite = Rewrite(tuple(group), TaskReason.MANUAL, PRIORITY_MANUAL, f"asked for: {why}")
    return task_of(collection, state.shard, rewrite, now_s=now_s, id=id)


def _packed(
    collection: Collection, segments: Iterable[SegmentState], settings: CompactionSettings
) -> list[list[SegmentState]]:
    rest = sorted(segments, key=by_size)
    groups: list[list[SegmentState]] = []
    while rest:
        group = fitting(collection, rest, sources_max=settings.sources_max)
        groups.append(group)
        rest = rest[len(group) :]
    return groups


def _is_clean(collection: Collection, segment: SegmentState, settings: CompactionSettings) -> bool:
    """Return whether rewriting this segment alone would change nothing worth it.

    A small flat segment is as good as it can be, unless writes are refused because of it.
    """
    if segment.dead_rows:
        return False
    if not is_flat(segment):
        return True
    limit = PRESSURE_SHARE * collection.settings.unindexed_rows_max
    presses = segment.tier == Tier.HOT and segment.rows >= limit
    return segment.rows < settings.graph_rows_min and not presses
