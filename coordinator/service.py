"""The public services: they translate between messages and the coordinator, nothing else.

Search is the hot path: the options of a request (k, filter, projection and so on) are decoded and
checked once and looked up by their bytes afterwards, vectors are views into the request's bytes,
and equal options are one object, so that the batcher's keys are cheap to compare.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TypeAlias

from annheal.coordinator.app import Coordinator
from annheal.coordinator.data_path.router import check_sequences
from annheal.filters import validate_filter
from annheal.model.collection import Collection
from annheal.model.measures.recall_audit import AUDIT_QUERIES_DEFAULT
from annheal.model.measures.recall_worst import WORST_DEFAULT, checked_worst
from annheal.model.search import Consistency, SearchOptions
from annheal.model.session import SessionToken
from annheal.model.topology.task import TaskPhase
from annheal.model.validation import (
    validate_projection,
    validate_search,
    validate_search_options,
    validate_timeout,
    validate_vectors,
)
from annheal.rpc.methods import (
    ADMIN_SERVICE,
    COLLECTION_SERVICE,
    RECORD_SERVICE,
    SEARCH_SERVICE,
)
from annheal.rpc.server import Context, deadline_of
from annheal.runtime.metrics import Metrics
from annheal.v1 import admin_pb2, collections_pb2, records_pb2, search_pb2
from annheal.wire import admin as wire_admin
from annheal.wire import collections as wire_collections
from annheal.wire import records as wire_records
from annheal.wire import search as wire_search
from annheal.wire.admin import encode_cluster_health
from annheal.wire.columns import decode_vectors
from annheal.wire.recall import encode_audits, encode_recall_summary, encode_worst
from annheal.wire.session import decode_freshness, encode_session

OPTIONS_CACHED_MAX = 1_024
PAGE_ROWS_MAX = 1_000
"""Collections or tasks of one page."""

OptionsKey: TypeAlias = tuple[object, ...]


def services(coordinator: Coordinator, *, metrics: Metrics | None = None) -> dict[str, object]:
    """Return the servicers by full service name, for `annheal.rpc.server.RpcServer`.

    Searches and writes are counted in `metrics`, if there are any.
    """
    counted = metrics or Metrics()
    return {
        COLLECTION_SERVICE: CollectionServicer(coordinator),
        RECORD_SERVICE: RecordServicer(coordinator, counted),
        SEARCH_SERVICE: SearchServicer(coordinator, counted),
        ADMIN_SERVICE: AdminServicer(coordinator),
    }


class CollectionServicer:
    """`annheal.v1.CollectionService`."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def CreateCollection(
        self, request: collections_pb2.CreateCollectionRequest, context: Context
    ) -> collections_pb2.CreateCollectionResponse:
        """Create a collection; returns once its shards are served."""
        spec = wire_collections.decode_create_collection(
            request, collection_id="", created_at_s=0.0
        )
        timeout_s = self._coordinator.settings.create_timeout_s
        created = await self._coordinator.collections.create(
            spec, deadline=deadline_of(context, timeout_s=timeout_s)
        )
        return collections_pb2.CreateCollectionResponse(
            collection=wire_collections.encode_collection(created)
        )

    async def GetCollection(
        self, request: collections_pb2.GetCollectionRequest, context: Context
    ) -> collections_pb2.GetCollectionResponse:
        """Describe one collection."""
        found = await self._coordinator.collections.get(request.name)
        response = collections_pb2.GetCollectionResponse(
            collection=wire_collections.encode_collection(found)
        )
        if request.with_status:
            status = await self._coordinator.admin.collection_status(found)
            response.status.CopyFrom(wire_collections.encode_collection_status(status))
        return response

    async def ListCollections(
        self, request: collections_pb2.ListCollectionsRequest, context: Context
    ) -> collections_pb2.ListCollectionsResponse:
        """List collections by name; the token of a page is its last name."""
        rows_max = _page_rows(request.page_size)
        rest = [one for one in self._coordinator.collections.all() if one.name > request.page_token]
        page = rest[:rows_max]
        return collections_pb2.ListCollectionsResponse(
            collections=[wire_collections.encode_collection(one) for one in page],
            next_page_token=page[-1].name if len(rest) > rows_max else "",
        )

    async def UpdateCollection(
        self, request: collections_pb2.UpdateCollectionRequest, context: Context
    ) -> collections_pb2.UpdateCollectionResponse:
        """Change settings or build parameters."""
        changed = await self._coordinator.collections.update(
            request.name,
            lambda present: wire_collections.apply_update(request, collection=present),
            if_revision=request.if_revision if request.HasField("if_revision") else None,
            deadline=deadline_of(context),
        )
        return collections_pb2.UpdateCollectionResponse(
            collection=wire_collections.encode_collection(changed)
        )

    async def DropCollection(
        self, request: collections_pb2.DropCollectionRequest, context: Context
    ) -> collections_pb2.DropCollectionResponse:
        """Drop a collection."""
        await self._coordinator.collections.drop(request.name, deadline=deadline_of(context))
        return collections_pb2.DropCollectionResponse()


class RecordServicer:
    """`annheal.v1.RecordService`."""

    def __init__(self, coordinator: Coordinator, metrics: Metrics) -> None:
        self._coordinator = coordinator
        self._metrics = metrics

    async def Upsert(
        self, request: records_pb2.UpsertRequest, context: Context
    ) -> records_pb2.UpsertResponse:
        """Insert or replace records."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        deadline = deadline_of(context)
        batch = wire_records.decode_upsert(request, collection=collection)
        batch = await self._coordinator.texts.records(collection, batch, deadline=deadline)
        outcome = await self._coordinator.writes.upsert(collection, batch, deadline=deadline)
        self._wrote(collection, "upsert", outcome.upserted, began_s)
        session = encode_session(outcome.session)
        return records_pb2.UpsertResponse(upserted=outcome.upserted, session=session)

    async def Update(
        self, request: records_pb2.UpdateRequest, context: Context
    ) -> records_pb2.UpdateResponse:
        """Replace parts of records."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        patch, if_versions = wire_records.decode_update(request, collection=collection)
        outcome = await self._coordinator.writes.update(
            collection, patch, if_versions=if_versions, deadline=deadline_of(context)
        )
        self._wrote(collection, "update", outcome.upserted, began_s)
        return records_pb2.UpdateResponse(
            updated=outcome.upserted,
            session=encode_session(outcome.session),
            missing=outcome.missing,
            conflicts=wire_records.encode_conflicts(outcome.conflicts),
        )

    async def UpsertIf(
        self, request: records_pb2.UpsertIfRequest, context: Context
    ) -> records_pb2.UpsertIfResponse:
        """Insert or replace the records that have the wanted versions."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.upsert.collection)
        deadline = deadline_of(context)
        batch = wire_records.decode_upsert(request.upsert, collection=collection)
        outcome = await self._coordinator.writes.upsert(
            collection,
            await self._coordinator.texts.records(collection, batch, deadline=deadline),
            if_versions=wire_records.decode_versions(request.if_versions),
            deadline=deadline,
        )
        self._wrote(collection, "upsert", outcome.upserted, began_s)
        return records_pb2.UpsertIfResponse(
            upserted=outcome.upserted,
            session=encode_session(outcome.session),
            conflicts=wire_records.encode_conflicts(outcome.conflicts),
        )

    async def DeleteIf(
        self, request: records_pb2.DeleteIfRequest, context: Context
    ) -> records_pb2.DeleteIfResponse:
        """Delete the records that have the wanted versions."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        outcome = await self._coordinator.writes.delete_ids(
            collection,
            list(request.ids),
            if_versions=wire_records.decode_versions(request.if_versions),
            deadline=deadline_of(context),
        )
        self._wrote(collection, "delete", outcome.deleted, began_s)
        return records_pb2.DeleteIfResponse(
            deleted=outcome.deleted,
            session=encode_session(outcome.session),
            conflicts=wire_records.encode_conflicts(outcome.conflicts),
        )

    async def DeleteByIds(
        self, request: records_pb2.DeleteByIdsRequest, context: Context
    ) -> records_pb2.DeleteByIdsResponse:
        """Delete by id."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        outcome = await self._coordinator.writes.delete_ids(
            collection, list(request.ids), deadline=deadline_of(context)
        )
        self._wrote(collection, "delete", outcome.deleted, began_s)
        session = encode_session(outcome.session)
        return records_pb2.DeleteByIdsResponse(deleted=outcome.deleted, session=session)

    async def DeleteByFilter(
        self, request: records_pb2.DeleteByFilterRequest, context: Context
    ) -> records_pb2.DeleteByFilterResponse:
        """Delete what matches."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        outcome = await self._coordinator.writes.delete_where(
            collection, wire_records.decode_delete_where(request), deadline=deadline_of(context)
        )
        self._wrote(collection, "delete_where", outcome.deleted, began_s)
        session = encode_session(outcome.session)
        return records_pb2.DeleteByFilterResponse(deleted=outcome.deleted, session=session)

    async def Get(
        self, request: records_pb2.GetRequest, context: Context
    ) -> records_pb2.GetResponse:
        """Read by id."""
        collection = await self._coordinator.collections.get(request.collection)
        read = wire_records.decode_get(request, collection_id=collection.id)
        found = await self._coordinator.reads.get(
            collection,
            read.ids,
            deadline=deadline_of(context),
            projection=read.projection,
            consistency=read.consistency,
            min_sequences=read.min_sequences,
        )
        session = None
        if read.consistency is not Consistency.EVENTUAL and read.min_sequences:
            session = SessionToken(collection.id, read.min_sequences)
        return wire_records.encode_get_response(found, model=collection.model.name, session=session)

    async def Count(
        self, request: records_pb2.CountRequest, context: Context
    ) -> records_pb2.CountResponse:
        """Count what matches."""
        collection = await self._coordinator.collections.get(request.collection)
        read = wire_records.decode_count(request, collection_id=collection.id)
        count = await self._coordinator.reads.count(
            collection,
            deadline=deadline_of(context),
            filter=read.filter,
            consistency=read.consistency,
            min_sequences=read.min_sequences,
        )
        return records_pb2.CountResponse(count=count)

    async def Scan(
        self, request: records_pb2.ScanRequest, context: Context
    ) -> records_pb2.ScanResponse:
        """Read one page."""
        collection = await self._coordinator.collections.get(request.collection)
        scan = wire_records.decode_scan(request)
        page = await self._coordinator.reads.scan(
            collection,
            rows_max=scan.rows_max,
            deadline=deadline_of(context),
            cursor=scan.cursor,
            filter=scan.filter,
            projection=scan.projection,
        )
        return wire_records.encode_scan_response(
            page.records, model=collection.model.name, next_cursor=page.cursor
        )

    def _wrote(self, collection: Collection, operation: str, rows: int, began_s: float) -> None:
        self._metrics.observe_write(
            collection.name, operation, rows=rows, duration_s=time.perf_counter() - began_s
        )


class SearchServicer:
    """`annheal.v1.SearchService`."""

    def __init__(self, coordinator: Coordinator, metrics: Metrics) -> None:
        self._coordinator = coordinator
        self._metrics = metrics
        self._options: dict[OptionsKey, SearchOptions] = {}

    async def Search(
        self, request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        """Find the nearest records of each query."""
        began_s = time.perf_counter()
        coordinator = self._coordinator
        collection = coordinator.catalog.collection_or_none(request.collection)
        if collection is None:
            collection = await coordinator.collections.get(request.collection)
        options = self._options_of(request, collection)
        timeout_s = None
        if request.HasField("timeout_ms"):
            timeout_s = request.timeout_ms / 1_000
            validate_timeout(timeout_s)
        deadline = deadline_of(context, timeout_s=timeout_s)
        consistency, min_sequences = decode_freshness(request, collection_id=collection.id)
        if min_sequences:
            check_sequences(collection, min_sequences)
        if request.WhichOneof("queries") == "vectors":
            queries = decode_vectors(request.vectors, models=collection.models, field="vectors")
            validate_search(queries, options, model=collection.model)
            queries = validate_vectors(queries, model=collection.model)
        elif request.WhichOneof("queries") == "texts":
            asked = wire_search.decode_search(request, collection=collection)
            queries = await coordinator.texts.queries(collection, asked.texts, deadline=deadline)
            validate_search(queries, options, model=collection.model)
            queries = validate_vectors(queries, model=collection.model, field="texts")
        else:
            read = wire_search.decode_search(request, collection=collection)
            queries = await coordinator.reads.vectors(
                collection,
                read.query_ids,
                deadline=deadline,
                consistency=consistency,
                min_sequences=min_sequences,
            )
            validate_search(queries, options, model=collection.model)
        answer = await coordinator.search.search(
            collection,
            queries,
            options=options,
            deadline=deadline,
            consistency=consistency,
            min_sequences=min_sequences,
            allow_partial=request.allow_partial,
        )
        session = None
        if consistency is not Consistency.EVENTUAL:
            session = SessionToken(collection.id, answer.sequences)
        self._metrics.observe_search(
            collection.name,
            filtered=options.filter is not None,
            queries=len(queries),
            duration_s=time.perf_counter() - began_s,
            below_objective=answer.below_objective,
        )
        return wire_search.encode_search_response(
            answer, metric=collection.model.metric, model=collection.model.name, session=session
        )

    def _options_of(
        self, request: search_pb2.SearchRequest, collection: Collection
    ) -> SearchOptions:
        """Return the checked options; the same object for the same bytes and collection."""
        key = (
            collection.id,
            request.k,
            request.exact,
            request.explain,
            request.ef if request.HasField("ef") else None,
            request.recall_objective if request.HasField("recall_objective") else None,
            request.filter.SerializeToString() if request.HasField("filter") else None,
            request.projection.SerializeToString() if request.HasField("projection") else None,
        )
        known = self._options.get(key)
        if known is not None:
            return known
        options = wire_search.decode_search(request, collection=collection).options
        validate_search_options(options, model=collection.model)
        validate_projection(options.projection, collection=collection)
        if options.filter is not None:
            canonical = validate_filter(options.filter, collection.schema)
            options = replace(options, filter=canonical)
        if len(self._options) >= OPTIONS_CACHED_MAX:
            self._options.pop(next(iter(self._options)))
        self._options[key] = options
        return options


class AdminServicer:
    """`annheal.v1.AdminService`."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._admin = coordinator.admin

    async def GetClusterStatus(
        self, request: admin_pb2.GetClusterStatusRequest, context: Context
    ) -> admin_pb2.GetClusterStatusResponse:
        """Summarise the cluster."""
        return wire_admin.encode_cluster_status(await self._admin.status())

    async def CheckHealth(
        self, request: admin_pb2.CheckHealthRequest, context: Context
    ) -> admin_pb2.CheckHealthResponse:
        """Probe what the processes depend on."""
        return encode_cluster_health(await self._coordinator.health.look())

    async def ListNodes(
        self, request: admin_pb2.ListNodesRequest, context: Context
    ) -> admin_pb2.ListNodesResponse:
        """List shard nodes."""
        nodes = await self._admin.nodes()
        return admin_pb2.ListNodesResponse(nodes=[wire_admin.encode_node(one) for one in nodes])

    async def ListShards(
        self, request: admin_pb2.ListShardsRequest, context: Context
    ) -> admin_pb2.ListShardsResponse:
        """List shards with their owners."""
        shards = await self._admin.shards(request.collection)
        return admin_pb2.ListShardsResponse(shards=[wire_admin.encode_shard(one) for one in shards])

    async def ListSegments(
        self, request: admin_pb2.ListSegmentsRequest, context: Context
    ) -> admin_pb2.ListSegmentsResponse:
        """List segments."""
        segments, missing = await self._admin.segments(
            request.collection, shard=request.shard if request.HasField("shard") else None
        )
        return admin_pb2.ListSegmentsResponse(
            segments=[wire_admin.encode_segment(one) for one in segments], missing_shards=missing
        )

    async def Flush(
        self, request: admin_pb2.FlushRequest, context: Context
    ) -> admin_pb2.FlushResponse:
        """Flush what is in memory."""
        await self._admin.flush(request.collection, deadline=deadline_of(context))
        return admin_pb2.FlushResponse()

    async def Compact(
        self, request: admin_pb2.CompactRequest, context: Context
    ) -> admin_pb2.CompactResponse:
        """Plan compactions."""
        order = wire_admin.decode_compact(request)
        if order.dry_run:
            planned = await self._admin.plan_compaction(request.collection, order)
            return admin_pb2.CompactResponse(
                planned=[wire_admin.encode_task(one) for one in planned]
            )
        task_ids = await self._admin.compact(
            request.collection, order, deadline=deadline_of(context)
        )
        return admin_pb2.CompactResponse(task_ids=task_ids)

    async def ListTasks(
        self, request: admin_pb2.ListTasksRequest, context: Context
    ) -> admin_pb2.ListTasksResponse:
        """List tasks, the newest first; the token of a page names its last task."""
        phase: TaskPhase | None = wire_admin.decode_task_phase(request)
        tasks = await self._admin.tasks(collection=request.collection, phase=phase)
        after = wire_admin.decode_task_token(request.page_token)
        rest = [one for one in tasks if after is None or (-one.created_at_s, one.task_id) > after]
        rows_max = _page_rows(request.page_size)
        page = rest[:rows_max]
        token = f"{page[-1].created_at_s!r}/{page[-1].task_id}" if len(rest) > rows_max else ""
        return admin_pb2.ListTasksResponse(
            tasks=[wire_admin.encode_task(one) for one in page], next_page_token=token
        )

    async def GetTask(
        self, request: admin_pb2.GetTaskRequest, context: Context
    ) -> admin_pb2.GetTaskResponse:
        """Describe one task."""
        task = await self._admin.task(request.task_id)
        return admin_pb2.GetTaskResponse(task=wire_admin.encode_task(task))

    async def CancelTask(
        self, request: admin_pb2.CancelTaskRequest, context: Context
    ) -> admin_pb2.CancelTaskResponse:
        """Cancel a task."""
        task = await self._admin.cancel_task(request.task_id, deadline=deadline_of(context))
        return admin_pb2.CancelTaskResponse(task=wire_admin.encode_task(task))

    async def RetryTask(
        self, request: admin_pb2.RetryTaskRequest, context: Context
    ) -> admin_pb2.RetryTaskResponse:
        """Put a failed task back into the queue."""
        task = await self._admin.retry_task(request.task_id, deadline=deadline_of(context))
        return admin_pb2.RetryTaskResponse(task=wire_admin.encode_task(task))

    async def MeasureRecall(
        self, request: admin_pb2.MeasureRecallRequest, context: Context
    ) -> admin_pb2.MeasureRecallResponse:
        """Measure recall."""
        collection = await self._coordinator.collections.get(request.collection)
        report = await self._coordinator.recall.measure(
            collection,
            wire_admin.decode_measure_recall(request),
            deadline=deadline_of(context),
        )
        return wire_admin.encode_recall_report(report)

    async def GetRecall(
        self, request: admin_pb2.GetRecallRequest, context: Context
    ) -> admin_pb2.GetRecallResponse:
        """Report the recall of live queries."""
        collection = await self._coordinator.collections.get(request.collection)
        return encode_recall_summary(await self._coordinator.recall_view.of(collection))

    async def AuditRecall(
        self, request: admin_pb2.AuditRecallRequest, context: Context
    ) -> admin_pb2.AuditRecallResponse:
        """Compare the estimates of one shard, or of answers over all, with other live queries."""
        audits = await self._admin.audit_recall(
            request.collection,
            None if request.merged else request.shard,
            queries_max=request.queries_max or AUDIT_QUERIES_DEFAULT,
            deadline=deadline_of(context),
        )
        return admin_pb2.AuditRecallResponse(audits=encode_audits(audits))

    async def ListWorstQueries(
        self, request: admin_pb2.ListWorstQueriesRequest, context: Context
    ) -> admin_pb2.ListWorstQueriesResponse:
        """List the live queries that find least."""
        queries_max = checked_worst(request.queries_max or WORST_DEFAULT)
        collection = await self._coordinator.collections.get(request.collection)
        return encode_worst(
            await self._coordinator.worst_queries.find(
                collection, queries_max=queries_max, deadline=deadline_of(context)
            )
        )

    async def TestEmbedder(
        self, request: admin_pb2.TestEmbedderRequest, context: Context
    ) -> admin_pb2.TestEmbedderResponse:
        """Embed one text."""
        collection = await self._coordinator.collections.get(request.collection)
        tested = await self._coordinator.texts.test(
            collection, request.text, as_query=request.query, deadline=deadline_of(context)
        )
        return wire_admin.encode_embedder_test(tested)

    async def Rebalance(
        self, request: admin_pb2.RebalanceRequest, context: Context
    ) -> admin_pb2.RebalanceResponse:
        """Even out the shards."""
        moves = await self._admin.rebalance(dry_run=request.dry_run)
        return admin_pb2.RebalanceResponse(moves=wire_admin.encode_moves(moves))

    async def CollectGarbage(
        self, request: admin_pb2.CollectGarbageRequest, context: Context
    ) -> admin_pb2.CollectGarbageResponse:
        """Run one round of garbage collection."""
        report = await self._admin.collect_garbage(dry_run=request.dry_run)
        return wire_admin.encode_garbage(report)

    async def DrainNode(
        self, request: admin_pb2.DrainNodeRequest, context: Context
    ) -> admin_pb2.DrainNodeResponse:
        """Empty a node."""
        moves = await self._admin.drain(request.node_id, deadline=deadline_of(context))
        return admin_pb2.DrainNodeResponse(moves=wire_admin.encode_moves(moves))

    async def UndrainNode(
        self, request: admin_pb2.UndrainNodeRequest, context: Context
    ) -> admin_pb2.UndrainNodeResponse:
        """Let a node have shards again."""
        await self._admin.undrain(request.node_id, deadline=deadline_of(context))
        return admin_pb2.UndrainNodeResponse()

    async def MoveShard(
        self, request: admin_pb2.MoveShardRequest, context: Context
    ) -> admin_pb2.MoveShardResponse:
        """Move one shard."""
        move = await self._admin.move(
            request.collection,
            shard=request.shard,
            node_id=request.node_id,
            deadline=deadline_of(context),
        )
        return admin_pb2.MoveShardResponse(move=wire_admin.encode_moves([move])[0])


def _page_rows(page_size: int) -> int:
    return min(page_size or PAGE_ROWS_MAX, PAGE_ROWS_MAX)
