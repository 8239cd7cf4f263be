"""Random schemas, columns and filters against a row-by-row oracle that reads like the manual."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.filters import (
    evaluate,
    fields_of,
    filter_key,
    format_expression,
    parse_expression,
    validate_filter,
)
from annheal.model.collection import Schema
from annheal.model.filter import And, Comparison, ComparisonOp, Filter, Membership, Not, Or
from tests.support.filter_cases import Row, batch_of, cases, holds


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), encoded=st.booleans(), cut=st.integers(0, 11))
def test_masks_equal_the_oracle(
    case: tuple[Schema, list[Row], Filter], encoded: bool, cut: int
) -> None:
    schema, rows, filter = case
    batch = batch_of(schema, rows, encoded=encoded).slice(cut)
    canonical = validate_filter(filter, schema)
    mask = evaluate(canonical, batch, row_count=batch.num_rows)
    assert mask.dtype == np.bool_
    assert mask.shape == (batch.num_rows,)
    assert mask.tolist() == [holds(filter, row) for row in rows[cut:]]


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_validation_is_idempotent_and_keeps_the_fields(
    case: tuple[Schema, list[Row], Filter],
) -> None:
    schema, _, filter = case
    canonical = validate_filter(filter, schema)
    assert validate_filter(canonical, schema) == canonical
    assert fields_of(canonical) == fields_of(filter)


def respelled(filter: Filter, random: Any) -> Filter:
    """The same meaning in another order, with repeats, nesting and double negation."""
    match filter:
        case And(operands) | Or(operands):
            kind = type(filter)
            parts = [respelled(operand, random) for operand in operands]
            random.shuffle(parts)
            return kind((kind((parts[0], parts[-1])), *parts))
        case Not(operand):
            return Not(Not(Not(respelled(operand, random))))
        case Membership(field, values, negated):
            shuffled = random.sample(values, len(values))
            return Membership(field, (*shuffled, shuffled[0]), negated)
    return And((filter,))


@settings(max_examples=200, deadline=None)
@given(case=cases(), random=st.randoms(use_true_random=False))
def test_spellings_of_one_filter_share_a_key(
    case: tuple[Schema, list[Row], Filter], random: Any
) -> None:
    schema, _, filter = case
    one = validate_filter(filter, schema)
    other = validate_filter(respelled(filter, random), schema)
    assert one == other
    assert filter_key(one) == filter_key(other)


@settings(max_examples=300, deadline=None)
@given(case=cases(), other=cases())
def test_different_filters_have_different_keys(
    case: tuple[Schema, list[Row], Filter], other: tuple[Schema, list[Row], Filter]
) -> None:
    one, two = validate_filter(case[2], case[0]), validate_filter(other[2], other[0])
    assert (filter_key(one) == filter_key(two)) == (repr(one) == repr(two))


@settings(max_examples=400, deadline=None)
@given(case=cases())
def test_formatted_filters_parse_back(case: tuple[Schema, list[Row], Filter]) -> None:
    schema, _, filter = case
    canonical = validate_filter(filter, schema)
    text = format_expression(canonical)
    assert "\n" not in text
    assert validate_filter(parse_expression(text), schema) == canonical
    assert validate_filter(parse_expression(format_expression(filter)), schema) == canonical


@settings(max_examples=300, deadline=None)
@given(text=st.text(), name=st.text(min_size=1))
def test_any_text_survives_quoting(text: str, name: str) -> None:
    filter = Comparison(name, ComparisonOp.EQ, text)
    assert parse_expression(format_expression(filter)) == filter
