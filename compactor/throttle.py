"""Giving way: builds take turns at the processor, and transfers at the store.

A compactor has time; queries and writes do not. Its builds share a fixed number of threads, which
run at a lower priority than everything else on the machine, and its transfers go one at a time,
no faster than allowed, and wait while the store is busy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from annheal.errors import ResourceExhausted, Unavailable, UnknownOutcome
from annheal.objectstore.protocol import ObjectStat, ObjectStore

TRANSFERS_MAX = 2
"""Objects that are read or written at once, by all attempts of a worker together."""
STORE_PAUSE_FIRST_S = 0.5
STORE_PAUSE_MAX_S = 30.0
STORE_PATIENCE_S = 300.0
"""How long a busy store is waited for; a build of minutes is not thrown away sooner."""
BUSY = (Unavailable, ResourceExhausted, UnknownOutcome)

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


class BuildTurns:
    """Shares `threads` among the builds of a worker: at least one each, so no more builds.

    A build that goes on alone gets the threads of those that ended.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._turns = asyncio.Semaphore(threads)
        self._builds = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the time of the block."""
        async with self._turns:
            self._builds += 1
            try:
                yield
            finally:
                self._builds -= 1

    @property
    def share(self) -> int:
        """Threads that a build may use now; read by the builds' own threads."""
        return max(1, self._threads // max(1, self._builds))


def lower_priority(nice: int) -> None:
    """Let the calling thread, and the threads that it starts, run at the priority `nice`."""
    if not nice:
        return
    try:
        # On Linux the priority belongs to the thread, and is inherited by those it creates.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except OSError as error:
        _log.debug("builds run at the usual priority: %s", error)


class ThrottledStore:
    """`store` for one worker: few transfers at once, limited in bytes a second, patient when busy.

    A call that fails because the store is away or busy is repeated for up to `STORE_PATIENCE_S`;
    all transfers pause meanwhile. `bytes_per_s` 0 means no limit.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        bytes_per_s: int = 0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self._clock = clock
        self._turns = asyncio.Semaphore(TRANSFERS_MAX)
        self._free_s = clock()
        self._rests_until_s = clock()
        self._pause_s = 0.0

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`."""
        size_bytes = len(body) if isinstance(body, bytes) else body.nbytes
        await self._transfer(lambda: self._store.put_if_absent(key, body))
        self._paid(size_bytes)

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a file."""
        await self._transfer(lambda: self._store.put_file_if_absent(key, path))
        self._paid((await asyncio.to_thread(path.stat)).st_size)

    async def get(self, key: str) -> bytes:
        """Return the whole object."""
        body = await self._transfer(lambda: self._store.get(key))
        self._paid(len(body))
        return body

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file."""
        path = await self._transfer(lambda: self._store.fetch(key, destination))
        if path == destination:
            self._paid((await asyncio.to_thread(path.stat)).st_size)
        return path

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield the objects below `prefix`."""
        return self._store.list(prefix, after=after)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects."""
        await self._transfer(lambda: self._store.delete(keys))

    async def close(self) -> None:
        """Leave the store to its owner."""

    async def _transfer(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        given_up_s = self._clock() + STORE_PATIENCE_S
        while True:
            async with self._turns:
                await self._rest()
                try:
                    result = await call()
                except BUSY as error:
                    if self._clock() >= given_up_s:
                        raise
                    self._back_off(error)
                else:
                    self._pause_s = 0.0
                    return result

    async def _rest(self) -> None:
        """Wait until the store may be asked again and the bytes before are paid for."""
        wait_s = max(self._rests_until_s, self._free_s) - self._clock()
        if wait_s > 0:
            await self._sleep(wait_s)

    def _back_off(self, error: Unavailable | ResourceExhausted | UnknownOutcome) -> None:
        doubled_s = max(STORE_PAUSE_FIRST_S, 2.0 * self._pause_s)
        self._pause_s = min(STORE_PAUSE_MAX_S, max(doubled_s, error.retry_after_s or 0.0))
        self._rests_until_s = self._clock() + self._pause_s
        _log.warning("transfers pause for %.1f s: %s", self._pause_s, error)

    def _paid(self, size_bytes: int) -> None:
        if self._bytes_per_s:
            began_s = max(self._free_s, self._clock())
            self._free_s = began_s + size_bytes / self._bytes_per_s
