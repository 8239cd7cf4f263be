"""A shard node in another process, behind the methods of `annheal.rpc.port`."""

from __future__ import annotations

from annheal.model.limits import TIMEOUT_DEFAULT_S
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
from annheal.rpc import methods
from annheal.rpc.channel import ClientTls, Connection
from annheal.wire import internal as wire
from annheal.wire.admin import decode_parts
from annheal.wire.recall import decode_audits, decode_live_queries, decode_recall_reports

STATES_TIMEOUT_S = 10.0
CHANGE_TIMEOUT_S = 600.0
"""For flushes and publications, which load or write whole segments."""


class RemoteShardNode:
    """One shard node at `address`. Raises what the node raised, and `Unavailable`,
    `DeadlineExceeded` or (for changes) `UnknownOutcome` when the call was lost.

    Make it inside the event loop that uses it, and `close` it.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: ClientTls | None = None,
        read_timeout_s: float = TIMEOUT_DEFAULT_S,
    ) -> None:
        self.address = address
        self._connection = Connection(address, tls=tls)
        self._read_timeout_s = read_timeout_s

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Search the named shards and merge their hits."""
        response = await self._connection.call(
            methods.SEARCH_SHARDS, wire.encode_shard_search(request), timeout_s=request.timeout_s
        )
        return wire.decode_shard_answer(response, collection_id=request.collection_id)

    async def write(self, request: WriteRequest) -> WriteAnswer:
        """Apply one write; returns once it is durable and visible."""
        response = await self._connection.call(
            methods.WRITE_SHARD, wire.encode_shard_write(request), timeout_s=request.timeout_s
        )
        return wire.decode_write_answer(response)

    async def get(self, request: GetRequest) -> RecordSet:
        """Read records by id."""
        response = await self._connection.call(
            methods.GET_FROM_SHARD, wire.encode_shard_get(request), timeout_s=self._read_timeout_s
        )
        return wire.decode_found(response)

    async def count(self, request: CountRequest) -> int:
        """Count matching live records."""
        response = await self._connection.call(
            methods.COUNT_SHARD, wire.encode_shard_count(request), timeout_s=self._read_timeout_s
        )
        return response.count

    async def scan(self, request: ScanRequest) -> ScanPage:
        """Read one page of a shard."""
        response = await self._connection.call(
            methods.SCAN_SHARD, wire.encode_shard_scan(request), timeout_s=self._read_timeout_s
        )
        return wire.decode_scan_page(response)

    async def shard_states(self, collection_id: str = "") -> tuple[ShardState, ...]:
        """Describe the shards this node holds, of one collection or (when empty) of all."""
        response = await self._connection.call(
            methods.LIST_SHARD_STATES,
            methods.LIST_SHARD_STATES.request(collection_id=collection_id),
            timeout_s=STATES_TIMEOUT_S,
        )
        return tuple(wire.decode_shard_state(state) for state in response.states)

    async def health(self) -> tuple[PartHealth, ...]:
        """Probe what the node depends on."""
        response = await self._connection.call(
            methods.CHECK_NODE, methods.CHECK_NODE.request(), timeout_s=STATES_TIMEOUT_S
        )
        return decode_parts(response.parts)

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        """Return what live queries measured of one collection or (when empty) of all."""
        response = await self._connection.call(
            methods.REPORT_RECALL,
            methods.REPORT_RECALL.request(collection_id=collection_id),
            timeout_s=STATES_TIMEOUT_S,
        )
        return decode_recall_reports(response)

    async def audit_recall(
        self, collection_id: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Compare the shard's estimates of recall with queries that they were not made from."""
        response = await self._connection.call(
            methods.AUDIT_SHARD,
            methods.AUDIT_SHARD.request(
                collection_id=collection_id, shard=shard, queries_max=queries_max
            ),
            timeout_s=timeout_s,
        )
        return decode_audits(response.audits)

    async def sampled_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        """Return the sampled live queries that judge the recall of a collection now."""
        response = await self._connection.call(
            methods.LIST_SAMPLED_QUERIES,
            methods.LIST_SAMPLED_QUERIES.request(collection_id=collection_id),
            timeout_s=STATES_TIMEOUT_S,
        )
        return decode_live_queries(response.queries)

    async def flush(self, collection_id: str, shard: int) -> None:
        """Seal and flush what grows, checkpoint the delete vectors, and trim the WAL."""
        await self._connection.call(
            methods.FLUSH_SHARD,
            methods.FLUSH_SHARD.request(collection_id=collection_id, shard=shard),
            timeout_s=CHANGE_TIMEOUT_S,
        )

    async def publish_compaction(self, task: CompactionTask) -> None:
        """Swap the task's sources for its output; idempotent."""
        await self._connection.call(
            methods.PUBLISH_COMPACTION, wire.encode_publish(task), timeout_s=CHANGE_TIMEOUT_S
        )

    async def close(self) -> None:
        """End the connection; calls in flight fail."""
        await self._connection.close()
