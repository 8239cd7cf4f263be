"""A graph that cannot meet the objective, answered by the last rung in a real server.

Inner product with one dimension of 200 times the spread of the others, and queries without it: the
graph's links lead along that dimension, and walks find next to nothing of what is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal import AsyncClient
from annheal.cli.server.embedded import embedded_server
from annheal.client import SearchBatch
from annheal.index import build_hnsw, warm_up
from annheal.model.collection import Collection, IndexSettings, Metric, ModelSpec
from annheal.model.measures.recall import Rung, SegmentRecall
from annheal.model.measures.recall_summary import RecallVerdict
from annheal.model.search import SearchOptions
from annheal.model.topology.manifest import IndexKind
from annheal.model.topology.shard import ShardId
from annheal.segment import BuildInfo, RecallPoint, SegmentRows
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.recall.ef_control import EfController
from annheal.shard_node.recall.monitor import MonitorSettings, RecallMonitor
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.rows.view import ShardView
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.planner import PlanKind
from annheal.shard_node.search.searcher import MatchCount, Searcher
from tests.support.compaction import COLLECTION_ID, Workplace, collection
from tests.support.shards import ShardWorld

ROWS, DIMENSION, SPREAD, BATCH = 4_000, 16, 200.0, 8
NAME = "blind"
OBJECTIVE = 0.95
PATIENCE_S = 60.0
SETTINGS = {"recall_interval_s": "0.3", "recall_cpu_share": "1", "metrics_listen": "127.0.0.1:0"}
WITHOUT_GRAPH = ("scan", "shortlist")
SHARD = ShardId(COLLECTION_ID, 0)
OPTIONS = SearchOptions(k=10)


@dataclass(frozen=True, slots=True)
class Watched:
    """A shard as the monitor sees it."""

    collection: Collection
    serving_view: ShardView
    epoch: int = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch of answers and its true recall."""

    recall: float
    answers: SearchBatch


class Load:
    """Searches all the time, as a client does, and knows the truth."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._rng = np.random.default_rng(7)
        self.vectors = self._drawn(ROWS)
        self.vectors[:, 0] *= SPREAD
        self.queries = self._drawn(400)
        self.queries[:, 0] = 0.0
        self._truth = np.argsort(-(self.queries @ self.vectors.T), axis=1)[:, :10]

    def _drawn(self, rows: int) -> npt.NDArray[np.float32]:
        return self._rng.standard_normal((rows, DIMENSION)).astype(np.float32)

    async def ask(self, *, ef: int | None = None) -> Asked:
        some = self._rng.choice(len(self.queries), BATCH, replace=False)
        found = await self.client.search_batch(NAME, self.queries[some], k=10, ef=ef)
        hits = [
            len(set(map(int, ids)) & set(self._truth[query].tolist()))
            for ids, query in zip(found.ids, some, strict=True)
        ]
        return Asked(sum(hits) / (10 * BATCH), found)

    async def ask_until(self, holds: Callable[[Asked], bool]) -> list[Asked]:
        """Ask until an answer is as wanted; return the answers before it."""
        before: list[Asked] = []
        async with asyncio.timeout(PATIENCE_S):
            while not holds(asked := await self.ask()):
                before.append(asked)
                await asyncio.sleep(0.01)
        return before

    async def reported(self, holds: Callable[[SegmentRecall], bool]) -> SegmentRecall:
        """Ask until the report of the graph's segment is as wanted."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                summary = await self.client.recall(NAME)
                found = [one for one in summary.segments if one.ef and holds(one)]
                if found:
                    return found[0]
                await self.ask()

    async def build(self) -> None:
        """Have a graph built over all rows."""
        await self.client.compact(NAME, full=True)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                segments = (await self.client.segments(NAME)).segments
                if [one.index_kind for one in segments] == [IndexKind.HNSW]:
                    return
                await asyncio.sleep(0.05)


async def test_inv7_a_blind_graph_is_answered_without_it_or_its_answers_say_so(
    tmp_path: Path,
) -> None:
    async with (
        embedded_server(tmp_path, settings=SETTINGS) as server,
        AsyncClient(server.address) as client,
    ):
        load = Load(client)
        await client.create_collection(
            NAME,
            DIMENSION,
            metric="inner_product",
            settings={"compaction_automatic": False, "recall_objective": OBJECTIVE},
        )
        await client.upsert(NAME, [str(row) for row in range(ROWS)], load.vectors)
        await client.flush(NAME)
        await load.build()

        # The graph fails, which is noticed, and from then on every row is compared.
        first_answer = await load.ask()
        assert first_answer.recall < 0.5
        await load.ask_until(lambda asked: asked.recall >= 0.99)
        for _ in range(20):
            asked = await load.ask()
            assert asked.recall >= OBJECTIVE
            assert not asked.answers.below_objective
        lifted = await load.reported(lambda one: one.rung is not Rung.GRAPH and one.rebuild)
        assert lifted.below
        assert lifted.estimate.high < 0.5, "what the graph would give is measured all the same"
        assert lifted.answered is not None
        assert lifted.answered.recall >= OBJECTIVE
        verdict = (await client.recall(NAME)).overall.verdict
        assert verdict is RecallVerdict.RECOVERING, "a minute has not passed since"

        # What it costs: the rows of the segment, once.
        (explained,) = (await client.search(NAME, load.queries[0], explain=True)).explain
        assert explained.plan in WITHOUT_GRAPH
        assert explained.visited <= ROWS

        # An ef of the client's is obeyed; that of the graph is known to fail.
        own = await load.ask(ef=64)
        assert own.answers.below_objective
        assert own.recall < OBJECTIVE
        assert not (await load.ask(ef=16_384)).answers.below_objective, "not known of a larger one"

        assert not (await client.recall(NAME)).changed_at_s, "other answers are not other queries"

        # Without a budget, once the nodes know: the graph answers, and every answer says so.
        await client.update_collection(NAME, settings={"recall_budget": 0})
        await load.ask_until(lambda asked: asked.answers.below_objective)
        for _ in range(10):
            asked = await load.ask()
            assert asked.answers.below_objective
            assert all(one.below_objective for one in asked.answers)
            assert asked.recall < OBJECTIVE
        exact = await client.search_batch(NAME, load.queries[:2], exact=True)
        assert not exact.below_objective
        flagged = await load.reported(lambda one: one.rung is Rung.GRAPH and one.below)
        assert flagged.answered is None


def rows_of(vectors: npt.NDArray[np.float32]) -> SegmentRows:
    return SegmentRows(
        ids=pa.array([str(row) for row in range(ROWS)], type=pa.string()),
        sequences=np.zeros(ROWS, dtype=np.int64),
        vectors=vectors,
        attributes=pa.RecordBatch.from_arrays([], names=[]),
        payloads=pa.nulls(ROWS, pa.binary()),
    )


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    pool = Lanes()
    yield pool
    pool.close()


async def test_the_way_back_and_what_a_rebuilt_segment_inherits(
    tmp_path: Path, lanes: Lanes
) -> None:
    """The same graph under the monitor alone: what searches are planned, and when they change."""
    warm_up()
    random = np.random.default_rng(7)
    vectors = random.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    vectors[:, 0] *= SPREAD
    blind = random.standard_normal((64, DIMENSION)).astype(np.float32)
    easy = blind.copy()
    blind[:, 0], easy[:, 0] = 0.0, 1.0
    model = ModelSpec("m", DIMENSION, Metric.INNER_PRODUCT)
    graph = build_hnsw(vectors, metric=model.metric, settings=IndexSettings(), threads=1)
    held = collection(model=model, schema=())
    world = ShardWorld(tmp_path, collection=held)
    place = Workplace(world.meta, world.objects, tmp_path, held)
    curve = (RecallPoint(10, 64, 0.99),)
    for name, source in (("s1", "s0"), ("s2", "s1")):
        info = BuildInfo(IndexSettings(), 1, (source,), curve, "recall")
        await place.add_segment(name, rows_of(vectors), index=graph, build=info)
    try:
        owner = await world.open()
        both = owner.shard.view
        only = {
            name: replace(both, segments=(segment,))
            for name, segment in zip(("s1", "s2"), both.segments, strict=True)
        }
        watched = Watched(held, only["s1"])
        monitor = RecallMonitor(
            lambda: {SHARD: watched},
            sampler=RecallSampler(1.0),
            controller=EfController(),
            filters=FilterCache(),
            lanes=lanes,
            settings=MonitorSettings(cpu_share=1.0),
        )
        controller = monitor.controller
        searcher = Searcher(
            held, FilterCache(), ef_scale=controller.scale, shortfall=controller.shortfall
        )

        def plan(name: str, asked: SearchOptions = OPTIONS) -> tuple[PlanKind, bool]:
            (planned,) = searcher.plan_view(only[name], asked)
            return planned.chosen.plan.kind, planned.chosen.below

        async def measured(queries: npt.NDArray[np.float32]) -> SegmentRecall:
            monitor.sampler.forget_all_but([])
            monitor.sampler.note(held.id, queries, OPTIONS, [MatchCount(0, ROWS, ROWS)])
            await monitor.measure(SHARD)
            (found,) = monitor.recall(held.id)[0].segments
            return found

        assert plan("s1") == plan("s2") == (PlanKind.GRAPH, False)
        assert (await measured(blind)).below
        assert plan("s1") == (PlanKind.SCAN, False)
        assert plan("s1", SearchOptions(k=10, ef=64)) == (PlanKind.GRAPH, True)
        lifted = await measured(blind)
        assert lifted.rung is Rung.EXACT
        assert lifted.answered is not None
        assert (lifted.estimate.high < OBJECTIVE, lifted.answered.recall) == (True, 1.0)
        assert monitor.recall(held.id)[0].shards[0].estimate.recall == 1.0
        assert plan("s2") == (PlanKind.SCAN, False), "it was built from the one that fails"
        assert not (await measured(easy)).below
        assert plan("s1") == plan("s2") == (PlanKind.GRAPH, False)
    finally:
        await world.close()
