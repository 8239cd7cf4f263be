"""Names that become parts of paths and keys: checked wherever they come in, before they are used.

Ids of collections, segments and tasks, and what makes an object's name unique, are given by
Annheal itself. What arrives by RPC or is read back from a store is text all the same: `../x` must
never reach a path.
"""

from __future__ import annotations

import re

from annheal.errors import InvalidArgument

NAME_CHARACTERS_MAX = 64
SHARD_DIGITS = 5
SHARDS_MAX = 10**SHARD_DIGITS
NAME_PATTERN = f"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{NAME_CHARACTERS_MAX - 1}}}"

_NAME = re.compile(NAME_PATTERN)
_SHOWN = 80


def is_name(text: str) -> bool:
    """Tell whether `text` may be a part of a path: letters, digits, `_` and `-`, at most 64."""
    return _NAME.fullmatch(text) is not None


def checked_name(text: str, *, field: str) -> str:
    """Return `text`; raises `InvalidArgument` that names `field` unless `is_name`."""
    if not is_name(text):
        raise InvalidArgument.of(
            field,
            f"{text[:_SHOWN]!r} is not an id: 1 to {NAME_CHARACTERS_MAX} letters, digits, '_' or "
            "'-', the first no '-'",
        )
    return text


def checked_shard(number: int, *, field: str = "shard") -> int:
    """Return `number`; raises `InvalidArgument` that names `field` unless a shard can have it."""
    if not 0 <= number < SHARDS_MAX:
        raise InvalidArgument.of(field, f"{number} is not between 0 and {SHARDS_MAX - 1}")
    return number
