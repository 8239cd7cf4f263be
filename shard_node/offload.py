"""The bounded places where a node does work that must not run on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from annheal.errors import Unavailable

ResultT = TypeVar("ResultT")
READ_THREADS = 2


class Offload:
    """One thread for searches, one for changes, a few for loading and flushing.

    Searches have a thread of their own so that neither a write nor a flush ever waits before
    them; a batch of queries uses the cores through FAISS's own threads.
    """

    def __init__(self, *, background_threads: int = 2) -> None:
        self._search = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._change = ThreadPoolExecutor(1, thread_name_prefix="change")
        self._read = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
        self._background = ThreadPoolExecutor(background_threads, thread_name_prefix="background")
        self._closed = False

    async def search(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a search."""
        return await self._submit(self._search, work)

    async def read(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a read that is no search: by id, a count, a page of a scan."""
        return await self._submit(self._read, work)

    async def change(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a short change of a shard's rows.

        A cancelled caller holds on until the work has ended: it keeps the lock under which the
        rows may be changed, and a thread cannot be stopped half-way.
        """
        future = self._submit(self._change, work)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()  # seen: the caller's end comes first
            raise cancelled
        return future.result()

    async def background(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something long: write or load a segment."""
        return await self._submit(self._background, work)

    def _submit(
        self, pool: ThreadPoolExecutor, work: Callable[[], ResultT]
    ) -> asyncio.Future[ResultT]:
        if self._closed:
            raise Unavailable("this node is stopping")
        return asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Take no further work and end the threads; what was taken is finished."""
        self._closed = True
        for pool in (self._search, self._read, self._change, self._background):
            pool.shutdown(wait=False)
