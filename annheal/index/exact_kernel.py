"""Compiled: exact comparison of queries with the rows of a bitmap or of a list.

Imported only where kernels are compiled or loaded: importing numba takes half a second.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types, uint8, uint64
from numba.extending import intrinsic

from annheal.index.distances import (
    REORDER_SUMS,
    distance_in,
    distances_of,
    insert,
    key_of,
    row_in,
)


def _lowest_bit(typing_context: Any, word: Any) -> Any:
    """Return the position of the lowest set bit of a uint64 that is not zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero_is_undefined = ir.Constant(ir.IntType(1), 1)
        return builder.cttz(arguments[0], zero_is_undefined)

    return types.uint64(types.uint64), emit


lowest_bit: Any = intrinsic(_lowest_bit)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _compare_block(
    stored: Any,
    queries: Any,
    dimension: Any,
    l2: Any,
    k: Any,
    block: Any,
    count: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
) -> None:
    """Compare every query with the first `count` rows of `block`, which stay in the CPU cache.

    Keeps the keys of the best rows of query q in `pools[q]`, of which the first `sizes[q]` are set.
    """
    for q in range(uint64(0), uint64(sizes.size)):
        distances_of(stored, block, count, queries, q * dimension, dimension, l2, distances)
        pool = pools[q]
        size = sizes[q]
        for i in range(uint64(count)):
            key = key_of(distances[i], block[i])
            if size < k or key < pool[uint64(k - 1)]:
                insert(pool, size, k, key)
                size = min(size + 1, k)
        sizes[q] = size


@njit(nogil=True)
def write_results(pools: Any, sizes: Any, scores: Any, rows: Any) -> None:
    """Write scores and rows of the keys in the pools of all queries."""
    for q in range(sizes.size):
        for i in range(sizes[q]):
            key = pools[q, i]
            scores[q, i] = -distance_in(key)
            rows[q, i] = row_in(key)


@njit(nogil=True, fastmath=REORDER_SUMS)
def compare_bitmap(
    stored: Any,
    dimension: Any,
    queries: Any,
    l2: Any,
    words: Any,
    last_bytes: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best k rows of a bitmap for each of n queries.

    The bitmap is `words`, uint64, and then `last_bytes`, uint8, fewer than eight. Scratch memory:
    `block`, int32; `distances`, float32, as long; `pools` (n, k) int64; `sizes` (n,) int64, zeros.
    Writes scores (n, k) float32 and rows (n, k) int64; where there are fewer hits than k, the last
    columns are not written.
    """
    k = int64(pools.shape[1])
    row_length = uint64(dimension)
    capacity = int64(block.size)
    count = int64(0)
    for i in range(uint64(0), uint64(words.size)):
        word = words[i]
        while word != uint64(0):
            block[uint64(count)] = int64(i * uint64(64) + lowest_bit(word))
            word &= word - uint64(1)
            count += 1
            if count == capacity:
                _compare_block(
                    stored, queries, row_length, l2, k, block, count, distances, pools, sizes
                )
                count = int64(0)
    for i in range(uint64(0), uint64(last_bytes.size)):
        for bit in range(8):
            if last_bytes[i] >> uint8(bit) & uint8(1):
                if count == capacity:
                    _compare_block(
                        stored, queries, row_length, l2, k, block, count, distances, pools, sizes
                    )
                    count = int64(0)
                block[uint64(count)] = int64(words.size) * 64 + int64(i) * 8 + bit
                count += 1
    _compare_block(stored, queries, row_length, l2, k, block, count, distances, pools, sizes)
    write_results(pools, sizes, scores, rows)


@njit(nogil=True, fastmath=REORDER_SUMS)
def compare_rows(
    stored: Any,
    dimension: Any,
    queries: Any,
    l2: Any,
    candidates: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best k of the `candidates`, int64 row numbers; otherwise as `compare_bitmap`."""
    k = int64(pools.shape[1])
    capacity = int64(block.size)
    for start in range(0, candidates.size, capacity):
        count = min(capacity, int64(candidates.size) - start)
        for i in range(count):
            block[uint64(i)] = candidates[uint64(start + i)]
        _compare_block(
            stored, queries, uint64(dimension), l2, k, block, count, distances, pools, sizes
        )
    write_results(pools, sizes, scores, rows)
