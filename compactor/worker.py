"""The loop of a compactor: read the queue, claim tasks, run their attempts, store the outcomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from annheal.compactor.admission import Budget, QueuedTask, plan_claim
from annheal.compactor.attempt import Attempt, run_progress
from annheal.compactor.claim import Claim, failed_attempt, released
from annheal.compactor.settings import CompactorSettings
from annheal.compactor.throttle import BuildSlots, ThrottledStore
from annheal.embedding.host import EmbedderHost
from annheal.errors import AnnhealError, Unavailable, UnknownOutcome
from annheal.metastore.keys import CLAIMS_PREFIX, TASKS_PREFIX, task_key
from annheal.metastore.lease_keeper import LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import LeaseExpired, MetaStore
from annheal.metastore.table import Table
from annheal.model.topology.task import ATTEMPTS_MAX, CompactionTask, TaskPhase
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import Clock, wall_s
from annheal.runtime.fail_points import fail_point
from annheal.runtime.host.disk import DiskWatch, room_at

RELEASE_TIMEOUT_S = 2.0
ERROR_CHARACTERS_MAX = 1_000
ATTEMPTS_AT_ONCE_MAX = 64
"""Attempts of one worker at the same time, whatever its budget."""
DISK_FREE_SHARE = 0.9
"""Share of the free disk that is the budget, at most, when `disk_bytes_max` is 0."""
LEFT_IN_QUEUE_ERRORS = (Unavailable, UnknownOutcome, LeaseExpired)
"""Errors after which a task stays in the queue, without a stored outcome; it is claimed again."""

_log = logging.getLogger(__name__)


class Worker:
    """Works on as many tasks at the same time as its budget of memory and disk allows.

    Below the reserve of `disks` no task is begun, and tasks that run go on. While `run` runs, the
    caller runs `Mirror.run` of `tasks` and of `claims` as tasks of their own.
    """

    def __init__(
        self,
        settings: CompactorSettings,
        meta: MetaStore,
        objects: ObjectStore,
        *,
        disks: DiskWatch,
        now_s: Clock = wall_s,
    ) -> None:
        self._settings = settings
        self._disks = disks
        self._meta = meta
        self._objects = ThrottledStore(objects, bytes_per_s=settings.transfer_bytes_per_s)
        self._slots = BuildSlots(settings.build_threads)
        self._now_s = now_s
        self._running: dict[str, tuple[CompactionTask, asyncio.Task[None]]] = {}
        self._done_revisions: dict[str, int] = {}
        self._too_large: set[str] = set()
        self._disk_bytes = 0
        self.tasks = Mirror(meta, TASKS_PREFIX)
        self.claims = Mirror(meta, CLAIMS_PREFIX)
        self._task_table = Table(self.tasks, CompactionTask)

    async def run(self) -> None:
        """Work on tasks until cancelled; raises an error that is a bug."""
        try:
            while True:
                versions = self.tasks.version, self.claims.version
                self._forget_ended()
                total = await self._budget()
                room = self._disks.low()
                while room is None and (queued := self._next_task(total)) is not None:
                    self._start(queued)
                await self._wait_change(*versions)
        finally:
            for _, running in self._running.values():
                running.cancel()
            if self._running:
                await asyncio.wait([running for _, running in self._running.values()])

    def _start(self, queued: QueuedTask) -> None:
        task = queued.task
        running = asyncio.create_task(self._work(queued), name=f"task-{task.id}")
        self._running[task.id] = (task, running)

    async def _work(self, queued: QueuedTask) -> None:
        try:
            claimed = await self.work_on(queued)
        except LEFT_IN_QUEUE_ERRORS as error:
            _log.warning("task %s stays in the queue: %s", queued.task.id, error)
            claimed = False
        if claimed:
            # The mirror shows the outcome a little later; until then its older state is ignored.
            self._done_revisions[queued.task.id] = queued.revision
        else:
            # Another worker has claimed it, which the mirror of claims shows a little later. The
            # revision is not noted: if that worker dies, the task is free without a change.
            await asyncio.sleep(self._settings.poll_interval_s)

    def _forget_ended(self) -> None:
        for task_id, (_, running) in list(self._running.items()):
            if running.done():
                del self._running[task_id]
                running.result()
        present = _ids(TASKS_PREFIX, self.tasks)
        self._done_revisions = {
            task_id: revision
            for task_id, revision in self._done_revisions.items()
            if task_id in present
        }
        self._too_large &= present

    async def _budget(self) -> Budget:
        """Return the budget of all tasks of this worker together."""
        settings = self._settings
        if settings.disk_bytes_max:
            self._disk_bytes = settings.disk_bytes_max
        elif not self._running:  # running tasks have used a part of the free disk already
            room = await asyncio.to_thread(
                room_at, settings.scratch_dir, reserve_bytes=settings.disk_reserve_bytes
            )
            above_reserve = max(0, room.free_bytes - room.reserve_bytes)
            self._disk_bytes = min(int(DISK_FREE_SHARE * room.free_bytes), above_reserve)
        return Budget(settings.memory_bytes_max, self._disk_bytes)

    async def work_on(self, queued: QueuedTask) -> bool:
        """Claim a task, run one attempt and store its outcome; False if another worker has it.

        Raises `LeaseExpired` when the claim was lost meanwhile, `Unavailable` or `UnknownOutcome`
        when the metadata store could not be reached; then the task can be claimed again.
        """
        async with LeaseKeeper(self._meta, ttl_s=self._settings.lease_ttl_s) as keeper:
            claim = await Claim.take(
                self._meta,
                queued,
                worker_id=self._settings.worker_id,
                lease=keeper.lease,
                now_s=self._now_s(),
            )
            if claim is None:
                return False
            try:
                await self._run_under_lease(self._attempt(claim), keeper)
            except asyncio.CancelledError:
                await self._release(claim)
                raise
            return True

    async def _attempt(self, claim: Claim) -> None:
        task = claim.task
        _log.info("task %s: attempt %d", task.id, task.attempts)
        if task.attempts > ATTEMPTS_MAX:
            # Attempts are counted at their start: all earlier ones ended without an outcome.
            error = f"{ATTEMPTS_MAX} workers died during an attempt"
            outcome = failed_attempt(task, error=error, now_s=self._now_s())
        else:
            outcome = await self._outcome(claim)
        await claim.finish(outcome)
        fail_point("compactor.reported")
        _log.info("task %s is %s", task.id, outcome.phase.value)

    async def _outcome(self, claim: Claim) -> CompactionTask:
        attempt = Attempt(
            self._meta,
            self._objects,
            worker_dir=self._settings.worker_dir,
            slots=self._slots,
            nice=self._settings.nice,
            now_s=self._now_s,
            host=EmbedderHost(
                self._settings.embedder_dir,
                self._settings.embedder_urls,
                nice=self._settings.nice,
            ),
        )
        showing = asyncio.create_task(run_progress(claim, attempt.progress))
        cancellation = asyncio.create_task(self._wait_changed(claim))
        working = asyncio.create_task(attempt.run(claim.task))
        try:
            await asyncio.wait(
                {showing, cancellation, working}, return_when=asyncio.FIRST_COMPLETED
            )
            if not working.done():
                await _cancelled(working)
                if cancellation.done():
                    cancellation.result()
                    raise LeaseExpired("the task was cancelled")
                await showing  # raises why it ended
            return await working
        except LeaseExpired:
            raise
        except (AnnhealError, OSError, MemoryError) as error:
            _log.warning("task %s failed", claim.task.id, exc_info=error)
            text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
            return failed_attempt(claim.task, error=text, now_s=self._now_s())
        finally:
            await _cancelled(working)
            await _cancelled(showing)
            await _cancelled(cancellation)

    async def _wait_changed(self, claim: Claim) -> None:
        """Return when another process has changed the task, as when an operator cancels it."""
        key = task_key(claim.task.id)
        while True:
            version = self.tasks.version
            item = self.tasks.items.get(key)
            if item is None or item.mod_revision > claim.revision:
                return
            await self.tasks.wait_change(version)

    async def _run_under_lease(self, work: Coroutine[Any, Any, None], keeper: LeaseKeeper) -> None:
        """Run `work`; when the lease is lost, cancel it and raise `LeaseExpired`."""
        working = asyncio.create_task(work)
        losing = asyncio.create_task(keeper.lost.wait())
        try:
            await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise LeaseExpired("the lease was lost; the work is abandoned")
            await working
        finally:
            await _cancelled(working)
            await _cancelled(losing)

    async def _release(self, claim: Claim) -> None:
        """Put the task back because this worker stops; if that fails, the lease ends by itself."""
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await claim.finish(released(claim.task))
        except (TimeoutError, LeaseExpired) as error:
            _log.warning("task %s was not put back into the queue: %r", claim.task.id, error)

    def _next_task(self, total: Budget) -> QueuedTask | None:
        tasks = [
            QueuedTask(stored.value, stored.mod_revision)
            for stored in self._task_table.entries.values()
            if stored.mod_revision > self._done_revisions.get(stored.value.id, 0)
        ]
        for queued in tasks:
            self._warn_too_large(queued.task, total)
        claimed = _ids(CLAIMS_PREFIX, self.claims)
        if len(self._running) >= ATTEMPTS_AT_ONCE_MAX:
            return None
        return plan_claim(
            tasks,
            claimed=claimed | set(self._running),
            total=total,
            free=total.minus(task for task, _ in self._running.values()),
            now_s=self._now_s(),
        )

    def _warn_too_large(self, task: CompactionTask, total: Budget) -> None:
        """Log once for each task that does not fit into this worker's budget."""
        if task.phase is not TaskPhase.PENDING or total.fits(task) or task.id in self._too_large:
            return
        self._too_large.add(task.id)
        _log.warning(
            "task %s is too large for this worker: it may need %d MiB of memory and %d MiB of disk;"
            " the worker has %d and %d",
            task.id,
            task.estimated_bytes >> 20,
            task.estimated_disk_bytes >> 20,
            total.memory_bytes >> 20,
            total.disk_bytes >> 20,
        )

    async def _wait_change(self, tasks_version: int, claims_version: int) -> None:
        """Return when the queue has changed or an attempt has ended, or after `poll_interval_s`."""
        waits = {
            asyncio.create_task(self.tasks.wait_change(tasks_version)),
            asyncio.create_task(self.claims.wait_change(claims_version)),
        }
        working = {running for _, running in self._running.values()}
        try:
            await asyncio.wait(
                waits | working,
                timeout=self._settings.poll_interval_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for wait in waits:
                wait.cancel()


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end; its own error, if any, is not raised here."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _ids(prefix: str, mirror: Mirror) -> set[str]:
    """Return what follows `prefix` in the keys of `mirror`."""
    return {key.removeprefix(prefix) for key in mirror.items}
