"""Reading Arrow IPC streams that come from outside: nothing is believed before it is checked.

Arrow itself checks that a stream can be read, not that its values lie in its memory: offsets that
point beyond a buffer give away, or crash on, whatever lies there. Compressed buffers are unpacked
to the size that they claim, and dictionaries, unions and extensions run code of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from annheal.errors import InvalidArgument
from annheal.model.limits import DIMENSION_MAX

_RECORD_BATCH_COMPRESSION = 3
_MESSAGE_HEADER = 2
"""Numbers of fields in Arrow's Message.fbs, by which a flatbuffer's table finds them."""


def read_rows(stream: bytes, *, field: str, types: Collection[pa.DataType]) -> pa.RecordBatch:
    """Return the one record batch of `stream`, sharing its memory, fully validated.

    Column types are `types` and fixed-size lists of 1 to `DIMENSION_MAX` float32. Raises
    `InvalidArgument` that names `field` for everything else: other types, compressed buffers,
    dictionaries, several batches, two columns of one name, values that do not lie in their
    buffers, text that is no UTF-8.
    """
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(stream))
        message = _next(reader, "schema", field=field)
        schema = pa.ipc.read_schema(message)
        _check_schema(schema, field=field, types=types)
        message = _next(reader, "record batch", field=field)
        if _is_compressed(message.metadata.to_pybytes()):
            raise InvalidArgument.of(field, "is compressed; send plain Arrow buffers")
        rows = pa.ipc.read_record_batch(message, schema)
        rows.validate(full=True)
        _check_end(reader, field=field)
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        StopIteration,
        UnicodeDecodeError,
        struct.error,
    ) as error:
        raise InvalidArgument.of(field, f"is not an Arrow IPC stream of rows: {error}") from error
    return rows


def _check_schema(schema: pa.Schema, *, field: str, types: Collection[pa.DataType]) -> None:
    if len(set(schema.names)) != len(schema.names):
        raise InvalidArgument.of(field, f"has two columns of one name: {schema.names}")
    for column in schema:
        if column.type not in types and not _is_vector(column.type):
            raise InvalidArgument.of(field, f"column {column.name!r} has type {column.type}")


def _is_vector(kind: pa.DataType) -> bool:
    return (
        isinstance(kind, pa.FixedSizeListType)
        and kind.value_type == pa.float32()
        and 1 <= kind.list_size <= DIMENSION_MAX
    )


def _next(reader: pa.ipc.MessageReader, wanted: str, *, field: str) -> Any:
    """Return the next message; of another kind, PyArrow would read its header as what it is not."""
    message: Any = reader.read_next_message()
    if message.type != wanted:
        raise InvalidArgument.of(field, f"holds a {message.type} where a {wanted} is due")
    return message


def _check_end(reader: pa.ipc.MessageReader, *, field: str) -> None:
    try:
        reader.read_next_message()
    except StopIteration:
        return
    raise InvalidArgument.of(field, "holds more than one record batch")


def _is_compressed(metadata: bytes) -> bool:
    """Tell whether the record batch with this header has compressed buffers, before unpacking any.

    `metadata` is an Arrow Message flatbuffer, which Arrow has verified; PyArrow does not show its
    fields. A table begins with the distance back to its list of field positions, a position of 0
    or beyond the list's end means that the field is not there (flatbuffers.dev/internals).
    """
    (root,) = struct.unpack_from("<I", metadata, 0)
    header = _field(metadata, root, _MESSAGE_HEADER)
    if header is None:
        return False
    (distance,) = struct.unpack_from("<I", metadata, header)
    return _field(metadata, header + distance, _RECORD_BATCH_COMPRESSION) is not None


def _field(data: bytes, table: int, number: int) -> int | None:
    """Return where field `number` of the flatbuffer's table at `table` lies; None: not there."""
    (back,) = struct.unpack_from("<i", data, table)
    positions = table - back
    (size_bytes,) = struct.unpack_from("<H", data, positions)
    place = 4 + 2 * number
    if place >= size_bytes:
        return None
    (offset,) = struct.unpack_from("<H", data, positions + place)
    return table + offset if offset else None
