"""Checks of attribute columns: each error names the column, the row and the fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType, Schema
from annheal.model.limits import KEYWORD_BYTES_MAX, KEYWORD_LIST_LENGTH_MAX
from annheal.model.records import arrow_schema
from annheal.model.values.moments import MOMENT_US_MAX, MOMENT_US_MIN, OUTSIDE


def check_attributes(attributes: pa.RecordBatch, *, schema: Schema) -> None:
    """Raise `InvalidArgument` unless the columns are those of `schema`, with values that fit."""
    wanted = arrow_schema(schema)
    given = attributes.schema
    if given.names != wanted.names:
        unknown = sorted(set(given.names) - set(wanted.names))
        text = f"columns {given.names}, but the schema has {wanted.names} in this order"
        if unknown:
            text = f"unknown attribute {unknown[0]!r}; the schema has {wanted.names}"
        raise InvalidArgument.of("attributes", text)
    for number, field in enumerate(schema):
        name = f"attributes.{field.name}"
        column = attributes.column(number)
        if column.type != wanted.field(number).type:
            raise InvalidArgument.of(
                name, f"has Arrow type {column.type}; {field.type.value} is {wanted.types[number]}"
            )
        if field.type is AttributeType.KEYWORD:
            _check_keywords(column, field=name)
        elif field.type is AttributeType.KEYWORD_LIST:
            _check_keyword_lists(column, field=name)
        elif field.type is AttributeType.FLOAT64:
            _check_floats(column, field=name)
        elif field.type is AttributeType.TIMESTAMP:
            _check_moments(column, field=name)


def _check_keywords(column: pa.Array[Any], *, field: str) -> None:
    lengths = byte_lengths(column)
    if lengths.size and int(lengths.max()) > KEYWORD_BYTES_MAX:
        row = int(lengths.argmax())
        raise InvalidArgument.of(
            f"{field}[{row}]",
            f"has {int(lengths[row])} bytes; a keyword has at most {KEYWORD_BYTES_MAX}:"
            " put long text into the payload",
        )


def _check_keyword_lists(column: pa.Array[Any], *, field: str) -> None:
    lengths = filled(pc.list_value_length(column), value=0)
    if lengths.size and int(lengths.max()) > KEYWORD_LIST_LENGTH_MAX:
        row = int(lengths.argmax())
        raise InvalidArgument.of(
            f"{field}[{row}]",
            f"has {int(lengths[row])} values; a list has at most {KEYWORD_LIST_LENGTH_MAX}",
        )
    values = pc.list_flatten(column)
    if values.null_count:
        parents = np.asarray(pc.list_parent_indices(column))
        row = int(parents[first(np.asarray(values.is_null()))])
        raise InvalidArgument.of(f"{field}[{row}]", "holds a missing value; leave it out")
    sizes = byte_lengths(values)
    if sizes.size and int(sizes.max()) > KEYWORD_BYTES_MAX:
        row = int(np.asarray(pc.list_parent_indices(column))[int(sizes.argmax())])
        raise InvalidArgument.of(
            f"{field}[{row}]",
            f"holds a value of {int(sizes.max())} bytes; a keyword has at most {KEYWORD_BYTES_MAX}",
        )


def _check_floats(column: pa.Array[Any], *, field: str) -> None:
    finite = filled(pc.is_finite(column), value=True)
    if not finite.all():
        row = first(~finite)
        raise InvalidArgument.of(
            f"{field}[{row}]", f"is {column[row].as_py()}; send a finite number or leave it out"
        )


def _check_moments(column: Any, *, field: str) -> None:
    moments = filled(column.view(pa.int64()), value=0)
    outside = (moments < MOMENT_US_MIN) | (moments > MOMENT_US_MAX)
    if outside.any():
        row = first(outside)
        raise InvalidArgument.of(f"{field}[{row}]", f"{moments[row]} microseconds: {OUTSIDE}")


def byte_lengths(column: Any) -> npt.NDArray[np.int32]:
    """Return the bytes of every value, 0 where it is missing."""
    return filled(pc.binary_length(column), value=0)


def filled(column: Any, *, value: object) -> npt.NDArray[Any]:
    """Return the values of a column, `value` where one is missing."""
    return np.asarray(pc.fill_null(column, value))


def first(flags: npt.NDArray[np.bool_]) -> int:
    """Return the first row of (n,) flags that is set."""
    return int(np.asarray(flags).argmax())
