"""The values of one attribute as an Arrow column of its declared type, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from annheal.model.collection import AttributeType
from annheal.model.records import ARROW_TYPES
from annheal.model.values.moments import FIX as MOMENT_FIX
from annheal.model.values.moments import datetime64_us
from annheal.model.values.rows import listed, rows_of
from annheal.model.values.scalars import EXACT_FLOAT_MAX, fit_scalar
from annheal.model.values.unfit import UnfitValue

Column: TypeAlias = Any
"""A `pa.Array`; its type depends on what was given, which type checkers cannot follow."""

# The kernels take more types than the stubs say.
pc: Any = pyarrow.compute
types: Any = pa.types
_arrow: Any = pa

_PLAIN: Final[dict[AttributeType, frozenset[type]]] = {
    AttributeType.BOOL: frozenset({bool, type(None)}),
    AttributeType.INT64: frozenset({int, type(None)}),
    AttributeType.FLOAT64: frozenset({float, type(None)}),
    AttributeType.KEYWORD: frozenset({str, type(None)}),
}
"""Python types that Arrow reads as they are, without a look at each value."""
_TAKES: Final = {
    AttributeType.BOOL: "true and false; numbers are none",
    AttributeType.INT64: "whole numbers",
    AttributeType.FLOAT64: "numbers",
    AttributeType.KEYWORD: "texts",
    AttributeType.KEYWORD_LIST: "lists of texts",
    AttributeType.TIMESTAMP: f"moments; {MOMENT_FIX}",
}


def attribute_column(values: Any, kind: AttributeType) -> Column:
    """Return n values as an Arrow array of `ARROW_TYPES[kind]`, null where one is missing.

    `values` is a list, a numpy or Arrow array, a pandas Series, or whatever follows one of their
    protocols. Missing are None, Arrow's nulls, NaT, masked values, and what pandas calls missing in
    a Series (so NaN too); a NaN elsewhere is a number that no type takes. Raises `UnfitValue` that
    names the row for a value that the type does not hold exactly.
    """
    given = rows_of(values)
    try:
        if isinstance(given, np.ndarray):
            return _of_numpy(given, kind)
        if isinstance(given, pa.Array):
            return _of_arrow(given, kind)
    except pa.ArrowException as error:  # a type that Arrow has and its kernels have not
        raise UnfitValue(f"cannot be read as {kind.value}: {error}") from error
    return _of_list(given, kind)


def _of_list(values: list[Any], kind: AttributeType) -> Column:
    if kind in _PLAIN and set(map(type, values)) <= _PLAIN[kind]:
        try:
            column = pa.array(values, type=ARROW_TYPES[kind])
        except (OverflowError, UnicodeEncodeError, pa.ArrowException):
            pass  # value by value, to name the row
        else:
            return _finite(column) if kind is AttributeType.FLOAT64 else column
    fitted = []
    for row, value in enumerate(values):
        try:
            fitted.append(fit_scalar(value, kind))
        except UnfitValue as error:
            raise error.in_row(row) from None
    return pa.array(fitted, type=ARROW_TYPES[kind])


def _of_numpy(values: npt.NDArray[Any], kind: AttributeType) -> Column:
    if values.ndim != 1 and not (values.ndim == 2 and kind is AttributeType.KEYWORD_LIST):
        raise UnfitValue(f"has the shape {values.shape}; give one value a row")
    letter = values.dtype.kind
    if letter == "M":
        _check_kind(kind is AttributeType.TIMESTAMP, values.dtype, kind)
        return _moments(values)
    simple = letter in "biu" or (letter == "f" and values.dtype.itemsize <= 8)
    if not simple or values.ndim != 1:
        return _of_list(listed(values), kind)
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    plain = np.asarray(values).astype(values.dtype.newbyteorder("="), copy=False)
    return _of_arrow(pa.array(np.ascontiguousarray(plain), mask=mask), kind)


def _of_arrow(column: Column, kind: AttributeType) -> Column:
    column = _unwrapped(column)
    if types.is_null(column.type):
        return _arrow.nulls(len(column), type=ARROW_TYPES[kind])
    return _FROM_ARROW[kind](column)


def _unwrapped(column: Column) -> Column:
    """Return the plain values of dictionaries and run-length encoding."""
    while True:
        if types.is_dictionary(column.type) and types.is_string_view(column.type.value_type):
            column = pa.array(column.to_pylist(), pa.string())  # Arrow 26 cannot decode it
        elif types.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def _bools(column: Column) -> Column:
    _check_kind(types.is_boolean(column.type), column.type, AttributeType.BOOL)
    return column


def _int64s(column: Column) -> Column:
    if types.is_integer(column.type) and column.type != pa.uint64():
        return column.cast(pa.int64())
    if types.is_uint64(column.type):
        greatest = pa.scalar(2**63 - 1, pa.uint64())
        return _by_value_unless(pc.less_equal(column, greatest), column, AttributeType.INT64)
    if types.is_floating(column.type):
        numbers = column.cast(pa.float64())
        whole = pc.and_(
            pc.equal(pc.round(numbers), numbers),
            pc.less_equal(pc.abs(numbers), float(EXACT_FLOAT_MAX)),
        )
        return _by_value_unless(whole, column, AttributeType.INT64)
    _check_kind(types.is_decimal(column.type), column.type, AttributeType.INT64)
    return _of_list(column.to_pylist(), AttributeType.INT64)


def _float64s(column: Column) -> Column:
    if types.is_floating(column.type):
        return _finite(column.cast(pa.float64()))
    if types.is_integer(column.type):
        limits = np.iinfo(column.type.to_pandas_dtype())
        high = pa.scalar(min(EXACT_FLOAT_MAX, int(limits.max)), column.type)
        low = pa.scalar(max(-EXACT_FLOAT_MAX, int(limits.min)), column.type)
        exact = pc.and_(pc.less_equal(column, high), pc.greater_equal(column, low))
        return _by_value_unless(exact, column, AttributeType.FLOAT64)
    _check_kind(types.is_decimal(column.type), column.type, AttributeType.FLOAT64)
    return _of_list(column.to_pylist(), AttributeType.FLOAT64)


def _by_value_unless(plain: Any, column: Column, kind: AttributeType) -> Column:
    """Return the column cast when `plain` holds in all rows, else look at each value."""
    if pc.all(plain, min_count=0).as_py():
        return column.cast(ARROW_TYPES[kind])
    return _of_list(column.to_pylist(), kind)


def _finite(column: Column) -> Column:
    finite = pc.is_finite(column)
    if not pc.all(finite, min_count=0).as_py():
        row = int(pc.index(finite, False).as_py())
        raise UnfitValue(
            f"is {column[row].as_py()}; send a finite number, or None where there is none", row=row
        )
    return column


def _keywords(column: Column) -> Column:
    _check_kind(_is_text(column.type), column.type, AttributeType.KEYWORD)
    return _valid_texts(column).cast(pa.string())


def _keyword_lists(column: Column) -> Column:
    kind = column.type
    is_view = types.is_list_view(kind) or types.is_large_list_view(kind)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    _check_kind(is_list or is_view, kind, AttributeType.KEYWORD_LIST)
    texts = kind.value_type
    if is_view or not _is_text(texts):  # Arrow 26 casts list views to other values
        inner = texts.value_type if types.is_dictionary(texts) else texts
        _check_kind(_is_text(inner) or types.is_null(inner), kind, AttributeType.KEYWORD_LIST)
        return _of_list(column.to_pylist(), AttributeType.KEYWORD_LIST)
    lists = _valid_texts(column).cast(ARROW_TYPES[AttributeType.KEYWORD_LIST])
    if pc.list_flatten(lists).null_count:
        return _of_list(lists.to_pylist(), AttributeType.KEYWORD_LIST)
    return lists


def _timestamps(column: Column) -> Column:
    kind = column.type
    if _is_text(kind):
        return _of_list(_valid_texts(column).to_pylist(), AttributeType.TIMESTAMP)
    if types.is_date32(kind):
        column, unit = column.view(pa.int32()).cast(pa.int64()), "D"
    elif types.is_date64(kind):
        column, unit = column.view(pa.int64()), "ms"
    else:
        _check_kind(types.is_timestamp(kind), kind, AttributeType.TIMESTAMP)
        column, unit = column.view(pa.int64()), kind.unit
    ticks = np.asarray(pc.fill_null(column, 0)).view(f"datetime64[{unit}]").copy()
    ticks[np.asarray(column.is_null())] = np.datetime64("NaT")
    return _moments(ticks)


def _moments(moments: npt.NDArray[np.datetime64]) -> Column:
    if isinstance(moments, np.ma.MaskedArray):
        gone = np.ma.getmaskarray(moments)
        moments = np.where(gone, np.datetime64("NaT"), moments.data)
    numbers, present = datetime64_us(np.ascontiguousarray(moments))
    column: Column = pa.array(numbers, mask=~present)
    return column.view(ARROW_TYPES[AttributeType.TIMESTAMP])


def _is_text(kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _valid_texts(column: Column) -> Column:
    """Return the column; Arrow takes any bytes for text, so they are looked at."""
    try:
        column.validate(full=True)
    except pa.ArrowException as error:
        raise UnfitValue(f"holds bytes that are no Unicode text: {error}") from error
    return column


def _check_kind(fits: Any, given: Any, kind: AttributeType) -> None:
    if not fits:
        raise UnfitValue(f"has the type {given}, but a {kind.value} takes {_TAKES[kind]}")


_FROM_ARROW: Final[dict[AttributeType, Callable[[Column], Column]]] = {
    AttributeType.BOOL: _bools,
    AttributeType.INT64: _int64s,
    AttributeType.FLOAT64: _float64s,
    AttributeType.KEYWORD: _keywords,
    AttributeType.KEYWORD_LIST: _keyword_lists,
    AttributeType.TIMESTAMP: _timestamps,
}
