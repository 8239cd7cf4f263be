"""One Python, numpy or Arrow value as the type of an attribute holds it, or `UnfitValue`."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa

from annheal.model.collection import AttributeType
from annheal.model.values.moments import moment_us
from annheal.model.values.unfit import UnfitValue, shown, type_word

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
EXACT_FLOAT_MAX: Final = 2**53
"""Up to here every whole number is a float64; beyond, a float may stand for several of them."""

EXAMPLES: Final[dict[AttributeType, str]] = {
    AttributeType.KEYWORD: "'pypi'",
    AttributeType.KEYWORD_LIST: "['pypi']",
    AttributeType.INT64: "2024",
    AttributeType.FLOAT64: "0.5",
    AttributeType.BOOL: "true",
    AttributeType.TIMESTAMP: "'2024-01-31T12:00:00Z'",
}
_DECIMAL_DIGITS_MAX: Final = 400
"""More digits before the point than any float64 has."""
_PANDAS_MISSING: Final = frozenset({"NAType", "NaTType"})


def fit_scalar(value: Any, kind: AttributeType) -> Any:
    """Return `value` as `kind` holds it, None for a missing one; raises `UnfitValue`.

    bool -> bool, int64 -> int, float64 -> finite float, keyword -> str, keyword_list -> list of
    str, timestamp -> int, microseconds since the epoch.
    """
    if value is None or is_missing(value):
        return None
    if isinstance(value, pa.Scalar):
        value = _of_arrow(value)
        return None if value is None else _FITS[kind](value)
    return _FITS[kind](value)


def is_missing(value: object) -> bool:
    """Return whether `value` is NaT or pandas' NA: marks of a missing value, unlike NaN."""
    if isinstance(value, np.datetime64):
        return bool(np.isnat(value))
    kind = type(value)
    return kind.__name__ in _PANDAS_MISSING and kind.__module__.startswith("pandas")


def fit_bool(value: object) -> bool:
    """Return a bool as it is; numbers and texts are none."""
    if not isinstance(value, bool | np.bool_):
        refuse_type(value, AttributeType.BOOL)
    return bool(value)


def fit_int64(value: object) -> int:
    """Return a whole number of 64 bits; floats up to 2**53 that are whole count."""
    number = exact_number(value, AttributeType.INT64)
    if isinstance(number, float):
        number = whole_number(number)
    if not INT64_MIN <= number <= INT64_MAX:
        raise UnfitValue(
            f"{shown(number)} does not fit int64; values lie from {INT64_MIN} to {INT64_MAX}"
        )
    return number


def whole_number(number: float) -> int:
    """Return a float as the whole number that it surely is, in the range of int64."""
    if not math.isfinite(number):
        raise UnfitValue(f"{number} is not a finite number; write for example 2024")
    if not number.is_integer():
        raise UnfitValue(f"{shown(number)} has a fraction and the field has type int64")
    if abs(number) > EXACT_FLOAT_MAX and INT64_MIN <= number <= INT64_MAX:
        raise UnfitValue(
            f"{shown(number)} is a float beyond 2**53, which may have been rounded;"
            " send the whole number as an integer"
        )
    return int(number)


def fit_float64(value: object) -> float:
    """Return a finite float64 that equals `value` exactly."""
    number = exact_number(value, AttributeType.FLOAT64)
    try:
        nearest = float(number)
    except OverflowError:
        nearest = math.inf
    if not math.isfinite(nearest):
        raise UnfitValue(
            f"{shown(number)} is not a finite float64; send a finite number, or None where there"
            " is none"
        )
    if nearest != number:
        raise UnfitValue(f"{shown(number)} is no float64; the nearest is {int(nearest)}")
    return nearest


def fit_keyword(value: object) -> str:
    """Return a text as it is; raises `UnfitValue` for what is no text or no valid Unicode."""
    if not isinstance(value, str):
        refuse_type(value, AttributeType.KEYWORD)
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UnfitValue(
                "the text holds half of a surrogate pair; send valid Unicode"
            ) from None
    return text


def fit_keyword_list(value: object) -> list[str]:
    """Return a list of texts; a text alone, a set (it has no order) or a mapping is none."""
    if isinstance(value, np.ndarray | pa.Array):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise UnfitValue(f"must be a list of texts, not {shown(value)}")
    texts = []
    for position, element in enumerate(value):
        if element is None:
            raise UnfitValue("the list holds a missing value; leave it out", part=f"[{position}]")
        try:
            texts.append(fit_keyword(element))
        except UnfitValue as error:
            raise UnfitValue(error.reason, part=f"[{position}]") from None
    return texts


def is_whole_number(value: object) -> bool:
    """Return whether `value` is an integer of Python or numpy; neither a bool nor a duration is."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def exact_number(value: Any, kind: AttributeType) -> int | float:
    """Return a number of any kind as the int or float that equals it; a bool is no number."""
    if is_whole_number(value):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, np.floating):
        return _equal_float(value, float(value))
    if isinstance(value, Decimal):
        if not value.is_finite() or value.adjusted() > _DECIMAL_DIGITS_MAX:
            return math.inf
        if value == value.to_integral_value():
            return int(value)
        return _equal_float(value, float(value))
    refuse_type(value, kind)


def refuse_type(value: object, kind: AttributeType) -> NoReturn:
    """Raise `UnfitValue` for a value of another type."""
    raise UnfitValue(
        f"the field has type {kind.value}, but {shown(value)} is {type_word(value)};"
        f" write for example {EXAMPLES[kind]}"
    )


def _equal_float(value: Any, number: float) -> float:
    if number != value and number == number:
        raise UnfitValue(f"{shown(value)} is no float64; send float(value) to round it")
    return number


def _of_arrow(value: Any) -> object:
    if pa.types.is_timestamp(value.type) and value.is_valid:
        return np.datetime64(value.value, value.type.unit)
    return value.as_py()


_FITS: Final[dict[AttributeType, Callable[[Any], Any]]] = {
    AttributeType.BOOL: fit_bool,
    AttributeType.INT64: fit_int64,
    AttributeType.FLOAT64: fit_float64,
    AttributeType.KEYWORD: fit_keyword,
    AttributeType.KEYWORD_LIST: fit_keyword_list,
    AttributeType.TIMESTAMP: moment_us,
}
