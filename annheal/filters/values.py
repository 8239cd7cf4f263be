"""Values of filters against the types of attributes: what fits, and what it becomes.

`annheal.model.values` decides what is exact, as for writes; filters add what to write instead.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from annheal.model.collection import AttributeType
from annheal.model.filter import FILTER_STRING_BYTES_MAX, ComparisonOp, FilterValue
from annheal.model.values.moments import moment_of, moment_us
from annheal.model.values.scalars import (
    exact_number,
    fit_bool,
    fit_float64,
    fit_int64,
    fit_keyword,
    refuse_type,
)
from annheal.model.values.unfit import UnfitValue, shown

_UPWARDS = (ComparisonOp.GT, ComparisonOp.GE)
_DOWNWARDS = (ComparisonOp.LT, ComparisonOp.LE)


def fit_value(value: object, type: AttributeType, *, op: ComparisonOp | None) -> FilterValue:
    """Return `value` as the one Python type that `type` compares with; raise UnfitValue.

    keyword, keyword_list: str; int64: int in range; float64: finite float that equals what was
    given, never -0.0; bool: bool; timestamp: aware datetime in UTC. `op` is None for `in`.
    """
    match type:
        case AttributeType.KEYWORD | AttributeType.KEYWORD_LIST:
            return fit_text(value, type=type)
        case AttributeType.INT64:
            return _whole(value, op=op)
        case AttributeType.FLOAT64:
            return _float(value, op=op)
        case AttributeType.BOOL:
            return fit_bool(value)
        case AttributeType.TIMESTAMP:
            return moment_of(moment_us(value))


def fit_text(value: object, *, type: AttributeType) -> str:
    """Return `value` when it is well-formed text within `FILTER_STRING_BYTES_MAX`."""
    if not isinstance(value, str):
        refuse_type(value, type)
    text = fit_keyword(value)
    size_bytes = len(text.encode())
    if size_bytes > FILTER_STRING_BYTES_MAX:
        raise UnfitValue(
            f"the text has {size_bytes} bytes of UTF-8; the limit is {FILTER_STRING_BYTES_MAX}"
        )
    return text


def _whole(value: object, *, op: ComparisonOp | None) -> int:
    number = exact_number(value, AttributeType.INT64)
    if isinstance(number, float) and math.isfinite(number) and not number.is_integer():
        text = f"{shown(number)} has a fraction and the field has type int64; "
        neighbours = (math.floor(number), math.ceil(number))
        raise UnfitValue(text + _instead(neighbours, op=op, nothing="write a whole number"))
    return fit_int64(number)


def _float(value: object, *, op: ComparisonOp | None) -> float:
    number = exact_number(value, AttributeType.FLOAT64)
    if not abs(number) <= sys.float_info.max:  # nor is NaN
        raise UnfitValue(f"{shown(number)} is not a finite float64; write for example 0.5")
    nearest = float(number)
    if nearest != number:
        below = nearest if nearest < number else math.nextafter(nearest, -math.inf)
        above = nearest if nearest > number else math.nextafter(nearest, math.inf)
        text = f"{shown(number)} is no float64 and the field has type float64; "
        neighbours = (int(below), int(above))
        nothing = f"the nearest are {int(below)} and {int(above)}"
        raise UnfitValue(text + _instead(neighbours, op=op, nothing=nothing))
    return fit_float64(number) + 0.0  # -0.0 becomes 0.0: they are equal, so must their keys be


def _instead(neighbours: tuple[Any, Any], *, op: ComparisonOp | None, nothing: str) -> str:
    """Say what to write for a number that lies between two values of the field."""
    below, above = neighbours
    if op in _UPWARDS:
        return f"write >= {above}"
    if op in _DOWNWARDS:
        return f"write <= {below}"
    return f"no record can equal it; {nothing}"
