from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from annheal import errors
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.measures.part_health import PartHealth
from annheal.model.measures.recall import CollectionRecall
from annheal.model.measures.recall_audit import BandAudit
from annheal.model.measures.recall_worst import LiveQuery
from annheal.model.records import (
    EVERYTHING,
    IDS_ONLY,
    ModelVectors,
    Projection,
    RecordBatch,
    RecordSet,
)
from annheal.model.search import (
    Consistency,
    SearchAnswer,
    SearchOptions,
    SearchRequest,
    SegmentExplain,
)
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier
from annheal.model.topology.shard import ShardId
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.model.write import (
    CountRequest,
    DeleteIds,
    DeleteWhere,
    GetRequest,
    ScanPage,
    ScanRequest,
    Upsert,
    WriteAnswer,
    WriteRequest,
)
from annheal.rpc import methods
from annheal.rpc.channel import Connection
from annheal.rpc.port import ShardNode
from annheal.rpc.server import RpcServer
from annheal.rpc.shard_node import RemoteShardNode
from annheal.shard_node.service import ShardServicer
from tests.support.ports import LOOPBACK
from tests.support.recall_reports import report

CLOCK_S = 0.2
"""gRPC rounds deadlines up when it sends them."""

FILTER = Comparison("year", ComparisonOp.GE, 2024)
ROWS = RecordSet(
    ids=["a", "ß"],
    attributes=pa.RecordBatch.from_arrays([pa.array([2024, None], pa.int64())], names=["year"]),
    payloads=pa.array([b"{}", None], pa.binary()),
    vectors=np.array([[1, 2], [3, 4]], dtype=np.float32),
    model="m",
    further=(ModelVectors("n", np.array([[5], [6]], dtype=np.float32)),),
)
BATCH = RecordBatch(
    ids=pa.array(["a", "ß"]),
    vectors=np.array([[1, 2], [3, 4]], dtype=np.float32),
    attributes=ROWS.attributes,
    payloads=ROWS.payloads,
)
ANSWER = SearchAnswer(
    counts=np.array([1, 1], dtype=np.int32),
    scores=np.array([-0.5, 0.25], dtype=np.float32),
    records=ROWS,
    explain=(SegmentExplain(1, "s", "exact", 3, 2, 1, 0, 2, 0.125),),
    sequences={1: 2**40, 2: 0},
    missing_shards=(ShardId("c1", 7),),
    by_fallback=np.array([False, True]),
)
STATE = ShardState(
    "c1", 1, "n1", "loading", 3, 2, 1, 1, 9, 4, 4096,
    (SegmentState(1, "s", "warm", "m", "hnsw", 3, 1, 100, 2, 5.5, 1, 9),), "slow",
)  # fmt: skip
TASK = CompactionTask(
    "t1", "c1", 1, ("s1", "s2"), "warm", TaskReason.MERGE, TaskPhase.BUILT,
    output=SegmentEntry("s3", Tier.WARM, "m", IndexKind.HNSW, 8, 999, "ab" * 16, 1, 99),
)  # fmt: skip


class RecordingNode:
    """Keeps what it was asked and gives fixed answers, or raises `error`."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.error: BaseException | None = None
        self.hang = False
        self.begun = asyncio.Event()

    async def _note(self, request: object) -> None:
        self.asked.append(request)
        self.begun.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    async def search(self, request: SearchRequest) -> SearchAnswer:
        await self._note(request)
        return ANSWER

    async def write(self, request: WriteRequest) -> WriteAnswer:
        await self._note(request)
        return WriteAnswer(2**40, 3, 4)

    async def get(self, request: GetRequest) -> RecordSet:
        await self._note(request)
        return ROWS

    async def count(self, request: CountRequest) -> int:
        await self._note(request)
        return 2**33

    async def scan(self, request: ScanRequest) -> ScanPage:
        await self._note(request)
        return ScanPage(RecordSet(ids=["a"]), 2**64 - 1, "a", False)

    async def shard_states(self, collection_id: str = "") -> tuple[ShardState, ...]:
        await self._note(collection_id)
        return (STATE,)

    async def health(self) -> tuple[PartHealth, ...]:
        return ()

    async def audit_recall(
        self, collection_id: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        raise NotImplementedError

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        await self._note(("recall", collection_id))
        return (report(collection_id),)

    async def sampled_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        raise NotImplementedError

    async def flush(self, collection_id: str, shard: int) -> None:
        await self._note((collection_id, shard))

    async def publish_compaction(self, task: CompactionTask) -> None:
        await self._note(task)


@asynccontextmanager
async def remote() -> AsyncIterator[tuple[RecordingNode, ShardNode, RpcServer]]:
    node = RecordingNode()
    served: ShardNode = node
    server = RpcServer({methods.SHARD_SERVICE: ShardServicer(served)})
    port = server.listen(f"{LOOPBACK}:0")
    await server.start()
    far = RemoteShardNode(f"{LOOPBACK}:{port}")
    try:
        yield node, far, server
    finally:
        await far.close()
        await server.stop(grace_s=0)


def assert_same_rows(left: RecordSet, right: RecordSet) -> None:
    assert left.ids == right.ids
    assert (left.attributes, left.payloads) == (right.attributes, right.payloads)
    assert left.vectors is not None
    assert right.vectors is not None
    assert np.array_equal(left.vectors, right.vectors)
    assert left.model == right.model
    assert len(left.further) == len(right.further)
    for one, other in zip(left.further, right.further, strict=True):
        assert one.model == other.model
        assert np.array_equal(one.vectors, other.vectors)


async def test_searches_are_the_same_from_afar() -> None:
    request = SearchRequest(
        collection_id="c1",
        shards=(1, 2),
        queries=np.array([[1, 2], [3, 4]], dtype=np.float32),
        options=SearchOptions(
            k=3,
            filter=FILTER,
            exact=True,
            ef=9,
            recall_objective=0.5,
            projection=Projection(("year",), True, False),
            explain=True,
            model="m",
            tag="t",
            fallback="n",
            fallback_k=7,
        ),
        consistency=Consistency.STRONG,
        min_sequences={1: 2**40},
        timeout_s=30.0,
    )
    async with remote() as (node, far, _):
        answer = await far.search(request)
    [asked] = node.asked
    assert isinstance(asked, SearchRequest)
    for name in ("collection_id", "shards", "options", "consistency", "min_sequences"):
        assert getattr(asked, name) == getattr(request, name)
    assert np.array_equal(asked.queries, request.queries)
    assert 0 < asked.timeout_s <= 30.0 + CLOCK_S
    assert answer.counts.tolist() == [1, 1]
    assert answer.scores.tolist() == [-0.5, 0.25]
    for name in ("explain", "sequences", "missing_shards"):
        assert getattr(answer, name) == getattr(ANSWER, name)
    assert_same_rows(answer.records, ROWS)
    assert answer.by_fallback is not None
    assert answer.by_fallback.tolist() == [False, True]


async def test_writes_are_the_same_from_afar() -> None:
    async with remote() as (node, far, _):
        for operation in (Upsert(BATCH), DeleteIds(("a", "ß")), DeleteWhere(FILTER)):
            answer = await far.write(WriteRequest("c1", 1, operation, timeout_s=9))
            assert answer == WriteAnswer(2**40, 3, 4)
    upsert, ids, where = node.asked
    assert isinstance(upsert, WriteRequest)
    assert isinstance(upsert.operation, Upsert)
    batch = upsert.operation.batch
    assert batch.ids.equals(BATCH.ids)
    assert np.array_equal(batch.vectors, BATCH.vectors)
    assert batch.attributes.equals(BATCH.attributes)
    assert batch.payloads.equals(BATCH.payloads)
    assert isinstance(ids, WriteRequest)
    assert ids.operation == DeleteIds(("a", "ß"))
    assert (ids.collection_id, ids.shard) == ("c1", 1)
    assert 0 < ids.timeout_s <= 9 + CLOCK_S
    assert isinstance(where, WriteRequest)
    assert where.operation == DeleteWhere(FILTER)


async def test_everything_else_is_the_same_from_afar() -> None:
    get = GetRequest(
        "c1", 1, ("a",), replace(EVERYTHING, models=("n", "m")), Consistency.SESSION, 5
    )
    count = CountRequest("c1", 1, FILTER, Consistency.STRONG, 6)
    first = ScanRequest("c1", 1, 10)
    later = ScanRequest("c1", 1, 10, 2**64 - 1, "a", FILTER, IDS_ONLY)
    async with remote() as (node, far, _):
        assert_same_rows(await far.get(get), ROWS)
        assert await far.count(count) == 2**33
        page = ScanPage(RecordSet(ids=["a"]), 2**64 - 1, "a", False)
        assert await far.scan(first) == page
        assert await far.scan(later) == page
        assert await far.shard_states("c1") == (STATE,)
        assert await far.recall("c1") == (report("c1"),)
        await far.flush("c1", 1)
        await far.publish_compaction(TASK)
    assert node.asked == [get, count, first, later, "c1", ("recall", "c1"), ("c1", 1), TASK]


@pytest.mark.parametrize(
    "error",
    [
        errors.Fenced("shard 1 is owned by n2", metadata={"owner": "n2"}),
        errors.FailedPrecondition("the task is stale"),
        errors.ResourceExhausted("too much unindexed", retry_after_s=2.5),
    ],
)
async def test_errors_of_the_node_arrive_as_themselves(error: errors.AnnhealError) -> None:
    async with remote() as (node, far, _):
        node.error = error
        with pytest.raises(type(error)) as caught:
            await far.publish_compaction(TASK)
    assert str(caught.value) == str(error)
    assert caught.value.metadata == error.metadata
    assert caught.value.retry_after_s == error.retry_after_s


async def test_lost_answers_of_writes_are_unknown_outcomes() -> None:
    async with remote() as (node, far, server):
        node.hang = True
        with pytest.raises(errors.UnknownOutcome):
            await far.write(WriteRequest("c1", 1, DeleteIds(("a",)), timeout_s=0.3))
        node.begun.clear()
        write = asyncio.create_task(far.write(WriteRequest("c1", 1, DeleteIds(("b",)))))
        async with asyncio.timeout(5):
            await node.begun.wait()
        await server.stop(grace_s=0)
        with pytest.raises(errors.UnknownOutcome):
            await write
        with pytest.raises(errors.Unavailable):
            await far.count(CountRequest("c1", 1))


async def test_broken_messages_between_processes_name_the_field() -> None:
    search = methods.SEARCH_SHARDS
    async with remote() as (_, far, _):
        assert isinstance(far, RemoteShardNode)
        async with Connection(far.address) as connection:
            with pytest.raises(errors.InvalidArgument, match="queries: has 7 bytes"):
                await connection.call(
                    search,
                    search.request(shards=[0], dimension=2, queries=b"1234567"),
                    timeout_s=5,
                )
            with pytest.raises(errors.InvalidArgument, match="operation: is none"):
                await connection.call(
                    methods.WRITE_SHARD, methods.WRITE_SHARD.request(), timeout_s=5
                )
            with pytest.raises(errors.InvalidArgument, match="upsert: is not an Arrow IPC"):
                await connection.call(
                    methods.WRITE_SHARD, methods.WRITE_SHARD.request(upsert=b"junk"), timeout_s=5
                )
