"""Coordinators and in-memory nodes over a real metadata store and a real object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from annheal.coordinator.app import Coordinator
from annheal.coordinator.settings import CoordinatorSettings
from annheal.metastore.protocol import MetaStore
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.collection import Collection, Metric, ModelSpec, Schema
from annheal.model.records import RecordBatch, arrow_schema
from annheal.model.topology.shard import NodeRegistration, ShardId
from annheal.model.topology.state import SegmentState, ShardState
from annheal.objectstore.local import LocalObjectStore
from annheal.rpc.port import ShardNode
from annheal.runtime.deadline import Deadline
from tests.support.memory_node import MemoryNode, MemoryShard, NodeAgent

DIMENSION = 8
WAIT_S = 20.0


async def eventually(condition: Callable[[], bool], *, timeout_s: float = WAIT_S) -> None:
    """Return when `condition` holds; fail after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


def spec(name: str, *, shard_count: int = 4, schema: Schema = ()) -> Collection:
    """Return a collection to create."""
    return Collection(
        id="",
        name=name,
        models=(ModelSpec("m", DIMENSION, Metric.INNER_PRODUCT),),
        schema=schema,
        shard_count=shard_count,
    )


def batch(ids: Sequence[str], *, seed: int = 0, schema: Schema = ()) -> RecordBatch:
    """Return records with random vectors and no attribute values."""
    vectors = np.random.default_rng(seed).normal(size=(len(ids), DIMENSION)).astype(np.float32)
    columns = arrow_schema(schema)
    return RecordBatch(
        ids=pa.array(ids, type=pa.string()),
        vectors=vectors,
        attributes=pa.RecordBatch.from_struct_array(
            pa.array([{}] * len(ids), type=pa.struct(columns))
        ),
        payloads=pa.nulls(len(ids), type=pa.binary()),
    )


def soon(timeout_s: float = WAIT_S) -> Deadline:
    """Return a deadline that a working system keeps."""
    return Deadline.after(timeout_s)


@dataclass(slots=True)
class MemoryCluster:
    """Nodes and coordinators of one test."""

    meta: MetaStore
    objects: LocalObjectStore
    nodes: dict[str, MemoryNode] = field(default_factory=dict)
    agents: dict[str, NodeAgent] = field(default_factory=dict)
    durable: dict[ShardId, MemoryShard] = field(default_factory=dict)
    coordinators: list[Coordinator] = field(default_factory=list)

    async def add_node(self, node_id: str, *, zone: str = "") -> MemoryNode:
        """Start a node; a node of that name that went away begins empty."""
        node = MemoryNode(node_id)
        agent = NodeAgent(node, self.meta, durable=self.durable, zone=zone)
        self.nodes[node_id] = node
        self.agents[node_id] = agent
        await agent.start()
        return node

    async def remove_node(self, node_id: str) -> None:
        """Stop a node."""
        await self.agents.pop(node_id).stop()
        del self.nodes[node_id]

    def connect(self, registration: NodeRegistration) -> ShardNode:
        """Return the node itself."""
        return self.nodes[registration.node_id]

    async def add_coordinator(self, coordinator_id: str = "c1", **changes: object) -> Coordinator:
        """Start a coordinator with short intervals."""
        values: dict[str, object] = {
            "control_interval_s": 0.2,
            "compaction_interval_s": 0.1,
            "lease_ttl_s": 10.0,
            "store_retry_s": 0.05,
            **changes,
        }
        settings = CoordinatorSettings(coordinator_id, **values)  # type: ignore[arg-type]
        coordinator = Coordinator(settings, self.meta, self.objects, self.connect, version="test")
        await coordinator.start()
        self.coordinators.append(coordinator)
        return coordinator


@asynccontextmanager
async def memory_cluster(folder: Path) -> AsyncIterator[MemoryCluster]:
    """Run a cluster without nodes and coordinators below `folder`."""
    meta = SqliteMetaStore(folder / "meta.sqlite")
    objects = LocalObjectStore(folder / "objects")
    cluster = MemoryCluster(meta, objects)
    try:
        yield cluster
    finally:
        for coordinator in cluster.coordinators:
            await coordinator.stop()
        for agent in cluster.agents.values():
            await agent.stop()
        await meta.close()
        await objects.close()


async def started(
    cluster: MemoryCluster, *nodes: str, shard_count: int = 4, automatic: bool = True
) -> tuple[Coordinator, Collection]:
    for node_id in nodes or ("a", "b"):
        await cluster.add_node(node_id)
    coordinator = await cluster.add_coordinator()
    wanted = spec("packages", shard_count=shard_count)
    wanted = replace(wanted, settings=replace(wanted.settings, compaction_automatic=automatic))
    collection = await coordinator.collections.create(wanted, deadline=soon())
    return coordinator, collection


def with_segments(cluster: MemoryCluster, *rows: int) -> None:
    """Let every node report flat segments of that many rows in each of its shards."""

    def report(state: ShardState) -> ShardState:
        segments = tuple(
            SegmentState(
                shard=state.shard,
                segment_id=f"s{number}",
                tier="hot",
                model="m",
                index_kind="flat",
                rows=count,
                dead_rows=0,
                size_bytes=count * 32,
                generation=0,
                created_at_s=0.0,
                min_sequence=1,
                max_sequence=1,
            )
            for number, count in enumerate(rows)
        )
        return replace(state, segments=segments)

    for node in cluster.nodes.values():
        node.states = report
