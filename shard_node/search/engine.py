"""What the searches of a node share: caches, books and threads."""

from __future__ import annotations

from annheal.runtime.background import Offer
from annheal.shard_node.search.costs import CostBook
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.shortlists import ShortlistBook, shortlist_bytes_max
from annheal.shard_node.search.threads import SearchThreads


class SearchEngine:
    """Filters that were evaluated, costs that were measured, codes that were made, and threads.

    `offer` takes what is worth doing in the background. Approximate searches may use all `cores`;
    exact ones leave one to the others where there are several, and have a priority of their own.
    """

    def __init__(self, *, cores: int, exact_nice: int, offer: Offer) -> None:
        self.filters = FilterCache()
        self.costs = CostBook(offer=offer)
        self.shortlists = ShortlistBook(bytes_max=shortlist_bytes_max(), offer=offer)
        self._approximate = SearchThreads(cores)
        self._exact = SearchThreads(max(1, cores - 1), nice=exact_nice)

    def threads(self, *, exact: bool) -> SearchThreads:
        """Return the threads of exact or of approximate searches."""
        return self._exact if exact else self._approximate

    def close(self) -> None:
        """End the threads; searches under way are finished."""
        self._approximate.close()
        self._exact.close()
