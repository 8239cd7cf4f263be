"""A shard node in memory behind the port `ShardNode`, and an agent that takes shards over.

It keeps the contract of the port (`tests/contract/shard_node_contract.py`): ownership is checked on
every call, rows replace each other by id, filters hold. Searches are exact, by inner product.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import AnnhealError, Conflict, Fenced, InvalidArgument
from annheal.filters import evaluate
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.lease_keeper import LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import Compare, MetaStore, Put
from annheal.model.filter import Filter
from annheal.model.measures.part_health import PartHealth
from annheal.model.measures.recall import CollectionRecall
from annheal.model.measures.recall_audit import BandAudit
from annheal.model.measures.recall_worst import LiveQuery
from annheal.model.records import (
    ModelVectors,
    Projection,
    RecordBatch,
    RecordSet,
    take_records,
)
from annheal.model.search import SearchAnswer, SearchRequest
from annheal.model.topology.checks import checked_shards
from annheal.model.topology.shard import Assignment, NodeRegistration, ShardId
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask
from annheal.model.write import (
    ANY_VERSION,
    NO_RECORD,
    CountRequest,
    DeleteIds,
    DeleteWhere,
    GetRequest,
    ScanPage,
    ScanRequest,
    Update,
    Upsert,
    VersionConflict,
    WriteAnswer,
    WriteRequest,
)
from annheal.runtime.tasks import TaskScope
from annheal.shard_node.owner.resolving import ids_of
from annheal.shards.routing import hash_id

Vector = npt.NDArray[np.float32]
FIRST_MODEL = "m"
"""What tests call the first model of a collection (`tests.support.memory_cluster.spec`)."""


@dataclass(slots=True)
class MemoryShard:
    """Records by id, each a set of one row; every write is one sequence number."""

    rows: dict[str, RecordSet] = field(default_factory=dict)
    sequence: int = 0
    epoch: int = 1

    @classmethod
    def of_vectors(cls, vectors: Mapping[str, Vector]) -> MemoryShard:
        """Return a shard of records that have nothing but vectors."""
        return cls({one: RecordSet([one], vectors=row[None]) for one, row in vectors.items()})

    def put(self, batch: RecordBatch) -> None:
        """Insert or replace the records of `batch`."""
        version = np.array([self.sequence], dtype=np.int64)
        for number, record_id in enumerate(batch.id_list()):
            row = batch.take(np.array([number]))
            self.rows[record_id] = RecordSet(
                [record_id],
                row.attributes,
                row.payloads,
                row.vectors,
                version,
                row.model,
                row.further,
            )

    def write_row(self, operation: Upsert | Update | DeleteIds, row: int, record_id: str) -> bool:
        """Apply one row of a write; return whether it counts."""
        if isinstance(operation, DeleteIds):
            return self.rows.pop(record_id, None) is not None
        if isinstance(operation, Upsert):
            self.put(operation.batch.take(np.array([row])))
        else:
            self.put(operation.patch.take(np.array([row])).applied_to(self.rows[record_id]))
        return True

    def version(self, record_id: str) -> int:
        """Return the version of a record."""
        versions = self.rows[record_id].versions if record_id in self.rows else None
        return NO_RECORD if versions is None else int(versions[0])

    def matching(self, filter: Filter | None) -> list[str]:
        """Return the ids of the records that `filter` matches (all when None)."""
        ids = list(self.rows)
        if filter is None or not ids:
            return ids
        attributes = take_records(list(self.rows.values()), np.arange(len(ids))).attributes
        columns = pa.RecordBatch.from_arrays([], names=[]) if attributes is None else attributes
        return [ids[row] for row in np.flatnonzero(evaluate(filter, columns, row_count=len(ids)))]

    def records(self, ids: Sequence[str], projection: Projection) -> RecordSet:
        """Return the records with these ids, as much of each as `projection` asks for."""
        return _projected([self.rows[one] for one in ids], np.arange(len(ids)), projection)


def vector_of(record: RecordSet, model: str) -> Vector | None:
    """Return the vector of `model`, empty for the first one; None: the record has none.

    The node does not know the collection, so the first model is the one without a name: tests call
    it `m`.
    """
    wanted = "" if model == FIRST_MODEL else model
    own = () if record.vectors is None else (ModelVectors(record.model, record.vectors),)
    vectors = next((one.vectors for one in (*own, *record.further) if one.model == wanted), None)
    return None if vectors is None or np.isnan(vectors[0, 0]) else vectors[0]


def _projected(
    records: Sequence[RecordSet], rows: npt.NDArray[np.int64], projection: Projection
) -> RecordSet:
    models = projection.models or ("",)
    matrices = [ModelVectors(name, _matrix(records, name)[rows]) for name in models]
    bare = [replace(one, vectors=None, model="", further=()) for one in records]
    found = take_records(bare, rows)
    if projection.vector:
        own, *further = matrices
        found = replace(found, vectors=own.vectors, model=own.model, further=tuple(further))
    return _without(found, projection)


def _matrix(records: Sequence[RecordSet], model: str) -> Vector:
    """Return the vectors of `model`, NaN for records without."""
    vectors = [vector_of(one, model) for one in records]
    dimension = next((len(one) for one in vectors if one is not None), 1)
    nothing = np.full(dimension, np.nan, dtype=np.float32)
    rows = [nothing if one is None else one for one in vectors]
    return np.array(rows, dtype=np.float32).reshape(len(rows), dimension)


def _without(found: RecordSet, projection: Projection) -> RecordSet:
    attributes, wanted = found.attributes, projection.attributes
    if wanted == ():
        attributes = None
    elif wanted is not None and attributes is not None:
        attributes = attributes.select(list(wanted))
    return replace(
        found,
        attributes=attributes,
        payloads=found.payloads if projection.payload else None,
        versions=found.versions if projection.version else None,
    )


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
        if request.options.k < 1:
            raise InvalidArgument.of("k", "must be at least 1")
        options, sequences = request.options, {}
        found: list[RecordSet] = []
        for number in checked_shards(request.shards):
            shard = self._read(request.collection_id, number, request.min_sequences.get(number, 0))
            sequences[number] = shard.sequence
            found += [shard.rows[one] for one in shard.matching(options.filter)]
        counts, scores, rows = [], [], []
        for query in request.queries:
            scored = [
                (-float(query @ vector), one.ids[0], row)
                for row, one in enumerate(found)
                if (vector := vector_of(one, options.model)) is not None
            ]
            best = sorted(scored)[: options.k]
            counts.append(len(best))
            scores += [-score for score, _, _ in best]
            rows += [row for _, _, row in best]
        return SearchAnswer(
            counts=np.array(counts, dtype=np.int32),
            scores=np.array(scores, dtype=np.float32),
            records=_projected(found, np.array(rows, dtype=np.int64), options.projection),
            sequences=sequences,
        )

    def _read(self, collection_id: str, number: int, min_sequence: int) -> MemoryShard:
        shard = self._shard(collection_id, number)
        if shard.sequence < min_sequence:
            raise Fenced(f"{self.node_id} has not applied sequence {min_sequence}")
        return shard

    async def write(self, request: WriteRequest) -> WriteAnswer:
        self.writes.append(request)
        self._fail()
        shard = self._shard(request.collection_id, request.shard)
        shard.sequence += 1
        operation = request.operation
        if isinstance(operation, DeleteWhere):
            gone = shard.matching(operation.filter)
            for record_id in gone:
                del shard.rows[record_id]
            return WriteAnswer(sequence=shard.sequence, deleted=len(gone))
        conflicts, missing, count = [], [], 0
        ids, wanted = ids_of(operation), operation.if_versions
        for row, record_id in enumerate(ids):
            version = shard.version(record_id)
            if wanted is not None and wanted[row] not in (ANY_VERSION, version):
                conflicts.append(VersionConflict(record_id, version))
            elif isinstance(operation, Update) and version == NO_RECORD:
                missing.append(record_id)
            else:
                count += shard.write_row(operation, row, record_id)
        outcome = WriteAnswer(
            sequence=shard.sequence, missing=tuple(missing), conflicts=tuple(conflicts)
        )
        if isinstance(operation, DeleteIds):
            return replace(outcome, deleted=count)
        return replace(outcome, upserted=count)

    async def get(self, request: GetRequest) -> RecordSet:
        self._fail()
        shard = self._read(request.collection_id, request.shard, request.min_sequence)
        ids = [one for one in dict.fromkeys(request.ids) if one in shard.rows]
        return shard.records(ids, request.projection)

    async def count(self, request: CountRequest) -> int:
        self._fail()
        shard = self._read(request.collection_id, request.shard, request.min_sequence)
        return len(shard.matching(request.filter))

    async def scan(self, request: ScanRequest) -> ScanPage:
        self._fail()
        shard = self._shard(request.collection_id, request.shard)
        order = sorted((hash_id(one), one) for one in shard.matching(request.filter))
        rest = [one for one in order if one > (request.after_hash, request.after_id)]
        page = rest[: request.rows_max]
        last = page[-1] if page else (-1, "")
        return ScanPage(
            records=shard.records([one for _, one in page], request.projection),
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

    async def health(self) -> tuple[PartHealth, ...]:
        return ()

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        if self.silent is not None:
            raise self.silent
        return tuple(one for one in self.recalls if collection_id in ("", one.collection_id))

    async def audit_recall(
        self, collection_id: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        self._fail()
        self._shard(collection_id, shard)
        return ()

    async def sampled_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        return ()

    async def flush(self, collection_id: str, shard: int) -> None:
        self._fail()
        self._shard(collection_id, shard)
        self.flushed.append(ShardId(collection_id, shard))

    async def publish_compaction(self, task: CompactionTask) -> None:
        self._fail()
        self._shard(task.collection_id, task.shard)
        self.published.append(task)


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
