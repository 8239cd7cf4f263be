"""Tokens of the filter language, and errors that point into its text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, NoReturn

from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.values.scalars import EXACT_FLOAT_MAX
from annheal.model.values.unfit import UnfitValue

EXPRESSION_CHARACTERS_MAX: Final = 1 << 20
NUMBER_CHARACTERS_MAX: Final = 400
"""Enough for any float64 written in full (309 digits before the point)."""
CARET_CONTEXT_CHARACTERS: Final = 60
"""What an error shows of the text on each side of the mistake."""

RESERVED_WORDS: Final = frozenset({"and", "or", "not", "in", "exists", "true", "false", "null"})
"""Words that are field names only in back quotes."""


class TokenKind(StrEnum):
    """Kinds of tokens; a NAME is a field name in back quotes, a WORD a bare one or a keyword."""

    WORD = "word"
    NAME = "name"
    STRING = "string"
    NUMBER = "number"
    SYMBOL = "symbol"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """`text` as written from character `start` on; `value` as it is meant."""

    kind: TokenKind
    text: str
    start: int
    value: str | int | float = ""


_SPACE: Final = re.compile(r"\s*")
_WORD: Final = re.compile(r"[^\W\d]\w*")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SYMBOL: Final = re.compile(r"[=!<>&|~]+|[(),]")
_NAME: Final = re.compile(r"`((?:[^`]|``)*)`")
_PLAIN_TEXT: Final = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_CODE_POINT: Final = {
    "u": re.compile(r"[0-9A-Fa-f]{4}"),
    "U": re.compile(r"[0-9A-Fa-f]{8}"),
}
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_ESCAPED: Final = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_CODE_POINT_MAX: Final = 0x10FFFF


def tokenize(text: str) -> list[Token]:
    """Return the tokens of `text`, the last of kind END. Raises InvalidArgument."""
    if len(text) > EXPRESSION_CHARACTERS_MAX:
        raise InvalidArgument.of(
            "filter",
            f"the expression has {len(text)} characters; the limit is {EXPRESSION_CHARACTERS_MAX}",
        )
    tokens: list[Token] = []
    at = _skip_space(text, 0)
    while at < len(text):
        token = _token_at(text, at)
        tokens.append(token)
        at = _skip_space(text, at + len(token.text))
    tokens.append(Token(TokenKind.END, "", len(text)))
    return tokens


def quote(value: str) -> str:
    """Return `value` as a string of the language, on one line and printable."""
    return "'" + "".join(_ESCAPED.get(c) or _printable(c) for c in value) + "'"


def refuse_at(text: str, at: int, message: str, *, length: int = 1) -> NoReturn:
    """Raise InvalidArgument that shows the surroundings of character `at` and underlines it."""
    start = max(0, at - CARET_CONTEXT_CHARACTERS)
    stop = min(len(text), at + CARET_CONTEXT_CHARACTERS)
    shown = "".join(c if c.isprintable() else " " for c in text[start:stop])
    before, after = "..." if start else "", "..." if stop < len(text) else ""
    carets = "^" * max(1, min(length, stop - at))
    description = f"at character {at + 1}: {message}"
    raise InvalidArgument(
        f"filter expression, {description}\n"
        f"  {before}{shown}{after}\n"
        f"  {' ' * (len(before) + at - start)}{carets}",
        violations=[FieldViolation("filter", description)],
    )


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _token_at(text: str, at: int) -> Token:
    first = text[at]
    if first in _PLAIN_TEXT:
        return _string_at(text, at)
    if first == "`":
        return _name_at(text, at)
    if match := _NUMBER.match(text, at):
        return _number_at(text, at, match.group())
    if match := _WORD.match(text, at):
        return Token(TokenKind.WORD, match.group(), at, match.group())
    if match := _SYMBOL.match(text, at):
        return Token(TokenKind.SYMBOL, match.group(), at)
    refuse_at(text, at, f"{first!r} has no meaning here")


def _name_at(text: str, at: int) -> Token:
    match = _NAME.match(text, at)
    if match is None:
        refuse_at(text, at, "this back quote is never closed; expected ` after the field name")
    return Token(TokenKind.NAME, match.group(), at, match.group(1).replace("``", "`"))


def _number_at(text: str, at: int, number: str) -> Token:
    stop = at + len(number)
    if stop < len(text) and (text[stop].isalnum() or text[stop] in "_."):
        refuse_at(text, at, "a number goes on as text; put text in quotes", length=len(number) + 1)
    if len(number) > NUMBER_CHARACTERS_MAX:
        refuse_at(text, at, f"a number has more than {NUMBER_CHARACTERS_MAX} characters")
    try:
        return Token(TokenKind.NUMBER, number, at, _exact(number))
    except UnfitValue as error:
        refuse_at(text, at, error.reason, length=len(number))


def _exact(number: str) -> int | float:
    """Return the number that is written, exactly if it is whole, else as the nearest float64.

    A whole number with a point or an exponent becomes a float only when that float is it, or is
    always spelled so (1e300); otherwise 9007199254740993.0 would match the row of 9007199254740992.
    """
    try:
        return int(number)
    except ValueError:
        nearest = float(number)
    if math.isinf(nearest):
        raise UnfitValue("the number is too large for float64")
    if not nearest.is_integer():
        return nearest
    written = Fraction(number) if abs(nearest) >= 1 else _tiny(number)
    if written.denominator != 1:
        raise UnfitValue(f"float64 has no place for all digits and reads {nearest!r}; write fewer")
    if abs(nearest) <= EXACT_FLOAT_MAX and nearest == written:
        return nearest
    if nearest != written and Fraction(repr(nearest)) == written:
        return nearest
    return int(written)


def _tiny(number: str) -> Fraction:
    """Return 0 for a way to write zero; 1e-400 is another number, which float64 has not."""
    mantissa = re.split("[eE]", number)[0]
    if mantissa.strip("+-0."):
        raise UnfitValue("the number is too small for float64")
    return Fraction(0)


def _string_at(text: str, at: int) -> Token:
    mark = text[at]
    parts: list[str] = []
    stop = at + 1
    while True:
        match = _PLAIN_TEXT[mark].match(text, stop)
        if match is not None:
            parts.append(match.group())
            stop = match.end()
        if stop >= len(text):
            refuse_at(text, at, f"this quote is never closed; expected {mark} after the text")
        if text[stop] == "\\":
            part, stop = _escape_at(text, stop)
            parts.append(part)
        elif text.startswith(mark, stop + 1):  # the mark twice is the mark, as in SQL
            parts.append(mark)
            stop += 2
        else:
            return Token(TokenKind.STRING, text[at : stop + 1], at, "".join(parts))


def _escape_at(text: str, at: int) -> tuple[str, int]:
    """Return what the escape at `at` stands for, and where the text goes on."""
    letter = text[at + 1 : at + 2]
    if letter in _ESCAPES:
        return _ESCAPES[letter], at + 2
    if letter in _CODE_POINT and (match := _CODE_POINT[letter].match(text, at + 2)):
        code = int(match.group(), 16)
        if code <= _CODE_POINT_MAX:
            return chr(code), match.end()
    refuse_at(
        text,
        at,
        "unknown escape; expected \\\\ \\' \\\" \\n \\t \\r, \\u and 4 or \\U and 8 hex digits",
        length=2,
    )


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
