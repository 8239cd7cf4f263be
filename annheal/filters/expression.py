"""The filter language of the CLI: text to tree and back. docs/filters.md has the grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NoReturn

from annheal.errors import InvalidArgument
from annheal.filters.tokens import (
    RESERVED_WORDS,
    Token,
    TokenKind,
    quote,
    refuse_at,
    tokenize,
)
from annheal.model.filter import (
    And,
    Comparison,
    ComparisonOp,
    Exists,
    Filter,
    FilterValue,
    Membership,
    Not,
    Or,
    Prefix,
)

EXPRESSION_NESTING_MAX: Final = 64
"""Parentheses and `not` inside one another; deeper text is refused before it is parsed further."""

_OPERATORS: Final = {
    "=": ComparisonOp.EQ,
    "==": ComparisonOp.EQ,
    "!=": ComparisonOp.NE,
    "<>": ComparisonOp.NE,
    "<": ComparisonOp.LT,
    "<=": ComparisonOp.LE,
    ">": ComparisonOp.GT,
    ">=": ComparisonOp.GE,
}
_MISTAKEN: Final = {
    "&": "write 'and'",
    "&&": "write 'and'",
    "|": "write 'or'",
    "||": "write 'or'",
    "!": "write 'not'",
    "=>": "write '>='",
    "=<": "write '<='",
    "=~": "only prefixes can be matched: starts with 'text'",
    "like": "only prefixes can be matched: starts with 'text'",
    "is": "write '=', or 'exists' to ask for a value at all",
}
_VALUE: Final = "a value ('text', a number, true or false)"
_PREDICATE: Final = "a comparison (= != < <= > >=), 'in', 'not in', 'exists' or 'starts with'"
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def parse_expression(text: str) -> Filter:
    """Return the tree that `text` spells, as written: not validated, not canonical.

    Timestamps stay text; `validate_filter` turns them into moments by the field's type.

    Raises:
        InvalidArgument: with the position, what was expected there, and the place underlined.
    """
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens of one expression, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._next = 0
        self._nesting = 0

    def whole(self) -> Filter:
        filter = self._either()
        if self._token.kind is not TokenKind.END:
            self._expected("'and', 'or' or the end")
        return filter

    def _either(self) -> Filter:
        operands = [self._both()]
        while self._take_word("or"):
            operands.append(self._both())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _both(self) -> Filter:
        operands = [self._term()]
        while self._take_word("and"):
            operands.append(self._term())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _term(self) -> Filter:
        start = self._token
        self._nesting += 1
        if self._nesting > EXPRESSION_NESTING_MAX:
            refuse_at(
                self._text,
                start.start,
                f"nested more than {EXPRESSION_NESTING_MAX} levels deep; flatten the expression",
            )
        filter = self._nested_term()
        self._nesting -= 1
        return filter

    def _nested_term(self) -> Filter:
        if self._take_word("not"):
            return Not(self._term())
        if self._take_symbol("("):
            filter = self._either()
            self._need_symbol(")", instead="'and', 'or' or ')'")
            return filter
        if self._take_word("exists"):
            self._need_symbol("(")
            field = self._field()
            self._need_symbol(")")
            return Exists(field)
        return self._predicate(self._field())

    def _predicate(self, field: str) -> Filter:
        token = self._token
        if token.kind is TokenKind.SYMBOL and token.text in _OPERATORS:
            self._next += 1
            return Comparison(field, _OPERATORS[token.text], self._value())
        if self._take_word("not"):
            if self._take_word("in"):
                return Membership(field, self._values(), negated=True)
            if (filter := self._worded(field)) is not None:
                return Not(filter)
            self._expected("'in', 'exists' or 'starts with'")
        if self._take_word("in"):
            return Membership(field, self._values())
        if (filter := self._worded(field)) is not None:
            return filter
        self._expected(_PREDICATE)

    def _worded(self, field: str) -> Filter | None:
        """Return the predicate that a word starts, if one is next."""
        if self._take_word("exists"):
            return Exists(field)
        if self._take_word("starts"):
            if not self._take_word("with"):
                self._expected("'with'")
            return Prefix(field, self._string())
        if self._take_word("prefix"):
            return Prefix(field, self._string())
        return None

    def _field(self) -> str:
        token = self._token
        if token.kind is TokenKind.NAME or (
            token.kind is TokenKind.WORD and token.text.lower() not in RESERVED_WORDS
        ):
            self._next += 1
            return str(token.value)
        if token.kind is TokenKind.WORD:
            self._expected("a field name", hint=f"in back quotes it is one: `{token.text}`")
        if token.kind in (TokenKind.STRING, TokenKind.NUMBER):
            self._expected("a field name", hint="the field goes first: field = value")
        self._expected("a field name, 'not', 'exists(' or '('")

    def _value(self) -> FilterValue:
        token = self._token
        if token.kind in (TokenKind.STRING, TokenKind.NUMBER):
            self._next += 1
            return token.value
        for word, value in (("true", True), ("false", False)):
            if self._take_word(word):
                return value
        if token.kind is TokenKind.WORD and token.text.lower() == "null":
            self._expected(_VALUE, hint="ask for missing values with: not exists(field)")
        if token.kind is TokenKind.WORD:
            self._expected(_VALUE, hint=f"text goes in quotes: {quote(token.text)}")
        self._expected(_VALUE)

    def _values(self) -> tuple[FilterValue, ...]:
        self._need_symbol("(", instead="'(' and a list of values")
        values = [self._value()]
        while self._take_symbol(","):
            values.append(self._value())
        self._need_symbol(")", instead="',' or ')'")
        return tuple(values)

    def _string(self) -> str:
        token = self._token
        if token.kind is not TokenKind.STRING:
            self._expected("text in quotes")
        self._next += 1
        return str(token.value)

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take_word(self, word: str) -> bool:
        return self._take(TokenKind.WORD, word)

    def _take_symbol(self, symbol: str) -> bool:
        return self._take(TokenKind.SYMBOL, symbol)

    def _take(self, kind: TokenKind, text: str) -> bool:
        taken = self._token.kind is kind and self._token.text.lower() == text
        self._next += taken
        return taken

    def _need_symbol(self, symbol: str, *, instead: str | None = None) -> None:
        if not self._take_symbol(symbol):
            self._expected(instead or f"'{symbol}'")

    def _expected(self, what: str, *, hint: str | None = None) -> NoReturn:
        token = self._token
        found = "the end" if token.kind is TokenKind.END else f"{token.text[:40]}"
        hint = _MISTAKEN.get(token.text.lower(), hint)
        message = f"expected {what}, found {found}" + (f"; {hint}" if hint else "")
        refuse_at(self._text, token.start, message, length=len(token.text))


def format_expression(filter: Filter) -> str:
    """Return text that `parse_expression` reads as `filter`, with the fewest helpful parentheses.

    Timestamps are written as text, so the field's type is needed to read them back: for every
    filter from `validate_filter`, validating what was parsed gives the same filter again.

    Raises:
        InvalidArgument: the tree has an empty `and`, `or` or `in`, which cannot be written.
    """
    match filter:
        case Comparison(field, op, value):
            return f"{_format_field(field)} {op.value} {_format_value(value)}"
        case Membership(field, values, negated):
            listed = _joined([_format_value(value) for value in values], ", ")
            return f"{_format_field(field)} {'not in' if negated else 'in'} ({listed})"
        case Exists(field):
            return f"exists({_format_field(field)})"
        case Prefix(field, prefix):
            return f"{_format_field(field)} starts with {quote(prefix)}"
        case Not(Exists() as operand):
            return f"not {format_expression(operand)}"
        case Not(operand):
            return f"not ({format_expression(operand)})"
        case And(operands):
            return _joined([_format_operand(operand) for operand in operands], " and ")
        case Or(operands):
            return _joined([_format_operand(operand) for operand in operands], " or ")


def _format_operand(filter: Filter) -> str:
    """Return an operand; `and` inside `or` gets parentheses too, for the reader's sake."""
    text = format_expression(filter)
    return f"({text})" if isinstance(filter, And | Or) else text


def _joined(parts: Sequence[str], separator: str) -> str:
    if not parts:
        raise InvalidArgument.of("filter", "an empty 'and', 'or' or 'in' cannot be written")
    return separator.join(parts)


def _format_field(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name) and name.lower() not in RESERVED_WORDS:
        return name
    return "`" + name.replace("`", "``") + "`"


def _format_value(value: FilterValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, datetime):
        return quote(value.isoformat().replace("+00:00", "Z"))
    return repr(value)
