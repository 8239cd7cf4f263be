"""The arrays that Python code passes to the kernels of `codes`, in groups with names.

A kernel takes the arrays one by one: numba takes 7 us more for a call with four named tuples of
eight arrays than for the 32 arrays (ADR 18). So the caller unpacks these groups, the kernel puts
them together again, and the signature names the types of the same fields in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class RowCodeArrays(NamedTuple):
    """The codes of all rows of an index, int8, plane after plane, and what their bounds need.

    Attributes:
        planes: codes, int8, flat: plane after plane, row after row.
        layout: what each plane holds, (planes, COLUMNS) int64, see `codes.code_layout`.
        scales: the float that a code of one stands for, (parts, rows) float32.
        factors: factor of the slack for the parts after this one, (parts, rows) float32.
        weights: what a plane adds to the squared error of its part's codes, (planes,) float32.
        norms: squared lengths of rows, (rows,) float32, for squared distances; else empty.
        groups: the group of each row, (rows,) uint8. Rows of one group share a threshold.
        group_bounds: least and largest scale of the first part, largest factor and least norm of
            the rows of a group, (groups, 4) float64.
    """

    planes: Any
    layout: Any
    scales: Any
    factors: Any
    weights: Any
    norms: Any
    groups: Any
    group_bounds: Any


class CodedQueries(NamedTuple):
    """Queries as float32 vectors and as 16-bit codes with one scale for all parts.

    Attributes:
        vectors: the queries as they were given, (n * d,) float32.
        codes: their codes, (n * d,) int16.
        bytes: the codes as 256 * the first + the second byte, (n * 2 * d,) int8.
        sums: sums of the codes of each part, (n, parts) int32.
        scales: the float that a code of one stands for, (n,) float32.
        offsets: what is added to a product to get the score, (n,) float32.
        rests: error of leaving out the parts after this one, for a row that has nothing to do
            with the query, (n, parts) float32.
        shares: the share of the whole product that the parts after this one are expected to
            hold for a row near the query, (n, parts) float32.
        errors: error of the codes of a part, per unit of a row's scale, (n, parts) float32.
    """

    vectors: Any
    codes: Any
    bytes: Any
    sums: Any
    scales: Any
    offsets: Any
    rests: Any
    shares: Any
    errors: Any


class MatchingRows(NamedTuple):
    """Memory for the m rows of a bitmap.

    Attributes:
        rows: the rows, (m + 15,) int32.
        products: their products with the first plane, (m + 15,) int32.
        shortlisted: rows to be compared by their vectors, (m + r,) int32, for r candidates.
        upper_bounds: upper bounds of their scores, (m + r,) float32.
    """

    rows: Any
    products: Any
    shortlisted: Any
    upper_bounds: Any


class Candidates(NamedTuple):
    """Memory for the rows of which the next plane is to be read, r at a time.

    Attributes:
        rows: the rows, (r + 15,) int32.
        products: their products with the plane just read, (r + 15,) int32.
        values: their products with all planes so far, (r,) float64.
        squares: the squared errors of their codes so far, (r,) float64.
        thresholds: the least product with the first plane, for each group of rows, int32.
    """

    rows: Any
    products: Any
    values: Any
    squares: Any
    thresholds: Any
