"""What is known of recall over a restart: states, measurements and sampled queries go on."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.errors import Unavailable
from annheal.index import VectorIndex, build_hnsw
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import shard_key
from annheal.metastore.protocol import Put
from annheal.model.collection import (
    AttributeField,
    AttributeType,
    IndexSettings,
    Metric,
    ModelSpec,
)
from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.measures.recall import SegmentRecall, SelectivityBand
from annheal.model.records import ARROW_TYPES
from annheal.model.search import SearchOptions, SearchRequest
from annheal.model.topology.shard import Assignment, ShardId
from annheal.objectstore.local import LocalObjectStore
from annheal.recall import load_memory, store_memory
from annheal.runtime.tasks import TaskScope
from annheal.segment import BuildInfo, RecallPoint, SegmentRows
from annheal.shard_node.app import not_listening, running_node
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.node import Node
from annheal.shard_node.recall.ef_control import EfController, EfState
from annheal.shard_node.recall.keeper import SAMPLE_GAP_S, STATE_GAP_S, RecallKeeper
from annheal.shard_node.recall.monitor import MonitorSettings, RecallMonitor
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import MatchCount
from annheal.shard_node.settings import ShardNodeSettings
from annheal.shards.object_keys import ObjectKind
from tests.support.compaction import Workplace, collection
from tests.support.shards import Owner, ShardWorld

ROWS, DIMENSION = 2_500, 24
MODEL = ModelSpec("m", DIMENSION, Metric.COSINE)
SCHEMA = (AttributeField("size", AttributeType.INT64),)
COLLECTION = collection(model=MODEL, schema=SCHEMA)
SHARD = ShardId(COLLECTION.id, 0)
UNFILTERED = SelectivityBand.UNFILTERED
SMALL: Filter = Comparison("size", ComparisonOp.LT, ROWS // 2)
OPTIMISTIC = (RecallPoint(10, 10, 0.99),)
Vectors = npt.NDArray[np.float32]


def unit(count: int, *, seed: int) -> Vectors:
    values = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


VECTORS, QUERIES = unit(ROWS, seed=1), unit(200, seed=2)


def rows() -> SegmentRows:
    sizes = pa.array(range(ROWS), type=ARROW_TYPES[AttributeType.INT64])
    return SegmentRows(
        ids=pa.array([f"r{n}" for n in range(ROWS)], type=pa.string()),
        sequences=np.zeros(ROWS, dtype=np.int64),
        vectors=VECTORS,
        attributes=pa.RecordBatch.from_arrays([sizes], names=["size"]),
        payloads=pa.nulls(ROWS, pa.binary()),
    )


@pytest.fixture(scope="module")
def graph() -> VectorIndex:
    return build_hnsw(VECTORS, metric=MODEL.metric, settings=IndexSettings(m=4), threads=1)


@pytest.fixture
async def world(tmp_path: Path, graph: VectorIndex) -> AsyncIterator[ShardWorld]:
    """A shard with one graph whose curve promises too much."""
    made = ShardWorld(tmp_path, collection=COLLECTION)
    place = Workplace(made.meta, made.objects, tmp_path, COLLECTION)
    info = BuildInfo(IndexSettings(), 1, ("x",), OPTIMISTIC, "merge")
    await place.add_segment("s1", rows(), index=graph, build=info)
    yield made
    await made.close()


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    pool = Lanes()
    yield pool
    pool.close()


@dataclass(slots=True)
class Process:
    """A monitor with nothing in memory, as after a start."""

    owner: Owner
    objects: LocalObjectStore
    lanes: Lanes
    keep_queries: bool = True
    now_s: float = 1_000.0
    monitor: RecallMonitor = field(init=False)
    keeper: RecallKeeper = field(init=False)

    def __post_init__(self) -> None:
        sampler = RecallSampler(1.0, draw=random.Random(1), now_s=itertools.count(1.0).__next__)
        controller = EfController()
        self.keeper = RecallKeeper(
            self.objects,
            sampler=sampler,
            controller=controller,
            keep_queries=self.keep_queries,
            clock=lambda: self.now_s,
            now_s=lambda: 5.0,
        )
        self.monitor = RecallMonitor(
            lambda: {SHARD: self.owner.shard},
            sampler=sampler,
            controller=controller,
            filters=FilterCache(),
            lanes=self.lanes,
            keeper=self.keeper,
            settings=MonitorSettings(cpu_share=1.0),
        )

    def ask(self, queries: Vectors, filter: Filter | None = None) -> None:
        match_count = MatchCount(0, ROWS if filter is None else ROWS // 2, ROWS)
        options = SearchOptions(k=10, filter=filter)
        self.monitor.sampler.note(SHARD.collection_id, queries, options, [match_count])

    async def look(self) -> None:
        """Do what the monitor's loop does when it looks."""
        await self.monitor._restore_new()

    async def measure(self) -> None:
        await self.monitor.measure(SHARD)
        await self.monitor._save(SHARD)

    def state(self) -> EfState:
        return self.monitor.controller.state("s1", UNFILTERED)


async def memories(world: ShardWorld) -> list[str]:
    return [stat.key async for stat in world.objects.list(ObjectKind.RECALL.prefix)]


async def learnt(world: ShardWorld, lanes: Lanes, **options: bool) -> Process:
    """Return a process that has raised ef, and written that down."""
    process = Process(await world.open(), world.objects, lanes, **options)
    await process.look()
    process.ask(QUERIES[:100])
    process.ask(QUERIES[100:140], SMALL)
    for _ in range(4):
        await process.measure()
        process.now_s += STATE_GAP_S
    assert process.state().scale > 1.0
    assert len(await memories(world)) == 1
    return process


async def test_a_restart_goes_on_where_it_was(world: ShardWorld, lanes: Lanes) -> None:
    before = await learnt(world, lanes)
    (known,) = before.monitor.recall()
    after = Process(await world.open(), world.objects, lanes)
    assert after.state() == EfState()
    await after.look()
    assert after.state().scale == before.state().scale
    # What was measured is told before anything is measured again.
    (told,) = after.monitor.recall()
    slots = [(one.segment_id, one.band, one.estimate.queries) for one in known.segments]
    assert [(one.segment_id, one.band, one.estimate.queries) for one in told.segments] == slots
    assert [one.band for one in told.shards] == [one.band for one in known.shards]
    assert all(one.estimate.measured_at_s > 0 for one in told.segments)
    assert after.monitor.measured_segments(SHARD).keys() == {"s1"}
    kept = after.monitor.sampler.sample(SHARD.collection_id)
    assert sum(one.filter == SMALL for one in kept) == 40
    assert {one.vector.tobytes() for one in kept} == {row.tobytes() for row in QUERIES[:140]}
    # The same sample is no new evidence: nothing is raised or lowered for it.
    scale = after.state().scale
    await after.measure()
    assert after.state().scale in (scale, scale * 2**0.5)
    assert after.monitor.recall()[0].shards[0].estimate.queries > 0


async def test_writing_is_bounded_in_rate_and_leaves_one_object(
    world: ShardWorld, lanes: Lanes
) -> None:
    process = await learnt(world, lanes)
    (first,) = await memories(world)
    process.monitor.controller.store("s1", UNFILTERED, EfState(scale=9.0))
    result = process.monitor._results[SHARD]
    held = process.owner.shard
    process.now_s += STATE_GAP_S
    assert await process.keeper.save(SHARD, held, result)
    process.monitor.controller.store("s1", UNFILTERED, EfState(scale=8.0))
    process.now_s += STATE_GAP_S / 2
    assert not await process.keeper.save(SHARD, held, result)  # too soon
    process.now_s += STATE_GAP_S / 2
    assert await process.keeper.save(SHARD, held, result)
    process.now_s += STATE_GAP_S
    assert not await process.keeper.save(SHARD, held, result)  # nothing new
    process.ask(QUERIES[140:145])
    assert not await process.keeper.save(SHARD, held, result)  # samples can wait
    process.now_s += SAMPLE_GAP_S
    assert await process.keeper.save(SHARD, held, result)
    process.ask(QUERIES[145:150])
    await process.monitor.save_leaving()  # who leaves does not wait
    (last,) = await memories(world)
    assert last > first


async def test_what_is_gone_is_ignored_and_what_is_known_wins(
    world: ShardWorld, lanes: Lanes
) -> None:
    await learnt(world, lanes)
    memory = await load_memory(world.objects, SHARD.collection_id, 0)
    assert memory is not None
    after = Process(await world.open(), world.objects, lanes)
    mine = EfState(scale=3.0)
    after.monitor.controller.store("s1", UNFILTERED, mine)
    after.ask(QUERIES[:7])
    other = replace(memory.ef[0], segment_id="gone")
    measured = replace(memory.segments[0], segment_id="gone")
    changed = replace(memory, ef=(*memory.ef, other), segments=(measured,))
    await store_memory(world.objects, SHARD.collection_id, 0, changed, epoch=10**6, number=1)
    await after.look()
    assert after.state() == mine
    assert after.monitor.controller.state("gone", other.band) == EfState()
    assert after.monitor.recall()[0].segments == ()
    unfiltered = dict(after.monitor.sampler.by_band(SHARD.collection_id))[UNFILTERED]
    assert len(unfiltered) == 7


async def test_queries_are_kept_only_where_that_is_wanted(world: ShardWorld, lanes: Lanes) -> None:
    await learnt(world, lanes, keep_queries=False)
    memory = await load_memory(world.objects, SHARD.collection_id, 0)
    assert memory is not None
    assert (memory.queries, len(memory.vectors)) == ((), 0)
    assert memory.ef
    after = Process(await world.open(), world.objects, lanes)
    await after.look()
    assert after.state().scale > 1.0
    assert after.monitor.sampler.sample(SHARD.collection_id) == ()


async def test_conclusions_about_another_objective_are_not_restored(
    world: ShardWorld, lanes: Lanes
) -> None:
    """The objective was changed while no node had the shard: a rebuild may not be needed now."""
    before = await learnt(world, lanes)
    learnt_state = replace(before.state(), floor=1.2, floor_runs=3, rebuild=True)
    before.monitor.controller.store("s1", UNFILTERED, learnt_state)
    result = before.monitor._results[SHARD]
    wanted = tuple(replace(one, rebuild=True) for one in result.segments)
    before.now_s += STATE_GAP_S
    assert await before.keeper.save(SHARD, before.owner.shard, replace(result, segments=wanted))

    same = Process(await world.open(), world.objects, lanes)
    await same.look()
    assert same.state().rebuild
    assert any(one.rebuild for one in same.monitor.recall()[0].segments)

    for changes in ({"recall_objective": 0.5}, {"recall_k": 5}):
        other = Process(await world.open(), world.objects, lanes)
        was = other.owner.shard.collection
        now = replace(was, settings=replace(was.settings, **changes))
        other.owner.shard.change_settings(now)
        found = await other.keeper.restore(SHARD, other.owner.shard)
        assert other.state() == EfState(scale=learnt_state.scale)
        if "recall_k" in changes:
            assert found is None  # recall@10 says nothing of recall@5
        else:
            assert found is not None
            assert found.segments
            assert not any(one.rebuild for one in found.segments)


async def test_a_memory_without_a_goal_concludes_nothing(world: ShardWorld, lanes: Lanes) -> None:
    """Version 0.1 did not write what its states were about."""
    before = await learnt(world, lanes)
    memory = await load_memory(world.objects, SHARD.collection_id, 0)
    assert memory is not None
    assert (memory.objective, memory.k) == (0.95, 10)
    stuck = tuple(replace(one, stuck=True) for one in memory.ef)
    old = replace(memory, objective=0.0, k=0, ef=stuck)
    await store_memory(world.objects, SHARD.collection_id, 0, old, epoch=10**6, number=1)
    after = Process(await world.open(), world.objects, lanes)
    await after.look()
    assert after.state() == EfState(scale=before.state().scale)
    assert after.monitor.recall()[0].segments


async def test_a_store_that_is_away_is_asked_again(
    world: ShardWorld, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await learnt(world, lanes)
    after = Process(await world.open(), world.objects, lanes)
    real, away = LocalObjectStore.get, True

    async def get(self: LocalObjectStore, key: str) -> bytes:
        if away and key.startswith(ObjectKind.RECALL.prefix):
            raise Unavailable("the store is away")
        return await real(self, key)

    monkeypatch.setattr(LocalObjectStore, "get", get)
    await after.look()
    assert after.state() == EfState()
    away = False
    await after.look()
    assert after.state().scale > 1.0


async def test_a_node_that_leaves_hands_on_what_it_learnt(
    tmp_path: Path, world: ShardWorld
) -> None:
    await world.meta.commit(
        [Put(shard_key("c1", 0), encode_value(Assignment("c1", 0, target="a")))]
    )
    settings = ShardNodeSettings(
        "a", data_dir=tmp_path / "a", recall_sample_share=1.0, recall_interval_s=0.2
    )

    async def told(node: Node, *, ef_above: int) -> SegmentRecall:
        async with asyncio.timeout(60):
            while True:
                for report in await node.recall("c1"):
                    for segment in report.segments:
                        if segment.ef > ef_above:
                            return segment
                await asyncio.sleep(0.02)

    def node() -> AbstractAsyncContextManager[tuple[Node, TaskScope]]:
        return running_node(settings, world.meta, world.objects, listen=not_listening)

    async with node() as (first, _):
        async with asyncio.timeout(60):
            while not any(one.segments for one in await first.shard_states()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        request = SearchRequest("c1", (0,), QUERIES[:64], SearchOptions(k=10))
        await first.search(request)
        learnt = await told(first, ef_above=10)
    async with node() as (second, _):
        # Nobody searched here: it is what the first one learnt.
        assert (await told(second, ef_above=10)).ef >= learnt.ef
        (report,) = await second.recall("c1")
        assert report.shards[0].seen <= 64
