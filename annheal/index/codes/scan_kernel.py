"""Compiled comparison by 8-bit codes: codes rule rows out, vectors decide among the others.

Imported where machine code is loaded: importing numba takes a good part of a second.

A row of codes takes a quarter of the memory of its floats, and reading is what comparing many
scattered rows costs. A product of codes is off by no more than a known slack (`row_codes`
measures it), so every row gets a lower and an upper bound of its score.
A row whose upper bound lies below the k-th best lower bound is not among the best k; the few others
are compared by their vectors. The first plane of codes alone rules most rows out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, int64, njit, uint8, uint64

from annheal.index.codes.plane_kernel import (
    keep_possible,
    multiply,
    pad,
    pass_planes,
)
from annheal.index.distances import (
    REORDER_SUMS,
    distance_in,
    distances_of,
    insert,
    key_of,
    row_in,
)
from annheal.index.exact_kernel import lowest_bit, write_results
from annheal.index.kernels.code_arrays import Candidates, CodedQueries, RowCodeArrays

LEADERS_PER_K, LEADERS_MIN = 4, 24
"""About so many rows are leaders: all their planes are read first, for a first limit."""
LEADERS_ROWS_MIN = 4
"""Matching rows per leader below which no leaders are used for a first limit."""
LEADING_SAMPLE = 8
"""How many rows of the sample of products reach the product that leaders have at least."""


class Shortlisted(NamedTuple):
    """The rows of one query that are to be compared by their vectors.

    Attributes:
        pool: keys of the k best lower bounds, later of the k best rows.
        rows: rows that may be among the best; some are there twice.
        upper_bounds: upper bounds of their scores.
    """

    pool: Any
    rows: Any
    upper_bounds: Any


@njit(nogil=True)
def _members(words: Any, last_bytes: Any, members: Any) -> Any:
    """Write the rows of a bitmap into `members`, and pad them; return their number."""
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
    pad(members, count)
    return count


@njit(nogil=True)
def _shortlist_rows(
    row_codes: Any,
    l2: Any,
    candidates: Any,
    chosen: Any,
    shortlisted: Any,
    size: Any,
    count: Any,
    again: Any,
) -> Any:
    """Put the lower bounds of the first `chosen` candidates into the pool, and shortlist them.

    A candidate is left out if its upper bound is below the limit. `again`: some of them may be in
    the pool already. Returns how many lower bounds the pool holds and how many rows are listed.
    """
    pool, k = shortlisted.pool, int64(shortlisted.pool.size)
    limit = _limit(pool, size)
    for t in range(uint64(0), uint64(chosen)):
        row, value = candidates.rows[t], float32(candidates.values[t])
        slack = float32(np.sqrt(candidates.squares[t]))
        if l2:
            value = value + value - row_codes.norms[uint64(row)]
            slack += slack
        if value + slack < limit:
            continue
        shortlisted.rows[uint64(count)] = row
        shortlisted.upper_bounds[uint64(count)] = value + slack
        count += 1
        if value - slack >= limit and not (again and _holds_row(pool, size, row)):
            insert(pool, size, k, key_of(slack - value, row))
            size = min(size + 1, k)
            limit = _limit(pool, size)
    return size, count


@njit(nogil=True)
def _limit(pool: Any, size: Any) -> Any:
    """Return the k-th best lower bound, which a row has to reach; -inf while there are fewer."""
    if size < pool.size:
        return float32(-np.inf)
    return -distance_in(pool[uint64(pool.size - 1)])


@njit(nogil=True, fastmath=REORDER_SUMS)
def _compare_shortlisted(
    stored: Any,
    coded: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    shortlisted: Any,
    listed: Any,
    size: Any,
    block: Any,
    distances: Any,
) -> Any:
    """Put the best of the `listed` rows by their vectors into the pool, in place of bounds.

    Returns how many there are. The rows of the bounds are among the first to be compared: the k-th
    best row is no farther than the farthest of them, which rules out more than bounds could.
    """
    pool, k, last = shortlisted.pool, int64(shortlisted.pool.size), uint64(listed - 1)
    _compare_pool(stored, coded, q, dimension, l2, pool, size, block, distances)
    offset, count = coded.offsets[q], int64(0)
    for t in range(uint64(listed)):
        if size < k or -(shortlisted.upper_bounds[t] + offset) <= distance_in(pool[uint64(k - 1)]):
            block[uint64(count)] = shortlisted.rows[t]
            count += 1
        if count == block.size or t == last:
            distances_of(
                stored, block, count, coded.vectors, q * dimension, dimension, l2, distances
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
    coded: Any,
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
        distances_of(stored, block, count, coded.vectors, q * dimension, dimension, l2, distances)
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
def _leading_product(products: Any, count: Any, leaders: Any, largest: Any) -> Any:
    """Return a product that about `leaders` of the first `count` products reach.

    It is the least of the largest products of a sample; `largest` is memory for these.
    """
    found = uint64(0)
    # Spread over all rows: similar rows are often neighbours.
    for t in range(uint64(0), uint64(count), uint64(leaders // largest.size)):
        product = products[t]
        if found == uint64(largest.size) and product <= largest[found - uint64(1)]:
            continue
        place = min(found, uint64(largest.size - 1))
        while place > uint64(0) and largest[place - uint64(1)] < product:
            largest[place] = largest[place - uint64(1)]
            place -= uint64(1)
        largest[place] = product
        found = min(found + uint64(1), uint64(largest.size))
    return largest[found - uint64(1)] if found else int32(0)


@njit(nogil=True)
def _take_leaders(members: Any, products: Any, count: Any, leaders: Any, candidates: Any) -> Any:
    """Copy about `leaders` of the first `count` members into the candidates.

    They are those with the largest products. Returns their number.
    """
    largest = np.empty(LEADING_SAMPLE, dtype=np.int32)
    needed, taken = _leading_product(products, count, leaders, largest), uint64(0)
    for t in range(uint64(count)):
        if products[t] >= needed and taken < uint64(candidates.values.size):
            candidates.rows[taken], candidates.products[taken] = members[t], products[t]
            taken += uint64(1)
    return int64(taken)


@njit(nogil=True)
def _bound_all(
    row_codes: Any,
    coded: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    members: Any,
    products: Any,
    count: Any,
    candidates: Any,
    shortlisted: Any,
) -> Any:
    """Put the k best lower bounds of the first `count` members into the pool; shortlist the rest.

    Leaders, the rows with the largest products in the first plane, are bounded first: their k-th
    best lower bound is nearly always close to that of all rows, so that the other planes are read
    for few. Changes `members`. Returns how many lower bounds there are and how many rows are
    listed, some of them twice.
    """
    multiply(row_codes, coded, q, int64(0), dimension, members, count, products)
    size, listed, room = int64(0), int64(0), int64(candidates.values.size)
    leaders = LEADERS_PER_K * int64(shortlisted.pool.size) + LEADERS_MIN
    has_leaders = leaders <= room and leaders * LEADERS_ROWS_MIN <= count
    if has_leaders:
        chosen = _take_leaders(members, products, count, leaders, candidates)
        limit = _limit(shortlisted.pool, size)
        chosen = pass_planes(row_codes, coded, q, dimension, l2, candidates, chosen, limit)
        size, listed = _shortlist_rows(
            row_codes, l2, candidates, chosen, shortlisted, size, listed, False
        )
        limit = _limit(shortlisted.pool, size)
        count = keep_possible(row_codes, coded, q, l2, members, products, count, candidates, limit)
    for start in range(0, count, room):
        chosen = min(room, count - start)
        for t in range(uint64(chosen)):
            candidates.rows[t] = members[uint64(start) + t]
            candidates.products[t] = products[uint64(start) + t]
        limit = _limit(shortlisted.pool, size)
        chosen = pass_planes(row_codes, coded, q, dimension, l2, candidates, chosen, limit)
        size, listed = _shortlist_rows(
            row_codes, l2, candidates, chosen, shortlisted, size, listed, has_leaders
        )
    return size, listed


@njit(nogil=True)
def compare_codes(
    planes: Any,
    layout: Any,
    scales: Any,
    factors: Any,
    weights: Any,
    norms: Any,
    groups: Any,
    group_bounds: Any,
    stored: Any,
    dimension: Any,
    vectors: Any,
    query_codes: Any,
    query_bytes: Any,
    sums: Any,
    query_scales: Any,
    offsets: Any,
    rests: Any,
    shares: Any,
    errors: Any,
    l2: Any,
    words: Any,
    last_bytes: Any,
    matching_rows: Any,
    matching_products: Any,
    shortlisted_rows: Any,
    upper_bounds: Any,
    candidate_rows: Any,
    candidate_products: Any,
    values: Any,
    squares: Any,
    thresholds: Any,
    block: Any,
    distances: Any,
    pools: Any,
    sizes: Any,
    scores: Any,
    rows: Any,
) -> None:
    """Find the best rows of a bitmap for every query, reading the vectors of few of them.

    The arguments are the fields of `RowCodeArrays`, the vectors and their dimension, the fields of
    `CodedQueries`, `l2`, the bitmap, the fields of `MatchingRows` and of `Candidates`; from `block`
    on they are as for `exact_kernel.compare_bitmap`. `code_arrays` says why they come one by one.
    """
    row_codes = RowCodeArrays(planes, layout, scales, factors, weights, norms, groups, group_bounds)
    coded = CodedQueries(
        vectors, query_codes, query_bytes, sums, query_scales, offsets, rests, shares, errors
    )
    candidates = Candidates(candidate_rows, candidate_products, values, squares, thresholds)
    wide = uint64(dimension)
    for q in range(uint64(0), uint64(sizes.size)):
        shortlisted = Shortlisted(pools[q], shortlisted_rows, upper_bounds)
        count = _members(words, last_bytes, matching_rows)
        size, listed = _bound_all(
            row_codes,
            coded,
            q,
            wide,
            l2,
            matching_rows,
            matching_products,
            count,
            candidates,
            shortlisted,
        )
        sizes[q] = _compare_shortlisted(
            stored, coded, q, wide, l2, shortlisted, listed, size, block, distances
        )
    write_results(pools, sizes, scores, rows)
