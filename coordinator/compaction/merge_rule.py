"""Which segments of a shard are merged. Pure.

The growth rule bounds write amplification: the largest source of a merge has at most `growth` times
the live rows of the other sources together. So a merge moves every row to a segment that has at
least (1 + 1 / growth) times the rows of its former one. Between a flushed segment of F rows and a
segment of S rows, a row is rewritten at most 1 + log(S / F) / log(1 + 1 / growth) times; the 1 is
for a flat segment that is rewritten alone to get a graph. Figures: docs/operations/compaction.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from annheal.coordinator.compaction.rules import (
    PRIORITY_BACKPRESSURE,
    PRIORITY_IDLE,
    PRIORITY_MERGE,
    WARM_ROWS_MAX,
    CompactionSettings,
    Rewrite,
    ShardObservation,
    awaits_graph,
    first_within_limits,
    is_flat,
    live_rows,
    size_order,
)
from annheal.model.collection import Collection
from annheal.model.topology.manifest import Tier
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import TaskReason

BACKPRESSURE_SHARE = 0.5
"""Share of `unindexed_rows_max`, the limit at which a shard refuses writes. With more growing and
hot rows than this a merge starts at once: it waits neither for more segments nor for a pause."""


def plan_merge(
    collection: Collection,
    shard: ShardObservation,
    free: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return the most urgent merge of a shard, None when there is nothing to merge.

    `free` are the segments that no task has. Those without live rows are left to `plan_degraded`.
    """
    live = sorted((segment for segment in free if live_rows(segment)), key=size_order)
    unindexed = [segment for segment in live if awaits_graph(segment, settings)]
    return (
        _merge_under_backpressure(collection, shard, live, unindexed, settings)
        or _merge_unindexed(collection, shard, live, unindexed, settings)
        or _merge_many_graphs(collection, live, settings)
        or _merge_idle(collection, shard, live, settings)
    )


def sources_within_growth(
    collection: Collection,
    segments: Sequence[SegmentState],
    *,
    growth: float,
    settings: CompactionSettings,
) -> list[SegmentState]:
    """Return the longest run of the smallest segments whose merge obeys the growth rule.

    `segments` are in `size_order`. Returns an empty list when no two segments may be merged.
    """
    sources = first_within_limits(collection, segments, sources_max=settings.sources_max)
    while len(sources) > 1 and live_rows(sources[-1]) > growth * sum(map(live_rows, sources[:-1])):
        sources.pop()
    return sources if len(sources) > 1 else []


def _merge_under_backpressure(
    collection: Collection,
    shard: ShardObservation,
    live: Sequence[SegmentState],
    unindexed: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return a merge of unindexed rows when the shard is close to refusing writes."""
    hot = [segment for segment in unindexed if segment.tier == Tier.HOT]
    growing = [segment for segment in shard.state.segments if segment.tier == Tier.GROWING]
    rows = sum(segment.rows for segment in (*hot, *growing))
    limit = collection.settings.unindexed_rows_max
    if not hot or rows < BACKPRESSURE_SHARE * limit:
        return None
    sources = _sources_with_unindexed(collection, live, settings.growth_busy, settings) or [hot[-1]]
    why = f"{rows:,} rows wait for an index; writes are refused at {limit:,}"
    return Rewrite(tuple(sources), TaskReason.MERGE, PRIORITY_BACKPRESSURE, why)


def _merge_unindexed(
    collection: Collection,
    shard: ShardObservation,
    live: Sequence[SegmentState],
    unindexed: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return a merge of unindexed segments, and of the graphs that the growth rule lets in.

    If there is none, one large flat segment may be rewritten alone to get a graph.
    """
    quiet = shard.quiet_s >= settings.quiet_s
    growth = settings.growth_quiet if quiet else settings.growth_busy
    sources = _sources_with_unindexed(collection, live, growth, settings)
    flat = [segment for segment in sources if awaits_graph(segment, settings)]
    many_rows = sum(map(live_rows, unindexed)) > settings.flat_rows_max
    if sources and (quiet or many_rows or len(flat) >= settings.flat_segments_max):
        rows = sum(map(live_rows, flat))
        why = f"{rows:,} rows in {len(flat)} flat segments" + (", shard quiet" if quiet else "")
        return Rewrite(tuple(sources), TaskReason.MERGE, PRIORITY_MERGE, why)
    largest = unindexed[-1:]
    if largest and (many_rows or quiet) and live_rows(largest[0]) >= settings.graph_rows_min:
        why = f"{live_rows(largest[0]):,} rows without a graph"
        return Rewrite(tuple(largest), TaskReason.MERGE, PRIORITY_MERGE, why)
    return None


def _sources_with_unindexed(
    collection: Collection,
    live: Sequence[SegmentState],
    growth: float,
    settings: CompactionSettings,
) -> list[SegmentState]:
    """Return sources within the growth rule, one of them unindexed at least; else an empty list.

    The smallest of many graphs may fill the merge. Then only unindexed segments are merged.
    """
    unindexed = [segment for segment in live if awaits_graph(segment, settings)]
    for candidates in (live, unindexed):
        sources = sources_within_growth(collection, candidates, growth=growth, settings=settings)
        if any(awaits_graph(segment, settings) for segment in sources):
            return sources
    return []


def _merge_many_graphs(
    collection: Collection, live: Sequence[SegmentState], settings: CompactionSettings
) -> Rewrite | None:
    """Return a merge of graphs when a shard has more than `graphs_max`: a search walks each."""
    graphs = [segment for segment in live if not is_flat(segment)]
    if len(graphs) <= settings.graphs_max:
        return None
    sources = sources_within_growth(
        collection, graphs, growth=settings.growth_quiet, settings=settings
    )
    if not sources:
        return None
    why = f"{len(graphs)} graphs, {settings.graphs_max} are allowed"
    return Rewrite(tuple(sources), TaskReason.MERGE, PRIORITY_MERGE, why)


def _merge_idle(
    collection: Collection,
    shard: ShardObservation,
    live: Sequence[SegmentState],
    settings: CompactionSettings,
) -> Rewrite | None:
    """Return a merge of segments below `WARM_ROWS_MAX` live rows when the shard is idle."""
    if shard.quiet_s < max(collection.settings.segment_idle_s, settings.quiet_s):
        return None
    small = [segment for segment in live if live_rows(segment) < WARM_ROWS_MAX]
    sources = sources_within_growth(
        collection, small, growth=settings.growth_idle, settings=settings
    )
    if not sources:
        return None
    why = f"shard idle, {len(sources)} small segments"
    return Rewrite(tuple(sources), TaskReason.MERGE, PRIORITY_IDLE, why)
