"""Compiled exact comparison with the rows of a bitmap or of a list, read in place.

Imported where machine code is loaded: importing numba takes a good part of a second.
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


def _lowest_bit_code(typing_context: Any, word: Any) -> Any:
    """Return the position of the lowest set bit of a uint64 that is not zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero_is_undefined = ir.Constant(ir.IntType(1), 1)
        return builder.cttz(arguments[0], zero_is_undefined)

    return types.uint64(types.uint64), emit


lowest_bit: Any = intrinsic(_lowest_bit_code)


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
    """Compare every query with the buffered rows; a block stays in the cache for all of them."""
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
    """Write the keys in the pools of all queries as scores and rows."""
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
    """Find the best rows of a bitmap for every query.

    `words` (uint64) and then `last_bytes` (uint8, fewer than eight) are the bitmap; `pools`
    (n, k) int64 and `sizes` (n,) int64 zeros are memory. Writes scores (n, k) float32 and
    rows (n, k) int64; what is not found stays as it is.
    """
    k = int64(pools.shape[1])
    wide = uint64(dimension)
    capacity = int64(block.size)
    count = int64(0)
    for i in range(uint64(0), uint64(words.size)):
        word = words[i]
        while word != uint64(0):
            block[uint64(count)] = int64(i * uint64(64) + lowest_bit(word))
            word &= word - uint64(1)
            count += 1
            if count == capacity:
                _compare_block(stored, queries, wide, l2, k, block, count, distances, pools, sizes)
                count = int64(0)
    for i in range(uint64(0), uint64(last_bytes.size)):
        for bit in range(8):
            if last_bytes[i] >> uint8(bit) & uint8(1):
                if count == capacity:
                    _compare_block(
                        stored, queries, wide, l2, k, block, count, distances, pools, sizes
                    )
                    count = int64(0)
                block[uint64(count)] = int64(words.size) * 64 + int64(i) * 8 + bit
                count += 1
    _compare_block(stored, queries, wide, l2, k, block, count, distances, pools, sizes)
    write_results(pools, sizes, scores, rows)


@njit(nogil=True, fastmath=REORDER_SUMS)
def compare_rows(
    stored: Any,
    dimension: Any,
    queries: Any,
    l2: Any,
    wanted: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best of the `wanted` rows, int64, for every query; see `compare_bitmap`."""
    k = int64(pools.shape[1])
    capacity = int64(block.size)
    for start in range(0, wanted.size, capacity):
        count = min(capacity, int64(wanted.size) - start)
        for i in range(count):
            block[uint64(i)] = wanted[uint64(start + i)]
        _compare_block(
            stored, queries, uint64(dimension), l2, k, block, count, distances, pools, sizes
        )
    write_results(pools, sizes, scores, rows)
