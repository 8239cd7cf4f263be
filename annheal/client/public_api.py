"""The public services as a client calls them: one attempt each, domain values in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import FailedPrecondition
from annheal.model.collection import (
    Collection,
    CollectionSettings,
    IndexSettings,
    ModelSpec,
    Schema,
)
from annheal.model.filter import Filter
from annheal.model.measures.part_health import ClusterHealth
from annheal.model.measures.recall_audit import BandAudit
from annheal.model.measures.recall_summary import ALL_SHARDS, RecallSummary
from annheal.model.measures.recall_worst import WorstReport
from annheal.model.records import Projection, RecordSet, Versions
from annheal.model.search import Consistency, SearchOptions
from annheal.model.session import SessionToken
from annheal.model.texts.spec import EmbedderTest, TextModel
from annheal.model.topology.cluster import (
    ClusterStatus,
    CollectionStatus,
    CompactionOrder,
    GarbageReport,
    NodeStatus,
    RecallOptions,
    RecallReport,
    ShardMove,
    ShardStatus,
    TaskStatus,
)
from annheal.model.topology.migration.transitions import Event
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import TaskPhase
from annheal.rpc import methods
from annheal.rpc.channel import Connection
from annheal.rpc.methods import Method, RequestT, ResponseT
from annheal.wire import admin as wire_admin
from annheal.wire import records as wire_records
from annheal.wire import search as wire_search
from annheal.wire.admin import decode_cluster_health
from annheal.wire.lifecycle import collections as wire_collections
from annheal.wire.lifecycle import migration as wire_migration
from annheal.wire.recall import decode_audits, decode_recall_summary, decode_worst
from annheal.wire.records import GivenVectors, Written


@dataclass(frozen=True, slots=True)
class ReadFreshness:
    """How fresh a read must be; no `consistency` lets the token decide."""

    consistency: Consistency | None = None
    session: SessionToken | None = None


class PublicApi:
    """The four public services of the server at `address`, over one connection.

    Every method is one call that may take `timeout_s`, and raises the errors of `annheal.errors`;
    a write whose answer was lost raises `UnknownOutcome`. Nothing is repeated here.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection = Connection(address)

    async def reach(self, *, timeout_s: float) -> None:
        """See `Connection.reach`."""
        await self._connection.reach(timeout_s=timeout_s)

    async def suspend(self) -> None:
        """See `Connection.suspend`."""
        await self._connection.suspend()

    async def close(self) -> None:
        """Close the connection; calls under way fail, and so do later ones."""
        await self._connection.close()

    async def _call(
        self, method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float
    ) -> ResponseT:
        if self._connection.closed:
            # Not `Unavailable`, which would be tried again until the deadline.
            raise FailedPrecondition("this client is closed", reason="CLIENT_CLOSED")
        return await self._connection.call(method, request, timeout_s=timeout_s)

    # ------------------------------------------------------------------------------- collections

    async def create_collection(
        self,
        name: str,
        *,
        models: Sequence[ModelSpec],
        text_models: Sequence[TextModel],
        schema: Schema,
        shard_count: int | None,
        index: IndexSettings | None,
        settings: CollectionSettings | None,
        timeout_s: float,
    ) -> Collection:
        """Create a collection."""
        request = wire_collections.encode_create_collection(
            name,
            models=models,
            text_models=text_models,
            schema=schema,
            shard_count=shard_count,
            index=index,
            settings=settings,
        )
        response = await self._call(methods.CREATE_COLLECTION, request, timeout_s=timeout_s)
        return wire_collections.decode_collection(response.collection)

    async def get_collection(
        self, name: str, *, with_status: bool, timeout_s: float
    ) -> tuple[Collection, CollectionStatus | None]:
        """Describe a collection."""
        request = methods.GET_COLLECTION.request(name=name, with_status=with_status)
        response = await self._call(methods.GET_COLLECTION, request, timeout_s=timeout_s)
        status = (
            wire_collections.decode_collection_status(response.status)
            if response.HasField("status")
            else None
        )
        return wire_collections.decode_collection(response.collection), status

    async def list_collections(
        self, *, page_token: str, timeout_s: float
    ) -> tuple[tuple[Collection, ...], str]:
        """Return one page of collections and the token of the next."""
        request = methods.LIST_COLLECTIONS.request(page_token=page_token)
        response = await self._call(methods.LIST_COLLECTIONS, request, timeout_s=timeout_s)
        found = tuple(wire_collections.decode_collection(c) for c in response.collections)
        return found, response.next_page_token

    async def update_collection(
        self,
        name: str,
        *,
        changes: dict[str, Any],
        if_revision: int | None,
        model: str,
        timeout_s: float,
    ) -> Collection:
        """Change settings by path (`settings.recall_objective`), or the embedder of a model."""
        request = wire_collections.encode_update_collection(
            name, changes=changes, if_revision=if_revision, model=model
        )
        response = await self._call(methods.UPDATE_COLLECTION, request, timeout_s=timeout_s)
        return wire_collections.decode_collection(response.collection)

    async def add_model(
        self,
        collection: str,
        *,
        model: ModelSpec,
        text_model: TextModel | None,
        timeout_s: float,
    ) -> Collection:
        """Add a model to a collection."""
        request = wire_collections.encode_add_model(collection, model=model, text_model=text_model)
        response = await self._call(methods.ADD_MODEL, request, timeout_s=timeout_s)
        return wire_collections.decode_collection(response.collection)

    async def remove_model(self, collection: str, *, model: str, timeout_s: float) -> Collection:
        """Remove a model from a collection."""
        request = methods.REMOVE_MODEL.request(collection=collection, model=model)
        response = await self._call(methods.REMOVE_MODEL, request, timeout_s=timeout_s)
        return wire_collections.decode_collection(response.collection)

    async def drop_collection(self, name: str, *, timeout_s: float) -> None:
        """Drop a collection."""
        request = methods.DROP_COLLECTION.request(name=name)
        await self._call(methods.DROP_COLLECTION, request, timeout_s=timeout_s)

    # ----------------------------------------------------------------------------------- records

    async def upsert(
        self,
        collection: str,
        *,
        ids: Sequence[str],
        vectors: Sequence[GivenVectors],
        texts: Sequence[str] | None,
        attributes: Mapping[str, Any],
        payloads: pa.BinaryArray | None,
        if_versions: Versions | None = None,
        timeout_s: float,
    ) -> Written:
        """Write records; see `annheal.wire.records.encode_upsert`."""
        request = wire_records.encode_upsert(
            collection,
            ids=ids,
            further=vectors,
            texts=texts,
            attributes=attributes,
            payloads=payloads,
        )
        if if_versions is not None:
            conditional = wire_records.encode_upsert_if(request, if_versions=if_versions)
            answer = await self._call(methods.UPSERT_IF, conditional, timeout_s=timeout_s)
            return wire_records.decode_write_response(answer)
        response = await self._call(methods.UPSERT, request, timeout_s=timeout_s)
        return wire_records.decode_write_response(response)

    async def update(
        self,
        collection: str,
        *,
        ids: Sequence[str],
        vectors: Sequence[GivenVectors],
        attributes: Mapping[str, Any],
        payloads: pa.BinaryArray | None,
        if_versions: Versions | None,
        timeout_s: float,
    ) -> Written:
        """Replace parts of records; see `annheal.wire.records.encode_update`."""
        request = wire_records.encode_update(
            collection,
            ids=ids,
            further=vectors,
            attributes=attributes,
            payloads=payloads,
            if_versions=if_versions,
        )
        response = await self._call(methods.UPDATE, request, timeout_s=timeout_s)
        return wire_records.decode_write_response(response)

    async def delete_ids(
        self,
        collection: str,
        *,
        ids: Sequence[str],
        if_versions: Versions | None = None,
        timeout_s: float,
    ) -> Written:
        """Delete by id."""
        if if_versions is not None:
            conditional = wire_records.encode_delete_if(
                collection, ids=ids, if_versions=if_versions
            )
            answer = await self._call(methods.DELETE_IF, conditional, timeout_s=timeout_s)
            return wire_records.decode_write_response(answer)
        request = wire_records.encode_delete_ids(collection, ids=ids)
        response = await self._call(methods.DELETE_BY_IDS, request, timeout_s=timeout_s)
        return wire_records.decode_write_response(response)

    async def delete_where(self, collection: str, *, filter: Filter, timeout_s: float) -> Written:
        """Delete what matches."""
        request = wire_records.encode_delete_where(collection, filter=filter)
        response = await self._call(methods.DELETE_BY_FILTER, request, timeout_s=timeout_s)
        return wire_records.decode_write_response(response)

    async def get(
        self,
        collection: str,
        *,
        ids: Sequence[str],
        projection: Projection,
        freshness: ReadFreshness,
        timeout_s: float,
    ) -> tuple[RecordSet, SessionToken | None]:
        """Read by id."""
        request = wire_records.encode_get(
            collection,
            ids=ids,
            projection=projection,
            consistency=freshness.consistency,
            session=freshness.session,
        )
        response = await self._call(methods.GET, request, timeout_s=timeout_s)
        return wire_records.decode_get_response(response, projection=projection)

    async def count(
        self, collection: str, *, filter: Filter | None, freshness: ReadFreshness, timeout_s: float
    ) -> int:
        """Count what matches."""
        request = wire_records.encode_count(
            collection,
            filter=filter,
            consistency=freshness.consistency,
            session=freshness.session,
        )
        response = await self._call(methods.COUNT, request, timeout_s=timeout_s)
        return response.count

    async def scan(
        self,
        collection: str,
        *,
        filter: Filter | None,
        projection: Projection,
        page_size: int,
        cursor: str,
        timeout_s: float,
    ) -> tuple[RecordSet, str]:
        """Return one page and the cursor of the next."""
        request = wire_records.encode_scan(
            collection, filter=filter, projection=projection, page_size=page_size, cursor=cursor
        )
        response = await self._call(methods.SCAN, request, timeout_s=timeout_s)
        return wire_records.decode_scan_response(response, projection=projection)

    # ------------------------------------------------------------------------------------ search

    async def search(
        self,
        collection: str,
        options: SearchOptions,
        *,
        queries: npt.NDArray[np.floating[Any]] | None,
        query_ids: Sequence[str],
        texts: Sequence[str],
        freshness: ReadFreshness,
        allow_partial: bool,
        timeout_s: float,
    ) -> wire_search.SearchResult:
        """Search by vectors (n, d), or by texts or ids when `queries` is None."""
        request = wire_search.encode_search(
            collection,
            k=options.k,
            queries=queries,
            query_ids=query_ids,
            texts=texts,
            model=options.model,
            filter=options.filter,
            projection=options.projection,
            consistency=freshness.consistency,
            session=freshness.session,
            exact=options.exact,
            ef=options.ef,
            recall_objective=options.recall_objective,
            allow_partial=allow_partial,
            explain=options.explain,
            tag=options.tag,
        )
        response = await self._call(methods.SEARCH, request, timeout_s=timeout_s)
        return wire_search.decode_search_response(response, projection=options.projection)

    # ------------------------------------------------------------------------------------- admin

    async def status(self, *, timeout_s: float) -> ClusterStatus:
        """Summarise the cluster."""
        request = methods.GET_CLUSTER_STATUS.request()
        response = await self._call(methods.GET_CLUSTER_STATUS, request, timeout_s=timeout_s)
        return wire_admin.decode_cluster_status(response)

    async def nodes(self, *, timeout_s: float) -> tuple[NodeStatus, ...]:
        """List shard nodes."""
        request = methods.LIST_NODES.request()
        response = await self._call(methods.LIST_NODES, request, timeout_s=timeout_s)
        return tuple(wire_admin.decode_node(node) for node in response.nodes)

    async def shards(self, collection: str, *, timeout_s: float) -> tuple[ShardStatus, ...]:
        """List shards of one collection, or of all."""
        request = methods.LIST_SHARDS.request(collection=collection)
        response = await self._call(methods.LIST_SHARDS, request, timeout_s=timeout_s)
        return tuple(wire_admin.decode_shard(shard) for shard in response.shards)

    async def segments(
        self, collection: str, *, shard: int | None, timeout_s: float
    ) -> tuple[tuple[SegmentState, ...], tuple[int, ...]]:
        """Return segments, and the shards that could not be asked."""
        request = methods.LIST_SEGMENTS.request(collection=collection, shard=shard)
        response = await self._call(methods.LIST_SEGMENTS, request, timeout_s=timeout_s)
        segments = tuple(wire_admin.decode_segment(segment) for segment in response.segments)
        return segments, tuple(response.missing_shards)

    async def flush(self, collection: str, *, timeout_s: float) -> None:
        """Flush what is in memory."""
        request = methods.FLUSH.request(collection=collection)
        await self._call(methods.FLUSH, request, timeout_s=timeout_s)

    async def compact(
        self, collection: str, order: CompactionOrder, *, timeout_s: float
    ) -> tuple[tuple[str, ...], tuple[TaskStatus, ...]]:
        """Plan compactions; returns the ids of their tasks, and what a dry run would plan."""
        request = wire_admin.encode_compact(collection, order=order)
        response = await self._call(methods.COMPACT, request, timeout_s=timeout_s)
        planned = tuple(wire_admin.decode_task(task) for task in response.planned)
        return tuple(response.task_ids), planned

    async def list_tasks(
        self, *, collection: str, phase: TaskPhase | None, page_token: str, timeout_s: float
    ) -> tuple[tuple[TaskStatus, ...], str]:
        """Return one page of tasks and the token of the next."""
        request = wire_admin.encode_list_tasks(
            collection=collection, phase=phase, page_token=page_token
        )
        response = await self._call(methods.LIST_TASKS, request, timeout_s=timeout_s)
        tasks = tuple(wire_admin.decode_task(task) for task in response.tasks)
        return tasks, response.next_page_token

    async def get_task(self, task_id: str, *, timeout_s: float) -> TaskStatus:
        """Describe one task."""
        request = methods.GET_TASK.request(task_id=task_id)
        response = await self._call(methods.GET_TASK, request, timeout_s=timeout_s)
        return wire_admin.decode_task(response.task)

    async def cancel_task(self, task_id: str, *, timeout_s: float) -> TaskStatus:
        """Cancel a task."""
        request = methods.CANCEL_TASK.request(task_id=task_id)
        response = await self._call(methods.CANCEL_TASK, request, timeout_s=timeout_s)
        return wire_admin.decode_task(response.task)

    async def retry_task(self, task_id: str, *, timeout_s: float) -> TaskStatus:
        """Release a task that was given up."""
        request = methods.RETRY_TASK.request(task_id=task_id)
        response = await self._call(methods.RETRY_TASK, request, timeout_s=timeout_s)
        return wire_admin.decode_task(response.task)

    async def measure_recall(
        self, collection: str, options: RecallOptions, *, timeout_s: float
    ) -> RecallReport:
        """Measure recall."""
        request = wire_admin.encode_measure_recall(collection, options=options)
        response = await self._call(methods.MEASURE_RECALL, request, timeout_s=timeout_s)
        return wire_admin.decode_recall_report(response)

    async def health(self, *, timeout_s: float) -> ClusterHealth:
        """Probe what the processes depend on."""
        request = methods.CHECK_HEALTH.request()
        return decode_cluster_health(
            await self._call(methods.CHECK_HEALTH, request, timeout_s=timeout_s)
        )

    async def recall(self, collection: str, *, timeout_s: float) -> RecallSummary:
        """Return what the nodes measured on live queries."""
        request = methods.GET_RECALL.request(collection=collection)
        response = await self._call(methods.GET_RECALL, request, timeout_s=timeout_s)
        return decode_recall_summary(response)

    async def audit_recall(
        self, collection: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Compare the estimates of one shard with other live queries."""
        request = methods.AUDIT_RECALL.request(
            collection=collection, shard=shard, queries_max=queries_max
        )
        response = await self._call(methods.AUDIT_RECALL, request, timeout_s=timeout_s)
        return decode_audits(response.audits)

    async def test_embedder(
        self, collection: str, text: str, *, as_query: bool, model: str, timeout_s: float
    ) -> EmbedderTest:
        """Embed one text."""
        request = methods.TEST_EMBEDDER.request(
            collection=collection, text=text, query=as_query, model=model
        )
        response = await self._call(methods.TEST_EMBEDDER, request, timeout_s=timeout_s)
        return wire_admin.decode_embedder_test(response)

    async def audit_merged(
        self, collection: str, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Compare the estimates of answers over all shards with other live queries."""
        request = methods.AUDIT_RECALL.request(
            collection=collection, queries_max=queries_max, merged=True
        )
        response = await self._call(methods.AUDIT_RECALL, request, timeout_s=timeout_s)
        return tuple(replace(one, shard=ALL_SHARDS) for one in decode_audits(response.audits))

    async def worst_queries(
        self, collection: str, *, queries_max: int, timeout_s: float
    ) -> WorstReport:
        """List the live queries that find least."""
        request = methods.LIST_WORST_QUERIES.request(collection=collection, queries_max=queries_max)
        response = await self._call(methods.LIST_WORST_QUERIES, request, timeout_s=timeout_s)
        return decode_worst(response, collection=collection)

    async def rebalance(self, *, dry_run: bool, timeout_s: float) -> tuple[ShardMove, ...]:
        """Even out the shards."""
        request = methods.REBALANCE.request(dry_run=dry_run)
        response = await self._call(methods.REBALANCE, request, timeout_s=timeout_s)
        return wire_admin.decode_moves(response.moves)

    async def collect_garbage(self, *, dry_run: bool, timeout_s: float) -> GarbageReport:
        """Collect garbage."""
        request = methods.COLLECT_GARBAGE.request(dry_run=dry_run)
        response = await self._call(methods.COLLECT_GARBAGE, request, timeout_s=timeout_s)
        return wire_admin.decode_garbage(response)

    async def drain(self, node_id: str, *, timeout_s: float) -> tuple[ShardMove, ...]:
        """Drain a node."""
        request = methods.DRAIN_NODE.request(node_id=node_id)
        response = await self._call(methods.DRAIN_NODE, request, timeout_s=timeout_s)
        return wire_admin.decode_moves(response.moves)

    async def undrain(self, node_id: str, *, timeout_s: float) -> None:
        """Let a node have shards again."""
        request = methods.UNDRAIN_NODE.request(node_id=node_id)
        await self._call(methods.UNDRAIN_NODE, request, timeout_s=timeout_s)

    async def move_shard(
        self, collection: str, *, shard: int, node_id: str, timeout_s: float
    ) -> ShardMove:
        """Move one shard."""
        request = methods.MOVE_SHARD.request(collection=collection, shard=shard, node_id=node_id)
        response = await self._call(methods.MOVE_SHARD, request, timeout_s=timeout_s)
        return wire_admin.decode_moves([response.move])[0]

    # --------------------------------------------------------------------------------- migrations

    async def plan_migration(
        self, collection: str, to_model: str, *, sample_size: int, timeout_s: float
    ) -> MigrationEstimate:
        """Estimate a migration."""
        request = methods.PLAN_MIGRATION.request(
            collection=collection, to_model=to_model, sample_size=sample_size
        )
        response = await self._call(methods.PLAN_MIGRATION, request, timeout_s=timeout_s)
        return wire_migration.decode_estimate(response)

    async def get_migration(self, collection: str, *, timeout_s: float) -> MigrationStatus:
        """Describe a migration."""
        request = methods.GET_MIGRATION.request(collection=collection)
        response = await self._call(methods.GET_MIGRATION, request, timeout_s=timeout_s)
        return wire_migration.decode_migration(response.migration)

    async def list_migrations(
        self, *, page_token: str, timeout_s: float
    ) -> tuple[tuple[MigrationStatus, ...], str]:
        """Return one page of migrations and the token of the next."""
        request = methods.LIST_MIGRATIONS.request(page_token=page_token)
        response = await self._call(methods.LIST_MIGRATIONS, request, timeout_s=timeout_s)
        found = tuple(wire_migration.decode_migration(one) for one in response.migrations)
        return found, response.next_page_token

    async def change_migration(
        self, event: Event, request: Mapping[str, Any], *, timeout_s: float
    ) -> MigrationStatus:
        """Take one step; `request` has the fields of its message."""
        method = _MIGRATION_STEPS[event]
        response = await self._call(method, method.request(**request), timeout_s=timeout_s)
        return wire_migration.decode_migration(response.migration)


_MIGRATION_STEPS: Final[Mapping[Event, Method[Any, Any]]] = {
    Event.START: methods.START_MIGRATION,
    Event.UPDATE: methods.UPDATE_MIGRATION,
    Event.PAUSE: methods.PAUSE_MIGRATION,
    Event.RESUME: methods.RESUME_MIGRATION,
    Event.VALIDATE: methods.VALIDATE_MIGRATION,
    Event.COMMIT: methods.COMMIT_MIGRATION,
    Event.ROLLBACK: methods.ROLLBACK_MIGRATION,
    Event.ABORT: methods.ABORT_MIGRATION,
    Event.PURGE: methods.PURGE_MIGRATION,
}
