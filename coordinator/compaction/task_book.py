"""Compaction tasks in the metadata store; every change is a compare-and-swap of what was read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.election import Leadership
from annheal.errors import Conflict, FailedPrecondition, NotFound
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.limits import COMMIT_OPERATIONS_MAX
from annheal.metastore.protocol import Compare, Delete, MetaStore, Put
from annheal.metastore.table import Stored, readable
from annheal.model.topology.task import CompactionTask, TaskClaim, TaskPhase
from annheal.runtime.deadline import Deadline
from annheal.runtime.fail_points import fail_point
from annheal.runtime.retry import RetryPolicy, retry

_log = logging.getLogger(__name__)

TASKS_MAX = 10_000
"""Tasks that may be stored, finished ones included; new ones beyond it are not added."""
UNFINISHED = (TaskPhase.PENDING, TaskPhase.BUILT)
_POLICY = RetryPolicy(attempts_max=20)
_ADD_STEP = COMMIT_OPERATIONS_MAX // 2  # tasks of one commit
_CATALOG_WAIT_S = 2.0


class TaskBook:
    """Adds, changes and removes tasks.

    A caller that plans tasks holds `planning` from reading the tasks until `add` has returned, so
    that no segment is in two tasks. Two coordinators may still plan the same segment: then the
    owner publishes one of the tasks, and the other is cancelled as stale.
    """

    def __init__(
        self, catalog: Catalog, store: MetaStore, *, wall_clock: Callable[[], float]
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._wall_clock = wall_clock
        self.planning = asyncio.Lock()

    def all(self) -> tuple[Stored[CompactionTask], ...]:
        """Return every task, the newest first."""
        found = self._catalog.tasks()
        return tuple(sorted(found, key=lambda one: (-one.value.created_at_s, one.value.id)))

    async def get(self, task_id: str) -> Stored[CompactionTask]:
        """Return one task, read from the store; raises `NotFound`."""
        if task_id and "/" not in task_id:
            key = keys.task_key(task_id)
            stored = await self._store.get(key)
            if stored is not None:
                task = decode_value(stored.value, CompactionTask, key=key)
                return Stored(key, task, stored.mod_revision)
        raise NotFound(
            f"there is no task {task_id[:80]!r}; a finished task is deleted after a while",
            reason="TASK_NOT_FOUND",
        )

    async def claims(self) -> dict[str, TaskClaim]:
        """Return the claims of compactors by task id, read from the store."""
        snapshot = await self._store.list(keys.CLAIMS_PREFIX)
        found = readable(snapshot.items, TaskClaim)
        return {stored.value.task_id: stored.value for stored in found}

    async def add(self, tasks: Sequence[CompactionTask], *, term: Leadership | None = None) -> int:
        """Store new tasks as far as `TASKS_MAX` allows; return how many were stored.

        The catalog shows them when this returns, unless it needs more than `_CATALOG_WAIT_S`. With
        a `term`, raises `Conflict` when it is over.
        """
        room = max(0, TASKS_MAX - len(self._catalog.tasks()))
        tasks = tasks[:room]
        for first in range(0, len(tasks), _ADD_STEP):
            part = tasks[first : first + _ADD_STEP]
            compares = [Compare(keys.task_key(task.id), 0) for task in part]
            if term is not None:
                compares.append(term.guard())
            revision = await self._store.commit(
                [Put(keys.task_key(task.id), encode_value(task)) for task in part],
                compares=compares,
            )
            fail_point("coordinator.planned")
            await self._wait_for_catalog(revision)
        for task in tasks:
            _log.info(
                "task %s: %s of %d segments of shard %s/%05d: %s",
                task.id,
                task.reason.value,
                len(task.sources),
                task.collection_id,
                task.shard,
                task.why,
            )
        return len(tasks)

    async def finish(
        self,
        stored: Stored[CompactionTask],
        phase: TaskPhase,
        *,
        error: str = "",
        term: Leadership | None = None,
    ) -> bool:
        """Store `phase` as a task's end; return False if the task changed since it was read."""
        task = replace(
            stored.value,
            phase=phase,
            error=error or stored.value.error,
            finished_at_s=self._wall_clock(),
        )
        compares = [Compare(stored.key, stored.mod_revision)]
        if term is not None:
            compares.append(term.guard())
        try:
            revision = await self._store.commit(
                [Put(stored.key, encode_value(task))], compares=compares
            )
        except Conflict:
            return False
        await self._wait_for_catalog(revision)
        _log.info("task %s is %s%s", task.id, phase.value, f": {error}" if error else "")
        return True

    async def cancel(self, task_id: str, *, deadline: Deadline) -> CompactionTask:
        """Cancel a task; return it as stored.

        Cancelling twice is no error. Raises `NotFound`, and `FailedPrecondition` when the task has
        ended in another way.
        """

        async def attempt(_: Deadline) -> CompactionTask:
            stored = await self.get(task_id)
            if stored.value.phase is TaskPhase.CANCELLED:
                return stored.value
            if stored.value.phase not in UNFINISHED:
                raise FailedPrecondition(
                    f"task {task_id} is {stored.value.phase.value} already",
                    reason="TASK_FINISHED",
                )
            if not await self.finish(stored, TaskPhase.CANCELLED, error="cancelled on request"):
                raise Conflict(f"task {task_id} changed meanwhile")
            return (await self.get(task_id)).value

        return await retry(attempt, deadline=deadline, policy=_POLICY, mutation=True)

    async def release(self, task_id: str, *, deadline: Deadline) -> CompactionTask:
        """Put a failed task back into the queue with no attempt counted; return it as stored.

        Raises `NotFound`, and `FailedPrecondition` when the task has not failed or when one of its
        sources is in another unfinished task by now. The caller holds `planning`.
        """

        async def attempt(_: Deadline) -> CompactionTask:
            stored = await self.get(task_id)
            task = stored.value
            if task.phase is TaskPhase.PENDING and not task.attempts:
                return task
            if task.phase is not TaskPhase.FAILED:
                raise FailedPrecondition(
                    f"task {task_id} is {task.phase.value}; only failed tasks can be retried",
                    reason="TASK_NOT_FAILED",
                )
            for other in self._catalog.tasks():
                one = other.value
                shared = set(one.sources) & set(task.sources)
                same_shard = (one.collection_id, one.shard) == (task.collection_id, task.shard)
                if one.phase in UNFINISHED and shared and same_shard:
                    raise FailedPrecondition(
                        f"segment {min(shared)} of task {task_id} is in task {one.id} already",
                        reason="SEGMENT_BUSY",
                    )
            again = replace(task, phase=TaskPhase.PENDING, attempts=0, worker="", finished_at_s=0.0)
            revision = await self._store.commit(
                [Put(stored.key, encode_value(again))],
                compares=[Compare(stored.key, stored.mod_revision)],
            )
            await self._wait_for_catalog(revision)
            _log.info("task %s is back in the queue on request", task_id)
            return again

        return await retry(attempt, deadline=deadline, policy=_POLICY, mutation=True)

    async def forget_finished(self, *, retention_s: float, term: Leadership) -> int:
        """Delete the tasks that ended more than `retention_s` seconds ago; return how many."""
        before_s = self._wall_clock() - retention_s
        old = [
            stored
            for stored in self._catalog.tasks()
            if stored.value.phase not in UNFINISHED and stored.value.finished_at_s < before_s
        ]
        for stored in old:
            await self._store.commit(
                [Delete(stored.key)],
                compares=[Compare(stored.key, stored.mod_revision), term.guard()],
            )
        return len(old)

    async def _wait_for_catalog(self, revision: int) -> None:
        await self._catalog.wait_revision(revision, of=keys.TASKS_PREFIX, timeout_s=_CATALOG_WAIT_S)
