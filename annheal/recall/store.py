"""Recall memories in the object store: the newest one of a shard has the last key.

Objects are never overwritten, so each memory has a key of its own. Keys are ordered by the owner's
epoch: a memory that a deposed owner still writes comes before those of its successor. The writer
deletes all earlier ones, so a shard has one memory, or two for a moment.
"""

from __future__ import annotations

import logging

from annheal.errors import DataCorruption, NotFound
from annheal.objectstore.protocol import ObjectStore
from annheal.recall.memory import RecallMemory, decode_memory, encode_memory
from annheal.shards.object_keys import ObjectKind, memory_key, parse_key, shard_prefix

LOAD_ATTEMPTS = 3

_log = logging.getLogger(__name__)


async def load_memory(objects: ObjectStore, collection_id: str, shard: int) -> RecallMemory | None:
    """Return the newest memory of a shard; None without one, or when it is damaged (logged).

    Raises what the store raises, but `NotFound`.
    """
    for _ in range(LOAD_ATTEMPTS):
        keys = await _memories(objects, collection_id, shard)
        if not keys:
            return None
        try:
            return decode_memory(await objects.get(keys[-1]), key=keys[-1])
        except NotFound:  # a newer one was written meanwhile
            continue
        except DataCorruption as error:
            _log.error("a recall memory is lost: %s", error)
            return None
    return None


async def store_memory(
    objects: ObjectStore,
    collection_id: str,
    shard: int,
    memory: RecallMemory,
    *,
    epoch: int,
    number: int,
) -> None:
    """Write a memory, and delete the earlier ones of the shard. Raises what the store raises."""
    key = memory_key(collection_id, shard, epoch=epoch, number=number)
    await objects.put_if_absent(key, encode_memory(memory))
    older = [one for one in await _memories(objects, collection_id, shard) if one < key]
    if older:
        await objects.delete(older)


async def _memories(objects: ObjectStore, collection_id: str, shard: int) -> list[str]:
    """Return the keys of a shard's memories, the newest last; foreign keys are not theirs."""
    prefix = shard_prefix(ObjectKind.RECALL, collection_id, shard)
    return [stat.key async for stat in objects.list(prefix) if parse_key(stat.key) is not None]
