"""Long comparisons and walks in slices of a few milliseconds, with a yield point before each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from annheal.index import LiveBitmap, VectorIndex, merge_topk
from annheal.model.records import Float32Matrix
from annheal.runtime.stop import YieldPoint

Hits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Scores (n, k) and rows (n, k), as `VectorIndex.search` returns them."""

SLICE_COMPARISONS = 32_768
"""Vectors compared in one slice: 2.5 ms of one core at 384 floats."""
SCAN_ROWS_MIN = 1_024
"""Least rows of a slice: FAISS multiplies matrices in blocks of this many rows."""
ROWS_PER_K = 4
"""Least rows of a slice per k, so that merging slices costs less than comparing."""
SLICE_EF = 8_192
"""Sum of the ef of all walks in one slice: about 16 ms of one core at 384 floats."""
SLICE_CODES = 1_000_000
"""Codes compared in one slice: about 10 ms of one core at 384 floats."""


def rows_per_slice(*, queries: int, k: int, rows_min: int = SCAN_ROWS_MIN) -> int:
    """Return the number of rows that `queries` queries are compared with in one slice."""
    return max(rows_min, SLICE_COMPARISONS // max(1, queries), ROWS_PER_K * k)


def queries_per_slice(cost: int, *, budget: int) -> int:
    """Return the number of queries in a slice of at most `budget`, if each costs `cost`."""
    return max(1, budget // max(1, cost))


def query_slices(
    queries: Float32Matrix, size: int, yield_point: YieldPoint
) -> Iterator[Float32Matrix]:
    """Yield up to `size` of the queries (n, d) at a time, at least once, after a yield point."""
    for start in range(0, max(1, len(queries)), size):
        yield_point()
        yield queries[start : start + size]


def scan_in_slices(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap | None,
    yield_point: YieldPoint,
) -> Hits:
    """Return the result of `VectorIndex.search` with `exact`.

    The outer loop is over slices of rows, which stay in the cache for all of the queries.
    """
    n = len(queries)
    if n * index.rows <= SLICE_COMPARISONS:
        yield_point()
        return index.search(queries, k=k, live=live, exact=True)
    queries_at_once = queries_per_slice(rows_per_slice(queries=n, k=k), budget=SLICE_COMPARISONS)
    step = -(-rows_per_slice(queries=min(n, queries_at_once), k=k) // 8) * 8
    best: list[Hits] = []
    for start in range(0, index.rows, step):
        some_rows = range(start, min(index.rows, start + step))
        found = [
            index.scan(part, k=k, row_range=some_rows, live=live)
            for part in query_slices(queries, queries_at_once, yield_point)
        ]
        best = [merged_best(best, joined(found), k=k)]
    return best[0]


def merged_best(best: list[Hits], found: Hits, *, k: int) -> Hits:
    """Return the best k of `found` and of the hits `best` before it (one item, or none)."""
    if not best:
        return found
    merged = merge_topk([*best, found], k=k, queries=len(found[0]))
    return merged.scores, merged.rows


def joined(found: list[Hits]) -> Hits:
    """Return the hits of all queries from those of slices of queries."""
    if len(found) == 1:
        return found[0]
    return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
