"""A cache of which rows match a filter.

Rows of a segment never change. Growing rows are only added, so only the new ones are evaluated.
"""

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
"""A limit of entries too: bitmaps of small segments are smaller than the objects around them."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CacheState:
    """Lookups of a cache since the start, and what it holds now.

    A hit is a lookup after which no row was evaluated. A lookup of growing rows of which some are
    new is a miss.
    """

    hits: int
    misses: int
    entries: int
    size_bytes: int


class FilterCache:
    """Matches by (segment id or number of growing rows, filter key); safe for any thread.

    The least recently used ones are dropped at `bytes_max` and `entries_max`. `key` arguments are
    `annheal.filters.filter_key(filter)`, for callers that look up several segments. Two threads
    that miss at the same time both evaluate the filter.
    """

    def __init__(
        self, *, bytes_max: int = CACHE_BYTES_MAX, entries_max: int = CACHE_ENTRIES_MAX
    ) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._bytes = 0
        self._hits = 0
        self._lookups = 0
        self._entries: OrderedDict[tuple[str | int, bytes], LiveBitmap | Mask] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of all matches in the cache."""
        return self._bytes

    def state(self) -> CacheState:
        """Return counts of lookups and the present size."""
        with self._lock:
            misses = self._lookups - self._hits
            return CacheState(self._hits, misses, len(self._entries), self._bytes)

    def matches(self, segment: Segment, filter: Filter, *, key: bytes | None = None) -> LiveBitmap:
        """Return the rows of `segment` that match the validated `filter`, dead ones included."""
        entry = (segment.id, filter_key(filter) if key is None else key)
        found = self._look_up(entry, rows=segment.rows)
        if isinstance(found, LiveBitmap):
            return found
        bitmap = segment.matches(filter)
        self._store(entry, bitmap)
        return bitmap

    def growing_matches(
        self, growing: GrowingView, filter: Filter, *, key: bytes | None = None
    ) -> Mask:
        """Return which of the growing rows match, dead ones included: (rows,) bool, read-only.

        Only the rows that were added since the last lookup are evaluated.
        """
        entry = (growing.number, filter_key(filter) if key is None else key)
        found = self._look_up(entry, rows=growing.rows)
        known = np.empty(0, dtype=np.bool_) if found is None else _as_mask(found)
        if len(known) >= growing.rows:
            return known[: growing.rows]
        added = growing.attributes_from(len(known))
        mask = evaluate(filter, added, row_count=growing.rows - len(known))
        if len(known):
            mask = np.concatenate([known, mask])
        mask.flags.writeable = False
        self._store(entry, mask)
        return mask

    def forget_all_but(self, kept: Collection[str | int]) -> None:
        """Drop all entries but those of these segments (ids) and growing rows (numbers)."""
        present = frozenset(kept)
        with self._lock:
            for entry in [entry for entry in self._entries if entry[0] not in present]:
                self._bytes -= _size_bytes(self._entries.pop(entry))

    def forget(self, segment_ids: Collection[str]) -> None:
        """Drop the entries of the given segments."""
        gone = set(segment_ids)
        with self._lock:
            for entry in [entry for entry in self._entries if entry[0] in gone]:
                self._bytes -= _size_bytes(self._entries.pop(entry))

    def _look_up(self, entry: tuple[str | int, bytes], *, rows: int) -> LiveBitmap | Mask | None:
        """Return the cached matches, possibly of fewer than `rows` rows; a hit if of all."""
        with self._lock:
            found = self._entries.get(entry)
            self._lookups += 1
            if found is not None:
                self._hits += _covers(found, rows)
                self._entries.move_to_end(entry)
            return found

    def _store(self, entry: tuple[str | int, bytes], matches: LiveBitmap | Mask) -> None:
        with self._lock:
            known = self._entries.get(entry)
            if known is not None and _size_bytes(known) >= _size_bytes(matches):
                return  # another thread was faster, or saw more growing rows
            self._bytes += _size_bytes(matches) - (0 if known is None else _size_bytes(known))
            self._entries[entry] = matches
            self._entries.move_to_end(entry)
            while self._is_over() and len(self._entries) > 1:
                _, evicted = self._entries.popitem(last=False)
                self._bytes -= _size_bytes(evicted)

    def _is_over(self) -> bool:
        return self._bytes > self._bytes_max or len(self._entries) > self._entries_max


def _size_bytes(matches: LiveBitmap | Mask) -> int:
    return matches.packed.nbytes if isinstance(matches, LiveBitmap) else matches.nbytes


def _covers(matches: LiveBitmap | Mask, rows: int) -> bool:
    return isinstance(matches, LiveBitmap) or len(matches) >= rows


def _as_mask(matches: LiveBitmap | Mask) -> Mask:
    return matches.mask() if isinstance(matches, LiveBitmap) else matches
