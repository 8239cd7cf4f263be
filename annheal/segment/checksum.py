"""xxh3-128, the checksum of everything that segments store."""

from __future__ import annotations

import mmap
from pathlib import Path

import xxhash

_CHUNK_BYTES = 16 << 20


def checksum_of(body: bytes | memoryview) -> str:
    """Return the xxh3-128 hex digest of `body`."""
    return xxhash.xxh3_128_hexdigest(body)


def checksum_of_file(path: Path) -> str:
    """Return the xxh3-128 hex digest of a file, read through a map; blocks: not for event loops."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return digest.hexdigest()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            for start in range(0, len(view), _CHUNK_BYTES):
                with view[start : start + _CHUNK_BYTES] as chunk:
                    digest.update(chunk)
    return digest.hexdigest()
