"""Natural batching: searches that wait for the same thing travel in one call.

While calls are under way, equal searches gather; when one returns, what has gathered leaves in
one call. No timer is involved, so a lone search is sent at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from annheal.client.results import SearchBatch, SearchResult
from annheal.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from annheal.model.limits import SEARCH_HITS_MAX, SEARCH_QUERIES_MAX
from annheal.model.records import Float32Matrix
from annheal.model.search import Consistency, SearchOptions
from annheal.runtime.deadline import Deadline

BATCH_QUERIES_MAX: Final = 128
"""Queries of one call; larger ones gain nothing and make the first wait for the last."""
WAITING_MAX: Final = 65_536
"""Searches of one client that may wait to be sent."""


@dataclass(frozen=True, slots=True)
class SearchKey:
    """What searches must have in common to share a call."""

    collection: str
    options: SearchOptions
    dimension: int
    consistency: Consistency | None
    allow_partial: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    vector: npt.NDArray[np.float32]
    deadline: Deadline
    answer: asyncio.Future[SearchResult]


Call = Callable[[SearchKey, Float32Matrix, Deadline], Awaitable[SearchBatch]]


class SearchGatherer:
    """Gathers searches by `SearchKey`; at most `calls_max` calls a key are under way.

    `call` sends one batch. Each caller's deadline is its own; the call gets the latest of them. A
    batch that is refused for one bad query is sent again query by query, so that nobody fails
    for another's mistake.
    """

    def __init__(self, call: Call, *, calls_max: int) -> None:
        self._call = call
        self._calls_max = calls_max
        self._queues: dict[SearchKey, _Queue] = {}
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def search(
        self, key: SearchKey, vector: npt.NDArray[np.float32], *, deadline: Deadline
    ) -> SearchResult:
        """Return the hits of one query."""
        if self._waiting >= WAITING_MAX:
            raise ResourceExhausted(
                f"{WAITING_MAX} searches of this client wait already", retry_after_s=0.1
            )
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        item = _Waiting(vector, deadline, asyncio.get_running_loop().create_future())
        queue.items.append(item)
        self._waiting += 1
        if queue.calls < self._calls_max:
            self._start(key, queue)
        try:
            async with asyncio.timeout(deadline.remaining_s):
                return await item.answer
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the answer came") from error
        finally:
            item.answer.cancel()

    async def close(self) -> None:
        """Cancel what is under way; whoever waits is cancelled."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queue in self._queues.values():
            for item in queue.items:
                item.answer.cancel()
        self._queues.clear()

    def _start(self, key: SearchKey, queue: _Queue) -> None:
        queue.calls += 1
        task = asyncio.create_task(self._run(key, queue), name="annheal-search-batch")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: SearchKey, queue: _Queue) -> None:
        """Send what has gathered, until nothing is left."""
        batch: list[_Waiting] = []
        try:
            while batch := self._take(queue, key.options.k):
                await self._send(key, batch)
        finally:
            queue.calls -= 1
            for item in batch:
                item.answer.cancel()
            if not queue.calls and not queue.items:
                self._queues.pop(key, None)

    def _take(self, queue: _Queue, k: int) -> list[_Waiting]:
        limit = max(1, min(BATCH_QUERIES_MAX, SEARCH_QUERIES_MAX, SEARCH_HITS_MAX // max(1, k)))
        batch: list[_Waiting] = []
        while queue.items and len(batch) < limit:
            item = queue.items.popleft()
            self._waiting -= 1
            if not item.answer.done():  # its caller may have given up
                batch.append(item)
        return batch

    async def _send(self, key: SearchKey, batch: list[_Waiting]) -> None:
        deadline = max((item.deadline for item in batch), key=lambda deadline: deadline.at_s)
        vectors = np.stack([item.vector for item in batch])
        try:
            answers = await self._call(key, vectors, deadline)
        except InvalidArgument as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            for item in batch:
                await self._send(key, [item])
        except Exception as error:  # noqa: BLE001 - handed to the callers
            # Whatever it is, it belongs to those who wait: they would be cancelled instead.
            _fail(batch, error)
        else:
            for number, item in enumerate(batch):
                if not item.answer.done():
                    item.answer.set_result(answers[number])


class _Queue:
    __slots__ = ("calls", "items")

    def __init__(self) -> None:
        self.items: deque[_Waiting] = deque()
        self.calls = 0


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for item in batch:
        if not item.answer.done():
            item.answer.set_exception(error)
