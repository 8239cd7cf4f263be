"""Taking a task from the queue, and saying what became of it.

A claim is a leased key. Its lease belongs to this one attempt, so however the attempt ends, the
claim ends too and the task is free again. Everything that is written about a task is guarded by the
revisions of both the task and the claim: a worker that lost its lease cannot report (INV-4's twin
for compactions).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from annheal.compactor.admission import QueuedTask
from annheal.errors import Conflict, Unavailable, UnknownOutcome
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import claim_key, task_key
from annheal.metastore.protocol import Compare, Delete, Lease, LeaseExpired, MetaStore, Put
from annheal.model.topology.task import ATTEMPTS_MAX, CompactionTask, TaskClaim, TaskPhase

STORE_RETRY_S = 0.5

_log = logging.getLogger(__name__)


class Claim:
    """A task that this worker holds. Not for concurrent use, but for `publish` from one task.

    Attributes:
        task: as stored, with this attempt counted.
    """

    def __init__(
        self,
        meta: MetaStore,
        task: CompactionTask,
        claim: TaskClaim,
        *,
        lease: Lease,
        revision: int,
    ) -> None:
        """Use `take`."""
        self.task = task
        self._meta = meta
        self._claim = claim
        self._lease = lease
        self._task_revision = revision
        self._claim_revision = revision

    @classmethod
    async def take(
        cls, meta: MetaStore, queued: QueuedTask, *, worker_id: str, lease: Lease, now_s: float
    ) -> Claim | None:
        """Claim a task under `lease`; None when another worker was faster.

        The attempt is counted now and not when it fails, so that a task that kills its workers
        is quarantined like one that raises.
        """
        task = replace(queued.task, attempts=queued.task.attempts + 1, worker=worker_id)
        claim = TaskClaim(task.id, worker_id, claimed_at_s=now_s)
        try:
            revision = await meta.commit(
                [
                    Put(task_key(task.id), encode_value(task)),
                    Put(claim_key(task.id), encode_value(claim), lease_id=lease.id),
                ],
                compares=[
                    Compare(task_key(task.id), queued.revision),
                    Compare(claim_key(task.id), 0),
                ],
            )
        except Conflict:
            return None
        except UnknownOutcome:
            stored = await meta.get(claim_key(task.id))
            if stored is None or stored.lease_id != lease.id:
                return None
            revision = stored.mod_revision
        return cls(meta, task, claim, lease=lease, revision=revision)

    @property
    def revision(self) -> int:
        """The revision of the task as this claim wrote it."""
        return self._task_revision

    async def publish(self, *, step: str, progress: float) -> None:
        """Show how far the work is.

        Raises `LeaseExpired` when the claim is lost, `Unavailable` when the store is away.
        """
        claim = replace(self._claim, step=step, progress=progress)
        key = claim_key(self.task.id)
        try:
            self._claim_revision = await self._meta.commit(
                [Put(key, encode_value(claim), lease_id=self._lease.id)],
                compares=[Compare(key, self._claim_revision)],
            )
        except (Conflict, UnknownOutcome):
            # Perhaps an earlier publication, whose answer was lost, has taken effect.
            await self._read_back()
        self._claim = claim

    async def finish(self, outcome: CompactionTask) -> None:
        """Store what became of the task and give up the claim, at once; waits for the store.

        Raises `LeaseExpired` when the claim was lost or somebody else changed the task: then
        nothing was stored.
        """
        while True:
            try:
                await self._commit(outcome)
                return
            except (Conflict, UnknownOutcome) as error:
                if await self._settled(outcome):
                    return
                _log.info("task %s is reported again: %s", self.task.id, error)
            except Unavailable as error:
                _log.warning("task %s cannot be reported yet: %s", self.task.id, error)
            await asyncio.sleep(STORE_RETRY_S)

    async def _commit(self, outcome: CompactionTask) -> None:
        key, claim = task_key(self.task.id), claim_key(self.task.id)
        await self._meta.commit(
            [Put(key, encode_value(outcome)), Delete(claim)],
            compares=[Compare(key, self._task_revision), Compare(claim, self._claim_revision)],
        )

    async def _settled(self, outcome: CompactionTask) -> bool:
        """Return whether `outcome` is stored; False: try again with what was read back."""
        key = task_key(self.task.id)
        try:
            stored = await self._meta.get(key)
            if stored is None:
                raise self._lost()
            if stored.mod_revision == self._task_revision:
                await self._read_back()
                return False
        except Unavailable:
            return False
        if decode_value(stored.value, CompactionTask, key=key) == outcome:
            return True
        raise self._lost()

    async def _read_back(self) -> None:
        """Learn the claim's present revision; raises `LeaseExpired` when it is not ours now."""
        stored = await self._meta.get(claim_key(self.task.id))
        if stored is None or stored.lease_id != self._lease.id:
            raise self._lost()
        self._claim_revision = stored.mod_revision

    def _lost(self) -> LeaseExpired:
        return LeaseExpired(f"the claim on task {self.task.id} is lost")


def failed_attempt(task: CompactionTask, *, error: str, now_s: float) -> CompactionTask:
    """Return the task after an attempt (already counted) failed: back in the queue, or given up."""
    phase = TaskPhase.FAILED if task.attempts >= ATTEMPTS_MAX else TaskPhase.PENDING
    return replace(task, phase=phase, error=error, finished_at_s=now_s)


def released(task: CompactionTask) -> CompactionTask:
    """Return the task as a worker that is being stopped puts it back: this attempt is free."""
    return replace(task, attempts=task.attempts - 1)
