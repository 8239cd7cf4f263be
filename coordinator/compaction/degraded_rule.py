"""Which segments are degraded so far that each is rewritten alone. Pure.

A segment is degraded when its share of dead rows, the recall of live queries or their walk cost
passes a limit of the collection. A dead row costs memory and disk until a rewrite leaves it out. In
a graph it also costs comparisons: a walk passes through the row, or needs a beam that is wider by
1 / (share of live rows). Live queries measure the extra comparisons: where a walk compares v rows
and the recall curve of the segment says b, the share 1 - b / v of the walk is extra. It includes
the effect of changed queries, not only that of dead rows.
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

DEAD_ROW_WEIGHT_MIN = 2.0 / 3.0
"""Weight of dead rows that cost no comparisons. At the default `tombstone_ratio_max` of 0.2 it
allows 0.3 dead rows: memory and disk stay within 1 / (1 - 0.3) = 1.43 times the live rows'."""
DEAD_ROW_WEIGHT_MAX = 2.0
WALK_COST_DEAD_SHARE_MIN = 0.05
"""Share of dead rows below which a rebuild for walk cost gives nearly the same graph."""
WALK_COST_FEW_DEAD_FACTOR = 4.0
"""With fewer dead rows than that, `walk_cost_ratio_max` times this factor asks for a rebuild, as
for a damaged graph. A sound graph does not reach it: queries that are unlike all rows compare up to
about three times as many rows as the held-out rows did."""
_ROUNDING = 1e-9


def plan_degraded(
    collection: Collection,
    segments: Sequence[SegmentState],
    rebuilt: Set[str],
    settings: CompactionSettings,
) -> list[Rewrite]:
    """Return the rewrites of degraded segments: one for each, one for all without a live row.

    `segments` are those of a shard that no task has; growing ones are ignored. `rebuilt`: see
    `rebuilt_for_recall`. Segments without a live row need no build. One task drops up to
    `sources_max` of them, so that they do not fill the queue before merges of live rows.
    """
    rewrites: list[Rewrite] = []
    without_live: list[SegmentState] = []
    for segment in segments:
        if segment.tier == Tier.GROWING:
            continue
        if segment.dead_rows and not live_rows(segment):
            without_live.append(segment)
            continue
        rewrite = _rewrite_of(collection, segment, rebuilt)
        if rewrite is not None:
            rewrites.append(rewrite)
    if without_live:
        sources = tuple(without_live[: settings.sources_max])
        why = f"all rows of {len(sources)} segments are dead"
        rewrites.insert(0, Rewrite(sources, TaskReason.TOMBSTONES, PRIORITY_TOMBSTONES, why))
    return rewrites


def rebuilt_for_recall(tasks: Iterable[CompactionTask]) -> set[str]:
    """Return the ids of segments that `recall` tasks have built; none is rebuilt for it again."""
    return {
        task.output.segment_id
        for task in tasks
        if task.reason is TaskReason.RECALL and task.output is not None
    }


def dead_row_weight(segment: SegmentState) -> float:
    """Return the factor by which the share of dead rows of `segment` counts.

    It is the extra share of comparisons over the share of dead rows, between `DEAD_ROW_WEIGHT_MIN`
    and `DEAD_ROW_WEIGHT_MAX`; 1 for a graph whose walk cost was not measured. A search skips the
    dead rows of a flat segment, which have the smallest weight.
    """
    if is_flat(segment):
        return DEAD_ROW_WEIGHT_MIN
    dead_share = segment.dead_rows / max(segment.rows, 1)
    ratio = walk_cost_ratio(segment)
    if not ratio or not dead_share:
        return 1.0
    extra_share = max(0.0, 1.0 - 1.0 / ratio)
    return min(DEAD_ROW_WEIGHT_MAX, max(DEAD_ROW_WEIGHT_MIN, extra_share / dead_share))


def walk_cost_ratio(segment: SegmentState) -> float:
    """Return the rows that a live query compares by those at the build; 0: not measured."""
    if not (segment.visited and segment.visited_baseline):
        return 0.0
    return segment.visited / segment.visited_baseline


def _rewrite_of(collection: Collection, segment: SegmentState, rebuilt: Set[str]) -> Rewrite | None:
    """Return the rewrite of one segment for its recall, its dead rows or its walk cost."""
    alone = (segment,)
    if segment.rebuild and not segment.stuck and segment.segment_id not in rebuilt:
        found = "" if segment.recall == RECALL_UNKNOWN else f" is {segment.recall:.4f}"
        why = (
            f"recall of live queries{found} at ef {segment.ef:,}, the widest; the objective is "
            f"{collection.settings.recall_objective:g}"
        )
        return Rewrite(alone, TaskReason.RECALL, PRIORITY_RECALL, why)
    settings = collection.settings
    dead_share = segment.dead_rows / max(segment.rows, 1)
    weight = dead_row_weight(segment)
    over_ratio = dead_share * weight >= settings.tombstone_ratio_max - _ROUNDING
    if segment.dead_rows >= settings.tombstone_rows_min and over_ratio:
        why = f"{dead_share:.0%} of {segment.rows:,} rows are dead"
        why += "" if weight == 1.0 else f", weighted {weight:.2f}"
        return Rewrite(alone, TaskReason.TOMBSTONES, PRIORITY_TOMBSTONES, why)
    return _rewrite_for_walk_cost(collection, segment, dead_share)


def _rewrite_for_walk_cost(
    collection: Collection, segment: SegmentState, dead_share: float
) -> Rewrite | None:
    """Return the rewrite of a graph whose walks compare too many rows.

    With few dead rows the limit is higher, and a segment that was built for its walk cost or its
    recall is not rebuilt: the queries are hard, and the same graph would result.
    """
    if is_flat(segment):
        return None
    ratio, limit = walk_cost_ratio(segment), collection.settings.walk_cost_ratio_max
    if dead_share < WALK_COST_DEAD_SHARE_MIN:
        if segment.built_for in (TaskReason.WALK_COST, TaskReason.RECALL):
            return None
        limit *= WALK_COST_FEW_DEAD_FACTOR
    if ratio < limit:
        return None
    why = (
        f"live queries compare {segment.visited:,.0f} rows, {ratio:.1f} times the "
        f"{segment.visited_baseline:,.0f} of its build"
    )
    return Rewrite((segment,), TaskReason.WALK_COST, PRIORITY_WALK_COST, why)
