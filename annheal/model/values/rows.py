"""What counts as n values: a list, numpy, Arrow, pandas; never a text, a mapping or a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa

from annheal.model.values.scalars import is_missing
from annheal.model.values.unfit import UnfitValue, shown

FIX = "give a list, a numpy or an Arrow array of one value a row"


def rows_of(values: Any) -> Any:
    """Return `values` as an Arrow array, a numpy array or a list, of as many values.

    Raises `UnfitValue` for what is no sequence of rows: a text, a mapping, a set, a single value.
    """
    if isinstance(values, pa.Array | list) or (isinstance(values, np.ndarray) and values.ndim):
        return values
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, str | bytes | bytearray):
        raise UnfitValue(f"is one text, {shown(values)}, not one value a row; {FIX}")
    if isinstance(values, Mapping):
        raise UnfitValue(f"is a mapping, not one value a row; {FIX}")
    if isinstance(values, Set):
        raise UnfitValue(f"is a set, whose values have no order; {FIX}")
    if isinstance(values, pa.Table | pa.RecordBatch) or _is_data_frame(values):
        raise UnfitValue(f"is a table, not one column; {FIX}")
    if isinstance(values, tuple | range):
        return list(values)
    try:
        found = _foreign(values)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UnfitValue(f"cannot be read as values: {error}; {FIX}") from error
    if found is not None:
        return found
    if isinstance(values, Sequence):
        return list(values)
    raise UnfitValue(f"is {shown(values)}, not one value a row; {FIX}")


def _is_data_frame(values: Any) -> bool:
    return hasattr(values, "columns") and hasattr(values, "__getitem__")


def _foreign(values: Any) -> Any:
    """Return values of another library by the protocol that it follows, None for no array."""
    if hasattr(values, "isna") and hasattr(values, "dtype"):  # a pandas Series or Index
        if values.dtype == object:
            gone = values.isna().tolist()
            return [None if gone[row] else value for row, value in enumerate(values.tolist())]
        return _whole(pa.array(values, from_pandas=True))
    if hasattr(values, "__arrow_c_array__"):
        return pa.array(values)
    if hasattr(values, "__arrow_c_stream__"):
        return _whole(pa.chunked_array(values))
    if hasattr(values, "__array__") or isinstance(values, memoryview) or _is_buffer(values):
        array = np.asarray(values)
        return array if array.ndim else None  # numpy's single values follow the protocol, too
    return None


def _whole(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_buffer(values: Any) -> bool:
    return type(values).__module__ == "array"


def listed(values: Any) -> list[Any]:
    """Return the values of `rows_of` as Python objects, None where one is missing."""
    if isinstance(values, list):
        return values
    if isinstance(values, np.ma.MaskedArray):
        flags = np.ma.getmaskarray(values).tolist()
        return [None if flag else value for flag, value in zip(flags, values.data, strict=True)]
    found: list[Any] = values.to_pylist() if isinstance(values, pa.Array) else values.tolist()
    return [None if is_missing(value) else value for value in found]
