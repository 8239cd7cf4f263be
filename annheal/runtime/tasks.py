"""Background tasks that somebody owns: none is lost, none fails unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from annheal.errors import AnnhealError

_log = logging.getLogger(__name__)


class TaskScope:
    """The tasks of one component, between its `start` and its `stop`.

    asyncio's own TaskGroup must be entered and left by one task; a component that is started here
    and stopped there uses this. The first task that fails ends the scope: the others are cancelled
    and `wait` raises the error, so that the process stops instead of limping on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` as a task of this scope."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self._name}: the scope is closed; {name} cannot start")
        task = asyncio.create_task(work, name=f"{self._name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    @property
    def closed(self) -> bool:
        """Whether `stop` was called: nothing more can be started."""
        return self._closed

    def __len__(self) -> int:
        return len(self._tasks)

    async def wait(self) -> None:
        """Wait until a task fails, and raise its error; returns only by that or by cancellation."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def stop(self) -> None:
        """Cancel what still runs and wait for it; repeated calls do nothing."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if self._failure is None:
            self._failure = error
            self._failed.set()
            _log.error("%s failed", task.get_name(), exc_info=error)
            for other in self._tasks:
                other.cancel()


async def run_loop(
    step: Callable[[], Awaitable[object]],
    *,
    name: str,
    wait: Callable[[], Awaitable[object]],
) -> None:
    """Run `step`, then `wait`, for ever.

    A step that fails with a retryable error is reported and tried again after the wait; any other
    error is a bug or a lost precondition and ends the loop.
    """
    while True:
        try:
            await step()
        except AnnhealError as error:
            if not error.retryable:
                raise
            _log.warning("%s: %s: %s; trying again", name, error.reason, error.message)
        await wait()


async def run_all(coroutines: Iterable[Coroutine[Any, Any, Any]], *, name: str) -> None:
    """Run all side by side; the first failure cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(work, name=name) for work in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
