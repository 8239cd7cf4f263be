"""Columns of a table: which is the id, the vector, an attribute, a part of the payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute

from annheal.cli.sources.chunk import Chunk, Columns, Layout
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.records import ARROW_TYPES, Float32Matrix
from annheal.model.suggestions import suggestion

SAMPLE_ROWS: Final = 2_000
"""Rows looked at to tell keywords from free text."""
KEYWORD_MEAN_BYTES_MAX: Final = 48
KEYWORD_DISTINCT_SHARE_MAX: Final = 0.5
"""A text column is a keyword when its values are short and repeat; otherwise it is payload."""

# The kernels take more types than the stubs say.
pc: Any = pyarrow.compute

_ID_NAMES = ("id", "_id", "ids", "key")
_VECTOR_NAMES = ("vector", "embedding", "emb", "vectors", "embeddings")


class TablePlan:
    """How the columns of one table are read; made once from its schema and first rows."""

    def __init__(self, sample: pa.Table, columns: Columns, *, with_vectors: bool = True) -> None:
        self._columns = columns
        names = sample.column_names
        self.id_column = _pick_id(names, columns.id)
        self.vector_column = _pick_vector(sample.schema, columns.vector) if with_vectors else None
        taken = {self.id_column, self.vector_column}
        rest = [name for name in names if name not in taken]
        self.attributes = _pick_attributes(sample, rest, columns)
        self.payload = _pick_payload(sample.schema, rest, self.attributes, columns)

    @property
    def needed(self) -> list[str]:
        """The columns to read."""
        first = [self.id_column, self.vector_column]
        return [n for n in first if n is not None] + [*self.attributes, *self.payload]

    def layout(self, *, rows: int | None, dimension: int) -> Layout:
        """Return the layout of the file."""
        return Layout(rows, dimension, self.attributes, self.payload)

    def chunk(
        self,
        table: pa.Table,
        *,
        first_row: int,
        vectors: Float32Matrix | None = None,
        with_payload: bool = True,
    ) -> Chunk:
        """Return rows of `table`; `first_row` is its place in the file, for messages."""
        payload = list(self.payload) if with_payload else []
        if vectors is None:
            assert self.vector_column is not None
            column = table.column(self.vector_column).combine_chunks()
            vectors = float32_rows(column, field=self.vector_column, first_row=first_row)
        return Chunk(
            ids=self._ids(table, first_row=first_row),
            vectors=vectors,
            attributes=self._attribute_columns(table) if self.attributes else None,
            payloads=encode_payloads(table.select(payload)) if payload else None,
        )

    def _ids(self, table: pa.Table, *, first_row: int) -> list[str]:
        prefix = self._columns.id_prefix
        if self.id_column is None:
            return [f"{prefix}{row}" for row in range(first_row, first_row + len(table))]
        column = table.column(self.id_column)
        if column.null_count:
            row = first_row + int(pc.index(column.is_null(), True).as_py())
            raise InvalidArgument.of(self.id_column, f"row {row} has no id")
        ids = cast("list[str]", column.cast(pa.string()).to_pylist())
        return [prefix + text for text in ids] if prefix else ids

    def _attribute_columns(self, table: pa.Table) -> pa.Table:
        arrays = {}
        for name, kind in self.attributes.items():
            try:
                arrays[name] = as_attribute(table.column(name), kind)
            except pa.ArrowInvalid as error:
                raise InvalidArgument.of(name, f"cannot be read as {kind}: {error}") from error
        return pa.table(arrays)


def as_attribute(column: pa.ChunkedArray[Any], kind: AttributeType) -> pa.ChunkedArray[Any]:
    """Return `column` as the Arrow type of `kind`; naive timestamps count as UTC."""
    target = ARROW_TYPES[kind]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind is AttributeType.TIMESTAMP and pa.types.is_timestamp(column.type):
        return column.cast(target, safe=False)  # finer than a microsecond is cut off
    return column.cast(target)


def attribute_type(kind: pa.DataType) -> AttributeType | None:
    """Return the attribute type that holds `kind`, None for what cannot be an attribute."""
    types = pa.types
    if types.is_dictionary(kind):
        return attribute_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind):
        return AttributeType.KEYWORD
    if types.is_integer(kind):
        return AttributeType.INT64
    if types.is_floating(kind):
        return AttributeType.FLOAT64
    if types.is_boolean(kind):
        return AttributeType.BOOL
    if types.is_timestamp(kind) or types.is_date(kind):
        return AttributeType.TIMESTAMP
    if (types.is_list(kind) or types.is_large_list(kind)) and attribute_type(
        kind.value_type
    ) is AttributeType.KEYWORD:
        return AttributeType.KEYWORD_LIST
    return None


def is_vector_type(kind: pa.DataType) -> bool:
    """Return whether a column of this type may hold vectors: a list of numbers."""
    types = pa.types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def float32_rows(column: Any, *, field: str, first_row: int = 0) -> Float32Matrix:
    """Return a column of equally long lists as (n, d) float32; half floats are widened."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count:
        row = first_row + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise InvalidArgument.of(field, f"row {row} has no vector")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return np.zeros((0, 0), dtype=np.float32)
    uneven = np.flatnonzero(lengths != lengths[0])
    if len(uneven):
        row = int(uneven[0])
        raise InvalidArgument.of(
            field,
            f"row {first_row + row} has {lengths[row]} floats, row {first_row} has {lengths[0]};"
            " all vectors must be equally long",
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.reshape(len(lengths), -1), dtype=np.float32)


def encode_payloads(table: pa.Table) -> list[bytes | None]:
    """Return a JSON object for each row, without its missing values; None when all are missing."""
    encode = msgspec.json.encode
    rows: list[bytes | None] = []
    for row in table.to_pylist():
        present = {name: value for name, value in row.items() if value is not None}
        rows.append(encode(present) if present else None)
    return rows


def _pick_id(names: Sequence[str], wanted: str | None) -> str | None:
    if wanted is not None:
        return _existing(wanted, names, option="--id-column")
    for name in _ID_NAMES:
        if name in names:
            return name
    raise InvalidArgument.of(
        "--id-column", f"name the column that holds the ids; there are {', '.join(names)}"
    )


def _pick_vector(schema: pa.Schema, wanted: str | None) -> str:
    candidates = [f.name for f in schema if is_vector_type(f.type)]
    if wanted is not None:
        _existing(wanted, schema.names, option="--vector-column")
        if wanted not in candidates:
            raise InvalidArgument.of(
                "--vector-column", f"{wanted} is {schema.field(wanted).type}, no list of numbers"
            )
        return wanted
    named = [name for name in _VECTOR_NAMES if name in candidates]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    if not candidates:
        raise InvalidArgument.of("--vector-column", "no column of the file is a list of numbers")
    raise InvalidArgument.of(
        "--vector-column", f"several columns could be it, name one: {', '.join(candidates)}"
    )


def _pick_attributes(
    sample: pa.Table, rest: Sequence[str], columns: Columns
) -> Mapping[str, AttributeType]:
    chosen: dict[str, AttributeType] = {}
    declared = columns.schema
    if columns.attributes is not None:
        names = [_existing(name, rest, option="--attributes") for name in columns.attributes]
    elif declared is not None:
        names = [name for name in rest if name in declared]
    else:
        names = [name for name in rest if _is_attribute_by_nature(sample, name)]
    for name in names:
        if declared is not None:
            if name not in declared:
                raise InvalidArgument.of(
                    "--attributes",
                    f"the collection declares no attribute {name}; it has "
                    f"{', '.join(declared) or 'none'}",
                )
            chosen[name] = declared[name]
            continue
        kind = attribute_type(sample.schema.field(name).type)
        if kind is None:
            raise InvalidArgument.of(
                "--attributes", f"{name} is {sample.schema.field(name).type}, no attribute type"
            )
        chosen[name] = kind
    return chosen


def _is_attribute_by_nature(sample: pa.Table, name: str) -> bool:
    kind = attribute_type(sample.schema.field(name).type)
    if kind is not AttributeType.KEYWORD:
        return kind is not None
    values = sample.column(name).cast(pa.string()).drop_null()
    if len(values) == 0:
        return False
    mean_bytes = pc.mean(pc.binary_length(values)).as_py()
    distinct = pc.count_distinct(values).as_py() / len(values)
    # A handful of rows says nothing about how often values repeat.
    repeats = distinct <= KEYWORD_DISTINCT_SHARE_MAX or len(values) < 20
    return bool(mean_bytes <= KEYWORD_MEAN_BYTES_MAX and repeats)


def _pick_payload(
    schema: pa.Schema,
    rest: Sequence[str],
    attributes: Mapping[str, AttributeType],
    columns: Columns,
) -> tuple[str, ...]:
    if columns.payload is not None:
        return tuple(_existing(name, rest, option="--payload") for name in columns.payload)
    return tuple(
        name
        for name in rest
        if name not in attributes and not is_vector_type(schema.field(name).type)
    )


def _existing(name: str, names: Sequence[str], *, option: str) -> str:
    if name not in names:
        raise InvalidArgument.of(option, f"there is no column {name}; {suggestion(name, names)}")
    return name
