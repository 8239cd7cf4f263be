"""What a shard node reports of itself when somebody scrapes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from annheal.runtime.host.disk import DiskWatch
from annheal.runtime.lane import LaneState
from annheal.runtime.metrics import Family, FamilyKind, Metrics
from annheal.shard_node.lanes import LaneName, Lanes
from annheal.shard_node.search.engine import SearchEngine
from annheal.shard_node.search.filter_cache import CacheState


def register_reports(
    metrics: Metrics,
    *,
    engine: SearchEngine,
    lanes: Lanes,
    disks: DiskWatch,
    collections: Callable[[], Iterable[str]],
) -> None:
    """Report caches, lanes and disks whenever somebody scrapes; call inside the node's event loop.

    Series of what is not among `collections` any more are forgotten.
    """
    metrics.watch_label("collection", collections)

    async def report() -> Iterable[Family]:
        codes = Family("annheal_shortlist_bytes", "Bytes of 8-bit codes of segments.")
        codes.add(engine.code_maker.size_bytes)
        caches = filter_cache_families(engine.filters.state())
        return [*caches, codes, *lane_families(lanes.states()), *disks.families()]

    metrics.add_report(report)


def lane_families(states: Mapping[LaneName, LaneState]) -> list[Family]:
    """Return how the lanes are doing as metrics."""
    waiting = Family("annheal_lane_waiting", "Pieces of work that wait to begin.", ("lane",))
    running = Family("annheal_lane_running", "Pieces of work that have a turn.", ("lane",))
    refused = Family(
        "annheal_lane_refused",
        "Calls refused because too many waited.",
        ("lane",),
        FamilyKind.COUNTER,
    )
    for lane, state in states.items():
        waiting.add(state.waiting, lane.value)
        running.add(state.running, lane.value)
        refused.add(state.refused, lane.value)
    return [waiting, running, refused]


def filter_cache_families(state: CacheState) -> list[Family]:
    """Return the cache of filter bitmaps as metrics."""
    lookups = Family(
        "annheal_filter_cache_lookups",
        "Bitmaps asked for, one for each segment and batch, by whether they were there.",
        ("result",),
        FamilyKind.COUNTER,
    )
    lookups.add(state.hits, "hit")
    lookups.add(state.misses, "miss")
    entries = Family("annheal_filter_cache_entries", "Bitmaps held.")
    entries.add(state.entries)
    size = Family("annheal_filter_cache_bytes", "Bytes of the bitmaps held.")
    size.add(state.size_bytes)
    return [lookups, entries, size]
