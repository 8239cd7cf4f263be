from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt
import pytest

from annheal.coordinator.data_path.batcher import SearchBatcher
from annheal.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from annheal.model.filter import Exists, Not
from annheal.model.search import Consistency, SearchAnswer, SearchOptions
from annheal.model.topology.shard import ShardId
from annheal.runtime.deadline import Deadline
from annheal.runtime.tasks import TaskScope
from tests.support.memory_node import MemoryNode, MemoryShard

OPTIONS = SearchOptions(k=1)


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    scope = TaskScope("test")
    yield scope
    await scope.stop()


@pytest.fixture
def node() -> MemoryNode:
    rows = {f"r{n}": np.eye(8, dtype=np.float32)[n] for n in range(8)}
    shards = {ShardId(name, 0): MemoryShard.of_vectors(rows) for name in ("c", "d")}
    for shard in shards.values():
        shard.sequence = 100  # what the tests ask for was written
    return MemoryNode("a", shards=shards)


def query(*axes: int) -> npt.NDArray[np.float32]:
    return np.eye(8, dtype=np.float32)[list(axes)]


def ask(
    batcher: SearchBatcher,
    *axes: int,
    options: SearchOptions = OPTIONS,
    timeout_s: float = 10.0,
    min_sequences: dict[int, int] | None = None,
    collection_id: str = "c",
) -> asyncio.Task[SearchAnswer]:
    return asyncio.create_task(
        batcher.search(
            query(*axes),
            collection_id=collection_id,
            shards=(0,),
            options=options,
            consistency=Consistency.EVENTUAL,
            deadline=Deadline.after(timeout_s),
            min_sequences=min_sequences or {},
        )
    )


async def until(batcher: SearchBatcher, waiting: int) -> None:
    async with asyncio.timeout(5):
        while batcher.waiting != waiting:  # noqa: ASYNC110 - the batcher tells nobody
            await asyncio.sleep(0)


async def sent_to(node: MemoryNode, searches: int) -> None:
    async with asyncio.timeout(5):
        while len(node.searches) < searches:  # noqa: ASYNC110 - nor does the node
            await asyncio.sleep(0)


async def test_searches_that_wait_leave_together_and_get_their_own_hits(
    node: MemoryNode, scope: TaskScope
):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    first = ask(batcher, 0)
    await sent_to(node, 1)
    rest = [ask(batcher, 1), ask(batcher, 2, 3), ask(batcher, 4)]
    await until(batcher, 4)
    node.gate.set()
    answers = await asyncio.gather(first, *rest)
    assert [one.records.ids for one in answers] == [["r0"], ["r1"], ["r2", "r3"], ["r4"]]
    assert [len(request.queries) for request in node.searches] == [1, 4]


async def test_only_equal_searches_share_a_call(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    first = ask(batcher, 0)
    await sent_to(node, 1)
    filtered = SearchOptions(k=1, filter=Not(Exists("x")))
    tasks = [ask(batcher, 1), ask(batcher, 2, options=filtered), ask(batcher, 3)]
    tasks.append(ask(batcher, 4, options=SearchOptions(k=1, filter=Not(Exists("x")))))
    await until(batcher, 4)
    node.gate.set()
    answers = await asyncio.gather(*tasks)
    await first
    assert [one.records.ids for one in answers] == [["r1"], ["r2"], ["r3"], ["r4"]]
    sizes = [(request.options.filter, len(request.queries)) for request in node.searches]
    assert sizes == [(None, 1), (None, 2), (Not(Exists("x")), 2)]


async def test_a_batch_has_a_limit_and_groups_take_turns(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope, queries_max=2)
    first = ask(batcher, 0)
    await sent_to(node, 1)
    other = SearchOptions(k=2)
    tasks = [*(ask(batcher, n) for n in (1, 2, 3)), ask(batcher, 4, options=other)]
    await until(batcher, 4)
    node.gate.set()
    await asyncio.gather(first, *tasks)
    shapes = [(request.options.k, len(request.queries)) for request in node.searches]
    assert shapes == [(1, 1), (1, 2), (2, 1), (1, 1)]


async def test_exact_searches_hold_no_others_up(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    exact = ask(batcher, 0, options=SearchOptions(k=1, exact=True))
    quick = ask(batcher, 1)
    await sent_to(node, 2)
    node.gate.set()
    await asyncio.gather(exact, quick)


async def test_collections_do_not_wait_for_one_another(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    tasks = [ask(batcher, 0), ask(batcher, 1), ask(batcher, 2, collection_id="d")]
    await sent_to(node, 2)
    assert {request.collection_id for request in node.searches} == {"c", "d"}
    node.gate.set()
    await asyncio.gather(*tasks)
    assert len(node.searches) == 3
    assert batcher.lanes == 0


async def test_a_call_that_nobody_waits_for_is_cancelled(node: MemoryNode, scope: TaskScope):
    """The node learns of it, and the next searches need not wait for the end of that one."""
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    first = ask(batcher, 0)
    await sent_to(node, 1)
    together = [ask(batcher, 1), ask(batcher, 2)]
    await until(batcher, 2)
    first.cancel()
    await sent_to(node, 2)  # although the gate is closed: the first call has ended
    together[0].cancel()
    await asyncio.sleep(0.01)
    waiting = ask(batcher, 3)
    await until(batcher, 1)
    await asyncio.sleep(0.01)
    assert len(node.searches) == 2  # one caller of the second call still waits
    together[1].cancel()
    await sent_to(node, 3)
    node.gate.set()
    assert (await waiting).records.ids == ["r3"]


async def test_inv9_too_many_waiting_queries_are_refused_with_a_hint(
    node: MemoryNode, scope: TaskScope
):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope, waiting_max=2)
    tasks = [ask(batcher, 0)]
    await sent_to(node, 1)
    tasks += [ask(batcher, 1), ask(batcher, 2)]
    await until(batcher, 2)
    with pytest.raises(ResourceExhausted) as refused:
        await ask(batcher, 3)
    assert refused.value.retry_after_s
    node.gate.set()
    await asyncio.gather(*tasks)


async def test_a_caller_that_goes_away_hurts_nobody(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    sent = ask(batcher, 0)
    await sent_to(node, 1)
    gone, stays = ask(batcher, 1), ask(batcher, 2)
    await until(batcher, 2)
    for task in (sent, gone):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    node.gate.set()
    assert (await stays).records.ids == ["r2"]
    assert [len(request.queries) for request in node.searches] == [1, 1]
    assert batcher.waiting == 0


async def test_a_node_that_hangs_costs_only_the_deadline(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    with pytest.raises(DeadlineExceeded):
        await ask(batcher, 0, timeout_s=0.05)
    node.gate.set()
    assert (await ask(batcher, 1)).records.ids == ["r1"]


async def test_errors_reach_every_waiter_and_the_next_call_is_fresh(
    node: MemoryNode, scope: TaskScope
):
    batcher = SearchBatcher(node, scope=scope)
    node.failures.append(Unavailable("away"))
    with pytest.raises(Unavailable, match="away"):
        await ask(batcher, 0)
    assert (await ask(batcher, 1)).records.ids == ["r1"]


async def test_one_bad_query_does_not_fail_its_neighbours(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    first = ask(batcher, 0)
    await sent_to(node, 1)
    tasks = [ask(batcher, 1), ask(batcher, 2)]
    await until(batcher, 2)
    # The first call is fine, the batch fails as a whole, and so does the first query of it alone.
    node.failures += [None, InvalidArgument("bad query"), InvalidArgument("bad query")]
    node.gate.set()
    await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], InvalidArgument)
    assert isinstance(results[1], SearchAnswer)
    assert results[1].records.ids == ["r2"]


async def test_a_bug_in_the_node_is_raised_to_the_caller_and_ends_nothing(
    node: MemoryNode, scope: TaskScope, monkeypatch: pytest.MonkeyPatch
):
    batcher = SearchBatcher(node, scope=scope)
    working = MemoryNode.search

    async def broken(self: MemoryNode, request: object) -> SearchAnswer:
        raise TypeError("a bug")

    monkeypatch.setattr(MemoryNode, "search", broken)
    with pytest.raises(TypeError, match="a bug"):
        await ask(batcher, 0)
    monkeypatch.setattr(MemoryNode, "search", working)
    assert (await ask(batcher, 1)).records.ids == ["r1"]


async def test_session_sequences_of_a_batch_are_joined(node: MemoryNode, scope: TaskScope):
    node.gate = asyncio.Event()
    batcher = SearchBatcher(node, scope=scope)
    first = ask(batcher, 0)
    await sent_to(node, 1)
    tasks = [ask(batcher, 1, min_sequences={0: 3}), ask(batcher, 2, min_sequences={0: 5})]
    await until(batcher, 2)
    node.gate.set()
    await asyncio.gather(first, *tasks)
    assert node.searches[1].min_sequences == {0: 5}


async def test_stopping_fails_those_that_wait(node: MemoryNode):
    node.gate = asyncio.Event()
    scope = TaskScope("test")
    batcher = SearchBatcher(node, scope=scope)
    waiting = ask(batcher, 0)
    await sent_to(node, 1)
    await scope.stop()
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
