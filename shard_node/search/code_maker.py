"""Making 8-bit codes of segments in the background, where searches would be faster with them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from functools import partial

from annheal.index import VectorIndex
from annheal.runtime.background import Offer, take_nothing
from annheal.runtime.stop import YieldPoint

MEMORY_SHARE_MAX = 0.25
"""The part of the machine's memory that the codes of all segments of a process may take."""

_log = logging.getLogger(__name__)


class CodeMaker:
    """Offers the making of codes as background work, within `bytes_max` of memory.

    Safe for any number of threads. A request that cannot be served now is dropped; the next search
    that would be faster with codes repeats it. Codes whose making failed are not tried again.
    """

    def __init__(self, *, bytes_max: int, offer: Offer = take_nothing) -> None:
        self._bytes_max = bytes_max
        self._offer = offer
        self._tried: weakref.WeakSet[VectorIndex] = weakref.WeakSet()
        self._bytes = 0
        # Reentrant: a finalizer may run in a thread that holds the lock.
        self._lock = threading.RLock()
        self._full = False

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that codes take now."""
        return self._bytes

    def request(self, index: VectorIndex) -> None:
        """Offer to make the codes of `index`, unless made, tried, or too large for `bytes_max`."""
        with self._lock:
            if index.shortlist is not None or index in self._tried:
                return
            if self._bytes + index.shortlist_bytes > self._bytes_max:
                if not self._full:
                    _log.warning(
                        "no memory for codes of another segment: %d of %d bytes taken",
                        self._bytes,
                        self._bytes_max,
                    )
                self._full = True
                return
        if self._offer(partial(self._make, index), name="making codes"):
            with self._lock:
                self._tried.add(index)

    def _make(self, index: VectorIndex, yield_point: YieldPoint) -> None:
        made = index.make_shortlist(yield_point)
        with self._lock:
            self._bytes += made.size_bytes
        weakref.finalize(made, self._release, made.size_bytes).atexit = False
        _log.info("codes of a segment of %d rows: %s", index.rows, made.costs)

    def _release(self, size_bytes: int) -> None:
        with self._lock:
            self._bytes -= size_bytes
            self._full = False


def code_bytes_max() -> int:
    """Return the bytes of memory that the codes of a process may take on this machine."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(MEMORY_SHARE_MAX * memory_bytes)
