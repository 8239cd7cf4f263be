"""Compiled bounds of scores: planes of codes are read in turn, each for fewer rows.

The arguments `row_codes`, `coded` and `candidates` are `RowCodeArrays`, `CodedQueries` and
`Candidates` of `code_arrays`; `q` is the number of the query, `p` that of the plane.

Imported by `annheal.index.codes.scan_kernel` alone, because importing numba takes most of a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, int32, int64, njit, uint64

from annheal.index.codes.byte_products import (
    HAS_VNNI,
    nibble_product,
    nibble_products,
    whole_product,
    whole_products,
)
from annheal.index.codes.code_layout import (
    BEGIN,
    FACTOR_TYPICAL_MAX,
    HIGH,
    KIND,
    LINE_BYTES,
    NIBBLE_CENTER,
    NIBBLE_STEP,
    PART,
    ROWS_AT_ONCE,
    ROWS_PADDING,
    SEEN,
    WHOLE,
    WIDTH,
)
from annheal.index.distances import REORDER_SUMS, prefetch

LINES_AHEAD = 128
"""Cache lines of codes prefetched ahead. 50,000 of 100,000 lines took 0.072 ms, with 16 ahead
0.096, without 0.114."""
CODE_CENTER = 128
"""What `whole_products` adds to a code."""


@njit(nogil=True)
def pad(rows: Any, count: Any) -> None:
    """Repeat the last of `count` rows: products are made of sixteen at a time."""
    if count:
        last = rows[uint64(count - 1)]
        for t in range(uint64(count), uint64(count + ROWS_PADDING)):
            rows[t] = last


@njit(nogil=True)
def _place(row_codes: Any, p: Any, q: Any, dimension: Any) -> Any:
    """Return where plane `p` and the part of query `q` that it is multiplied with lie.

    In order: where the plane begins; the bytes of a row; where the part begins in the query's
    codes, in its first bytes and in its second bytes; the kind of the plane; and whether it is
    multiplied a line of 64 bytes at a time.
    """
    base = uint64(0)
    for before in range(p):
        base += uint64(row_codes.layout[before, WIDTH]) * uint64(row_codes.scales.shape[1])
    width, kind = uint64(row_codes.layout[p, WIDTH]), row_codes.layout[p, KIND]
    begin = q * dimension + uint64(row_codes.layout[p, BEGIN])
    high = q * dimension + begin
    by_lines = HAS_VNNI and width % uint64(LINE_BYTES) == uint64(0)
    return base, width, begin, high, high + dimension, kind, by_lines


@njit(nogil=True)
def _excess(row_codes: Any, coded: Any, q: Any, p: Any, by_lines: Any) -> Any:
    """Return by how much all products with a plane are too large, modulo 2 ** 32.

    Codes are multiplied with a constant added, which makes them unsigned.
    """
    center = int32(NIBBLE_CENTER)
    if row_codes.layout[p, KIND] == WHOLE:
        center = int32(CODE_CENTER) if by_lines else int32(0)
    return int32(coded.sums[q, row_codes.layout[p, PART]] * center)


@njit(nogil=True)
def _prefetch_rows(planes: Any, base: Any, width: Any, rows: Any, first: Any, stop: Any) -> None:
    """Prefetch the lines of a plane that hold rows `first` to `stop`."""
    for t in range(first, stop):
        start = base + uint64(rows[t]) * width
        for line in range(uint64(0), width, uint64(LINE_BYTES)):
            prefetch(planes, start + line)


@njit(nogil=True)
def multiply(
    row_codes: Any, coded: Any, q: Any, p: Any, dimension: Any, rows: Any, count: Any, products: Any
) -> None:
    """Write the products of plane `p` of the first `count` rows with query `q` into `products`.

    Both have room for the padding.
    """
    base, width, begin, high, low, kind, by_lines = _place(row_codes, p, q, dimension)
    lines = (width + uint64(LINE_BYTES - 1)) // uint64(LINE_BYTES)
    at_once, stop = uint64(ROWS_AT_ONCE), uint64(count)
    ahead = max(at_once, uint64(LINES_AHEAD) // lines // at_once * at_once)
    planes, bytes_ = row_codes.planes, coded.bytes
    _prefetch_rows(planes, base, width, rows, uint64(0), min(ahead, stop))
    for t in range(uint64(0), stop, at_once):
        if t + ahead + at_once <= stop:
            # Not a call: LLVM makes slower code of it.
            for line in range(uint64(0), width, uint64(LINE_BYTES)):
                for r in range(t + ahead, t + ahead + at_once):
                    prefetch(planes, base + uint64(rows[r]) * width + line)
        if by_lines and kind == WHOLE:
            whole_products(planes, base, rows, t, bytes_, high, low, width, products, t)
        elif by_lines:
            nibble_products(planes, base, rows, t, bytes_, high, low, width, products, t)
        else:
            for r in range(t, min(t + at_once, stop)):
                start = base + uint64(rows[r]) * width
                if kind == WHOLE:
                    products[r] = whole_product(planes, start, coded.codes, begin, width)
                else:
                    products[r] = nibble_product(planes, start, coded.codes, begin, width)
    excess = _excess(row_codes, coded, q, p, by_lines)
    for t in range(stop):
        products[t] = int32(products[t] - excess)


@njit(nogil=True, fastmath=REORDER_SUMS, error_model="numpy")
def _set_thresholds(
    row_codes: Any, coded: Any, q: Any, l2: Any, limit: Any, thresholds: Any
) -> None:
    """Write for each group of rows the least product with which a score of `limit` is possible.

    It is that of the most favourable row: with the largest slack and the smallest norm.
    """
    kind, part, seen = (
        row_codes.layout[0, KIND],
        row_codes.layout[0, PART],
        row_codes.layout[0, SEEN],
    )
    step = float64(NIBBLE_STEP) if kind == HIGH else float64(1)
    unit = step * float64(coded.scales[q])
    error = np.sqrt(float64(row_codes.weights[0])) * float64(coded.errors[q, part])
    rest, share = float64(coded.rests[q, seen]), float64(coded.shares[q, seen])
    lowest, highest = float64(-(2**31)), float64(2**31 - 1)
    for g in range(uint64(thresholds.size)):
        smallest, largest = row_codes.group_bounds[g, 0], row_codes.group_bounds[g, 1]
        factor, norm = row_codes.group_bounds[g, 2], row_codes.group_bounds[g, 3]
        needed = float64(limit)
        if l2:
            needed = 0.5 * (needed + norm)
        typical = min(factor, float64(FACTOR_TYPICAL_MAX))
        slack = np.sqrt((error * largest) ** 2 + (rest * typical) ** 2) + rest * (factor - typical)
        lacking = needed - share * max(needed, 0.0) - slack
        product = lacking / (unit * (largest if lacking > 0.0 else smallest))
        thresholds[g] = int32(np.floor(min(max(product, lowest), highest)))


@njit(nogil=True)
def _sift(
    row_codes: Any, coded: Any, q: Any, p: Any, l2: Any, candidates: Any, count: Any, limit: Any
) -> Any:
    """Keep those of the first `count` rows of which a score of `limit` is possible after plane `p`.

    Returns their number.
    """
    part, seen = row_codes.layout[p, PART], row_codes.layout[p, SEEN]
    step = float64(NIBBLE_STEP) if row_codes.layout[p, KIND] == HIGH else float64(1)
    unit, error = step * float64(coded.scales[q]), float64(coded.errors[q, part])
    weight = float64(row_codes.weights[p]) * error * error
    rest, share = float64(coded.rests[q, seen]), float64(coded.shares[q, seen])
    needed, kept = float64(limit), uint64(0)
    rows, values, squares = candidates.rows, candidates.values, candidates.squares
    for t in range(uint64(count)):
        row = uint64(rows[t])
        scale, factor = float64(row_codes.scales[part, row]), float64(row_codes.factors[seen, row])
        value, square = float64(candidates.products[t]) * unit * scale, weight * scale * scale
        if p:
            value += values[t]
            square += squares[t]
        if l2:
            needed = 0.5 * (float64(limit) + float64(row_codes.norms[row]))
        typical = min(factor, float64(FACTOR_TYPICAL_MAX))
        slack = np.sqrt(square + (rest * typical) ** 2) + rest * (factor - typical)
        # No branch: the processor would guess wrong for every other row of a close race.
        rows[kept], values[kept], squares[kept] = int32(row), value, square
        kept += uint64(value + slack + share * max(needed, 0.0) >= needed)
    return int64(kept)


@njit(nogil=True)
def pass_planes(
    row_codes: Any,
    coded: Any,
    q: Any,
    dimension: Any,
    l2: Any,
    candidates: Any,
    count: Any,
    limit: Any,
) -> Any:
    """Keep those of the first `count` rows of which a score of `limit` is possible.

    `candidates.products` are of the first plane; the others are read only for the rows that are
    left. Returns their number.
    """
    count = _sift(row_codes, coded, q, int64(0), l2, candidates, count, limit)
    for p in range(1, row_codes.layout.shape[0]):
        pad(candidates.rows, count)
        multiply(row_codes, coded, q, p, dimension, candidates.rows, count, candidates.products)
        count = _sift(row_codes, coded, q, p, l2, candidates, count, limit)
    return count


@njit(nogil=True)
def keep_possible(
    row_codes: Any,
    coded: Any,
    q: Any,
    l2: Any,
    members: Any,
    products: Any,
    count: Any,
    candidates: Any,
    limit: Any,
) -> Any:
    """Keep those of the first `count` members whose products reach the threshold of their group.

    `products` are of the first plane, and move with their members. Returns their number.
    """
    thresholds, groups, kept = candidates.thresholds, row_codes.groups, uint64(0)
    _set_thresholds(row_codes, coded, q, l2, limit, thresholds)
    for t in range(uint64(count)):
        row, product = members[t], products[t]
        # No branch: the processor would guess wrong for every other row of a close race.
        members[kept] = row
        products[kept] = product
        kept += uint64(product >= thresholds[groups[uint64(row)]])
    return int64(kept)
