"""Whether a part works, and since when not: trackers, watched stores, probes, and what is said."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from annheal.cli.operator_commands.health_checks import Health
from annheal.cli.operator_commands.part_checks import examine_parts
from annheal.errors import AlreadyExists, NotFound, Unavailable
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import compactor_key
from annheal.metastore.protocol import Compare, Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.measures.part_health import ClusterHealth, PartHealth, PartKind
from annheal.model.topology.shard import WorkerRegistration, WorkerRole
from annheal.objectstore import store_watch as module
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.store_watch import StoreWatch
from annheal.runtime.part_tracker import TELL_INTERVAL_S, PartTracker
from annheal.runtime.tasks import TaskScope
from annheal.wire.admin import decode_cluster_health, encode_cluster_health
from tests.support.memory_cluster import memory_cluster

AWAY = Unavailable("the bucket is away")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def tracker(clock: Clock) -> PartTracker:
    return PartTracker(PartKind.LOG, process="n", place="c/0", wall_clock=clock)


def test_failing_since_is_the_first_failure_until_a_success() -> None:
    clock = Clock()
    part = tracker(clock)
    assert part.health.works
    clock.now_s = 1_010.0
    part.failed(AWAY)
    clock.now_s = 1_025.0
    part.failed(Unavailable("still away"))
    assert part.health.failing_since_s == 1_010.0
    assert part.failing_for_s == 15.0
    assert "still away" in part.health.error
    part.succeeded()
    assert part.health == PartHealth(PartKind.LOG, "n", "c/0", succeeded_at_s=1_025.0)


def test_failures_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    part = tracker(clock)
    caplog.set_level(logging.INFO)
    for _ in range(1_000):
        part.failed(AWAY)
        clock.now_s += 2.5 * TELL_INTERVAL_S / 1_000
    part.succeeded()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 4  # at once, twice more, and the end
    assert "log of c/0: failing" in texts[0]
    assert "the bucket is away" in texts[0]
    assert "works again after 75.0 s and 1000 failures" in texts[-1]


class Faulty:
    """Passes calls on to a store until `error` or `hang` says otherwise."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.error: Exception | None = None
        self.hang = asyncio.Event()
        self.hang.set()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            await self.hang.wait()
            if self.error is not None:
                raise self.error
            return await getattr(self._store, name)(*args, **kwargs)

        return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_ANSWER_S", 0.2)
    monkeypatch.setattr(module, "PROBE_FRESH_S", 0.0)


async def test_the_parts_follow_calls_and_probes(tmp_path: Path, quick: None) -> None:
    objects = Faulty(LocalObjectStore(tmp_path / "objects"))
    meta = Faulty(SqliteMetaStore(tmp_path / "meta.sqlite"))
    scope = TaskScope("test")
    watch = StoreWatch("node/1", meta, objects, scope=scope)
    try:
        assert [part.works for part in await watch.look()] == [True] * 3
        assert all(part.succeeded_at_s for part in watch.parts)
        assert not list((tmp_path / "objects").glob("health/*"))

        # Answers that a caller may expect are no failures.
        with pytest.raises(NotFound):
            await watch.objects.get("absent")
        await watch.objects.put_if_absent("a", b"1")
        with pytest.raises(AlreadyExists):
            await watch.objects.put_if_absent("a", b"2")
        with pytest.raises(Exception, match="revision"):
            await watch.meta.commit([Put("k", b"")], compares=[Compare("k", 7)])
        assert all(part.works for part in watch.parts)

        objects.error = AWAY
        with pytest.raises(Unavailable):
            await watch.objects.put_if_absent("b", b"1")
        found = {part.kind: part for part in watch.parts}
        assert not found[PartKind.OBJECT_WRITES].works
        assert found[PartKind.OBJECT_READS].works
        assert not watch.writable
        assert watch.readable
        found = {part.kind: part for part in await watch.look()}
        assert "the bucket is away" in found[PartKind.OBJECT_READS].error
        assert found[PartKind.METADATA].works

        objects.error = None
        assert all(part.works for part in await watch.look())
    finally:
        await scope.stop()


async def test_a_store_that_hangs_is_failing_and_is_asked_once(tmp_path: Path, quick: None) -> None:
    objects = Faulty(LocalObjectStore(tmp_path / "objects"))
    meta = Faulty(SqliteMetaStore(tmp_path / "meta.sqlite"))
    scope = TaskScope("test")
    watch = StoreWatch("n", meta, objects, scope=scope)
    objects.hang.clear()
    try:
        async with asyncio.timeout(5):
            for _ in range(3):
                found = {part.kind: part for part in await watch.look()}
        assert "no answer for" in found[PartKind.OBJECT_WRITES].error
        assert "no answer for" in found[PartKind.OBJECT_READS].error
        assert found[PartKind.METADATA].works
        assert objects.calls == 2, "one write and one read are under way, however often one asks"
        objects.hang.set()
        assert all(part.works for part in await watch.look())
    finally:
        await scope.stop()


def by_question(health: ClusterHealth, now_s: float = 1_070.0) -> dict[str, Any]:
    return {one.question: one for one in examine_parts(health, now_s=now_s)}


def test_what_fails_is_named_with_its_time_and_cause() -> None:
    writes = PartHealth(
        PartKind.OBJECT_WRITES, "node-0", failing_since_s=1_002.0, error="UNAVAILABLE: s3://b away"
    )
    log = PartHealth(PartKind.LOG, "node-0", "c/3", failing_since_s=1_003.0, error="no answer")
    reads = PartHealth(PartKind.OBJECT_READS, "node-0", succeeded_at_s=1_069.0)
    found = by_question(ClusterHealth((log, writes, reads)))
    write = found["can it write?"]
    assert write.health is Health.BAD
    assert write.answer.index("object store writes") < write.answer.index("log of c/3")
    assert "(68 s): UNAVAILABLE: s3://b away" in write.answer
    assert write.advice
    assert found["can it read?"].health is Health.GOOD
    assert found["does the metadata store answer?"].health is Health.UNKNOWN


def test_a_node_that_does_not_say_leaves_its_parts_unknown() -> None:
    log = PartHealth(PartKind.LOG, "node-0", succeeded_at_s=1_000.0)
    found = by_question(ClusterHealth((log,), {"node-1": "no answer"}))
    assert found["can it write?"].health is Health.UNKNOWN
    assert "node-1" in found["can it write?"].answer
    found = by_question(ClusterHealth((log,)))
    assert "the last write was logged 70 s ago" in found["can it write?"].answer


def test_foreign_objects_are_a_note_and_no_failure() -> None:
    note = "object segments/.DS_Store is not Annheal's and ignored: remove it"
    reads = [PartHealth(PartKind.OBJECT_READS, name, note=note) for name in ("node-0", "node-1")]
    found = by_question(ClusterHealth(tuple(reads)))["can it read?"]
    assert found.health is Health.GOOD
    assert found.answer == f"yes (2 processes); note: {note}"


async def test_compactors_are_asked_through_the_metadata_store(tmp_path: Path) -> None:
    low = PartHealth(PartKind.DISK, "w1", "/scratch", failing_since_s=5.0, error="full", note="n")
    worker = WorkerRegistration("w1", WorkerRole.COMPACTOR, parts=(low,))
    async with memory_cluster(tmp_path) as cluster:
        await cluster.add_node("a")
        coordinator = await cluster.add_coordinator()
        await cluster.meta.commit([Put(compactor_key("w1"), encode_value(worker))])
        found = await coordinator.health.look()
        assert low in found.parts
        assert decode_cluster_health(encode_cluster_health(found)) == found
