"""Compiled comparison by 8-bit codes: codes choose the rows worth reading, floats decide.

Imported by `annheal.index.compiled` alone, because importing numba takes a good part of a second.

A row of codes takes a quarter of the memory of its floats, and reading is what comparing many
scattered rows costs. A product of codes is off by no more than a known slack
(`annheal.index.shortlist` measures it), so every row gets a lower and an upper bound of its score.
A row whose upper bound lies below the k-th best lower bound is not among the best k; the few others
are compared by their floats.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, int64, njit, uint8, uint64

from annheal.index.distances import (
    REORDER_SUMS,
    distance_in,
    distances_of,
    insert,
    key_of,
    prefetch_once,
)
from annheal.index.exact_kernel import lowest_bit, write_results

CODE_LINE_BYTES = 64
CODE_LINES_AHEAD = 192
"""Cache lines of codes asked for ahead. 50,000 of 100,000 rows of 384 bytes took 1.9 ms without,
0.83 ms with 48 lines and 0.46 ms with 192. They are let go after their use: the caches stay with
what the search reads next, which made it 0.13 ms shorter."""


class Codes(NamedTuple):
    """The rows' codes as the kernel gets them: int8, with the float that a code of one stands for.

    `norms` are squared lengths, for squared Euclidean distances; empty for inner products.
    """

    codes: Any
    scales: Any
    norms: Any


class Asked(NamedTuple):
    """Queries as floats, and as int16 codes with their scales; `slacks` per unit of row scale."""

    floats: Any
    codes: Any
    scales: Any
    slacks: Any


@njit(nogil=True)
def _members(words: Any, last_bytes: Any, members: Any) -> Any:
    """Write the rows of a bitmap into `members`; return their number."""
    count = int64(0)
    for i in range(uint64(0), uint64(words.size)):
        word = words[i]
        while word != uint64(0):
            members[uint64(count)] = int64(i * uint64(64) + lowest_bit(word))
            word &= word - uint64(1)
            count += 1
    for i in range(uint64(0), uint64(last_bytes.size)):
        for bit in range(8):
            if last_bytes[i] >> uint8(bit) & uint8(1):
                members[uint64(count)] = int64(words.size) * 64 + int64(i) * 8 + bit
                count += 1
    return count


@njit(nogil=True)
def _multiply(
    codes: Any,
    members: Any,
    span: Any,
    asked: Any,
    query: Any,
    dimension: Any,
    products: Any,
    ahead: Any,
) -> None:
    """Write the products of the members of `span` with one query into `products`.

    Nothing else is done in this loop: with more in it LLVM leaves the 16-bit multiply-add, and a
    row takes twice as long.
    """
    first, stop, count = uint64(span[0]), uint64(span[1]), uint64(members.size)
    for t in range(first, stop):
        if ahead and t + ahead < count:
            # Not a function of its own: LLVM would unroll the loop far beyond a row's few lines.
            later = uint64(members[t + ahead]) * dimension
            for offset in range(uint64(0), dimension, uint64(CODE_LINE_BYTES)):
                prefetch_once(codes, later + offset)
        start = uint64(members[t]) * dimension
        total = int32(0)
        for j in range(uint64(0), dimension):
            total += int32(codes[start + j]) * int32(asked[query + j])
        products[t - first] = total


@njit(nogil=True, fastmath=REORDER_SUMS)
def _bound(
    held: Any,
    asked: Any,
    q: Any,
    l2: Any,
    members: Any,
    span: Any,
    products: Any,
    pool: Any,
    size: Any,
    promising: Any,
    uppers: Any,
    count: Any,
) -> Any:
    """Bound the members of `span` for query `q`, and note those that are promising so far.

    Returns how many lower bounds the pool holds and how many rows are noted.
    """
    k = int64(pool.size)
    query_scale, query_slack = asked.scales[q], asked.slacks[q]
    first = uint64(span[0])
    least = -distance_in(pool[uint64(k - 1)]) if size == k else float32(-np.inf)
    for t in range(first, uint64(span[1])):
        row = members[t]
        scale = held.scales[uint64(row)]
        value = float32(products[t - first]) * query_scale * scale
        slack = query_slack * scale
        if l2:
            value = value + value - held.norms[uint64(row)]
            slack += slack
        if value + slack < least:
            continue
        promising[uint64(count)] = row
        uppers[uint64(count)] = value + slack
        count += 1
        if value - slack >= least:
            insert(pool, size, k, key_of(slack - value, row))
            size = min(size + 1, k)
            if size == k:
                least = -distance_in(pool[uint64(k - 1)])
    return size, count


@njit(nogil=True, fastmath=REORDER_SUMS)
def _compare_promising(
    stored: Any,
    asked: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    promising: Any,
    uppers: Any,
    pool: Any,
    size: Any,
    block: Any,
    distances: Any,
) -> Any:
    """Put the best rows by their floats into `pool`, in place of `size` bounds.

    Returns how many there are.
    """
    k, last = int64(pool.size), uint64(promising.size - 1)
    least = -distance_in(pool[uint64(k - 1)]) if size == k else float32(-np.inf)
    size, count = int64(0), int64(0)
    for t in range(uint64(promising.size)):
        if uppers[t] >= least:
            block[uint64(count)] = promising[t]
            count += 1
        if count == block.size or t == last:
            distances_of(
                stored, block, count, asked.floats, q * dimension, dimension, l2, distances
            )
            for i in range(uint64(count)):
                key = key_of(distances[i], block[i])
                if size < k or key < pool[uint64(k - 1)]:
                    insert(pool, size, k, key)
                    size = min(size + 1, k)
            count = int64(0)
    return size


@njit(nogil=True)
def _bound_all(
    held: Any,
    asked: Any,
    dimension: Any,
    l2: Any,
    members: Any,
    promising: Any,
    uppers: Any,
    counts: Any,
    products: Any,
    pools: Any,
    sizes: Any,
) -> None:
    """Bound all members for all queries, block by block."""
    count, block = int64(members.size), int64(products.size)
    lines = (int64(dimension) + CODE_LINE_BYTES - 1) // CODE_LINE_BYTES
    ahead = uint64(max(int64(2), CODE_LINES_AHEAD // lines))
    for start in range(0, count, block):
        span = (start, min(start + block, count))
        for q in range(uint64(0), uint64(sizes.size)):
            # The first query brings the block into the cache.
            _multiply(
                held.codes,
                members,
                span,
                asked.codes,
                q * dimension,
                dimension,
                products,
                uint64(0) if q else ahead,
            )
            sizes[q], counts[q] = _bound(
                held,
                asked,
                q,
                l2,
                members,
                span,
                products,
                pools[q],
                sizes[q],
                promising[q],
                uppers[q],
                counts[q],
            )


@njit(nogil=True)
def compare_codes(
    codes: Any,
    scales: Any,
    norms: Any,
    stored: Any,
    dimension: Any,
    queries: Any,
    asked_codes: Any,
    asked_scales: Any,
    slacks: Any,
    l2: Any,
    words: Any,
    last_bytes: Any,
    members: Any,
    promising: Any,
    uppers: Any,
    counts: Any,
    products: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best rows of a bitmap for every query, reading the floats of the promising ones.

    `members` (m,) int32, `promising` (n, m) int32 and `uppers` (n, m) float32 are memory for the m
    rows of the bitmap, `counts` (n,) int64 are zeros; `products` int32 has a place for each row
    that meets all queries at a time. The rest is as for `exact_kernel.compare_bitmap`.
    """
    held = Codes(codes, scales, norms)
    asked = Asked(queries, asked_codes, asked_scales, slacks)
    wide = uint64(dimension)
    members = members[: _members(words, last_bytes, members)]
    _bound_all(held, asked, wide, l2, members, promising, uppers, counts, products, pools, sizes)
    for q in range(uint64(0), uint64(sizes.size)):
        sizes[q] = _compare_promising(
            stored,
            asked,
            q,
            wide,
            l2,
            promising[q, : counts[q]],
            uppers[q],
            pools[q],
            sizes[q],
            block,
            distances,
        )
    write_results(pools, sizes, scores, rows)
