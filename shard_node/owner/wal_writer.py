"""Puts log objects into slots, one at a time, and learns there that it was deposed."""

from __future__ import annotations

import asyncio

from annheal.errors import (
    AlreadyExists,
    Fenced,
    InvariantViolation,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.topology.shard import ShardId
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import Jitter, jitter
from annheal.shards.object_keys import wal_key
from annheal.shards.wal import WalEntry, WalObject, decode_wal_object, encode_wal_object

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0


class WalWriter:
    """The log of one shard in one epoch. Slots have no gaps; the slot is the fence (INV-4)."""

    def __init__(
        self,
        objects: ObjectStore,
        shard: ShardId,
        *,
        epoch: int,
        writer: bytes,
        next_slot: int,
        jitter: Jitter = jitter,
    ) -> None:
        self._objects = objects
        self._shard = shard
        self._writer = writer
        self._jitter = jitter
        self.epoch = epoch
        self.next_slot = next_slot
        self.deposed = False
        self._served = False

    def encode(self, entries: list[WalEntry], *, last_sequence: int) -> bytes:
        """Return the next slot's object with `entries`."""
        return encode_wal_object(
            WalObject(self.epoch, self.next_slot, self._writer, last_sequence, tuple(entries))
        )

    async def put(self, body: bytes) -> int:
        """Make `body` durable in the next slot and return that slot.

        Repeats while the store is away (the outcome must be known before anything else can be
        written); raises `Fenced` when a newer owner took the slot, and `ResourceExhausted` when
        the store is full: then nothing was written.
        """
        if self.deposed:
            raise self._fenced()
        key = wal_key(self._shard.collection_id, self._shard.number, self.next_slot)
        delay_s = RETRY_FIRST_S
        settled = True
        while True:
            try:
                await self._objects.put_if_absent(key, body)
                break
            except AlreadyExists:
                await self._learn_successor(key)
                raise self._fenced() from None
            except ResourceExhausted:
                # After a lost answer the object may be there, or may still arrive: this slot can
                # take no other body, and "nothing was written" would be a guess.
                if settled:
                    raise
                if await self._holds(key, body):
                    break
            except UnknownOutcome:
                settled = False
            except Unavailable:
                pass
            await asyncio.sleep(delay_s * (0.5 + self._jitter() / 2))
            delay_s = min(2 * delay_s, RETRY_MAX_S)
        slot = self.next_slot
        self.next_slot += 1
        self._served = True
        return slot

    async def verify_owner(self) -> None:
        """Raise `Fenced` if a newer owner had fenced the log before this call; for strong reads.

        An object of this epoch in the next slot is our own put, still unanswered: a successor's
        fence may stand behind it already, so the slots after it are looked at too.
        """
        slot = self.next_slot
        while not self.deposed:
            key = wal_key(self._shard.collection_id, self._shard.number, slot)
            try:
                data = await self._objects.get(key)
            except NotFound:
                return
            self.deposed = decode_wal_object(data, key=key).epoch > self.epoch
            slot += 1
        raise self._fenced()

    async def _holds(self, key: str, body: bytes) -> bool:
        try:
            return await self._objects.get(key) == body
        except (NotFound, Unavailable):
            return False

    async def _learn_successor(self, key: str) -> None:
        """Note that the slot is somebody else's; only a newer epoch can follow one that served."""
        try:
            found = decode_wal_object(await self._objects.get(key), key=key)
        except NotFound:
            # Trimmed between the two calls: by an owner that is newer than this one.
            self.deposed = True
            return
        if self._served and found.epoch <= self.epoch:
            raise InvariantViolation(
                f"slot {key} was taken by epoch {found.epoch}, which is not newer than {self.epoch}"
            )
        self.deposed = True

    def _fenced(self) -> Fenced:
        return Fenced(
            f"shard {self._shard} has a newer owner than epoch {self.epoch}",
            metadata={"shard": str(self._shard)},
        )
