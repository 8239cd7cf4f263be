"""Claims a task of the queue and stores its outcome.

A claim is a key with a lease. The lease belongs to one attempt: when the attempt ends in any way,
the claim ends too, and other workers can claim the task. Every commit compares the revisions of
both the task and the claim, so a worker that lost its lease cannot store an outcome, as a fenced
owner cannot write (INV-4).
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
    """A task that this worker has claimed. Not for concurrent use.

    Attributes:
        task: the task as stored, with this attempt counted.
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
        """Claim a task under `lease`; return None when another worker has claimed it.

        The attempt is counted at its start, so that a task whose workers crash is given up after
        `ATTEMPTS_MAX` attempts like one whose attempts raise. Raises `Unavailable` when the store
        cannot be reached.
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
        """Store the step and its progress (a share in [0, 1]) in the claim, for operators.

        Raises `LeaseExpired` when the claim is lost, `Unavailable` when the store cannot be
        reached.
        """
        claim = replace(self._claim, step=step, progress=progress)
        key = claim_key(self.task.id)
        try:
            self._claim_revision = await self._meta.commit(
                [Put(key, encode_value(claim), lease_id=self._lease.id)],
                compares=[Compare(key, self._claim_revision)],
            )
        except (Conflict, UnknownOutcome):
            # An earlier commit whose answer was lost may have changed the claim's revision.
            await self._read_back()
        self._claim = claim

    async def finish(self, outcome: CompactionTask) -> None:
        """Store `outcome` and delete the claim in one commit; repeat while the store is away.

        Raises `LeaseExpired` when the claim was lost or the task was changed by another process;
        then nothing was stored.
        """
        while True:
            try:
                await self._commit(outcome)
                return
            except (Conflict, UnknownOutcome) as error:
                if await self._is_stored(outcome):
                    return
                _log.info("the outcome of task %s is stored again: %s", self.task.id, error)
            except Unavailable as error:
                _log.warning("the outcome of task %s is not stored yet: %s", self.task.id, error)
            await asyncio.sleep(STORE_RETRY_S)

    async def _commit(self, outcome: CompactionTask) -> None:
        key, claim = task_key(self.task.id), claim_key(self.task.id)
        await self._meta.commit(
            [Put(key, encode_value(outcome)), Delete(claim)],
            compares=[Compare(key, self._task_revision), Compare(claim, self._claim_revision)],
        )

    async def _is_stored(self, outcome: CompactionTask) -> bool:
        """Return whether `outcome` is stored; False: commit again with the revision read back."""
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
        """Read the claim's revision; raises `LeaseExpired` when the claim is no longer ours."""
        stored = await self._meta.get(claim_key(self.task.id))
        if stored is None or stored.lease_id != self._lease.id:
            raise self._lost()
        self._claim_revision = stored.mod_revision

    def _lost(self) -> LeaseExpired:
        return LeaseExpired(f"the claim on task {self.task.id} is lost")


def failed_attempt(task: CompactionTask, *, error: str, now_s: float) -> CompactionTask:
    """Return the task after a failed attempt, which is counted already.

    It is PENDING again, or FAILED after `ATTEMPTS_MAX` attempts.
    """
    phase = TaskPhase.FAILED if task.attempts >= ATTEMPTS_MAX else TaskPhase.PENDING
    return replace(task, phase=phase, error=error, finished_at_s=now_s)


def released(task: CompactionTask) -> CompactionTask:
    """Return the task as a stopping worker puts it back: without counting this attempt."""
    return replace(task, attempts=task.attempts - 1)
