"""A migration driven by a leader over a real metadata store and in-memory nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from annheal.coordinator.app import Coordinator
from annheal.coordinator.migration.book import MigrationBook
from annheal.errors import Conflict, FailedPrecondition, NotFound, UnknownOutcome
from annheal.metastore import keys
from annheal.metastore.codec import encode_value
from annheal.metastore.protocol import Compare, MetaStore, Operation, Put
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.texts.spec import EmbedderSpec, TextModel
from annheal.model.topology.migration import transitions as steps
from annheal.model.topology.migration.gate import GateReport, GateThresholds
from annheal.model.topology.migration.state import (
    Migration,
    MigrationPhase,
    MigrationSettings,
    SkipCount,
)
from annheal.model.topology.migration.transitions import Order
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from tests.support.memory_cluster import MemoryCluster, eventually, memory_cluster, soon, started

ADA = Order("ada", 1.0, "because")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path) as running:
        yield running


def report_segments(cluster: MemoryCluster, models: Mapping[str, str]) -> None:
    """Let the nodes report segments (by id) of 100 rows with vectors of one model each."""

    def report(state: ShardState) -> ShardState:
        segments = tuple(
            SegmentState(
                shard=state.shard, segment_id=name, tier="hot", model=model, index_kind="flat",
                rows=100, dead_rows=0, size_bytes=3_200, generation=0, created_at_s=0.0,
                min_sequence=1, max_sequence=1,
            )
            for name, model in models.items()
        )  # fmt: skip
        return replace(state, segments=segments)

    for node in cluster.nodes.values():
        node.states = report


@dataclass(slots=True)
class Job:
    """One collection with a second model, and its migration."""

    cluster: MemoryCluster
    coordinator: Coordinator
    collection: Collection
    book: MigrationBook

    @property
    def migration(self) -> Migration:
        stored = self.coordinator.catalog.migration(self.collection.id)
        assert stored is not None
        return stored.value

    @property
    def serving(self) -> str:
        found = self.coordinator.catalog.collection_by_id(self.collection.id)
        assert found is not None
        return found.model.name

    async def start(self) -> Migration:
        def step(present: Migration | None, collection: Collection) -> Migration:
            return steps.start(
                present,
                collection_id=collection.id,
                from_model=collection.model.name,
                to_model="m2",
                settings=MigrationSettings(),
                thresholds=GateThresholds(),
                order=ADA,
            )

        _, found = await self.book.start("packages", step, deadline=soon())
        return found

    async def change(self, step: Any, **arguments: Any) -> Migration:
        return await self.book.change(
            self.collection, lambda m: step(m, order=ADA, **arguments), deadline=soon()
        )

    async def phase(self, wanted: MigrationPhase) -> None:
        await eventually(lambda: self.migration.phase is wanted)

    def tasks(self, reason: TaskReason) -> list[CompactionTask]:
        found = [one.value for one in self.coordinator.catalog.tasks()]
        return [one for one in found if one.reason is reason]

    async def publish(self, task: CompactionTask, skipped: Sequence[SkipCount] = ()) -> None:
        """Do what a worker and an owner would do with a task."""
        key = keys.task_key(task.id)
        stored = await self.cluster.meta.get(key)
        assert stored is not None
        done = replace(
            task, phase=TaskPhase.PUBLISHED, skipped=tuple(skipped), finished_at_s=2e9, rows_out=100
        )
        await self.cluster.meta.commit(
            [Put(key, encode_value(done))], compares=[Compare(key, stored.mod_revision)]
        )

    async def revisions(self) -> tuple[int, int]:
        migration = await self.cluster.meta.get(keys.migration_key(self.collection.id))
        collection = await self.cluster.meta.get(keys.collection_key("packages"))
        assert migration is not None
        assert collection is not None
        return migration.mod_revision, collection.mod_revision


@pytest.fixture
async def job(cluster: MemoryCluster) -> Job:
    coordinator, made = await started(cluster, "a", shard_count=1, automatic=False)
    two = replace(
        made,
        models=(*made.models, ModelSpec("m2", 6, Metric.COSINE)),
        text_models=(TextModel("m2", EmbedderSpec("minilm_l6"), "{name}"),),
        revision=0,
    )
    key = keys.collection_key("packages")
    await cluster.meta.commit([Put(key, encode_value(two))], compares=[Compare(key, made.revision)])
    return Job(cluster, coordinator, two, MigrationBook(coordinator.catalog, cluster.meta))


GOOD = GateReport(1, 5.0, 100, 10, recall=0.99, overlap=0.5, latency_ratio=1.0)


async def test_the_leader_backfills_and_a_commit_changes_the_serving_model_at_once(
    job: Job,
) -> None:
    report_segments(job.cluster, {"s1": "m", "s2": "m", "s3": "m"})
    await job.start()
    await job.phase(MigrationPhase.BACKFILL)
    await eventually(lambda: len(job.tasks(TaskReason.BACKFILL)) == 2)
    first, second = job.tasks(TaskReason.BACKFILL)
    assert {first.model, second.model} == {"m2"}
    assert job.migration.coverage is not None
    assert (job.migration.coverage.rows, job.migration.coverage.rows_lacking) == (300, 300)
    await job.publish(first, [SkipCount("empty", 100)])
    await job.publish(second, [SkipCount("empty", 100)])
    await eventually(lambda: len(job.tasks(TaskReason.BACKFILL)) == 3)
    third = next(one for one in job.tasks(TaskReason.BACKFILL) if one.phase is TaskPhase.PENDING)
    await job.publish(third, [SkipCount("empty", 100)])
    await job.phase(MigrationPhase.VALIDATE)  # nothing is left to do; the gate has its say
    with pytest.raises(FailedPrecondition, match="lacking_share is 1, needed is at most"):
        await job.change(steps.commit)
    report_segments(job.cluster, {"s4": "m2"})  # as if all records had got their vectors
    await eventually(lambda: job.migration.lacking_share == 0)
    assert job.migration.segments == ()  # those with skipped records are gone
    with pytest.raises(FailedPrecondition, match="recall is not measured"):
        await job.change(steps.commit)
    await job.book.change(
        job.collection, lambda m: steps.validated(m, GOOD, order=ADA), deadline=soon()
    )
    assert job.serving == "m"
    await job.change(steps.commit)
    assert job.serving == "m2"
    assert len(set(await job.revisions())) == 1  # one transaction
    await job.change(steps.rollback)
    assert job.serving == "m"
    assert len(set(await job.revisions())) == 1
    await job.change(steps.commit)
    await job.change(steps.purge)
    await job.phase(MigrationPhase.PURGED)
    assert job.serving == "m2"


async def test_an_abort_cancels_backfills_and_rewrites_what_has_the_new_vectors(job: Job) -> None:
    report_segments(job.cluster, {"s1": "m", "s2": "m2"})
    await job.start()
    await eventually(lambda: len(job.tasks(TaskReason.BACKFILL)) == 1)
    await job.change(steps.abort)
    await eventually(lambda: len(job.tasks(TaskReason.MODEL_PURGE)) == 1)
    (purge,) = job.tasks(TaskReason.MODEL_PURGE)
    assert (purge.sources, purge.model) == (("s2",), "m2")
    (backfill,) = job.tasks(TaskReason.BACKFILL)
    await eventually(lambda: job.tasks(TaskReason.BACKFILL)[0].phase is TaskPhase.CANCELLED)
    assert "aborting" in job.tasks(TaskReason.BACKFILL)[0].error
    assert backfill.sources == ("s1",)
    await job.publish(purge)
    report_segments(job.cluster, {"s1": "m", "s3": "m"})
    await job.phase(MigrationPhase.ABORTED)
    assert job.serving == "m"
    assert (await job.start()).phase is MigrationPhase.PREPARE  # another one


async def test_a_new_leader_goes_on_with_it(job: Job) -> None:
    report_segments(job.cluster, {"s1": "m"})
    await job.start()
    await job.phase(MigrationPhase.BACKFILL)
    await job.coordinator.stop()
    job.coordinator = await job.cluster.add_coordinator("c2")
    await eventually(lambda: len(job.tasks(TaskReason.BACKFILL)) == 1)
    report_segments(job.cluster, {"s1": "m2"})
    await job.phase(MigrationPhase.VALIDATE)


async def test_a_paused_migration_stays_where_it_is(job: Job) -> None:
    report_segments(job.cluster, {"s1": "m"})
    await job.start()
    await job.phase(MigrationPhase.BACKFILL)
    await job.change(steps.pause)
    report_segments(job.cluster, {"s1": "m2"})
    await eventually(
        lambda: job.migration.coverage is not None and not job.migration.coverage.rows_lacking
    )
    assert job.migration.phase is MigrationPhase.BACKFILL
    await job.change(steps.resume)
    await job.phase(MigrationPhase.VALIDATE)


async def test_of_two_starts_one_is_made_and_another_model_is_refused(job: Job) -> None:
    report_segments(job.cluster, {})
    first = await job.start()
    assert (await job.start()).history[:1] == first.history
    with pytest.raises(FailedPrecondition, match="start is not possible"):
        await job.book.start(
            "packages",
            lambda present, collection: steps.start(
                present, collection_id=collection.id, from_model="m", to_model="m3",
                settings=MigrationSettings(), thresholds=GateThresholds(), order=ADA,
            ),
            deadline=soon(),
        )  # fmt: skip


async def test_a_dropped_collection_takes_its_migration_with_it(job: Job) -> None:
    report_segments(job.cluster, {"s1": "m"})
    await job.start()
    await job.coordinator.collections.drop("packages", deadline=soon())
    assert (await job.cluster.meta.list(keys.MIGRATIONS_PREFIX)).items == ()
    with pytest.raises(NotFound):
        await job.change(steps.pause)


class LostAnswers:
    """A store that applies every second commit and loses its answer."""

    def __init__(self, store: MetaStore) -> None:
        self._store = store
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(
        self, operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
    ) -> int:
        """Commit, and raise `UnknownOutcome` every second time."""
        revision = await self._store.commit(operations, compares=compares)
        self.commits += 1
        if self.commits % 2:
            raise UnknownOutcome("the answer was lost")
        return revision


async def test_a_step_whose_answer_was_lost_is_done_once(job: Job) -> None:
    report_segments(job.cluster, {})
    lossy: Any = LostAnswers(job.cluster.meta)
    job.book = MigrationBook(job.coordinator.catalog, lossy)
    await job.start()
    await job.phase(MigrationPhase.VALIDATE)
    for step, arguments in (
        (steps.pause, {}),
        (steps.commit, {"force": True}),
        (steps.rollback, {}),
        (steps.commit, {"force": True}),
        (steps.resume, {}),
    ):
        lossy.commits = 0
        await job.change(step, **arguments)
    events = [one.event for one in job.migration.history if one.who == "ada"]
    assert events == ["start", "pause", "commit", "rollback", "commit", "resume"]
    assert job.serving == "m2"


async def test_a_step_planned_from_an_old_state_is_not_stored(job: Job) -> None:
    report_segments(job.cluster, {})
    await job.start()
    await job.phase(MigrationPhase.VALIDATE)
    old = await job.book.get(job.collection)
    await job.change(steps.pause)
    with pytest.raises(Conflict):
        await job.book.change_once(old, job.collection, lambda m: steps.abort(m, order=ADA))
    assert job.migration.phase is MigrationPhase.VALIDATE
