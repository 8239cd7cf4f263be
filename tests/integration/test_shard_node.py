"""Whole shard nodes in one process: ownership that moves, comes back, breaks, and starts again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annheal.errors import AnnhealError, DeadlineExceeded, Fenced, InvalidArgument, Unavailable
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import collection_key, shard_key
from annheal.metastore.protocol import Delete, Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.records import EVERYTHING
from annheal.model.search import Consistency, SearchOptions, SearchRequest
from annheal.model.topology.shard import Assignment, ShardPhase
from annheal.model.write import (
    CountRequest,
    DeleteIds,
    GetRequest,
    ScanRequest,
    Upsert,
    WriteAnswer,
    WriteRequest,
)
from annheal.objectstore.local import LocalObjectStore
from annheal.runtime.stop import YieldPoint
from annheal.segment.segment import Segment
from annheal.shard_node import ownership
from annheal.shard_node.app import not_listening, running_node
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.node import Node
from annheal.shard_node.owner.owned_shard import OwnedShard
from annheal.shard_node.settings import ShardNodeSettings
from tests.support.shards import DIMENSION, ShardWorld, record_batch, shard_collection, vector_of

PATIENCE_S = 20.0
COLLECTION = shard_collection()


@pytest.fixture(autouse=True)
def _quick_reopening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "REOPEN_DELAY_S", 0.02)


class Nodes:
    """The stores and the nodes over them."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.root = root
        self.meta = SqliteMetaStore(root / "meta.sqlite")
        self.objects = LocalObjectStore(root / "objects")
        self._stack = stack

    async def start(self, node_id: str, *, meta: Any = None) -> Node:
        settings = ShardNodeSettings(node_id, data_dir=self.root / node_id)
        node, _ = await self._stack.enter_async_context(
            running_node(settings, meta or self.meta, self.objects, listen=not_listening)
        )
        return node

    async def assign(self, **changes: Any) -> None:
        present = await self.assignment() or Assignment("c1", 0)
        await self.meta.commit([Put(shard_key("c1", 0), encode_value(replace(present, **changes)))])

    async def assignment(self) -> Assignment | None:
        key = shard_key("c1", 0)
        stored = await self.meta.get(key)
        return None if stored is None else decode_value(stored.value, Assignment, key=key)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with stores(tmp_path) as opened:
        await opened.meta.commit([Put(collection_key("things"), encode_value(COLLECTION))])
        yield opened


@asynccontextmanager
async def stores(root: Path) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        opened = Nodes(root, stack)
        stack.push_async_callback(opened.objects.close)
        stack.push_async_callback(opened.meta.close)
        yield opened


async def upsert(node: Node, *ids: str, version: int = 1) -> WriteAnswer:
    return await node.write(WriteRequest("c1", 0, Upsert(record_batch(ids, version=version))))


async def count(node: Node, **how: Any) -> int:
    return await node.count(CountRequest("c1", 0, **how))


async def until(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat while it is refused, as a coordinator does."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await attempt()
            except (Fenced, Unavailable):
                await asyncio.sleep(0.01)


async def wait_for(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def search_request(**changes: Any) -> SearchRequest:
    queries = np.array([vector_of("a", 1)], dtype=np.float32)
    return replace(SearchRequest("c1", (0,), queries, SearchOptions(k=2)), **changes)


async def test_a_node_opens_what_it_is_the_target_of_and_serves_it(nodes: Nodes) -> None:
    node = await nodes.start("a")
    with pytest.raises(Fenced):
        await upsert(node, "a")
    await nodes.assign(target="a")
    answer = await until(lambda: upsert(node, "a", "b", "c"))
    assert (answer.sequence, answer.upserted) == (3, 3)
    assert await nodes.assignment() == Assignment("c1", 0, owner="a", epoch=1)
    for consistency in Consistency:
        assert await count(node, consistency=consistency, min_sequence=3) == 3
    await node.flush("c1", 0)
    await node.write(WriteRequest("c1", 0, DeleteIds(("b",))))
    found = await node.search(search_request(consistency=Consistency.STRONG))
    assert found.records.ids[0] == "a"
    assert found.sequences == {0: 4}
    assert (await node.get(GetRequest("c1", 0, ("c", "b", "a"), EVERYTHING))).ids == ["c", "a"]
    assert sorted((await node.scan(ScanRequest("c1", 0, 10))).records.ids) == ["a", "c"]
    (state,) = await node.shard_states("c1")
    assert (state.phase, state.live_rows, state.epoch) == (ShardPhase.SERVING.value, 2, 1)


async def test_a_read_that_is_ahead_of_this_node_is_refused(nodes: Nodes) -> None:
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a"))
    with pytest.raises(Fenced):
        await count(node, min_sequence=2)
    with pytest.raises(Fenced):
        await node.search(search_request(min_sequences={0: 2}))


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": ()},
        {"queries": np.ones((1, DIMENSION + 1), dtype=np.float32)},
        {"queries": np.ones((1, DIMENSION), dtype=np.float64)},
        {"options": SearchOptions(k=0)},
        {"options": SearchOptions(k=1, model="another")},
    ],
    ids=["no shard", "dimension", "dtype", "k", "model"],
)
async def test_a_search_that_cannot_be_right_is_refused(
    nodes: Nodes, changes: dict[str, Any]
) -> None:
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a"))
    with pytest.raises(InvalidArgument):
        await node.search(search_request(**changes))


async def test_queries_of_any_memory_layout_are_searched(nodes: Nodes) -> None:
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a", "b"))
    await node.flush("c1", 0)
    wide = np.repeat(vector_of("a", 1), 2)[None, ::2]
    assert (await node.search(search_request(queries=wide))).records.ids[0] == "a"


async def test_a_search_without_time_fails_in_time(nodes: Nodes) -> None:
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a"))
    with pytest.raises(DeadlineExceeded):
        await node.search(search_request(timeout_s=0.0))
    assert (await node.search(search_request())).records.ids == ["a"]


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with stores(tmp_path) as first:
        await first.meta.commit([Put(collection_key("things"), encode_value(COLLECTION))])
        await first.assign(target="a")
        node = await first.start("a")
        await until(lambda: upsert(node, "a", "b"))
    async with stores(tmp_path) as second:
        await second.meta.expire_all_leases()
        node = await second.start("a")
        assert await until(lambda: count(node)) == 2
        (state,) = await node.shard_states()
        assert state.epoch == 2
        assert state.unindexed_rows == 2
        assert state.wal_slots == 1, "flushed at the end: only the new fence is behind it"


async def test_a_node_whose_shard_was_fenced_opens_it_again(nodes: Nodes) -> None:
    """A passer-by fenced the log and died before it announced itself: nobody else will serve."""
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a"))
    world = ShardWorld(nodes.root)
    await world.open(node_id="passer-by")
    await world.close()
    with pytest.raises(Fenced):
        await upsert(node, "b")
    await until(lambda: upsert(node, "c"))
    assert await count(node) == 2
    assert (await nodes.assignment()) == Assignment("c1", 0, owner="a", epoch=3)


async def test_a_strong_read_by_a_deposed_owner_is_refused_and_reopens_it(nodes: Nodes) -> None:
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a"))
    world = ShardWorld(nodes.root)
    other = await world.open(node_id="passer-by")
    await other.upsert("b", version=1)
    await world.close()
    assert await count(node) == 1, "an eventual read may be old"
    with pytest.raises(Fenced):
        await count(node, consistency=Consistency.STRONG)
    assert await until(lambda: count(node, consistency=Consistency.STRONG)) == 2


async def test_a_move_under_load_loses_nothing(nodes: Nodes) -> None:
    first, second = await nodes.start("a"), await nodes.start("b")
    await nodes.assign(target="a")
    await until(lambda: upsert(first, "r0"))
    acknowledged = {"r0"}
    writing = True

    async def write(name: str) -> None:
        number = 0
        while writing:
            record_id = f"{name}-{number}"
            for node in (first, second):
                try:
                    await upsert(node, record_id)
                except AnnhealError:
                    continue
                acknowledged.add(record_id)
                number += 1
            await asyncio.sleep(0)

    writers = [asyncio.create_task(write(name)) for name in "xyz"]
    await wait_for(lambda: _true(len(acknowledged) > 20))
    for target in ("b", "a", "b"):
        await nodes.assign(target=target)
        await wait_for(lambda owner=target: _owned_by(nodes, owner))
    writing = False
    await asyncio.gather(*writers)
    assert await until(lambda: count(second, consistency=Consistency.STRONG)) == len(acknowledged)
    found = await second.get(GetRequest("c1", 0, tuple(acknowledged)))
    assert set(found.ids) == acknowledged
    with pytest.raises(Fenced):
        await upsert(first, "late")


async def _true(value: bool) -> bool:
    return value


async def _owned_by(nodes: Nodes, owner: str) -> bool:
    assignment = await nodes.assignment()
    return assignment is not None and (assignment.owner, assignment.target) == (owner, "")


async def test_ping_pong_ends_where_the_last_word_says(nodes: Nodes) -> None:
    first, second = await nodes.start("a"), await nodes.start("b")
    await nodes.assign(target="a")
    await until(lambda: upsert(first, "x"))
    for turn in range(20):
        await nodes.assign(target="ab"[turn % 2])
        await asyncio.sleep(0.005 * (turn % 4))
    await nodes.assign(target="a")
    await until(lambda: upsert(first, "y"))
    assert await count(first, consistency=Consistency.STRONG) == 2
    with pytest.raises(Fenced):
        await count(second)


async def test_a_shard_given_back_while_it_is_released_is_served(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes after the release has ended: its end must look at the assignments again."""
    releasing, finish = asyncio.Event(), asyncio.Event()
    run = OwnedShard.run

    async def run_and_linger(self: OwnedShard) -> None:
        try:
            await run(self)
        finally:
            releasing.set()
            while not finish.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await finish.wait()

    monkeypatch.setattr(OwnedShard, "run", run_and_linger)
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: count(node))
    await nodes.meta.commit([Delete(shard_key("c1", 0))])
    async with asyncio.timeout(PATIENCE_S):
        await releasing.wait()
    await nodes.assign(target="a")
    mirror = node._ownership._assignments.mirror
    await wait_for(lambda: _true(shard_key("c1", 0) in mirror.items))
    await asyncio.sleep(0)
    finish.set()
    await until(lambda: upsert(node, "a"))
    (state,) = await node.shard_states()
    assert state.epoch == 2


async def test_a_dropped_shard_leaves_no_cache(nodes: Nodes) -> None:
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a"))
    cache = nodes.root / "a" / "segments" / "c1" / "00000"
    (cache / "some-segment").mkdir(parents=True)
    await nodes.meta.commit([Delete(shard_key("c1", 0))])
    await wait_for(lambda: _true(not cache.exists()))
    with pytest.raises(Fenced):
        await count(node)
    assert await node.shard_states() == ()


async def test_a_shard_that_cannot_be_opened_says_why_and_recovers(nodes: Nodes) -> None:
    key = "wal/c1/00000/00000000000000000000"
    await nodes.objects.put_if_absent(key, b"no log object")
    node = await nodes.start("a")
    await nodes.assign(target="a")

    async def failed() -> bool:
        return any(state.phase == ShardPhase.FAILED.value for state in await node.shard_states())

    await wait_for(failed)
    (state,) = await node.shard_states()
    assert "DATA_CORRUPTION" in state.error
    assert key in state.error
    await nodes.objects.delete([key])
    await until(lambda: upsert(node, "a"))


class NoLeases:
    """A metadata store that grants no lease the first few times."""

    def __init__(self, inner: SqliteMetaStore) -> None:
        self._inner = inner
        self.refusals = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def grant_lease(self, ttl_s: float) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("no leases today")
        return await self._inner.grant_lease(ttl_s)


async def test_a_node_that_cannot_register_waits_and_says_so(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    meta = NoLeases(nodes.meta)
    async with asyncio.timeout(PATIENCE_S):
        await nodes.start("a", meta=meta)
    assert not meta.refusals
    assert "node a is not registered: no leases today" in caplog.text


async def test_work_for_a_stopping_node_is_refused_not_cancelled() -> None:
    lanes = Lanes()
    running = asyncio.create_task(lanes.search(lambda _: 1, collection_id="c"))
    await asyncio.sleep(0)
    lanes.close()
    assert await running == 1
    for work in (lanes.search, lanes.read, lanes.change):
        with pytest.raises(Unavailable):
            await work(lambda _: 1, collection_id="c")
    for other in (lanes.maintenance, lanes.replay, lanes.monitor):
        with pytest.raises(Unavailable):
            await other(lambda: 1, collection_id="c")


async def test_a_cancelled_change_is_waited_for() -> None:
    """Its caller holds the lock under which the rows change."""
    lanes = Lanes()
    loop = asyncio.get_running_loop()
    started, finish, done = asyncio.Event(), asyncio.Event(), False

    def work(yield_point: YieldPoint) -> None:
        nonlocal done
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(finish.wait(), loop).result(PATIENCE_S)
        done = True

    changing = asyncio.create_task(lanes.change(work, collection_id="c"))
    await started.wait()
    changing.cancel()
    await asyncio.sleep(0)
    assert not changing.done()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert done
    lanes.close()


async def test_a_dropped_shard_gives_its_memory_and_files_back(nodes: Nodes) -> None:
    """It kept its segments mapped, so that the space of deleted files was not free."""
    gc.collect()
    segments, shards = _living(Segment), _living(OwnedShard)
    node = await nodes.start("a")
    await nodes.assign(target="a")
    await until(lambda: upsert(node, "a", "b"))
    await node.flush("c1", 0)
    assert _living(Segment) > segments
    await nodes.meta.commit([Delete(shard_key("c1", 0))])

    async def gone() -> bool:
        return _living(Segment) <= segments

    gc.collect()
    gc.disable()  # what goes only with a collection comes too late
    try:
        await wait_for(gone)
    finally:
        gc.enable()
    gc.collect()
    assert _living(OwnedShard) <= shards


def _living(kind: type[object]) -> int:
    # Not isinstance: it asks a weak proxy for the class of what may be gone.
    return sum(type(one) is kind for one in gc.get_objects())
