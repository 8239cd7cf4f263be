"""Which rows of a segment match a filter, remembered: segments never change."""

from __future__ import annotations

import threading
from collections import OrderedDict

from annheal.filters import evaluate, filter_key
from annheal.index import LiveBitmap
from annheal.model.filter import Filter
from annheal.segment import Segment

CACHE_BYTES_MAX = 64 << 20
CACHE_ENTRIES_MAX = 8_192
"""Bitmaps of small segments are smaller than the objects around them: count those too."""


class FilterCache:
    """Least recently used bitmaps by (segment, canonical filter), within both limits."""

    def __init__(
        self, *, bytes_max: int = CACHE_BYTES_MAX, entries_max: int = CACHE_ENTRIES_MAX
    ) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._bytes = 0
        self._bitmaps: OrderedDict[tuple[str, bytes], LiveBitmap] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._bitmaps)

    def matches(self, segment: Segment, filter: Filter) -> LiveBitmap:
        """Return the rows of `segment` that match the validated `filter`, dead ones included."""
        key = (segment.id, filter_key(filter))
        with self._lock:
            found = self._bitmaps.get(key)
            if found is not None:
                self._bitmaps.move_to_end(key)
                return found
        mask = evaluate(filter, segment.attributes, row_count=segment.rows)
        bitmap = LiveBitmap.from_mask(mask)
        with self._lock:
            if key not in self._bitmaps:
                self._bitmaps[key] = bitmap
                self._bytes += bitmap.packed.nbytes
            while self._is_over() and len(self._bitmaps) > 1:
                _, evicted = self._bitmaps.popitem(last=False)
                self._bytes -= evicted.packed.nbytes
        return bitmap

    def _is_over(self) -> bool:
        return self._bytes > self._bytes_max or len(self._bitmaps) > self._entries_max
