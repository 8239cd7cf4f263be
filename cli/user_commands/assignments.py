"""`name=value` and `name:type` on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_type_hints

import msgspec

from annheal.errors import InvalidArgument
from annheal.model.texts.spec import EmbedderSpec


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Return `key=value` texts; values are JSON numbers or words, an empty one is None."""
    found: dict[str, Any] = {}
    for text in texts:
        key, value = _assigned(text, option="--set")
        found[key.replace("-", "_")] = _value(value)
    return found


def parse_embedder(kind: str | None, texts: Iterable[str]) -> dict[str, Any] | None:
    """Return the options of an embedder, `key=value` texts, as the SDK takes them; None: none.

    What a plugin needs beside is written `options.NAME=value`.
    """
    given = [_assigned(text, option="--embedder-option") for text in texts]
    if kind is None:
        if given:
            raise InvalidArgument.of("--embedder-option", "needs --embedder KIND")
        return None
    return {"kind": kind} | _embedder_options(given)


def parse_embedder_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return some options of an embedder, `key=value` texts."""
    return _embedder_options([_assigned(text, option="--embedder-option") for text in texts])


def _embedder_options(given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    hints = get_type_hints(EmbedderSpec)
    found: dict[str, Any] = {}
    options: dict[str, str] = {}
    for key, value in given:
        if key.startswith("options."):
            options[key.removeprefix("options.")] = value
        else:
            name = key.replace("-", "_")
            found[name] = value if hints.get(name) is str else _value(value)
    return found | ({"options": options} if options else {})


def parse_attributes(texts: Iterable[str]) -> dict[str, str]:
    """Return `name:type` texts as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        name, colon, kind = text.partition(":")
        if not colon or not name or not kind:
            raise InvalidArgument.of("--attribute", f"{text!r} is not of the form name:type")
        found[name.strip()] = kind.strip()
    return found


def _assigned(text: str, *, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidArgument.of(option, f"{text!r} is not of the form key=value")
    return key.strip(), value.strip()


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
