"""What a shard node reports of itself when somebody scrapes it."""

from __future__ import annotations

from collections.abc import Iterable

from annheal.runtime.metrics import Family, FamilyKind, Metrics
from annheal.shard_node.search.filter_cache import CacheState, FilterCache
from annheal.shard_node.search.shortlists import SHORTLISTS


def register_reports(metrics: Metrics, *, filters: FilterCache) -> None:
    """Report the node's caches whenever somebody scrapes; call inside its event loop."""

    async def report() -> Iterable[Family]:
        codes = Family("annheal_shortlist_bytes", "Bytes of 8-bit codes of segments.")
        codes.add(SHORTLISTS.size_bytes)
        return [*filter_cache_families(filters.state()), codes]

    metrics.add_report(report)


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
