"""Stores that note whether their calls work, by what they do: reads, writes, metadata."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from annheal.errors import (
    AlreadyExists,
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore.protocol import (
    Change,
    Compare,
    KeyValue,
    Lease,
    MetaStore,
    Operation,
    Snapshot,
)
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.runtime.part_tracker import PartTracker

_ANSWERS = (AlreadyExists, NotFound)
"""The store is there and says so."""
_AWAY = (Unavailable, UnknownOutcome, ResourceExhausted, FailedPrecondition)


class WatchedObjectStore:
    """`store`; `reads` and `writes` are told how its calls end. Implements `ObjectStore`."""

    def __init__(self, store: ObjectStore, *, reads: PartTracker, writes: PartTracker) -> None:
        self._store = store
        self._reads = reads
        self._writes = writes

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`."""
        with noted(self._writes):
            await self._store.put_if_absent(key, body)

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a file."""
        with noted(self._writes):
            await self._store.put_file_if_absent(key, path)

    async def get(self, key: str) -> bytes:
        """Return the whole object."""
        with noted(self._reads):
            return await self._store.get(key)

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file."""
        with noted(self._reads):
            return await self._store.fetch(key, destination)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield the objects below `prefix`."""
        with noted(self._reads):
            async for stat in self._store.list(prefix, after=after):
                yield stat

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; no sign that a store takes new ones."""
        await self._store.delete(keys)

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()


@contextmanager
def noted(tracker: PartTracker) -> Iterator[None]:
    """Tell `tracker` how the calls inside end."""
    try:
        yield
    except InvalidArgument:
        raise  # refused before anything was sent
    except _ANSWERS:
        tracker.succeeded()
        raise
    except AnnhealError as error:
        tracker.failed(error)
        raise
    tracker.succeeded()


class WatchedMetaStore:
    """`store`; `tracker` is told how its calls end. Implements `MetaStore`.

    A lease that is kept alive calls every few seconds, so a process that is registered learns soon
    that the store is away, without a probe. Watches wait out an absent store and say nothing.
    """

    def __init__(self, store: MetaStore, *, tracker: PartTracker) -> None:
        self._store = store
        self._tracker = tracker

    async def get(self, key: str) -> KeyValue | None:
        """See `MetaStore.get`."""
        with self._noted():
            return await self._store.get(key)

    async def list(self, prefix: str) -> Snapshot:
        """See `MetaStore.list`."""
        with self._noted():
            return await self._store.list(prefix)

    async def commit(
        self, operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
    ) -> int:
        """See `MetaStore.commit`."""
        with self._noted():
            return await self._store.commit(operations, compares=compares)

    def watch(
        self, prefix: str, *, after_revision: int
    ) -> AsyncGenerator[tuple[Change, ...], None]:
        """See `MetaStore.watch`."""
        return self._store.watch(prefix, after_revision=after_revision)

    async def grant_lease(self, ttl_s: float) -> Lease:
        """See `MetaStore.grant_lease`."""
        with self._noted():
            return await self._store.grant_lease(ttl_s)

    async def renew_lease(self, lease: Lease) -> None:
        """See `MetaStore.renew_lease`."""
        with self._noted():
            await self._store.renew_lease(lease)

    async def revoke_lease(self, lease: Lease) -> None:
        """See `MetaStore.revoke_lease`."""
        with self._noted():
            await self._store.revoke_lease(lease)

    async def close(self) -> None:
        """See `MetaStore.close`."""
        await self._store.close()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except InvalidArgument:
            raise  # refused before anything was sent
        except _AWAY as error:
            self._tracker.failed(error)
            raise
        except AnnhealError:
            self._tracker.succeeded()  # a conflict, an ended lease: the store answered
            raise
        self._tracker.succeeded()
