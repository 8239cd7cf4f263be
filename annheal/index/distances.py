"""Distances between a query and stored rows, for the compiled kernels of this package.

Lower is better: negated inner products or squared Euclidean distances. The vectors of all rows are
one flat array, `stored`; a row is given by the position of its first element. Queries are another,
`queries`; `query` is the position where one begins. Positions are unsigned: numba lets a negative
index count from the end, and LLVM does not use wide loads for such code.

The type of `stored` is float32, uint16 for the bits of float16 numbers, or uint8, with queries from
`annheal.index.quantized.QuantizedVectors.prepared`. numba compiles each caller once for each type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import float32, int32, int64, njit, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

REORDER_SUMS = {"reassoc", "contract", "nsz"}
"""What the compiler may assume: sums in any order, fused multiply-add; infinities stay real."""

PREFETCH_AHEAD_ROWS = 8
LINE_BYTES = 64
FLOAT16_IN_HARDWARE = bool(get_host_cpu_features().get("f16c"))
"""Without it LLVM calls a conversion function that does not exist."""
PREFETCH_LINES = 4
"""Cache lines of a row that are prefetched; the processor prefetches the others by itself.

Reading 20,000 scattered rows of 384 floats took 1.7 ms with prefetching and 2.8 ms without.
"""


def _prefetching(locality: int) -> Any:
    """Return an intrinsic that prefetches the cache line of `array[position]`; numba has none.

    With `locality` 3 the line is kept in all levels of the cache, with 0 it is used once.
    """

    def prefetching(typing_context: Any, array: Any, position: Any) -> Any:
        return types.void(array, types.uint64), _emit_prefetch(locality)

    return intrinsic(prefetching)


def _emit_prefetch(locality: int) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(view.data, [arguments[1]])
        bytes_type, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [bytes_type, flag, flag, flag]),
            "llvm.prefetch.p0",
        )
        read, level, as_data = flag(0), flag(locality), flag(1)
        builder.call(function, [builder.bitcast(address, bytes_type), read, level, as_data])
        return context.get_dummy_value()

    return emit


prefetch: Any = _prefetching(3)
prefetch_once: Any = _prefetching(0)


def _element(typing_context: Any, stored: Any, position: Any) -> Any:
    """Return `stored[position]`, a float32, bits of a finite float16 or a byte, as a float32."""
    signature = types.float32(stored, types.uint64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        value = builder.load(builder.gep(view.data, [arguments[1]]), align=1)
        if stored.dtype == types.float32:
            return value
        if stored.dtype == types.uint8:
            return builder.uitofp(value, ir.FloatType())
        if FLOAT16_IN_HARDWARE:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return _float16_by_shifts(builder, value)

    return signature, emit


def _float16_by_shifts(builder: Any, value: Any) -> Any:
    """Return the bits of a finite float16 as a float32, on any processor.

    Shifts exponent and mantissa to where a float32 has them and multiplies by 2 ** (127 - 15),
    which is correct for subnormal numbers too.
    """
    word, real = ir.IntType(32), ir.FloatType()
    bits = builder.zext(value, word)
    magnitude = builder.shl(builder.and_(bits, word(0x7FFF)), word(13))
    scaled = builder.fmul(builder.bitcast(magnitude, real), ir.Constant(real, 2.0**112))
    sign = builder.shl(builder.and_(bits, word(0x8000)), word(16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, word), sign), real)


def _step(typing_context: Any, stored: Any, queries: Any, position: Any) -> Any:
    """Return `queries[position]`, the step of a dimension, if `stored` has bytes, otherwise 1."""
    signature = types.float32(stored, queries, types.uint64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if stored.dtype != types.uint8:
            return ir.Constant(ir.FloatType(), 1.0)
        view = context.make_array(signature.args[1])(context, builder, arguments[1])
        return builder.load(builder.gep(view.data, [arguments[2]]), align=1)

    return signature, emit


def _line_elements(typing_context: Any, stored: Any) -> Any:
    """Return how many elements of `stored` are in a cache line."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.IntType(64)(LINE_BYTES * 8 // stored.dtype.bitwidth)

    return types.uint64(stored), emit


element: Any = intrinsic(_element)
step: Any = intrinsic(_step)
line_elements: Any = intrinsic(_line_elements)


@njit(fastmath=REORDER_SUMS, nogil=True)
def prefetch_row(stored: Any, start: Any, dimension: Any) -> None:
    """Prefetch the first cache lines of the row at `start`."""
    line = line_elements(stored)
    end = min(dimension, line * uint64(PREFETCH_LINES))
    offset = uint64(0)
    while offset < end:
        prefetch(stored, start + offset)
        offset += line


@njit(fastmath=REORDER_SUMS, nogil=True)
def one_distance(stored: Any, start: Any, queries: Any, query: Any, dimension: Any, l2: Any) -> Any:
    """Return the distance of the row at `start`."""
    total = float32(0)
    if l2:
        steps = uint64(queries.size) - dimension
        for j in range(uint64(0), dimension):
            scale = step(stored, queries, steps + j)
            difference = queries[query + j] - element(stored, start + j) * scale
            total += difference * difference
        return total
    for j in range(uint64(0), dimension):
        total += queries[query + j] * element(stored, start + j)
    return -total


@njit(fastmath=REORDER_SUMS, nogil=True)
def four_distances(
    stored: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    queries: Any,
    query: Any,
    dimension: Any,
    l2: Any,
) -> Any:
    """Return the distances of the rows at `a`, `b`, `c`, `d`; the query is read once for all."""
    sum_a, sum_b, sum_c, sum_d = float32(0), float32(0), float32(0), float32(0)
    if l2:
        steps = uint64(queries.size) - dimension
        for j in range(uint64(0), dimension):
            value, scale = queries[query + j], step(stored, queries, steps + j)
            in_a = value - element(stored, a + j) * scale
            in_b = value - element(stored, b + j) * scale
            in_c = value - element(stored, c + j) * scale
            in_d = value - element(stored, d + j) * scale
            sum_a += in_a * in_a
            sum_b += in_b * in_b
            sum_c += in_c * in_c
            sum_d += in_d * in_d
        return sum_a, sum_b, sum_c, sum_d
    for j in range(uint64(0), dimension):
        value = queries[query + j]
        sum_a += value * element(stored, a + j)
        sum_b += value * element(stored, b + j)
        sum_c += value * element(stored, c + j)
        sum_d += value * element(stored, d + j)
    return -sum_a, -sum_b, -sum_c, -sum_d


@njit(fastmath=REORDER_SUMS, nogil=True)
def distances_of(
    stored: Any,
    rows: Any,
    count: Any,
    queries: Any,
    query: Any,
    dimension: Any,
    l2: Any,
    distances: Any,
) -> None:
    """Write the distances of the row numbers `rows[:count]` into `distances`, with prefetching."""
    ahead = uint64(PREFETCH_AHEAD_ROWS)
    i = uint64(0)
    total = uint64(count)
    while i < min(ahead, total):
        prefetch_row(stored, uint64(rows[i]) * dimension, dimension)
        i += uint64(1)
    i = uint64(0)
    while i + uint64(4) <= total:
        for t in range(uint64(0), uint64(4)):
            if i + ahead + t < total:
                prefetch_row(stored, uint64(rows[i + ahead + t]) * dimension, dimension)
        a, b, c, d = four_distances(
            stored,
            uint64(rows[i]) * dimension,
            uint64(rows[i + uint64(1)]) * dimension,
            uint64(rows[i + uint64(2)]) * dimension,
            uint64(rows[i + uint64(3)]) * dimension,
            queries,
            query,
            dimension,
            l2,
        )
        distances[i] = a
        distances[i + uint64(1)] = b
        distances[i + uint64(2)] = c
        distances[i + uint64(3)] = d
        i += uint64(4)
    while i < total:
        distances[i] = one_distance(
            stored, uint64(rows[i]) * dimension, queries, query, dimension, l2
        )
        i += uint64(1)


@njit(nogil=True)
def key_of(distance: Any, row: Any) -> Any:
    """Return an int64 that orders by distance, then row number; its lowest bit is unused."""
    bits = np.float32(distance).view(np.int32)
    if bits < 0:
        bits ^= int32(0x7FFFFFFF)
    return (int64(bits) << int64(32)) | (int64(row) << int64(1))


@njit(nogil=True)
def distance_in(key: Any) -> Any:
    """Return the distance that `key_of` put into a key."""
    bits = int32(key >> int64(32))
    if bits < 0:
        bits ^= int32(0x7FFFFFFF)
    return np.int32(bits).view(np.float32)


@njit(nogil=True)
def row_in(key: Any) -> Any:
    """Return the row that `key_of` put into a key."""
    return (key & int64(0xFFFFFFFF)) >> int64(1)


@njit(nogil=True)
def insert(pool: Any, size: Any, capacity: Any, key: Any) -> Any:
    """Insert `key` into the ascending `pool[:size]`, dropping the last key of a full pool.

    Returns its position, or `capacity` if it was not inserted: the pool is full of lower keys.
    """
    if size == capacity:
        if key >= pool[uint64(size - 1)]:
            return capacity
        size -= 1
    low, high = int64(0), int64(size)
    while low < high:
        middle = (low + high) >> int64(1)
        if pool[uint64(middle)] < key:
            low = middle + 1
        else:
            high = middle
    j = int64(size)
    while j > low:
        pool[uint64(j)] = pool[uint64(j - 1)]
        j -= 1
    pool[uint64(low)] = key
    return low
