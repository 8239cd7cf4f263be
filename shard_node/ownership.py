"""Which shards this node should own, and the loop that makes it so.

Observe the assignments, compare with what is held, open or release: each shard has one task that
opens it, serves it and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from annheal.errors import (
    AnnhealError,
    Conflict,
    DeadlineExceeded,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import COLLECTIONS_PREFIX, SHARDS_PREFIX, shard_key
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import Compare, MetaStore, Put
from annheal.metastore.table import Table
from annheal.model.collection import Collection
from annheal.model.topology.shard import Assignment, ShardId
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.opening import open_shard
from annheal.shard_node.owner.owned_shard import OwnedShard
from annheal.shards.object_keys import shard_part

REOPEN_DELAY_S = 2.0
REOPEN_DELAY_MAX_S = 60.0
"""A shard that cannot be opened is tried again after twice the delay of before, up to this one."""
COLLECTION_WAIT_S = 10.0
"""How long a shard waits for its collection, which is stored after its assignment."""

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
        self._assignments = Table(Mirror(meta, SHARDS_PREFIX), Assignment)
        self._collections = Table(Mirror(meta, COLLECTIONS_PREFIX), Collection)
        self._ended = asyncio.Event()

    def get(self, shard: ShardId) -> OwnedShard | None:
        """Return the shard if it is open here."""
        held = self._held.get(shard)
        return None if held is None else held.owned

    @property
    def held(self) -> Mapping[ShardId, OwnedShard | None]:
        """Every shard that is open or being opened here (None)."""
        return {shard: held.owned for shard, held in self._held.items()}

    @property
    def collection_names(self) -> tuple[str, ...]:
        """Every collection of the cluster, as far as is known here."""
        return tuple(one.value.name for one in self._collections.entries.values())

    def error(self, shard: ShardId) -> str:
        """Return why the shard could not be opened the last time; empty when nothing failed."""
        held = self._held.get(shard)
        return "" if held is None else held.error

    async def run(self) -> None:
        """Follow the assignments until cancelled."""
        await self._collections.mirror.start_patiently()
        await self._assignments.mirror.start_patiently()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collections.mirror.run())
            group.create_task(self._assignments.mirror.run())
            group.create_task(self._follow_settings())
            group.create_task(self._follow(group))

    async def _follow_settings(self) -> None:
        """Hand changed settings of collections to the shards that are open."""
        version = self._collections.mirror.version
        while True:
            self._bring_all_settings()
            version = await self._collections.mirror.wait_change(version)

    def _bring_all_settings(self) -> None:
        for held in self._held.values():
            if held.owned is not None:
                self._bring_settings(held.owned)

    def _bring_settings(self, owned: OwnedShard) -> None:
        collection = self._collection_or_none(owned.id)
        if collection is not None:
            owned.change_settings(collection)

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        while True:
            version = self._assignments.mirror.version
            self._ended.clear()
            self._begin_wanted(group)
            self._release_unwanted()
            await self._wait_change(version)

    # Loops over shards are methods of their own: a loop's variables would keep the last shard's
    # task while the caller waits, and a cancelled task keeps its shard, by its traceback.

    def _begin_wanted(self, group: asyncio.TaskGroup) -> None:
        for shard in self._wanted():
            if shard not in self._held:
                task = group.create_task(self._hold(shard), name=f"shard {shard}")
                self._held[shard] = _Held(task)

    def _release_unwanted(self) -> None:
        for shard, held in self._held.items():
            # Only once: a second cancellation would cut the first one's cleaning up short.
            if not self._keeps(shard) and not held.releasing:
                held.releasing = True
                held.task.cancel()

    async def _wait_change(self, version: int) -> None:
        """Return when an assignment changed, or when a shard ended that may be wanted again."""
        waiting = [
            asyncio.create_task(self._assignments.mirror.wait_change(version)),
            asyncio.create_task(self._ended.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _wanted(self) -> list[ShardId]:
        assignments = (stored.value for stored in self._assignments.entries.values())
        return [a.id for a in assignments if wants_shard(a, self._node_id)]

    def _keeps(self, shard: ShardId) -> bool:
        assignment = self._assignment(shard)
        if assignment is None:
            # One that is there but cannot be read says nothing: go on as before.
            return _key_of(shard) in self._assignments.mirror.items
        return may_serve(assignment, self._node_id)

    def _assignment(self, shard: ShardId) -> Assignment | None:
        stored = self._assignments.entries.get(_key_of(shard))
        return None if stored is None else stored.value

    async def _hold(self, shard: ShardId) -> None:
        """Open, serve, and after a loss or an error try again while the shard is wanted."""
        held = self._held[shard]
        failures = 0
        try:
            while (assignment := self._assignment(shard)) and wants_shard(
                assignment, self._node_id
            ):
                try:
                    await self._open_and_serve(shard, assignment, held)
                # A shard is the unit of failure (ADR 26): whatever its bytes provoke fails this
                # shard, with its reason, and never the process that serves the others.
                except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001
                    _log_failure(shard, error)
                    transient = isinstance(error, AnnhealError) and error.retryable
                    failures = 1 if transient or held.owned is not None else failures + 1
                    held.error = _reason(error)
                finally:
                    self._close(held)
                await asyncio.sleep(reopen_delay_s(failures))
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
                owned.release()
                raise
        held.owned, held.error = owned, ""
        self._bring_settings(owned)  # they may have been changed while it was being opened
        _log.info("shard %s is served with epoch %d", shard, owned.epoch)
        try:
            # Not `await serving`: that would pass a cancellation on, and the one below would
            # then cut short how the shard ends.
            await asyncio.wait([serving])
            serving.result()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            owned.release()

    async def _announce(self, shard: ShardId, epoch: int) -> None:
        """Write this node as the owner; raises `Conflict` when it is not wanted any more."""
        key = _key_of(shard)
        while True:
            stored = await self._meta.get(key)
            if stored is None:
                raise Conflict(f"shard {shard} was dropped")
            assignment = decode_value(stored.value, Assignment, key=key)
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
        """Return the shard's collection; raises `Unavailable` when it does not appear."""
        mirror = self._collections.mirror
        with contextlib.suppress(DeadlineExceeded):
            await mirror.wait_for(
                lambda _: self._collection_or_none(shard) is not None,
                timeout_s=COLLECTION_WAIT_S,
            )
        found = self._collection_or_none(shard)
        if found is None:
            raise Unavailable(
                f"the metadata store has no readable collection {shard.collection_id!r} after "
                f"{COLLECTION_WAIT_S:g} s; this node's log names values that cannot be read"
            )
        return found

    def _collection_or_none(self, shard: ShardId) -> Collection | None:
        for stored in self._collections.entries.values():
            if stored.value.id == shard.collection_id:
                return replace(stored.value, revision=stored.mod_revision)
        return None

    def _close(self, held: _Held) -> None:
        if held.owned is not None:
            held.owned.close()
            held.owned = None


def reopen_delay_s(failures: int) -> float:
    """Return how long a shard rests after it failed to open so many times in a row."""
    return float(min(REOPEN_DELAY_MAX_S, REOPEN_DELAY_S * 2.0 ** min(max(0, failures - 1), 16)))


def _reason(error: BaseException) -> str:
    """Say why a shard is not served, as `annheal shards` shows it."""
    if isinstance(error, AnnhealError):
        return f"{error.reason}: {error}"
    if isinstance(error, OSError):
        return f"the segment cache cannot be used: {error}"
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_reason(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"


def _log_failure(shard: ShardId, error: BaseException) -> None:
    expected = isinstance(error, AnnhealError | OSError)
    # What nobody expected is a bug: its place is wanted too.
    _log.error("shard %s is not served: %s", shard, _reason(error), exc_info=not expected and error)


def segment_cache(shared: ShardDependencies, shard: ShardId) -> Path:
    """Return where a remote store's segments of the shard are cached."""
    return shared.cache / shard_part(shard.collection_id, shard.number)


def _key_of(shard: ShardId) -> str:
    return shard_key(shard.collection_id, shard.number)
