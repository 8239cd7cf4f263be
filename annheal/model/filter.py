"""Filters over attributes as a typed tree. docs/filters.md states the semantics.

The nodes say nothing about a schema: `annheal.filters.validate_filter` checks a tree against one
and returns its canonical form, the only form that `annheal.filters.evaluate` and cache keys take.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

FILTER_DEPTH_MAX = 32
"""Levels of a filter, a single comparison being one."""
FILTER_NODES_MAX = 1_024
"""Nodes of a filter: comparisons, memberships, `and`, `or`, `not`."""
FILTER_MEMBERSHIP_VALUES_MAX = 10_000
"""Values of one `in` or `not in`, before duplicates are dropped."""
FILTER_STRING_BYTES_MAX = 4_096
"""UTF-8 bytes of one text value or prefix."""

FilterValue: TypeAlias = str | int | float | bool | datetime
"""A value compared with; a datetime is aware. `bool` is never read as a number."""


class ComparisonOp(StrEnum):
    """How a field is compared with one value."""

    EQ = "="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field op value`. `!=` is the complement of `=`, so it is true where the value is missing."""

    field: str
    op: ComparisonOp
    value: FilterValue


@dataclass(frozen=True, slots=True)
class Membership:
    """`field in values`, or its complement `field not in values` when `negated`."""

    field: str
    values: tuple[FilterValue, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Exists:
    """The record has a value for `field`; an empty keyword list is a value."""

    field: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """A keyword, or some element of a keyword list, starts with `prefix`."""

    field: str
    prefix: str


@dataclass(frozen=True, slots=True)
class And:
    """Every operand holds; at least one operand."""

    operands: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some operand holds; at least one operand."""

    operands: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The complement of `operand`: exactly the records that it does not match."""

    operand: Filter


Filter: TypeAlias = Comparison | Membership | Exists | Prefix | And | Or | Not
