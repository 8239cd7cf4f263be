"""Rows as Arrow IPC streams, between processes of one cluster. docs/api.md has the layout.

One record batch with the columns `id` (string), `vector` (fixed-size list of float32), `payload`
(binary), `version` (int64), `a:<name>` for each attribute, and `vector:<model>` for each further
model; a column that is not there was not asked for. The schema's metadata says with `attributes`
whether attributes were, even when there are none, and with `model` whose vectors `vector` holds,
unless they are of the model that needs no name. A vector of NaN: the record has none.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa

from annheal.errors import InvalidArgument
from annheal.model.records import (
    ARROW_TYPES,
    Float32Matrix,
    ModelVectors,
    RecordBatch,
    RecordPatch,
    RecordSet,
    Versions,
    plain_column,
)
from annheal.wire.arrow_stream import read_rows

ID, VECTOR, PAYLOAD, VERSION, ATTRIBUTE_PREFIX = "id", "vector", "payload", "version", "a:"
VECTOR_PREFIX = "vector:"
_WITH_ATTRIBUTES = {b"attributes": b"1"}
_MODEL = b"model"
_TYPES = (*ARROW_TYPES.values(), pa.binary())


def encode_batch(batch: RecordBatch) -> bytes:
    """Return rows to write as one Arrow IPC stream."""
    return _encode(batch, {ID: batch.ids})


def decode_batch(stream: bytes, *, field: str = "upsert") -> RecordBatch:
    """Return the rows of `stream`, sharing its memory (read-only).

    Raises `InvalidArgument` when it is not what `encode_batch` writes.
    """
    rows = read_rows(stream, field=field, types=_TYPES)
    vectors, attributes, payloads = _decode(rows, field=field)
    if ID not in rows.schema.names or vectors is None or attributes is None or payloads is None:
        raise InvalidArgument.of(field, "lacks ids, vectors, attributes or payloads")
    model, further = _models(rows, field=field)
    return RecordBatch(
        ids=cast("pa.StringArray", rows.column(ID)),
        vectors=vectors,
        attributes=attributes,
        payloads=payloads,
        model=model,
        further=further,
    )


def encode_patch(patch: RecordPatch) -> bytes:
    """Return parts of records to write as one Arrow IPC stream."""
    return _encode(patch, {ID: patch.ids})


def decode_patch(stream: bytes, *, field: str = "update") -> RecordPatch:
    """Return the parts of records in `stream`, sharing its memory (read-only).

    Raises `InvalidArgument` when it is not what `encode_patch` writes.
    """
    rows = read_rows(stream, field=field, types=_TYPES)
    vectors, attributes, payloads = _decode(rows, field=field)
    if ID not in rows.schema.names or attributes is None:
        raise InvalidArgument.of(field, "lacks ids or attributes")
    ids = cast("pa.StringArray", rows.column(ID))
    model, further = _models(rows, field=field)
    return RecordPatch(ids, attributes, payloads, vectors, model=model, further=further)


def encode_columns(records: RecordSet) -> bytes:
    """Return what was read beside the ids as an Arrow IPC stream, empty when nothing was."""
    if records.has_only_ids:
        return b""
    versions = {} if records.versions is None else {VERSION: pa.array(records.versions)}
    return _encode(records, versions)


def decode_columns(stream: bytes, *, ids: list[str], field: str = "columns") -> RecordSet:
    """Return the records with `ids` and the columns of `stream`."""
    if not stream:
        return RecordSet(ids=ids)
    rows = read_rows(stream, field=field, types=_TYPES)
    if rows.num_columns and rows.num_rows != len(ids):
        raise InvalidArgument.of(field, f"has {rows.num_rows} rows, but there are {len(ids)} ids")
    vectors, attributes, payloads = _decode(rows, field=field)
    versions = _versions(rows, field=field)
    return RecordSet(ids, attributes, payloads, vectors, versions, *_models(rows, field=field))


def _encode(records: RecordBatch | RecordPatch | RecordSet, columns: dict[str, Any]) -> bytes:
    """Return `columns`, then what `records` has beside ids and versions."""
    attributes = records.attributes
    if records.vectors is not None:
        columns[VECTOR] = _vector_column(records.vectors)
    if records.payloads is not None:
        columns[PAYLOAD] = records.payloads
    if attributes is not None:
        for number, name in enumerate(attributes.schema.names):
            columns[ATTRIBUTE_PREFIX + name] = plain_column(attributes.column(number))
    for one in records.further:
        columns[VECTOR_PREFIX + one.model] = _vector_column(one.vectors)
    rows = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    metadata = {} if attributes is None else dict(_WITH_ATTRIBUTES)
    if records.model:
        metadata[_MODEL] = records.model.encode()
    if metadata:
        rows = rows.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue().to_pybytes()


def _vector_column(vectors: Float32Matrix) -> Any:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _decode(
    rows: pa.RecordBatch, *, field: str
) -> tuple[Float32Matrix | None, pa.RecordBatch | None, pa.BinaryArray | None]:
    names = rows.schema.names
    vectors = _matrix(rows.column(VECTOR), field=field) if VECTOR in names else None
    for name, wanted_type in ((ID, pa.string()), (PAYLOAD, pa.binary())):
        if name in names and rows.schema.field(name).type != wanted_type:
            raise InvalidArgument.of(field, f"column {name!r} is no {wanted_type}")
    payloads = cast("pa.BinaryArray", rows.column(PAYLOAD)) if PAYLOAD in names else None
    attributes = None
    if (rows.schema.metadata or {}).get(b"attributes"):
        wanted = [name for name in names if name.startswith(ATTRIBUTE_PREFIX)]
        attributes = pa.RecordBatch.from_arrays(
            [rows.column(name) for name in wanted],
            names=[name.removeprefix(ATTRIBUTE_PREFIX) for name in wanted],
        )
    return vectors, attributes, payloads


def _models(rows: pa.RecordBatch, *, field: str) -> tuple[str, tuple[ModelVectors, ...]]:
    """Return the model of the column `vector`, empty without a name, and the further vectors."""
    try:
        model = (rows.schema.metadata or {}).get(_MODEL, b"").decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument.of(field, f"names a model that is no UTF-8: {error}") from error
    columns = [name for name in rows.schema.names if name.startswith(VECTOR_PREFIX)]
    further = tuple(
        ModelVectors(name.removeprefix(VECTOR_PREFIX), _matrix(rows.column(name), field=field))
        for name in columns
    )
    for one in further:
        if one.model in ("", model):
            raise InvalidArgument.of(field, f"has further vectors of model {one.model!r}")
    return model, further


def _versions(rows: pa.RecordBatch, *, field: str) -> Versions | None:
    if VERSION not in rows.schema.names:
        return None
    column = rows.column(VERSION)
    if column.type != pa.int64() or column.null_count:
        raise InvalidArgument.of(field, f"column {VERSION!r} is no int64 without gaps")
    return np.asarray(column, dtype=np.int64)


def _matrix(column: Any, *, field: str) -> Float32Matrix:
    kind = column.type
    if not isinstance(kind, pa.FixedSizeListType):
        raise InvalidArgument.of(field, f"holds vectors of Arrow type {kind}")
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise InvalidArgument.of(field, "holds missing vectors or components")
    return np.asarray(flat, dtype=np.float32).reshape(-1, kind.list_size)
