"""What a JSON lines file holds under each key, found by reading it through once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from annheal.cli.sources.json_lines import Line, members, refuse_line
from annheal.cli.sources.plan import (
    ATTRIBUTES_COLUMN,
    PAYLOAD_COLUMN,
    SAMPLE_ROWS,
    VECTOR_LENGTH_MIN,
    ColumnFacts,
    is_keyword,
)
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.limits import KEYWORD_BYTES_MAX, KEYWORD_LIST_LENGTH_MAX

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
EXACT_FLOAT_MAX: Final = 2**53
NULL: Final = b"null"
_NUMBER_CHARACTERS = b"0123456789+-.eE, \t\r\n[]"
# As `scan` prints them; texts of another form are no moments without a schema that says so.
_MOMENT = re.compile(rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z"')
_TEXTS = msgspec.json.Decoder(list[str])


class Content(StrEnum):
    """Kinds of JSON values, as far as columns are told apart by them."""

    TEXT = "texts"
    INTEGER = "whole numbers"
    LARGE_INTEGER = "whole numbers beyond 64 bits"
    FLOAT = "numbers"
    BOOL = "truth values"
    TEXTS = "lists of texts"
    NUMBERS = "lists of numbers"
    EMPTY = "empty lists"
    LIST = "lists"
    OBJECT = "objects"


_TYPES = {
    Content.TEXT: AttributeType.KEYWORD,
    Content.INTEGER: AttributeType.INT64,
    Content.FLOAT: AttributeType.FLOAT64,
    Content.BOOL: AttributeType.BOOL,
    Content.TEXTS: AttributeType.KEYWORD_LIST,
}
"""What holds one kind of value; other kinds are no attributes."""


@dataclass(slots=True)
class Key:
    """What was seen under one key: the first line of each kind, and figures to judge by."""

    lines: dict[Content, int] = field(default_factory=dict)
    values: int = 0
    sample: list[str] = field(default_factory=list)
    integer_size_max: int = 0
    too_long: bool = False
    are_moments: bool = True
    length: int = -1
    uneven_line: int = 0

    def add(self, value: bytes, *, line: int) -> None:
        """Count one value."""
        kind = content_of(value)
        self.values += 1
        self.lines.setdefault(kind, line)
        if kind is Content.TEXT:
            self.are_moments = self.are_moments and _MOMENT.fullmatch(value) is not None
            self.too_long |= len(value) > KEYWORD_BYTES_MAX
            if len(self.sample) < SAMPLE_ROWS:
                self.sample.append(msgspec.json.decode(value))
        elif kind is Content.INTEGER:
            self.integer_size_max = max(self.integer_size_max, abs(int(value)))
        elif kind is Content.TEXTS:
            texts = _TEXTS.decode(value)
            self.too_long |= len(texts) > KEYWORD_LIST_LENGTH_MAX
            self.too_long |= any(len(text.encode()) > KEYWORD_BYTES_MAX for text in texts)
        elif kind is Content.NUMBERS:
            length = value.count(b",") + 1
            if self.length < 0:
                self.length = length
            elif length != self.length and not self.uneven_line:
                self.uneven_line = line


@dataclass(slots=True)
class Profile:
    """What a file holds: keys of its objects, and members of their `attributes`."""

    path: Path
    rows: int = 0
    keys: dict[str, Key] = field(default_factory=dict)
    nested: dict[str, Key] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, lines: Iterable[Line]) -> Profile:
        """Read all lines."""
        profile = cls(path)
        for line in lines:
            profile.rows += 1
            for name, value in line.values.items():
                profile._add(name, value, line.number)
        if not profile.rows:
            raise InvalidArgument.of("FILE", f"{path} has no lines")
        profile._check_attributes()
        return profile

    def facts(self) -> list[ColumnFacts]:
        """Return what the columns hold."""
        found = [self._facts(name, key) for name, key in self.nested.items()]
        for name, key in self.keys.items():
            if name != ATTRIBUTES_COLUMN or not self.has_nested:
                found.append(self._facts(name, key, flat=True))
        return found

    @property
    def has_nested(self) -> bool:
        """Whether `attributes` holds the attributes of records, as `scan` prints them."""
        key = self.keys.get(ATTRIBUTES_COLUMN)
        return key is not None and Content.OBJECT in key.lines

    def check_vectors(self, name: str) -> int:
        """Return the dimension; raises `InvalidArgument` with the first line that is wrong."""
        key = self.keys[name]
        wrong = {kind: line for kind, line in key.lines.items() if kind is not Content.NUMBERS}
        if wrong:
            kind = min(wrong, key=wrong.__getitem__)
            raise refuse_line(
                self.path, wrong[kind], f"{name} must be a list of {key.length} numbers, not {kind}"
            )
        if key.uneven_line:
            raise refuse_line(
                self.path, key.uneven_line, f"{name} must be a list of {key.length} numbers"
            )
        return key.length

    def _add(self, name: str, value: bytes, line: int) -> None:
        if name == ATTRIBUTES_COLUMN and value.startswith(b"{"):
            self.keys.setdefault(name, Key()).lines.setdefault(Content.OBJECT, line)
            for member, part in members(value).items():
                key = self.nested.setdefault(member, Key())
                if part != NULL:
                    key.add(part, line=line)
            return
        key = self.keys.setdefault(name, Key())
        if value != NULL:
            key.add(value, line=line)

    def _check_attributes(self) -> None:
        if not self.has_nested:
            return
        lines = self.keys[ATTRIBUTES_COLUMN].lines
        for kind, line in lines.items():
            if kind is not Content.OBJECT:
                raise refuse_line(
                    self.path,
                    max(line, lines[Content.OBJECT]),
                    f"{ATTRIBUTES_COLUMN} holds objects in some lines and {kind} in others",
                )

    def _facts(self, name: str, key: Key, *, flat: bool = False) -> ColumnFacts:
        kind = None if key.too_long else attribute_type(key)
        if not flat and kind is AttributeType.KEYWORD and key.are_moments:
            kind = AttributeType.TIMESTAMP
        is_vector = Content.NUMBERS in key.lines
        return ColumnFacts(
            name=name,
            described=_described(key),
            kind=kind,
            is_vector=is_vector,
            looks_like_vector=is_vector
            and set(key.lines) == {Content.NUMBERS}
            and not key.uneven_line
            and key.length >= VECTOR_LENGTH_MIN,
            is_free_text=flat and kind is AttributeType.KEYWORD and not is_keyword(key.sample),
            is_whole_payload=flat and name == PAYLOAD_COLUMN,
            unfit=self._mixture(name, key),
            nested=not flat,
        )

    def _mixture(self, name: str, key: Key) -> str:
        """Return why values that would be attributes one by one have no common type."""
        kinds = [kind for kind in key.lines if kind is not Content.EMPTY]
        if attribute_type(key) is not None or len(kinds) < 2 or not set(kinds) <= set(_TYPES):
            return ""
        later = max(key.lines[kind] for kind in kinds)
        return (
            f"holds {_described(key)}: first mixed at {self.path.name}:{later}; correct the file,"
            f" or give --payload auto,{name} to keep it in the payload as it is"
        )


def attribute_type(key: Key) -> AttributeType | None:
    """Return the attribute type that holds all values exactly; None where none does."""
    kinds = set(key.lines)
    if kinds == {Content.INTEGER, Content.FLOAT}:
        return AttributeType.FLOAT64 if key.integer_size_max <= EXACT_FLOAT_MAX else None
    if kinds and kinds <= {Content.TEXTS, Content.EMPTY}:
        return AttributeType.KEYWORD_LIST
    return _TYPES.get(kinds.pop()) if len(kinds) == 1 else None


def content_of(value: bytes) -> Content:
    """Return the kind of a JSON value that is not null."""
    match value[:1]:
        case b'"':
            return Content.TEXT
        case b"{":
            return Content.OBJECT
        case b"t" | b"f":
            return Content.BOOL
        case b"[":
            return _content_of_list(value)
    if not value.lstrip(b"-").isdigit():
        return Content.FLOAT
    fits = len(value) < 19 or INT64_MIN <= int(value) <= INT64_MAX
    return Content.INTEGER if fits else Content.LARGE_INTEGER


def _content_of_list(value: bytes) -> Content:
    first = value[1:].lstrip()[:1]
    if first == b"]":
        return Content.EMPTY
    if first == b'"':
        try:
            _TEXTS.decode(value)
        except msgspec.ValidationError:
            return Content.LIST
        return Content.TEXTS
    is_flat = value.count(b"[") == 1 and not value.translate(None, _NUMBER_CHARACTERS)
    return Content.NUMBERS if is_flat else Content.LIST


def _described(key: Key) -> str:
    if not key.lines:
        return "nothing"
    parts = [f"{kind} (line {line})" for kind, line in key.lines.items()]
    return " and ".join(parts) if len(parts) > 1 else next(iter(key.lines)).value
