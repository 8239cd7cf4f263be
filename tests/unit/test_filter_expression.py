"""The language of the CLI: what it reads, what it writes, and how it points at mistakes."""

from __future__ import annotations

import time

import pytest

from annheal.errors import InvalidArgument
from annheal.filters import format_expression, parse_expression
from annheal.filters.expression import EXPRESSION_NESTING_MAX
from annheal.filters.tokens import EXPRESSION_CHARACTERS_MAX
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

A, B, C = (Comparison(name, ComparisonOp.EQ, 1) for name in "abc")


def equals(value: str | float | bool) -> Comparison:
    return Comparison("a", ComparisonOp.EQ, value)


@pytest.mark.parametrize(
    ("text", "filter"),
    [
        (
            "year >= 2024 and ecosystem = 'pypi'",
            And(
                (
                    Comparison("year", ComparisonOp.GE, 2024),
                    Comparison("ecosystem", ComparisonOp.EQ, "pypi"),
                )
            ),
        ),
        (
            "not (a in ('x', \"y\") or b exists)",
            Not(Or((Membership("a", ("x", "y")), Exists("b")))),
        ),
        ("exists(b)", Exists("b")),
        ("not b exists", Not(Exists("b"))),
        ("b not exists", Not(Exists("b"))),
        ("name starts with 'num'", Prefix("name", "num")),
        ("name PREFIX 'num'", Prefix("name", "num")),
        ("name not starts with 'num'", Not(Prefix("name", "num"))),
        ("prefix prefix 'x'", Prefix("prefix", "x")),
        ("starts = 1", Comparison("starts", ComparisonOp.EQ, 1)),
        ("`in` in (1)", Membership("in", (1,))),
        ("`odd name``s` = 1", Comparison("odd name`s", ComparisonOp.EQ, 1)),
        ("größe < 1", Comparison("größe", ComparisonOp.LT, 1)),
        ("a not in (1, -2.5, 'x', true)", Membership("a", (1, -2.5, "x", True), negated=True)),
        ("a = 1 or b = 1 and c = 1", Or((A, And((B, C))))),
        ("(a = 1 or b = 1) and c = 1", And((Or((A, B)), C))),
        ("not a = 1 and b = 1", And((Not(A), B))),
        ("a = 1 AND NOT b = 1 Or c = 1", Or((And((A, Not(B))), C))),
        ("((a = 1))", A),
        ("a=1and b=1", None),
        ("\t a\n=\r1 ", A),
        ("a == 1", A),
        ("a <> 1", Comparison("a", ComparisonOp.NE, 1)),
        ("a!=-1", Comparison("a", ComparisonOp.NE, -1)),
        ("a = true", equals(True)),
        ("a = FALSE", equals(False)),
        ("a = .5e1", equals(5.0)),
        ("a = +7", equals(7)),
        (r"a = 'it\'s'", equals("it's")),
        ("a = 'it''s'", equals("it's")),
        ('a = "it\'s"', equals("it's")),
        (r"a = '\\ \n\t\r \u00e9 \U0001F600 \"'", equals('\\ \n\t\r é \U0001f600 "')),
        ("a = ''", equals("")),
        ("a = '#; and or'", equals("#; and or")),
    ],
)
def test_parses(text: str, filter: Filter | None) -> None:
    if filter is None:
        with pytest.raises(InvalidArgument, match="a number goes on as text"):
            parse_expression(text)
        return
    parsed = parse_expression(text)
    assert parsed == filter
    assert repr(parsed) == repr(filter)  # == holds 1, 1.0 and True equal


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 1, "expected a field name, 'not', 'exists(' or '(', found the end"),
        ("a", 2, "expected a comparison (= != < <= > >=), 'in', 'not in', 'exists' or 'starts wi"),
        ("a = ", 5, "expected a value ('text', a number, true or false), found the end"),
        ("ecosystem = pypi", 13, "found pypi; text goes in quotes: 'pypi'"),
        ("a = null", 5, "ask for missing values with: not exists(field)"),
        ("5 < year", 1, "expected a field name, found 5; the field goes first: field = value"),
        ("a = 1 b = 2", 7, "expected 'and', 'or' or the end, found b"),
        ("a = 1 && b = 2", 7, "found &&; write 'and'"),
        ("a = 1 || b = 2", 7, "found ||; write 'or'"),
        ("!(a = 1)", 1, "found !; write 'not'"),
        ("a => 1", 3, "found =>; write '>='"),
        ("a like 'x%'", 3, "only prefixes can be matched: starts with 'text'"),
        ("a is true", 3, "write '=', or 'exists'"),
        ("(a = 1", 7, "expected 'and', 'or' or ')', found the end"),
        ("a = 1)", 6, "expected 'and', 'or' or the end, found )"),
        ("in = 1", 1, "expected a field name, found in; in back quotes it is one: `in`"),
        ("a not = 1", 7, "expected 'in', 'exists' or 'starts with', found ="),
        ("a in 1", 6, "expected '(' and a list of values, found 1"),
        ("a in ()", 7, "expected a value"),
        ("a in (1", 8, "expected ',' or ')', found the end"),
        ("a in (1,)", 9, "expected a value"),
        ("a starts 'x'", 10, "expected 'with', found 'x'"),
        ("a starts with 5", 15, "expected text in quotes, found 5"),
        ("exists b", 8, "expected '(', found b"),
        ("exists(b", 9, "expected ')', found the end"),
        ("a = 'x", 5, "this quote is never closed; expected ' after the text"),
        ("a = \"x'", 5, 'this quote is never closed; expected " after the text'),
        ("`a = 1", 1, "this back quote is never closed"),
        (r"a = 'x\q'", 7, r"unknown escape; expected \\ "),
        (r"a = '\u12'", 6, "unknown escape"),
        (r"a = '\UFFFFFFFF'", 6, "unknown escape"),
        ("a = 'x\\", 7, "unknown escape"),
        ("a = 5x", 5, "a number goes on as text; put text in quotes"),
        ("a = 2024-01-31", 9, "expected 'and', 'or' or the end, found -01"),
        ("a = 1e999", 5, "the number is too large for float64"),
        (f"a = {'1' * 401}", 5, "a number has more than 400 characters"),
        ("a = 1; b", 6, "';' has no meaning here"),
        ("a = -", 5, "'-' has no meaning here"),
    ],
)
def test_points_at_mistakes(text: str, position: int, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_expression(text)
    assert [violation.field for violation in caught.value.violations] == ["filter"]
    assert caught.value.violations[0].description.startswith(f"at character {position}: ")
    assert words in str(caught.value)
    _, shown, carets = str(caught.value).split("\n")
    place = carets.index("^") - 2
    assert len(text) > 100 or (shown[2:] == text and place == position - 1)


def test_the_caret_stands_under_the_mistake() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_expression("year >= 2024 and ecosystem = pypi")
    assert str(caught.value) == (
        "filter expression, at character 30: expected a value ('text', a number, true or false), "
        "found pypi; text goes in quotes: 'pypi'\n"
        "  year >= 2024 and ecosystem = pypi\n"
        "                               ^^^^"
    )


def test_long_text_is_shown_around_the_mistake() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_expression("a = 1 and\n" * 50 + "a ? 1" + " and a = 1" * 50)
    _, shown, carets = str(caught.value).split("\n")
    assert shown[carets.index("^")] == "?"
    assert shown.startswith("  ...")
    assert shown.endswith("...")
    assert len(shown) < 140


def test_nesting_and_length_are_limited() -> None:
    deepest = EXPRESSION_NESTING_MAX - 1
    assert parse_expression("(" * deepest + "a = 1" + ")" * deepest) == A
    for text in ("(" * 100_000, "not " * 100_000, "(" * (deepest + 1) + "a = 1"):
        with pytest.raises(InvalidArgument, match="nested more than 64 levels deep"):
            parse_expression(text)
    with pytest.raises(InvalidArgument, match=f"the limit is {EXPRESSION_CHARACTERS_MAX}"):
        parse_expression(" " * (EXPRESSION_CHARACTERS_MAX + 1))


@pytest.mark.parametrize("text", ["a = '" + "x''" * 200_000, "`" * 300_001, " " * 900_000 + "?"])
def test_hostile_text_is_refused_in_linear_time(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InvalidArgument):
        parse_expression(text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("filter", "text"),
    [
        (And((Or((A, B)), Not(C))), "(a = 1 or b = 1) and not (c = 1)"),
        (Or((And((A, B)), C)), "(a = 1 and b = 1) or c = 1"),
        (Not(Exists("exists")), "not exists(`exists`)"),
        (Prefix("a b", "x\n'y'"), "`a b` starts with 'x\\n\\'y\\''"),
        (Membership("a", ("x", "y"), negated=True), "a not in ('x', 'y')"),
        (equals(1.0), "a = 1.0"),
        (equals("\x00\u2028\U000e0001"), "a = '\\u0000\\u2028\\U000e0001'"),
    ],
)
def test_formats(filter: Filter, text: str) -> None:
    assert format_expression(filter) == text
    assert parse_expression(text) == filter


@pytest.mark.parametrize("filter", [And(()), Or(()), Membership("a", ())])
def test_what_cannot_be_written_is_refused(filter: Filter) -> None:
    with pytest.raises(InvalidArgument, match="empty 'and', 'or' or 'in' cannot be written"):
        format_expression(filter)
