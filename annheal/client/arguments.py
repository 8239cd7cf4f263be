"""Single arguments of calls, checked before protobuf or arithmetic stumble over them.

Each function returns the plain value, or raises `InvalidArgument` that names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

import numpy as np

from annheal.errors import InvalidArgument
from annheal.model.values.scalars import is_whole_number
from annheal.model.values.unfit import shown

COUNT_MAX: Final = 2**31 - 1
"""What every integer field of the wire holds; tighter limits are the server's."""

WordT = TypeVar("WordT", bound=StrEnum)


def as_text(value: Any, field: str) -> str:
    """Return a name or id: a text of valid Unicode."""
    if not isinstance(value, str):
        raise InvalidArgument.of(field, f"is a text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument.of(field, "holds half of a surrogate pair; send Unicode") from None
    return str.__str__(value)


def as_count(value: Any, field: str, *, least: int = 0, most: int = COUNT_MAX) -> int:
    """Return a whole number from `least` to `most`; a bool or a float is none."""
    if not is_whole_number(value):
        raise InvalidArgument.of(field, f"{shown(value)} is no whole number")
    if not least <= value <= most:
        raise InvalidArgument.of(field, f"{shown(int(value))} is not between {least} and {most}")
    return int(value)


def as_share(value: Any, field: str) -> float:
    """Return a finite number, for example a recall objective."""
    number = isinstance(value, float | np.floating) or is_whole_number(value)
    if not number or not math.isfinite(value):
        raise InvalidArgument.of(field, f"{shown(value)} is no finite number")
    return float(value)


def as_flag(value: Any, field: str) -> bool:
    """Return a bool; 1 and "yes" are none."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgument.of(field, f"{shown(value)} is neither True nor False")
    return bool(value)


def as_word(value: Any, kind: type[WordT], field: str) -> WordT:
    """Return a word of an enumeration."""
    try:
        return kind(value)
    except ValueError:
        raise InvalidArgument.of(field, f"{shown(value)} is none of {', '.join(kind)}") from None


def as_mapping(value: Any, field: str) -> Mapping[str, Any]:
    """Return a mapping of names to values, empty for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument.of(field, f"is a mapping of names to values, not {shown(value)}")
    for name in value:
        as_text(name, f"{field}, a name")
    return value
