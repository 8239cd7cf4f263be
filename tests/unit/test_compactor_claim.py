from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from annheal.compactor import claim as claim_module
from annheal.compactor.admission import (
    BACKOFF_MAX_S,
    OVERTAKING_MAX_S,
    Budget,
    QueuedTask,
    backoff_s,
    plan_claim,
)
from annheal.compactor.claim import Claim, failed_attempt, released
from annheal.errors import Conflict, Unavailable, UnknownOutcome
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import claim_key, task_key
from annheal.metastore.protocol import (
    Compare,
    LeaseExpired,
    MetaStore,
    Operation,
    Put,
)
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.topology.task import ATTEMPTS_MAX, CompactionTask, TaskClaim, TaskPhase
from tests.support.compaction import merge_task


@pytest.fixture
async def meta(tmp_path: Path) -> AsyncIterator[SqliteMetaStore]:
    store = SqliteMetaStore(tmp_path / "meta.db")
    yield store
    await store.close()


class Flaky:
    """Passes everything on; loses the answer of, or refuses, the commits it is told to."""

    def __init__(self, inner: MetaStore) -> None:
        self._inner = inner
        self.script: list[str] = []

    async def commit(
        self, operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
    ) -> int:
        fate = self.script.pop(0) if self.script else "done"
        if fate == "refused":
            raise Unavailable("away")
        if fate == "lost before":
            raise UnknownOutcome("lost")
        revision = await self._inner.commit(operations, compares=compares)
        if fate == "lost after":
            raise UnknownOutcome("lost")
        return revision

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def plan(
    tasks: Sequence[CompactionTask],
    *,
    claimed: Sequence[str] = (),
    memory_bytes_max: int = 100,
    free: Budget | None = None,
    now_s: float = 1_000.0,
) -> str | None:
    total = Budget(memory_bytes_max, 100)
    chosen = plan_claim(
        [QueuedTask(task, 1) for task in tasks],
        claimed=set(claimed),
        total=total,
        free=free or total,
        now_s=now_s,
    )
    return None if chosen is None else chosen.task.id


def test_highest_priority_then_oldest_task_is_taken() -> None:
    tasks = [
        merge_task(task_id="low", priority=0, created_at_s=1.0),
        merge_task(task_id="young", priority=5, created_at_s=3.0),
        merge_task(task_id="old", priority=5, created_at_s=2.0),
    ]
    assert plan(tasks) == "old"
    assert plan(tasks, claimed=["old"]) == "young"
    assert plan(tasks, claimed=["old", "young", "low"]) is None


@pytest.mark.parametrize("phase", [phase for phase in TaskPhase if phase != TaskPhase.PENDING])
def test_only_pending_tasks_are_taken(phase: TaskPhase) -> None:
    assert plan([merge_task(phase=phase)]) is None


def test_tasks_are_admitted_by_memory() -> None:
    large = merge_task(task_id="large", priority=9, estimated_bytes=101)
    small = merge_task(task_id="small", estimated_bytes=100)
    assert plan([large, small]) == "small"
    assert plan([large]) is None
    assert plan([large], memory_bytes_max=101) == "large"


def test_failed_attempt_rests_then_is_due_and_is_given_up_in_the_end() -> None:
    task = failed_attempt(merge_task(attempts=3), error="why", now_s=500.0)
    assert (task.phase, task.error, task.attempts) == (TaskPhase.PENDING, "why", 3)
    assert plan([task], now_s=500.0 + backoff_s(3) - 0.1) is None
    assert plan([task], now_s=500.0 + backoff_s(3)) == "t1"
    last = failed_attempt(merge_task(attempts=ATTEMPTS_MAX), error="why", now_s=500.0)
    assert last.phase is TaskPhase.FAILED


def test_backoff_grows_to_its_limit() -> None:
    waits = [backoff_s(attempts) for attempts in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[0] < waits[1]
    assert waits[-1] == BACKOFF_MAX_S


async def queue(meta: MetaStore) -> QueuedTask:
    task = merge_task("a", "b")
    revision = await meta.commit([Put(task_key(task.id), encode_value(task))])
    return QueuedTask(task, revision)


async def take(meta: MetaStore, queued: QueuedTask, worker: str = "w1") -> Claim | None:
    lease = await meta.grant_lease(30.0)
    return await Claim.take(meta, queued, worker_id=worker, lease=lease, now_s=7.0)


async def stored_task(meta: MetaStore) -> CompactionTask:
    stored = await meta.get(task_key("t1"))
    assert stored is not None
    return decode_value(stored.value, CompactionTask, key=stored.key)


async def stored_claim(meta: MetaStore) -> TaskClaim | None:
    stored = await meta.get(claim_key("t1"))
    return None if stored is None else decode_value(stored.value, TaskClaim, key=stored.key)


def built(claim: Claim) -> CompactionTask:
    return merge_task("a", "b", phase=TaskPhase.BUILT, attempts=claim.task.attempts)


async def test_one_of_many_workers_gets_the_task(meta: SqliteMetaStore) -> None:
    queued = await queue(meta)
    claims = await asyncio.gather(*(take(meta, queued, f"w{i}") for i in range(6)))
    winners = [claim for claim in claims if claim is not None]
    assert len(winners) == 1
    assert await stored_task(meta) == winners[0].task
    assert winners[0].task.attempts == 1
    claim = await stored_claim(meta)
    assert claim is not None
    assert claim.worker_id == winners[0].task.worker


async def test_finish_stores_the_outcome_and_gives_up_the_claim_at_once(
    meta: SqliteMetaStore,
) -> None:
    claim = await take(meta, await queue(meta))
    assert claim is not None
    await claim.publish(step="building", progress=0.5)
    shown = await stored_claim(meta)
    assert shown == TaskClaim("t1", "w1", 7.0, "building", 0.5)
    await claim.finish(built(claim))
    assert (await stored_task(meta)).phase is TaskPhase.BUILT
    assert await stored_claim(meta) is None


async def test_worker_that_lost_its_lease_cannot_report(meta: SqliteMetaStore) -> None:
    claim = await take(meta, await queue(meta))
    assert claim is not None
    await meta.expire_all_leases()
    with pytest.raises(LeaseExpired):
        await claim.publish(step="building", progress=0.1)
    with pytest.raises(LeaseExpired):
        await claim.finish(built(claim))
    assert (await stored_task(meta)).phase is TaskPhase.PENDING


async def test_deposed_worker_cannot_report_over_its_successor(meta: SqliteMetaStore) -> None:
    first = await take(meta, await queue(meta), "w1")
    assert first is not None
    await meta.expire_all_leases()
    second = await take(
        meta, QueuedTask(first.task, (await meta.list("tasks/")).items[0].mod_revision), "w2"
    )
    assert second is not None
    assert second.task.attempts == 2
    with pytest.raises(LeaseExpired):
        await first.finish(built(first))
    await second.finish(built(second))
    assert (await stored_task(meta)).attempts == 2


async def test_cancelled_task_is_not_reported_over(meta: SqliteMetaStore) -> None:
    claim = await take(meta, await queue(meta))
    assert claim is not None
    cancelled = merge_task("a", "b", phase=TaskPhase.CANCELLED)
    await meta.commit([Put(task_key("t1"), encode_value(cancelled))])
    with pytest.raises(LeaseExpired):
        await claim.finish(built(claim))
    assert await stored_task(meta) == cancelled


@pytest.mark.parametrize("fate", ["lost after", "lost before", "refused"])
async def test_report_whose_answer_is_lost_is_settled(
    meta: SqliteMetaStore, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "STORE_RETRY_S", 0.01)
    flaky = Flaky(meta)
    claim = await take(flaky, await queue(meta))  # type: ignore[arg-type]
    assert claim is not None
    flaky.script = [fate]
    await claim.finish(built(claim))
    assert (await stored_task(meta)).phase is TaskPhase.BUILT


async def test_claim_whose_answer_is_lost_is_held(meta: SqliteMetaStore) -> None:
    flaky = Flaky(meta)
    queued = await queue(meta)
    flaky.script = ["lost after"]
    claim = await take(flaky, queued)  # type: ignore[arg-type]
    assert claim is not None
    await claim.finish(built(claim))
    assert (await stored_task(meta)).phase is TaskPhase.BUILT


async def test_claim_that_never_arrived_is_not_held(meta: SqliteMetaStore) -> None:
    flaky = Flaky(meta)
    queued = await queue(meta)
    flaky.script = ["lost before"]
    assert await take(flaky, queued) is None  # type: ignore[arg-type]


async def test_progress_whose_answer_is_lost_does_not_lose_the_claim(
    meta: SqliteMetaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "STORE_RETRY_S", 0.01)
    flaky = Flaky(meta)
    claim = await take(flaky, await queue(meta))  # type: ignore[arg-type]
    assert claim is not None
    flaky.script = ["lost after"]
    await claim.publish(step="building", progress=0.2)
    await claim.publish(step="building", progress=0.4)
    # As if the process was cancelled in the middle of a publication that arrived all the same.
    stored = await meta.get(claim_key("t1"))
    assert stored is not None
    await meta.commit([Put(stored.key, stored.value, lease_id=stored.lease_id)])
    await claim.finish(built(claim))
    assert (await stored_task(meta)).phase is TaskPhase.BUILT


async def test_released_task_does_not_count_the_attempt(meta: SqliteMetaStore) -> None:
    claim = await take(meta, await queue(meta))
    assert claim is not None
    await claim.finish(released(claim.task))
    task = await stored_task(meta)
    assert (task.phase, task.attempts) == (TaskPhase.PENDING, 0)


async def test_stale_view_of_the_queue_claims_nothing(meta: SqliteMetaStore) -> None:
    queued = await queue(meta)
    claim = await take(meta, queued)
    assert claim is not None
    await claim.finish(built(claim))
    assert await take(meta, queued) is None
    with pytest.raises(Conflict):
        await meta.commit(
            [Put(task_key("t1"), b"{}")], compares=[Compare(task_key("t1"), queued.revision)]
        )


def test_small_tasks_overtake_a_large_one_until_it_has_waited_long() -> None:
    tasks = [
        merge_task(task_id="large", priority=5, estimated_bytes=90, created_at_s=1_000.0),
        merge_task(task_id="small", estimated_bytes=10, created_at_s=1_000.0),
    ]
    half = Budget(50, 100)
    assert plan(tasks) == "large"
    assert plan(tasks, free=half, now_s=1_000.0 + OVERTAKING_MAX_S) == "small"
    assert plan(tasks, free=half, now_s=1_001.0 + OVERTAKING_MAX_S) is None
    assert plan(tasks, free=half, claimed=["large"], now_s=1_001.0 + OVERTAKING_MAX_S) == "small"
    assert plan(tasks, memory_bytes_max=80, free=half, now_s=9_999.0) == "small"


def test_disk_counts_like_memory() -> None:
    task = merge_task(task_id="t", estimated_disk_bytes=60)
    assert plan([task], free=Budget(100, 60)) == "t"
    assert plan([task], free=Budget(100, 59)) is None
    assert plan([merge_task(estimated_disk_bytes=101)]) is None
    left = Budget(100, 100).minus([task, merge_task(estimated_bytes=30)])
    assert left == Budget(70, 40)
