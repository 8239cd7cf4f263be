"""Compiled comparison by 8-bit codes: codes choose the rows worth reading, floats decide.

Imported where machine code is loaded: importing numba takes a good part of a second.

A row of codes takes a quarter of the memory of its floats, and reading is what comparing many
scattered rows costs. A product of codes is off by no more than a known slack (`row_codes`
measures it), so every row gets a lower and an upper bound of its score.
A row whose upper bound lies below the k-th best lower bound is not among the best k; the few others
are compared by their floats. The first plane of codes rules most rows out alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, int64, njit, uint8, uint64

from annheal.index.codes.plane_kernel import (
    Asked,
    Codes,
    Doubtful,
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

LEADERS_PER_K, LEADERS_MIN = 4, 24
"""About so many rows lead, for the k best of them to be nearly the best."""
LEADERS_OF = 4
"""With fewer rows in all for each of them, nobody leads."""
LEADING_SAMPLE = 8
"""Of the rows looked at to tell which product leads, so many reach it."""


class Found(NamedTuple):
    """What is found for one query.

    `pool` are the keys of the k best lower bounds, later of the k best rows. `rows` may be among
    the best, some stand there twice; `uppers` are the bounds of their scores.
    """

    pool: Any
    rows: Any
    uppers: Any


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
def _note(
    held: Any,
    l2: Any,
    doubtful: Any,
    chosen: Any,
    found: Any,
    size: Any,
    count: Any,
    again: Any,
) -> Any:
    """Put the bounds of the first `chosen` rows into the pool, and note what is promising.

    `again`: some of them may be there already. Returns how many lower bounds the pool holds and how
    many rows are noted.
    """
    pool, k = found.pool, int64(found.pool.size)
    least = _least(pool, size)
    for t in range(uint64(0), uint64(chosen)):
        row, value = doubtful.rows[t], float32(doubtful.values[t])
        slack = float32(np.sqrt(doubtful.squares[t]))
        if l2:
            value = value + value - held.norms[uint64(row)]
            slack += slack
        if value + slack < least:
            continue
        found.rows[uint64(count)] = row
        found.uppers[uint64(count)] = value + slack
        count += 1
        if value - slack >= least and not (again and _holds_row(pool, size, row)):
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
    found: Any,
    noted: Any,
    size: Any,
    block: Any,
    distances: Any,
) -> Any:
    """Put the best of the `noted` rows by their floats into the pool, in place of `size` bounds.

    Returns how many there are. The rows of the bounds are among the first to be compared: the k-th
    best row is no farther than the farthest of them, which rules out more than bounds could.
    """
    pool, k, last = found.pool, int64(found.pool.size), uint64(noted - 1)
    _compare_pool(stored, asked, q, dimension, l2, pool, size, block, distances)
    offset, count = asked.offsets[q], int64(0)
    for t in range(uint64(noted)):
        if size < k or -(found.uppers[t] + offset) <= distance_in(pool[uint64(k - 1)]):
            block[uint64(count)] = found.rows[t]
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
def _leading_product(products: Any, count: Any, leaders: Any, largest: Any) -> Any:
    """Return a product that about so many of the first `count` reach, judged by some of them.

    `largest` is memory for the largest of those.
    """
    found = uint64(0)
    # Here and there: rows of a kind are often neighbours.
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
def _take_leaders(members: Any, products: Any, count: Any, leaders: Any, doubtful: Any) -> Any:
    """Copy about so many of the first `count` members, those with the largest products.

    Returns their number.
    """
    largest = np.empty(LEADING_SAMPLE, dtype=np.int32)
    needed, taken = _leading_product(products, count, leaders, largest), uint64(0)
    for t in range(uint64(count)):
        if products[t] >= needed and taken < uint64(doubtful.values.size):
            doubtful.rows[taken], doubtful.products[taken] = members[t], products[t]
            taken += uint64(1)
    return int64(taken)


@njit(nogil=True)
def _bound_all(
    held: Any,
    asked: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    members: Any,
    products: Any,
    count: Any,
    doubtful: Any,
    found: Any,
) -> Any:
    """Put the best lower bounds of the first `count` members into a pool, and note what is left.

    The k-th best of the rows that lead in the first plane is nearly always close to the k-th best
    of all, so the other planes are read for few. Changes `members`. Returns how many lower bounds
    there are and how many rows are noted, some of them twice.
    """
    multiply(held, asked, q, int64(0), dimension, members, count, products)
    size, noted, room = int64(0), int64(0), int64(doubtful.values.size)
    leaders = LEADERS_PER_K * int64(found.pool.size) + LEADERS_MIN
    led = leaders <= room and leaders * LEADERS_OF <= count
    if led:
        chosen = _take_leaders(members, products, count, leaders, doubtful)
        least = _least(found.pool, size)
        chosen = pass_planes(held, asked, q, dimension, l2, doubtful, chosen, least)
        size, noted = _note(held, l2, doubtful, chosen, found, size, noted, False)
        least = _least(found.pool, size)
        count = keep_possible(held, asked, q, l2, members, products, count, doubtful, least)
    for start in range(0, count, room):
        chosen = min(room, count - start)
        for t in range(uint64(chosen)):
            doubtful.rows[t] = members[uint64(start) + t]
            doubtful.products[t] = products[uint64(start) + t]
        least = _least(found.pool, size)
        chosen = pass_planes(held, asked, q, dimension, l2, doubtful, chosen, least)
        size, noted = _note(held, l2, doubtful, chosen, found, size, noted, led)
    return size, noted


@njit(nogil=True)
def compare_codes(
    planes: Any,
    layout: Any,
    scales: Any,
    factors: Any,
    weights: Any,
    norms: Any,
    kinds: Any,
    classes: Any,
    stored: Any,
    dimension: Any,
    queries: Any,
    asked_codes: Any,
    asked_bytes: Any,
    sums: Any,
    asked_scales: Any,
    offsets: Any,
    rests: Any,
    shares: Any,
    errors: Any,
    l2: Any,
    words: Any,
    last_bytes: Any,
    members: Any,
    products: Any,
    promising: Any,
    uppers: Any,
    doubtful_rows: Any,
    doubtful_products: Any,
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
    """Find the best rows of a bitmap for every query, reading the floats of the promising ones.

    Memory for the m rows of the bitmap: `members` and `products` (m + 15,) int32, `promising`
    int32 and `uppers` float32, both (m + r,). For r rows at a time: `doubtful_rows` and
    `doubtful_products` (r + 15,) int32, `values` and `squares` (r,) float64. The rest is as for
    `exact_kernel.compare_bitmap`.
    """
    held = Codes(planes, layout, scales, factors, weights, norms, kinds, classes)
    asked = Asked(
        queries, asked_codes, asked_bytes, sums, asked_scales, offsets, rests, shares, errors
    )
    doubtful = Doubtful(doubtful_rows, doubtful_products, values, squares, thresholds)
    wide = uint64(dimension)
    for q in range(uint64(0), uint64(sizes.size)):
        found = Found(pools[q], promising, uppers)
        count = _members(words, last_bytes, members)
        size, noted = _bound_all(
            held, asked, q, wide, l2, members, products, count, doubtful, found
        )
        sizes[q] = _compare_promising(
            stored, asked, q, wide, l2, found, noted, size, block, distances
        )
    write_results(pools, sizes, scores, rows)
