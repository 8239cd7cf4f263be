"""Compiled comparison by 8-bit codes: codes choose the rows worth reading, floats decide.

Imported by `annheal.index.compiled` alone, because importing numba takes a good part of a second.

A row of codes takes a quarter of the memory of its floats, and reading is what comparing many
scattered rows costs. A product of codes is off by no more than a known slack
(`annheal.index.row_codes` measures it), so every row gets a lower and an upper bound of its score.
A row whose upper bound lies below the k-th best lower bound is not among the best k; the few others
are compared by their floats. The first plane of codes rules most rows out alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, int64, njit, uint8, uint64

from annheal.index.byte_products import (
    HAS_VNNI,
    VNNI_LINE,
    excess,
    line_product,
    product,
)
from annheal.index.distances import (
    REORDER_SUMS,
    distance_in,
    distances_of,
    insert,
    key_of,
    prefetch,
    prefetch_once,
    row_in,
)
from annheal.index.exact_kernel import lowest_bit, write_results

CODE_LINE_BYTES = 64
CODE_LINES_AHEAD = 192
"""Cache lines of the first plane asked for ahead. 50,000 of 100,000 rows of 384 bytes took 1.9 ms
without, 0.83 ms with 48 lines and 0.46 ms with 192. They are let go after their use: the caches
stay with what the search reads next, which made it 0.13 ms shorter. Lines of other planes are used
at once and kept."""


class Codes(NamedTuple):
    """The rows' codes as the kernel gets them: int8, plane after plane.

    `scales` (planes, rows) are the floats that a code of one stands for, `widths` (planes,) the
    codes of a row in each plane, `factors` (planes, rows) of the slack for leaving out the planes
    after it. `norms` are squared lengths, for squared Euclidean distances;
    empty for inner products.
    """

    planes: Any
    scales: Any
    widths: Any
    factors: Any
    norms: Any


class Asked(NamedTuple):
    """Queries as floats, and as int16 codes with one scale for all planes.

    `bytes` (n, 2, d) int8 are the codes again, as 256 * the first + the second. A score is what
    the codes give plus `offsets` (n,). Errors: `rests` and `shares` (n, planes) of leaving out the
    planes after this one, at any row and per unit of the product looked for; `errors` (n, planes)
    of codes, per unit of a row's scale.
    """

    floats: Any
    codes: Any
    bytes: Any
    scales: Any
    offsets: Any
    rests: Any
    shares: Any
    errors: Any


class Block(NamedTuple):
    """Memory for the rows that meet all queries at a time, and for those that are still in it.

    Of those `values` and `slacks` are the product of the planes so far, and its error.
    """

    products: Any
    chosen: Any
    values: Any
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
    base: Any,
    members: Any,
    span: Any,
    asked: Any,
    part: Any,
    products: Any,
    ahead: Any,
) -> None:
    """Write the products of the members of `span` with a part of one query into `products`.

    The plane begins at `base`; `part` is where the query begins, its dimension, and where in it
    this plane begins and how wide it is. Nothing else is done in this loop: with more in it LLVM
    leaves the 16-bit multiply-add, and a row takes twice as long.
    """
    query, dimension, offset, width = part
    first, stop, count = uint64(span[0]), uint64(span[1]), uint64(members.size)
    by_lines = HAS_VNNI and width % uint64(VNNI_LINE) == uint64(0)
    begin = query + offset
    too_much = excess(asked.codes, begin, width) if by_lines else int32(0)
    high, low = query + begin, query + begin + dimension
    for t in range(first, stop):
        if ahead and t + ahead < count:
            # Not a function of its own: LLVM would unroll the loop far beyond a row's few lines.
            later = base + uint64(members[t + ahead]) * width
            for line in range(uint64(0), width, uint64(CODE_LINE_BYTES)):
                prefetch_once(codes, later + line)
        start = base + uint64(members[t]) * width
        if by_lines:
            total = line_product(codes, start, asked.bytes, high, low, width)
            products[t - first] = int32(total - too_much)
        else:
            products[t - first] = product(codes, start, asked.codes, begin, width)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _sift(
    held: Any, asked: Any, q: Any, p: Any, l2: Any, members: Any, span: Any, block: Any, least: Any
) -> Any:
    """Choose the members of `span` of which a score of `least` is possible after plane `p`.

    Returns their number. `members` may be `block.chosen` itself.
    """
    query_scale, error, scales = asked.scales[q], asked.errors[q, p], held.scales[p]
    rest, share, factors = asked.rests[q, p], asked.shares[q, p], held.factors[p]
    first = uint64(span[0])
    needed = least
    count = int64(0)
    for t in range(first, uint64(span[1])):
        row = members[t]
        scale = scales[uint64(row)]
        value = float32(block.products[t - first]) * query_scale * scale
        slack = error * scale
        if p:
            value += block.values[t - first]
            slack += block.slacks[t - first]
        if l2:
            needed = float32(0.5) * (least + held.norms[uint64(row)])
        possible = value + slack + rest * factors[uint64(row)] + share * max(needed, float32(0))
        # No branch: the processor would guess wrong for every other row of a close race.
        block.chosen[uint64(count)] = row
        block.values[uint64(count)] = value
        block.slacks[uint64(count)] = slack
        count += int64(possible >= needed)
    return count


@njit(nogil=True)
def _pass_planes(
    held: Any,
    asked: Any,
    q: Any,
    l2: Any,
    members: Any,
    span: Any,
    block: Any,
    least: Any,
    dimension: Any,
    ahead: Any,
) -> Any:
    """Choose the members of `span` of which the codes leave a score of `least` possible.

    Returns their number. Each plane is read for the rows only that the planes before it left.
    """
    query, none = q * dimension, uint64(0)
    every = uint64(held.scales.shape[1])
    width = uint64(held.widths[0])
    part = (query, dimension, none, width)
    _multiply(held.planes, none, members, span, asked, part, block.products, ahead)
    count = _sift(held, asked, q, int64(0), l2, members, span, block, least)
    offset = width
    for p in range(1, held.widths.size):
        width, base = uint64(held.widths[p]), every * offset
        for i in range(none, uint64(count)):
            start = base + uint64(block.chosen[i]) * width
            for line in range(none, width, uint64(CODE_LINE_BYTES)):
                prefetch(held.planes, start + line)
        rest, part = (int64(0), count), (query, dimension, offset, width)
        _multiply(held.planes, base, block.chosen, rest, asked, part, block.products, none)
        count = _sift(held, asked, q, int64(p), l2, block.chosen, rest, block, least)
        offset += width
    return count


@njit(nogil=True)
def _note(
    held: Any,
    l2: Any,
    block: Any,
    chosen: Any,
    pool: Any,
    size: Any,
    promising: Any,
    uppers: Any,
    count: Any,
) -> Any:
    """Put the bounds of the `chosen` rows of a block into the pool, and note what is promising.

    Returns how many lower bounds the pool holds and how many rows are noted.
    """
    k = int64(pool.size)
    least = _least(pool, size)
    for t in range(uint64(0), uint64(chosen)):
        row, value, slack = block.chosen[t], block.values[t], block.slacks[t]
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
            least = _least(pool, size)
    return size, count


@njit(nogil=True)
def _least(pool: Any, size: Any) -> Any:
    """Return the k-th best lower bound."""
    if size < pool.size:
        return float32(-np.inf)
    return -distance_in(pool[uint64(pool.size - 1)])


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

    Returns how many there are. The rows of the bounds are among the first to be compared: the k-th
    best row is no farther than the farthest of them, which rules out more than bounds could.
    """
    k, last = int64(pool.size), uint64(promising.size - 1)
    _compare_pool(stored, asked, q, dimension, l2, pool, size, block, distances)
    offset, count = asked.offsets[q], int64(0)
    for t in range(uint64(promising.size)):
        if size < k or -(uppers[t] + offset) <= distance_in(pool[uint64(k - 1)]):
            block[uint64(count)] = promising[t]
            count += 1
        if count == block.size or t == last:
            distances_of(
                stored, block, count, asked.floats, q * dimension, dimension, l2, distances
            )
            for i in range(uint64(count)):
                key = key_of(distances[i], block[i])
                new = size < k or key < pool[uint64(k - 1)]
                if new and not _holds_row(pool, size, block[i]):
                    insert(pool, size, k, key)
                    size = min(size + 1, k)
            count = int64(0)
    return size


@njit(nogil=True, fastmath=REORDER_SUMS)
def _compare_pool(
    stored: Any,
    asked: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    pool: Any,
    size: Any,
    block: Any,
    distances: Any,
) -> None:
    """Put the rows of `pool[:size]` in the order of their distances by floats."""
    done = int64(0)
    while done < size:
        count = min(int64(block.size), size - done)
        for i in range(count):
            block[uint64(i)] = row_in(pool[uint64(done + i)])
        distances_of(stored, block, count, asked.floats, q * dimension, dimension, l2, distances)
        for i in range(count):
            # At `done` keys are sorted and of floats, from there on they are bounds still.
            insert(pool, done, done + 1, key_of(distances[uint64(i)], block[uint64(i)]))
            done += 1


@njit(nogil=True)
def _holds_row(pool: Any, size: Any, row: Any) -> Any:
    found = False
    for i in range(uint64(0), uint64(size)):
        found = found or row_in(pool[i]) == row
    return found


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
    block: Any,
    pools: Any,
    sizes: Any,
) -> None:
    """Bound all members for all queries, block by block."""
    count, rows = int64(members.size), int64(block.products.size)
    lines = (int64(held.widths[0]) + CODE_LINE_BYTES - 1) // CODE_LINE_BYTES
    ahead = uint64(max(int64(2), CODE_LINES_AHEAD // lines))
    for start in range(0, count, rows):
        span = (start, min(start + rows, count))
        for q in range(uint64(0), uint64(sizes.size)):
            least = _least(pools[q], sizes[q])
            # The first query brings the block into the cache.
            first = uint64(0) if q else ahead
            chosen = _pass_planes(held, asked, q, l2, members, span, block, least, dimension, first)
            sizes[q], counts[q] = _note(
                held,
                l2,
                block,
                chosen,
                pools[q],
                sizes[q],
                promising[q],
                uppers[q],
                counts[q],
            )


@njit(nogil=True)
def compare_codes(
    planes: Any,
    scales: Any,
    widths: Any,
    factors: Any,
    norms: Any,
    stored: Any,
    dimension: Any,
    queries: Any,
    asked_codes: Any,
    asked_bytes: Any,
    asked_scales: Any,
    offsets: Any,
    rests: Any,
    shares: Any,
    errors: Any,
    l2: Any,
    words: Any,
    last_bytes: Any,
    members: Any,
    promising: Any,
    uppers: Any,
    counts: Any,
    products: Any,
    chosen: Any,
    values: Any,
    slacks: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best rows of a bitmap for every query, reading the floats of the promising ones.

    `members` (m,) int32, `promising` (n, m) int32 and `uppers` (n, m) float32 are memory for the m
    rows of the bitmap, `counts` (n,) int64 are zeros; `products` int32, `chosen` int32, `values`
    and `slacks` float32 have a place for each row that meets all queries at a time. The rest is as
    for `exact_kernel.compare_bitmap`.
    """
    held = Codes(planes, scales, widths, factors, norms)
    asked = Asked(queries, asked_codes, asked_bytes, asked_scales, offsets, rests, shares, errors)
    wide = uint64(dimension)
    members = members[: _members(words, last_bytes, members)]
    at_once = Block(products, chosen, values, slacks)
    _bound_all(held, asked, wide, l2, members, promising, uppers, counts, at_once, pools, sizes)
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
