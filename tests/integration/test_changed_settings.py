"""Changed settings of a collection reach what is already running, and change what it does.

Each test changes one setting in the metadata store, as `update_collection` does, and waits for its
effect on an open shard, a leading coordinator or a compactor that has already taken the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from annheal.compactor.attempt import Attempt
from annheal.compactor.throttle import BuildSlots
from annheal.coordinator.app import Coordinator
from annheal.coordinator.compaction.plan import CompactionSettings
from annheal.errors import AnnhealError, ResourceExhausted
from annheal.index import build_hnsw
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import collection_key, shard_key, task_key
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.collection import CollectionSettings, IndexSettings, VectorStorage
from annheal.model.measures.recall import Rung, SelectivityBand, Shortfall
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.search import SearchOptions, SearchRequest
from annheal.model.topology.shard import Assignment, ShardId
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.model.write import Upsert, WriteRequest
from annheal.objectstore.local import LocalObjectStore
from annheal.segment import BuildInfo, RecallPoint
from annheal.shard_node.app import not_listening, running_node
from annheal.shard_node.node import Node
from annheal.shard_node.recall.ef_control import EfState
from annheal.shard_node.settings import ShardNodeSettings
from tests.support.compaction import Workplace, collection, merge_task
from tests.support.memory_cluster import MemoryCluster, eventually, memory_cluster, soon, spec
from tests.support.segments import MODEL, sample_rows, unit_vectors
from tests.support.shards import record_batch, shard_collection

PATIENCE_S = 20.0
ROWS = 2_000
QUIET = CollectionSettings(seal_age_s=3_600.0)
"""Nothing is flushed by itself."""
CURVE = tuple(
    RecallPoint(k, ef * k // 10, recall, visited=ef * 10.0)
    for k in (10, 100)
    for ef, recall in ((16, 0.92), (64, 0.96), (256, 0.995), (512, 1.0))
)

TestT = TypeVar("TestT", bound=Callable[..., Any])
_effects: set[str] = set()


def effect_of(*settings: str) -> Callable[[TestT], TestT]:
    """Say that the test shows the effect of these settings."""

    def note(test: TestT) -> TestT:
        _effects.update(settings)
        return test

    return note


def test_every_changeable_setting_has_a_test_of_its_effect() -> None:
    changeable = {one.name for one in fields(CollectionSettings)}
    changeable |= {f"index.{one.name}" for one in fields(IndexSettings)}
    assert _effects == changeable


# ------------------------------------------------------------------------ shards that are open


class LiveShard:
    """A node that serves the one shard of a collection whose settings can be changed."""

    def __init__(self, place: Workplace, node: Node) -> None:
        self.place = place
        self.node = node
        self._written = 0

    async def change(self, **settings: Any) -> None:
        changed = replace(self.place.collection.settings, **settings)
        self.place.collection = replace(self.place.collection, settings=changed)
        name, value = self.place.collection.name, encode_value(self.place.collection)
        await self.place.meta.commit([Put(collection_key(name), value)])

    async def upsert(self) -> None:
        self._written += 1
        batch = record_batch([f"r{self._written}"])
        await self.node.write(WriteRequest("c1", 0, Upsert(batch)))

    async def flushed(self) -> int:
        (state,) = await self.node.shard_states()
        return sum(one.tier != "growing" for one in state.segments)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.02)


@pytest.fixture
async def open_live(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[LiveShard]]]:
    async with AsyncExitStack() as stack:
        meta = SqliteMetaStore(tmp_path / "meta.sqlite")
        stack.push_async_callback(meta.close)
        objects = LocalObjectStore(tmp_path / "objects")
        stack.push_async_callback(objects.close)

        async def start(place: Workplace) -> LiveShard:
            await place.store()
            await meta.commit(
                [Put(shard_key("c1", 0), encode_value(Assignment("c1", 0, target="a")))]
            )
            settings = ShardNodeSettings("a", data_dir=tmp_path / "a")
            node, _ = await stack.enter_async_context(
                running_node(settings, meta, objects, listen=not_listening)
            )

            async def serving() -> bool:
                return [one.phase for one in await node.shard_states()] == ["serving"]

            await until(serving)
            return LiveShard(place, node)

        async def open_with(**settings: Any) -> LiveShard:
            return await start(Workplace(meta, objects, tmp_path, shard_collection(**settings)))

        async def open_graph() -> LiveShard:
            place = Workplace(meta, objects, tmp_path, collection(settings=QUIET))
            rows = sample_rows(ROWS)
            graph = build_hnsw(
                rows.vectors, metric=MODEL.metric, settings=IndexSettings(), threads=1
            )
            built = BuildInfo(IndexSettings(), 1, ("x",), CURVE, "merge")
            await place.add_segment("s1", rows, index=graph, build=built)
            return await start(place)

        async def open_live(*, graph: bool = False, **settings: Any) -> LiveShard:
            return await open_graph() if graph else await open_with(**settings)

        yield open_live


OpenLive = Callable[..., Awaitable[LiveShard]]


@effect_of("recall_objective")
async def test_a_raised_objective_widens_the_searches_of_an_open_shard(
    open_live: OpenLive,
) -> None:
    live = await open_live(graph=True)
    queries = unit_vectors(1, MODEL.dimension, seed=9)
    options = SearchOptions(k=10, explain=True)

    async def ef() -> int:
        answer = await live.node.search(SearchRequest("c1", (0,), queries, options))
        (part,) = answer.explain
        return part.ef

    before = await ef()
    await live.change(recall_objective=0.985)

    async def wider() -> bool:
        return await ef() > before

    await until(wider)


@effect_of("recall_k")
async def test_a_changed_recall_k_changes_what_is_said_of_an_open_shard(
    open_live: OpenLive,
) -> None:
    live = await open_live(graph=True)

    async def segment() -> SegmentState:
        (state,) = await live.node.shard_states()
        return state.segments[0]

    before = await segment()
    await live.change(recall_k=100)

    async def changed() -> bool:
        return (await segment()).visited_baseline != before.visited_baseline

    await until(changed)


@effect_of("recall_budget")
async def test_a_budget_of_nothing_marks_the_answers_of_an_open_shard_whose_graph_fails(
    open_live: OpenLive,
) -> None:
    live = await open_live(graph=True)
    (state,) = await live.node.shard_states()
    segment_id, band = state.segments[0].segment_id, SelectivityBand.UNFILTERED
    failing = EfState(shortfall=Shortfall(0.1, Rung.EXACT))
    live.node._monitor.controller.store(segment_id, band, failing)
    queries = unit_vectors(1, MODEL.dimension, seed=9)

    async def is_marked() -> bool:
        request = SearchRequest("c1", (0,), queries, SearchOptions(k=10))
        return (await live.node.search(request)).below_objective

    assert not await is_marked()
    await live.change(recall_budget=0.0)
    await until(is_marked)


@effect_of("recall_tail_objective", "recall_objective_share")
async def test_an_objective_for_single_queries_is_measured_on_an_open_shard(
    open_live: OpenLive,
) -> None:
    live = await open_live(graph=True)
    queries = unit_vectors(64, MODEL.dimension, seed=9)
    await live.node.search(SearchRequest("c1", (0,), queries, SearchOptions(k=10)))

    async def measured_for() -> set[TailObjective | None]:
        await live.node._monitor.measure(ShardId("c1", 0))
        (found,) = live.node._monitor.recall("c1")
        tails = [one.estimate.tail for one in found.shards]
        return {None if tail is None else tail.objective for tail in tails}

    assert await measured_for() == {None}
    await live.change(recall_tail_objective=0.8, recall_objective_share=0.9)

    async def is_measured() -> bool:
        return await measured_for() == {TailObjective(0.8, 0.9)}

    await until(is_measured)


@effect_of("seal_rows_max", "seal_bytes_max")
@pytest.mark.parametrize("change", [{"seal_rows_max": 5}, {"seal_bytes_max": 64}])
async def test_lowered_sizes_seal_what_grows(open_live: OpenLive, change: dict[str, int]) -> None:
    live = await open_live()
    for _ in range(20):
        await live.upsert()
    assert await live.flushed() == 0
    await live.change(**change)

    async def sealed() -> bool:
        await live.upsert()
        return await live.flushed() > 0

    await until(sealed)


@effect_of("seal_age_s")
async def test_a_lowered_age_seals_what_grows(open_live: OpenLive) -> None:
    live = await open_live()
    await live.upsert()
    await live.change(seal_age_s=0.01)

    async def sealed() -> bool:
        return await live.flushed() == 1

    await until(sealed)


@effect_of("unindexed_rows_max")
async def test_a_lowered_limit_of_rows_without_an_index_refuses_writes(
    open_live: OpenLive,
) -> None:
    live = await open_live()
    for _ in range(20):
        await live.upsert()
    await live.change(unindexed_rows_max=10)

    async def refused() -> bool:
        try:
            await live.upsert()
        except ResourceExhausted as error:
            return error.reason == "UNINDEXED_ROWS"
        return False

    await until(refused)
    await live.change(unindexed_rows_max=500_000)

    async def accepted() -> bool:
        try:
            await live.upsert()
        except AnnhealError:
            return False
        return True

    await until(accepted)


async def test_a_collection_that_cannot_be_read_costs_no_other_shard(
    open_live: OpenLive,
) -> None:
    live = await open_live()
    await live.place.meta.commit([Put(collection_key("broken"), b"{")])
    await live.upsert()
    await live.change(seal_age_s=0.01)  # arrives after the broken one

    async def sealed() -> bool:
        return await live.flushed() == 1

    await until(sealed)


# ----------------------------------------------------------------------- leading coordinators


def _graph(name: str, rows: int, *, dead: int = 0, visited: float = 0.0) -> SegmentState:
    return SegmentState(
        shard=0,
        segment_id=name,
        tier="warm",
        model="m",
        index_kind="hnsw",
        rows=rows,
        dead_rows=dead,
        size_bytes=rows * 1_000,
        generation=0,
        created_at_s=0.0,
        min_sequence=1,
        max_sequence=1,
        visited=visited,
        visited_baseline=1_000.0 if visited else 0.0,
    )


SMALL = (_graph("s1", 5_000), _graph("s2", 5_000))
UNWORN = {"tombstone_ratio_max": 1.0, "tombstone_rows_min": 1_000_000, "segment_idle_s": 3_600.0}
IDLE = {"segment_idle_s": 0.01}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[SegmentState, ...], TaskReason]] = {
    "compaction_automatic": (
        {"compaction_automatic": False},
        {"compaction_automatic": True},
        tuple(replace(_graph(f"s{n}", 5_000), index_kind="flat", tier="hot") for n in range(4)),
        TaskReason.MERGE,
    ),
    "tombstone_ratio_max": (
        {"tombstone_ratio_max": 1.0},
        {"tombstone_ratio_max": 0.2},
        (_graph("s1", 10_000, dead=3_000),),
        TaskReason.TOMBSTONES,
    ),
    "tombstone_rows_min": (
        {"tombstone_rows_min": 5_000},
        {"tombstone_rows_min": 100},
        (_graph("s1", 10_000, dead=3_000),),
        TaskReason.TOMBSTONES,
    ),
    "walk_cost_ratio_max": (
        {**UNWORN, "walk_cost_ratio_max": 3.0},
        {"walk_cost_ratio_max": 1.5},
        (_graph("s1", 10_000, dead=1_000, visited=2_000.0),),
        TaskReason.WALK_COST,
    ),
    "segment_rows_max": (
        {**IDLE, "segment_rows_max": 6_000},
        {"segment_rows_max": 1_000_000},
        SMALL,
        TaskReason.MERGE,
    ),
    "segment_bytes_max": (
        {**IDLE, "segment_bytes_max": 8 << 20},
        {"segment_bytes_max": 2 << 30},
        SMALL,
        TaskReason.MERGE,
    ),
    "segment_idle_s": (
        {"segment_idle_s": 3_600.0},
        {"segment_idle_s": 0.01},
        SMALL,
        TaskReason.MERGE,
    ),
}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path) as running:
        yield running


async def looked(coordinator: Coordinator, cluster: MemoryCluster, collection_id: str) -> None:
    """Return after two looks: a task without sources is cancelled by the look that plans."""
    for name in ("stale1", "stale2"):
        task = CompactionTask(name, collection_id, 0, ("gone",), "warm", TaskReason.MERGE)
        await cluster.meta.commit([Put(task_key(name), encode_value(task))])

        def is_cancelled(name: str = name) -> bool:
            stored = coordinator.catalog.task(name)
            return stored is not None and stored.value.phase is TaskPhase.CANCELLED

        await eventually(is_cancelled)


@effect_of(*CASES)
@pytest.mark.parametrize("setting", CASES)
async def test_the_leader_plans_by_the_settings_of_now(
    cluster: MemoryCluster, setting: str
) -> None:
    before, after, segments, reason = CASES[setting]
    node = await cluster.add_node("a")
    coordinator = await cluster.add_coordinator(compaction=CompactionSettings(quiet_s=0.05))

    def report(state: ShardState) -> ShardState:
        return replace(state, segments=segments)

    node.states = report
    wanted = spec("packages", shard_count=1)
    wanted = replace(wanted, settings=replace(wanted.settings, **before))
    stored = await coordinator.collections.create(wanted, deadline=soon())
    await looked(coordinator, cluster, stored.id)
    assert {one.value.id for one in coordinator.catalog.tasks()} == {"stale1", "stale2"}
    await coordinator.collections.update(
        "packages",
        lambda present: replace(present, settings=replace(present.settings, **after)),
        deadline=soon(),
    )

    def planned() -> list[TaskReason]:
        tasks = [one.value for one in coordinator.catalog.tasks()]
        return [one.reason for one in tasks if not one.id.startswith("stale")]

    await eventually(lambda: planned() == [reason])


# --------------------------------------------------------------------------------- compactors


@effect_of("storage", "index.m", "index.ef_construction")
async def test_a_task_that_waits_for_its_turn_is_built_by_the_settings_of_its_turn(
    tmp_path: Path,
) -> None:
    meta, objects = SqliteMetaStore(tmp_path / "meta.db"), LocalObjectStore(tmp_path / "objects")
    place = Workplace(meta, objects, tmp_path)
    await place.add_segment("a", sample_rows(ROWS))
    slots = BuildSlots(1)
    attempt = Attempt(meta, objects, worker_dir=tmp_path / "work", slots=slots)
    async with slots.slot():
        running = asyncio.create_task(attempt.run(merge_task("a")))
        await eventually(lambda: attempt.progress.step == "waiting")
        place.collection = replace(
            place.collection,
            settings=replace(place.collection.settings, storage=VectorStorage.FP16),
            index=IndexSettings(m=6, ef_construction=37),
        )
        await place.store()
    task = await running
    assert task.output is not None
    segment = await place.open(task.output)
    assert segment.meta.build.settings == IndexSettings(m=6, ef_construction=37)
    assert segment.index.storage is VectorStorage.FP16
    await objects.close()
    await meta.close()
