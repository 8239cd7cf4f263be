"""Random schemas, rows and filters, and a row-by-row oracle that reads like the manual."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeAlias

import pyarrow as pa
from hypothesis import strategies as st

from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import (
    And,
    Comparison,
    ComparisonOp,
    Exists,
    Filter,
    Membership,
    Not,
    Or,
    Prefix,
)
from annheal.model.records import arrow_schema

Row: TypeAlias = dict[str, Any]

NAMES = ["year", "eco", "tags", "score", "on", "at", "exists", "not", "prefix"]
ORDERED = {
    AttributeType.KEYWORD,
    AttributeType.INT64,
    AttributeType.FLOAT64,
    AttributeType.TIMESTAMP,
}
TEXTUAL = {AttributeType.KEYWORD, AttributeType.KEYWORD_LIST}

# Few distinct values, so that filters match; among them the ones that break careless code.
TEXTS = st.sampled_from(["", "a", "aa", "ab", "b", "é", "\U0001f600", "\uffff", "it's", 'q"\\\n'])
INTS = st.sampled_from([-(2**63), -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1])
FLOATS = st.sampled_from([-1.5, -0.0, 0.0, 0.1, 1.0, 1e300, 5e-324, 2.0**53])
TIMES = st.sampled_from(
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
)
SCALARS: dict[AttributeType, st.SearchStrategy[Any]] = {
    AttributeType.KEYWORD: TEXTS,
    AttributeType.KEYWORD_LIST: TEXTS,
    AttributeType.INT64: INTS,
    AttributeType.FLOAT64: FLOATS,
    AttributeType.BOOL: st.booleans(),
    AttributeType.TIMESTAMP: TIMES,
}


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    return tuple(AttributeField(n, draw(st.sampled_from(list(AttributeType)))) for n in names)


def cells(type: AttributeType) -> st.SearchStrategy[Any]:
    present = SCALARS[type]
    if type is AttributeType.KEYWORD_LIST:
        present = st.lists(present, max_size=3)
    return st.none() | present


def rows_of(schema: Schema) -> st.SearchStrategy[list[Row]]:
    row = st.fixed_dictionaries({field.name: cells(field.type) for field in schema})
    return st.lists(row, max_size=20)


@st.composite
def leaves(draw: st.DrawFn, schema: Schema) -> Filter:
    field = draw(st.sampled_from(schema))
    values = SCALARS[field.type]
    kinds = ["compare", "in", "exists"] + (["prefix"] if field.type in TEXTUAL else [])
    match draw(st.sampled_from(kinds)):
        case "compare":
            ops = list(ComparisonOp)[: 6 if field.type in ORDERED else 2]
            return Comparison(field.name, draw(st.sampled_from(ops)), draw(values))
        case "in":
            wanted = draw(st.lists(values, min_size=1, max_size=4))
            return Membership(field.name, tuple(wanted), draw(st.booleans()))
        case "prefix":
            return Prefix(field.name, draw(TEXTS))
    return Exists(field.name)


def filters_of(schema: Schema) -> st.SearchStrategy[Filter]:
    def grown(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        operands = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return operands.map(And) | operands.map(Or) | inner.map(Not)

    return st.recursive(leaves(schema), grown, max_leaves=8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schema, list[Row], Filter]:
    schema = draw(schemas())
    return schema, draw(rows_of(schema)), draw(filters_of(schema))


def holds(filter: Filter, row: Row) -> bool:
    """The semantics of docs/filters.md, for one row."""
    match filter:
        case And(operands):
            return all(holds(operand, row) for operand in operands)
        case Or(operands):
            return any(holds(operand, row) for operand in operands)
        case Not(operand):
            return not holds(operand, row)
        case Exists(field):
            return row[field] is not None
        case Comparison(field, ComparisonOp.NE, value):
            return not holds(Comparison(field, ComparisonOp.EQ, value), row)
        case Membership(field, values, True):
            return not holds(Membership(field, values), row)
    cell = row[filter.field]
    if cell is None:
        return False
    elements = cell if isinstance(cell, list) else [cell]
    match filter:
        case Prefix(_, prefix):
            return any(element.startswith(prefix) for element in elements)
        case Membership(_, values):
            return any(element in values for element in elements)
    tests = {"=": "__eq__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    assert isinstance(filter, Comparison)
    return any(getattr(element, tests[filter.op])(filter.value) for element in elements)


def batch_of(schema: Schema, rows: list[Row], *, encoded: bool) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(schema))
    if not encoded:
        return batch
    columns = [c.dictionary_encode() if pa.types.is_string(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
