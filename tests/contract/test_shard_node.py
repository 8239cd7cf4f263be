"""The contract of `ShardNode` over all of its implementations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from annheal.coordinator.data_path.metered_node import MeteredNode
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import collection_key, shard_key
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.collection import Metric
from annheal.model.measures.recall import CollectionRecall
from annheal.model.topology.shard import Assignment, ShardId
from annheal.objectstore.local import LocalObjectStore
from annheal.rpc.methods import SHARD_SERVICE
from annheal.rpc.port import ShardNode
from annheal.rpc.server import RpcServer
from annheal.rpc.shard_node import RemoteShardNode
from annheal.runtime.metrics import Metrics
from annheal.shard_node.app import not_listening, running_node
from annheal.shard_node.service import ShardServicer
from annheal.shard_node.settings import ShardNodeSettings
from tests.contract.shard_node_contract import ShardNodeContract
from tests.support.memory_node import MemoryNode, MemoryShard
from tests.support.ports import LOOPBACK
from tests.support.shards import shard_collection

PATIENCE_S = 30.0
COLLECTION = replace(shard_collection(metric=Metric.INNER_PRODUCT), shard_count=2)


@asynccontextmanager
async def local_node(folder: Path) -> AsyncIterator[ShardNode]:
    async with AsyncExitStack() as stack:
        meta = SqliteMetaStore(folder / "meta.sqlite")
        stack.push_async_callback(meta.close)
        objects = LocalObjectStore(folder / "objects")
        stack.push_async_callback(objects.close)
        assignments = [
            Put(shard_key("c1", number), encode_value(Assignment("c1", number, target="a")))
            for number in range(COLLECTION.shard_count)
        ]
        stored = Put(collection_key(COLLECTION.name), encode_value(COLLECTION))
        await meta.commit([stored, *assignments])
        settings = ShardNodeSettings("a", data_dir=folder / "node")
        node, _ = await stack.enter_async_context(
            running_node(settings, meta, objects, listen=not_listening)
        )
        async with asyncio.timeout(PATIENCE_S):
            while [one.phase for one in await node.shard_states()] != ["serving"] * 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield node


class TestLocalNode(ShardNodeContract):
    @pytest.fixture
    async def node(self, tmp_path: Path) -> AsyncIterator[ShardNode]:
        async with local_node(tmp_path) as node:
            yield node


class TestMeteredNode(ShardNodeContract):
    @pytest.fixture
    async def node(self, tmp_path: Path) -> AsyncIterator[ShardNode]:
        async with local_node(tmp_path) as node:
            yield MeteredNode(node, Metrics(), node_id="a")


class TestRemoteNode(ShardNodeContract):
    @pytest.fixture
    async def node(self, tmp_path: Path) -> AsyncIterator[ShardNode]:
        async with local_node(tmp_path) as node:
            server = RpcServer({SHARD_SERVICE: ShardServicer(node)})
            port = server.listen(f"{LOOPBACK}:0")
            await server.start()
            far = RemoteShardNode(f"{LOOPBACK}:{port}")
            yield far
            await far.close()
            await server.stop(grace_s=0)


class TestMemoryNode(ShardNodeContract):
    @pytest.fixture
    async def node(self) -> ShardNode:
        return MemoryNode(
            "a",
            shards={ShardId("c1", number): MemoryShard() for number in range(2)},
            recalls=[CollectionRecall("c1", 0.95, 0.01, (), ())],
        )
