"""Metadata values as JSON of the frozen dataclasses of `annheal.model`."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from annheal.errors import DataCorruption

ValueT = TypeVar("ValueT")

# msgspec 0.22 crashes when threads describe a dataclass to it at the same time for the first time.
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_describing = threading.Lock()


def encode_value(value: object) -> bytes:
    """Return `value` (a dataclass of `annheal.model`) as JSON; equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def decode_value(stored: bytes, as_type: type[ValueT], *, key: str) -> ValueT:
    """Return the value stored under `key`.

    Fields that `as_type` does not know are ignored, so that an older process can read what a newer
    one wrote. Raises `DataCorruption`, which names the key, when the bytes are not such a value.
    """
    try:
        return _decoder(as_type).decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataCorruption(
            f"metadata key {key!r} does not hold a {as_type.__name__}: {error}",
            metadata={"key": key},
        ) from error


def _decoder(kind: type[ValueT]) -> msgspec.json.Decoder[ValueT]:
    found = _decoders.get(kind)
    if found is None:
        with _describing:
            found = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return found
