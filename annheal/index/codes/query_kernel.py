"""Compiled coding of queries: rotation, codes and errors in one call.

Imported where machine code is loaded: importing numba takes a good part of a second.

A single query was coded by numpy in 0.05 to 0.08 ms, most of it for some twenty calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, float64, int16, int32, int64, njit, uint64

from annheal.index.distances import REORDER_SUMS, element

BYTE = 256
SCALE_MIN = np.float32(1e-42)
"""Of a query of zeros, or next to nothing: below it a float32 has too few digits to divide by."""


@njit(nogil=True, fastmath=REORDER_SUMS)
def _rotate(query: Any, mean: Any, axes: Any, less_mean: Any, rotated: Any) -> None:
    """Write the components of a query along the principal axes, which are rows, into `rotated`."""
    dimension = uint64(rotated.size)
    if less_mean:
        query = query - mean
    if axes.size == 0:
        rotated[:] = query
        return
    for j in range(uint64(0), dimension):
        start, total = j * dimension, float32(0)
        for i in range(uint64(0), dimension):
            total += query[i] * element(axes, start + i)
        rotated[j] = total


@njit(nogil=True, fastmath=REORDER_SUMS, error_model="numpy")
def _encode(rotated: Any, code_max: Any, codes: Any, bytes_: Any) -> Any:
    """Write the codes of a query, and their bytes; return what a code of one stands for."""
    dimension = uint64(rotated.size)
    largest = float32(0)
    for j in range(uint64(0), dimension):
        largest = max(largest, abs(rotated[j]))
    scale = max(largest / float32(code_max), SCALE_MIN)
    for j in range(uint64(0), dimension):
        code = int32(np.rint(rotated[j] / scale))
        high = (code + int32(BYTE // 2)) >> int32(8)
        codes[j] = int16(code)
        bytes_[0, j] = high
        bytes_[1, j] = code - high * int32(BYTE)
    return scale


@njit(nogil=True, error_model="numpy")
def code_queries(
    queries: Any,
    mean: Any,
    axes: Any,
    deviations: Any,
    edges: Any,
    code_slack: Any,
    rest_slacks: Any,
    code_max: Any,
    offset_error: Any,
    l2: Any,
    codes: Any,
    bytes_: Any,
    sums: Any,
    scales: Any,
    offsets: Any,
    rests: Any,
    shares: Any,
    errors: Any,
) -> None:
    """Fill the arrays of `code_arrays.CodedQueries`, which begin with `codes`.

    `queries` (n, d); `mean` (d,) is taken off them for squared distances, and their product with it
    is the offset otherwise. `axes` (d * d,) are the bits of float16 principal axes,
    empty for none; `deviations` (d,) the standard deviations of rows along them; `edges`
    (parts + 1,) where the parts begin.
    """
    dimension, parts = queries.shape[1], int64(edges.size) - 1
    rotated = np.empty(dimension, dtype=np.float32)
    for n in range(queries.shape[0]):
        query = queries[n]
        _rotate(query, mean, axes, l2, rotated)
        scales[n] = _encode(rotated, code_max, codes[n], bytes_[n])
        whole = np.finfo(np.float64).tiny
        for j in range(dimension):
            whole += float64(rotated[j]) * float64(rotated[j])
        after, spread = float64(0), float64(0)
        for part in range(parts - 1, -1, -1):
            rests[n, part] = rest_slacks[part] * np.sqrt(spread)
            shares[n, part] = after / whole
            length, total = float64(0), int32(0)
            for j in range(edges[part], edges[part + 1]):
                square = float64(rotated[j]) * float64(rotated[j])
                length += square
                spread += square * float64(deviations[j]) * float64(deviations[j])
                total += int32(codes[n, j])
            errors[n, part] = code_slack * np.sqrt(length)
            sums[n, part] = total
            after += length
        offset, squares, means = float64(0), float64(0), float64(0)
        for j in range(dimension):
            if l2:
                # -|x - q|^2 = 2 x'q' - |x'|^2 - |q'|^2, with x' = x - mean.
                less = float64(query[j]) - float64(mean[j])
                offset -= less * less
            else:
                offset += float64(query[j]) * float64(mean[j])
                squares += float64(query[j]) * float64(query[j])
                means += float64(mean[j]) * float64(mean[j])
        offsets[n] = offset + offset_error * np.sqrt(squares) * np.sqrt(means)
