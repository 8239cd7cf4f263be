"""Tests of single Arrow columns, as numpy masks: true where a value is there and passes.

A test is a function of a flat array of values that ignores which of them are null; nulls, lists
and dictionaries are dealt with here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import InvariantViolation

Mask: TypeAlias = npt.NDArray[np.bool_]
TextTest: TypeAlias = Callable[[Any], Any]
"""From an Arrow string array to an Arrow boolean array; null in, null or false out."""
NumberTest: TypeAlias = Callable[[npt.NDArray[Any]], Mask]
"""From numbers (int64, float64, microseconds, or 0 and 1 as bool) to a mask."""


def present_mask(column: Any) -> Mask:
    """Return where `column` has a value: (n,) bool. An empty list is a value."""
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        return _by_code(column, present_mask(column.dictionary))
    valid = _valid(column)
    return np.ones(len(column), dtype=np.bool_) if valid is None else valid


def text_mask(column: Any, test: TextTest) -> Mask:
    """Return where a text, or some element of a list of texts, passes: (n,) bool.

    A dictionary is tested once per distinct value, then spread over the rows by their codes.
    """
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _some_element(column, test)
    if pa.types.is_dictionary(column.type):
        return _by_code(column, text_mask(column.dictionary, test))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        answer = test(column)
        hits = _bits(answer.buffers()[1], answer.offset, len(answer))
        valid = _valid(answer)
        return hits if valid is None else hits & valid
    raise InvariantViolation(f"a filter compares text with a column of type {column.type}")


def number_mask(column: Any, test: NumberTest) -> Mask:
    """Return where a number, boolean or timestamp (as microseconds) passes: (n,) bool."""
    values: npt.NDArray[Any]
    if pa.types.is_boolean(column.type):
        values = _bits(column.buffers()[1], column.offset, len(column))
    elif pa.types.is_timestamp(column.type) and column.type.unit == "us":
        values = primitives(column, np.dtype(np.int64))
    elif pa.types.is_int64(column.type) or pa.types.is_float64(column.type):
        values = primitives(column, np.dtype(column.type.to_pandas_dtype()))
    else:
        raise InvariantViolation(f"a filter compares a number with a column of type {column.type}")
    hits = test(values)
    valid = _valid(column)
    return hits if valid is None else hits & valid


def _by_code(column: Any, passes: Mask) -> Mask:
    """Spread a mask over the dictionary to the rows of a dictionary column."""
    indices = column.indices
    valid = _valid(indices)
    winners = np.flatnonzero(passes)
    if len(winners) == 0:
        return np.zeros(len(column), dtype=np.bool_)
    codes = primitives(indices, np.dtype(indices.type.to_pandas_dtype()))
    if len(winners) == 1:
        hits: Mask = codes == winners[0].astype(codes.dtype)
        return hits if valid is None else hits & valid
    if valid is not None:
        codes = np.where(valid, codes, 0)  # what lies under a null is arbitrary
    hits = passes[codes]
    return hits if valid is None else hits & valid


def _some_element(column: Any, test: TextTest) -> Mask:
    """Return which lists hold an element that passes, by counting hits between the offsets."""
    offsets = column.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    hits_before = np.zeros(last - first + 1, dtype=np.int64)
    np.cumsum(text_mask(column.values.slice(first, last - first), test), out=hits_before[1:])
    bounds = hits_before[offsets - first]
    hits: Mask = bounds[1:] > bounds[:-1]
    valid = _valid(column)
    return hits if valid is None else hits & valid


def _valid(column: Any) -> Mask | None:
    """Return which values are not null, or None when all are."""
    if column.null_count == 0:
        return None
    return _bits(column.buffers()[0], column.offset, len(column))


def primitives(column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values of a fixed-width column without a copy, whatever lies under nulls."""
    if len(column) == 0:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(
        column.buffers()[1], dtype=dtype, count=len(column), offset=column.offset * dtype.itemsize
    )


def _bits(buffer: Any, offset: int, count: int) -> Mask:
    """Return `count` bits of an Arrow bitmap from bit `offset` on: (count,) bool, a copy."""
    if count == 0:
        return np.zeros(0, dtype=np.bool_)
    start, stop = offset // 8, (offset + count + 7) // 8
    octets = np.frombuffer(buffer, dtype=np.uint8, count=stop - start, offset=start)
    bits = np.unpackbits(octets, bitorder="little")[offset - start * 8 :][:count]
    return bits.view(np.bool_)
