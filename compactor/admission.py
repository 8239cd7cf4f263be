"""Which task a worker takes next: by priority, and by the memory and disk that it will need. Pure.

Tasks are admitted by estimated bytes and not by their number: several small ones run beside one
another, a large one waits until there is room. It must not wait for ever: once the next in turn has
waited for `PATIENCE_S`, nothing overtakes it any more, and what runs makes room.
"""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Iterable
from dataclasses import dataclass

from annheal.model.topology.task import CompactionTask, TaskPhase

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
PATIENCE_S = 60.0
"""How long the next task in turn lets others overtake it that need less room."""


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task and the revision that it was read at."""

    task: CompactionTask
    revision: int


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of memory and of disk."""

    memory_bytes: int
    disk_bytes: int

    def holds(self, task: CompactionTask) -> bool:
        """Return whether the estimates of `task` fit."""
        return (
            task.estimated_bytes <= self.memory_bytes
            and task.estimated_disk_bytes <= self.disk_bytes
        )

    def without(self, tasks: Iterable[CompactionTask]) -> Room:
        """Return what `tasks` leave of it."""
        tasks = tuple(tasks)
        return Room(
            self.memory_bytes - sum(one.estimated_bytes for one in tasks),
            self.disk_bytes - sum(one.estimated_disk_bytes for one in tasks),
        )


def backoff_s(attempts: int) -> float:
    """Return how long a task rests after its `attempts`-th attempt failed."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** max(0, attempts - 1))


def plan_claim(
    tasks: Iterable[QueuedTask],
    *,
    claimed: AnyOf[str],
    whole: Room,
    free: Room,
    now_s: float,
) -> QueuedTask | None:
    """Return the task to take next, or None.

    `claimed` are the ids of tasks that somebody works on; `whole` is the room of this worker,
    `free` what its own tasks leave of it. Of the pending tasks that fit into `whole` and do not
    rest after a failure (`finished_at_s` of a pending task is when its last attempt failed), the
    highest priority wins, then the oldest.
    """
    due = [
        queued
        for queued in tasks
        if queued.task.phase is TaskPhase.PENDING
        and queued.task.id not in claimed
        and whole.holds(queued.task)
        and now_s >= _due_s(queued.task)
    ]
    for queued in sorted(due, key=_turn):
        if free.holds(queued.task):
            return queued
        if now_s - max(queued.task.created_at_s, _due_s(queued.task)) > PATIENCE_S:
            return None
    return None


def _turn(queued: QueuedTask) -> tuple[int, float, str]:
    return -queued.task.priority, queued.task.created_at_s, queued.task.id


def _due_s(task: CompactionTask) -> float:
    if not task.finished_at_s:
        return 0.0
    return task.finished_at_s + backoff_s(task.attempts)
