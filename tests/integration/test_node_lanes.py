"""Long work on a node: it holds nothing else up, and ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.errors import DeadlineExceeded, Fenced, Unavailable
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import collection_key, shard_key
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.collection import Collection, CollectionSettings, Metric, ModelSpec
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.records import RecordBatch
from annheal.model.search import SearchOptions, SearchRequest
from annheal.model.topology.shard import Assignment
from annheal.model.write import CountRequest, DeleteWhere, Upsert, WriteRequest
from annheal.objectstore.local import LocalObjectStore
from annheal.rpc.methods import SHARD_SERVICE
from annheal.rpc.server import RpcServer
from annheal.rpc.shard_node import RemoteShardNode
from annheal.runtime.stop import YieldPoint
from annheal.shard_node.app import not_listening, running_node
from annheal.shard_node.lanes import LaneName
from annheal.shard_node.node import Node
from annheal.shard_node.owner import resolving
from annheal.shard_node.service import ShardServicer
from annheal.shard_node.settings import ShardNodeSettings
from annheal.shards.wal import empty_attributes
from tests.support.shards import ShardWorld

PATIENCE_S = 60.0
ROWS, DIMENSION, BATCH = 60_000, 128, 10_000
LARGE, SMALL = "large", "small"
QUERIES, CALLS = 1_000, 8
"""Comparing so many with all rows takes a second, and so many calls of them many."""
ENDS_WITHIN_S = 1.0
"""The work must end within 50 ms of its own; the rest is for a machine that runs other tests."""


def collection_named(name: str) -> Collection:
    return Collection(
        id=name,
        name=name,
        models=(ModelSpec("m", DIMENSION, Metric.COSINE),),
        schema=(),
        shard_count=1,
        settings=CollectionSettings(seal_age_s=3_600.0, recall_objective=0.9),
    )


def vectors_of(rows: int, *, seed: int = 1) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def batch(first: int, vectors: npt.NDArray[np.float32]) -> RecordBatch:
    rows = len(vectors)
    return RecordBatch(
        ids=pa.array([f"r{first + row:06d}" for row in range(rows)], type=pa.string()),
        vectors=vectors,
        attributes=empty_attributes(rows),
        payloads=pa.nulls(rows, type=pa.binary()),
    )


async def until(attempt: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await attempt()
            except (Fenced, Unavailable):
                await asyncio.sleep(0.01)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with `ROWS` rows in one collection and a few in the other; nothing has a graph."""
    meta = SqliteMetaStore(tmp_path / "meta.sqlite")
    objects = LocalObjectStore(tmp_path / "objects")
    for name in (LARGE, SMALL):
        await meta.commit(
            [
                Put(collection_key(name), encode_value(collection_named(name))),
                Put(shard_key(name, 0), encode_value(Assignment(name, 0, target="a"))),
            ]
        )
    settings = ShardNodeSettings("a", data_dir=tmp_path / "a")
    try:
        async with running_node(settings, meta, objects, listen=not_listening) as (running, _):
            vectors = vectors_of(ROWS)
            for start in range(0, ROWS, BATCH):
                await write(running, LARGE, batch(start, vectors[start : start + BATCH]))
            await write(running, SMALL, batch(0, vectors[:100]))
            yield running
    finally:
        await objects.close()
        await meta.close()


async def write(node: Node, name: str, rows: RecordBatch) -> None:
    await until(lambda: node.write(WriteRequest(name, 0, Upsert(rows))))


def exact_search(**changes: Any) -> SearchRequest:
    request = SearchRequest(
        LARGE, (0,), vectors_of(QUERIES, seed=2), SearchOptions(k=10, exact=True)
    )
    return replace(request, **changes)


def running(node: Node, lane: LaneName) -> int:
    return node.lanes.states()[lane].running


async def wait_until(condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S) -> float:
    """Return how long it took."""
    began_s = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.monotonic() - began_s


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_search_past_its_deadline_is_off_the_cpu(node: Node, flushed: bool) -> None:
    if flushed:
        await node.flush(LARGE, 0)
    with pytest.raises(DeadlineExceeded):
        await node.search(exact_search(timeout_s=0.1))
    await wait_until(lambda: not running(node, LaneName.EXACT), timeout_s=ENDS_WITHIN_S)


async def test_a_call_that_is_cancelled_on_the_wire_ends_on_the_node(node: Node) -> None:
    server = RpcServer({SHARD_SERVICE: ShardServicer(node)})
    port = server.listen("127.0.0.1:0")
    await server.start()
    remote = RemoteShardNode(f"127.0.0.1:{port}")
    try:
        search = asyncio.create_task(remote.search(exact_search()))
        await wait_until(lambda: running(node, LaneName.EXACT) == 1)
        search.cancel()
        await asyncio.gather(search, return_exceptions=True)
        await wait_until(lambda: not running(node, LaneName.EXACT), timeout_s=ENDS_WITHIN_S)
    finally:
        await remote.close()
        await server.stop(grace_s=0.0)


async def test_an_exact_search_holds_up_no_search_of_another_collection(node: Node) -> None:
    request = exact_search(timeout_s=PATIENCE_S)
    exact = [asyncio.create_task(node.search(request)) for _ in range(CALLS)]
    await wait_until(lambda: running(node, LaneName.EXACT) == 1)
    query = vectors_of(1, seed=3)
    for options in (SearchOptions(k=5), SearchOptions(k=5, exact=True)):
        for _ in range(5):
            answer = await node.search(SearchRequest(SMALL, (0,), query, options))
            assert len(answer.scores) == 5
    assert await node.count(CountRequest(LARGE, 0)) == ROWS
    await write(node, LARGE, batch(0, vectors_of(10)))
    assert not all(search.done() for search in exact)
    for search in exact:
        search.cancel()
    await asyncio.gather(*exact, return_exceptions=True)
    await wait_until(lambda: not running(node, LaneName.EXACT), timeout_s=ENDS_WITHIN_S)


async def test_writes_go_on_while_maintenance_is_busy(node: Node) -> None:
    """As when shards are opened: their replay has threads of its own."""
    gate = threading.Event()
    try:
        busy = [
            asyncio.create_task(
                node.lanes.maintenance(lambda: gate.wait(PATIENCE_S), collection_id="other")
            )
            for _ in range(8)
        ]
        await wait_until(lambda: node.lanes.states()[LaneName.MAINTENANCE].waiting > 0)
        replay = asyncio.create_task(node.lanes.replay(lambda: 7, collection_id="opened"))
        await asyncio.sleep(0)
        await write(node, SMALL, batch(0, vectors_of(10)))
        assert not replay.done()
    finally:
        gate.set()
    assert await replay == 7
    await asyncio.gather(*busy)


async def test_a_delete_by_filter_ends_when_its_caller_leaves_before_it_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ShardWorld(tmp_path)
    owner = await world.open()
    counting, go_on = threading.Event(), threading.Event()
    count_rows = resolving.count_rows

    def held(*arguments: Any, yield_point: YieldPoint) -> int:
        counting.set()
        assert go_on.wait(PATIENCE_S)
        return count_rows(*arguments, yield_point=yield_point)

    try:
        await owner.upsert("a", "b", "c")
        slot = owner.shard.state().wal_slots
        monkeypatch.setattr(resolving, "count_rows", held)
        anything = Comparison("size", ComparisonOp.GE, -(2**62))
        deleting = asyncio.create_task(owner.delete_where(anything))
        assert await asyncio.to_thread(counting.wait, PATIENCE_S)
        deleting.cancel()
        await asyncio.gather(deleting, return_exceptions=True)
        go_on.set()
        monkeypatch.setattr(resolving, "count_rows", count_rows)
        await owner.upsert("d")
        assert owner.shard.view.live_rows == 4
        assert owner.shard.state().wal_slots == slot + 1
        monkeypatch.setattr(resolving, "count_rows", held)
        go_on.clear()
        with pytest.raises(Unavailable, match="was not begun"):
            await owner.shard.write(DeleteWhere(anything), timeout_s=0.1)
        go_on.set()
        await owner.upsert("e")
        assert owner.shard.view.live_rows == 5
    finally:
        go_on.set()
        await world.close()
