"""Dividing one search among threads; kernels release the GIL and use one thread each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from annheal.index import LiveBitmap, VectorIndex
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.loaded import is_loaded
from annheal.model.records import Float32Matrix
from annheal.runtime.lane import lower_thread_priority
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.shard_node.search.slices import (
    SLICE_CODES,
    Hits,
    joined,
    merged_best,
    queries_per_slice,
    query_slices,
    rows_per_slice,
)

PART_COMPARISONS_MIN = 5_000
"""Least comparisons for a thread of their own: 0.3 ms at 384 floats."""
PART_CODES_MIN = 100_000
"""The same for codes, which are limited by memory bandwidth: for 50,000 rows two threads took
0.62 ms, one 0.64."""

SLICE_ROWS_MIN = 256
"""Least rows of a slice: the kernels compare blocks of this many."""

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


class SearchThreads:
    """At most `count` threads for the parts of a search, the calling one included.

    No part waits for another, so any number of searches may share the threads. `nice`: see
    `annheal.runtime.lane.LaneLimits`.
    """

    def __init__(self, count: int, *, nice: int = 0) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            self._pool = ThreadPoolExecutor(
                count,
                thread_name_prefix="search-part",
                initializer=lower_thread_priority,
                initargs=(nice,),
            )

    def run(self, parts: Sequence[PartT], work: Callable[[PartT], ResultT]) -> list[ResultT]:
        """Return the results of `work` for every part; the first runs in the calling thread."""
        if self._pool is None or len(parts) == 1:
            return [work(part) for part in parts]
        pool = self._pool
        others = [pool.submit(work, part) for part in parts[1:]]
        try:
            first = work(parts[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def close(self) -> None:
        """End the threads after the parts that were given to them."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)


ONE_THREAD = SearchThreads(1)
"""For searches in the calling thread alone; it has no threads of its own."""


def compare_matching(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    matching: LiveBitmap,
    k: int,
    threads: SearchThreads,
    by_codes: bool = False,
    yield_point: YieldPoint = no_yield_point,
) -> Hits:
    """Return the result of `VectorIndex.search_matching`, or `search_shortlisted` if `by_codes`.

    Works in slices, each divided among `threads` by rows. Vectors: a slice is some of the rows and
    all queries, which are compared while the rows are in the cache. Codes: a slice is all rows and
    some of the queries, because the first rows give the bound that excludes most others.
    """
    if by_codes:
        size = threads.count * queries_per_slice(matching.count, budget=SLICE_CODES)
        slices = query_slices(queries, size, yield_point)
        return joined(
            [_divided(index, part, matching, k, threads=threads, by_codes=True) for part in slices]
        )
    rows = threads.count * rows_per_slice(queries=len(queries), k=k, rows_min=SLICE_ROWS_MIN)
    best: list[Hits] = []
    for part in _row_parts(matching, -(-matching.count // rows)):
        yield_point()
        found = _divided(index, queries, part, k, threads=threads, by_codes=False)
        best = [merged_best(best, found, k=k)]
    return best[0]


def _divided(
    index: VectorIndex,
    queries: Float32Matrix,
    matching: LiveBitmap,
    k: int,
    *,
    threads: SearchThreads,
    by_codes: bool,
) -> Hits:
    """Return the best rows of `matching`, divided by rows among `threads`."""
    search = index.search_shortlisted if by_codes else index.search_matching
    least = PART_CODES_MIN if by_codes else PART_COMPARISONS_MIN
    count = min(threads.count, len(queries) * matching.count // least)
    if count < 2 or not is_loaded(Kernel.COMPARE_BITMAP):
        return search(queries, matching=matching, k=k)
    found = threads.run(
        _row_parts(matching, count), lambda part: search(queries, matching=part, k=k)
    )
    scores = np.concatenate([part[0] for part in found], axis=1)
    rows = np.concatenate([part[1] for part in found], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def query_parts(queries: Float32Matrix, *, threads: int) -> list[Float32Matrix]:
    """Return the queries in at most `threads` parts of about the same size."""
    count = min(threads, len(queries))
    # A division takes 13 us, a tenth of a walk.
    return np.array_split(queries, count) if count > 1 else [queries]


def _row_parts(matching: LiveBitmap, count: int) -> list[LiveBitmap]:
    """Return bitmaps of about as many rows each, whose union is `matching`."""
    if count < 2:
        return [matching]
    before = np.cumsum(np.bitwise_count(matching.packed), dtype=np.int64)
    cuts = np.searchsorted(before, np.linspace(0, matching.count, count + 1)[1:-1]) + 1
    bounds = [0, *cuts.tolist(), len(before)]
    parts: list[LiveBitmap] = []
    for start, stop in itertools.pairwise(bounds):
        packed = np.zeros_like(matching.packed)
        packed[start:stop] = matching.packed[start:stop]
        parts.append(LiveBitmap.from_packed(packed, rows=matching.rows))
    return parts
