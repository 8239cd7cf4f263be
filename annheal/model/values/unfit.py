"""The one exception of value conversion: what is wrong, in which row, and how to fix it."""

from __future__ import annotations

from datetime import date, datetime
from typing import Final

from annheal.errors import InvalidArgument

SHOWN_CHARACTERS_MAX: Final = 40
SHOWN_BITS_MAX: Final = 100


class UnfitValue(Exception):
    """A value does not fit; `reason` says why and how to fix it.

    `row` counts from 0 within what was given; None when the whole is wrong. `part` is the place
    inside the row, in the way of a path: `.title[2]`.
    """

    def __init__(self, reason: str, *, row: int | None = None, part: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.row = row
        self.part = part

    def in_row(self, row: int) -> UnfitValue:
        """Return the same, found in `row`."""
        return UnfitValue(self.reason, row=row, part=self.part)

    def refusal(self, field: str, *, first_row: int = 0) -> InvalidArgument:
        """Return the error for callers, who count rows from `first_row` on."""
        place = "" if self.row is None else f"[{first_row + self.row}]"
        return InvalidArgument.of(f"{field}{place}{self.part}", self.reason)


def shown(value: object) -> str:
    """Return `value` as a message shows it: short, and quoted when it is text."""
    if isinstance(value, date):
        return f"'{value.isoformat()}'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > SHOWN_BITS_MAX:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print huge ones
    text = repr(value[: SHOWN_CHARACTERS_MAX + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."


def type_word(value: object) -> str:
    """Return what kind of value it is, in words."""
    for kind, word in _TYPE_WORDS:
        if isinstance(value, kind):
            return word
    return f"of Python type {value.__class__.__name__}"


_TYPE_WORDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "a boolean"),
    (str, "a string"),
    (int, "a whole number"),
    (float, "a number"),
    (datetime, "a timestamp"),
    (date, "a date"),
)
