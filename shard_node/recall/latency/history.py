"""Search latencies by minute: a bounded history for each collection of a node.

To count a batch of queries costs a dictionary look-up and a logarithm. The latencies of a window
are counted in buckets of about 9 %; median and 99th percentile are computed when the window ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from annheal.model.measures.latency import LatencyTrend
from annheal.runtime.clock import Clock, monotonic_s
from annheal.shard_node.recall.latency.trend import (
    QUERIES_MIN,
    WINDOW_S,
    LatencyWindow,
    estimate_trend,
)

WINDOWS_MAX = 480
"""Windows kept of a collection: eight hours, about 120 kB."""

_BUCKETS_PER_DOUBLING = 8


@dataclass(slots=True)
class _Open:
    """The window of one collection that has not ended; `buckets` by the logarithm of latency."""

    queries: int = 0
    visited: int = 0
    buckets: dict[int, int] = field(default_factory=dict)


class LatencyHistory:
    """The windows of a node's collections. Used on the event loop only.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, *, clock: Clock = monotonic_s) -> None:
        self._clock = clock
        self._number = self._present()
        self._open: dict[str, _Open] = {}
        self._windows: dict[str, deque[LatencyWindow]] = {}
        self._trends: dict[str, tuple[int, LatencyTrend]] = {}

    def note(self, collection_id: str, *, queries: int, duration_s: float, visited: int) -> None:
        """Count a batch of `queries`, its seconds in the node, and the rows that it compared."""
        if self._present() != self._number:
            self._roll()
        window = self._open.get(collection_id)
        if window is None:
            window = self._open[collection_id] = _Open()
        window.queries += queries
        window.visited += visited
        bucket = math.floor(math.log2(max(duration_s, 1e-9)) * _BUCKETS_PER_DOUBLING)
        window.buckets[bucket] = window.buckets.get(bucket, 0) + queries

    def windows(self, collection_id: str) -> tuple[LatencyWindow, ...]:
        """Return a collection's ended windows with at least `QUERIES_MIN` queries, oldest first."""
        self._roll()
        return tuple(self._windows.get(collection_id, ()))

    def trend(self, collection_id: str) -> LatencyTrend:
        """Return recent latency compared with earlier latency; computed once a window."""
        self._roll()
        known = self._trends.get(collection_id)
        if known is None or known[0] != self._number:
            kept = self._windows.get(collection_id, ())
            known = self._number, estimate_trend(tuple(kept), now=self._number)
            self._trends[collection_id] = known
        return known[1]

    def forget_all_but(self, collection_ids: Iterable[str]) -> None:
        """Drop the windows of all other collections."""
        present = set(collection_ids)
        for gone in (self._open.keys() | self._windows.keys() | self._trends.keys()) - present:
            self._open.pop(gone, None)
            self._windows.pop(gone, None)
            self._trends.pop(gone, None)

    def _present(self) -> int:
        return int(self._clock() / WINDOW_S)

    def _roll(self) -> None:
        """End the open windows if their minute is over."""
        present = self._present()
        if present == self._number:
            return
        total = sum(one.queries for one in self._open.values())
        for collection_id, one in self._open.items():
            if one.queries < QUERIES_MIN:
                continue
            kept = self._windows.setdefault(collection_id, deque(maxlen=WINDOWS_MAX))
            kept.append(
                LatencyWindow(
                    self._number,
                    one.queries,
                    total,
                    _percentile(one.buckets, 0.5),
                    _percentile(one.buckets, 0.99),
                    one.visited / one.queries,
                )
            )
        self._open = {}
        self._number = present


def _percentile(buckets: dict[int, int], share: float) -> float:
    """Return the latency in seconds below which `share` of the queries are, interpolated."""
    wanted = share * sum(buckets.values())
    below = 0
    for bucket, count in sorted(buckets.items()):
        if below + count >= wanted:
            return float(2.0 ** ((bucket + (wanted - below) / count) / _BUCKETS_PER_DOUBLING))
        below += count
    return 0.0
