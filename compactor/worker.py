"""The loop of a compactor: look at the queue, claim, work, report."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from typing import Any

from annheal.compactor.admission import QueuedTask, Room, plan_claim
from annheal.compactor.attempt import Attempt, run_progress
from annheal.compactor.claim import Claim, failed_attempt, released
from annheal.compactor.settings import CompactorSettings
from annheal.compactor.throttle import BuildTurns, ThrottledStore
from annheal.errors import AnnhealError, Unavailable, UnknownOutcome
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import CLAIMS_PREFIX, TASKS_PREFIX, parse_id, task_key
from annheal.metastore.lease_keeper import LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import LeaseExpired, MetaStore
from annheal.model.topology.task import ATTEMPTS_MAX, CompactionTask, TaskPhase
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.fail_points import fail_point

RELEASE_TIMEOUT_S = 2.0
ERROR_CHARACTERS_MAX = 1_000
ATTEMPTS_AT_ONCE_MAX = 64
"""However small the tasks are."""
DISK_FREE_SHARE = 0.9
"""Of the free disk, when the settings name no size."""
WORK_TO_DO = (Unavailable, UnknownOutcome, LeaseExpired)
"""What only means that the queue has to be looked at again later."""

_log = logging.getLogger(__name__)


class Worker:
    """Works on as many tasks at once as its memory and disk hold, until cancelled.

    `run` needs both mirrors to be followed by tasks of their own (`Mirror.run`).
    """

    def __init__(
        self,
        settings: CompactorSettings,
        meta: MetaStore,
        objects: ObjectStore,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._meta = meta
        self._objects = ThrottledStore(objects, bytes_per_s=settings.transfer_bytes_per_s)
        self._turns = BuildTurns(settings.build_threads)
        self._now_s = now_s
        self._running: dict[str, tuple[CompactionTask, asyncio.Task[None]]] = {}
        self._seen: dict[str, int] = {}
        self._too_large: set[str] = set()
        self._disk_bytes = 0
        self.tasks = Mirror(meta, TASKS_PREFIX)
        self.claims = Mirror(meta, CLAIMS_PREFIX)

    async def run(self) -> None:
        """Take tasks as they come; raises what ended one that must not end, such as a bug."""
        try:
            while True:
                versions = self.tasks.version, self.claims.version
                self._forget_ended()
                whole = await self._room()
                while (queued := self._next_task(whole)) is not None:
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
        except WORK_TO_DO as error:
            _log.warning("task %s is left to the queue: %s", queued.task.id, error)
            claimed = False
        if claimed:
            # The mirrors show the result shortly; until then the old state must not be read.
            self._seen[queued.task.id] = queued.revision
        else:
            # Another worker has it, which the mirror of claims shows shortly. Should that worker
            # die, the task is free again without having changed.
            await asyncio.sleep(self._settings.poll_interval_s)

    def _forget_ended(self) -> None:
        for task_id, (_, running) in list(self._running.items()):
            if running.done():
                del self._running[task_id]
                running.result()
        present = {parse_id(TASKS_PREFIX, key) for key in self.tasks.items}
        self._seen = {name: one for name, one in self._seen.items() if name in present}
        self._too_large &= present

    async def _room(self) -> Room:
        """Return what all tasks of this worker may need together."""
        settings = self._settings
        if settings.disk_bytes_max:
            self._disk_bytes = settings.disk_bytes_max
        elif not self._running:  # what runs has written a part of what it was allowed to
            usage = await asyncio.to_thread(shutil.disk_usage, settings.scratch_dir)
            self._disk_bytes = int(DISK_FREE_SHARE * usage.free)
        return Room(settings.memory_bytes_max, self._disk_bytes)

    async def work_on(self, queued: QueuedTask) -> bool:
        """Claim one task and bring the attempt to an end; False when another worker has it.

        Raises `LeaseExpired` when the claim was lost on the way, `Unavailable` or
        `UnknownOutcome` when the store could not be asked; the task is then free again.
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
                await self._until_lost(self._attempt(claim), keeper)
            except asyncio.CancelledError:
                await self._release(claim)
                raise
            return True

    async def _attempt(self, claim: Claim) -> None:
        task = claim.task
        _log.info("task %s: attempt %d", task.id, task.attempts)
        if task.attempts > ATTEMPTS_MAX:
            # Counted when claimed: every attempt before this one ended without a word.
            outcome = failed_attempt(
                task, error=f"{ATTEMPTS_MAX} workers died of it", now_s=self._now_s()
            )
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
            turns=self._turns,
            nice=self._settings.nice,
            now_s=self._now_s,
        )
        showing = asyncio.create_task(run_progress(claim, attempt.progress))
        withdrawal = asyncio.create_task(self._withdrawn(claim))
        working = asyncio.create_task(attempt.run(claim.task))
        try:
            await asyncio.wait({showing, withdrawal, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await _cancelled(working)
                if withdrawal.done():
                    withdrawal.result()
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
            await _cancelled(withdrawal)

    async def _withdrawn(self, claim: Claim) -> None:
        """Return when somebody else has changed the task: an operator who cancelled it."""
        key = task_key(claim.task.id)
        while True:
            version = self.tasks.version
            item = self.tasks.items.get(key)
            if item is None or item.mod_revision > claim.revision:
                return
            await self.tasks.wait_change(version)

    async def _until_lost(self, work: Coroutine[Any, Any, None], keeper: LeaseKeeper) -> None:
        """Run `work`, but cancel it and raise `LeaseExpired` as soon as the lease is lost."""
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
        """Put the task back at once because this worker stops; without success its lease ends."""
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await claim.finish(released(claim.task))
        except (TimeoutError, LeaseExpired) as error:
            _log.warning("task %s was not put back: %r", claim.task.id, error)

    def _next_task(self, whole: Room) -> QueuedTask | None:
        tasks = [
            QueuedTask(decode_value(item.value, CompactionTask, key=key), item.mod_revision)
            for key, item in self.tasks.items.items()
            if item.mod_revision > self._seen.get(parse_id(TASKS_PREFIX, key), 0)
        ]
        for queued in tasks:
            self._say_too_large(queued.task, whole)
        claimed = {parse_id(CLAIMS_PREFIX, key) for key in self.claims.items}
        if len(self._running) >= ATTEMPTS_AT_ONCE_MAX:
            return None
        return plan_claim(
            tasks,
            claimed=claimed | set(self._running),
            whole=whole,
            free=whole.without(task for task, _ in self._running.values()),
            now_s=self._now_s(),
        )

    def _say_too_large(self, task: CompactionTask, whole: Room) -> None:
        """Say once of each task that this worker will never do it."""
        if task.phase is not TaskPhase.PENDING or whole.holds(task) or task.id in self._too_large:
            return
        self._too_large.add(task.id)
        _log.warning(
            "task %s is left to others: it may need %d MiB of memory and %d MiB of disk, and this"
            " worker has %d and %d",
            task.id,
            task.estimated_bytes >> 20,
            task.estimated_disk_bytes >> 20,
            whole.memory_bytes >> 20,
            whole.disk_bytes >> 20,
        )

    async def _wait_change(self, tasks_version: int, claims_version: int) -> None:
        """Return when the queue changed, and after the poll interval at the latest."""
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
    """Cancel `task` and wait for its end; an error of its own is raised where it is awaited."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
