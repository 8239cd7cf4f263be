"""Writing a segment as local files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from annheal.errors import InvalidArgument, InvariantViolation
from annheal.index import VectorIndex, build_flat
from annheal.model.collection import ModelSpec, Schema, VectorStorage
from annheal.model.records import Float32Matrix, lacking
from annheal.model.topology.manifest import SegmentEntry, Tier
from annheal.segment.checksum import checksum_of, checksum_of_file
from annheal.segment.fields import encode_fields
from annheal.segment.lookup import IdLookup, save_lookup
from annheal.segment.meta import (
    FIELDS_FILE,
    FORMAT_VERSION,
    FORMAT_VERSION_COPIES,
    FORMAT_VERSION_FLOAT32,
    FORMAT_VERSION_LOSSY,
    HASHES_FILE,
    INDEX_FILE,
    LACKING_FILE,
    META_FILE,
    ORDER_FILE,
    ROWS_FILE,
    VECTORS_FILE,
    BuildInfo,
    FileEntry,
    SegmentMeta,
    data_files,
    encode_meta,
)
from annheal.segment.rows import SegmentRows, encode_rows, write_batch
from annheal.shards.routing import hash_ids

_FLUSHED = BuildInfo()


def write_segment(
    directory: Path,
    *,
    segment_id: str,
    tier: Tier,
    model: ModelSpec,
    schema: Schema,
    rows: SegmentRows,
    created_at_s: float,
    index: VectorIndex | None = None,
    build: BuildInfo = _FLUSHED,
    yield_point: Callable[[], None] = lambda: None,
) -> SegmentEntry:
    """Write the files of a segment into `directory` (made if missing) and return its entry.

    `index` holds `rows.vectors` in the same order; a flat one is built when None. Rows of NaN have
    no vector of `model`: the index has zeros for them. What it stores
    decides over the format and the files, whatever `build.storage` says. At least one row; ids
    must be unique. Nothing is flushed to the medium: a segment becomes durable by
    `upload_segment`. Blocks: run it in a worker thread. `yield_point` is called before each file is
    written and ends the work by raising.
    """
    if not len(rows):
        raise InvalidArgument.of("rows", "a segment has at least one row")
    lacking_rows = np.flatnonzero(lacking(rows.vectors))
    if index is None:
        index = build_flat(without_nan(rows.vectors), metric=model.metric)
    _check(rows, index=index, model=model, schema=schema)
    directory.mkdir(parents=True, exist_ok=True)
    lossy = index.storage is not VectorStorage.FLOAT32
    yield_point()
    index.write(directory / INDEX_FILE)
    yield_point()
    if lossy:
        index.write_raw(directory / VECTORS_FILE)
        yield_point()
    batch = encode_rows(rows, schema=schema)
    write_batch(directory / ROWS_FILE, batch)
    yield_point()
    write_batch(directory / FIELDS_FILE, encode_fields(batch, schema=schema))
    yield_point()
    lookup = IdLookup.build(rows.ids, hashes=hash_ids(rows.ids))
    save_lookup(lookup, hashes_path=directory / HASHES_FILE, order_path=directory / ORDER_FILE)
    yield_point()
    copies = index.graph_size != index.rows
    version = FORMAT_VERSION_LOSSY if lossy else FORMAT_VERSION_FLOAT32
    if copies:
        version = FORMAT_VERSION_COPIES
    if len(lacking_rows):
        version = FORMAT_VERSION
        np.save(directory / LACKING_FILE, lacking_rows.astype(np.int32))
    meta = SegmentMeta(
        format_version=version,
        segment_id=segment_id,
        tier=tier,
        rows=len(rows),
        model=model,
        schema=schema,
        index_kind=index.kind,
        build=replace(build, storage=index.storage),
        min_sequence=int(rows.sequences.min()),
        max_sequence=int(rows.sequences.max()),
        created_at_s=created_at_s,
        files=tuple(file_entry(directory / name) for name in data_files(version, index.storage)),
        graph_rows=index.graph_size if copies else 0,
    )
    return _write_meta(directory, meta, lacking_count=len(lacking_rows))


def without_nan(vectors: Float32Matrix) -> Float32Matrix:
    """Return `vectors` (n, d) with zeros in the place of rows of NaN, for an index."""
    absent = lacking(vectors)
    return np.where(absent[:, None], np.float32(0), vectors) if absent.any() else vectors


def _write_meta(directory: Path, meta: SegmentMeta, *, lacking_count: int) -> SegmentEntry:
    body = encode_meta(meta)
    (directory / META_FILE).write_bytes(body)
    return SegmentEntry(
        segment_id=meta.segment_id,
        tier=meta.tier,
        model=meta.model.name,
        index_kind=meta.index_kind,
        rows=meta.rows,
        size_bytes=sum(file.size_bytes for file in meta.files) + len(body),
        meta_checksum=checksum_of(body),
        min_sequence=meta.min_sequence,
        max_sequence=meta.max_sequence,
        generation=meta.build.generation,
        created_at_s=meta.created_at_s,
        lacking=lacking_count,
    )


def file_entry(path: Path) -> FileEntry:
    """Return name, size and checksum of a file; blocks."""
    return FileEntry(path.name, path.stat().st_size, checksum_of_file(path))


def _check(rows: SegmentRows, *, index: VectorIndex, model: ModelSpec, schema: Schema) -> None:
    """Refuse rows that do not belong together: a bug of the caller."""
    n = len(rows)
    names = [field.name for field in schema]
    agree = (
        rows.sequences.shape == (n,)
        and rows.sequences.dtype == np.int64
        and rows.vectors.shape == (n, model.dimension)
        and rows.attributes.schema.names == names
        and (not names or rows.attributes.num_rows == n)
        and len(rows.payloads) == n
        and (index.rows, index.dimension) == (n, model.dimension)
        and index.metric is model.metric
        and rows.ids.null_count == 0
    )
    if not agree:
        raise InvariantViolation(
            f"rows of a segment disagree: {n} ids, sequences {rows.sequences.shape}, vectors"
            f" {rows.vectors.shape}, attributes {rows.attributes.schema.names} of"
            f" {rows.attributes.num_rows} rows, {len(rows.payloads)} payloads, an index of"
            f" {index.rows} x {index.dimension}; schema {names}, dimension {model.dimension}"
        )
