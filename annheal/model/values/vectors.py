"""Vectors as one matrix: n rows of equally many numbers, none of them missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from annheal.model.values.rows import rows_of
from annheal.model.values.scalars import is_missing, is_whole_number
from annheal.model.values.unfit import UnfitValue, shown

# The kernels take more types than the stubs say.
pc: Any = pyarrow.compute
types: Any = pa.types

_MEND = "give (n, d) numbers: numpy, nested lists or an Arrow column of lists"


def vector_matrix(vectors: Any) -> npt.NDArray[Any]:
    """Return n vectors as an (n, d) array of whatever number type they have.

    Takes (n, d) numpy arrays and what turns into them, n sequences of d numbers, and Arrow columns
    of lists. Raises `UnfitValue` that names the row for a missing vector or number, for a row that
    is longer or shorter than the first, and for what is no number (a bool is none).
    """
    if hasattr(vectors, "columns") and hasattr(vectors, "to_numpy"):  # a DataFrame of numbers
        return _checked(np.asarray(vectors.to_numpy()))
    try:
        given = rows_of(vectors)
    except UnfitValue as error:
        raise UnfitValue(f"{error.reason.partition(';')[0]}; {_MEND}") from None
    if isinstance(given, pa.Array):
        try:
            return _of_arrow(given)
        except pa.ArrowException as error:
            raise UnfitValue(f"cannot be read as vectors: {error}; {_MEND}") from error
    if isinstance(given, np.ndarray):
        if given.dtype != object or given.ndim != 1:
            return _checked(given)
        given = given.tolist()
    return _of_rows(given)


def matrix_with_gaps(vectors: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Return n vectors as `vector_matrix` does, and which of them (n,) are missing; None: none is.

    Missing are None, what stands for it in Arrow and pandas, and rows of a numpy array that are
    masked as a whole; such rows are zeros. (n, 0) if all are missing.
    """
    if hasattr(vectors, "columns") and hasattr(vectors, "to_numpy"):
        return vector_matrix(vectors), None
    if isinstance(vectors, np.ma.MaskedArray) and vectors.ndim == 2:
        masked: npt.NDArray[np.bool_] = np.asarray(np.ma.getmaskarray(vectors).all(axis=1))
        filled = np.ma.masked_array(vectors, copy=True)
        filled[masked] = 0
        return vector_matrix(filled), masked if masked.any() else None
    try:
        given = rows_of(vectors)
    except UnfitValue as error:
        raise UnfitValue(f"{error.reason.partition(';')[0]}; {_MEND}") from None
    if isinstance(given, np.ndarray) and (given.dtype != object or given.ndim != 1):
        return vector_matrix(given), None
    if isinstance(given, pa.Array):
        absent = np.asarray(given.is_null())
        present: Any = given.filter(pa.array(~absent))
    else:
        absent = np.array([one is None or is_missing(one) for one in given], dtype=np.bool_)
        present = [one for one, gone in zip(given, absent, strict=True) if not gone]
    if not absent.any():
        return vector_matrix(given), None
    if absent.all():
        return np.empty((len(absent), 0), dtype=np.float32), absent
    rows = np.flatnonzero(~absent)
    try:
        matrix = vector_matrix(present)
    except UnfitValue as error:
        raise (error if error.row is None else error.in_row(int(rows[error.row]))) from None
    whole = np.zeros((len(absent), matrix.shape[1]), dtype=matrix.dtype)
    whole[rows] = matrix
    return whole, absent


def single_vector(vector: Any) -> npt.NDArray[Any]:
    """Return d numbers as (d,); raises `UnfitValue` as `vector_matrix` does."""
    given = rows_of(vector)
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise UnfitValue(f"must be one vector (d,), not of shape {given.shape}")
    try:
        matrix = vector_matrix([given])
    except UnfitValue as error:
        raise UnfitValue(error.reason, part=error.part) from None
    row: npt.NDArray[Any] = matrix[0]
    return row


def _of_arrow(column: Any) -> npt.NDArray[Any]:
    if isinstance(column, pa.FixedShapeTensorArray):
        column = column.storage
    if types.is_list_view(column.type) or types.is_large_list_view(column.type):
        return _of_rows(column.to_pylist())  # Arrow 26 casts list views to other values
    kind = column.type
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not listed or not _is_number(kind.value_type):
        raise UnfitValue(f"has the Arrow type {kind}; {_MEND}")
    if column.null_count:
        raise UnfitValue("has no vector", row=int(pc.index(column.is_null(), True).as_py()))
    if not len(column):
        return np.empty((0, 0), dtype=np.float32)
    lengths = np.asarray(pc.list_value_length(column))
    _check_lengths(lengths)
    flat = column.flatten()
    if flat.null_count:
        place = int(pc.index(flat.is_null(), True).as_py())
        row, position = divmod(place, int(lengths[0]))
        raise UnfitValue(f"has no number at position {position}", row=row)
    return np.asarray(flat).reshape(len(column), -1)


def _of_rows(rows: Sequence[Any]) -> npt.NDArray[Any]:
    if not len(rows):
        return np.empty((0, 0), dtype=np.float32)
    arrays = [_row(values, row) for row, values in enumerate(rows)]
    _check_lengths(np.array([len(values) for values in arrays]))
    return np.stack(arrays)


def _row(values: Any, row: int) -> npt.NDArray[Any]:
    if isinstance(values, pa.ListScalar):
        values = values.values
    try:
        values = rows_of(values)
    except UnfitValue:
        raise UnfitValue(f"is {shown(values)}, not a vector; {_MEND}", row=row) from None
    if isinstance(values, list):
        return _listed_row(values, row)
    if isinstance(values, pa.Array) and values.null_count:
        position = int(pc.index(values.is_null(), True).as_py())
        raise UnfitValue(f"has no number at position {position}", row=row)
    array = np.asarray(values)
    if array.dtype == object:
        return _listed_row(array.tolist(), row)
    if array.ndim != 1:
        raise UnfitValue(f"has the shape {array.shape}; a vector is (d,)", row=row)
    try:
        return _numeric(values if isinstance(values, np.ndarray) else array)
    except UnfitValue as error:
        raise error.in_row(row) from None


def _listed_row(values: list[Any], row: int) -> npt.NDArray[Any]:
    if not set(map(type, values)) <= {float, int}:
        for position, value in enumerate(values):
            if not (isinstance(value, float | np.floating) or is_whole_number(value)):
                what = "no number" if value is None else f"{shown(value)}, which is no number,"
                raise UnfitValue(f"has {what} at position {position}", row=row)
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        raise UnfitValue("has a number that is too large for float64", row=row) from None


def _checked(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if matrix.ndim != 2:
        raise UnfitValue(f"must have the shape (n, d), not {matrix.shape}")
    if matrix.dtype == object:
        return _of_rows(list(matrix))
    return _numeric(matrix)


def _numeric(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise UnfitValue(f"must hold numbers, not {array.dtype}")
    if isinstance(array, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(array)
        if masked.any():
            row = int(masked.any(axis=1).argmax()) if array.ndim == 2 else None
            raise UnfitValue("has masked numbers; a vector is whole", row=row)
        return np.asarray(array.data)
    return array


def _check_lengths(lengths: npt.NDArray[Any]) -> None:
    uneven = np.flatnonzero(lengths != lengths[0])
    if len(uneven):
        row = int(uneven[0])
        raise UnfitValue(
            f"has {lengths[row]} numbers, the first row has {lengths[0]};"
            " all vectors must be equally long",
            row=row,
        )


def _is_number(kind: Any) -> bool:
    return bool(types.is_floating(kind) or types.is_integer(kind))
