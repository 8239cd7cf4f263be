"""What somebody may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NAME_CHARACTERS_MAX = 64
_CLOSE_ENOUGH = 0.5


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `did you mean x? There are: x, y`, without the question when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:_NAME_CHARACTERS_MAX], names, n=1, cutoff=_CLOSE_ENOUGH)
    question = f"did you mean {close[0]}? There are: " if close else "there are: "
    return question + (", ".join(names) or "none")
