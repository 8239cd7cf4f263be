"""What callers may pass, turned into the columns that travel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.errors import InvalidArgument
from annheal.filters import parse_expression
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import Filter
from annheal.model.records import ARROW_TYPES, Projection

FilterInput: TypeAlias = str | Filter | None
"""A filter expression (docs/filters.md), or a tree of `annheal.model.filter` nodes."""
AttributesInput: TypeAlias = (
    Mapping[str, Any] | Sequence[Mapping[str, Any]] | pa.Table | pa.RecordBatch | None
)
"""Columns by name (lists, numpy or Arrow arrays), one mapping a row, or an Arrow table."""
PayloadsInput: TypeAlias = Sequence[Any] | pa.BinaryArray | None
"""One JSON-serialisable value a row, or None; `bytes` are taken as JSON already."""
Column: TypeAlias = Any
"""A `pa.Array` whose type depends on the collection."""

_INCLUDES = ("attributes", "payload", "vector")


def as_filter(filter: FilterInput) -> Filter | None:
    """Return the tree; raises `InvalidArgument` with the place of an error in an expression."""
    return parse_expression(filter) if isinstance(filter, str) else filter


def as_projection(include: Iterable[str] | str | None) -> Projection:
    """Return what to read beside the id.

    `include` holds any of "attributes", "payload", "vector" and names of attributes; "all" is all
    three. None is nothing.
    """
    names = [include] if isinstance(include, str) else list(include or ())
    if "all" in names:
        return Projection(attributes=None, payload=True, vector=True)
    attributes = tuple(dict.fromkeys(n for n in names if n not in _INCLUDES))
    return Projection(
        attributes=None if "attributes" in names else attributes,
        payload="payload" in names,
        vector="vector" in names,
    )


def as_schema(attributes: Mapping[str, str | AttributeType] | None) -> Schema:
    """Return the schema of `{"year": "int64", ...}`; raises `InvalidArgument` for other types."""
    fields = []
    for name, kind in (attributes or {}).items():
        try:
            fields.append(AttributeField(name, AttributeType(kind)))
        except ValueError:
            known = ", ".join(AttributeType)
            raise InvalidArgument.of(
                f"attributes.{name}", f"{kind!r} is no type; it is one of {known}"
            ) from None
    return tuple(fields)


def as_ids(ids: Iterable[Any], *, field: str = "ids") -> list[str]:
    """Return ids as texts; numbers are refused, since "1" and 1 would be one id."""
    if isinstance(ids, str):
        raise InvalidArgument.of(field, "must be a list of ids, not one text")
    if isinstance(ids, pa.Array | pa.ChunkedArray | np.ndarray):
        texts: list[Any] = ids.to_pylist() if not isinstance(ids, np.ndarray) else ids.tolist()
    else:
        texts = list(ids)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgument.of(f"{field}[{row}]", f"{text!r} is no text")
        _check_text(text, field=f"{field}[{row}]")
    return texts


def _check_text(text: str, *, field: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument.of(field, f"is no valid Unicode text: {error}") from error


def as_matrix(vectors: Any, *, field: str = "vectors") -> npt.NDArray[Any]:
    """Return vectors as an (n, d) array of numbers, of whatever type they have."""
    if isinstance(vectors, pa.Array | pa.ChunkedArray):
        column: Column = vectors
        column = column.combine_chunks() if isinstance(vectors, pa.ChunkedArray) else column
        flat = np.asarray(column.flatten())
        return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
    try:
        matrix = np.asarray(vectors)
    except ValueError as error:
        raise InvalidArgument.of(field, f"all vectors must be equally long ({error})") from error
    if matrix.dtype.kind not in "fiu":
        raise InvalidArgument.of(field, f"must hold numbers, not {matrix.dtype}")
    if matrix.ndim != 2:
        raise InvalidArgument.of(field, f"must have the shape (n, d), not {matrix.shape}")
    return matrix


def as_vector(vector: Any, *, field: str = "vector") -> npt.NDArray[np.float32]:
    """Return one query as (d,) float32."""
    array = np.asarray(vector)
    if array.dtype.kind not in "fiu" or array.ndim != 1:
        raise InvalidArgument.of(
            field, f"must be one vector of numbers, not {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.float32, copy=False)


def as_attributes(given: AttributesInput, *, rows: int, schema: Schema) -> dict[str, Column]:
    """Return one Arrow column of `rows` values by attribute name, of the declared types.

    Raises `InvalidArgument` for a name that is not declared, a wrong number of rows, and values
    that the declared type cannot hold.
    """
    if given is None:
        return {}
    kinds = {f.name: f.type for f in schema}
    columns: dict[str, Any]
    if isinstance(given, pa.Table | pa.RecordBatch):
        columns = dict(zip(given.schema.names, given.columns, strict=True))
    elif isinstance(given, Mapping):
        columns = dict(given)
    else:
        if len(given) != rows:
            raise InvalidArgument.of("attributes", f"has {len(given)} rows for {rows} ids")
        names = dict.fromkeys(name for row in given for name in row)
        columns = {name: [row.get(name) for row in given] for name in names}
    found: dict[str, Column] = {}
    for name, values in columns.items():
        kind = kinds.get(name)
        if kind is None:
            raise InvalidArgument.of(
                f"attributes.{name}", f"is not declared; there are {', '.join(kinds) or 'none'}"
            )
        if len(values) != rows:
            raise InvalidArgument.of(
                f"attributes.{name}", f"has {len(values)} values for {rows} ids"
            )
        found[name] = as_column(values, kind=kind, field=f"attributes.{name}")
    return found


def as_column(values: Any, *, kind: AttributeType, field: str) -> Column:
    """Return values as an Arrow column of the declared type; nothing is rounded or guessed.

    Raises `InvalidArgument` for what the type cannot hold.
    """
    target = ARROW_TYPES[kind]
    try:
        column: Column
        if isinstance(values, pa.ChunkedArray):
            column = values.combine_chunks()
        elif isinstance(values, pa.Array):
            column = values
        elif isinstance(values, np.ndarray):
            column = pa.array(cast("Any", values))
        elif kind is AttributeType.TIMESTAMP:
            return pa.array([_moment(value) for value in values], type=target)
        elif kind is AttributeType.KEYWORD_LIST:
            column = pa.array(_lists(values, field=field), type=target)
        elif kind is AttributeType.INT64 and any(isinstance(value, float) for value in values):
            column = pa.array(values)  # the cast below refuses what would be rounded
        else:
            return pa.array(values, type=target)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        # Moments finer than a microsecond are cut off, as the server would; nothing else is.
        column = column.cast(target, safe=not pa.types.is_timestamp(column.type))
    except (
        UnicodeEncodeError,
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
    ) as error:
        raise InvalidArgument.of(field, f"cannot be read as {kind}: {error}") from error
    if kind is AttributeType.KEYWORD_LIST:
        _check_elements(column, field=field)
    return column


def _lists(values: Any, *, field: str) -> Any:
    """Return `values`; a text among them, which Arrow would take for a list, is refused."""
    for row, value in enumerate(values):
        if isinstance(value, str):
            raise InvalidArgument.of(f"{field}[{row}]", "must be a list of texts")
    return values


def _check_elements(column: Column, *, field: str) -> None:
    """Refuse missing values inside lists: the wire has none, they would become empty texts."""
    elements: Any = pc.list_flatten(column)
    if elements.null_count:
        raise InvalidArgument.of(field, "a list holds a missing value; leave it out")


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError as error:
            raise pa.ArrowInvalid(str(error)) from error
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001 - naive counts as UTC
    return value


def _check_nulls(value: Any, *, field: str) -> None:
    """Raise `InvalidArgument` for NaN and infinity, which JSON does not have and msgspec nulls."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgument.of(field, f"is {value}, which JSON cannot hold; send None or text")
    if isinstance(value, dict):
        for key, part in value.items():
            _check_nulls(part, field=f"{field}.{key}")
    elif isinstance(value, list | tuple):
        for position, part in enumerate(value):
            _check_nulls(part, field=f"{field}[{position}]")


def as_payloads(given: PayloadsInput, *, rows: int) -> pa.BinaryArray | None:
    """Return payloads as JSON, null where a row has none."""
    if given is None:
        return None
    if len(given) != rows:
        raise InvalidArgument.of("payloads", f"has {len(given)} rows for {rows} ids")
    if isinstance(given, pa.Array):
        return cast("pa.BinaryArray", given.cast(pa.binary()))
    encode = msgspec.json.encode
    try:
        texts = [
            value if value is None or isinstance(value, bytes) else encode(value) for value in given
        ]
        for row, text in enumerate(texts):
            if text is not None and b"null" in text and not isinstance(given[row], bytes):
                _check_nulls(given[row], field=f"payloads[{row}]")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument.of("payloads", f"cannot be written as JSON: {error}") from error
    return pa.array(texts, type=pa.binary())
