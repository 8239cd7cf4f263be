"""Sharing one search among threads: the kernels hold no lock and use one thread each."""

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
from annheal.runtime.stop import Checkpoint, no_checkpoint
from annheal.shard_node.search.slices import (
    SLICE_CODES,
    Hits,
    better,
    joined,
    queries_per_slice,
    query_slices,
    rows_per_slice,
)

PART_COMPARISONS_MIN = 5_000
"""Comparisons worth a thread of their own: 0.3 ms at 384 floats."""
PART_CODES_MIN = 100_000
"""The same where codes are compared: memory is the limit, and two threads took 0.62 ms for 50,000
rows where one took 0.64."""

SLICE_ROWS_MIN = 256
"""Rows of a slice, whatever the number of queries: the kernels compare blocks of so many."""

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


class SearchThreads:
    """At most `count` threads that share the parts of a search, the calling one included.

    Parts wait for nothing, so any number of searches may use the same threads. `nice` as in
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
        """Return `work` of every part; the first runs in the calling thread."""
        if self._pool is None:
            return [work(part) for part in parts]
        pool = self._pool
        others = [pool.submit(work, part) for part in parts[1:]]
        try:
            first = work(parts[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def close(self) -> None:
        """End the threads when the parts that were given to them have ended."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)


ONE_THREAD = SearchThreads(1)
"""For searches that run in the calling thread alone; it holds no thread."""


def compare_matching(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    matching: LiveBitmap,
    k: int,
    threads: SearchThreads,
    by_codes: bool = False,
    checkpoint: Checkpoint = no_checkpoint,
) -> Hits:
    """As `VectorIndex.search_matching`, with the rows shared among `threads`, slice by slice.

    Rows, not queries: a part compares its rows with all queries while they are in the cache. As
    `search_shortlisted` when `by_codes`; codes are compared with all rows and some of the queries,
    because the first rows of a comparison bound what the others have to reach.
    """
    if by_codes:
        size = threads.count * queries_per_slice(matching.count, budget=SLICE_CODES)
        slices = query_slices(queries, size, checkpoint)
        return joined(
            [_shared(index, part, matching, k, threads=threads, by_codes=True) for part in slices]
        )
    rows = threads.count * rows_per_slice(queries=len(queries), k=k, rows_min=SLICE_ROWS_MIN)
    best: list[Hits] = []
    for part in _row_parts(matching, -(-matching.count // rows)):
        checkpoint()
        found = _shared(index, queries, part, k, threads=threads, by_codes=False)
        best = [better(best, found, k=k)]
    return best[0]


def _shared(
    index: VectorIndex,
    queries: Float32Matrix,
    matching: LiveBitmap,
    k: int,
    *,
    threads: SearchThreads,
    by_codes: bool,
) -> Hits:
    """Return the best rows of `matching`, with the rows shared among `threads`."""
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
    return np.array_split(queries, max(1, min(threads, len(queries))))


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
