"""Files with the rows of an export: Parquet, or JSON lines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annheal.cli.exports.description import ExportFormat, ExportPart
from annheal.client import Records
from annheal.model.collection import Collection
from annheal.model.records import Float32Matrix, arrow_schema, lacking

READ_BYTES: Final = 1 << 20


class PartFile(Protocol):
    """A part that is being written; pages are added to it until it is closed."""

    rows: int
    size_bytes: int
    """About how many bytes were written so far."""

    def write(self, page: Records) -> None:
        """Append the records of a page."""
        ...

    def close(self) -> None:
        """Write what is left, to the disk."""
        ...

    def abandon(self) -> None:
        """Give the file up; what is in it does not count."""
        ...


def open_part(path: Path, format: ExportFormat, collection: Collection) -> PartFile:
    """Begin a part at `path`; what is there is overwritten."""
    if format is ExportFormat.PARQUET:
        return ParquetPart(path, collection)
    return JsonLinesPart(path)


class ParquetPart:
    """Columns `id`, `vector`, `attributes` (a struct, where any are declared) and `payload`."""

    def __init__(self, path: Path, collection: Collection) -> None:
        self._path = path
        self._schema = parquet_schema(collection)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self.rows = 0
        self.size_bytes = 0

    def write(self, page: Records) -> None:
        """Append the records of a page as one row group."""
        table = _table(page, self._schema)
        self._writer.write_table(table)
        self.rows += len(page)
        self.size_bytes += table.nbytes

    def close(self) -> None:
        """Write the footer, and everything to the disk."""
        self._writer.close()
        sync_file(self._path)

    def abandon(self) -> None:
        """Close the file."""
        self._writer.close()


class JsonLinesPart:
    """One object a line: id, attributes, payload, vector, as `annheal scan -o json` prints them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.rows = 0
        self.size_bytes = 0

    def write(self, page: Records) -> None:
        """Append the records of a page."""
        for line in json_lines(page):
            self.size_bytes += self._file.write(line)
        self.rows += len(page)

    def close(self) -> None:
        """Write everything to the disk."""
        self._file.close()
        sync_file(self._path)

    def abandon(self) -> None:
        """Close the file."""
        self._file.close()


def parquet_schema(collection: Collection) -> pa.Schema:
    """Return the columns of a Parquet part; `vector` has a member a model if they are several."""
    kinds = {one.name: pa.list_(pa.float32(), one.dimension) for one in collection.models}
    vector: Any = kinds[collection.model.name]
    if len(kinds) > 1:
        vector = pa.struct([pa.field(name, kind) for name, kind in kinds.items()])
    fields: list[Any] = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", vector, nullable=False),
    ]
    if collection.schema:
        fields.append(pa.field("attributes", pa.struct(list(arrow_schema(collection.schema)))))
    fields.append(pa.field("payload", pa.json_()))
    return pa.schema(fields)


def _table(page: Records, schema: pa.Schema) -> pa.Table:
    kind: Any = schema.field("vector").type
    if isinstance(kind, pa.StructType):
        given = page.vectors_by_model
        parts = [_vector_column(given[field.name], field.type) for field in kind]
        vectors: Any = pa.StructArray.from_arrays(parts, fields=list(kind))
    else:
        assert page.vectors is not None
        vectors = _vector_column(page.vectors, kind)
    columns: list[Any] = [pa.array(page.ids, type=pa.string()), vectors]
    if "attributes" in schema.names:
        assert page.attributes is not None
        fields = schema.field("attributes").type
        parts = [page.attributes.column(field.name) for field in fields]
        columns.append(pa.StructArray.from_arrays(parts, fields=list(fields)))
    payloads: Any = page.payloads
    texts = pa.nulls(len(page), pa.string()) if payloads is None else payloads.cast(pa.string())
    columns.append(pa.ExtensionArray.from_storage(schema.field("payload").type, texts))
    return pa.Table.from_arrays(columns, schema=schema)


def _vector_column(vectors: Float32Matrix, kind: Any) -> Any:
    """Return vectors as a column, null where a record has none."""
    flat: Any = pa.array(np.ascontiguousarray(vectors).reshape(-1), type=pa.float32())
    absent = lacking(vectors)
    mask: Any = pa.array(absent) if absent.any() else None
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size, mask=mask)


def json_lines(page: Records) -> Iterator[bytes]:
    """Yield one line a record; missing values are left out."""
    encode = msgspec.json.encode
    attributes = None if page.attributes is None else page.attributes.to_pylist()
    payloads: Any = page.payloads
    for row, record_id in enumerate(page.ids):
        parts = [b'{"id":', encode(record_id)]
        values = {} if not attributes else attributes[row]
        present = {name: value for name, value in values.items() if value is not None}
        parts += [b',"attributes":', encode(present)]
        if payloads is not None and payloads[row].is_valid:
            # Line ends inside JSON stand between its parts only, where a space means the same.
            text = payloads[row].as_py().replace(b"\n", b" ").replace(b"\r", b" ")
            parts += [b',"payload":', text]
        if page.is_by_model:
            lists = {
                name: None if vector is None else vector.tolist()
                for name, vector in (page[row].vectors or {}).items()
            }
            parts += [b',"vector":', encode(lists)]
        elif page.vectors is not None:
            parts += [b',"vector":', encode(page.vectors[row].tolist())]
        yield b"".join([*parts, b"}\n"])


def finished_part(path: Path, *, rows: int) -> ExportPart:
    """Return the entry of a part that was closed."""
    return ExportPart(path.name, rows, path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the checksum of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
