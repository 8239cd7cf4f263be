"""The one rule of time, for writes, filters and imports (ADR 20).

A moment is microseconds since 1970-01-01 UTC, within the years 1 to 9999 that every client can
read back. Taken are: aware datetimes; dates, as their midnight in UTC; RFC 3339 text with an
offset, or a date alone; and columns of a type that has no place for a zone (numpy datetime64, Arrow
timestamps without zone, Arrow dates), which count as UTC. Refused are: numbers, since seconds and
microseconds look alike; a datetime or text that could name its zone and does not; and whatever is
finer than a microsecond.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from annheal.model.values.unfit import UnfitValue, shown, type_word

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
MOMENT_US_MIN: Final = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // MICROSECOND
MOMENT_US_MAX: Final = (
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - EPOCH
) // MICROSECOND
OUTSIDE: Final = "lies outside the years 1 to 9999 in UTC; send a moment within them"
WITHOUT_ZONE: Final = "has no time zone; give it one, UTC for example"
TOO_FINE: Final = "is finer than a microsecond; round it to microseconds"
FIX: Final = (
    "send an aware datetime, a date, RFC 3339 text such as '2024-01-31T12:00:00Z', numpy datetime64"
    " or an Arrow timestamp"
)

_MICROSECOND_DIGITS: Final = 6
_FINER_UNITS: Final = ("ns", "ps", "fs", "as")
_TIMESTAMP: Final = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<time>\d{2}:\d{2}:\d{2})(?:\.(?P<fraction>\d+))?"
    r"(?P<zone>[Zz]|[+-]\d{2}:\d{2})?)?",
    re.ASCII,
)


def moment_us(value: object) -> int:
    """Return one Python value as microseconds since the epoch; raises `UnfitValue`."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, np.datetime64):
        return int(datetime64_us(np.array([value]))[0][0])
    if isinstance(value, datetime):
        return _of_datetime(value)
    if isinstance(value, date):
        return _of_datetime(datetime(value.year, value.month, value.day, tzinfo=UTC))
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    why = ", which could be seconds or microseconds" if number else f", which is {type_word(value)}"
    raise UnfitValue(f"the field has type timestamp, not {shown(value)}{why}; {FIX}")


def moment_of(moment_us: int) -> datetime:
    """Return the aware datetime of microseconds within the range."""
    return EPOCH + moment_us * MICROSECOND


def datetime64_us(
    moments: npt.NDArray[np.datetime64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return (n,) moments of any unit as microseconds, and where there is one (NaT is none)."""
    moments = moments.astype(moments.dtype.newbyteorder("="), copy=False)
    missing = np.isnat(moments)
    unit = np.datetime_data(moments.dtype)[0]
    if unit == "generic":  # only NaT has no unit
        return np.zeros(len(moments), dtype=np.int64), ~missing
    finer = unit in _FINER_UNITS
    if not finer:
        # In the caller's unit, because conversion to microseconds could wrap.
        bounds: Any = np.array([MOMENT_US_MIN, MOMENT_US_MAX], "datetime64[us]")
        low, high = bounds.astype(moments.dtype).view(np.int64).tolist()
        ticks = moments.view(np.int64)
        _refuse_first(~missing & ((ticks < low) | (ticks > high)), moments, OUTSIDE)
    micros = np.where(missing, np.datetime64(0, "us"), moments.astype("datetime64[us]"))
    if finer:
        _refuse_first(~missing & (micros.astype(moments.dtype) != moments), moments, TOO_FINE)
    numbers = micros.astype("datetime64[us]").view(np.int64)
    _refuse_first((numbers < MOMENT_US_MIN) | (numbers > MOMENT_US_MAX), moments, OUTSIDE)
    return numbers, ~missing


def _of_datetime(value: datetime) -> int:
    if value.utcoffset() is None:
        raise UnfitValue(f"{shown(value)} {WITHOUT_ZONE}")
    if getattr(value, "nanosecond", 0):  # pandas.Timestamp
        raise UnfitValue(f"{shown(value)} {TOO_FINE}")
    micros = int((value - EPOCH) // MICROSECOND)
    if not MOMENT_US_MIN <= micros <= MOMENT_US_MAX:
        raise UnfitValue(f"{shown(value)} {OUTSIDE}")
    return micros


def _parsed(text: str) -> datetime:
    """Return the moment that RFC 3339 `text` names; a date alone is its midnight in UTC."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise UnfitValue(
            f"{shown(text)} is not a timestamp; write RFC 3339, for example "
            "'2024-01-31T12:00:00Z', or a date, '2024-01-31'"
        )
    if match["time"] and not match["zone"]:
        raise UnfitValue(f"{shown(text)} has no time zone; end it with Z or +02:00")
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


def _refuse_first(wrong: npt.NDArray[np.bool_], moments: Any, why: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UnfitValue(f"'{moments[row]}' {why}", row=row)
