"""Sharing one search among threads: the kernels hold no lock and use one thread each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from annheal.index import LiveBitmap, VectorIndex
from annheal.index.compiled import ready_kernels
from annheal.model.records import Float32Matrix

Hits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

PART_COMPARISONS_MIN = 5_000
"""Comparisons worth a thread of their own: 0.3 ms at 384 floats."""
PART_CODES_MIN = 100_000
"""The same where codes are compared: memory is the limit, and two threads took 0.62 ms for 50,000
rows where one took 0.64."""

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

_pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="search-part")
"""Runs parts only, which wait for nothing, so any number of searches may share it."""


def in_parts(parts: Sequence[PartT], run: Callable[[PartT], ResultT]) -> list[ResultT]:
    """Return `run` of every part; the first runs in the calling thread."""
    others = [_pool.submit(run, part) for part in parts[1:]]
    try:
        first = run(parts[0])
    finally:
        wait(others)
    return [first, *(other.result() for other in others)]


def compare_matching(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    matching: LiveBitmap,
    k: int,
    threads: int,
    by_codes: bool = False,
) -> Hits:
    """As `VectorIndex.search_matching`, with the rows shared among at most `threads` threads.

    Rows, not queries: a part compares its rows with all queries while they are in the cache. As
    `search_shortlisted` when `by_codes`.
    """
    search = index.search_shortlisted if by_codes else index.search_matching
    least = PART_CODES_MIN if by_codes else PART_COMPARISONS_MIN
    count = min(threads, len(queries) * matching.count // least)
    if count < 2 or ready_kernels() is None:
        return search(queries, matching=matching, k=k)
    found = in_parts(_row_parts(matching, count), lambda part: search(queries, matching=part, k=k))
    scores = np.concatenate([part[0] for part in found], axis=1)
    rows = np.concatenate([part[1] for part in found], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def query_parts(queries: Float32Matrix, *, threads: int) -> list[Float32Matrix]:
    """Return the queries in at most `threads` parts of about the same size."""
    return np.array_split(queries, max(1, min(threads, len(queries))))


def _row_parts(matching: LiveBitmap, count: int) -> list[LiveBitmap]:
    """Return bitmaps of about as many rows each, whose union is `matching`."""
    before = np.cumsum(np.bitwise_count(matching.packed), dtype=np.int64)
    cuts = np.searchsorted(before, np.linspace(0, matching.count, count + 1)[1:-1]) + 1
    bounds = [0, *cuts.tolist(), len(before)]
    parts: list[LiveBitmap] = []
    for start, stop in itertools.pairwise(bounds):
        packed = np.zeros_like(matching.packed)
        packed[start:stop] = matching.packed[start:stop]
        parts.append(LiveBitmap.from_packed(packed, rows=matching.rows))
    return parts
