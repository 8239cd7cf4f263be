"""Field indexes select exactly what the evaluation of every row selects, and count it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.errors import InvariantViolation
from annheal.filters import (
    INDEXED_TYPES,
    IndexedColumns,
    build_postings,
    evaluate,
    field_index,
    parse_expression,
    sorted_dictionary,
    validate_filter,
)
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import Comparison, ComparisonOp, Filter, Membership, Prefix
from annheal.model.records import arrow_schema
from tests.support.filter_cases import Row, batch_of, cases, holds

RELAXED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
COSTS = {
    "as measured": {},
    "compare": {"_COMPARE_NS_PER_ROW": 0.0},
    "collect": {"_COMPARE_NS_PER_ROW": 1e9},
    "search at once": {"_SEARCHED_AT_ONCE_MIN": 0},
}


def stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns as `rows.arrow` has them."""
    columns = [
        sorted_dictionary(column.dictionary_encode()) if pa.types.is_string(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def indexed(batch: pa.RecordBatch, schema: Schema, *, row_count: int) -> IndexedColumns:
    columns = stored(batch)
    postings = {
        field.name: build_postings(columns.column(field.name), field.type)
        for field in schema
        if field.type in INDEXED_TYPES
    }
    return IndexedColumns(columns, postings, row_count=row_count)


def selected(index: IndexedColumns, filter: Filter, *, row_count: int) -> list[bool]:
    packed, count = index.matches(filter)
    assert packed.dtype == np.uint8
    assert packed.shape == ((row_count + 7) // 8,)
    bits = np.unpackbits(packed, bitorder="little")
    assert not bits[row_count:].any(), "padding is not zero"
    assert count == bits.sum()
    return [bool(bit) for bit in bits[:row_count]]


@pytest.fixture(params=list(COSTS))
def costs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COSTS[request.param].items():
        monkeypatch.setattr(field_index, name, value)


@pytest.mark.usefixtures("costs")
@settings(max_examples=120, deadline=None, suppress_health_check=RELAXED)
@given(case=cases(), cut=st.integers(0, 11))
def test_selections_equal_the_oracle(case: tuple[Schema, list[Row], Filter], cut: int) -> None:
    schema, rows, filter = case
    kept = rows[cut:]
    if not kept:
        return
    index = indexed(batch_of(schema, rows, encoded=False).slice(cut), schema, row_count=len(kept))
    canonical = validate_filter(filter, schema)
    expected = [holds(filter, row) for row in kept]
    assert selected(index, canonical, row_count=len(kept)) == expected


@pytest.mark.usefixtures("costs")
@settings(max_examples=60, deadline=None, suppress_health_check=RELAXED)
@given(case=cases(), row_count=st.integers(1, 2_000), seed=st.integers(0, 2**32 - 1))
def test_selections_of_many_rows_equal_the_evaluation(
    case: tuple[Schema, list[Row], Filter], row_count: int, seed: int
) -> None:
    schema, rows, filter = case
    if not rows:
        return
    # Skewed, so that values of one row lie beside values with a bitmap.
    choice = np.random.default_rng(seed).zipf(1.5, size=row_count) % len(rows)
    batch = batch_of(schema, rows, encoded=False).take(pa.array(choice))
    canonical = validate_filter(filter, schema)
    expected = evaluate(canonical, batch, row_count=row_count).tolist()
    index = indexed(batch, schema, row_count=row_count)
    assert selected(index, canonical, row_count=row_count) == expected


SCHEMA: Schema = (
    AttributeField("name", AttributeType.KEYWORD),
    AttributeField("tags", AttributeType.KEYWORD_LIST),
    AttributeField("size", AttributeType.INT64),
    AttributeField("score", AttributeType.FLOAT64),
    AttributeField("stable", AttributeType.BOOL),
    AttributeField("later", AttributeType.KEYWORD),
)
ROWS = 6_000


@pytest.fixture(scope="module")
def batch() -> pa.RecordBatch:
    random = np.random.default_rng(5)
    scores: Any = np.where(random.random(ROWS) < 0.3, np.nan, random.normal(size=ROWS))
    missing = random.random(ROWS) < 0.1
    columns: list[Any] = [
        pa.array([f"n{i:04d}" for i in random.integers(0, 3_000, ROWS)], mask=missing),
        pa.array([[f"t{i % 7}", f"t{i % 90}", f"t{i % 7}"] for i in range(ROWS)]),
        pa.array(random.integers(-(2**63), 2**63 - 1, ROWS), mask=missing[::-1]),
        pa.array(scores, mask=np.roll(missing, 9)),
        pa.array(random.random(ROWS) < 0.5, mask=np.roll(missing, 5)),
        pa.nulls(ROWS, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(SCHEMA))


@pytest.fixture(scope="module")
def index(batch: pa.RecordBatch) -> IndexedColumns:
    return indexed(batch, SCHEMA, row_count=ROWS)


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(
    "text",
    [
        "name starts with 'n00'",
        "name starts with 'n' and name < 'n2'",
        "not name starts with 'n29'",
        "name >= 'n1' and name < 'n2' and name != 'n1500'",
        "name > 'zzz' or name < ''",
        "tags = 't3'",
        "tags in ('t3', 't50', 'absent')",
        "tags starts with 't1'",
        "not tags starts with 't'",
        "size > 0 and size < 4611686018427387904",
        "size > 0 and size < 0",
        "size >= 0 or size < 0",
        "score < 100",
        "score > -100 and stable = true",
        "score >= -0.5",
        "not score < 0.5",
        "stable in (true, false)",
        "stable != true and exists(stable)",
        "later = 'x' or exists(later) or not exists(name)",
        "later != 'x'",
        "name = 'n0001' and tags = 't1' and size > 0 and score < 0",
    ],
)
def test_shapes_of_filters(index: IndexedColumns, batch: pa.RecordBatch, text: str) -> None:
    filter = validate_filter(parse_expression(text), SCHEMA)
    expected = evaluate(filter, batch, row_count=ROWS).tolist()
    assert selected(index, filter, row_count=ROWS) == expected


@pytest.mark.parametrize("wanted", [2, 70, 2_500])
def test_long_memberships(index: IndexedColumns, batch: pa.RecordBatch, wanted: int) -> None:
    sizes = batch.column("size").drop_null().to_pylist()[:wanted]
    filters: list[Filter] = [
        Membership("name", tuple(f"n{i:04d}" for i in range(0, 2 * wanted, 2))),
        Membership("tags", tuple(f"t{i}" for i in range(1, wanted + 1))),
        Membership("size", (*sizes, 17)),
    ]
    for filter in filters:
        canonical = validate_filter(filter, SCHEMA)
        expected = evaluate(canonical, batch, row_count=ROWS).tolist()
        assert any(expected)
        assert selected(index, canonical, row_count=ROWS) == expected


def test_a_field_the_segment_does_not_have_is_missing_in_every_row(index: IndexedColumns) -> None:
    equal = Comparison("newer", ComparisonOp.EQ, "x")
    assert index.matches(equal)[1] == 0
    assert index.matches(Comparison("newer", ComparisonOp.NE, "x"))[1] == ROWS


def test_a_filter_of_another_schema_is_a_bug(index: IndexedColumns) -> None:
    for filter in (
        Prefix("size", "x"),
        Comparison("name", ComparisonOp.EQ, 1),
        Comparison("size", ComparisonOp.LT, "x"),
        Comparison("tags", ComparisonOp.EQ, 1),
        Comparison("stable", ComparisonOp.LT, True),
    ):
        with pytest.raises(InvariantViolation):
            index.matches(filter)


def test_a_value_of_many_rows_has_a_bitmap_and_others_take_four_bytes_a_row() -> None:
    values = ["common"] * 900 + [f"rare{i}" for i in range(100)]
    column = sorted_dictionary(pa.array(values).dictionary_encode())
    postings = build_postings(column, AttributeType.KEYWORD)
    assert postings.dense_counts.tolist() == [900]
    assert postings.dense_words.shape == (1, 16)
    assert len(postings.rows) == 100
