"""Which shard a record belongs to: ranges of the 64-bit XXH3 hash of its id.

The hash space is cut into `shard_count` equal ranges; shard = floor(hash * shard_count / 2^64).
Ranges (not modulo) let a shard be split in two later without moving the rows of any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

_HASH_BITS = 64


def hash_id(record_id: str) -> int:
    """Return the unsigned 64-bit XXH3 hash of the UTF-8 id."""
    return xxhash.xxh3_64_intdigest(record_id.encode())


def hash_ids(ids: Iterable[str] | pa.StringArray) -> npt.NDArray[np.uint64]:
    """Return the hashes of `ids`, (n,) uint64."""
    values: list[Any] = ids.to_pylist() if isinstance(ids, pa.Array) else list(ids)
    digest = xxhash.xxh3_64_intdigest
    hashes = (digest(value.encode()) for value in values)
    return np.fromiter(hashes, dtype=np.uint64, count=len(values))


def shard_of(record_id: str, *, shard_count: int) -> int:
    """Return the shard that owns `record_id`."""
    return (hash_id(record_id) * shard_count) >> _HASH_BITS


def shards_of(hashes: npt.NDArray[np.uint64], *, shard_count: int) -> npt.NDArray[np.int64]:
    """Return the shard of each hash, (n,) int64, exactly as `shard_of` does.

    The 128-bit product is formed from 32-bit halves: shard_count < 2^32, so nothing overflows.
    """
    count = np.uint64(shard_count)
    high, low = hashes >> np.uint64(32), hashes & np.uint64(0xFFFFFFFF)
    carry = (low * count) >> np.uint64(32)
    return ((high * count + carry) >> np.uint64(32)).astype(np.int64)
