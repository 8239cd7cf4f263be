from __future__ import annotations

import asyncio
import fcntl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annheal.compactor import admission as admission_module
from annheal.compactor import attempt as attempt_module
from annheal.compactor import throttle as throttle_module
from annheal.compactor.app import run_compactor
from annheal.compactor.build.build import HNSW_ROWS_MIN
from annheal.compactor.scratch import LOCK_FILE, LOCK_RETRY_S
from annheal.compactor.settings import CompactorSettings
from annheal.errors import FailedPrecondition, Unavailable
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import claim_key, compactor_key
from annheal.metastore.protocol import Delete, KeyValue
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.model.topology.shard import WorkerRegistration, WorkerRole
from annheal.model.topology.task import ATTEMPTS_MAX, TaskClaim, TaskPhase
from annheal.objectstore.local import LocalObjectStore
from annheal.runtime.host import disk
from annheal.runtime.metrics import Metrics
from annheal.segment.meta import INDEX_FILE
from annheal.shards.object_keys import segment_key
from tests.support.compaction import COLLECTION_ID, DEADLINE_S, SHARD, Workplace, merge_task
from tests.support.segments import sample_rows


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workplace]:
    meta = SqliteMetaStore(tmp_path / "meta.db")
    objects = LocalObjectStore(tmp_path / "objects")
    yield Workplace(meta, objects, tmp_path)
    await objects.close()
    await meta.close()


@asynccontextmanager
async def compactor(
    place: Workplace,
    *,
    metrics: Metrics | None = None,
    worker_id: str = "w1",
    memory_bytes_max: int = 1 << 30,
    lease_ttl_s: float = 5.0,
    threads: int = 1,
    disk_reserve_bytes: int = 0,
) -> AsyncIterator[asyncio.Event]:
    settings = CompactorSettings(
        worker_id=worker_id,
        scratch_dir=place.directory / "scratch",
        threads=threads,
        poll_interval_s=0.05,
        lease_ttl_s=lease_ttl_s,
        memory_bytes_max=memory_bytes_max,
        disk_reserve_bytes=disk_reserve_bytes,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_compactor(settings, place.meta, place.objects, stop=stop, metrics=metrics)
    )
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await running
    assert not settings.worker_dir.exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the condition belongs to another thread
            await asyncio.sleep(0.01)


class HeldBuild:
    """Holds builds until told to go on; notices when they are told to give up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.gave_up = threading.Event()
        real = attempt_module.build_segment

        def held(sources: object, order: attempt_module.BuildOrder, **options: object) -> object:
            self.entered.set()
            while not self.go_on.wait(0.01):
                try:
                    order.on_progress(0.25)
                except BaseException:
                    self.gave_up.set()
                    raise
            return real(sources, order, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(attempt_module, "build_segment", held)


async def test_merge_is_built_from_the_live_rows_and_reported(place: Workplace) -> None:
    await place.add_segment("a", sample_rows(1_500), dead=range(100))
    await place.add_segment("b", sample_rows(1_000, first=1_500), dead=[0])
    await place.add_task(merge_task("a", "b"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED)
    assert task.phase is TaskPhase.BUILT, task.error
    assert (task.rows_in, task.rows_out, task.worker, task.attempts) == (2_500, 2_399, "w1", 1)
    assert task.output is not None
    assert (task.output.index_kind, task.output.tier) == (IndexKind.HNSW, Tier.WARM)
    assert not await place.is_claimed()
    segment = await place.open(task.output)
    ids = set(segment.ids.to_pylist())
    assert ids == {f"record-{n}" for n in range(2_500)} - {
        *(f"record-{n}" for n in range(100)),
        "record-1500",
    }
    _, rows = segment.index.search(segment.index.reconstruct(np.arange(50)), k=1, ef=128)
    assert rows[:, 0].tolist() == list(range(50))


async def test_below_the_reserve_no_task_is_begun_and_the_registration_says_so(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The share of the disk that the reserve may be is raised above it, and lowered to nothing."""
    monkeypatch.setattr(disk, "RESERVE_SHARE_MAX", 10.0)
    await place.add_segment("a", sample_rows(50), dead=range(5))
    await place.add_task(merge_task("a"))

    async def disk_part() -> PartHealth | None:
        stored = await place.meta.get(compactor_key("w1"))
        if stored is None:
            return None
        found = decode_value(stored.value, WorkerRegistration, key=compactor_key("w1"))
        return next((one for one in found.parts if one.kind is PartKind.DISK), None)

    async def reported(*, works: bool) -> PartHealth:
        async with asyncio.timeout(DEADLINE_S):
            while (part := await disk_part()) is None or part.works is not works:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return part

    began_s = time.time()
    async with compactor(place, disk_reserve_bytes=1 << 60):
        low = await reported(works=False)
        assert low.process == "w1"
        assert began_s <= low.failing_since_s <= time.time()
        assert "new tasks need" in low.error
        assert "new tasks need" in caplog.text
        task = await place.task()
        assert (task.phase, task.attempts) == (TaskPhase.PENDING, 0)
        monkeypatch.setattr(disk, "RESERVE_SHARE_MAX", 0.0)
        done = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED)
        assert done.phase is TaskPhase.BUILT, done.error
        await reported(works=True)


async def test_sources_without_live_rows_give_no_segment(place: Workplace) -> None:
    await place.add_segment("a", sample_rows(5), dead=range(5))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED)
    assert (task.phase, task.output, task.rows_in, task.rows_out) == (
        TaskPhase.BUILT,
        None,
        5,
        0,
    )


async def test_task_with_a_source_that_is_gone_is_cancelled(place: Workplace) -> None:
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a", "gone"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.CANCELLED, TaskPhase.FAILED)
    assert task.phase is TaskPhase.CANCELLED
    assert "gone" in task.error
    assert not await place.is_claimed()


async def test_task_of_a_deleted_collection_is_cancelled(place: Workplace) -> None:
    await place.add_task(merge_task("a"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.CANCELLED, TaskPhase.FAILED)
    assert COLLECTION_ID in task.error


async def test_damaged_source_is_tried_again_and_then_quarantined(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "BACKOFF_FIRST_S", 0.01)
    await place.add_segment("a", sample_rows(5))
    key = segment_key(COLLECTION_ID, SHARD, "a", INDEX_FILE)
    path = await place.objects.fetch(key, place.directory / "unused")
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.unlink()
    path.write_bytes(body)
    await place.add_task(merge_task("a"))
    await place.add_segment("b", sample_rows(5))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.FAILED, TaskPhase.BUILT)
        assert task.phase is TaskPhase.FAILED
        assert task.attempts == ATTEMPTS_MAX
        assert INDEX_FILE in task.error
        assert "DataCorruption" in task.error
        # The queue goes on behind it.
        await place.add_task(merge_task("b", task_id="t2"))
        assert (await place.wait_task(TaskPhase.BUILT, task_id="t2")).output is not None


async def test_task_that_killed_its_workers_is_quarantined(place: Workplace) -> None:
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a", attempts=ATTEMPTS_MAX))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.FAILED, TaskPhase.BUILT)
    assert task.phase is TaskPhase.FAILED
    assert "died" in task.error


async def test_task_too_large_for_this_worker_is_left_to_others(place: Workplace) -> None:
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a", estimated_bytes=1_000, priority=9))
    await place.add_task(merge_task("a", task_id="t2", estimated_bytes=10))
    async with compactor(place, memory_bytes_max=999):
        await place.wait_task(TaskPhase.BUILT, task_id="t2")
        assert (await place.task()).phase is TaskPhase.PENDING
        async with compactor(place, worker_id="w2", memory_bytes_max=1_000):
            task = await place.wait_task(TaskPhase.BUILT)
    assert task.worker == "w2"


async def test_stopped_worker_puts_its_task_back_at_once(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = HeldBuild(monkeypatch)
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        await until(build.entered.is_set)
        assert await place.is_claimed()
        assert (await place.task()).attempts == 1
    assert build.gave_up.is_set()
    assert not await place.is_claimed()
    task = await place.task()
    assert (task.phase, task.attempts) == (TaskPhase.PENDING, 0)
    build.go_on.set()
    async with compactor(place, worker_id="w2"):
        assert (await place.wait_task(TaskPhase.BUILT)).worker == "w2"


async def test_lost_claim_ends_the_work_and_another_worker_does_it(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "PROGRESS_INTERVAL_S", 0.05)
    build = HeldBuild(monkeypatch)
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        await until(build.entered.is_set)
        build.entered.clear()
        await place.meta.commit([Delete(claim_key("t1"))])
        await until(build.gave_up.is_set)
        # The same task is free again, and was never reported by the attempt that lost it.
        await until(build.entered.is_set)
        assert (await place.task()).phase is TaskPhase.PENDING
        build.go_on.set()
        task = await place.wait_task(TaskPhase.BUILT)
    assert task.attempts == 2


async def test_lost_lease_ends_the_work_though_nothing_is_published(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "PROGRESS_INTERVAL_S", 3_600.0)
    build = HeldBuild(monkeypatch)
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a"))
    async with compactor(place, lease_ttl_s=1.0):
        await until(build.entered.is_set)
        await place.meta.expire_all_leases()
        await until(build.gave_up.is_set)
        build.go_on.set()
        task = await place.wait_task(TaskPhase.BUILT)
    assert task.attempts == 2


async def test_progress_is_shown_in_the_claim(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "PROGRESS_INTERVAL_S", 0.02)
    build = HeldBuild(monkeypatch)
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        claim: TaskClaim | None = None
        async with asyncio.timeout(DEADLINE_S):
            while claim is None or claim.progress == 0.0:
                stored = await place.meta.get(claim_key("t1"))
                if stored is not None:
                    claim = decode_value(stored.value, TaskClaim, key=stored.key)
                await asyncio.sleep(0.01)
        assert (claim.step, claim.progress, claim.worker_id) == ("building", 0.25, "w1")
        build.go_on.set()
        await place.wait_task(TaskPhase.BUILT)


async def test_output_that_changed_on_its_way_is_not_proposed(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "BACKOFF_FIRST_S", 0.01)
    real = attempt_module.upload_whole

    async def damaging(*arguments: object, **options: object) -> None:
        await real(*arguments, **options)  # type: ignore[arg-type]
        entry = arguments[-1]
        key = segment_key(COLLECTION_ID, SHARD, entry.segment_id, "rows.arrow")  # type: ignore[attr-defined]
        path = await place.objects.fetch(key, place.directory / "unused")
        body = path.read_bytes()
        path.unlink()
        path.write_bytes(body[:-1] + b"?")

    monkeypatch.setattr(attempt_module, "upload_whole", damaging)
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.FAILED, TaskPhase.BUILT)
    assert task.phase is TaskPhase.FAILED
    assert "rows.arrow" in task.error


async def test_two_workers_share_a_queue_and_do_every_task_once(place: Workplace) -> None:
    names = [f"s{i}" for i in range(6)]
    for number, name in enumerate(names):
        await place.add_segment(name, sample_rows(20, first=20 * number))
    for name in names:
        await place.add_task(merge_task(name, task_id=f"task-{name}"))
    async with compactor(place, worker_id="w1"), compactor(place, worker_id="w2"):
        tasks = [await place.wait_task(TaskPhase.BUILT, task_id=f"task-{n}") for n in names]
    assert [task.attempts for task in tasks] == [1] * 6
    assert len({task.output.segment_id for task in tasks if task.output}) == 6


async def wait_registered(place: Workplace) -> KeyValue:
    stored = None
    async with asyncio.timeout(DEADLINE_S):
        while stored is None:
            stored = await place.meta.get(compactor_key("w1"))
            await asyncio.sleep(0.01)
    return stored


async def test_worker_registers_itself_while_it_lives(place: Workplace) -> None:
    async with compactor(place):
        stored = await wait_registered(place)
        registered = decode_value(stored.value, WorkerRegistration, key=stored.key)
        assert (registered.worker_id, registered.role) == ("w1", WorkerRole.COMPACTOR)
    assert await place.meta.get(compactor_key("w1")) is None


async def test_stores_and_disks_are_reported(place: Workplace) -> None:
    metrics = Metrics()
    async with compactor(place, disk_reserve_bytes=1 << 20, metrics=metrics):
        path = str(place.directory / "scratch" / "w1")
        await wait_registered(place)
        sample = metrics.registry.get_sample_value
        reserve = await asyncio.to_thread(sample, "annheal_disk_reserve_bytes", {"path": path})
        free = await asyncio.to_thread(sample, "annheal_disk_free_bytes", {"path": path})
        since = await asyncio.to_thread(sample, "annheal_metadata_store_failing_since_seconds")
    assert reserve == 1 << 20
    assert free is not None
    assert free > reserve
    assert since == 0


async def test_files_of_dead_workers_are_removed_on_start(place: Workplace) -> None:
    scratch = place.directory / "scratch"
    mine, other, kernels = (
        scratch / name / "big.bin" for name in ("w1/attempt-old", "w2/attempt-old", "kernels")
    )
    for path in (mine, other, kernels):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (scratch / "w2" / LOCK_FILE).touch()
    async with compactor(place):
        await until(lambda: not mine.exists() and not other.parents[1].exists())
    assert kernels.exists()


async def test_files_of_a_worker_that_lives_are_left_alone(place: Workplace) -> None:
    async with compactor(place, worker_id="w2"):
        theirs = place.directory / "scratch" / "w2" / LOCK_FILE
        await until(theirs.exists)
        async with compactor(place):
            await until((place.directory / "scratch" / "w1" / LOCK_FILE).exists)
        assert theirs.exists()
        same = CompactorSettings(worker_id="w2", scratch_dir=place.directory / "scratch")
        with pytest.raises(FailedPrecondition, match="another compactor uses"):
            await run_compactor(same, place.meta, place.objects, stop=asyncio.Event())
        assert theirs.exists()


async def test_a_lock_held_for_a_moment_is_not_a_worker(place: Workplace) -> None:
    """Whoever removes the folders of dead workers locks them, for as long as that takes."""
    lock_path = place.directory / "scratch" / "w1" / LOCK_FILE
    lock_path.parent.mkdir(parents=True)
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with compactor(place):
            await asyncio.sleep(2 * LOCK_RETRY_S)  # it looks at least once meanwhile
            fcntl.flock(lock, fcntl.LOCK_UN)
            await until(lambda: _holds(lock_path))


def _holds(lock_path: Path) -> bool:
    """Return whether somebody else has the lock."""
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_several_tasks_run_at_once_as_far_as_memory_and_threads_go(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "PROGRESS_INTERVAL_S", 0.02)
    build = HeldBuild(monkeypatch)
    names = ["a", "b", "c", "d"]
    for number, name in enumerate(names):
        await place.add_segment(name, sample_rows(5, first=5 * number))
        await place.add_task(merge_task(name, task_id=name, estimated_bytes=30))

    async def steps() -> list[str]:
        stored = [await place.meta.get(claim_key(name)) for name in names]
        return sorted(decode_value(one.value, TaskClaim, key=one.key).step for one in stored if one)

    async with compactor(place, memory_bytes_max=100, threads=2):
        async with asyncio.timeout(DEADLINE_S):
            while await steps() != ["building", "building", "waiting"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not await place.is_claimed("d"), "there is memory for three"
        build.go_on.set()
        done = [await place.wait_task(TaskPhase.BUILT, task_id=name) for name in names]
    assert [task.attempts for task in done] == [1] * 4


async def test_a_task_that_is_cancelled_is_given_up_at_once(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = HeldBuild(monkeypatch)
    await place.add_segment("a", sample_rows(5))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        await until(build.entered.is_set)
        await place.add_task(replace(await place.task(), phase=TaskPhase.CANCELLED))
        await until(build.gave_up.is_set)
        async with asyncio.timeout(DEADLINE_S):
            while await place.is_claimed():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not any((place.directory / "scratch" / "w1").glob("attempt-*"))
        # The worker goes on.
        build.go_on.set()
        await place.add_task(merge_task("a", task_id="t2"))
        await place.wait_task(TaskPhase.BUILT, task_id="t2")
    assert (await place.task()).phase is TaskPhase.CANCELLED


async def test_a_store_that_is_away_for_a_while_costs_no_attempt(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle_module, "STORE_PAUSE_FIRST_S", 0.01)
    calls = Counter[str]()
    real = LocalObjectStore.put_file_if_absent

    async def flaky(self: LocalObjectStore, key: str, path: Path) -> None:
        calls["put"] += 1
        if calls["put"] <= 3:
            raise Unavailable("the store is away")
        await real(self, key, path)

    await place.add_segment("a", sample_rows(5))
    monkeypatch.setattr(LocalObjectStore, "put_file_if_absent", flaky)
    await place.add_task(merge_task("a"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED)
    assert (task.phase, task.attempts) == (TaskPhase.BUILT, 1)
    assert calls["put"] > 3


async def test_recall_objective_of_the_collection_reaches_the_build(place: Workplace) -> None:
    # No graph is perfect on random vectors at ef 512 with so high a demand on paper: 1.1.
    settings = replace(place.collection.settings, recall_objective=1.1)
    place.collection = replace(place.collection, settings=settings)
    await place.add_segment("a", sample_rows(HNSW_ROWS_MIN))
    await place.add_task(merge_task("a"))
    async with compactor(place):
        task = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED)
    assert task.output is not None
    assert task.output.index_kind is IndexKind.FLAT
