"""Which task a worker claims next: by priority, and by its estimated memory and disk. Pure.

A worker's budget is bytes of memory and disk, not a number of tasks: several small tasks run at the
same time. A task that does not fit into the free budget is overtaken by smaller ones for at most
`OVERTAKING_MAX_S`. After that the worker claims nothing else until running tasks have ended and the
task fits.
"""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Iterable
from dataclasses import dataclass

from annheal.model.topology.task import CompactionTask, TaskPhase

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
OVERTAKING_MAX_S = 60.0
"""Seconds for which tasks that need less memory or disk may overtake the first in the queue."""


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task and its revision in the metadata store."""

    task: CompactionTask
    revision: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of memory and of scratch disk."""

    memory_bytes: int
    disk_bytes: int

    def fits(self, task: CompactionTask) -> bool:
        """Return whether the estimates of `task` are within the budget."""
        return (
            task.estimated_bytes <= self.memory_bytes
            and task.estimated_disk_bytes <= self.disk_bytes
        )

    def minus(self, tasks: Iterable[CompactionTask]) -> Budget:
        """Return the budget less the estimates of `tasks`."""
        tasks = tuple(tasks)
        return Budget(
            self.memory_bytes - sum(task.estimated_bytes for task in tasks),
            self.disk_bytes - sum(task.estimated_disk_bytes for task in tasks),
        )


def backoff_s(attempts: int) -> float:
    """Return the seconds between the failure of a task's `attempts`-th attempt and the next one."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** max(0, attempts - 1))


def plan_claim(
    tasks: Iterable[QueuedTask],
    *,
    claimed: AnyOf[str],
    total: Budget,
    free: Budget,
    now_s: float,
) -> QueuedTask | None:
    """Return the task to claim next, or None.

    `claimed` are the ids of tasks with a claim; `total` is this worker's budget, `free` the part
    that its running tasks do not use. Candidates are the pending tasks that fit into `total` and
    whose backoff after a failed attempt is over (`finished_at_s` of a pending task is the time of
    that failure). The highest priority comes first, then the oldest. The first that fits into
    `free` is returned, unless one before it has been overtaken for `OVERTAKING_MAX_S`.
    """
    due = [
        queued
        for queued in tasks
        if queued.task.phase is TaskPhase.PENDING
        and queued.task.id not in claimed
        and total.fits(queued.task)
        and now_s >= _due_s(queued.task)
    ]
    for queued in sorted(due, key=_queue_order):
        if free.fits(queued.task):
            return queued
        if now_s - max(queued.task.created_at_s, _due_s(queued.task)) > OVERTAKING_MAX_S:
            return None
    return None


def _queue_order(queued: QueuedTask) -> tuple[int, float, str]:
    return -queued.task.priority, queued.task.created_at_s, queued.task.id


def _due_s(task: CompactionTask) -> float:
    """Return when the backoff of a pending task ends, 0 if no attempt has failed."""
    if not task.finished_at_s:
        return 0.0
    return task.finished_at_s + backoff_s(task.attempts)
