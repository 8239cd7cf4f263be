"""Which shards this node should own, and the loop that makes it so.

Observe the assignments, compare with what is held, open or release: each shard has one task that
opens it, serves it and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from annheal.errors import AnnhealError, Conflict, UnknownOutcome
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import COLLECTIONS_PREFIX, SHARDS_PREFIX, shard_key
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import Compare, KeyValue, MetaStore, Put
from annheal.model.collection import Collection
from annheal.model.topology.shard import Assignment, ShardId
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.opening import open_shard
from annheal.shard_node.owner.owned_shard import OwnedShard

REOPEN_DELAY_S = 2.0

_log = logging.getLogger(__name__)


def wants_shard(assignment: Assignment, node_id: str) -> bool:
    """Whether the node should (try to) own the shard: it is the target, or the owner unopposed."""
    if assignment.target:
        return assignment.target == node_id
    return assignment.owner == node_id


def may_serve(assignment: Assignment, node_id: str) -> bool:
    """Whether a shard held by the node should go on serving until somebody else took over."""
    return node_id in (assignment.owner, assignment.target)


@dataclass(slots=True)
class _Held:
    task: asyncio.Task[None]
    owned: OwnedShard | None = None
    error: str = ""
    releasing: bool = False


class Ownership:
    """The shards that this node holds."""

    def __init__(
        self, meta: MetaStore, shared: ShardDependencies, *, node_id: str, opening_max: int
    ) -> None:
        self._meta = meta
        self._shared = shared
        self._node_id = node_id
        self._opening = asyncio.Semaphore(opening_max)
        self._held: dict[ShardId, _Held] = {}
        self._assignments = Mirror(meta, SHARDS_PREFIX)
        self._collections = Mirror(meta, COLLECTIONS_PREFIX)
        self._ended = asyncio.Event()

    def get(self, shard: ShardId) -> OwnedShard | None:
        """Return the shard if it is open here."""
        held = self._held.get(shard)
        return None if held is None else held.owned

    @property
    def held(self) -> Mapping[ShardId, OwnedShard | None]:
        """Every shard that is open or being opened here (None)."""
        return {shard: held.owned for shard, held in self._held.items()}

    def error(self, shard: ShardId) -> str:
        """Return why the shard could not be opened the last time; empty when nothing failed."""
        held = self._held.get(shard)
        return "" if held is None else held.error

    async def run(self) -> None:
        """Follow the assignments until cancelled."""
        await self._collections.start()
        await self._assignments.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collections.run())
            group.create_task(self._assignments.run())
            group.create_task(self._follow(group))

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        while True:
            version = self._assignments.version
            self._ended.clear()
            for shard in self._wanted():
                if shard not in self._held:
                    task = group.create_task(self._hold(shard), name=f"shard {shard}")
                    self._held[shard] = _Held(task)
            for shard, held in self._held.items():
                # Only once: a second cancellation would cut the first one's cleaning up short.
                if not self._keeps(shard) and not held.releasing:
                    held.releasing = True
                    held.task.cancel()
            await self._wait_change(version)

    async def _wait_change(self, version: int) -> None:
        """Return when an assignment changed, or when a shard ended that may be wanted again."""
        waiting = [
            asyncio.create_task(self._assignments.wait_change(version)),
            asyncio.create_task(self._ended.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _wanted(self) -> list[ShardId]:
        assignments = (_decode(item) for item in self._assignments.items.values())
        return [a.id for a in assignments if wants_shard(a, self._node_id)]

    def _keeps(self, shard: ShardId) -> bool:
        assignment = self._assignment(shard)
        return assignment is not None and may_serve(assignment, self._node_id)

    def _assignment(self, shard: ShardId) -> Assignment | None:
        item = self._assignments.items.get(shard_key(shard.collection_id, shard.number))
        return None if item is None else _decode(item)

    async def _hold(self, shard: ShardId) -> None:
        """Open, serve, and after a loss or an error try again while the shard is wanted."""
        held = self._held[shard]
        try:
            while (assignment := self._assignment(shard)) and wants_shard(
                assignment, self._node_id
            ):
                try:
                    await self._open_and_serve(shard, assignment, held)
                except AnnhealError as error:
                    held.error = f"{error.reason}: {error}"
                    _log.error("shard %s is not served: %s", shard, held.error)
                except OSError as error:  # of the segment cache: a full or broken disk
                    held.error = f"the segment cache cannot be used: {error}"
                    _log.error("shard %s is not served: %s", shard, held.error)
                except BaseExceptionGroup as errors:
                    held.error = "; ".join(str(e) for e in errors.exceptions)
                    _log.exception("shard %s broke", shard, exc_info=errors)
                finally:
                    self._close(held)
                await asyncio.sleep(REOPEN_DELAY_S)
        finally:
            self._close(held)
            if held.releasing:
                directory = segment_cache(self._shared, shard)
                shutil.rmtree(directory, ignore_errors=True)
            self._held.pop(shard, None)
            self._ended.set()

    async def _open_and_serve(self, shard: ShardId, assignment: Assignment, held: _Held) -> None:
        async with self._opening:
            collection = await self._collection(shard)
            owned = await open_shard(
                collection, shard.number, assignment_epoch=assignment.epoch, shared=self._shared
            )
            serving = asyncio.create_task(owned.run(), name=f"serve {shard}")
            try:
                await self._announce(shard, owned.epoch)
            except BaseException:
                owned.close()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                raise
        held.owned, held.error = owned, ""
        _log.info("shard %s is served with epoch %d", shard, owned.epoch)
        try:
            # Not `await serving`: that would pass a cancellation on, and the one below would
            # then cut short how the shard ends.
            await asyncio.wait([serving])
            serving.result()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _announce(self, shard: ShardId, epoch: int) -> None:
        """Write this node as the owner; raises `Conflict` when it is not wanted any more."""
        key = shard_key(shard.collection_id, shard.number)
        while True:
            stored = await self._meta.get(key)
            if stored is None:
                raise Conflict(f"shard {shard} was dropped")
            assignment = _decode(stored)
            if assignment.owner == self._node_id and assignment.epoch == epoch:
                return
            if not wants_shard(assignment, self._node_id):
                raise Conflict(f"shard {shard} is now meant for {assignment.target!r}")
            mine = replace(assignment, owner=self._node_id, epoch=epoch, target="")
            try:
                await self._meta.commit(
                    [Put(key, encode_value(mine))], compares=[Compare(key, stored.mod_revision)]
                )
            except (Conflict, UnknownOutcome):
                continue
            return

    async def _collection(self, shard: ShardId) -> Collection:
        def present(items: Mapping[str, KeyValue]) -> bool:
            return any(_collection_of(item).id == shard.collection_id for item in items.values())

        await self._collections.wait_for(present, timeout_s=10.0)
        found = (_collection_of(item) for item in self._collections.items.values())
        return next(c for c in found if c.id == shard.collection_id)

    def _close(self, held: _Held) -> None:
        if held.owned is not None:
            held.owned.close()
            held.owned = None


def segment_cache(shared: ShardDependencies, shard: ShardId) -> Path:
    """Return where a remote store's segments of the shard are cached."""
    return shared.cache / shard.collection_id / f"{shard.number:05d}"


def _decode(item: KeyValue) -> Assignment:
    return decode_value(item.value, Assignment, key=item.key)


def _collection_of(item: KeyValue) -> Collection:
    return decode_value(item.value, Collection, key=item.key)
