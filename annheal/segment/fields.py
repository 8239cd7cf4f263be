"""`fields.arrow`: the index of every filterable field of a segment, mapped as it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.filters import INDEXED_TYPES, Postings, build_postings
from annheal.model.collection import Schema
from annheal.segment.rows import attribute_columns, map_batch

_ROWS_KEY = b"rows"
_WORD_BITS = 64
_SCHEMA = pa.schema(
    [
        pa.field("field", pa.string(), nullable=False),
        pa.field("rows", pa.large_list(pa.int32()), nullable=False),
        pa.field("dense_keys", pa.large_list(pa.int32()), nullable=False),
        pa.field("dense_counts", pa.large_list(pa.int32()), nullable=False),
        pa.field("dense_words", pa.large_list(pa.uint64()), nullable=False),
        pa.field("starts", pa.large_list(pa.uint32()), nullable=False),
        pa.field("texts", pa.large_list(pa.large_string()), nullable=False),
    ]
)


def encode_fields(batch: pa.RecordBatch, *, schema: Schema) -> pa.RecordBatch:
    """Return the record batch of `fields.arrow` for a batch of `rows.arrow`: a row per index."""
    columns = attribute_columns(batch)
    built = [
        (field.name, build_postings(column, field.type))
        for field, column in zip(schema, columns, strict=True)
        if field.type in INDEXED_TYPES
    ]
    postings = [found for _, found in built]
    arrays: list[Any] = [
        pa.array([name for name, _ in built], type=pa.string()),
        _listed([p.rows for p in postings], pa.int32()),
        _listed([p.dense_keys for p in postings], pa.int32()),
        _listed([p.dense_counts for p in postings], pa.int32()),
        _listed([p.dense_words.reshape(-1) for p in postings], pa.uint64()),
        _listed([p.starts for p in postings], pa.uint32()),
        _listed([p.texts for p in postings], pa.large_string()),
    ]
    marked = _SCHEMA.with_metadata({_ROWS_KEY: str(batch.num_rows).encode()})
    return pa.RecordBatch.from_arrays(arrays, schema=marked)


def open_fields(path: Path, *, schema: Schema, rows: int) -> dict[str, Postings]:
    """Map `fields.arrow`. Raises `ValueError` when it is not what `segment.json` says."""
    batch = map_batch(path)
    if not batch.schema.equals(_SCHEMA):
        raise ValueError(f"its columns are {batch.schema}")
    marked = (batch.schema.metadata or {}).get(_ROWS_KEY)
    if marked != str(rows).encode():
        raise ValueError(f"it indexes {marked!r} rows, not {rows}")
    expected = [field.name for field in schema if field.type in INDEXED_TYPES]
    found = cast("list[str]", batch.column(0).to_pylist())
    if found != expected:
        raise ValueError(f"it indexes {found}, not {expected}")
    return {name: _postings(batch, number, rows=rows) for number, name in enumerate(found)}


def _postings(batch: pa.RecordBatch, number: int, *, rows: int) -> Postings:
    def numbers(name: str) -> npt.NDArray[Any]:
        values = batch.column(name)[number].values
        return cast("npt.NDArray[Any]", values.to_numpy(zero_copy_only=True))

    words = -(-rows // _WORD_BITS)
    return Postings(
        rows=numbers("rows"),
        dense_keys=numbers("dense_keys"),
        dense_counts=numbers("dense_counts"),
        dense_words=numbers("dense_words").reshape(-1, words),
        starts=numbers("starts"),
        texts=batch.column("texts")[number].values,
    )


def _listed(parts: Sequence[Any], type: pa.DataType) -> Any:
    """Return a list column with one list for each of `parts`."""
    ends = np.cumsum([0, *(len(part) for part in parts)])
    arrays = [pa.array(part, type=type) for part in parts]
    values = pa.concat_arrays(arrays) if arrays else pa.array([], type=type)
    return pa.LargeListArray.from_arrays(pa.array(ends, type=pa.int64()), values)
