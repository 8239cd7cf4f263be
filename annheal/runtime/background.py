"""Work that one call finds worth doing for later ones: done beside them, under supervision."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from annheal.runtime.lane import Work
from annheal.runtime.stop import no_yield_point

_log = logging.getLogger(__name__)


class Offer(Protocol):
    """Takes work that later calls would profit from; may be called from any thread."""

    def __call__(self, work: Work[None], *, name: str) -> bool:
        """Return whether `work` was taken and will be tried once; False when others are busy."""
        ...


def take_nothing(work: Work[None], *, name: str) -> bool:
    """Refuse the work: an `Offer` for programs without a background."""
    return False


def do_now(work: Work[None], *, name: str) -> bool:
    """Do the work in the calling thread: an `Offer` for programs that wait for it anyway."""
    work(no_yield_point)
    return True


class Background:
    """Does one piece of offered work at a time; refuses others meanwhile, and before `run`.

    The work is given a yield_point, so that a process that stops need not wait for its end. What
    fails is logged, counted by `on_failure` and forgotten: whoever offered it works without.
    """

    def __init__(
        self,
        do: Callable[[Work[None]], Coroutine[Any, Any, None]],
        *,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`do` runs work off the event loop; `on_failure` is told the name of what failed."""
        self._do = do
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._taken: tuple[str, Work[None]] | None = None
        self._arrived = asyncio.Event()

    def offer(self, work: Work[None], *, name: str) -> bool:
        """Take `work` unless other work is under way; see `Offer`."""
        with self._lock:
            if self._loop is None or self._taken is not None:
                return False
            self._taken = name, work
            self._loop.call_soon_threadsafe(self._arrived.set)
            return True

    async def run(self) -> None:
        """Do what is offered, until cancelled."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                await self._do_taken()
        finally:
            with self._lock:
                self._loop = None

    async def _do_taken(self) -> None:
        assert self._taken is not None
        name, work = self._taken
        doing = asyncio.create_task(self._do(work), name=name)
        try:
            await asyncio.wait([doing])
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
            with self._lock:
                self._taken = None
        error = doing.exception()
        if error is not None:
            _log.error("background work failed: %s", name, exc_info=error)
            self._on_failure(name)
