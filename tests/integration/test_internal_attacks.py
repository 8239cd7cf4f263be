"""Hostile messages over real gRPC to a shard node: each is refused by name, and nothing changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from annheal.errors import AnnhealError, InvalidArgument
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import collection_key, shard_key
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.limits import (
    EF_MAX,
    GET_IDS_MAX,
    K_MAX,
    REQUEST_BYTES_MAX,
    SCAN_PAGE_ROWS_MAX,
    SEARCH_HITS_MAX,
    SHARD_COUNT_MAX,
    WRITE_ROWS_MAX,
)
from annheal.model.search import Consistency
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier
from annheal.model.topology.shard import Assignment
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.model.write import CountRequest, Upsert, WriteRequest
from annheal.objectstore.local import LocalObjectStore
from annheal.rpc import methods
from annheal.rpc.channel import Connection
from annheal.rpc.shard_node import RemoteShardNode
from annheal.shard_node.serving import run_shard_node
from annheal.shard_node.settings import ShardNodeSettings
from annheal.v1 import internal_pb2 as pb
from annheal.wire.enums import CONSISTENCY
from annheal.wire.internal import encode_publish, encode_shard_write
from tests.support.ports import LOOPBACK
from tests.support.shards import DIMENSION, record_batch, shard_collection
from tests.unit.test_arrow_stream import BAD

PATIENCE_S = 30.0
QUERY = np.zeros((1, DIMENSION), dtype="<f4").tobytes()
EVENTUAL = CONSISTENCY.encode(Consistency.EVENTUAL)
BAD_NAMES = ("", "..", "../victim", "../../etc", "a/b", "a\0b", "x" * 300)


@dataclass(slots=True)
class Target:
    """A node that serves one shard with two records, and connections to it."""

    address: str
    node: RemoteShardNode
    connection: Connection
    folder: Path
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def attack(self, method: Any, message: Any) -> AnnhealError:
        """Return what the call was refused with; fails when it was not."""
        with pytest.raises(AnnhealError) as caught:
            await self.connection.call(method, message, timeout_s=PATIENCE_S)
        return caught.value

    async def is_unharmed(self) -> None:
        assert await self.node.count(CountRequest("c1", 0)) == 2
        answer = await self.node.write(WriteRequest("c1", 0, Upsert(record_batch(["a", "b"]))))
        assert answer.upserted == 2


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Target]:
    meta = SqliteMetaStore(folder / "meta.sqlite")
    objects = LocalObjectStore(folder / "objects")
    await meta.commit(
        [
            Put(collection_key("things"), encode_value(shard_collection())),
            Put(shard_key("c1", 0), encode_value(Assignment("c1", 0, target="a"))),
        ]
    )
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def on_ready(number: int) -> None:
        port.set_result(number)

    settings = ShardNodeSettings("a", data_dir=folder / "node", listen=f"{LOOPBACK}:0")
    running = asyncio.create_task(
        run_shard_node(settings, meta, objects, stop=stop, on_ready=on_ready)
    )
    address = f"{LOOPBACK}:{await port}"
    node = RemoteShardNode(address)
    async with Connection(address) as connection:
        async with asyncio.timeout(PATIENCE_S):
            while not [s for s in await node.shard_states() if s.phase == "serving"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await node.write(WriteRequest("c1", 0, Upsert(record_batch(["a", "b"]))))
        yield Target(address, node, connection, folder)
    await node.close()
    stop.set()
    await running
    await objects.close()
    await meta.close()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    async with served(tmp_path) as running:
        yield running


async def test_hostile_rows_are_refused_and_not_written(target: Target) -> None:
    for name, stream in BAD.items():
        message = pb.WriteShardRequest(collection_id="c1", shard=0, upsert=stream)
        error = await target.attack(methods.WRITE_SHARD, message)
        assert isinstance(error, InvalidArgument), (name, error)
    await target.is_unharmed()


def search(**changes: Any) -> pb.SearchShardsRequest:
    values: dict[str, Any] = {
        "collection_id": "c1", "shards": [0], "dimension": DIMENSION, "queries": QUERY, "k": 1,
        "consistency": EVENTUAL,
    }  # fmt: skip
    return pb.SearchShardsRequest(**{**values, **changes})


NAN = np.full((1, DIMENSION), np.nan, dtype="<f4").tobytes()
MANY = (SEARCH_HITS_MAX // K_MAX) + 1
CALLS: dict[str, tuple[Any, Callable[[], Any], str]] = {
    "no k": (methods.SEARCH_SHARDS, lambda: search(k=0), "k"),
    "k": (methods.SEARCH_SHARDS, lambda: search(k=K_MAX + 1), "k"),
    "all of k": (methods.SEARCH_SHARDS, lambda: search(k=2**32 - 1), "k"),
    "hits": (methods.SEARCH_SHARDS, lambda: search(k=K_MAX, queries=QUERY * MANY), "k"),
    "ef": (methods.SEARCH_SHARDS, lambda: search(ef=EF_MAX + 1), "ef"),
    "no ef": (methods.SEARCH_SHARDS, lambda: search(ef=0), "ef"),
    "objective": (
        methods.SEARCH_SHARDS, lambda: search(recall_objective=7.0), "recall_objective"
    ),
    "no shards": (methods.SEARCH_SHARDS, lambda: search(shards=[]), "shards"),
    "one shard often": (methods.SEARCH_SHARDS, lambda: search(shards=[0] * 2), "shards"),
    "shards": (
        methods.SEARCH_SHARDS, lambda: search(shards=range(SHARD_COUNT_MAX + 1)), "shards"
    ),
    "dimension": (methods.SEARCH_SHARDS, lambda: search(dimension=2**31), "queries"),
    "nan": (methods.SEARCH_SHARDS, lambda: search(queries=NAN), "queries"),
    "ids": (
        methods.GET_FROM_SHARD,
        lambda: pb.GetFromShardRequest(collection_id="c1", ids=["a"] * (GET_IDS_MAX + 1)),
        "ids",
    ),
    "rows": (
        methods.SCAN_SHARD,
        lambda: pb.ScanShardRequest(collection_id="c1", rows_max=SCAN_PAGE_ROWS_MAX + 1),
        "rows_max",
    ),
    "no rows": (methods.SCAN_SHARD, lambda: pb.ScanShardRequest(collection_id="c1"), "rows_max"),
    "deletes": (
        methods.WRITE_SHARD,
        lambda: pb.WriteShardRequest(
            collection_id="c1", delete_ids=pb.DeleteIds(ids=["z"] * (WRITE_ROWS_MAX + 1))
        ),
        "delete_ids",
    ),
    "upserts": (
        methods.WRITE_SHARD,
        lambda: encode_shard_write(
            WriteRequest(
                "c1", 0, Upsert(record_batch([f"z{n}" for n in range(WRITE_ROWS_MAX + 1)]))
            )
        ),
        "upsert",
    ),
    "shard": (
        methods.COUNT_SHARD, lambda: pb.CountShardRequest(collection_id="c1", shard=2**32 - 1),
        "shard",
    ),
}  # fmt: skip


async def test_sizes_beyond_the_limits_are_refused_on_the_node(target: Target) -> None:
    for name, (method, message, wrong) in CALLS.items():
        error = await target.attack(method, message())
        assert isinstance(error, InvalidArgument), (name, error)
        assert [one.field for one in error.violations] == [wrong], name
    await target.is_unharmed()


def publication(**changes: Any) -> pb.PublishCompactionRequest:
    output = SegmentEntry(
        changes.pop("segment_id", "s9"), Tier.WARM, "m", IndexKind.HNSW, 1, 1, "ab" * 16, 1, 1
    )
    values: dict[str, Any] = {"id": "t1", "collection_id": "c1", "shard": 0, "sources": ("s1",)}
    task = CompactionTask(
        **{**values, **changes},
        tier="warm", reason=TaskReason.MERGE, phase=TaskPhase.BUILT, output=output,
    )  # fmt: skip
    return encode_publish(task)


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_that_are_none_reach_no_path(target: Target, name: str) -> None:
    """`../victim` as a segment's id removed the file that it led to."""
    victims = [
        target.folder / "node" / "segments" / place / "victim" / "segment.json"
        for place in ("c1", "c1/00000", ".")
    ]
    for victim in victims:
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_bytes(b"another segment's")
    for message in (
        publication(segment_id=name),
        publication(sources=(name,)),
        publication(collection_id=name),
        publication(id=name),
    ):
        error = await target.attack(methods.PUBLISH_COMPACTION, message)
        assert isinstance(error, InvalidArgument), error
    of_collection = (
        (methods.SEARCH_SHARDS, search(collection_id=name)),
        (methods.WRITE_SHARD, pb.WriteShardRequest(collection_id=name, delete_ids={"ids": ["a"]})),
        (methods.GET_FROM_SHARD, pb.GetFromShardRequest(collection_id=name, ids=["a"])),
        (methods.COUNT_SHARD, pb.CountShardRequest(collection_id=name)),
        (methods.SCAN_SHARD, pb.ScanShardRequest(collection_id=name, rows_max=1)),
        (methods.FLUSH_SHARD, pb.FlushShardRequest(collection_id=name)),
        (methods.AUDIT_SHARD, pb.AuditShardRequest(collection_id=name, queries_max=9)),
        (methods.LIST_SAMPLED_QUERIES, pb.ListSampledQueriesRequest(collection_id=name)),
    )
    for method, request in of_collection:
        error = await target.attack(method, request)
        assert isinstance(error, InvalidArgument), error
    if name:
        for method in (methods.LIST_SHARD_STATES, methods.REPORT_RECALL):
            error = await target.attack(method, method.request(collection_id=name))
            assert isinstance(error, InvalidArgument), error
    assert all(victim.read_bytes() == b"another segment's" for victim in victims)
    await target.is_unharmed()


async def test_a_compressed_message_counts_with_its_full_size(target: Target) -> None:
    """65 MiB of zeros are 64 KB of gzip; the limit is that of what they become."""
    body = pb.WriteShardRequest(collection_id="c1", upsert=bytes(REQUEST_BYTES_MAX + 1))
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(target.address, options=options) as channel:
        call = channel.unary_unary("/annheal.v1.ShardService/WriteShard")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(
                body.SerializeToString(), compression=grpc.Compression.Gzip, timeout=PATIENCE_S
            )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await target.is_unharmed()
