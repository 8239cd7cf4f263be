"""Masks over Arrow columns in the encodings and layouts that segments use."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annheal.errors import InvariantViolation
from annheal.filters import evaluate, fields_of, parse_expression, validate_filter
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import And, Comparison, ComparisonOp, Exists, Prefix

SCHEMA: Schema = (
    AttributeField("eco", AttributeType.KEYWORD),
    AttributeField("tags", AttributeType.KEYWORD_LIST),
    AttributeField("year", AttributeType.INT64),
    AttributeField("score", AttributeType.FLOAT64),
    AttributeField("stable", AttributeType.BOOL),
    AttributeField("created", AttributeType.TIMESTAMP),
    AttributeField("later", AttributeType.KEYWORD),
)
COLUMNS: dict[str, Any] = {
    "eco": pa.array(["pypi", "npm", None, "pypi-test"]),
    "tags": pa.array([["a", "b"], [], None, ["b"]], pa.list_(pa.string())),
    "year": pa.array([2023, None, 2025, 2**53 + 1]),
    "score": pa.array([0.5, -1.0, None, float("nan")]),
    "stable": pa.array([True, False, None, True]),
    "created": pa.array(
        [datetime(2024, 1, 1, tzinfo=UTC), None, datetime(1960, 1, 1, tzinfo=UTC), None],
        pa.timestamp("us", tz="UTC"),
    ),
}
BATCH = pa.RecordBatch.from_pydict(COLUMNS)


def matches(text: str, batch: pa.RecordBatch = BATCH) -> list[int]:
    filter = validate_filter(parse_expression(text), SCHEMA)
    mask = evaluate(filter, batch, row_count=batch.num_rows)
    return [int(row) for row in np.flatnonzero(mask)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("eco = 'pypi'", [0]),
        ("eco != 'pypi'", [1, 2, 3]),
        ("eco > 'npm'", [0, 3]),
        ("not eco > 'npm'", [1, 2]),
        ("eco <= 'npm'", [1]),
        ("eco in ('npm', 'pypi')", [0, 1]),
        ("eco not in ('npm', 'pypi')", [2, 3]),
        ("eco starts with 'pypi'", [0, 3]),
        ("exists(eco)", [0, 1, 3]),
        ("not exists(eco)", [2]),
        ("tags = 'b'", [0, 3]),
        ("tags != 'a'", [1, 2, 3]),
        ("tags in ('a', 'z')", [0]),
        ("tags starts with 'b'", [0, 3]),
        ("exists(tags)", [0, 1, 3]),
        ("year >= 2024", [2, 3]),
        ("year = 9007199254740992", []),
        ("year in (9007199254740992, 2025)", [2]),
        ("year not in (2023, 2025)", [1, 3]),
        ("score < 0", [1]),
        ("score >= 0", [0]),
        ("score != 0.5", [1, 2, 3]),
        ("stable = true", [0, 3]),
        ("stable = false", [1]),
        ("stable in (true, false)", [0, 1, 3]),
        ("created >= '2024-01-01'", [0]),
        ("created < '1970-01-01'", [2]),
        ("created = '2024-01-01T00:00:00.000001Z'", []),
        ("created in ('2024-01-01', '1960-01-01')", [0, 2]),
        ("eco = 'pypi' or year = 2025", [0, 2]),
        ("eco starts with 'pypi' and stable = true and score = 0.5", [0]),
        ("later = 'x' or exists(later) or later starts with ''", []),
        ("later != 'x'", [0, 1, 2, 3]),
    ],
)
def test_matches(text: str, rows: list[int]) -> None:
    assert matches(text) == rows
    encoded = [
        column.dictionary_encode() if pa.types.is_string(column.type) else column
        for column in BATCH.columns
    ]
    assert matches(text, pa.RecordBatch.from_arrays(encoded, names=BATCH.schema.names)) == rows
    assert matches(text, BATCH.slice(1)) == [row - 1 for row in rows if row >= 1]


def test_dictionaries_with_repeats_nulls_and_garbage_codes() -> None:
    codes = pa.Array.from_buffers(
        pa.int32(),
        5,
        [
            pa.py_buffer(bytes([0b01111])),
            pa.py_buffer(np.array([0, 1, 2, 3, 999], np.int32).tobytes()),
        ],
    )
    column = pa.DictionaryArray.from_arrays(codes, pa.array(["x", "y", "x", None]), safe=False)
    batch = pa.RecordBatch.from_arrays([column], names=["eco"])
    assert matches("eco = 'x'", batch) == [0, 2]
    assert matches("eco = 'y'", batch) == [1]
    assert matches("eco != 'x'", batch) == [1, 3, 4]
    assert matches("exists(eco)", batch) == [0, 1, 2]


def test_lists_of_dictionaries_with_values_under_a_null() -> None:
    elements = pa.array(["a", "b", "a", None]).dictionary_encode()
    offsets, nulls = pa.array([0, 1, 3, 4], pa.int32()), pa.array([True, False, False])
    column = pa.ListArray.from_arrays(offsets, elements, mask=nulls)
    batch = pa.RecordBatch.from_arrays([column], names=["tags"])
    assert matches("tags = 'a'", batch) == [1]
    assert matches("tags != 'a'", batch) == [0, 2]


def test_the_mask_is_the_callers_own() -> None:
    filter = Exists("eco")
    first = evaluate(filter, BATCH, row_count=4)
    first[:] = False
    assert evaluate(filter, BATCH, row_count=4).tolist() == [True, True, False, True]


def test_batches_without_columns_or_rows() -> None:
    nothing = pa.RecordBatch.from_arrays([], names=[])
    assert evaluate(Exists("eco"), nothing, row_count=3).tolist() == [False] * 3
    other = Comparison("eco", ComparisonOp.NE, "x")
    assert evaluate(other, nothing, row_count=3).tolist() == [True] * 3
    assert evaluate(other, BATCH.slice(0, 0), row_count=0).shape == (0,)


def test_a_filter_of_another_schema_is_a_bug() -> None:
    with pytest.raises(InvariantViolation, match="compares text with a column of type int64"):
        evaluate(Prefix("year", "x"), BATCH, row_count=4)
    with pytest.raises(InvariantViolation, match="compares a number with a column of type string"):
        evaluate(Comparison("eco", ComparisonOp.EQ, 1), BATCH, row_count=4)
    with pytest.raises(InvariantViolation, match="4 rows of attributes for 5 rows"):
        evaluate(Exists("eco"), BATCH, row_count=5)


def test_fields_of_names_every_field_read() -> None:
    filter = parse_expression("not (eco = 'x' or exists(year)) and tags in ('a') and eco != 'y'")
    assert isinstance(filter, And)
    assert fields_of(filter) == {"eco", "year", "tags"}


def test_a_keyword_among_100k_rows_takes_about_a_millisecond() -> None:
    rows = 100_000
    names = pa.array([f"name-{n % 50}" for n in range(rows)]).dictionary_encode()
    batch = pa.RecordBatch.from_arrays([names], names=["eco"])
    filter = Comparison("eco", ComparisonOp.EQ, "name-7")
    mask = evaluate(filter, batch, row_count=rows)
    times_s = []
    for _ in range(20):
        start = time.perf_counter()
        evaluate(filter, batch, row_count=rows)
        times_s.append(time.perf_counter() - start)
    assert mask.sum() == rows // 50
    assert min(times_s) < 0.003  # 0.06 ms where it was written
