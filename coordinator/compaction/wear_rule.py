"""Which segments are worn so much that they are rewritten by themselves. Pure.

A dead row costs memory and disk until it is rewritten away, and in a graph every walk pays for it
as well: it looks through the row, or its beam gets wider by 1 / (share that lives). How much more,
is measured on live queries: a walk that compares v rows where the segment's recall curve says b
pays for a share of 1 - b / v, wherever the queries go and whatever else wears the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from annheal.coordinator.compaction.rules import (
    PRIORITY_RECALL,
    PRIORITY_TOMBSTONES,
    PRIORITY_WALK_COST,
    CompactionSettings,
    Rewrite,
    is_flat,
    live_rows,
)
from annheal.model.collection import Collection
from annheal.model.measures.recall import RECALL_UNKNOWN
from annheal.model.topology.manifest import Tier
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import CompactionTask, TaskReason

DEAD_WEIGHT_MIN = 2.0 / 3.0
"""What a dead row counts that no search meets: memory and disk stay within 1 / (1 - 0.3) = 1.43
times those of the live rows at the default ratio of 0.2."""
DEAD_WEIGHT_MAX = 2.0
WALK_DEAD_SHARE_MIN = 0.05
"""With fewer dead rows a graph that is built anew is the same graph."""
WALK_UNWORN_TIMES = 4.0
"""Without them only so many times the ratio, which a damaged graph shows, asks for a build: queries
that resemble no row need up to some three times the walk of the rows that were held out."""
_ROUNDING = 1e-9


def plan_worn(
    collection: Collection,
    segments: Sequence[SegmentState],
    rebuilt: Set[str],
    settings: CompactionSettings,
) -> list[Rewrite]:
    """Return what to rewrite for itself and why: each segment alone, those wholly dead together.

    Wholly dead segments need no build; one task drops them all, so that they never queue up before
    the merges of rows that live.
    """
    rewrites: list[Rewrite] = []
    dead: list[SegmentState] = []
    for segment in segments:
        if segment.tier == Tier.GROWING:
            continue
        if segment.dead_rows and not live_rows(segment):
            dead.append(segment)
            continue
        rewrite = _of_segment(collection, segment, rebuilt)
        if rewrite is not None:
            rewrites.append(rewrite)
    if dead:
        some = tuple(dead[: settings.sources_max])
        why = f"no row lives in {len(some)} segments"
        rewrites.insert(0, Rewrite(some, TaskReason.TOMBSTONES, PRIORITY_TOMBSTONES, why))
    return rewrites


def rebuilt_segments(tasks: Iterable[CompactionTask]) -> set[str]:
    """Return the segments that were built for the recall of their predecessors."""
    return {
        task.output.segment_id
        for task in tasks
        if task.reason is TaskReason.RECALL and task.output is not None
    }


def dead_weight(segment: SegmentState) -> float:
    """Return what a dead row of the segment counts, 1 where nothing was measured.

    A flat segment skips its dead rows; a graph pays what its walks compare more than at its build.
    """
    if is_flat(segment):
        return DEAD_WEIGHT_MIN
    share = segment.dead_rows / max(segment.rows, 1)
    ratio = walk_ratio(segment)
    if not ratio or not share:
        return 1.0
    paid = max(0.0, 1.0 - 1.0 / ratio)
    return min(DEAD_WEIGHT_MAX, max(DEAD_WEIGHT_MIN, paid / share))


def walk_ratio(segment: SegmentState) -> float:
    """Return how many times the rows of its build a live query compares; 0: not measured."""
    if not (segment.visited and segment.visited_baseline):
        return 0.0
    return segment.visited / segment.visited_baseline


def _of_segment(collection: Collection, segment: SegmentState, rebuilt: Set[str]) -> Rewrite | None:
    alone = (segment,)
    if segment.rebuild and not segment.stuck and segment.segment_id not in rebuilt:
        found = "" if segment.recall == RECALL_UNKNOWN else f" is {segment.recall:.4f}"
        why = (
            f"recall of live queries{found} at ef {segment.ef:,}, the widest; the objective is "
            f"{collection.settings.recall_objective:g}"
        )
        return Rewrite(alone, TaskReason.RECALL, PRIORITY_RECALL, why)
    settings = collection.settings
    share = segment.dead_rows / max(segment.rows, 1)
    weight = dead_weight(segment)
    many = share * weight >= settings.tombstone_ratio_max - _ROUNDING
    if segment.dead_rows >= settings.tombstone_rows_min and many:
        why = f"{share:.0%} of {segment.rows:,} rows are dead"
        why += "" if weight == 1.0 else f", counted {weight:.2f} times"
        return Rewrite(alone, TaskReason.TOMBSTONES, PRIORITY_TOMBSTONES, why)
    return _of_walk(collection, segment, share)


def _of_walk(collection: Collection, segment: SegmentState, share: float) -> Rewrite | None:
    if is_flat(segment):
        return None
    ratio, limit = walk_ratio(segment), collection.settings.walk_cost_ratio_max
    if share < WALK_DEAD_SHARE_MIN:
        if segment.built_for in (TaskReason.WALK_COST, TaskReason.RECALL):
            return None
        limit *= WALK_UNWORN_TIMES
    if ratio < limit:
        return None
    why = (
        f"live queries compare {segment.visited:,.0f} rows, {ratio:.1f} times the "
        f"{segment.visited_baseline:,.0f} of its build"
    )
    return Rewrite((segment,), TaskReason.WALK_COST, PRIORITY_WALK_COST, why)
