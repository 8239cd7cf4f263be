"""`rows.arrow`: ids, sequences, attributes and payloads of a segment, mapped as they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.filters import sorted_dictionary
from annheal.model.collection import AttributeType, Schema
from annheal.model.records import ARROW_TYPES, Float32Matrix, RecordBatch

ID_COLUMN = "_id"
SEQUENCE_COLUMN = "_sequence"
PAYLOAD_COLUMN = "_payload"
# Declared attributes may start with an underscore, so the columns are told apart by position.
_ATTRIBUTES_START = 2
_KEYWORD_CODES = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """The rows of a segment to be written: n ids, all different, and what belongs to them.

    sequences (n,) int64; vectors (n, d) float32; attributes with the columns of the schema, in
    its order, keywords plain or dictionary-encoded; payloads UTF-8 JSON or null (binary or
    large binary).
    """

    ids: pa.StringArray
    sequences: npt.NDArray[np.int64]
    vectors: Float32Matrix
    attributes: pa.RecordBatch
    payloads: pa.BinaryArray | pa.LargeBinaryArray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, batch: RecordBatch, *, sequences: npt.NDArray[np.int64]) -> SegmentRows:
        """Return the rows of a record batch with their sequences."""
        return cls(batch.ids, sequences, batch.vectors, batch.attributes, batch.payloads)


@dataclass(frozen=True, slots=True)
class MappedRows:
    """`rows.arrow` as mapped; nothing is copied. Keywords are dictionary-encoded."""

    ids: pa.StringArray
    sequences: npt.NDArray[np.int64]
    attributes: pa.RecordBatch
    payloads: pa.LargeBinaryArray


def stored_type(kind: AttributeType) -> pa.DataType:
    """Return the Arrow type of an attribute's column in `rows.arrow`."""
    return _KEYWORD_CODES if kind is AttributeType.KEYWORD else ARROW_TYPES[kind]


def file_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow schema of `rows.arrow`."""
    fields: list[pa.Field[Any]] = [
        pa.field(ID_COLUMN, pa.string(), nullable=False),
        pa.field(SEQUENCE_COLUMN, pa.int64(), nullable=False),
    ]
    fields += [pa.field(field.name, stored_type(field.type), nullable=True) for field in schema]
    fields.append(pa.field(PAYLOAD_COLUMN, pa.large_binary(), nullable=True))
    return pa.schema(fields)


def encode_rows(rows: SegmentRows, *, schema: Schema) -> pa.RecordBatch:
    """Return the record batch of `rows.arrow`."""
    columns: list[pa.Array[Any]] = [rows.ids, pa.array(rows.sequences, type=pa.int64())]
    for number, field in enumerate(schema):
        columns.append(_encoded(rows.attributes.column(number), stored_type(field.type)))
    # Payloads of one segment can exceed the 2 GiB that 32-bit offsets reach.
    columns.append(rows.payloads.cast(pa.large_binary()))
    return pa.RecordBatch.from_arrays(columns, schema=file_schema(schema))


def attribute_columns(batch: pa.RecordBatch) -> list[Any]:
    """Return the attribute columns of a batch of `rows.arrow`, in schema order."""
    return batch.columns[_ATTRIBUTES_START:-1]


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write an Arrow IPC file of one uncompressed record batch, so that it can be mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def map_batch(path: Path) -> pa.RecordBatch:
    """Map what `write_batch` wrote. Raises `ValueError` when it is something else."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches instead of one")
        return reader.get_batch(0)


def open_rows(path: Path, *, schema: Schema, rows: int) -> MappedRows:
    """Map `rows.arrow`. Raises `ValueError` when it is not what `segment.json` says."""
    batch = map_batch(path)
    expected = file_schema(schema)
    if not batch.schema.equals(expected):
        raise ValueError(f"its columns are {batch.schema}, not {expected}")
    if batch.num_rows != rows:
        raise ValueError(f"it has {batch.num_rows} rows, not {rows}")
    columns = batch.columns
    attributes = attribute_columns(batch)
    return MappedRows(
        ids=cast(pa.StringArray, columns[0]),
        sequences=columns[1].to_numpy(zero_copy_only=True),
        attributes=pa.RecordBatch.from_arrays(attributes, names=[field.name for field in schema]),
        payloads=cast(pa.LargeBinaryArray, columns[-1]),
    )


def decoded(attributes: pa.RecordBatch) -> pa.RecordBatch:
    """Return attributes with plain keyword columns, as in `model.records.arrow_schema`."""
    columns = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
        for column in attributes.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=attributes.schema.names)


def _encoded(column: pa.Array[Any], wanted: pa.DataType) -> pa.Array[Any]:
    if not pa.types.is_dictionary(wanted):
        return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    if isinstance(column, pa.DictionaryArray):
        # A slice or selection drags along the values of rows that are no longer there.
        column = column.dictionary_decode()
    encoded: pa.Array[Any] = sorted_dictionary(column.dictionary_encode())
    return encoded
