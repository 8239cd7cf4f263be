"""What the coordinator asks of a shard node, whatever lies between them."""

from __future__ import annotations

from typing import Protocol

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


class ShardNode(Protocol):
    """One shard node, over gRPC (`annheal.rpc.shard_node`) or, in embedded mode, in process.

    Every method raises `Fenced` when the node does not own (and serve) a shard that is named:
    look the owner up again and repeat. It raises `Unavailable` when the node cannot be reached,
    and for writes `UnknownOutcome` when the answer was lost; record writes are idempotent and
    may be repeated.
    """

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Search the named shards and merge their hits."""
        ...

    async def write(self, request: WriteRequest) -> WriteAnswer:
        """Apply one write; returns once it is durable and visible."""
        ...

    async def get(self, request: GetRequest) -> RecordSet:
        """Read records by id."""
        ...

    async def count(self, request: CountRequest) -> int:
        """Count matching live records."""
        ...

    async def scan(self, request: ScanRequest) -> ScanPage:
        """Read one page of a shard."""
        ...

    async def shard_states(self, collection_id: str = "") -> tuple[ShardState, ...]:
        """Describe the shards this node holds, of one collection or (when empty) of all."""
        ...

    async def health(self) -> tuple[PartHealth, ...]:
        """Probe what the node depends on: stores, logs, disks; takes a few seconds at most."""
        ...

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        """Return what live queries measured here of one collection or (when empty) of all.

        Collections without a sampled query are there too, with no slices.
        """
        ...

    async def audit_recall(
        self, collection_id: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Compare the shard's estimates of recall with up to `queries_max` other live queries.

        One item for each band that has an estimate. Takes `timeout_s` at most; what is not searched
        by then is left out.
        """
        ...

    async def sampled_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        """Return the sampled live queries that judge the recall of a collection now.

        None of a collection that has no shard here.
        """
        ...

    async def flush(self, collection_id: str, shard: int) -> None:
        """Seal and flush what grows, checkpoint the delete vectors, and trim the WAL."""
        ...

    async def publish_compaction(self, task: CompactionTask) -> None:
        """Swap the task's sources for its output, carrying over deletes that came meanwhile.

        Idempotent: publishing a task whose sources are gone and whose output is there succeeds.
        Raises `FailedPrecondition` when a source is gone and the output is not there: the task is
        stale and its output is garbage.
        """
        ...
