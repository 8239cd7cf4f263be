"""Canonical forms, and a message with path and fix for every kind of mistake."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annheal.errors import InvalidArgument
from annheal.filters import (
    checked_tree,
    evaluate,
    filter_key,
    parse_expression,
    validate_filter,
)
from annheal.filters.validate import VIOLATIONS_MAX
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import (
    FILTER_DEPTH_MAX,
    FILTER_MEMBERSHIP_VALUES_MAX,
    FILTER_NODES_MAX,
    FILTER_STRING_BYTES_MAX,
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

SCHEMA: Schema = (
    AttributeField("ecosystem", AttributeType.KEYWORD),
    AttributeField("tags", AttributeType.KEYWORD_LIST),
    AttributeField("year", AttributeType.INT64),
    AttributeField("score", AttributeType.FLOAT64),
    AttributeField("stable", AttributeType.BOOL),
    AttributeField("created", AttributeType.TIMESTAMP),
)
NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)


def canonical(text: str) -> Filter:
    return validate_filter(parse_expression(text), SCHEMA)


def equals(field: str, value: Any) -> Comparison:
    return Comparison(field, ComparisonOp.EQ, value)


def refusal(filter: Filter | str) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        validate_filter(parse_expression(filter) if isinstance(filter, str) else filter, SCHEMA)
    return caught.value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("year = 1 and score > 2", "score > 2.0 and year = 1.0"),
        ("year = 1 and (score = 2 and stable = true)", "stable = true and year = 1 and score = 2"),
        ("year = 1 or year = 1", "year = 1"),
        ("year in (3, 1, 2, 3)", "year in (1, 2, 3)"),
        ("year in (2, 2.0)", "year = 2"),
        ("year not in (2)", "year != 2"),
        ("not year = 2", "year != 2"),
        ("not (year not in (1, 2))", "year in (1, 2)"),
        ("not not year < 2", "year < 2"),
        ("score = -0.0", "score = 0"),
        ("year = 9007199254740993.0", "year = 9007199254740993"),
        ("year = 9.007199254740993e15", "year = 9007199254740993"),
        ("year in (1e17, -1e0)", "year in (-1, 100000000000000000)"),
        ("score = 18446744073709551616", "score = 1.8446744073709552e19"),
        ("score = 1.2345678901234568e+18", "score = 1234567890123456768"),
        ("created >= '2024-01-31'", "created >= '2024-01-31T00:00:00Z'"),
        ("created = '2024-01-31T14:00:00.5+02:00'", "created = '2024-01-31 12:00:00.500000z'"),
        ("created = '2024-01-31T12:00:00.000000000Z'", "created = '2024-01-31T12:00:00Z'"),
    ],
)
def test_equal_meanings_become_equal_filters(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)
    assert filter_key(canonical(one)) == filter_key(canonical(other))
    assert hash(canonical(one)) == hash(canonical(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("not year < 2", "year >= 2"),  # they differ where the year is missing
        ("not (year = 1 and score = 1)", "year != 1 and score != 1"),
        ("ecosystem in ('a', 'b')", "ecosystem in ('a,b')"),
        ("ecosystem = 'x' and tags = 'y'", "ecosystem = 'y' and tags = 'x'"),
        ("ecosystem = 'a'", "ecosystem starts with 'a'"),
        ("score = 0.1", "score = 0.10000000000000002"),
        ("year = 9007199254740993", "year = 9007199254740992"),
        ("created = '2024-01-01'", "created = '2024-01-01T00:00:00.000001Z'"),
    ],
)
def test_different_meanings_keep_different_keys(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)
    assert filter_key(canonical(one)) != filter_key(canonical(other))


def test_key_tells_types_apart_that_python_holds_equal() -> None:
    keys = {filter_key(equals("x", value)) for value in (1, 1.0, True, "1")}
    assert len(keys) == 4


def test_values_become_the_type_of_their_field() -> None:
    year, score = canonical("year = 2024.0"), canonical("score = 2")
    assert isinstance(year, Comparison)
    assert type(year.value) is int
    assert year.value == 2024
    assert isinstance(score, Comparison)
    assert type(score.value) is float
    assert canonical("created = '2024-01-31T12:00:00Z'") == equals("created", NOON)
    abroad = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert validate_filter(equals("created", abroad), SCHEMA) == equals("created", NOON)


@pytest.mark.parametrize(
    ("filter", "path", "words"),
    [
        ("yaer = 1", "filter.yaer", "unknown field; did you mean year? The fields are: created, "),
        ("zzz = 1", "filter.zzz", "unknown field. The fields are: created, ecosystem, score"),
        ("year = 'x'", "filter.year", "has type int64, but 'x' is a string; write for example 20"),
        ("year = true", "filter.year", "has type int64, but true is a boolean"),
        ("year >= 2023.5", "filter.year", "2023.5 has a fraction and the field has type int64; wr"),
        ("year > 2023.5", "filter.year", "write >= 2024"),
        ("year < 2023.5", "filter.year", "write <= 2023"),
        ("year in (1, 1.5)", "filter.year.in[1]", "no record can equal it; write a whole number"),
        ("year = 9223372036854775808", "filter.year", "does not fit int64; values lie from -9223"),
        (f"year = {'9' * 300}", "filter.year", "a number of 997 bits does not fit int64"),
        (f"score = {'9' * 399}", "filter.score", "is not a finite float64; write for example 0.5"),
        (equals("score", float("nan")), "filter.score", "nan is not a finite float64"),
        (equals("year", float("inf")), "filter.year", "inf is not a finite number"),
        ("score = 9007199254740993", "filter.score", "9007199254740992 and 9007199254740994"),
        ("score = 9007199254740993.0", "filter.score", "no record can equal it; the nearest"),
        ("score >= 9007199254740993", "filter.score", "write >= 9007199254740994"),
        ("score < 9007199254740993", "filter.score", "write <= 9007199254740992"),
        ("score != 36893488147419103233", "filter.score", "is no float64"),
        (equals("year", 2.0**53 + 2), "filter.year", "may have been rounded"),
        ("year = 1.00000000000000000001", "filter", "float64 has no place for all digits"),
        ("year = 9007199254740992.5", "filter", "float64 has no place for all digits"),
        ("score > 1e-400", "filter", "too small for float64"),
        ("score = 'x'", "filter.score", "has type float64, but 'x' is a string"),
        ("ecosystem = 5", "filter.ecosystem", "keyword, but 5 is a whole number; write for exam"),
        ("tags = 1.5", "filter.tags", "has type keyword_list, but 1.5 is a number"),
        (equals("tags", None), "filter.tags", "a value is text, a number, a bool or a datetime"),
        ("tags < 'a'", "filter.tags", "< does not apply to type keyword_list; use =, !=, in and"),
        ("stable >= true", "filter.stable", ">= does not apply to type bool; use =, != and in"),
        ("stable = 1", "filter.stable", "has type bool, but 1 is a whole number; write for exam"),
        ("year starts with 'x'", "filter.year", "prefix does not apply to type int64; only to"),
        ("created = 5", "filter.created", "not 5, which could be seconds or microseconds; send"),
        ("created = 'soon'", "filter.created", "'soon' is not a timestamp; write RFC 3339, for"),
        ("created = '2024-01-31T12:00:00'", "filter.created", "has no time zone; end it with Z"),
        ("created = '2024-02-30'", "filter.created", "is not a timestamp that exists: day is out"),
        ("created = '2024-01-31T12:00:00.1234567Z'", "filter.created", "finer than a microsecon"),
        ("created = '0001-01-01T00:00:00+01:00'", "filter.created", "outside the years 1 to 9999"),
        (equals("created", NOON.replace(tzinfo=None)), "filter.created", "has no time zone"),
        (equals("ecosystem", "\ud800"), "filter.ecosystem", "half of a surrogate pair"),
        (Membership("year", ()), "filter.year", "'in' has no values; give at least one"),
        (Membership("year", (), True), "filter.year", "'not in' has no values"),
        (And(()), "filter.and", "no operands; give at least one"),
        (Not(Or(())), "filter.not.or", "no operands"),
        ("stable = true and (year = 1 or not yea = 1)", "filter.and[1].or[1].not.yea", "unknown"),
    ],
)
def test_mistakes_name_their_place_and_their_fix(
    filter: Filter | str, path: str, words: str
) -> None:
    error = refusal(filter)
    assert [violation.field for violation in error.violations] == [path]
    assert words in error.violations[0].description
    assert str(error).startswith(path)


def test_every_mistake_is_reported_at_once() -> None:
    error = refusal("year = 'x' and (nope = 1 or tags in ('a', 1))")
    assert [violation.field for violation in error.violations] == [
        "filter.and[0].year",
        "filter.and[1].or[0].nope",
        "filter.and[1].or[1].tags.in[1]",
    ]
    many = refusal(And(tuple(equals(f"no{n}", 1) for n in range(VIOLATIONS_MAX + 5))))
    assert len(many.violations) == VIOLATIONS_MAX


def test_a_schema_without_attributes_says_so() -> None:
    with pytest.raises(InvalidArgument, match="declares no attributes"):
        validate_filter(Exists("x"), ())


def test_long_lists_of_fields_are_cut_short() -> None:
    schema = tuple(AttributeField(f"f{n:02}", AttributeType.BOOL) for n in range(64))
    with pytest.raises(InvalidArgument, match=r"f18, f19 and 44 more$"):
        validate_filter(Exists("zzzz"), schema)


def test_something_that_is_no_filter_is_refused() -> None:
    bogus: Any = And(("year",))  # type: ignore[arg-type]
    assert "a filter is text such as" in str(refusal(bogus))


def nested(depth: int) -> Filter:
    """A filter of exactly `depth` levels."""
    filter: Filter = Exists("year")
    for _ in range(depth - 1):
        filter = Not(filter)
    return filter


def test_depth_is_limited() -> None:
    assert validate_filter(nested(FILTER_DEPTH_MAX), SCHEMA) == Not(Exists("year"))
    assert f"more than {FILTER_DEPTH_MAX} levels" in str(refusal(nested(FILTER_DEPTH_MAX + 1)))
    assert f"more than {FILTER_DEPTH_MAX} levels" in str(refusal(nested(100_000)))


def test_nodes_are_limited() -> None:
    leaves = tuple(equals("year", n) for n in range(FILTER_NODES_MAX))
    largest = validate_filter(Or(leaves[:-1]), SCHEMA)
    assert isinstance(largest, Or)
    assert len(largest.operands) == FILTER_NODES_MAX - 1
    assert f"more than {FILTER_NODES_MAX} nodes" in str(refusal(Or(leaves)))


def test_membership_values_are_limited() -> None:
    values = tuple(range(FILTER_MEMBERSHIP_VALUES_MAX + 1))
    largest = Membership("year", values[:-1])
    assert validate_filter(largest, SCHEMA) == largest
    assert f"the limit is {FILTER_MEMBERSHIP_VALUES_MAX}" in str(
        refusal(Membership("year", values))
    )


def test_string_bytes_are_limited() -> None:
    longest = "é" * (FILTER_STRING_BYTES_MAX // 2)
    assert validate_filter(Prefix("tags", longest), SCHEMA) == Prefix("tags", longest)
    for filter in (equals("ecosystem", longest + "x"), Prefix("ecosystem", longest + "x")):
        assert f"the limit is {FILTER_STRING_BYTES_MAX}" in str(refusal(filter))


def test_path_can_start_elsewhere() -> None:
    with pytest.raises(InvalidArgument, match=r"^queries\[2\]\.filter\.nope: unknown field"):
        validate_filter(Exists("nope"), SCHEMA, path="queries[2].filter")


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"year": 2024}, "filter", "not {'year': 2024}"),
        (5, "filter", "not 5"),
        (And("year"), "filter", "tuple of filters"),
        (And([equals("year", 1), "x"]), "filter.and[1]", "not 'x'"),
        (Not(None), "filter.not", "not None"),
        (Comparison(5, ComparisonOp.EQ, 1), "filter", "name of a field"),
        (Comparison("year", "~", 1), "filter.year", "no comparison"),
        (Membership("year", "ab"), "filter.year", "one text"),
        (Membership("year", 5), "filter.year", "one value a row"),
        (Membership("year", (1, None)), "filter.year.in[1]", "not None"),
        (Prefix("ecosystem", 5), "filter.ecosystem", "a prefix is text"),
        (equals("year", [1]), "filter.year", "a value is text"),
        (equals("year", np.complex64(1)), "filter.year", "a value is text"),
        (equals("score", Decimal("0.1")), "filter.score", "no float64"),
        (equals("created", datetime(2024, 1, 1)), "filter.created", "no time zone"),  # noqa: DTZ001
        (equals("created", np.datetime64("12000-01-01")), "filter.created", "1 to 9999"),
    ],
)
def test_trees_that_are_none_are_named_and_never_a_python_error(
    tree: Any, path: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)) as caught:
        checked_tree(tree)
    assert caught.value.violations[0].field == path
    with pytest.raises(InvalidArgument):
        validate_filter(tree, SCHEMA)


@pytest.mark.parametrize("count", [FILTER_DEPTH_MAX, 5_000])
def test_a_tree_too_deep_for_recursion_is_refused(count: int) -> None:
    tree: Filter = equals("year", 1)
    for _ in range(count):
        tree = Not(tree)
    with pytest.raises(InvalidArgument, match="flatten"):
        checked_tree(tree)
    with pytest.raises(InvalidArgument, match="nested more than"):
        parse_expression("not " * count * 2 + "year = 1")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (equals("year", np.int64(5)), equals("year", 5)),
        (equals("score", np.float32(0.5)), equals("score", 0.5)),
        (equals("stable", np.bool_(True)), equals("stable", True)),
        (equals("ecosystem", np.str_("a")), equals("ecosystem", "a")),
        (equals("created", date(2024, 1, 31)), canonical("created = '2024-01-31'")),
        (equals("created", np.datetime64("2024-01-31")), canonical("created = '2024-01-31'")),
        (And([equals("year", 1)]), And((equals("year", 1),))),
        (Membership("year", np.array([1, 2])), Membership("year", (1, 2))),
        (Membership("year", pa.array([1, 2])), Membership("year", (1, 2))),
        (Comparison("year", "<", 1), Comparison("year", ComparisonOp.LT, 1)),
    ],
)
def test_values_of_numpy_and_lists_of_operands_become_plain(given: Any, plain: Filter) -> None:
    found = checked_tree(given)
    assert found == plain
    assert filter_key(found) == filter_key(plain)


def test_numbers_beyond_2_53_match_the_row_that_holds_them_and_no_other() -> None:
    whole = [2**53, 2**53 + 1, 2**53 + 2, None]
    rows = pa.RecordBatch.from_pydict({"year": pa.array(whole, pa.int64())})
    for text in ("year = 9007199254740993.0", "year in (9.007199254740993e15, 1)"):
        assert evaluate(canonical(text), rows, row_count=4).tolist() == [0, 1, 0, 0]
    for op, matching in (("<", 2), ("<=", 3)):
        text = f"year {op} 9007199254740994.0"
        assert evaluate(canonical(text), rows, row_count=4).sum() == matching
    floats = pa.RecordBatch.from_pydict({"score": [2.0**53, 2.0**64, 1e300]})
    for text, row in (("score = 18446744073709551616", 1), ("score = 1e300", 2)):
        assert np.flatnonzero(evaluate(canonical(text), floats, row_count=3)).tolist() == [row]
