"""The service of operators."""

from __future__ import annotations

from annheal.coordinator.app import Coordinator
from annheal.coordinator.service.pages import page_rows
from annheal.model.measures.recall_audit import AUDIT_QUERIES_DEFAULT
from annheal.model.measures.recall_worst import WORST_DEFAULT, checked_worst
from annheal.model.topology.task import TaskPhase
from annheal.model.validation import usable_model
from annheal.rpc.server import Context, deadline_of
from annheal.v1 import admin_pb2
from annheal.wire import admin as wire_admin
from annheal.wire.admin import encode_cluster_health
from annheal.wire.recall import encode_audits, encode_recall_summary, encode_worst


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
        rows_max = page_rows(request.page_size)
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
            collection,
            request.text,
            model=usable_model(request.model, collection=collection),
            as_query=request.query,
            deadline=deadline_of(context),
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
