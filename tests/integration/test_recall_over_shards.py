"""The recall of answers over several shards on two nodes, against brute force from outside."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.coordinator.data_path.merge import merge_answers
from annheal.coordinator.recall.summary import summarise
from annheal.index import build_hnsw, set_search_threads, warm_up
from annheal.model.collection import Collection, IndexSettings, Metric, ModelSpec
from annheal.model.measures.recall import CollectionRecall
from annheal.model.measures.recall_summary import RecallSummary, RecallVerdict
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.model.topology.shard import ShardId
from annheal.segment import BuildInfo, DeleteVector, RecallPoint, SegmentRows
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.recall.ef_control import EfController
from annheal.shard_node.recall.monitor import MonitorSettings, RecallMonitor
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.stratum import JUDGING_QUERIES
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher
from annheal.shards.routing import hash_ids, shards_of
from annheal.wire.recall import decode_recall_reports, encode_recall_reports
from tests.support.compaction import collection
from tests.support.packages import SCORE_TIE, load_packages
from tests.support.segments import open_local, write_sample

pytestmark = pytest.mark.timeout(300)

ROWS, QUERIES, BATCH, K = 6_000, 900, 10, 10
INTERVAL_S = 60.0
MODEL = ModelSpec("minilm", 384, Metric.COSINE)
OPTIONS = SearchOptions(k=K)
OPTIMISTIC = (RecallPoint(K, 10, 0.99),)
"""A curve that says ef 10 will do."""

Rows = npt.NDArray[np.float32]
ShardsOf = Callable[[int], dict[ShardId, "HeldShard"]]


@dataclass(frozen=True)
class HeldShard:
    """A shard as the monitor sees it."""

    collection: Collection
    serving_view: ShardView
    epoch: int = 1


@dataclass(slots=True)
class Clocks:
    """The time of all nodes, by which searches arrive and measurements begin."""

    now_s: float = 600.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Place:
    """A node with some of the shards."""

    shards: dict[ShardId, HeldShard]
    clock: Clocks
    lanes: Lanes
    seed: int
    monitor: RecallMonitor = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        draw = random.Random(self.seed)
        self.monitor = RecallMonitor(
            lambda: dict(self.shards),
            sampler=RecallSampler(draw=draw, clock=self.clock, now_s=self.clock),
            controller=EfController(),
            filters=FilterCache(),
            lanes=self.lanes,
            settings=MonitorSettings(interval_s=INTERVAL_S, cpu_share=1.0),
            now_s=self.clock,
            clock=self.clock,
        )

    def search(
        self, queries: Rows, numbers: npt.NDArray[np.uint64], options: SearchOptions
    ) -> SearchAnswer:
        held = next(iter(self.shards.values()))
        views = [(shard.number, one.serving_view) for shard, one in sorted(self.shards.items())]
        searcher = Searcher(held.collection, FilterCache())
        answer, counts = searcher.search_counted(views, queries, options)
        self.monitor.sampler.note(held.collection.id, queries, options, counts, answer, numbers)
        return answer

    def report(self) -> tuple[CollectionRecall, ...]:
        """Return what the node reports, as it arrives."""
        return decode_recall_reports(encode_recall_reports(self.monitor.recall()))


@dataclass
class World:
    """A collection over two nodes, and the truth about its answers by query number."""

    collection: Collection
    places: tuple[Place, Place]
    clock: Clocks
    vectors: Rows
    recalls: dict[int, float] = field(default_factory=dict)
    rare: set[int] = field(default_factory=set)
    """Numbers of the queries with the tag `rare`."""

    def load(self, queries: Rows, *, seconds: float, seed: int, rare_every: int = 0) -> None:
        """Send queries, a few at a time and at an even pace.

        Every so many calls are tagged `rare`, the others `usual`; 0: none is tagged.
        """
        draw = np.random.default_rng(seed)
        numbers = draw.integers(0, 2**64, size=len(queries), dtype=np.uint64)
        scores = queries @ self.vectors.T
        last = -np.partition(-scores, K - 1, axis=1)[:, K - 1]  # of the true ten
        for first in range(0, len(queries), BATCH):
            few = slice(first, first + BATCH)
            self.clock.now_s += seconds * BATCH / len(queries)
            options = OPTIONS
            if rare_every:
                is_rare = first // BATCH % rare_every == 0
                options = replace(OPTIONS, tag="rare" if is_rare else "usual")
                self.rare |= set(numbers[few].tolist()) if is_rare else set()
            answer = merge_answers(
                [place.search(queries[few], numbers[few], options) for place in self.places], k=K
            )
            starts = np.cumsum(answer.counts) - answer.counts
            for number, lowest, start in zip(numbers[few], last[few], starts, strict=True):
                good = np.count_nonzero(answer.scores[start : start + K] >= lowest - SCORE_TIE)
                self.recalls[int(number)] = min(int(good), K) / K

    async def look(self) -> None:
        for place in self.places:
            await place.monitor.look()
            self.clock.now_s += 1.5  # nodes do not look at the same moment

    def summary(self) -> RecallSummary:
        return summarise(self.collection, [one for place in self.places for one in place.report()])


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    pool = Lanes()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def shards_of_count(tmp_path_factory: pytest.TempPathFactory) -> ShardsOf:
    """Return the shards of a collection with that many; their graphs are poor."""

    @cache
    def made(shard_count: int) -> dict[ShardId, HeldShard]:
        folder = tmp_path_factory.mktemp(f"shards-{shard_count}")
        whole = replace(collection(model=MODEL, schema=()), shard_count=shard_count)
        packages = load_packages()
        of_rows = shards_of(hash_ids(packages.ids[:ROWS]), shard_count=shard_count)
        return {
            ShardId(whole.id, shard): HeldShard(
                whole, view_of(np.flatnonzero(of_rows == shard), folder / f"s{shard}")
            )
            for shard in range(shard_count)
        }

    return made


def view_of(rows: npt.NDArray[np.intp], folder: Path) -> ShardView:
    """Return a shard with these packages."""
    packages = load_packages()
    vectors = packages.vectors[rows]
    entry = write_sample(
        folder,
        segment_id=folder.name,
        rows=SegmentRows(
            ids=pa.array([packages.ids[row] for row in rows.tolist()], type=pa.string()),
            sequences=np.zeros(len(rows), dtype=np.int64),
            vectors=vectors,
            attributes=pa.RecordBatch.from_arrays([], names=[]),
            payloads=pa.nulls(len(rows), pa.binary()),
        ),
        model=MODEL,
        schema=(),
        index=build_hnsw(vectors, metric=MODEL.metric, settings=IndexSettings(m=4), threads=1),
        build=BuildInfo(IndexSettings(), 1, ("x",), OPTIMISTIC, "merge"),
    )
    segment = open_local(folder, entry)
    return ShardView((SegmentView(segment, DeleteVector.empty(len(rows))),), sequence=1)


def world(held: dict[ShardId, HeldShard], lanes: Lanes) -> World:
    """Return the shards on two nodes; the first has two more than the second."""
    warm_up()
    set_search_threads(1)
    clock, shards = Clocks(), sorted(held.items())
    cut = len(shards) // 2 + 1
    places = (
        Place(dict(shards[:cut]), clock, lanes, seed=1),
        Place(dict(shards[cut:]), clock, lanes, seed=2),
    )
    return World(shards[0][1].collection, places, clock, load_packages().vectors[:ROWS])


@pytest.mark.parametrize("shard_count", [4, 8])
async def test_the_reported_recall_is_that_of_the_merged_answers(
    shards_of_count: ShardsOf, lanes: Lanes, shard_count: int
) -> None:
    of = world(shards_of_count(shard_count), lanes)
    queries = load_packages().vectors[ROWS:]
    of.load(queries[:QUERIES], seconds=59.0, seed=1)
    of.clock.now_s = INTERVAL_S * math.ceil(of.clock.now_s / INTERVAL_S)  # a round begins
    await of.look()
    summary = of.summary()
    found, merged = summary.overall.estimate, summary.merged
    assert found is not None
    assert merged is not None
    # Both nodes have sampled nearly the same queries.
    assert merged.complete >= 0.85 * JUDGING_QUERIES
    numbers = [
        set(part.numbers.tolist())
        for place in of.places
        for report in place.report()
        for part in report.queries
    ]
    complete = set[int].intersection(*numbers)
    assert len(complete) == merged.complete
    # Of these queries the recall is known exactly; that of all is in the interval.
    assert found.recall == pytest.approx(np.mean([of.recalls[one] for one in complete]))
    truth = float(np.mean(list(of.recalls.values())))
    assert truth < 0.99, "nothing is missed, so nothing is measured"
    assert found.low <= truth <= found.high
    assert summary.overall.served is not None
    assert summary.overall.served.recall == pytest.approx(found.recall)
    # What was reported before: the mean of the shards' recall of their own best k.
    own = merged.own_top_k.estimate
    assert own is not None
    assert own.recall < truth - 0.01
    assert all(one.estimate is not None for one in summary.shards)


async def test_a_rare_tag_is_measured_over_all_shards_and_changes_nothing_else(
    shards_of_count: ShardsOf, lanes: Lanes
) -> None:
    queries = load_packages().vectors[ROWS:]
    overall = []
    for rare_every in (0, 15):
        of = world(shards_of_count(4), lanes)
        of.load(queries[:QUERIES], seconds=59.0, seed=1, rare_every=rare_every)
        of.clock.now_s = INTERVAL_S * math.ceil(of.clock.now_s / INTERVAL_S)
        await of.look()
        overall.append(of.summary().overall.estimate)
    assert overall[0] is not None
    assert overall[1] is not None
    assert overall[1].recall == pytest.approx(overall[0].recall, abs=0.01)
    assert abs(overall[1].queries - overall[0].queries) <= 8, "about the same queries"
    tags = {one.name: one for one in of.summary().tags}
    assert tags["rare"].seen == len(of.rare) == 60
    assert tags["usual"].seen == QUERIES - 60
    rare = tags["rare"].estimate
    assert rare is not None
    # All of them are measured by all shards; of the sample of the band they are one in fifteen.
    assert rare.queries >= 55
    truth = float(np.mean([of.recalls[one] for one in of.rare]))
    assert rare.recall == pytest.approx(truth, abs=0.02)
    assert tags["rare"].served is not None


async def test_a_node_without_samples_makes_the_recall_unknown(
    shards_of_count: ShardsOf, lanes: Lanes
) -> None:
    of = world(shards_of_count(4), lanes)
    queries = load_packages().vectors[ROWS:]
    of.load(queries[:200], seconds=30.0, seed=1)
    await of.look()
    assert of.summary().overall.estimate is not None
    of.places[1].restart()
    summary = of.summary()
    assert summary.merged is not None
    assert (summary.merged.complete, summary.overall.estimate) == (0, None)
    assert summary.merged.incomplete > 100
    assert summary.overall.verdict is RecallVerdict.UNKNOWN
    assert {one.verdict for one in summary.bands} == {RecallVerdict.UNKNOWN}
    # After some searches and a round, all shards have measured the same queries again.
    of.load(queries[200:500], seconds=60.0, seed=2)
    await of.look()
    found = of.summary().overall.estimate
    assert found is not None
    assert found.queries >= 64
