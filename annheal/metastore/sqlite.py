"""The metadata store of embedded mode: one SQLite file, nothing else to run.

All statements run on one thread of the store's own, so the event loop never waits for the disk.
Several processes may open the same file: commits are serialised by SQLite, and a watch looks for
the changes of other processes every `POLL_S`. Leases count by the wall clock, which all processes
of one machine share; a jump of that clock can end leases early or late, which costs availability
and never safety, because ownership is fenced by epochs.

An ended lease needs no sweeper of its own: reads do not show its keys from that moment on, and the
next commit or the next look of any watch deletes them. When nobody looks, nothing is missed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import ParamSpec, TypeVar

from annheal.errors import FailedPrecondition, ResourceExhausted, Unavailable
from annheal.metastore import sqlite_schema as sql
from annheal.metastore.limits import check_commit, check_key, check_prefix, check_ttl
from annheal.metastore.protocol import (
    Change,
    Compare,
    KeyValue,
    Lease,
    Operation,
    Snapshot,
    WatchCompacted,
)
from annheal.runtime.clock import Clock, wall_s

CHANGES_KEPT = 100_000
POLL_S = 0.2
SIZE_BYTES_MAX = 8 << 30
# A look of a watch reads about this many changes.
_WATCH_READ_CHANGES = 1_000
# The log of changes is cut when this share of it is new, so that a commit rarely pays for it.
_CUTS_PER_LOG = 10

ResultT = TypeVar("ResultT")
ArgsT = ParamSpec("ArgsT")


class SqliteMetaStore:
    """A `MetaStore` in one SQLite file (WAL journal, flushed at every commit).

    Args:
        path: the database file; it and its directory are made when missing.
        changes_kept: changes that a watch can go back to; at most 10 % more are stored.
        size_bytes_max: size of the file at which commits raise `ResourceExhausted`.
        wall_clock: seconds since the epoch, by which leases end.
    """

    def __init__(
        self,
        path: Path,
        *,
        changes_kept: int = CHANGES_KEPT,
        size_bytes_max: int = SIZE_BYTES_MAX,
        wall_clock: Clock = wall_s,
    ) -> None:
        self._path = path
        self._changes_kept = changes_kept
        self._cut_every = max(1, changes_kept // _CUTS_PER_LOG)
        self._size_bytes_max = size_bytes_max
        self._wall_clock = wall_clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metastore")
        self._database: sqlite3.Connection | None = None
        self._closed = False
        self._changed = asyncio.Event()

    # ------------------------------------------------------------------------------ the contract

    async def get(self, key: str) -> KeyValue | None:
        """See `MetaStore.get`."""
        return await self._run(self._get, check_key(key))

    async def list(self, prefix: str) -> Snapshot:
        """See `MetaStore.list`."""
        return await self._run(self._list, check_prefix(prefix))

    async def commit(
        self, operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
    ) -> int:
        """See `MetaStore.commit`."""
        check_commit(operations, compares)
        revision = await self._run(self._commit, tuple(operations), tuple(compares))
        self._wake_watches()
        return revision

    async def watch(
        self, prefix: str, *, after_revision: int
    ) -> AsyncGenerator[tuple[Change, ...], None]:
        """See `MetaStore.watch`."""
        encoded = check_prefix(prefix)
        told_through = after_revision
        while True:
            # Taken before the look: a commit that comes after it sets this very event.
            changed = self._changed
            changes, told_through = await self._look(encoded, told_through)
            for _, batch in groupby(changes, key=lambda change: change.mod_revision):
                yield tuple(batch)
            if not changes:
                await _wait_or_poll(changed)

    async def grant_lease(self, ttl_s: float) -> Lease:
        """See `MetaStore.grant_lease`."""
        return await self._run(self._grant, check_ttl(ttl_s))

    async def renew_lease(self, lease: Lease) -> None:
        """See `MetaStore.renew_lease`."""
        await self._run(self._renew, lease)

    async def revoke_lease(self, lease: Lease) -> None:
        """See `MetaStore.revoke_lease`."""
        await self._run(self._revoke, lease)
        self._wake_watches()

    async def close(self) -> None:
        """See `MetaStore.close`; open watches end with `Unavailable`."""
        if self._closed:
            return
        self._closed = True
        self._wake_watches()
        await asyncio.wrap_future(self._thread.submit(self._close))
        self._thread.shutdown(wait=False)

    # ------------------------------------------------------------------- beyond the contract

    async def expire_all_leases(self) -> None:
        """End every lease at once.

        For the start of embedded mode: whoever holds the lock of the data directory knows that the
        processes which held these leases are gone, and need not wait for their time to pass.
        """
        await self._run(self._expire_all)
        self._wake_watches()

    async def compact(self, revision: int) -> None:
        """Forget the changes before `revision`, as etcd's compaction does."""
        await self._run(self._compact, revision)

    # ------------------------------------------------------------------------- on the event loop

    async def _run(
        self, call: Callable[ArgsT, ResultT], *args: ArgsT.args, **kwargs: ArgsT.kwargs
    ) -> ResultT:
        if self._closed:
            raise FailedPrecondition("the metadata store is closed")
        return await asyncio.wrap_future(self._thread.submit(call, *args, **kwargs))

    async def _look(self, prefix: bytes, told_through: int) -> tuple[tuple[Change, ...], int]:
        """Return the next changes; an absent or full database is waited out."""
        while True:
            changed = self._changed
            if self._closed:
                raise Unavailable("the metadata store was closed")
            try:
                return await self._run(self._read_changes, prefix, told_through)
            except (Unavailable, ResourceExhausted):
                await _wait_or_poll(changed)

    def _wake_watches(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --------------------------------------------------------------------------- on the thread

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sql.open_database(self._path, size_bytes_max=self._size_bytes_max)
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _get(self, key: bytes) -> KeyValue | None:
        database = self._open()
        with sql.translated_errors():
            return sql.read_key(database, key, now_s=self._wall_clock())

    def _list(self, prefix: bytes) -> Snapshot:
        database = self._open()
        with sql.transaction(database, mode="DEFERRED"):
            items = sql.read_prefix(database, prefix, now_s=self._wall_clock())
            return Snapshot(items=items, revision=sql.read_revision(database))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that writes; it also bounds the log of changes."""
        database = self._open()
        with sql.transaction(database, mode="IMMEDIATE"):
            before = sql.read_revision(database)
            yield database
            if before // self._cut_every != sql.read_revision(database) // self._cut_every:
                sql.bound_changes(database, kept=self._changes_kept)

    def _commit(self, operations: tuple[Operation, ...], compares: tuple[Compare, ...]) -> int:
        with self._writing() as database:
            now_s = self._wall_clock()
            sql.end_expired_leases(database, now_s=now_s)
            sql.check_compares(database, compares)
            sql.check_leases(database, operations)
            return sql.apply_operations(database, operations)

    def _read_changes(self, prefix: bytes, after_revision: int) -> tuple[tuple[Change, ...], int]:
        self._sweep()
        database = self._open()
        with sql.transaction(database, mode="DEFERRED"):
            dropped_through = sql.read_dropped_through(database)
            if after_revision < dropped_through:
                raise WatchCompacted(
                    f"changes up to revision {dropped_through} are no longer kept,"
                    f" asked for those after {after_revision}"
                )
            changes, told_through = sql.read_changes(
                database, prefix, after_revision=after_revision, limit=_WATCH_READ_CHANGES
            )
        return changes, told_through

    def _sweep(self) -> None:
        """Delete the keys of ended leases; the write lock is taken only when there are any."""
        now_s = self._wall_clock()
        with sql.translated_errors():
            if not sql.has_expired_leases(self._open(), now_s=now_s):
                return
        with self._writing() as database:
            sql.end_expired_leases(database, now_s=now_s)

    def _grant(self, ttl_s: float) -> Lease:
        with self._writing() as database:
            return sql.insert_lease(database, ttl_s=ttl_s, now_s=self._wall_clock())

    def _renew(self, lease: Lease) -> None:
        with self._writing() as database:
            sql.extend_lease(database, lease, now_s=self._wall_clock())

    def _revoke(self, lease: Lease) -> None:
        with self._writing() as database:
            sql.end_lease(database, lease.id)

    def _expire_all(self) -> None:
        with self._writing() as database:
            for lease_id in sql.all_leases(database):
                sql.end_lease(database, lease_id)

    def _compact(self, revision: int) -> None:
        with self._writing() as database:
            sql.drop_changes(database, through_revision=revision - 1)


async def _wait_or_poll(changed: asyncio.Event) -> None:
    # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the change.
    try:
        async with asyncio.timeout(POLL_S):
            await changed.wait()
    except TimeoutError:
        return
