"""Runs blocking calls in a bounded pool of threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Offload:
    """At most `threads` blocking calls at once; further calls wait in order.

    A cancelled caller stops waiting, but a call that has begun runs to its end: code run here
    must own what it touches.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def run(self, call: Callable[[], Result]) -> Result:
        """Return `call()`, run in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def close(self) -> None:
        """Wait for the calls that have begun; those that have not are cancelled."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
