"""Puts log objects into slots, one at a time; a slot that is taken means a newer owner."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from annheal.errors import (
    AlreadyExists,
    FailedPrecondition,
    Fenced,
    InvariantViolation,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.topology.shard import ShardId
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import Jitter, jitter, wall_s
from annheal.runtime.part_tracker import PartTracker
from annheal.shards.object_keys import wal_key
from annheal.shards.wal import WalEntry, WalObject, decode_wal_object, encode_wal_object

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
SLOW_S = 3.0
"""A put without an answer for this long is reported as failing, and still awaited."""


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
        log: PartTracker,
        jitter: Jitter = jitter,
    ) -> None:
        self._objects = objects
        self._shard = shard
        self._writer = writer
        self._jitter = jitter
        self.epoch = epoch
        self.next_slot = next_slot
        self.log = log
        self._putting = False
        self.deposed = False
        self._served = False

    def encode(self, entries: list[WalEntry], *, slot: int, last_sequence: int) -> bytes:
        """Return the object of `slot` with `entries`."""
        return encode_wal_object(
            WalObject(self.epoch, slot, self._writer, last_sequence, tuple(entries))
        )

    @property
    def blocked_for_s(self) -> float:
        """How long the present put has been failing; 0 without a put or a failure."""
        return self.log.failing_for_s if self._putting else 0.0

    async def put(self, body: bytes) -> int:
        """Make `body` durable in the next slot and return that slot.

        Repeats the put while the store is unavailable, because nothing else can be written before
        its outcome is known. Raises `Fenced` when a newer owner took the slot, and
        `ResourceExhausted` when the store is full; then nothing was written.
        """
        if self.deposed:
            raise self._fenced()
        key = wal_key(self._shard.collection_id, self._shard.number, self.next_slot)
        self._putting = True
        try:
            await self._put_surely(key, body)
        except (ResourceExhausted, FailedPrecondition) as error:
            self.log.failed(error)
            raise
        finally:
            self._putting = False
        self.log.succeeded()
        slot = self.next_slot
        self.next_slot += 1
        self._served = True
        return slot

    async def _put_surely(self, key: str, body: bytes) -> None:
        """Repeat the put until its outcome is known."""
        delay_s = RETRY_FIRST_S
        settled = True
        while True:
            try:
                with self._noted_while_slow():
                    await self._objects.put_if_absent(key, body)
                return
            except AlreadyExists:
                await self._learn_successor(key)
                raise self._fenced() from None
            except ResourceExhausted as error:
                # After an unknown outcome the object may exist or still be created: no other body
                # may be put into this slot, and "nothing was written" may be false.
                if settled:
                    raise
                if await self._holds(key, body):
                    return
                self.log.failed(error)
            except UnknownOutcome as error:
                settled = False
                self.log.failed(error)
            except Unavailable as error:
                self.log.failed(error)
            await asyncio.sleep(delay_s * (0.5 + self._jitter() / 2))
            delay_s = min(2 * delay_s, RETRY_MAX_S)

    @contextmanager
    def _noted_while_slow(self) -> Iterator[None]:
        """Report a failure after each `SLOW_S` without an answer."""
        loop, began_s = asyncio.get_running_loop(), wall_s()

        timer: asyncio.TimerHandle

        def note() -> None:
            nonlocal timer
            waited_s = wall_s() - began_s
            self.log.failed(
                f"the object store has not answered for {waited_s:.0f} s", since_s=began_s
            )
            timer = loop.call_later(SLOW_S, note)

        timer = loop.call_later(SLOW_S, note)
        try:
            yield
        finally:
            timer.cancel()

    async def verify_owner(self) -> None:
        """Raise `Fenced` if a newer owner had fenced the log before this call; for strong reads.

        An object of this epoch in the next slot is from a put of this writer that has no answer
        yet. The fence of a newer owner may be in a slot after it, so these are read too.
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
        """Set `deposed`, as another writer took the slot.

        Raises `InvariantViolation` if that has no newer epoch although this writer wrote before.
        """
        try:
            found = decode_wal_object(await self._objects.get(key), key=key)
        except NotFound:
            # A newer owner trimmed the slot between the two calls.
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
