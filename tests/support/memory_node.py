"""A shard node in memory behind the port `ShardNode`, and an agent that takes shards over.

It keeps what a coordinator can observe of a node: ownership is checked on every call, rows replace
each other by id, searches are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from annheal.errors import AnnhealError, Conflict, Fenced
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.lease_keeper import LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import Compare, MetaStore, Put
from annheal.model.measures.recall import CollectionRecall
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, SearchRequest
from annheal.model.topology.shard import Assignment, NodeRegistration, ShardId
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask
from annheal.model.write import (
    CountRequest,
    DeleteIds,
    GetRequest,
    ScanPage,
    ScanRequest,
    Upsert,
    WriteAnswer,
    WriteRequest,
)
from annheal.runtime.tasks import TaskScope
from annheal.shards.routing import hash_id

Row = npt.NDArray[np.float32]


@dataclass(slots=True)
class MemoryShard:
    """Rows by id; every write is one sequence number."""

    rows: dict[str, Row] = field(default_factory=dict)
    sequence: int = 0
    epoch: int = 1


@dataclass(slots=True)
class MemoryNode:
    """One node. `failures` are raised by the next calls, in order (None: none).

    `gate` holds searches up until it is set; `states` changes what the node reports of its shards,
    `silent` is raised instead. `recalls` is what it measured.
    """

    node_id: str
    shards: dict[ShardId, MemoryShard] = field(default_factory=dict)
    failures: list[AnnhealError | None] = field(default_factory=list)
    searches: list[SearchRequest] = field(default_factory=list)
    writes: list[WriteRequest] = field(default_factory=list)
    published: list[CompactionTask] = field(default_factory=list)
    flushed: list[ShardId] = field(default_factory=list)
    gate: asyncio.Event | None = None
    silent: AnnhealError | None = None
    recalls: list[CollectionRecall] = field(default_factory=list)
    states: Callable[[ShardState], ShardState] = lambda state: state

    def _shard(self, collection_id: str, number: int) -> MemoryShard:
        shard = self.shards.get(ShardId(collection_id, number))
        if shard is None:
            raise Fenced(f"{self.node_id} does not own {collection_id}/{number}")
        return shard

    def _fail(self) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    async def search(self, request: SearchRequest) -> SearchAnswer:
        self.searches.append(request)
        if self.gate is not None:
            await self.gate.wait()
        self._fail()
        found: list[tuple[str, Row]] = []
        sequences: dict[int, int] = {}
        for number in request.shards:
            shard = self._shard(request.collection_id, number)
            sequences[number] = shard.sequence
            found.extend(shard.rows.items())
        counts, scores, ids = [], [], []
        for query in request.queries:
            ranked = sorted(((float(query @ row), record) for record, row in found), reverse=True)
            best = ranked[: request.options.k]
            counts.append(len(best))
            scores.extend(score for score, _ in best)
            ids.extend(record for _, record in best)
        return SearchAnswer(
            counts=np.array(counts, dtype=np.int32),
            scores=np.array(scores, dtype=np.float32),
            records=RecordSet(ids=ids),
            sequences=sequences,
        )

    async def write(self, request: WriteRequest) -> WriteAnswer:
        self.writes.append(request)
        self._fail()
        shard = self._shard(request.collection_id, request.shard)
        shard.sequence += 1
        operation = request.operation
        if isinstance(operation, Upsert):
            for record, vector in zip(
                operation.batch.ids.to_pylist(), operation.batch.vectors, strict=True
            ):
                shard.rows[str(record)] = vector
            return WriteAnswer(sequence=shard.sequence, upserted=len(operation.batch))
        if isinstance(operation, DeleteIds):
            gone = [one for one in operation.ids if shard.rows.pop(one, None) is not None]
            return WriteAnswer(sequence=shard.sequence, deleted=len(gone))
        count = len(shard.rows)
        shard.rows.clear()
        return WriteAnswer(sequence=shard.sequence, deleted=count)

    async def get(self, request: GetRequest) -> RecordSet:
        self._fail()
        shard = self._shard(request.collection_id, request.shard)
        ids = [one for one in request.ids if one in shard.rows]
        return _records(ids, shard, vector=request.projection.vector)

    async def count(self, request: CountRequest) -> int:
        self._fail()
        return len(self._shard(request.collection_id, request.shard).rows)

    async def scan(self, request: ScanRequest) -> ScanPage:
        self._fail()
        shard = self._shard(request.collection_id, request.shard)
        order = sorted((hash_id(one), one) for one in shard.rows)
        rest = [one for one in order if one > (request.after_hash, request.after_id)]
        page = rest[: request.rows_max]
        last = page[-1] if page else (request.after_hash, request.after_id)
        return ScanPage(
            records=_records([one for _, one in page], shard, vector=request.projection.vector),
            last_hash=last[0],
            last_id=last[1],
            finished=len(rest) <= request.rows_max,
        )

    async def shard_states(self, collection_id: str = "") -> tuple[ShardState, ...]:
        if self.silent is not None:
            raise self.silent
        return tuple(
            self.states(
                ShardState(
                    collection_id=shard.collection_id,
                    shard=shard.number,
                    node_id=self.node_id,
                    phase="serving",
                    epoch=held.epoch,
                    live_rows=len(held.rows),
                    dead_rows=0,
                    unindexed_rows=0,
                    applied_sequence=held.sequence,
                    wal_slots=0,
                    memory_bytes=0,
                )
            )
            for shard, held in self.shards.items()
            if collection_id in ("", shard.collection_id)
        )

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        if self.silent is not None:
            raise self.silent
        return tuple(one for one in self.recalls if collection_id in ("", one.collection_id))

    async def flush(self, collection_id: str, shard: int) -> None:
        self._fail()
        self._shard(collection_id, shard)
        self.flushed.append(ShardId(collection_id, shard))

    async def publish_compaction(self, task: CompactionTask) -> None:
        self._fail()
        self._shard(task.collection_id, task.shard)
        self.published.append(task)


def _records(ids: list[str], shard: MemoryShard, *, vector: bool) -> RecordSet:
    if not vector:
        return RecordSet(ids=ids)
    rows = [shard.rows[one] for one in ids]
    empty = np.zeros((0, 0), dtype=np.float32)
    return RecordSet(ids=ids, vectors=np.stack(rows) if rows else empty)


class NodeAgent:
    """Registers a `MemoryNode` under a lease and takes over the shards that are targeted at it.

    Rows survive in `durable`, which all agents of a test share, as they would in an object store.
    """

    def __init__(
        self,
        node: MemoryNode,
        store: MetaStore,
        *,
        durable: dict[ShardId, MemoryShard],
        zone: str = "",
        ttl_s: float = 60.0,
    ) -> None:
        self.node = node
        self._store = store
        self._durable = durable
        self._ttl_s = ttl_s
        self._registration = NodeRegistration(
            node_id=node.node_id, address=f"{node.node_id}:1", zone=zone
        )
        self._mirror = Mirror(store, keys.SHARDS_PREFIX)
        self._scope = TaskScope(node.node_id)
        self._keeper = LeaseKeeper(store, ttl_s=ttl_s)

    async def start(self) -> None:
        await self._keeper.__aenter__()
        await self._store.commit(
            [
                Put(
                    keys.node_key(self.node.node_id),
                    encode_value(self._registration),
                    lease_id=self._keeper.lease.id,
                )
            ]
        )
        await self._mirror.start()
        self._scope.start(self._mirror.run(), name="mirror")
        self._scope.start(self._take_over(), name="take-over")

    async def stop(self) -> None:
        """Go away; the lease is revoked, so others notice at once."""
        await self._scope.stop()
        self.node.shards.clear()
        await self._keeper.__aexit__(None, None, None)

    async def _take_over(self) -> None:
        while True:
            version = self._mirror.version
            owned: set[ShardId] = set()
            for key, item in list(self._mirror.items.items()):
                assignment = decode_value(item.value, Assignment, key=key)
                if assignment.owner == self.node.node_id:
                    owned.add(assignment.id)
                if assignment.target == self.node.node_id:
                    taken = replace(
                        assignment,
                        owner=self.node.node_id,
                        target="",
                        epoch=assignment.epoch + 1,
                    )
                    shard = self._durable.setdefault(assignment.id, MemoryShard())
                    shard.epoch = taken.epoch
                    try:
                        await self._store.commit(
                            [Put(key, encode_value(taken))],
                            compares=[Compare(key, item.mod_revision)],
                        )
                    except Conflict:
                        if assignment.id in self.node.shards:
                            owned.add(assignment.id)  # the mirror has not seen our own commit yet
                        continue
                    self.node.shards[assignment.id] = shard
                    owned.add(assignment.id)
            for shard_id in set(self.node.shards) - owned:
                del self.node.shards[shard_id]
            await self._mirror.wait_change(version)
