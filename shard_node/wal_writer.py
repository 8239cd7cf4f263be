"""Puts log objects into slots, one at a time, and learns there that it was deposed."""

from __future__ import annotations

import asyncio
import random

from annheal.errors import (
    AlreadyExists,
    Fenced,
    InvariantViolation,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.shard import ShardId
from annheal.objectstore.protocol import ObjectStore
from annheal.wal.codec import WalEntry, WalObject, decode_wal_object, encode_wal_object, wal_key

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0


class WalWriter:
    """The log of one shard in one epoch. Slot numbers have no gaps; the slot is the fence (INV-4)."""

    def __init__(
        self,
        objects: ObjectStore,
        shard: ShardId,
        *,
        epoch: int,
        writer: bytes,
        next_slot: int,
    ) -> None:
        self._objects = objects
        self._shard = shard
        self._writer = writer
        self.epoch = epoch
        self.next_slot = next_slot
        self.deposed = False
        self._fenced_by_us = False

    def encode(self, entries: list[WalEntry], *, last_sequence: int) -> bytes:
        """Return the next slot's object with `entries`."""
        return encode_wal_object(
            WalObject(self.epoch, self.next_slot, self._writer, last_sequence, tuple(entries))
        )

    async def put(self, body: bytes) -> int:
        """Make `body` durable in the next slot and return that slot.

        Repeats while the store is away (the outcome must be known before anything else can be
        written); raises `Fenced` when a newer owner took the slot, and `ResourceExhausted` when the store is
        full: then nothing was written.
        """
        if self.deposed:
            raise self._fenced()
        key = wal_key(self._shard.collection_id, self._shard.number, self.next_slot)
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._objects.put_if_absent(key, body)
                break
            except AlreadyExists:
                await self._learn_successor(key)
                raise self._fenced() from None
            except (UnknownOutcome, Unavailable):
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, RETRY_MAX_S)
        slot = self.next_slot
        self.next_slot += 1
        self._fenced_by_us = True
        return slot

    async def verify_owner(self) -> None:
        """Raise `Fenced` if a newer owner has taken the next slot; used before strong reads."""
        if self.deposed:
            raise self._fenced()
        key = wal_key(self._shard.collection_id, self._shard.number, self.next_slot)
        try:
            data = await self._objects.get(key)
        except NotFound:
            return
        found = decode_wal_object(data, key=key)
        if found.epoch > self.epoch:
            self.deposed = True
            raise self._fenced()

    async def _learn_successor(self, key: str) -> None:
        """Note that the slot is somebody else's; only a newer epoch can follow one that served."""
        found = decode_wal_object(await self._objects.get(key), key=key)
        if self._fenced_by_us and found.epoch <= self.epoch:
            raise InvariantViolation(
                f"slot {key} was taken by epoch {found.epoch}, which is not newer than {self.epoch}"
            )
        self.deposed = True

    def _fenced(self) -> Fenced:
        return Fenced(
            f"shard {self._shard} has a newer owner than epoch {self.epoch}",
            metadata={"shard": str(self._shard)},
        )
