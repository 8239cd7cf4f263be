"""What clients may state about the kind of their queries: tags, for which recall is measured."""

from __future__ import annotations

import re

from annheal.errors import InvalidArgument

TAG_CHARACTERS_MAX = 32
TAG_PATTERN = rf"[A-Za-z][A-Za-z0-9_-]{{0,{TAG_CHARACTERS_MAX - 1}}}"
TAGS_MAX = 16
"""Tags of a collection that are measured by themselves."""
OTHER_TAGS = "(other)"
"""The name of all others together. No client can state it."""

_TAG = re.compile(TAG_PATTERN)
_SHOWN = 80


def checked_tag(tag: str, *, field: str = "tag") -> str:
    """Return `tag`, which may be empty; raises `InvalidArgument` unless it is a name."""
    if tag and _TAG.fullmatch(tag) is None:
        raise InvalidArgument.of(
            field,
            f"{tag[:_SHOWN]!r} is no tag: a letter, then at most {TAG_CHARACTERS_MAX - 1} more"
            " letters, digits, '_' and '-', for example 'autocomplete'",
        )
    return tag
