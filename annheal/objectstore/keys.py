"""Object keys: what is allowed, and which part of the key space a listing takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from annheal.errors import InvalidArgument

KEY_CHARACTERS_MAX = 512
# A part is the name of a file or directory in a local store: the limit of Linux file systems.
PART_CHARACTERS_MAX = 255

_PART = re.compile(r"[A-Za-z0-9._-]+")
_SAMPLE_CHARACTERS_MAX = 80


def is_key_part(name: str) -> bool:
    """Tell whether `name` may stand between two slashes of a key."""
    return (
        len(name) <= PART_CHARACTERS_MAX
        and name not in (".", "..")
        and _PART.fullmatch(name) is not None
    )


def check_key(key: str) -> str:
    """Return `key`; raises `InvalidArgument` unless it is a valid object key."""
    if len(key) > KEY_CHARACTERS_MAX:
        raise InvalidArgument.of(
            "key",
            f"has {len(key)} characters, at most {KEY_CHARACTERS_MAX} are allowed: "
            f"{key[:_SAMPLE_CHARACTERS_MAX]!r}...",
        )
    for part in key.split("/"):
        if not is_key_part(part):
            raise InvalidArgument.of(
                "key",
                f"{key!r} is not made of parts of [A-Za-z0-9._-] (1 to {PART_CHARACTERS_MAX} "
                f"characters, not '.' or '..') joined by '/'",
            )
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`; raises `InvalidArgument` unless some valid key may start with it."""
    directory, slash, rest = prefix.rpartition("/")
    if slash:
        check_key(directory)
    # What follows the last slash may be cut anywhere, so "." and ".." begin valid parts.
    if rest.strip("."):
        check_key(rest)
    return prefix


@dataclass(frozen=True, slots=True)
class Selection:
    """The keys that start with `prefix` and are greater than `after`, in order of characters."""

    prefix: str
    after: str

    @property
    def start(self) -> str:
        """The deepest directory that holds every selected key; "" is the root."""
        return self.prefix.rpartition("/")[0]

    def takes(self, key: str) -> bool:
        """Tell whether `key` is selected."""
        return key.startswith(self.prefix) and key > self.after

    def enters(self, directory: str) -> bool:
        """Tell whether some key inside `directory` (no slash at its end) may be selected."""
        stem = directory + "/"
        if not (stem.startswith(self.prefix) or self.prefix.startswith(stem)):
            return False
        # Every key inside is greater than its stem, so only a cursor beyond them all rules
        # the directory out.
        return self.after < stem or self.after.startswith(stem)
