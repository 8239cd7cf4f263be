"""A shard node whose calls are counted: how long each took, how many queries went together."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from annheal.model.measures.part_health import PartHealth
from annheal.model.measures.recall import CollectionRecall
from annheal.model.measures.recall_audit import BandAudit
from annheal.model.measures.recall_worst import LiveQuery
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, SearchRequest
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask
from annheal.model.write import (
    CountRequest,
    GetRequest,
    ScanPage,
    ScanRequest,
    WriteAnswer,
    WriteRequest,
)
from annheal.rpc.port import ShardNode
from annheal.runtime.metrics import Metrics

ResultT = TypeVar("ResultT")


class MeteredNode:
    """`inner`, under the name `node_id` in the metrics; see `annheal.rpc.port.ShardNode`."""

    def __init__(self, inner: ShardNode, metrics: Metrics, *, node_id: str) -> None:
        self.inner = inner
        self._metrics = metrics
        self._node_id = node_id

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Search the named shards and merge their hits."""
        self._metrics.batch_queries.observe(len(request.queries), self._node_id)
        return await self._timed("search", self.inner.search(request))

    async def write(self, request: WriteRequest) -> WriteAnswer:
        """Apply one write."""
        return await self._timed("write", self.inner.write(request))

    async def get(self, request: GetRequest) -> RecordSet:
        """Read records by id."""
        return await self._timed("get", self.inner.get(request))

    async def count(self, request: CountRequest) -> int:
        """Count matching live records."""
        return await self._timed("count", self.inner.count(request))

    async def scan(self, request: ScanRequest) -> ScanPage:
        """Read one page of a shard."""
        return await self._timed("scan", self.inner.scan(request))

    async def shard_states(self, collection_id: str = "") -> tuple[ShardState, ...]:
        """Describe the shards that the node holds."""
        return await self._timed("shard_states", self.inner.shard_states(collection_id))

    async def health(self) -> tuple[PartHealth, ...]:
        """Probe what the node depends on."""
        return await self._timed("health", self.inner.health())

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        """Return what live queries measured."""
        return await self._timed("recall", self.inner.recall(collection_id))

    async def audit_recall(
        self, collection_id: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Compare estimates of recall with other live queries."""
        audit = self.inner.audit_recall(
            collection_id, shard, queries_max=queries_max, timeout_s=timeout_s
        )
        return await self._timed("audit_recall", audit)

    async def sampled_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        """Return the sampled live queries."""
        return await self._timed("sampled_queries", self.inner.sampled_queries(collection_id))

    async def flush(self, collection_id: str, shard: int) -> None:
        """Flush one shard."""
        await self._timed("flush", self.inner.flush(collection_id, shard))

    async def publish_compaction(self, task: CompactionTask) -> None:
        """Swap the task's sources for its output."""
        await self._timed("publish_compaction", self.inner.publish_compaction(task))

    async def _timed(self, call: str, work: Awaitable[ResultT]) -> ResultT:
        began_s = time.perf_counter()
        try:
            return await work
        finally:
            self._metrics.call_seconds.observe(time.perf_counter() - began_s, self._node_id, call)
