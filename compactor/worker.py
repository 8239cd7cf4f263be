"""The loop of a compactor: look at the queue, claim, work, report."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from annheal.errors import AnnhealError, Unavailable, UnknownOutcome
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import CLAIMS_PREFIX, TASKS_PREFIX, parse_id
from annheal.metastore.lease_keeper import LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import LeaseExpired, MetaStore
from annheal.model.task import ATTEMPTS_MAX, CompactionTask, TaskPhase
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.fail_points import fail_point
from compactor.attempt import Attempt, run_progress
from compactor.claim import Claim, QueuedTask, failed_attempt, plan_claim, released
from compactor.settings import CompactorSettings

RELEASE_TIMEOUT_S = 2.0
ERROR_CHARACTERS_MAX = 1_000
WORK_TO_DO = (Unavailable, UnknownOutcome, LeaseExpired)
"""What only means that the queue has to be looked at again later."""

_log = logging.getLogger(__name__)


class Worker:
    """Works on one task at a time, until cancelled.

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
        self._objects = objects
        self._now_s = now_s
        self.tasks = Mirror(meta, TASKS_PREFIX)
        self.claims = Mirror(meta, CLAIMS_PREFIX)

    async def run(self) -> None:
        """Take tasks as they come."""
        while True:
            seen = self.tasks.version, self.claims.version
            queued = self._next_task()
            if queued is None:
                await self._wait_change(*seen)
                continue
            try:
                await self.work_on(queued)
            except WORK_TO_DO as error:
                _log.warning("task %s is left to the queue: %s", queued.task.id, error)
                await asyncio.sleep(self._settings.poll_interval_s)
            else:
                # The mirrors show the result shortly; until then the old state must not be read.
                await self._wait_change(*seen)

    async def work_on(self, queued: QueuedTask) -> None:
        """Claim one task and bring the attempt to an end.

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
                return
            try:
                await self._until_lost(self._attempt(claim), keeper)
            except asyncio.CancelledError:
                await self._release(claim)
                raise

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
            threads=self._settings.build_threads,
            now_s=self._now_s,
        )
        showing = asyncio.create_task(run_progress(claim, attempt.progress))
        working = asyncio.create_task(attempt.run(claim.task))
        try:
            await asyncio.wait({showing, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await _cancelled(working)
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

    def _next_task(self) -> QueuedTask | None:
        tasks = [
            QueuedTask(decode_value(item.value, CompactionTask, key=key), item.mod_revision)
            for key, item in self.tasks.items.items()
        ]
        for queued in tasks:
            too_large = queued.task.estimated_bytes > self._settings.memory_bytes_max
            if too_large and queued.task.phase is TaskPhase.PENDING:
                _log.debug("task %s does not fit into this worker's memory", queued.task.id)
        return plan_claim(
            tasks,
            claimed={parse_id(CLAIMS_PREFIX, key) for key in self.claims.items},
            memory_bytes_max=self._settings.memory_bytes_max,
            now_s=self._now_s(),
        )

    async def _wait_change(self, tasks_version: int, claims_version: int) -> None:
        """Return when the queue changed, and after the poll interval at the latest."""
        waits = {
            asyncio.create_task(self.tasks.wait_change(tasks_version)),
            asyncio.create_task(self.claims.wait_change(claims_version)),
        }
        try:
            await asyncio.wait(
                waits,
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
