"""Values of filters against the types of attributes: what fits, and what it becomes."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final, NoReturn

from annheal.model.collection import AttributeType
from annheal.model.filter import FILTER_STRING_BYTES_MAX, ComparisonOp, FilterValue

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
SHOWN_CHARACTERS_MAX: Final = 40
SHOWN_BITS_MAX: Final = 100

EXAMPLES: Final[dict[AttributeType, str]] = {
    AttributeType.KEYWORD: "'pypi'",
    AttributeType.KEYWORD_LIST: "'pypi'",
    AttributeType.INT64: "2024",
    AttributeType.FLOAT64: "0.5",
    AttributeType.BOOL: "true",
    AttributeType.TIMESTAMP: "'2024-01-31T12:00:00Z'",
}
_TYPE_WORDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "a boolean"),
    (str, "a string"),
    (int, "a whole number"),
    (float, "a number"),
    (datetime, "a timestamp"),
)
_TIMESTAMP: Final = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<time>\d{2}:\d{2}:\d{2})(?:\.(?P<fraction>\d+))?"
    r"(?P<zone>[Zz]|[+-]\d{2}:\d{2}))?",
    re.ASCII,
)
_MICROSECOND_DIGITS: Final = 6


class UnfitValue(Exception):
    """A value does not fit its field; the text says why and how to mend it."""


def shown(value: object) -> str:
    """Return `value` as a message shows it: short, and quoted when it is text."""
    if isinstance(value, datetime):
        return f"'{value.isoformat()}'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > SHOWN_BITS_MAX:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print huge ones
    text = repr(value[: SHOWN_CHARACTERS_MAX + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."


def fit_value(value: FilterValue, type: AttributeType, *, op: ComparisonOp | None) -> FilterValue:
    """Return `value` as the one Python type that `type` compares with; raise UnfitValue.

    keyword, keyword_list: str; int64: int in range; float64: finite float, nearest to the number
    written, never -0.0; bool: bool; timestamp: aware datetime in UTC. `op` is None for `in`.
    """
    match type:
        case AttributeType.KEYWORD | AttributeType.KEYWORD_LIST:
            return fit_text(value, type=type)
        case AttributeType.INT64:
            return _fit_int64(value, op=op)
        case AttributeType.FLOAT64:
            return _fit_float64(value)
        case AttributeType.BOOL:
            if not isinstance(value, bool):
                _refuse(value, type=type)
            return value
        case AttributeType.TIMESTAMP:
            return _fit_timestamp(value)


def fit_text(value: object, *, type: AttributeType) -> str:
    """Return `value` when it is well-formed text within `FILTER_STRING_BYTES_MAX`."""
    if not isinstance(value, str):
        _refuse(value, type=type)
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise UnfitValue("the text holds half of a surrogate pair; send valid Unicode") from None
    if size_bytes > FILTER_STRING_BYTES_MAX:
        raise UnfitValue(
            f"the text has {size_bytes} bytes of UTF-8; the limit is {FILTER_STRING_BYTES_MAX}"
        )
    return value


def _fit_int64(value: object, *, op: ComparisonOp | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(value, type=AttributeType.INT64)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitValue(f"{value} is not a finite number; write for example 2024")
        if not value.is_integer():
            raise UnfitValue(_whole_number_hint(value, op=op))
        value = int(value)
    if not INT64_MIN <= value <= INT64_MAX:
        raise UnfitValue(
            f"{shown(value)} does not fit int64; values lie from {INT64_MIN} to {INT64_MAX}"
        )
    return value


def _whole_number_hint(value: float, *, op: ComparisonOp | None) -> str:
    """Say what to write instead of comparing an int64 field with a fraction."""
    text = f"{shown(value)} has a fraction and the field has type int64; "
    if op in (ComparisonOp.GT, ComparisonOp.GE):
        return text + f"write >= {math.ceil(value)}"
    if op in (ComparisonOp.LT, ComparisonOp.LE):
        return text + f"write <= {math.floor(value)}"
    return text + "no record can equal it; write a whole number"


def _fit_float64(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(value, type=AttributeType.FLOAT64)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UnfitValue(f"{shown(value)} is not a finite float64; write for example 0.5")
    return number + 0.0  # -0.0 becomes 0.0: they are equal, so must their keys be


def _fit_timestamp(value: object) -> datetime:
    if isinstance(value, str):
        value = _parse_timestamp(value)
    if not isinstance(value, datetime):
        _refuse(value, type=AttributeType.TIMESTAMP)
    if value.utcoffset() is None:
        raise UnfitValue(f"{shown(value)} has no time zone; give it one, UTC for example")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise UnfitValue(f"{shown(value)} lies outside the years 1 to 9999 in UTC") from None


def _parse_timestamp(text: str) -> datetime:
    """Return the moment that RFC 3339 `text` names; a date alone is its midnight in UTC."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise UnfitValue(
            f"{shown(text)} is not a timestamp; write RFC 3339, for example "
            "'2024-01-31T12:00:00Z', or a date, '2024-01-31'"
        )
    fraction = match["fraction"] or ""
    if len(fraction.rstrip("0")) > _MICROSECOND_DIGITS:
        raise UnfitValue(
            f"{shown(text)} is finer than a microsecond; write at most "
            f"{_MICROSECOND_DIGITS} digits after the seconds"
        )
    micros = fraction[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0")
    time = match["time"] or "00:00:00"
    zone = (match["zone"] or "Z").upper().replace("Z", "+00:00")
    try:
        return datetime.fromisoformat(f"{match['date']}T{time}.{micros}{zone}")
    except ValueError as error:
        raise UnfitValue(f"{shown(text)} is not a timestamp that exists: {error}") from None


def _refuse(value: object, *, type: AttributeType) -> NoReturn:
    word = next((word for kind, word in _TYPE_WORDS if isinstance(value, kind)), None)
    if word is None:
        word = f"of Python type {value.__class__.__name__}"
    raise UnfitValue(
        f"the field has type {type.value}, but {shown(value)} is {word}; "
        f"write for example {EXAMPLES[type]}"
    )
