"""What the searches of a node share: filter bitmaps, measured costs, codes and threads."""

from __future__ import annotations

from annheal.runtime.background import Offer
from annheal.shard_node.search.code_maker import CodeMaker, code_bytes_max
from annheal.shard_node.search.costs import MeasuredCosts
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.threads import SearchThreads


class SearchEngine:
    """Cached filter bitmaps, measured costs, codes, and the threads of a node's searches.

    `offer` takes background work: measuring costs, making codes. Approximate searches may use all
    `cores`. Exact ones leave one core free, if there are several, and run with `exact_nice`.
    """

    def __init__(self, *, cores: int, exact_nice: int, offer: Offer) -> None:
        self.filters = FilterCache()
        self.costs = MeasuredCosts(offer=offer)
        self.code_maker = CodeMaker(bytes_max=code_bytes_max(), offer=offer)
        self._approximate = SearchThreads(cores)
        self._exact = SearchThreads(max(1, cores - 1), nice=exact_nice)

    def threads(self, *, exact: bool) -> SearchThreads:
        """Return the threads of exact or of approximate searches."""
        return self._exact if exact else self._approximate

    def close(self) -> None:
        """End the threads after the searches that are running."""
        self._approximate.close()
        self._exact.close()
