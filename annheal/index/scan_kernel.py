"""Compiled comparison by 8-bit codes: codes choose the rows worth reading, floats decide.

Imported by `annheal.index.compiled` alone, because importing numba takes a good part of a second.

A row of codes takes a quarter of the memory of its floats, and reading is what comparing many
scattered rows costs. A product of codes is off by no more than a known slack
(`annheal.index.row_codes` measures it), so every row gets a lower and an upper bound of its score.
A row whose upper bound lies below the k-th best lower bound is not among the best k; the few others
are compared by their floats. The head of a row's codes alone rules most rows out.
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
"""Cache lines of heads asked for ahead. 50,000 of 100,000 rows of 384 bytes took 1.9 ms without,
0.83 ms with 48 lines and 0.46 ms with 192. They are let go after their use: the caches stay with
what the search reads next, which made it 0.13 ms shorter. Tails are used at once and kept."""


class Codes(NamedTuple):
    """The rows' codes as the kernel gets them: int8, with the float that a code of one stands for.

    `norms` are squared lengths, for squared Euclidean distances; empty for inner products.
    """

    head: Any
    head_scales: Any
    tail: Any
    tail_scales: Any
    norms: Any


class Asked(NamedTuple):
    """Queries as floats, and as int16 codes, head and tail, with one scale for both.

    `bytes` (n, 2, d) int8 are the codes again, as 256 * the first + the second. A score is what
    the codes give plus `offsets` (n,). `slacks` (n, 3) are errors: of leaving out the tail, and per
    unit of the row's scales.
    """

    floats: Any
    codes: Any
    bytes: Any
    scales: Any
    offsets: Any
    slacks: Any


class Block(NamedTuple):
    """Memory for the rows that meet all queries at a time, and for those that pass their head."""

    products: Any
    chosen: Any
    partial: Any


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
    part: Any,
    products: Any,
    ahead: Any,
) -> None:
    """Write the products of the members of `span` with a part of one query into `products`.

    `part` is where the query begins, its dimension, and where in it this part begins and how wide
    it is. Nothing else is done in this loop: with more in it LLVM leaves the 16-bit multiply-add,
    and a row takes twice as long.
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
            later = uint64(members[t + ahead]) * width
            for line in range(uint64(0), width, uint64(CODE_LINE_BYTES)):
                prefetch_once(codes, later + line)
        start = uint64(members[t]) * width
        if by_lines:
            total = line_product(codes, start, asked.bytes, high, low, width)
            products[t - first] = int32(total - too_much)
        else:
            products[t - first] = product(codes, start, asked.codes, begin, width)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _pass_heads(
    held: Any,
    asked: Any,
    q: Any,
    l2: Any,
    members: Any,
    span: Any,
    block: Any,
    least: Any,
    tail_width: Any,
) -> Any:
    """Choose the members of `span` whose heads leave a score of `least` possible.

    Returns their number, and asks for their tails.
    """
    query_scale, tail_slack, head_slack = asked.scales[q], asked.slacks[q, 0], asked.slacks[q, 1]
    first = uint64(span[0])
    count = int64(0)
    for t in range(first, uint64(span[1])):
        row = members[t]
        scale = held.head_scales[uint64(row)]
        value = float32(block.products[t - first]) * query_scale * scale
        slack = tail_slack + head_slack * scale
        if l2:
            value = value + value - held.norms[uint64(row)]
            slack += slack
        # No branch: the processor would guess wrong for every other row of a close race.
        block.chosen[uint64(count)] = row
        block.partial[uint64(count)] = value
        count += int64(value + slack >= least)
    for i in range(uint64(0), uint64(count)):
        start = uint64(block.chosen[i]) * tail_width
        for offset in range(uint64(0), tail_width, uint64(CODE_LINE_BYTES)):
            prefetch(held.tail, start + offset)
    return count


@njit(nogil=True, fastmath=REORDER_SUMS)
def _bound(
    held: Any,
    asked: Any,
    q: Any,
    l2: Any,
    block: Any,
    chosen: Any,
    pool: Any,
    size: Any,
    promising: Any,
    uppers: Any,
    count: Any,
) -> Any:
    """Bound the `chosen` rows of a block for query `q`, and note those that are promising so far.

    Returns how many lower bounds the pool holds and how many rows are noted.
    """
    k = int64(pool.size)
    query_scale, head_slack, tail_slack = asked.scales[q], asked.slacks[q, 1], asked.slacks[q, 2]
    least = _least(pool, size)
    for t in range(uint64(0), uint64(chosen)):
        row = block.chosen[t]
        tail_scale = held.tail_scales[uint64(row)]
        tail = float32(block.products[t]) * query_scale * tail_scale
        slack = head_slack * held.head_scales[uint64(row)] + tail_slack * tail_scale
        if l2:
            tail += tail
            slack += slack
        value = block.partial[t] + tail
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

    Returns how many there are.
    """
    k, last = int64(pool.size), uint64(promising.size - 1)
    offset, worst = asked.offsets[q], float32(np.inf)
    if size == k:
        worst = _worst_distance(stored, asked, q, dimension, l2, pool, block, distances)
    size, count = int64(0), int64(0)
    for t in range(uint64(promising.size)):
        if -(uppers[t] + offset) <= worst:
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
            if size == k:
                worst = min(worst, distance_in(pool[uint64(k - 1)]))
            count = int64(0)
    return size


@njit(nogil=True, fastmath=REORDER_SUMS)
def _worst_distance(
    stored: Any,
    asked: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    pool: Any,
    block: Any,
    distances: Any,
) -> Any:
    """Return the largest distance, by their floats, of the rows in a full `pool` of bounds.

    The k-th best row is no farther, so nothing else needs to be compared. Their bounds alone would
    leave twice the slack.
    """
    worst = float32(-np.inf)
    at_once = int64(block.size)
    for start in range(0, pool.size, at_once):
        count = min(at_once, int64(pool.size) - start)
        for i in range(count):
            block[uint64(i)] = row_in(pool[uint64(start + i)])
        distances_of(stored, block, count, asked.floats, q * dimension, dimension, l2, distances)
        for i in range(count):
            worst = max(worst, distances[uint64(i)])
    return worst


@njit(nogil=True)
def _bound_all(
    held: Any,
    asked: Any,
    widths: Any,
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
    head, tail = widths
    count, rows = int64(members.size), int64(block.products.size)
    lines = (int64(head) + CODE_LINE_BYTES - 1) // CODE_LINE_BYTES
    ahead = uint64(max(int64(2), CODE_LINES_AHEAD // lines))
    none = uint64(0)
    for start in range(0, count, rows):
        span = (start, min(start + rows, count))
        for q in range(none, uint64(sizes.size)):
            query, dimension = q * (head + tail), head + tail
            # The first query brings the block into the cache.
            first = none if q else ahead
            part = (query, dimension, none, head)
            _multiply(held.head, members, span, asked, part, block.products, first)
            least = _least(pools[q], sizes[q])
            passed = _pass_heads(held, asked, q, l2, members, span, block, least, tail)
            part, rest = (query, dimension, head, tail), (int64(0), passed)
            _multiply(held.tail, block.chosen, rest, asked, part, block.products, none)
            sizes[q], counts[q] = _bound(
                held,
                asked,
                q,
                l2,
                block,
                passed,
                pools[q],
                sizes[q],
                promising[q],
                uppers[q],
                counts[q],
            )


@njit(nogil=True)
def compare_codes(
    head: Any,
    head_scales: Any,
    tail: Any,
    tail_scales: Any,
    norms: Any,
    stored: Any,
    widths: Any,
    queries: Any,
    asked_codes: Any,
    asked_bytes: Any,
    asked_scales: Any,
    offsets: Any,
    slacks: Any,
    l2: Any,
    words: Any,
    last_bytes: Any,
    members: Any,
    promising: Any,
    uppers: Any,
    counts: Any,
    products: Any,
    chosen: Any,
    partial: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best rows of a bitmap for every query, reading the floats of the promising ones.

    `widths` are the codes of a row's head and of its tail. `members` (m,) int32, `promising`
    (n, m) int32 and `uppers` (n, m) float32 are memory for the m rows of the bitmap, `counts` (n,)
    int64 are zeros; `products` int32, `chosen` int32 and `partial` float32 have a place for each
    row that meets all queries at a time. The rest is as for `exact_kernel.compare_bitmap`.
    """
    held = Codes(head, head_scales, tail, tail_scales, norms)
    asked = Asked(queries, asked_codes, asked_bytes, asked_scales, offsets, slacks)
    wide = (uint64(widths[0]), uint64(widths[1]))
    dimension = wide[0] + wide[1]
    members = members[: _members(words, last_bytes, members)]
    at_once = Block(products, chosen, partial)
    _bound_all(held, asked, wide, l2, members, promising, uppers, counts, at_once, pools, sizes)
    for q in range(uint64(0), uint64(sizes.size)):
        sizes[q] = _compare_promising(
            stored,
            asked,
            q,
            dimension,
            l2,
            promising[q, : counts[q]],
            uppers[q],
            pools[q],
            sizes[q],
            block,
            distances,
        )
    write_results(pools, sizes, scores, rows)
