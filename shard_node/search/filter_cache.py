"""Which rows match a filter, remembered: segments never change, growing rows are only added to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.filters import evaluate, filter_key
from annheal.index import LiveBitmap
from annheal.model.filter import Filter
from annheal.segment import Segment
from annheal.shard_node.rows.growing import GrowingView

CACHE_BYTES_MAX = 64 << 20
CACHE_ENTRIES_MAX = 8_192
"""Bitmaps of small segments are smaller than the objects around them: count those too."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CacheState:
    """How a cache is doing: questions since the start, and what it holds now.

    A `hit` was answered without evaluating anything; a question about growing rows of which some
    came since is a miss.
    """

    hits: int
    misses: int
    entries: int
    size_bytes: int


class FilterCache:
    """Least recently used answers by (segment, canonical filter), within both limits.

    `key` is `annheal.filters.filter_key(filter)`, which a caller that asks several segments makes
    once. For any number of threads: two that miss at once compute the same answer.
    """

    def __init__(
        self, *, bytes_max: int = CACHE_BYTES_MAX, entries_max: int = CACHE_ENTRIES_MAX
    ) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._bytes = 0
        self._hits = 0
        self._asked = 0
        self._answers: OrderedDict[tuple[str | int, bytes], LiveBitmap | Mask] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def size_bytes(self) -> int:
        """Bytes of the answers held."""
        return self._bytes

    def state(self) -> CacheState:
        """Return how the cache is doing."""
        with self._lock:
            misses = self._asked - self._hits
            return CacheState(self._hits, misses, len(self._answers), self._bytes)

    def matches(self, segment: Segment, filter: Filter, *, key: bytes | None = None) -> LiveBitmap:
        """Return the rows of `segment` that match the validated `filter`, dead ones included."""
        place = (segment.id, filter_key(filter) if key is None else key)
        found = self._recall(place, rows=segment.rows)
        if isinstance(found, LiveBitmap):
            return found
        bitmap = segment.matches(filter)
        self._remember(place, bitmap)
        return bitmap

    def growing_matches(
        self, growing: GrowingView, filter: Filter, *, key: bytes | None = None
    ) -> Mask:
        """Return which of the growing rows match, dead ones included: (rows,) bool, read-only.

        Only the rows that came since the last time are evaluated.
        """
        place = (growing.number, filter_key(filter) if key is None else key)
        found = self._recall(place, rows=growing.rows)
        known = np.empty(0, dtype=np.bool_) if found is None else _as_mask(found)
        if len(known) >= growing.rows:
            return known[: growing.rows]
        added = growing.attributes_from(len(known))
        mask = evaluate(filter, added, row_count=growing.rows - len(known))
        if len(known):
            mask = np.concatenate([known, mask])
        mask.flags.writeable = False
        self._remember(place, mask)
        return mask

    def forget_all_but(self, kept: Collection[str | int]) -> None:
        """Drop the answers of everything but these segments (ids) and growing rows (numbers)."""
        present = frozenset(kept)
        with self._lock:
            for place in [place for place in self._answers if place[0] not in present]:
                self._bytes -= _size_bytes(self._answers.pop(place))

    def forget(self, segment_ids: Collection[str]) -> None:
        """Drop the answers of segments that are no longer held."""
        gone = set(segment_ids)
        with self._lock:
            for place in [place for place in self._answers if place[0] in gone]:
                self._bytes -= _size_bytes(self._answers.pop(place))

    def _recall(self, place: tuple[str | int, bytes], *, rows: int) -> LiveBitmap | Mask | None:
        """Return what is known of `place`; a hit when that covers all its `rows`."""
        with self._lock:
            found = self._answers.get(place)
            self._asked += 1
            if found is not None:
                self._hits += _covers(found, rows)
                self._answers.move_to_end(place)
            return found

    def _remember(self, place: tuple[str | int, bytes], answer: LiveBitmap | Mask) -> None:
        with self._lock:
            known = self._answers.get(place)
            if known is not None and _size_bytes(known) >= _size_bytes(answer):
                return  # another thread was faster, or saw more growing rows
            self._bytes += _size_bytes(answer) - (0 if known is None else _size_bytes(known))
            self._answers[place] = answer
            self._answers.move_to_end(place)
            while self._is_over() and len(self._answers) > 1:
                _, evicted = self._answers.popitem(last=False)
                self._bytes -= _size_bytes(evicted)

    def _is_over(self) -> bool:
        return self._bytes > self._bytes_max or len(self._answers) > self._entries_max


def _size_bytes(answer: LiveBitmap | Mask) -> int:
    return answer.packed.nbytes if isinstance(answer, LiveBitmap) else answer.nbytes


def _covers(answer: LiveBitmap | Mask, rows: int) -> bool:
    return isinstance(answer, LiveBitmap) or len(answer) >= rows


def _as_mask(answer: LiveBitmap | Mask) -> Mask:
    return answer.mask() if isinstance(answer, LiveBitmap) else answer
