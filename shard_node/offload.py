"""The bounded places where a node does work that must not run on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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

    async def search(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a search."""
        return await asyncio.get_running_loop().run_in_executor(self._search, work)

    async def read(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a read that is no search: by id, a count, a page of a scan."""
        return await asyncio.get_running_loop().run_in_executor(self._read, work)

    async def change(self, work: Callable[[], ResultT]) -> ResultT:
        """Run a short change of a shard's rows."""
        return await asyncio.get_running_loop().run_in_executor(self._change, work)

    async def background(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something long: write or load a segment."""
        return await asyncio.get_running_loop().run_in_executor(self._background, work)

    def close(self) -> None:
        """End the threads; work in progress finishes."""
        for pool in (self._search, self._read, self._change, self._background):
            pool.shutdown(wait=False, cancel_futures=True)
