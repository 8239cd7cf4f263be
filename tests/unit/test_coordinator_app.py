"""The coordinator over a real metadata store and in-memory nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annheal.coordinator.app import Coordinator
from annheal.coordinator.compaction.plan import CompactionSettings
from annheal.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore import keys
from annheal.metastore.codec import encode_value
from annheal.metastore.protocol import Put
from annheal.model.collection import Collection
from annheal.model.filter import Exists
from annheal.model.search import SearchOptions
from annheal.model.topology.cluster import CompactionOrder, RecallOptions
from annheal.model.topology.shard import Assignment, ShardId
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from tests.support.memory_cluster import (
    MemoryCluster,
    batch,
    eventually,
    memory_cluster,
    soon,
    spec,
    started,
    with_segments,
)

TOP = SearchOptions(k=3)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path) as running:
        yield running


def owners(coordinator: Coordinator, collection: Collection) -> Counter[str]:
    return Counter(
        stored.value.owner for stored in coordinator.catalog.assignments_of(collection.id).values()
    )


# ------------------------------------------------------------------------------- collections


async def test_a_created_collection_is_served_by_all_nodes(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    assert owners(coordinator, collection) == {"a": 2, "b": 2}
    assert coordinator.collections.all() == (collection,)
    assert collection.revision > 0
    assert len(collection.id) == 32


async def test_creating_without_nodes_says_so_and_is_served_when_one_comes(
    cluster: MemoryCluster,
):
    coordinator = await cluster.add_coordinator()
    with pytest.raises(Unavailable, match=r"shards 0, 1, 2, 3 .* no shard node is registered"):
        await coordinator.collections.create(spec("packages"), deadline=soon(0.3))
    await cluster.add_node("a")
    collection = await coordinator.collections.get("packages")
    await coordinator.collections.wait_served(collection, deadline=soon())
    assert owners(coordinator, collection) == {"a": 4}


async def test_names_are_unique_and_checked(cluster: MemoryCluster):
    coordinator, _ = await started(cluster)
    with pytest.raises(AlreadyExists, match="packages"):
        await coordinator.collections.create(spec("packages"), deadline=soon())
    with pytest.raises(InvalidArgument) as wrong:
        await coordinator.collections.create(
            replace(spec("9 lives"), shard_count=0), deadline=soon()
        )
    assert [one.field for one in wrong.value.violations] == ["name", "shard_count"]


async def test_of_racing_creators_one_wins(cluster: MemoryCluster):
    await cluster.add_node("a")
    coordinators = [await cluster.add_coordinator(f"c{n}") for n in range(3)]
    results = await asyncio.gather(
        *(one.collections.create(spec("packages"), deadline=soon()) for one in coordinators),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Collection) for one in results) == 1
    assert sum(isinstance(one, AlreadyExists) for one in results) == 2


async def test_unknown_names_are_answered_with_similar_ones(cluster: MemoryCluster):
    coordinator, _ = await started(cluster)
    with pytest.raises(NotFound, match="did you mean 'packages'"):
        await coordinator.collections.get("package")
    with pytest.raises(NotFound):
        await coordinator.collections.get("a/b")


async def test_many_shards_take_several_commits(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=250)
    assert owners(coordinator, collection) == {"a": 250}


async def test_settings_are_changed_by_compare_and_swap(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)

    def change(present: Collection) -> Collection:
        return replace(present, settings=replace(present.settings, recall_objective=0.99))

    changed = await coordinator.collections.update(
        "packages", change, if_revision=collection.revision, deadline=soon()
    )
    assert (await coordinator.collections.get("packages")).settings.recall_objective == 0.99
    assert changed.revision > collection.revision
    with pytest.raises(Conflict):
        await coordinator.collections.update(
            "packages", change, if_revision=collection.revision, deadline=soon()
        )
    with pytest.raises(InvalidArgument, match="recall_objective"):
        await coordinator.collections.update(
            "packages",
            lambda one: replace(one, settings=replace(one.settings, recall_objective=2.0)),
            deadline=soon(),
        )


async def test_a_dropped_collection_leaves_a_mark_and_nothing_else(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    await coordinator.collections.drop("packages", deadline=soon())
    with pytest.raises(NotFound):
        await coordinator.collections.get("packages")
    for prefix in (keys.COLLECTIONS_PREFIX, keys.SHARDS_PREFIX, keys.MANIFESTS_PREFIX):
        assert (await cluster.meta.list(prefix)).items == ()
    assert await cluster.objects.get(f"dropped/{collection.id}")
    with pytest.raises(NotFound):
        await coordinator.writes.upsert(collection, batch(["x"]), deadline=soon())


# ----------------------------------------------------------------------- records and searches


async def test_records_are_written_read_searched_and_deleted(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    ids = [f"id{n}" for n in range(50)]
    records = batch(ids)
    outcome = await coordinator.writes.upsert(collection, records, deadline=soon())
    assert outcome.upserted == 50
    assert outcome.session.collection_id == collection.id
    assert set(outcome.session.sequences) == {0, 1, 2, 3}

    found = await coordinator.reads.get(collection, ["id7", "no", "id3", "id7"], deadline=soon())
    assert found.ids == ["id7", "id3"]
    answer = await coordinator.search.search(
        collection, records.vectors[:2], options=TOP, deadline=soon()
    )
    scores = records.vectors[:2] @ records.vectors.T
    best = [[ids[row] for row in np.argsort(-line)[:3]] for line in scores]
    assert [answer.records.ids[:3], answer.records.ids[3:]] == best

    gone = await coordinator.writes.delete_ids(collection, ["id7", "no", "id7"], deadline=soon())
    assert gone.deleted == 1
    assert await coordinator.reads.count(collection, deadline=soon()) == 49


async def test_of_equal_ids_in_a_batch_the_last_wins(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    records = batch(["a", "b", "a"])
    outcome = await coordinator.writes.upsert(collection, records, deadline=soon())
    assert outcome.upserted == 3
    model = collection.model
    stored = await coordinator.reads.vectors(collection, ["a", "b"], model=model, deadline=soon())
    assert np.array_equal(stored, records.vectors[[2, 1]])
    with pytest.raises(NotFound, match="'nobody'"):
        await coordinator.reads.vectors(collection, ["a", "nobody"], model=model, deadline=soon())


async def test_bad_records_are_refused_before_anything_is_written(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    records = batch(["a", "b"])
    records.vectors[1, 2] = np.nan
    with pytest.raises(InvalidArgument, match=r"vectors\[1\].*nan.*position 2"):
        await coordinator.writes.upsert(collection, records, deadline=soon())
    with pytest.raises(InvalidArgument, match="year"):
        await coordinator.writes.delete_where(collection, Exists("year"), deadline=soon())
    assert not any(node.writes for node in cluster.nodes.values())


async def test_a_scan_sees_every_record_once(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    ids = {f"id{n}" for n in range(95)}
    await coordinator.writes.upsert(collection, batch(sorted(ids)), deadline=soon())
    seen: list[str] = []
    cursor = ""
    while True:
        page = await coordinator.reads.scan(collection, rows_max=10, cursor=cursor, deadline=soon())
        assert len(page.records) <= 10
        seen += page.records.ids
        cursor = page.cursor
        if not cursor:
            break
    assert sorted(seen) == sorted(ids)
    with pytest.raises(InvalidArgument, match="cursor"):
        await coordinator.reads.scan(collection, rows_max=10, cursor="x" * 9, deadline=soon())
    other = replace(collection, id="other")
    first = await coordinator.reads.scan(collection, rows_max=10, deadline=soon())
    with pytest.raises(InvalidArgument, match="another collection"):
        await coordinator.reads.scan(other, rows_max=10, cursor=first.cursor, deadline=soon())


async def test_writes_that_were_lost_are_repeated(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=1)
    cluster.nodes["a"].failures += [UnknownOutcome("lost"), Unavailable("away")]
    outcome = await coordinator.writes.upsert(collection, batch(["x"]), deadline=soon())
    assert outcome.upserted == 1


async def test_a_write_that_may_have_happened_is_never_called_a_failure(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=1)
    node = cluster.nodes["a"]
    node.failures += [UnknownOutcome("lost")] + [Unavailable("away") for _ in range(10_000)]
    with pytest.raises(UnknownOutcome):
        await coordinator.writes.upsert(collection, batch(["x"]), deadline=soon(0.3))


async def test_a_partly_failed_write_names_its_shards(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    cluster.nodes["b"].failures += [ResourceExhausted("too fast", retry_after_s=0.5)] * 2
    ids = [f"id{n}" for n in range(50)]
    with pytest.raises(UnknownOutcome, match="repeat the whole request") as failure:
        await coordinator.writes.upsert(collection, batch(ids), deadline=soon())
    written = {shard.number for shard in cluster.nodes["a"].shards}
    assert failure.value.metadata["written_shards"] == ", ".join(map(str, sorted(written)))
    assert failure.value.retry_after_s == 0.5


async def test_backpressure_of_every_shard_is_passed_on(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=2)
    cluster.nodes["a"].failures += [ResourceExhausted("full", retry_after_s=0.5)] * 2
    with pytest.raises(ResourceExhausted, match="full") as refused:
        await coordinator.writes.upsert(
            collection, batch([f"id{n}" for n in range(50)]), deadline=soon()
        )
    assert refused.value.retry_after_s == 0.5


# ----------------------------------------------------------------------------------- failures


async def test_when_a_node_dies_the_others_take_over_and_nothing_fails(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    await coordinator.writes.upsert(
        collection, batch([f"id{n}" for n in range(40)]), deadline=soon()
    )
    await cluster.remove_node("b")
    answer = await coordinator.search.search(
        collection, batch(["q"]).vectors, options=SearchOptions(k=40), deadline=soon()
    )
    assert len(answer.records.ids) == 40
    assert len(set(answer.records.ids)) == 40
    await coordinator.writes.upsert(collection, batch(["new"]), deadline=soon())
    assert await coordinator.reads.count(collection, deadline=soon()) == 41
    assert owners(coordinator, collection) == {"a": 4}


async def test_partial_answers_name_what_is_missing(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    cluster.nodes["b"].failures += [Unavailable("away")] * 10_000
    missing = sorted(ShardId(collection.id, one.number) for one in cluster.nodes["b"].shards)
    query = batch(["q"]).vectors
    answer = await coordinator.search.search(
        collection, query, options=TOP, deadline=soon(), allow_partial=True
    )
    assert list(answer.missing_shards) == missing
    with pytest.raises(Unavailable, match="do not answer: away") as failure:
        await coordinator.search.search(collection, query, options=TOP, deadline=soon(0.5))
    assert failure.value.metadata["shards"] == ", ".join(str(one.number) for one in missing)


async def test_a_slow_node_costs_the_deadline_or_its_shards(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    cluster.nodes["b"].gate = asyncio.Event()
    query = batch(["q"]).vectors
    with pytest.raises(DeadlineExceeded, match="shards"):
        await coordinator.search.search(collection, query, options=TOP, deadline=soon(0.2))
    answer = await coordinator.search.search(
        collection, query, options=TOP, deadline=soon(1.5), allow_partial=True
    )
    assert {one.number for one in answer.missing_shards} == {
        one.number for one in cluster.nodes["b"].shards
    }
    cluster.nodes["b"].gate.set()


# ----------------------------------------------------------------------- leading and topology


async def test_exactly_one_coordinator_leads_and_another_follows_it(cluster: MemoryCluster):
    first = await cluster.add_coordinator("c1")
    await eventually(lambda: first.leading)
    second = await cluster.add_coordinator("c2")
    assert not second.leading
    status = await second.admin.status()
    assert status.leader == "c1"
    await first.stop()
    assert not first.leading
    await eventually(lambda: second.leading)
    assert (await second.admin.status()).leader == "c2"
    await cluster.add_node("a")
    await second.collections.create(spec("packages"), deadline=soon())


async def test_garbage_is_collected_by_the_leader_alone(cluster: MemoryCluster):
    first = await cluster.add_coordinator("first", listen="127.0.0.1:7701")
    await eventually(lambda: first.leading)
    second = await cluster.add_coordinator("second", listen="127.0.0.1:7702")
    with pytest.raises(FailedPrecondition, match=r"127\.0\.0\.1:7701") as refused:
        await second.admin.collect_garbage()
    assert refused.value.reason == "NOT_LEADER"
    assert refused.value.metadata == {"address": "127.0.0.1:7701"}
    report = await first.admin.collect_garbage(dry_run=True)
    assert report.dry_run
    assert [kind.kind for kind in report.kinds] == [
        "segments",
        "vectors",
        "deletes",
        "wal",
        "recall",
    ]


async def test_a_leader_whose_key_is_gone_stops_leading_and_campaigns_again(
    cluster: MemoryCluster,
):
    first = await cluster.add_coordinator("c1")
    await eventually(lambda: first.leading)
    stored = await cluster.meta.get(keys.LEADER_KEY)
    assert stored is not None
    lease = await cluster.meta.grant_lease(30.0)
    await cluster.meta.commit([Put(keys.LEADER_KEY, stored.value, lease_id=lease.id)])
    await eventually(lambda: not first.leading)
    await cluster.meta.revoke_lease(lease)
    await eventually(lambda: first.leading)


async def test_a_joining_node_gets_its_share(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=6)
    await cluster.add_node("b")
    await eventually(lambda: owners(coordinator, collection) == {"a": 3, "b": 3})


async def test_drained_nodes_become_empty_and_can_come_back(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", "b", shard_count=4)
    moves = await coordinator.admin.drain("a", deadline=soon())
    assert [(move.source, move.target) for move in moves] == [("a", "b")] * 2
    await eventually(lambda: owners(coordinator, collection) == {"b": 4})
    nodes = {one.registration.node_id: one for one in await coordinator.admin.nodes()}
    assert nodes["a"].draining
    assert nodes["a"].shards == 0
    with pytest.raises(FailedPrecondition, match="draining"):
        await coordinator.admin.move("packages", shard=0, node_id="a", deadline=soon())
    await coordinator.admin.undrain("a", deadline=soon())
    await eventually(lambda: owners(coordinator, collection) == {"a": 2, "b": 2})


async def test_a_shard_is_moved_on_request_and_stays_there(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", "b", shard_count=2)
    before = coordinator.catalog.assignments_of(collection.id)[0].value
    target = "b" if before.owner == "a" else "a"
    move = await coordinator.admin.move("packages", shard=0, node_id=target, deadline=soon())
    assert (move.source, move.target) == (before.owner, target)

    def now() -> Assignment:
        return coordinator.catalog.assignments_of(collection.id)[0].value

    await eventually(lambda: now().owner == target)
    assert now().epoch > before.epoch
    with pytest.raises(FailedPrecondition, match="already"):
        await coordinator.admin.move("packages", shard=0, node_id=target, deadline=soon())
    with pytest.raises(NotFound, match="alive: a, b"):
        await coordinator.admin.move("packages", shard=0, node_id="z", deadline=soon())
    with pytest.raises(InvalidArgument, match="shard"):
        await coordinator.admin.move("packages", shard=9, node_id=target, deadline=soon())
    plan = await coordinator.admin.rebalance(dry_run=True)
    assert [(one.source, one.target) for one in plan] == [(target, before.owner)]
    assert owners(coordinator, collection) == {target: 2}
    await coordinator.admin.rebalance()
    await eventually(lambda: owners(coordinator, collection) == {"a": 1, "b": 1})


async def test_assignments_of_collections_never_created_are_cleared(cluster: MemoryCluster):
    orphan = keys.shard_key("never", 0)
    owned = keys.shard_key("lost", 0)
    await cluster.meta.commit(
        [
            Put(orphan, encode_value(Assignment("never", 0))),
            Put(owned, encode_value(Assignment("lost", 0, owner="a", epoch=3))),
        ]
    )
    coordinator = await cluster.add_coordinator(orphan_grace_s=0.1)
    catalog = coordinator.catalog
    await eventually(lambda: catalog.assignment(ShardId("never", 0)) is None)
    assert catalog.assignment(ShardId("lost", 0)) is not None


# -------------------------------------------------------------------------------------- tasks


async def finish_build(cluster: MemoryCluster, coordinator: Coordinator, task_id: str) -> None:
    stored = coordinator.catalog.task(task_id)
    assert stored is not None
    built = replace(stored.value, phase=TaskPhase.BUILT)
    await cluster.meta.commit([Put(stored.key, encode_value(built))])


async def test_the_leader_plans_compactions_and_publishes_what_was_built(cluster: MemoryCluster):
    coordinator, _ = await started(cluster, "a", shard_count=1)
    with_segments(cluster, 5_000, 5_000, 5_000, 5_000)
    await eventually(lambda: len(coordinator.catalog.tasks()) == 1)
    task = coordinator.catalog.tasks()[0].value
    assert (task.phase, task.reason) == (TaskPhase.PENDING, TaskReason.MERGE)
    assert set(task.sources) == {"s0", "s1", "s2", "s3"}
    with_segments(cluster)
    await finish_build(cluster, coordinator, task.id)
    await eventually(lambda: len(cluster.nodes["a"].published) == 1)
    await eventually(lambda: coordinator.catalog.tasks()[0].value.phase is TaskPhase.PUBLISHED)
    status = await coordinator.admin.task(task.id)
    assert status.collection == "packages"
    assert status.finished_at_s > 0
    assert len(coordinator.catalog.tasks()) == 1


async def test_a_stale_task_is_cancelled(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=1)
    task = CompactionTask("t1", collection.id, 0, ("gone",), "warm", TaskReason.MERGE)
    await cluster.meta.commit([Put(keys.task_key("t1"), encode_value(task))])

    def phase() -> TaskPhase | None:
        stored = coordinator.catalog.task("t1")
        return stored.value.phase if stored is not None else None

    await eventually(lambda: phase() is TaskPhase.CANCELLED)
    assert "gone" in (await coordinator.admin.task("t1")).error
    with pytest.raises(NotFound):
        await coordinator.admin.task("t2")


async def test_without_automatic_compaction_only_what_is_asked_for_is_planned(
    cluster: MemoryCluster,
):
    await cluster.add_node("a")
    coordinator = await cluster.add_coordinator(compaction=CompactionSettings(automatic=False))
    collection = await coordinator.collections.create(
        spec("packages", shard_count=1), deadline=soon()
    )
    with_segments(cluster, 5_000, 5_000, 5_000, 5_000)
    for looks, name in enumerate(("t1", "t2"), start=1):
        # A stale task is cancelled by the look that would have planned: two looks have passed.
        task = CompactionTask(name, collection.id, 0, ("gone",), "warm", TaskReason.MERGE)
        await cluster.meta.commit([Put(keys.task_key(name), encode_value(task))])
        cancelled = [TaskPhase.CANCELLED] * looks
        await eventually(lambda: phases(coordinator) == cancelled)  # noqa: B023 - awaited here
    asked = await coordinator.admin.compact("packages", CompactionOrder(), deadline=soon())
    assert len(asked) == 1


def phases(coordinator: Coordinator) -> list[TaskPhase]:
    return [stored.value.phase for stored in coordinator.catalog.tasks()]


async def test_finished_tasks_are_forgotten_after_their_retention(cluster: MemoryCluster):
    coordinator, collection = await started(cluster, "a", shard_count=1)
    old = CompactionTask(
        "t1", collection.id, 0, (), "warm", TaskReason.MERGE, phase=TaskPhase.PUBLISHED
    )
    await cluster.meta.commit([Put(keys.task_key("t1"), encode_value(old))])
    async with asyncio.timeout(20):
        while await cluster.meta.get(keys.task_key("t1")) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await eventually(lambda: coordinator.catalog.task("t1") is None)


# ------------------------------------------------------------------------------ what is seen


async def test_status_shards_and_warnings(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    await coordinator.writes.upsert(
        collection, batch([f"id{n}" for n in range(20)]), deadline=soon()
    )
    status = await coordinator.admin.status()
    assert (status.version, status.collections, status.shards) == ("test", 1, 4)
    assert (status.totals.live_rows, status.totals.shards_serving) == (20, 4)
    assert status.warnings == ()
    assert [worker.worker_id for worker in status.workers] == ["c1"]
    shards = await coordinator.admin.shards("packages")
    assert [one.shard for one in shards] == [0, 1, 2, 3]
    assert {one.phase for one in shards} == {"serving"}
    cluster.nodes["b"].silent = Unavailable("away")
    status = await coordinator.admin.status()
    assert any("node b: away" in one for one in status.warnings)
    assert any("2 of 4 shards are not served" in one for one in status.warnings)


async def test_recall_of_exact_nodes_is_one(cluster: MemoryCluster):
    coordinator, collection = await started(cluster)
    with pytest.raises(FailedPrecondition, match="no records"):
        await coordinator.recall.measure(collection, RecallOptions(), deadline=soon())
    await coordinator.writes.upsert(
        collection, batch([f"id{n}" for n in range(300)]), deadline=soon()
    )
    report = await coordinator.recall.measure(
        collection, RecallOptions(sample_size=40, k=5), deadline=soon()
    )
    assert (report.recall, report.recall_high) == (1.0, 1.0)
    # 40 queries that find everything may miss one of eleven that does not.
    assert report.recall_low == pytest.approx(0.025 ** (1 / 40), abs=1e-3)
    assert (report.queries, report.k) == (40, 5)
    assert sum(one.expected for one in report.shards) == 200
    assert {one.recall for one in report.shards} == {1.0}
    # The monitor must not take them for live traffic: it samples neither exact nor explained ones.
    asked = [request.options for node in cluster.nodes.values() for request in node.searches]
    assert asked
    assert all(options.exact or options.explain for options in asked)
