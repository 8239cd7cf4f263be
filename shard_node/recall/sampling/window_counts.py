"""Counts queries by kind: since the start, and in about the last window."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

WINDOW_PARTS = 6
"""Parts of a window in which queries are counted."""

KindT = TypeVar("KindT", bound=Hashable)


class WindowCounts(Generic[KindT]):
    """Counts of queries by kind.

    Args:
        window_s: seconds of the window.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._part_s = window_s / WINDOW_PARTS
        self._past: dict[KindT, int] = {}
        """Queries before those of `_parts`."""
        self._parts: deque[tuple[float, dict[KindT, int]]] = deque()
        """Queries of the last window, by part, with the time at which each part began."""

    def part(self, at_s: float) -> dict[KindT, int]:
        """Return the counts of the part of the window at `at_s`, to count further queries in."""
        if self._parts and at_s - self._parts[-1][0] < self._part_s:
            return self._parts[-1][1]
        if len(self._parts) > WINDOW_PARTS:
            for kind, queries in self._parts.popleft()[1].items():
                self._past[kind] = self._past.get(kind, 0) + queries
        part: dict[KindT, int] = {}
        self._parts.append((at_s, part))
        return part

    def seen(self) -> dict[KindT, int]:
        """Return the queries since the start."""
        counts = dict(self._past)
        for _, part in self._parts:
            for kind, queries in part.items():
                counts[kind] = counts.get(kind, 0) + queries
        return counts

    def recent(self, now_s: float) -> dict[KindT, int]:
        """Return the queries of about the last window before `now_s`."""
        counts: dict[KindT, int] = {}
        oldest_s = now_s - self._window_s - self._part_s
        for began_s, part in self._parts:
            if began_s >= oldest_s:
                for kind, queries in part.items():
                    counts[kind] = counts.get(kind, 0) + queries
        return counts

    def forget(self, kinds: Iterable[KindT]) -> None:
        """Count the queries of these kinds from 0 on."""
        for kind in kinds:
            for counts in (self._past, *(part for _, part in self._parts)):
                counts.pop(kind, None)
