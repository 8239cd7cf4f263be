"""What operators ask of compaction: through a whole coordinator, over nodes that only report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Set
from dataclasses import replace
from pathlib import Path

import pytest

from annheal.coordinator.leader.observation import WriteWatch
from annheal.errors import FailedPrecondition, InvalidArgument, NotFound
from annheal.metastore import keys
from annheal.metastore.codec import encode_value
from annheal.metastore.protocol import Put
from annheal.model.topology.cluster import CompactionOrder
from annheal.model.topology.manifest import Tier
from annheal.model.topology.shard import ShardId, ShardPhase
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from tests.support.memory_cluster import (
    MemoryCluster,
    eventually,
    memory_cluster,
    soon,
    spec,
    started,
    with_segments,
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path) as running:
        yield running


EVERYTHING = CompactionOrder(full=True)


async def test_manual_compaction_flushes_and_returns_the_tasks(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=2)
    with_segments(cluster, 100, 100)
    first = await coordinator.admin.compact("packages", EVERYTHING, deadline=soon())
    assert len(first) == 2
    assert set(cluster.nodes["a"].flushed) == {ShardId(collection.id, n) for n in (0, 1)}
    again = await coordinator.admin.compact("packages", EVERYTHING, deadline=soon())
    assert sorted(again) == sorted(first)
    cancelled = await coordinator.admin.cancel_task(first[0], deadline=soon())
    assert cancelled.phase is TaskPhase.CANCELLED


async def test_dry_run_says_what_would_be_done_and_changes_nothing(cluster: MemoryCluster):
    coordinator, _ = await started(cluster, "a", shard_count=2, automatic=False)
    with_segments(cluster, 100, 200)
    order = CompactionOrder(full=True, shard=1, dry_run=True)
    (planned,) = await coordinator.admin.plan_compaction("packages", order)
    assert (planned.shard, planned.why) == (1, "requested: all of the collection")
    assert planned.estimated_bytes > 0
    assert planned.estimated_disk_bytes > 0
    assert not coordinator.catalog.tasks()
    assert not cluster.nodes["a"].flushed


async def test_named_segments_are_compacted_and_unknown_names_are_refused(cluster: MemoryCluster):
    coordinator, _ = await started(cluster, "a", shard_count=1, automatic=False)
    with_segments(cluster, 100, 200)
    admin = coordinator.admin
    (first,) = await admin.compact(
        "packages", CompactionOrder(segment_ids=("s0",)), deadline=soon()
    )
    assert (await admin.task(first)).sources == ("s0",)
    again = await admin.compact("packages", CompactionOrder(segment_ids=("s0",)), deadline=soon())
    assert again == (first,)
    with pytest.raises(NotFound, match=r"packages has no segment 'x'; there are: s0, s1"):
        await admin.compact("packages", CompactionOrder(segment_ids=("x",)), deadline=soon())
    for wrong in (
        CompactionOrder(shard=9),
        CompactionOrder(segment_ids=("s0",), full=True),
        CompactionOrder(tier=Tier.GROWING),
    ):
        with pytest.raises(InvalidArgument):
            await admin.compact("packages", wrong, deadline=soon())


async def test_a_task_that_was_given_up_can_be_released(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=1, automatic=False)
    with_segments(cluster, 10, 20)
    failed = CompactionTask(
        "t1", collection.id, 0, ("s0",), "warm", TaskReason.MERGE,
        phase=TaskPhase.FAILED, attempts=5, error="it is poison", finished_at_s=time.time(),
    )  # fmt: skip
    await cluster.meta.commit([Put(keys.task_key("t1"), encode_value(failed))])
    await eventually(lambda: coordinator.catalog.task("t1") is not None)
    released = await coordinator.admin.retry_task("t1", deadline=soon())
    assert (released.phase, released.attempts) == (TaskPhase.PENDING, 0)
    assert released.error == "it is poison"
    assert await coordinator.admin.compact("packages", EVERYTHING, deadline=soon()) == ("t1",)
    await coordinator.admin.cancel_task("t1", deadline=soon())
    with pytest.raises(FailedPrecondition, match="only failed tasks"):
        await coordinator.admin.retry_task("t1", deadline=soon())


async def test_a_task_is_not_released_while_another_one_has_its_segments(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=1, automatic=False)
    with_segments(cluster, 10, 20)
    failed = CompactionTask(
        "t1", collection.id, 0, ("s0",), "warm", TaskReason.MERGE,
        phase=TaskPhase.FAILED, finished_at_s=time.time(),
    )  # fmt: skip
    await cluster.meta.commit([Put(keys.task_key("t1"), encode_value(failed))])
    await eventually(lambda: coordinator.catalog.task("t1") is not None)
    (other,) = await coordinator.admin.compact("packages", EVERYTHING, deadline=soon())
    assert set((await coordinator.admin.task(other)).sources) == {"s0", "s1"}
    with pytest.raises(FailedPrecondition, match=f"s0 of task t1 is in task {other}"):
        await coordinator.admin.retry_task("t1", deadline=soon())


async def test_segments_of_another_collection_keep_no_task_back(cluster: MemoryCluster):
    """Ids of segments are not compared across collections: a copied data set may repeat them."""
    coordinator, collection = await started(cluster, "a", shard_count=1, automatic=False)
    wanted = replace(spec("other", shard_count=1), settings=collection.settings)
    other = await coordinator.collections.create(wanted, deadline=soon())
    with_segments(cluster, 10)
    tasks = [
        CompactionTask("t1", collection.id, 0, ("s0",), "warm", TaskReason.MERGE, TaskPhase.FAILED),
        CompactionTask("t2", other.id, 0, ("s0",), "warm", TaskReason.MERGE),
    ]
    for task in tasks:
        finished = replace(task, finished_at_s=time.time())
        await cluster.meta.commit([Put(keys.task_key(task.id), encode_value(finished))])
    await eventually(lambda: len(coordinator.catalog.tasks()) == 2)
    released = await coordinator.admin.retry_task("t1", deadline=soon())
    assert released.phase is TaskPhase.PENDING


def test_a_pause_is_counted_through_looks_in_which_a_node_was_silent() -> None:
    watch, shard, other = WriteWatch(), ShardId("c", 0), ShardId("c", 1)
    state = ShardState("c", 0, "a", ShardPhase.SERVING, 1, 0, 0, 0, 5, 0, 0)

    def quiet_s(now_s: float, *states: ShardState, present: Set[ShardId]) -> dict[ShardId, float]:
        seen = {ShardId(one.collection_id, one.shard): one for one in states}
        return watch.quiet_s(seen, present=present, now_s=now_s)

    both = {shard, other}
    assert quiet_s(10, state, present=both) == {shard: 0.0}
    assert quiet_s(12, present=both) == {}  # its node did not answer
    assert quiet_s(15, state, present=both) == {shard: 5.0}
    written = replace(state, applied_sequence=6)
    assert quiet_s(16, written, present=both) == {shard: 0.0}
    assert quiet_s(18, present={other}) == {}  # dropped
    assert quiet_s(20, written, present=both) == {shard: 0.0}


async def test_a_collection_can_be_left_to_its_operator(cluster: MemoryCluster):
    coordinator, _ = await started(cluster, "a", shard_count=1, automatic=False)
    with_segments(cluster, *[16_384] * 6)
    await asyncio.sleep(0.3)
    assert not coordinator.catalog.tasks()
    (task,) = await coordinator.admin.compact("packages", CompactionOrder(), deadline=soon())
    assert (await coordinator.admin.task(task)).reason is TaskReason.MERGE
