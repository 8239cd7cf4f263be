"""What operators see: nodes, shards, tasks and measured recall."""

from __future__ import annotations

from dataclasses import dataclass, field

from annheal.model.filter import Filter
from annheal.model.topology.manifest import Tier
from annheal.model.topology.shard import Assignment, NodeRegistration, WorkerRegistration
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask, TaskClaim, TaskPhase, TaskReason

RECALL_SAMPLE_DEFAULT = 200
"""Queries of a recall measurement by default."""


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """Rows, segments and bytes of a collection, or of all of them."""

    shards_serving: int = 0
    live_rows: int = 0
    dead_rows: int = 0
    unindexed_rows: int = 0
    segments: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GarbageKind:
    """Unreferenced objects of one kind (segments, deletes, wal, recall).

    `deleted_*`: their grace period was over; `waiting_*`: it is not.
    """

    kind: str
    deleted_objects: int = 0
    deleted_bytes: int = 0
    waiting_objects: int = 0
    waiting_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What one round of garbage collection found; in a `dry_run` nothing was deleted.

    `grace_s`: seconds for which an object must have been unreferenced.
    """

    kinds: tuple[GarbageKind, ...] = ()
    dry_run: bool = False
    grace_s: float = 0.0

    @property
    def deleted_objects(self) -> int:
        """Objects deleted, of all kinds."""
        return sum(kind.deleted_objects for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A live shard node; `error` says why it did not answer, empty if it did."""

    registration: NodeRegistration
    draining: bool = False
    shards: int = 0
    shards_serving: int = 0
    live_rows: int = 0
    memory_bytes: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard with its owner and the state there; `phase` is empty if the owner did not answer."""

    collection: str
    collection_id: str
    shard: int
    owner: str = ""
    epoch: int = 0
    target: str = ""
    replicas: tuple[str, ...] = ()
    phase: str = ""
    live_rows: int = 0
    dead_rows: int = 0
    unindexed_rows: int = 0
    applied_sequence: int = 0
    wal_slots: int = 0
    memory_bytes: int = 0
    segments: int = 0
    error: str = ""

    @classmethod
    def of(
        cls, assignment: Assignment, state: ShardState | None, *, collection: str, error: str = ""
    ) -> ShardStatus:
        """Return the status of `assignment`, with the state that its owner reported, if any."""
        base = cls(
            collection=collection,
            collection_id=assignment.collection_id,
            shard=assignment.shard,
            owner=assignment.owner,
            epoch=assignment.epoch,
            target=assignment.target,
            replicas=assignment.replicas,
            error=error,
        )
        if state is None:
            return base
        return cls(
            collection=collection,
            collection_id=base.collection_id,
            shard=base.shard,
            owner=base.owner,
            epoch=base.epoch,
            target=base.target,
            replicas=base.replicas,
            phase=state.phase,
            live_rows=state.live_rows,
            dead_rows=state.dead_rows,
            unindexed_rows=state.unindexed_rows,
            applied_sequence=state.applied_sequence,
            wal_slots=state.wal_slots,
            memory_bytes=state.memory_bytes,
            segments=len(state.segments),
            error=error or state.error,
        )


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A task and its claim. `collection` is empty when the collection was dropped.

    `model` is that of a backfill, empty for a rewrite.
    """

    task_id: str
    collection: str
    collection_id: str
    shard: int
    phase: TaskPhase
    reason: TaskReason
    sources: tuple[str, ...] = ()
    tier: str = ""
    priority: int = 0
    created_at_s: float = 0.0
    finished_at_s: float = 0.0
    attempts: int = 0
    worker: str = ""
    step: str = ""
    progress: float = 0.0
    error: str = ""
    estimated_bytes: int = 0
    output_segment_id: str = ""
    rows_in: int = 0
    rows_out: int = 0
    estimated_disk_bytes: int = 0
    why: str = ""
    model: str = ""

    @classmethod
    def of(
        cls, task: CompactionTask, *, collection: str = "", claim: TaskClaim | None = None
    ) -> TaskStatus:
        """Return the status of `task` and of the claim on it, if there is one."""
        return cls(
            task_id=task.id,
            collection=collection,
            collection_id=task.collection_id,
            shard=task.shard,
            phase=task.phase,
            reason=task.reason,
            sources=task.sources,
            tier=task.tier,
            priority=task.priority,
            created_at_s=task.created_at_s,
            finished_at_s=task.finished_at_s,
            attempts=task.attempts,
            worker=claim.worker_id if claim else task.worker,
            step=claim.step if claim else "",
            progress=claim.progress if claim else 0.0,
            error=task.error,
            estimated_bytes=task.estimated_bytes,
            output_segment_id=task.output.segment_id if task.output else "",
            rows_in=task.rows_in,
            rows_out=task.rows_out,
            estimated_disk_bytes=task.estimated_disk_bytes,
            why=task.why,
            model=task.model,
        )


@dataclass(frozen=True, slots=True)
class CompactionOrder:
    """An operator's request for compaction; by default the rules choose the segments.

    `shard` None: all shards. `segment_ids` or `tier` name the segments to rewrite, without any
    rule; `full` means all segments. `dry_run`: plan the tasks and add none.
    """

    shard: int | None = None
    segment_ids: tuple[str, ...] = ()
    tier: Tier | None = None
    full: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class ShardMove:
    """A planned change of a shard's owner; `source` is empty if it had none."""

    collection: str
    shard: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A summary of the cluster."""

    version: str = ""
    leader: str = ""
    nodes: tuple[NodeStatus, ...] = ()
    workers: tuple[WorkerRegistration, ...] = ()
    collections: int = 0
    shards: int = 0
    totals: CollectionStatus = field(default_factory=CollectionStatus)
    tasks_pending: int = 0
    tasks_failed: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecallOptions:
    """Options of a recall measurement; `k` None means the k of the collection's objective."""

    sample_size: int = RECALL_SAMPLE_DEFAULT
    k: int | None = None
    ef: int | None = None
    filter: Filter | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ShardRecall:
    """`recall`: the share found of the `expected` true neighbours in a shard."""

    shard: int
    recall: float
    expected: int


@dataclass(frozen=True, slots=True)
class RecallReport:
    """Measured recall@k with its 95 % confidence interval, and median times in seconds."""

    recall: float
    recall_low: float
    recall_high: float
    queries: int
    k: int
    recall_objective: float
    approximate_p50_s: float = 0.0
    exact_p50_s: float = 0.0
    shards: tuple[ShardRecall, ...] = ()
