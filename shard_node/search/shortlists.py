"""Making 8-bit codes of segments in the background, where searches would be faster with them."""

from __future__ import annotations

import logging
import os
import threading
import weakref

from annheal.index import VectorIndex

MEMORY_SHARE_MAX = 0.25
"""Of the machine's memory, for the codes of all segments of a process."""

_log = logging.getLogger(__name__)


class ShortlistBook:
    """Makes the codes of one segment at a time, in a thread of its own; any thread may ask.

    What cannot be done now is not remembered: the next search that would profit asks again.
    """

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        # A finalizer may run in a thread that holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._full = False

    @property
    def size_bytes(self) -> int:
        """Memory that codes take now."""
        return self._bytes

    def want(self, index: VectorIndex) -> None:
        """Let the codes of `index` be made, unless others are being made or memory is spent."""
        with self._lock:
            if index.shortlist is not None or (self._thread and self._thread.is_alive()):
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
            self._thread = threading.Thread(
                target=self._make, args=(index,), name="shortlist", daemon=True
            )
            self._thread.start()

    def _make(self, index: VectorIndex) -> None:
        made = index.make_shortlist()
        with self._lock:
            self._bytes += made.size_bytes
        weakref.finalize(made, self._forget, made.size_bytes).atexit = False
        _log.info("codes of a segment of %d rows: %s", index.rows, made.costs)

    def _forget(self, size_bytes: int) -> None:
        with self._lock:
            self._bytes -= size_bytes
            self._full = False

    def wait(self) -> None:
        """Wait for the codes being made."""
        thread = self._thread
        if thread is not None:
            thread.join()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


SHORTLISTS = ShortlistBook(bytes_max=int(MEMORY_SHARE_MAX * _memory_bytes()))
"""Of this process: memory is shared by all collections."""
