"""Limits a compactor's use of processor and object store, so that queries and writes come first.

The builds of a worker share a fixed number of threads, which run at a lower priority. At most
`TRANSFERS_MAX` objects are transferred at the same time, within a limit of bytes per second, and
all transfers pause while the store is busy.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from annheal.errors import ResourceExhausted, Unavailable, UnknownOutcome
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import migration_key
from annheal.metastore.protocol import MetaStore
from annheal.model.topology.migration.state import Migration
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.runtime.clock import Clock, monotonic_s

TRANSFERS_MAX = 2
"""Objects that all attempts of a worker read or write at the same time."""
STORE_PAUSE_FIRST_S = 0.5
STORE_PAUSE_MAX_S = 30.0
STORE_WAIT_MAX_S = 300.0
"""How long one call is repeated while the store is busy. An attempt that fails sooner would lose a
build that took minutes."""
SETTINGS_FRESH_S = 1.0
BUSY_ERRORS = (Unavailable, ResourceExhausted, UnknownOutcome)

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


class MigrationPace:
    """How fast the backfills of one collection may go, by the settings of its migration.

    They are read again every `SETTINGS_FRESH_S`, so they can be changed while tasks run. Each task
    gets an equal part of the rate.
    """

    def __init__(
        self,
        meta: MetaStore,
        collection_id: str,
        *,
        clock: Clock = monotonic_s,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._meta = meta
        self._key = migration_key(collection_id)
        self._clock = clock
        self._sleep = sleep
        self._migration: Migration | None = None
        self._read_s = -math.inf
        self._next_s = -math.inf

    async def allow(self, rows: int) -> bool:
        """Return True when so many more rows may be embedded; False: paused, ended or not there.

        Raises `Unavailable` when the metadata store cannot be read.
        """
        while True:
            migration = await self._present()
            if migration is None or migration.paused or migration.ended:
                return False
            now_s = self._clock()
            if now_s >= self._next_s:
                break
            await self._sleep(min(self._next_s - now_s, SETTINGS_FRESH_S))
        rate = migration.settings.rows_per_second / max(1, migration.settings.tasks_max)
        if rate:
            self._next_s = max(now_s, self._next_s) + rows / rate
        return True

    async def _present(self) -> Migration | None:
        now_s = self._clock()
        if now_s - self._read_s >= SETTINGS_FRESH_S:
            item = await self._meta.get(self._key)
            self._migration = (
                None if item is None else decode_value(item.value, Migration, key=self._key)
            )
            self._read_s = now_s
        return self._migration


class BuildSlots:
    """Shares `threads` among the builds of a worker, of which at most `threads` run.

    Each build has at least one thread. When another build ends, the others get its threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._slots = asyncio.Semaphore(threads)
        self._builds = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a free slot and occupy it for the time of the block."""
        async with self._slots:
            self._builds += 1
            try:
                yield
            finally:
                self._builds -= 1

    @property
    def threads_each(self) -> int:
        """Threads that each running build may use now; may be read from any thread."""
        return max(1, self._threads // max(1, self._builds))


class ThrottledStore:
    """`store` for one worker, with `TRANSFERS_MAX` transfers at a time and `bytes_per_s` bytes/s.

    A call that fails with one of `BUSY_ERRORS` is repeated for up to `STORE_WAIT_MAX_S` seconds,
    then the error is raised. All transfers pause between two tries. `bytes_per_s` 0: no limit.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        bytes_per_s: int = 0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Clock = monotonic_s,
    ) -> None:
        self._store = store
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self._clock = clock
        self._transfers = asyncio.Semaphore(TRANSFERS_MAX)
        self._bandwidth_free_s = clock()
        self._paused_until_s = clock()
        self._pause_s = 0.0

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`."""
        size_bytes = len(body) if isinstance(body, bytes) else body.nbytes
        await self._transfer(lambda: self._store.put_if_absent(key, body))
        self._charge(size_bytes)

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a file."""
        await self._transfer(lambda: self._store.put_file_if_absent(key, path))
        self._charge((await asyncio.to_thread(path.stat)).st_size)

    async def get(self, key: str) -> bytes:
        """Return the whole object."""
        body = await self._transfer(lambda: self._store.get(key))
        self._charge(len(body))
        return body

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file."""
        path = await self._transfer(lambda: self._store.fetch(key, destination))
        if path == destination:
            self._charge((await asyncio.to_thread(path.stat)).st_size)
        return path

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield the objects below `prefix`."""
        return self._store.list(prefix, after=after)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects."""
        await self._transfer(lambda: self._store.delete(keys))

    async def close(self) -> None:
        """Do nothing: the caller that opened the store closes it."""

    async def _transfer(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        give_up_s = self._clock() + STORE_WAIT_MAX_S
        while True:
            async with self._transfers:
                await self._wait_for_store()
                try:
                    result = await call()
                except BUSY_ERRORS as error:
                    if self._clock() >= give_up_s:
                        raise
                    self._back_off(error)
                else:
                    self._pause_s = 0.0
                    return result

    async def _wait_for_store(self) -> None:
        """Wait for the end of a pause, and until `bytes_per_s` allows another transfer."""
        wait_s = max(self._paused_until_s, self._bandwidth_free_s) - self._clock()
        if wait_s > 0:
            await self._sleep(wait_s)

    def _back_off(self, error: Unavailable | ResourceExhausted | UnknownOutcome) -> None:
        doubled_s = max(STORE_PAUSE_FIRST_S, 2.0 * self._pause_s)
        self._pause_s = min(STORE_PAUSE_MAX_S, max(doubled_s, error.retry_after_s or 0.0))
        self._paused_until_s = self._clock() + self._pause_s
        _log.warning("transfers pause for %.1f s: %s", self._pause_s, error)

    def _charge(self, size_bytes: int) -> None:
        """Delay later transfers by the time that `size_bytes` take at `bytes_per_s`."""
        if self._bytes_per_s:
            began_s = max(self._bandwidth_free_s, self._clock())
            self._bandwidth_free_s = began_s + size_bytes / self._bytes_per_s
