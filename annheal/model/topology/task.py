"""Tasks: planned by the leader, done by a compactor, published by the shard's owner.

The phases are PENDING -> BUILT -> PUBLISHED; or FAILED after `ATTEMPTS_MAX` attempts, or CANCELLED.
A compactor holds a PENDING task by a claim, a key with a lease. The claim alone says that a
compactor works on the task: when its lease ends, other compactors can claim the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from annheal.model.topology.manifest import SegmentEntry, VectorPartEntry
from annheal.model.topology.migration.state import SkipCount, SkippedRecord

ATTEMPTS_MAX = 5
"""Attempts, counted when they start, after which a task is FAILED."""


class TaskPhase(StrEnum):
    """The phase of a task."""

    PENDING = "pending"
    BUILT = "built"
    PUBLISHED = "published"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskReason(StrEnum):
    """Why the task was planned; docs/operations/compaction.md has the rules.

    All but `backfill` are rewrites of segments. A backfill reads one segment and makes the vectors
    of another model for its rows, which are added to the segment. A `model_purge` is a rewrite
    without the vectors of one model.
    """

    MERGE = "merge"
    TOMBSTONES = "tombstones"
    MANUAL = "manual"
    RECALL = "recall"
    WALK_COST = "walk_cost"
    BACKFILL = "backfill"
    MODEL_PURGE = "model_purge"


@dataclass(frozen=True, slots=True)
class CompactionTask:
    """Rewrite `sources` (segment ids of one shard) as one segment without their dead rows.

    Stored under `tasks/<id>`. `output` is set when the task is built; None in phase BUILT means
    that no row was live. `estimated_bytes` is the memory of a build, `estimated_disk_bytes` its
    scratch disk. A task of higher `priority` is done first. `finished_at_s` of a PENDING task is
    the time of its last failed attempt. `why` is a sentence for operators. `model` is the one whose
    vectors a backfill makes, or a purge leaves out; empty for other reasons. A backfill counts in
    `skipped` the rows that got no vector, and names some of them in `skipped_records`; its
    `rows_out` are those that got one, and `part` has their vectors when it is built.
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
    model: str = ""
    skipped: tuple[SkipCount, ...] = ()
    skipped_records: tuple[SkippedRecord, ...] = ()
    part: VectorPartEntry | None = None


@dataclass(frozen=True, slots=True)
class TaskClaim:
    """The claim of a compactor on a task, stored under `claims/<task id>` with its lease.

    `step` and `progress` (a share in [0, 1] of the step) are shown to operators. `claimed_at_s`
    (seconds since the epoch) is for people who read the store; the lease alone decides.
    """

    task_id: str
    worker_id: str
    claimed_at_s: float
    step: str = "claimed"
    progress: float = 0.0
