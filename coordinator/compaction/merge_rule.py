"""Which segments of a shard to merge. Pure.

The rule that bounds write amplification: the largest segment of a merge has at most `growth` times
the live rows of the others together. So every row that a merge rewrites gets into a segment that is
at least (1 + 1 / growth) times as large as the one it left, and from a flushed segment of F rows to
one of S rows it is rewritten at most 1 + log(S / F) / log(1 + 1 / growth) times: the 1 is for a
flat segment that becomes a graph by itself. docs/operations/compaction.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from annheal.coordinator.compaction.rules import (
    PRIORITY_IDLE,
    PRIORITY_MERGE,
    PRIORITY_PRESSURE,
    WARM_ROWS_MAX,
    CompactionSettings,
    Rewrite,
    ShardObservation,
    by_size,
    fitting,
    is_flat,
    is_settled,
    live_rows,
)
from annheal.model.collection import Collection
from annheal.model.topology.manifest import Tier
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import TaskReason

PRESSURE_SHARE = 0.5
"""Of the rows without an index at which writes are refused: from here on nothing is waited for."""


def plan_merge(
    collection: Collection,
    shard: ShardObservation,
    free: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return the merge that a shard needs most, or None; `free` are the segments without a task."""
    alive = sorted((one for one in free if live_rows(one)), key=by_size)
    flats = [one for one in alive if not is_settled(one, settings)]
    return (
        _relief(collection, shard, alive, flats, settings)
        or _fresh_rows(collection, shard, alive, flats, settings)
        or _crowd(collection, alive, settings)
        or _idle(collection, shard, alive, settings)
    )


def growing_group(
    collection: Collection,
    segments: Sequence[SegmentState],
    *,
    growth: float,
    settings: CompactionSettings,
) -> list[SegmentState]:
    """Return the most of the smallest segments whose merge keeps the growth rule; none or several.

    `segments` are in the order of their size.
    """
    group = fitting(collection, segments, sources_max=settings.sources_max)
    while len(group) > 1 and live_rows(group[-1]) > growth * sum(map(live_rows, group[:-1])):
        group.pop()
    return group if len(group) > 1 else []


def _relief(
    collection: Collection,
    shard: ShardObservation,
    alive: Sequence[SegmentState],
    flats: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return what brings a shard away from the limit at which its owner refuses writes."""
    waiting = [one for one in flats if one.tier == Tier.HOT]
    growing = [one for one in shard.state.segments if one.tier == Tier.GROWING]
    rows = sum(one.rows for one in (*waiting, *growing))
    limit = collection.settings.unindexed_rows_max
    if not waiting or rows < PRESSURE_SHARE * limit:
        return None
    group = _with_fresh(collection, alive, settings.growth_busy, settings) or [waiting[-1]]
    why = f"{rows:,} rows wait for an index; writes are refused at {limit:,}"
    return Rewrite(tuple(group), TaskReason.MERGE, PRIORITY_PRESSURE, why)


def _fresh_rows(
    collection: Collection,
    shard: ShardObservation,
    alive: Sequence[SegmentState],
    flats: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return the merge of flat segments, with the graphs that are not too large for it."""
    quiet = shard.quiet_s >= settings.quiet_s
    growth = settings.growth_quiet if quiet else settings.growth_busy
    group = _with_fresh(collection, alive, growth, settings)
    fresh = [one for one in group if not is_settled(one, settings)]
    many = sum(map(live_rows, flats)) > settings.flat_rows_max
    if group and (quiet or many or len(fresh) >= settings.flat_segments_max):
        rows = sum(map(live_rows, fresh))
        why = f"{rows:,} rows in {len(fresh)} flat segments" + (", shard quiet" if quiet else "")
        return Rewrite(tuple(group), TaskReason.MERGE, PRIORITY_MERGE, why)
    largest = flats[-1:]
    if largest and (many or quiet) and live_rows(largest[0]) >= settings.graph_rows_min:
        why = f"{live_rows(largest[0]):,} rows without a graph"
        return Rewrite(tuple(largest), TaskReason.MERGE, PRIORITY_MERGE, why)
    return None


def _with_fresh(
    collection: Collection,
    alive: Sequence[SegmentState],
    growth: float,
    settings: CompactionSettings,
) -> list[SegmentState]:
    """Return a group with at least one flat segment that is not settled.

    Graphs may be so many that no flat segment gets its turn: then the flat ones go by themselves.
    """
    flats = [one for one in alive if not is_settled(one, settings)]
    for candidates in (alive, flats):
        group = growing_group(collection, candidates, growth=growth, settings=settings)
        if any(not is_settled(one, settings) for one in group):
            return group
    return []


def _crowd(
    collection: Collection, alive: Sequence[SegmentState], settings: CompactionSettings
) -> Rewrite | None:
    """Return a merge of graphs when a shard has too many: every search walks them all."""
    graphs = [one for one in alive if not is_flat(one)]
    if len(graphs) <= settings.graphs_max:
        return None
    group = growing_group(collection, graphs, growth=settings.growth_quiet, settings=settings)
    if not group:
        return None
    why = f"{len(graphs)} graphs, {settings.graphs_max} are allowed"
    return Rewrite(tuple(group), TaskReason.MERGE, PRIORITY_MERGE, why)


def _idle(
    collection: Collection,
    shard: ShardObservation,
    alive: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return a merge of small segments of a shard that is not written to."""
    if shard.quiet_s < max(collection.settings.segment_idle_s, settings.quiet_s):
        return None
    small = [one for one in alive if live_rows(one) < WARM_ROWS_MAX]
    group = growing_group(collection, small, growth=settings.growth_idle, settings=settings)
    if not group:
        return None
    why = f"shard idle, {len(group)} small segments"
    return Rewrite(tuple(group), TaskReason.MERGE, PRIORITY_IDLE, why)
