"""Metadata values as JSON of the frozen dataclasses of `annheal.model`."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from annheal.errors import DataCorruption

ValueT = TypeVar("ValueT")


def encode_value(value: object) -> bytes:
    """Return `value` (a dataclass of `annheal.model`) as JSON; equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def decode_value(stored: bytes, as_type: type[ValueT], *, key: str) -> ValueT:
    """Return the value stored under `key`.

    Fields that `as_type` does not know are ignored, so that an older process can read what a newer
    one wrote. Raises `DataCorruption`, which names the key, when the bytes are not such a value.
    """
    try:
        return msgspec.json.decode(stored, type=as_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataCorruption(
            f"metadata key {key!r} does not hold a {as_type.__name__}: {error}",
            metadata={"key": key},
        ) from error
