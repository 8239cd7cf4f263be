"""Moments: protobuf timestamps, seconds since the epoch, and aware datetimes."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from annheal.errors import InvalidArgument
from annheal.model.values.moments import (
    EPOCH,
    MICROSECOND,
    MOMENT_US_MAX,
    MOMENT_US_MIN,
    OUTSIDE,
    TOO_FINE,
    moment_of,
)

_NANOS_PER_SECOND = 1_000_000_000


def encode_seconds(moment_s: float) -> Timestamp | None:
    """Return `moment_s` (Unix time) as a timestamp, None for 0, which means "never"."""
    if not moment_s:
        return None
    seconds, nanos = divmod(round(moment_s * 1e6) * 1_000, _NANOS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def decode_seconds(timestamp: Timestamp) -> float:
    """Return Unix time in seconds, 0 for a timestamp that is not set."""
    return timestamp.seconds + timestamp.nanos / _NANOS_PER_SECOND


def encode_datetime(moment: datetime) -> Timestamp:
    """Return an aware datetime as a timestamp, exact to the microsecond."""
    return timestamp_of_us((moment - EPOCH) // MICROSECOND)


def decode_datetime(timestamp: Timestamp, *, field: str) -> datetime:
    """Return an aware UTC datetime; raises `InvalidArgument` as `decode_us` does."""
    return moment_of(decode_us(timestamp, field=field))


def timestamp_of_us(moment_us: int) -> Timestamp:
    """Return microseconds since the epoch as a timestamp."""
    seconds, micros = divmod(moment_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def decode_us(timestamp: Timestamp, *, field: str) -> int:
    """Return microseconds since the epoch.

    Raises `InvalidArgument` outside the years 1 to 9999 and for what is finer than a microsecond.
    """
    if not 0 <= timestamp.nanos < _NANOS_PER_SECOND:
        raise InvalidArgument.of(
            field, f"nanos is {timestamp.nanos}, but must be between 0 and 999999999"
        )
    micros, finer = divmod(timestamp.nanos, 1_000)
    if finer:
        raise InvalidArgument.of(field, f"{timestamp.nanos} nanoseconds: the moment {TOO_FINE}")
    moment_us = timestamp.seconds * 1_000_000 + micros
    if not MOMENT_US_MIN <= moment_us <= MOMENT_US_MAX:
        raise InvalidArgument.of(field, f"{timestamp.seconds} seconds: the moment {OUTSIDE}")
    return moment_us
