"""Vocabulary for tests that need segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.index import VectorIndex
from annheal.model.collection import AttributeField, AttributeType, Metric, ModelSpec, Schema
from annheal.model.records import ARROW_TYPES, arrow_schema
from annheal.model.topology.manifest import SegmentEntry, Tier
from annheal.segment import BuildInfo, Segment, SegmentRows, local_segment, write_segment

MODEL = ModelSpec("test-model", 8, Metric.COSINE)
SCHEMA: Schema = (
    AttributeField("colour", AttributeType.KEYWORD),
    AttributeField("tags", AttributeType.KEYWORD_LIST),
    AttributeField("size", AttributeType.INT64),
    AttributeField("weight", AttributeType.FLOAT64),
    AttributeField("sold", AttributeType.BOOL),
    AttributeField("seen", AttributeType.TIMESTAMP),
)


def unit_vectors(rows: int, dimension: int, *, seed: int = 1) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def attribute_batch(schema: Schema, columns: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    arrays: list[pa.Array[Any]] = [
        pa.array(columns[field.name], type=ARROW_TYPES[field.type]) for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(schema))


def sample_columns(rows: int) -> dict[str, list[Any]]:
    """Return columns of `SCHEMA` with nulls in every one."""
    colours = ["red", "green", "blue", None]
    return {
        "colour": [colours[i % 4] for i in range(rows)],
        "tags": [None if i % 5 == 4 else ["a", "bé"][: i % 3] for i in range(rows)],
        "size": [None if i % 7 == 6 else i - 3 for i in range(rows)],
        "weight": [None if i % 6 == 5 else i / 4 for i in range(rows)],
        "sold": [[True, False, None][i % 3] for i in range(rows)],
        "seen": [None if i % 9 == 8 else i * 1_000_003 for i in range(rows)],
    }


def sample_rows(
    rows: int,
    *,
    first: int = 0,
    model: ModelSpec = MODEL,
    schema: Schema = SCHEMA,
    seed: int = 1,
) -> SegmentRows:
    """Return rows with ids `record-<first>`..., and sequences that are ten times the number."""
    numbers = range(first, first + rows)
    return SegmentRows(
        ids=pa.array([f"record-{i}" for i in numbers], type=pa.string()),
        sequences=np.array(numbers, dtype=np.int64) * 10,
        vectors=unit_vectors(rows, model.dimension, seed=seed + first),
        attributes=attribute_batch(schema, sample_columns(rows)),
        payloads=pa.array(
            [None if i % 4 == 3 else b'{"n": %d}' % i for i in numbers], type=pa.binary()
        ),
    )


def write_sample(
    directory: Path,
    *,
    segment_id: str = "seg-1",
    rows: SegmentRows | None = None,
    model: ModelSpec = MODEL,
    schema: Schema = SCHEMA,
    index: VectorIndex | None = None,
    build: BuildInfo | None = None,
) -> SegmentEntry:
    return write_segment(
        directory,
        segment_id=segment_id,
        tier=Tier.HOT,
        model=model,
        schema=schema,
        rows=sample_rows(20) if rows is None else rows,
        created_at_s=1_700_000_000.0,
        index=index,
        build=build or BuildInfo(),
    )


def open_local(directory: Path, entry: SegmentEntry) -> Segment:
    return Segment.open(local_segment(directory, entry), entry)
