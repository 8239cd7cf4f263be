"""Bytes of one write-ahead log object (format versions 1 and 2; docs/formats/wal.md).

Layout, little-endian::

    magic "AHWL" | version u16 | kind u16 | epoch u64 | slot u64 | writer 16 bytes
    first_sequence u64 | last_sequence u64 | entry count u32 | reserved u32
    entries: kind u32 | reserved u32 | sequence u64 | body length u64 | body (Arrow IPC stream)
    xxh3-64 of everything before, u64

A fence object has no entries, so its size is exactly `FENCE_BYTES`, and every object that carries
entries is larger: a listing alone tells them apart (they are kept when the log is trimmed).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import xxhash

from annheal.errors import DataCorruption, FailedPrecondition
from annheal.model.records import Float32Matrix, ModelVectors, RecordBatch

FORMAT_VERSION = 2
"""The version of objects with rows that name their models; all others are of version 1."""
FORMAT_VERSION_ONE_MODEL = 1
_MAGIC = b"AHWL"
_HEADER = struct.Struct("<4sHHQQ16sQQII")
_ENTRY = struct.Struct("<IIQQ")
_CHECKSUM = struct.Struct("<Q")
FENCE_BYTES = _HEADER.size + _CHECKSUM.size
_UPSERT, _DELETE, _UPSERT_OF_MODELS = 1, 2, 3
_ID, _VECTOR, _PAYLOAD = "_id", "_vector", "_payload"
_MODELS = b"annheal.models"
"""Key of the schema's metadata: a JSON list of the models of the vector columns, in their order."""


@dataclass(frozen=True, slots=True)
class UpsertEntry:
    """Rows written; row i has sequence `first_sequence + i`."""

    first_sequence: int
    batch: RecordBatch

    @property
    def last_sequence(self) -> int:
        """The sequence of the last row."""
        return self.first_sequence + len(self.batch) - 1


@dataclass(frozen=True, slots=True)
class DeleteEntry:
    """Ids deleted at `sequence`: every older row of them is dead."""

    sequence: int
    ids: pa.StringArray

    @property
    def last_sequence(self) -> int:
        """The one sequence of this entry."""
        return self.sequence

    def id_list(self) -> list[str]:
        """Return the ids as Python strings."""
        return cast("list[str]", self.ids.to_pylist())  # ids are never null


WalEntry: TypeAlias = UpsertEntry | DeleteEntry


@dataclass(frozen=True, slots=True)
class WalObject:
    """One slot. `writer`: 16 random bytes of the process; no two writers put equal bytes."""

    epoch: int
    slot: int
    writer: bytes
    last_sequence: int
    entries: tuple[WalEntry, ...] = ()

    @property
    def is_fence(self) -> bool:
        """Whether this object only announces a new owner's epoch."""
        return not self.entries


def encode_wal_object(wal_object: WalObject) -> bytes:
    """Return the bytes of `wal_object`."""
    first = wal_object.entries[0] if wal_object.entries else None
    first_sequence = (
        0
        if first is None
        else first.first_sequence
        if isinstance(first, UpsertEntry)
        else first.sequence
    )
    names_models = any(_kind(entry) == _UPSERT_OF_MODELS for entry in wal_object.entries)
    parts = [
        _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION if names_models else FORMAT_VERSION_ONE_MODEL,
            0,
            wal_object.epoch,
            wal_object.slot,
            wal_object.writer,
            first_sequence,
            wal_object.last_sequence,
            len(wal_object.entries),
            0,
        )
    ]
    for entry in wal_object.entries:
        body = _encode_body(entry)
        sequence = entry.first_sequence if isinstance(entry, UpsertEntry) else entry.sequence
        parts += [_ENTRY.pack(_kind(entry), 0, sequence, len(body)), body]
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    parts.append(_CHECKSUM.pack(digest.intdigest()))
    return b"".join(parts)


def decode_wal_object(data: bytes, *, key: str) -> WalObject:
    """Parse one object; `key` names it in errors.

    Raises `DataCorruption` when the bytes do not match their checksum or layout, and
    `FailedPrecondition` when a newer version of Annheal wrote them.
    """
    if len(data) < FENCE_BYTES or data[:4] != _MAGIC:
        raise DataCorruption(f"log object {key} is not a write-ahead log object")
    (checksum,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    body = memoryview(data)[: -_CHECKSUM.size]
    if xxhash.xxh3_64_intdigest(body) != checksum:
        raise DataCorruption(f"log object {key} does not match its checksum")
    _, version, _, epoch, slot, writer, _, last_sequence, count, _ = _HEADER.unpack_from(data)
    if version > FORMAT_VERSION:
        raise FailedPrecondition(
            f"log object {key} has format version {version}; this version of Annheal reads up to "
            f"{FORMAT_VERSION}: upgrade this process"
        )
    try:
        entries = _decode_entries(body, count)
    except (ValueError, KeyError, IndexError, StopIteration, struct.error) as error:
        raise DataCorruption(f"log object {key} cannot be read: {error}") from error
    return WalObject(epoch, slot, writer, last_sequence, entries)


def _decode_entries(body: memoryview, count: int) -> tuple[WalEntry, ...]:
    """Parse what follows the header; raises ValueError and its like when it does not fit."""
    entries: list[WalEntry] = []
    offset = _HEADER.size
    for _ in range(count):
        kind, _, sequence, length = _ENTRY.unpack_from(body, offset)
        offset += _ENTRY.size
        if offset + length > len(body):
            raise ValueError("an entry is longer than the object")
        entries.append(_decode_body(kind, sequence, body[offset : offset + length]))
        offset += length
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes follow the last entry")
    return tuple(entries)


def encode_record_batch(batch: RecordBatch) -> bytes:
    """Return `batch` as an Arrow IPC stream: `_id`, `_vector`, the attributes, `_payload`.

    A batch that names its models has a `_vector` column for each of them, and their names in the
    metadata of the schema.
    """
    matrices = [batch.vectors, *(one.vectors for one in batch.further)]
    table = pa.RecordBatch.from_arrays(
        [
            batch.ids,
            *(_vector_column(matrix) for matrix in matrices),
            *batch.attributes.columns,
            batch.payloads,
        ],
        names=[_ID, *[_VECTOR] * len(matrices), *batch.attributes.schema.names, _PAYLOAD],
    )
    if _names_models(batch):
        models = json.dumps([batch.model, *(one.model for one in batch.further)])
        table = table.replace_schema_metadata({_MODELS: models.encode()})
    return _to_stream(table)


def decode_record_batch(data: bytes | memoryview) -> RecordBatch:
    """Parse `encode_record_batch`'s bytes; the vectors are views of them."""
    table = _from_stream(data)
    models: list[str] = json.loads((table.schema.metadata or {}).get(_MODELS, b'[""]'))
    # By position: an attribute may have any name, `_vector` too.
    first, last = 1 + len(models), table.num_columns - 1
    vectors, *further = [
        ModelVectors(model, _matrix(table.column(number)))
        for number, model in enumerate(models, start=1)
    ]
    attributes = (
        pa.RecordBatch.from_arrays(
            [table.column(number) for number in range(first, last)],
            schema=pa.schema([table.schema.field(number) for number in range(first, last)]),
        )
        if last > first
        else empty_attributes(len(table))
    )
    return RecordBatch(
        cast(pa.StringArray, table.column(0)),
        vectors.vectors,
        attributes,
        cast(pa.BinaryArray, table.column(last)),
        model=vectors.model,
        further=tuple(further),
    )


def _names_models(batch: RecordBatch) -> bool:
    return bool(batch.model or batch.further)


def _vector_column(vectors: Float32Matrix) -> pa.Array[Any]:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def _matrix(column: pa.Array[Any]) -> Float32Matrix:
    lists = cast("pa.FixedSizeListArray[Any, Any]", column)
    flat: Float32Matrix = np.asarray(lists.flatten(), dtype=np.float32)
    return flat.reshape(len(lists), lists.type.list_size)


def empty_attributes(rows: int) -> pa.RecordBatch:
    """Return `rows` rows without columns (Arrow keeps their number only through a struct)."""
    structs = cast(pa.StructArray, pa.array([{}] * rows, type=pa.struct([])))
    return pa.RecordBatch.from_struct_array(structs)


def _kind(entry: WalEntry) -> int:
    if isinstance(entry, DeleteEntry):
        return _DELETE
    return _UPSERT_OF_MODELS if _names_models(entry.batch) else _UPSERT


def _encode_body(entry: WalEntry) -> bytes:
    if isinstance(entry, UpsertEntry):
        return encode_record_batch(entry.batch)
    return _to_stream(pa.RecordBatch.from_arrays([entry.ids], names=[_ID]))


def _decode_body(kind: int, sequence: int, body: memoryview) -> WalEntry:
    if kind in (_UPSERT, _UPSERT_OF_MODELS):
        return UpsertEntry(sequence, decode_record_batch(body))
    if kind == _DELETE:
        return DeleteEntry(sequence, cast(pa.StringArray, _from_stream(body).column(0)))
    raise ValueError(f"an entry has the unknown kind {kind}")


def _to_stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _from_stream(data: bytes | memoryview) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_next_batch()


def is_fence_size(size_bytes: int) -> bool:
    """Whether an object of this size can only be a fence."""
    return size_bytes == FENCE_BYTES
