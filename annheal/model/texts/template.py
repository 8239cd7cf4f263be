"""The text of a record, from its attributes and payload: `{name}: {summary}`.

Braces hold the name of an attribute, or of a field of the payload where the collection declares no
such attribute; dots go into objects of the payload: `{author.name}`. A name with a question mark
may be missing, and leaves nothing then: `{subtitle?}`. Doubled braces are braces. That is all: a
template calls nothing, reaches nothing else, and costs what its text costs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from annheal.errors import InvalidArgument

TEMPLATE_CHARACTERS_MAX: Final = 4_096
PLACEHOLDERS_MAX: Final = 64

_NAME = re.compile(r"[^{}?.\s]+(\.[^{}?.\s]+)*")
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A value to fill in: `path` is an attribute, or leads into the payload."""

    path: tuple[str, ...]
    optional: bool

    @property
    def name(self) -> str:
        """As it is written."""
        return ".".join(self.path)


Template: TypeAlias = tuple[str | Placeholder, ...]


def parse_template(source: str, *, field: str = "source") -> Template:
    """Return the parts of a template; raises `InvalidArgument` that says what is wrong and where.

    A template without a placeholder is refused: it would give every record the same text.
    """
    if len(source) > TEMPLATE_CHARACTERS_MAX:
        raise InvalidArgument.of(field, f"has more than {TEMPLATE_CHARACTERS_MAX} characters")
    parts: list[str | Placeholder] = []
    for token in _TOKEN.finditer(source):
        text = token.group()
        if text in ("{{", "}}"):
            parts.append(text[0])
        elif text in ("{", "}"):
            raise InvalidArgument.of(
                field, f"has a lone {text!r} at position {token.start()}; write {text * 2} for one"
            )
        elif token.group(1) is None:
            parts.append(text)
        else:
            parts.append(_placeholder(token.group(1), at=token.start(), field=field))
    count = sum(isinstance(part, Placeholder) for part in parts)
    if not 1 <= count <= PLACEHOLDERS_MAX:
        raise InvalidArgument.of(
            field,
            f"has {count} names in braces; it needs 1 to {PLACEHOLDERS_MAX}, as in"
            " '{name}: {summary}'",
        )
    return tuple(parts)


def _placeholder(text: str, *, at: int, field: str) -> Placeholder:
    name = text.removesuffix("?")
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument.of(
            field,
            f"{text[:40]!r} in braces at position {at} is no name of an attribute or of a field of"
            " the payload, such as name, author.name or subtitle?",
        )
    return Placeholder(tuple(name.split(".")), text.endswith("?"))
