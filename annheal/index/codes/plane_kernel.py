"""Compiled bounds of scores: planes of codes, read one after the other for ever fewer rows.

Imported by `annheal.index.codes.scan_kernel` alone, because importing numba takes most of a second.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float64, int32, int64, njit, uint64

from annheal.index.codes.byte_products import (
    HAS_VNNI,
    half_product,
    half_products,
    whole_product,
    whole_products,
)
from annheal.index.codes.code_layout import (
    BEGIN,
    FACTOR_TYPICAL_MAX,
    HALF_CENTER,
    HALF_STEP,
    HIGH,
    KIND,
    LINE_BYTES,
    PART,
    ROWS_AT_ONCE,
    ROWS_PADDING,
    SEEN,
    WHOLE,
    WIDTH,
)
from annheal.index.distances import REORDER_SUMS, prefetch

LINES_AHEAD = 128
"""Cache lines of codes asked for ahead. 50,000 of 100,000 lines took 0.072 ms, with 16 ahead 0.096,
without 0.114."""
CODE_CENTER = 128
"""What `whole_products` adds to a code."""


class Codes(NamedTuple):
    """The rows' codes as the kernel gets them: int8, plane after plane.

    `layout` (planes, COLUMNS) says what a plane holds. `scales` (parts, rows) are the floats that
    a code of one stands for, `factors` (parts, rows) of the slack for leaving out the parts after
    this one. `weights` (planes,): how the squared error of a part's codes grows with this plane.
    `norms` are squared lengths, for squared Euclidean distances; empty for inner products.

    Rows of a kind, uint8, are alike: `classes` (kinds, 4) float64 are the least and the largest
    scale of their first part, the largest of their factors, and the least of their norms.
    """

    planes: Any
    layout: Any
    scales: Any
    factors: Any
    weights: Any
    norms: Any
    kinds: Any
    classes: Any


class Asked(NamedTuple):
    """Queries as floats, and as int16 codes with one scale for all parts.

    `bytes` (n, 2, d) int8 are the codes again, as 256 * the first + the second; `sums` (n, parts)
    are those of the codes. A score is what the codes give plus `offsets` (n,). Errors: `rests` and
    `shares` (n, parts) of leaving out the parts after this one, at any row and per unit of the
    product looked for; `errors` (n, parts) of codes, per unit of a row's scale.
    """

    floats: Any
    codes: Any
    bytes: Any
    sums: Any
    scales: Any
    offsets: Any
    rests: Any
    shares: Any
    errors: Any


class Doubtful(NamedTuple):
    """Memory for the rows of a part of the members, of which the next plane is to be read.

    `values` and `squares` are the products of the planes so far, and the squared errors of their
    codes. `products` are of the plane just read, `thresholds` of the kinds of rows.
    """

    rows: Any
    products: Any
    values: Any
    squares: Any
    thresholds: Any


@njit(nogil=True)
def pad(rows: Any, count: Any) -> None:
    """Repeat the last of `count` rows: products are made of sixteen at a time."""
    if count:
        last = rows[uint64(count - 1)]
        for t in range(uint64(count), uint64(count + ROWS_PADDING)):
            rows[t] = last


@njit(nogil=True)
def _place(held: Any, p: Any, q: Any, dimension: Any) -> Any:
    """Return where plane `p` begins and how wide a row is, and where its part of the query is.

    The last two are the kind of the plane, and whether it is multiplied by lines.
    """
    base = uint64(0)
    for before in range(p):
        base += uint64(held.layout[before, WIDTH]) * uint64(held.scales.shape[1])
    width, kind = uint64(held.layout[p, WIDTH]), held.layout[p, KIND]
    begin = q * dimension + uint64(held.layout[p, BEGIN])
    high = q * dimension + begin
    by_lines = HAS_VNNI and width % uint64(LINE_BYTES) == uint64(0)
    return base, width, begin, high, high + dimension, kind, by_lines


@njit(nogil=True)
def _excess(held: Any, asked: Any, q: Any, p: Any, by_lines: Any) -> Any:
    """Return by how much all products with a plane are too large, modulo 2 ** 32."""
    center = int32(HALF_CENTER)
    if held.layout[p, KIND] == WHOLE:
        center = int32(CODE_CENTER) if by_lines else int32(0)
    return int32(asked.sums[q, held.layout[p, PART]] * center)


@njit(nogil=True)
def _ask_for(codes: Any, base: Any, width: Any, rows: Any, first: Any, stop: Any) -> None:
    for t in range(first, stop):
        start = base + uint64(rows[t]) * width
        for line in range(uint64(0), width, uint64(LINE_BYTES)):
            prefetch(codes, start + line)


@njit(nogil=True)
def multiply(
    held: Any, asked: Any, q: Any, p: Any, dimension: Any, rows: Any, count: Any, products: Any
) -> None:
    """Write the products of plane `p` of the first `count` rows with query `q` into `products`.

    Both have room for the padding.
    """
    base, width, begin, high, low, kind, by_lines = _place(held, p, q, dimension)
    lines = (width + uint64(LINE_BYTES - 1)) // uint64(LINE_BYTES)
    at_once, stop = uint64(ROWS_AT_ONCE), uint64(count)
    ahead = max(at_once, uint64(LINES_AHEAD) // lines // at_once * at_once)
    codes, bytes_ = held.planes, asked.bytes
    _ask_for(codes, base, width, rows, uint64(0), min(ahead, stop))
    for t in range(uint64(0), stop, at_once):
        if t + ahead + at_once <= stop:
            # Not a call: LLVM makes slower code of it.
            for line in range(uint64(0), width, uint64(LINE_BYTES)):
                for r in range(t + ahead, t + ahead + at_once):
                    prefetch(codes, base + uint64(rows[r]) * width + line)
        if by_lines and kind == WHOLE:
            whole_products(codes, base, rows, t, bytes_, high, low, width, products, t)
        elif by_lines:
            half_products(codes, base, rows, t, bytes_, high, low, width, products, t)
        else:
            for r in range(t, min(t + at_once, stop)):
                start = base + uint64(rows[r]) * width
                if kind == WHOLE:
                    products[r] = whole_product(codes, start, asked.codes, begin, width)
                else:
                    products[r] = half_product(codes, start, asked.codes, begin, width)
    excess = _excess(held, asked, q, p, by_lines)
    for t in range(stop):
        products[t] = int32(products[t] - excess)


@njit(nogil=True, fastmath=REORDER_SUMS, error_model="numpy")
def _set_thresholds(held: Any, asked: Any, q: Any, l2: Any, least: Any, thresholds: Any) -> None:
    """Write for each class of rows the least product with which a score of `least` is possible.

    Of a row of the class that has the largest slack and needs least.
    """
    kind, part, seen = held.layout[0, KIND], held.layout[0, PART], held.layout[0, SEEN]
    step = float64(HALF_STEP) if kind == HIGH else float64(1)
    unit = step * float64(asked.scales[q])
    error = np.sqrt(float64(held.weights[0])) * float64(asked.errors[q, part])
    rest, share = float64(asked.rests[q, seen]), float64(asked.shares[q, seen])
    lowest, highest = float64(-(2**31)), float64(2**31 - 1)
    for c in range(uint64(thresholds.size)):
        smallest, largest = held.classes[c, 0], held.classes[c, 1]
        factor, norm = held.classes[c, 2], held.classes[c, 3]
        needed = float64(least)
        if l2:
            needed = 0.5 * (needed + norm)
        typical = min(factor, float64(FACTOR_TYPICAL_MAX))
        slack = np.sqrt((error * largest) ** 2 + (rest * typical) ** 2) + rest * (factor - typical)
        lacking = needed - share * max(needed, 0.0) - slack
        product = lacking / (unit * (largest if lacking > 0.0 else smallest))
        thresholds[c] = int32(np.floor(min(max(product, lowest), highest)))


@njit(nogil=True)
def _sift(
    held: Any, asked: Any, q: Any, p: Any, l2: Any, doubtful: Any, count: Any, least: Any
) -> Any:
    """Keep those of the first `count` rows of which a score of `least` is possible after plane `p`.

    Returns their number.
    """
    part, seen = held.layout[p, PART], held.layout[p, SEEN]
    step = float64(HALF_STEP) if held.layout[p, KIND] == HIGH else float64(1)
    unit, error = step * float64(asked.scales[q]), float64(asked.errors[q, part])
    weight = float64(held.weights[p]) * error * error
    rest, share = float64(asked.rests[q, seen]), float64(asked.shares[q, seen])
    needed, kept = float64(least), uint64(0)
    rows, values, squares = doubtful.rows, doubtful.values, doubtful.squares
    for t in range(uint64(count)):
        row = uint64(rows[t])
        scale, factor = float64(held.scales[part, row]), float64(held.factors[seen, row])
        value, square = float64(doubtful.products[t]) * unit * scale, weight * scale * scale
        if p:
            value += values[t]
            square += squares[t]
        if l2:
            needed = 0.5 * (float64(least) + float64(held.norms[row]))
        typical = min(factor, float64(FACTOR_TYPICAL_MAX))
        slack = np.sqrt(square + (rest * typical) ** 2) + rest * (factor - typical)
        # No branch: the processor would guess wrong for every other row of a close race.
        rows[kept], values[kept], squares[kept] = int32(row), value, square
        kept += uint64(value + slack + share * max(needed, 0.0) >= needed)
    return int64(kept)


@njit(nogil=True)
def pass_planes(
    held: Any, asked: Any, q: Any, dimension: Any, l2: Any, doubtful: Any, count: Any, least: Any
) -> Any:
    """Keep those of the first `count` rows of which a score of `least` is possible.

    `doubtful.products` are of the first plane; the others are read only for the rows that are left.
    Returns their number.
    """
    count = _sift(held, asked, q, int64(0), l2, doubtful, count, least)
    for p in range(1, held.layout.shape[0]):
        pad(doubtful.rows, count)
        multiply(held, asked, q, p, dimension, doubtful.rows, count, doubtful.products)
        count = _sift(held, asked, q, p, l2, doubtful, count, least)
    return count


@njit(nogil=True)
def keep_possible(
    held: Any,
    asked: Any,
    q: Any,
    l2: Any,
    members: Any,
    products: Any,
    count: Any,
    doubtful: Any,
    least: Any,
) -> Any:
    """Keep those of the first `count` members whose products reach the threshold of their kind.

    `products` are of the first plane, and move with their members. Returns their number.
    """
    thresholds, kinds, kept = doubtful.thresholds, held.kinds, uint64(0)
    _set_thresholds(held, asked, q, l2, least, thresholds)
    for t in range(uint64(count)):
        row, product = members[t], products[t]
        # No branch: the processor would guess wrong for every other row of a close race.
        members[kept] = row
        products[kept] = product
        kept += uint64(product >= thresholds[kinds[uint64(row)]])
    return int64(kept)
