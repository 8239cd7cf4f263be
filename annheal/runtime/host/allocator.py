"""Keeping freed memory from staying with the process.

glibc maps large blocks by themselves and unmaps them when they are freed. But each time that
happens it raises what it calls large, up to 32 MiB. Then the arrays of a merge lie in heaps,
between blocks that live on, and the heaps of a server that compacts all day never shrink. A fixed
threshold switches that off.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

MAPPED_BYTES_MIN = 4 << 20
"""Larger blocks are mapped by themselves: above what a search needs, below arrays of a merge."""
HEAP_SLACK_BYTES = 2 * MAPPED_BYTES_MIN
"""Free memory that a heap keeps at its end, so that searches do not ask the system every time."""
HEAPS_MAX = 4
"""Heaps that threads share; glibc would make eight for each core."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_OWN_CHOICE = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_ARENA_MAX",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


def return_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Make this process return the memory of large blocks as soon as they are freed.

    Call it before threads are started. Returns whether that is so from now on: not where the C
    library is not glibc, nor where the environment says how memory is to be allocated.
    """
    if any(name in environ for name in _OWN_CHOICE):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    chosen = (
        (_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
        (_M_TRIM_THRESHOLD, HEAP_SLACK_BYTES),
        (_M_ARENA_MAX, HEAPS_MAX),
    )
    return all(bool(mallopt(option, value)) for option, value in chosen)
