"""What operators see and do: nodes, shards, segments, tasks, recall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from annheal.errors import InvalidArgument
from annheal.model.measures.part_health import ClusterHealth, PartHealth
from annheal.model.measures.recall import RECALL_UNKNOWN
from annheal.model.texts.spec import EmbedderTest
from annheal.model.topology.cluster import (
    RECALL_SAMPLE_DEFAULT,
    ClusterStatus,
    CompactionOrder,
    GarbageKind,
    GarbageReport,
    NodeStatus,
    RecallOptions,
    RecallReport,
    ShardMove,
    ShardRecall,
    ShardStatus,
    TaskStatus,
)
from annheal.model.topology.manifest import Tier
from annheal.model.topology.shard import NodeRegistration, WorkerRegistration, WorkerRole
from annheal.model.topology.state import ModelCoverage, SegmentState
from annheal.model.topology.task import TaskPhase, TaskReason
from annheal.v1 import admin_pb2 as pb
from annheal.v1 import internal_pb2
from annheal.wire.enums import (
    INDEX_KIND,
    PART_KIND,
    SHARD_PHASE,
    TASK_PHASE,
    TASK_REASON,
    TIER,
    WORKER_ROLE,
)
from annheal.wire.filters import decode_filter, encode_filter
from annheal.wire.lifecycle.collections import decode_collection_status, encode_collection_status
from annheal.wire.timestamps import decode_seconds, encode_seconds


def encode_node(node: NodeStatus) -> pb.Node:
    """Return a node as a message."""
    registration = node.registration
    return pb.Node(
        node_id=registration.node_id,
        address=registration.address,
        zone=registration.zone,
        capacity=registration.capacity,
        started_at=encode_seconds(registration.started_at_s),
        version=registration.version,
        draining=node.draining,
        shards=node.shards,
        shards_serving=node.shards_serving,
        live_rows=node.live_rows,
        memory_bytes=node.memory_bytes,
        error=node.error,
    )


def decode_node(message: pb.Node) -> NodeStatus:
    """Return a node."""
    return NodeStatus(
        registration=NodeRegistration(
            node_id=message.node_id,
            address=message.address,
            zone=message.zone,
            capacity=message.capacity,
            started_at_s=decode_seconds(message.started_at),
            version=message.version,
        ),
        draining=message.draining,
        shards=message.shards,
        shards_serving=message.shards_serving,
        live_rows=message.live_rows,
        memory_bytes=message.memory_bytes,
        error=message.error,
    )


def encode_worker(worker: WorkerRegistration) -> pb.Worker:
    """Return a coordinator or compactor as a message."""
    return pb.Worker(
        worker_id=worker.worker_id,
        role=WORKER_ROLE.encode(worker.role),
        address=worker.address,
        started_at=encode_seconds(worker.started_at_s),
        version=worker.version,
    )


def decode_worker(message: pb.Worker) -> WorkerRegistration:
    """Return a coordinator or compactor."""
    return WorkerRegistration(
        worker_id=message.worker_id,
        role=WORKER_ROLE.decode_or(message.role, WorkerRole.COORDINATOR),
        address=message.address,
        started_at_s=decode_seconds(message.started_at),
        version=message.version,
    )


def encode_cluster_status(status: ClusterStatus) -> pb.GetClusterStatusResponse:
    """Return the cluster at a glance, as a message."""
    return pb.GetClusterStatusResponse(
        version=status.version,
        leader=status.leader,
        nodes=[encode_node(node) for node in status.nodes],
        workers=[encode_worker(worker) for worker in status.workers],
        collections=status.collections,
        shards=status.shards,
        totals=encode_collection_status(status.totals),
        tasks_pending=status.tasks_pending,
        tasks_failed=status.tasks_failed,
        warnings=status.warnings,
    )


def decode_cluster_status(message: pb.GetClusterStatusResponse) -> ClusterStatus:
    """Return the cluster at a glance."""
    return ClusterStatus(
        version=message.version,
        leader=message.leader,
        nodes=tuple(decode_node(node) for node in message.nodes),
        workers=tuple(decode_worker(worker) for worker in message.workers),
        collections=message.collections,
        shards=message.shards,
        totals=decode_collection_status(message.totals),
        tasks_pending=message.tasks_pending,
        tasks_failed=message.tasks_failed,
        warnings=tuple(message.warnings),
    )


def encode_shard(shard: ShardStatus) -> pb.Shard:
    """Return a shard as a message."""
    return pb.Shard(
        collection=shard.collection,
        collection_id=shard.collection_id,
        shard=shard.shard,
        owner=shard.owner,
        epoch=shard.epoch,
        target=shard.target,
        replicas=shard.replicas,
        phase=SHARD_PHASE.encode(shard.phase),
        live_rows=shard.live_rows,
        dead_rows=shard.dead_rows,
        unindexed_rows=shard.unindexed_rows,
        applied_sequence=shard.applied_sequence,
        wal_slots=shard.wal_slots,
        memory_bytes=shard.memory_bytes,
        segments=shard.segments,
        error=shard.error,
    )


def decode_shard(message: pb.Shard) -> ShardStatus:
    """Return a shard."""
    return ShardStatus(
        collection=message.collection,
        collection_id=message.collection_id,
        shard=message.shard,
        owner=message.owner,
        epoch=message.epoch,
        target=message.target,
        replicas=tuple(message.replicas),
        phase=SHARD_PHASE.decode_text(message.phase),
        live_rows=message.live_rows,
        dead_rows=message.dead_rows,
        unindexed_rows=message.unindexed_rows,
        applied_sequence=message.applied_sequence,
        wal_slots=message.wal_slots,
        memory_bytes=message.memory_bytes,
        segments=message.segments,
        error=message.error,
    )


def encode_segment(segment: SegmentState) -> pb.Segment:
    """Return a segment as a message."""
    return pb.Segment(
        shard=segment.shard,
        segment_id=segment.segment_id,
        tier=TIER.encode(segment.tier),
        model=segment.model,
        index_kind=INDEX_KIND.encode(segment.index_kind),
        rows=segment.rows,
        dead_rows=segment.dead_rows,
        size_bytes=segment.size_bytes,
        generation=segment.generation,
        created_at=encode_seconds(segment.created_at_s),
        min_sequence=segment.min_sequence,
        max_sequence=segment.max_sequence,
        recall=None if segment.recall == RECALL_UNKNOWN else segment.recall,
        ef=segment.ef,
        rebuild=segment.rebuild,
        stuck=segment.stuck,
        visited=segment.visited,
        visited_baseline=segment.visited_baseline,
        built_for=TASK_REASON.encode(segment.built_for),
        without_kernels=segment.without_kernels,
        models=[
            pb.ModelCoverage(
                model=one.model,
                rows=one.rows,
                lacking=one.lacking,
                index_kind=INDEX_KIND.encode(one.index_kind),
                size_bytes=one.size_bytes,
                skipped=one.skipped,
                waits=one.waits,
            )
            for one in segment.models
        ],
    )


def decode_segment(message: pb.Segment) -> SegmentState:
    """Return a segment; tier and kind are empty when this version does not know them."""
    return SegmentState(
        shard=message.shard,
        segment_id=message.segment_id,
        tier=TIER.decode_text(message.tier),
        model=message.model,
        index_kind=INDEX_KIND.decode_text(message.index_kind),
        rows=message.rows,
        dead_rows=message.dead_rows,
        size_bytes=message.size_bytes,
        generation=message.generation,
        created_at_s=decode_seconds(message.created_at),
        min_sequence=message.min_sequence,
        max_sequence=message.max_sequence,
        recall=message.recall if message.HasField("recall") else RECALL_UNKNOWN,
        ef=message.ef,
        rebuild=message.rebuild,
        stuck=message.stuck,
        visited=message.visited,
        visited_baseline=message.visited_baseline,
        built_for=TASK_REASON.decode_text(message.built_for),
        without_kernels=message.without_kernels,
        models=tuple(
            ModelCoverage(
                one.model,
                one.rows,
                one.lacking,
                INDEX_KIND.decode_text(one.index_kind),
                one.size_bytes,
                one.skipped,
                one.waits,
            )
            for one in message.models
        ),
    )


def encode_task(task: TaskStatus) -> pb.Task:
    """Return a task as a message."""
    return pb.Task(
        task_id=task.task_id,
        collection=task.collection,
        collection_id=task.collection_id,
        phase=TASK_PHASE.encode(task.phase),
        priority=task.priority,
        created_at=encode_seconds(task.created_at_s),
        finished_at=encode_seconds(task.finished_at_s),
        attempts=task.attempts,
        worker=task.worker,
        step=task.step,
        progress=task.progress,
        error=task.error,
        estimated_bytes=task.estimated_bytes,
        estimated_disk_bytes=task.estimated_disk_bytes,
        why=task.why,
        compaction=pb.CompactionWork(
            shard=task.shard,
            reason=TASK_REASON.encode(task.reason),
            sources=task.sources,
            tier=TIER.encode(task.tier),
            output_segment_id=task.output_segment_id,
            rows_in=task.rows_in,
            rows_out=task.rows_out,
            model=task.model,
        ),
    )


def decode_task(message: pb.Task) -> TaskStatus:
    """Return a task; raises `InvalidArgument` for a phase that this version does not know."""
    work = message.compaction
    return TaskStatus(
        task_id=message.task_id,
        collection=message.collection,
        collection_id=message.collection_id,
        shard=work.shard,
        phase=TASK_PHASE.decode(message.phase, field="task.phase"),
        reason=TASK_REASON.decode_or(work.reason, TaskReason.MANUAL),
        sources=tuple(work.sources),
        tier=TIER.decode_text(work.tier),
        priority=message.priority,
        created_at_s=decode_seconds(message.created_at),
        finished_at_s=decode_seconds(message.finished_at),
        attempts=message.attempts,
        worker=message.worker,
        step=message.step,
        progress=message.progress,
        error=message.error,
        estimated_bytes=message.estimated_bytes,
        output_segment_id=work.output_segment_id,
        rows_in=work.rows_in,
        rows_out=work.rows_out,
        estimated_disk_bytes=message.estimated_disk_bytes,
        why=message.why,
        model=work.model,
    )


def encode_compact(collection: str, *, order: CompactionOrder) -> pb.CompactRequest:
    """Return a request to compact."""
    return pb.CompactRequest(
        collection=collection,
        shard=order.shard,
        full=order.full,
        segment_ids=order.segment_ids,
        tier=TIER.encode(order.tier or ""),
        dry_run=order.dry_run,
    )


def decode_compact(request: pb.CompactRequest) -> CompactionOrder:
    """Return what to compact; raises `InvalidArgument` for an unknown tier."""
    tiered = request.tier != pb.SEGMENT_TIER_UNSPECIFIED
    return CompactionOrder(
        shard=request.shard if request.HasField("shard") else None,
        segment_ids=tuple(request.segment_ids),
        tier=Tier(TIER.decode(request.tier, field="tier")) if tiered else None,
        full=request.full,
        dry_run=request.dry_run,
    )


def encode_moves(moves: Iterable[ShardMove]) -> list[pb.ShardMove]:
    """Return moves as messages."""
    return [
        pb.ShardMove(
            collection=move.collection, shard=move.shard, source=move.source, target=move.target
        )
        for move in moves
    ]


def decode_moves(messages: Iterable[pb.ShardMove]) -> tuple[ShardMove, ...]:
    """Return moves."""
    return tuple(
        ShardMove(
            collection=message.collection,
            shard=message.shard,
            source=message.source,
            target=message.target,
        )
        for message in messages
    )


def encode_list_tasks(
    *,
    collection: str = "",
    phase: TaskPhase | None = None,
    page_size: int = 0,
    page_token: str = "",
) -> pb.ListTasksRequest:
    """Return the request for a page of tasks."""
    return pb.ListTasksRequest(
        collection=collection,
        phase=TASK_PHASE.encode(phase or ""),
        page_size=page_size,
        page_token=page_token,
    )


def decode_task_phase(request: pb.ListTasksRequest) -> TaskPhase | None:
    """Return the phase that is asked for, None for all."""
    if request.phase == pb.TASK_PHASE_UNSPECIFIED:
        return None
    return TASK_PHASE.decode(request.phase, field="phase")


def encode_measure_recall(collection: str, *, options: RecallOptions) -> pb.MeasureRecallRequest:
    """Return a request to measure recall."""
    return pb.MeasureRecallRequest(
        collection=collection,
        sample_size=options.sample_size,
        k=options.k,
        ef=options.ef,
        filter=None if options.filter is None else encode_filter(options.filter),
        seed=options.seed,
    )


def decode_measure_recall(request: pb.MeasureRecallRequest) -> RecallOptions:
    """Return what to measure."""
    if request.HasField("ef") and request.ef == 0:
        raise InvalidArgument.of("ef", "is 0; leave it out or set it to 1 or more")
    return RecallOptions(
        sample_size=request.sample_size or RECALL_SAMPLE_DEFAULT,
        k=request.k or None,
        ef=request.ef if request.HasField("ef") else None,
        filter=decode_filter(request.filter) if request.HasField("filter") else None,
        seed=request.seed,
    )


def encode_recall_report(report: RecallReport) -> pb.MeasureRecallResponse:
    """Return measured recall as a message."""
    return pb.MeasureRecallResponse(
        recall=report.recall,
        recall_low=report.recall_low,
        recall_high=report.recall_high,
        queries=report.queries,
        k=report.k,
        recall_objective=report.recall_objective,
        approximate_p50_s=report.approximate_p50_s,
        exact_p50_s=report.exact_p50_s,
        shards=[
            pb.ShardRecall(shard=s.shard, recall=s.recall, expected=s.expected)
            for s in report.shards
        ],
    )


def decode_recall_report(message: pb.MeasureRecallResponse) -> RecallReport:
    """Return measured recall."""
    return RecallReport(
        recall=message.recall,
        recall_low=message.recall_low,
        recall_high=message.recall_high,
        queries=message.queries,
        k=message.k,
        recall_objective=message.recall_objective,
        approximate_p50_s=message.approximate_p50_s,
        exact_p50_s=message.exact_p50_s,
        shards=tuple(
            ShardRecall(shard=s.shard, recall=s.recall, expected=s.expected) for s in message.shards
        ),
    )


def encode_garbage(report: GarbageReport) -> pb.CollectGarbageResponse:
    """Return the message."""
    kinds = [
        pb.GarbageKind(
            kind=one.kind,
            deleted_objects=one.deleted_objects,
            deleted_bytes=one.deleted_bytes,
            waiting_objects=one.waiting_objects,
            waiting_bytes=one.waiting_bytes,
        )
        for one in report.kinds
    ]
    return pb.CollectGarbageResponse(
        kinds=kinds, dry_run=report.dry_run, grace_seconds=report.grace_s
    )


def decode_garbage(message: pb.CollectGarbageResponse) -> GarbageReport:
    """Return the report; kinds that this version does not know are kept."""
    kinds = tuple(
        GarbageKind(
            kind=one.kind,
            deleted_objects=one.deleted_objects,
            deleted_bytes=one.deleted_bytes,
            waiting_objects=one.waiting_objects,
            waiting_bytes=one.waiting_bytes,
        )
        for one in message.kinds
    )
    return GarbageReport(kinds, message.dry_run, message.grace_seconds)


def encode_part(part: PartHealth) -> pb.PartHealth:
    """Return one part."""
    return pb.PartHealth(
        part=PART_KIND.encode(part.kind),
        process=part.process,
        place=part.place,
        failing_since_s=part.failing_since_s,
        error=part.error,
        succeeded_at_s=part.succeeded_at_s,
        note=part.note,
    )


def decode_parts(messages: Iterable[pb.PartHealth]) -> tuple[PartHealth, ...]:
    """Return the parts of kinds that this version knows."""
    return tuple(
        PartHealth(
            kind=kind,
            process=message.process,
            place=message.place,
            failing_since_s=message.failing_since_s,
            error=message.error,
            succeeded_at_s=message.succeeded_at_s,
            note=message.note,
        )
        for message in messages
        if (kind := PART_KIND.known(message.part)) is not None
    )


def encode_node_health(parts: Iterable[PartHealth]) -> internal_pb2.CheckNodeResponse:
    """Return what a node depends on."""
    return internal_pb2.CheckNodeResponse(parts=[encode_part(one) for one in parts])


def encode_cluster_health(health: ClusterHealth) -> pb.CheckHealthResponse:
    """Return what a cluster depends on."""
    return pb.CheckHealthResponse(
        parts=[encode_part(one) for one in health.parts], errors=dict(health.errors)
    )


def decode_cluster_health(message: pb.CheckHealthResponse) -> ClusterHealth:
    """Return what a cluster depends on."""
    errors: Mapping[str, str] = dict(message.errors)
    return ClusterHealth(decode_parts(message.parts), errors)


def encode_embedder_test(found: EmbedderTest) -> pb.TestEmbedderResponse:
    """Return what one text became."""
    return pb.TestEmbedderResponse(
        model=found.model,
        embedder=found.embedder,
        dimension=found.dimension,
        norm=found.norm,
        duration_s=found.duration_s,
    )


def decode_embedder_test(message: pb.TestEmbedderResponse) -> EmbedderTest:
    """Return what one text became."""
    return EmbedderTest(
        message.model, message.embedder, message.dimension, message.norm, message.duration_s
    )


def decode_task_token(token: str) -> tuple[float, str] | None:
    """Return what a page token of tasks names, in the order of a listing; None for the first."""
    if not token:
        return None
    created, _, task_id = token.partition("/")
    try:
        return -float(created), task_id
    except ValueError as error:
        raise InvalidArgument.of("page_token", "is not one that a listing returned") from error
