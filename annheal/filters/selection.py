"""Sets of rows before they are materialised: their size is known (or bounded) first.

Nothing here changes an array of words once it is made, so selections may hand out mapped files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from annheal.filters.words import Words, every_row, inverted, no_rows


class Selection(Protocol):
    """Some of `row_count` rows: at least `lower`, at most `upper`."""

    @property
    def row_count(self) -> int:
        """Rows to choose from."""
        ...

    @property
    def lower(self) -> int:
        """Rows that the set has at least."""
        ...

    @property
    def upper(self) -> int:
        """Rows that the set has at most."""
        ...

    def words(self) -> Words:
        """Return the set, to be read only."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """A set that is there already."""

    row_count: int
    count: int
    held: Words

    @property
    def lower(self) -> int:
        """The exact count."""
        return self.count

    @property
    def upper(self) -> int:
        """The exact count."""
        return self.count

    def words(self) -> Words:
        """Return the set."""
        return self.held


@dataclass(frozen=True, slots=True)
class Nothing:
    """No row."""

    row_count: int
    lower: int = 0
    upper: int = 0

    def words(self) -> Words:
        """Return the empty set."""
        return no_rows(self.row_count)


@dataclass(frozen=True, slots=True)
class Everything:
    """Every row."""

    row_count: int

    @property
    def lower(self) -> int:
        """All rows."""
        return self.row_count

    @property
    def upper(self) -> int:
        """All rows."""
        return self.row_count

    def words(self) -> Words:
        """Return the set of all rows."""
        return every_row(self.row_count)


@dataclass(frozen=True, slots=True)
class Rest:
    """The rows that are not in `inner`."""

    inner: Selection

    @property
    def row_count(self) -> int:
        """Rows to choose from."""
        return self.inner.row_count

    @property
    def lower(self) -> int:
        """What the inner set leaves at least."""
        return self.row_count - self.inner.upper

    @property
    def upper(self) -> int:
        """What the inner set leaves at most."""
        return self.row_count - self.inner.lower

    def words(self) -> Words:
        """Return the complement."""
        return inverted(self.inner.words(), self.row_count)


@dataclass(frozen=True, slots=True)
class Common:
    """The rows in all of `parts`, of which the smallest come first."""

    row_count: int
    parts: tuple[Selection, ...]

    @property
    def lower(self) -> int:
        """Rows that have to be common because the sets are large."""
        spare = sum(self.row_count - part.lower for part in self.parts)
        return max(0, self.row_count - spare)

    @property
    def upper(self) -> int:
        """The smallest set."""
        return self.parts[0].upper

    def words(self) -> Words:
        """Intersect until nothing is left."""
        result = self.parts[0].words()
        for part in self.parts[1:]:
            if not result.any():
                break
            result = np.bitwise_and(result, part.words())
        return result


@dataclass(frozen=True, slots=True)
class United:
    """The rows in any of `parts`."""

    row_count: int
    parts: tuple[Selection, ...]

    @property
    def lower(self) -> int:
        """The largest set."""
        return max(part.lower for part in self.parts)

    @property
    def upper(self) -> int:
        """All sets, should they have nothing in common."""
        return min(self.row_count, sum(part.upper for part in self.parts))

    def words(self) -> Words:
        """Unite all sets."""
        result = self.parts[0].words().copy()
        for part in self.parts[1:]:
            result |= part.words()
        return result


def rest(inner: Selection) -> Selection:
    """Return the complement of `inner`."""
    if inner.upper == 0:
        return Everything(inner.row_count)
    if inner.lower == inner.row_count:
        return Nothing(inner.row_count)
    return Rest(inner)


def common(parts: Sequence[Selection], *, row_count: int) -> Selection:
    """Return what all of `parts` (at least one) have in common."""
    smallest_first = sorted(parts, key=lambda part: part.upper)
    if smallest_first[0].upper == 0:
        return Nothing(row_count)
    narrowing = tuple(part for part in smallest_first if part.lower < row_count)
    if len(narrowing) < 2:
        return narrowing[0] if narrowing else Everything(row_count)
    return Common(row_count, narrowing)


def united(parts: Sequence[Selection], *, row_count: int) -> Selection:
    """Return what is in any of `parts` (at least one)."""
    if any(part.lower == row_count for part in parts):
        return Everything(row_count)
    widening = tuple(part for part in parts if part.upper)
    if len(widening) < 2:
        return widening[0] if widening else Nothing(row_count)
    return United(row_count, widening)
