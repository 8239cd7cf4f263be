"""Work that would hold the event loop up, on a bounded pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from annheal.runtime.lane import lower_thread_priority

ResultT = TypeVar("ResultT")
ArgsT = ParamSpec("ArgsT")


class Offload:
    """Runs functions on at most `threads` threads; callers beyond wait their turn.

    For functions that release the GIL (numpy, Arrow, files). The caller bounds how many wait. A
    function that has begun runs to its end even when its caller is cancelled, so it must own what
    it touches. `nice`: steps by which the threads, and those that they start, have a lower
    priority. Where kinds of work or tenants must not hold one another up: `annheal.runtime.lane`.
    """

    def __init__(self, *, threads: int, name: str, nice: int = 0) -> None:
        self._pool = ThreadPoolExecutor(
            max_workers=threads,
            thread_name_prefix=name,
            initializer=lower_thread_priority,
            initargs=(nice,),
        )

    async def run(
        self, work: Callable[ArgsT, ResultT], *args: ArgsT.args, **kwargs: ArgsT.kwargs
    ) -> ResultT:
        """Return what `work` returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))

    async def close(self) -> None:
        """Let what runs end, without holding the event loop up, and start nothing more."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
