"""Compaction tasks: planned by the leader, done by a compactor, published by the shard's owner.

Life: PENDING -> (claimed by a leased key) -> BUILT -> PUBLISHED; or FAILED after
`ATTEMPTS_MAX` attempts (quarantined), or CANCELLED. A claim whose lease ends returns the
task to the queue by itself: only the claim key says that somebody works on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from annheal.model.topology.manifest import SegmentEntry

ATTEMPTS_MAX = 5


class TaskPhase(StrEnum):
    """Where a task stands."""

    PENDING = "pending"
    BUILT = "built"
    PUBLISHED = "published"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskReason(StrEnum):
    """Why the planner asked for the rewrite."""

    MERGE = "merge"
    TOMBSTONES = "tombstones"
    MANUAL = "manual"
    RECALL = "recall"
    WALK_COST = "walk_cost"


@dataclass(frozen=True, slots=True)
class CompactionTask:
    """Merge `sources` (segment ids of one shard) into one segment without their dead rows.

    Stored under `tasks/<id>`. `output` is set when built; None in BUILT means that no live row
    was left. `estimated_bytes` is what a build needs in memory, `estimated_disk_bytes` in scratch
    space. `why` is a sentence for operators.
    """

    id: str
    collection_id: str
    shard: int
    sources: tuple[str, ...]
    tier: str
    reason: TaskReason
    phase: TaskPhase = TaskPhase.PENDING
    priority: int = 0
    estimated_bytes: int = 0
    created_at_s: float = 0.0
    finished_at_s: float = 0.0
    attempts: int = 0
    worker: str = ""
    error: str = ""
    output: SegmentEntry | None = None
    rows_in: int = 0
    rows_out: int = 0
    estimated_disk_bytes: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class TaskClaim:
    """Who works on a task, stored under `claims/<task id>` with the worker's lease."""

    task_id: str
    worker_id: str
    claimed_at_s: float
    step: str = "claimed"
    progress: float = 0.0
