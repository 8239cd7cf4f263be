"""Natural batching: what waits leaves together, and nobody fails for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from annheal.client.batching import BATCH_QUERIES_MAX, SearchGatherer, SearchKey
from annheal.client.results import SearchBatch
from annheal.errors import DeadlineExceeded, InvalidArgument, Unavailable
from annheal.model.records import Float32Matrix, RecordSet
from annheal.model.search import SearchOptions
from annheal.runtime.deadline import Deadline

KEY = SearchKey("c", SearchOptions(k=1), 2, None, False)


class Server:
    """Answers each query with its first float as id; every call waits for `gate`."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.gate = asyncio.Event()
        self.error: Callable[[list[float]], Exception | None] = lambda _: None

    async def call(self, key: SearchKey, vectors: Float32Matrix, deadline: Deadline) -> SearchBatch:
        firsts = [float(vector[0]) for vector in vectors]
        self.calls.append(firsts)
        await self.gate.wait()
        error = self.error(firsts)
        if error is not None:
            raise error
        return SearchBatch(
            RecordSet(ids=[f"{first:g}" for first in firsts]),
            np.array(firsts, dtype=np.float32),
            np.ones(len(firsts), dtype=np.int32),
        )


def vector(first: float) -> Float32Matrix:
    return np.array([first, 0], dtype=np.float32)


async def started(
    gatherer: SearchGatherer, firsts: range, *, key: SearchKey = KEY
) -> list[asyncio.Task[str]]:
    async def one(first: int) -> str:
        result = await gatherer.search(key, vector(first), deadline=Deadline.after(5))
        return result.ids[0]

    tasks = [asyncio.create_task(one(first)) for first in firsts]
    await asyncio.sleep(0)  # every task has run up to its wait
    return tasks


@pytest.mark.parametrize("calls_max", [1, 2])
async def test_searches_gather_while_calls_are_under_way(calls_max: int) -> None:
    server = Server()
    gatherer = SearchGatherer(server.call, calls_max=calls_max)
    tasks = await started(gatherer, range(10))
    await asyncio.sleep(0)
    assert len(server.calls) <= calls_max
    server.gate.set()
    assert await asyncio.gather(*tasks) == [str(first) for first in range(10)]
    assert len(server.calls) <= calls_max + 1
    assert sum(map(len, server.calls)) == 10
    await gatherer.close()


async def test_a_batch_has_a_limit() -> None:
    server = Server()
    gatherer = SearchGatherer(server.call, calls_max=1)
    tasks = await started(gatherer, range(2 * BATCH_QUERIES_MAX + 5))
    server.gate.set()
    await asyncio.gather(*tasks)
    assert max(map(len, server.calls)) == BATCH_QUERIES_MAX
    await gatherer.close()


async def test_different_options_never_share_a_call() -> None:
    server = Server()
    gatherer = SearchGatherer(server.call, calls_max=1)
    other = SearchKey("c", SearchOptions(k=2), 2, None, False)
    tasks = await started(gatherer, range(3)) + await started(gatherer, range(10, 13), key=other)
    server.gate.set()
    await asyncio.gather(*tasks)
    assert all(max(call) < 10 or min(call) >= 10 for call in server.calls)
    await gatherer.close()


async def test_a_bad_query_fails_alone() -> None:
    server = Server()
    server.error = lambda firsts: InvalidArgument("bad") if 3.0 in firsts else None
    gatherer = SearchGatherer(server.call, calls_max=1)
    tasks = await started(gatherer, range(6))
    server.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[3], InvalidArgument)
    assert [a for a in answers if isinstance(a, str)] == ["0", "1", "2", "4", "5"]
    await gatherer.close()


async def test_an_error_of_the_call_reaches_all_of_it_and_the_next_goes_on() -> None:
    server = Server()
    server.error = lambda firsts: Unavailable("away") if 0.0 in firsts else None
    gatherer = SearchGatherer(server.call, calls_max=1)
    tasks = await started(gatherer, range(1))
    await asyncio.sleep(0)
    tasks += await started(gatherer, range(1, 4))
    server.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], Unavailable)
    assert answers[1:] == ["1", "2", "3"]
    await gatherer.close()


async def test_every_caller_keeps_its_own_deadline() -> None:
    server = Server()
    gatherer = SearchGatherer(server.call, calls_max=1)
    patient = await started(gatherer, range(1))
    await asyncio.sleep(0)
    assert len(server.calls) == 1
    with pytest.raises(DeadlineExceeded):
        await gatherer.search(KEY, vector(7), deadline=Deadline.after(0.02))
    server.gate.set()
    assert await patient[0] == "0"
    # Who gave up is not sent.
    assert all(7.0 not in call for call in server.calls)
    await gatherer.close()


async def test_closing_cancels_who_waits() -> None:
    server = Server()
    gatherer = SearchGatherer(server.call, calls_max=1)
    tasks = await started(gatherer, range(3))
    await asyncio.sleep(0)
    await gatherer.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)


async def test_what_nobody_foresaw_reaches_those_who_wait() -> None:
    server = Server()
    server.error = lambda firsts: UnicodeError("odd") if 0.0 in firsts else None
    gatherer = SearchGatherer(server.call, calls_max=1)
    tasks = await started(gatherer, range(1))
    await asyncio.sleep(0)
    tasks += await started(gatherer, range(1, 4))
    server.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], UnicodeError)
    assert answers[1:] == ["1", "2", "3"]
    await gatherer.close()
