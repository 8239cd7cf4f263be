"""`name=value` and `name:type` on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from annheal.errors import InvalidArgument


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Return `key=value` texts; values are JSON numbers or words, an empty one is None."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidArgument.of("--set", f"{text!r} is not of the form key=value")
        found[key.strip().replace("-", "_")] = _value(value.strip())
    return found


def parse_attributes(texts: Iterable[str]) -> dict[str, str]:
    """Return `name:type` texts as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        name, colon, kind = text.partition(":")
        if not colon or not name or not kind:
            raise InvalidArgument.of("--attribute", f"{text!r} is not of the form name:type")
        found[name.strip()] = kind.strip()
    return found


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
