"""Where segments and delete vectors lie in the object store: the one place that spells the keys."""

from __future__ import annotations

SEGMENTS_PREFIX = "segments/"
DELETES_PREFIX = "deletes/"
_SHARD_DIGITS = 5


def collection_segments_prefix(collection_id: str) -> str:
    """Return the prefix of every segment object of a collection."""
    return f"{SEGMENTS_PREFIX}{collection_id}/"


def shard_segments_prefix(collection_id: str, shard: int) -> str:
    """Return the prefix of every segment object of one shard."""
    return f"{collection_segments_prefix(collection_id)}{shard:0{_SHARD_DIGITS}d}/"


def segment_prefix(collection_id: str, shard: int, segment_id: str) -> str:
    """Return the prefix of one segment's objects, with the slash at its end."""
    return f"{shard_segments_prefix(collection_id, shard)}{segment_id}/"


def segment_key(collection_id: str, shard: int, segment_id: str, file: str) -> str:
    """Return the key of one file of a segment."""
    return segment_prefix(collection_id, shard, segment_id) + file


def collection_deletes_prefix(collection_id: str) -> str:
    """Return the prefix of every delete vector of a collection."""
    return f"{DELETES_PREFIX}{collection_id}/"


def shard_deletes_prefix(collection_id: str, shard: int) -> str:
    """Return the prefix of every delete vector of one shard."""
    return f"{collection_deletes_prefix(collection_id)}{shard:0{_SHARD_DIGITS}d}/"


def delete_vector_key(collection_id: str, shard: int, segment_id: str, unique: str) -> str:
    """Return the key of one checkpoint of a segment's delete vector; `unique` is never reused."""
    return f"{shard_deletes_prefix(collection_id, shard)}{segment_id}/{unique}.bin"
