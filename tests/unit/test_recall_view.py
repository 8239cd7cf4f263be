"""How measurements of shards, segments and bands are joined, and how they reach operators."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annheal.coordinator.metrics import recall_families
from annheal.coordinator.recall.summary import join_dependent, join_independent, summarise
from annheal.coordinator.service import services
from annheal.errors import Unavailable
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.measures.recall import SelectivityBand
from annheal.model.measures.recall_summary import (
    ALL_SHARDS,
    QUERIES_KNOWN_MIN,
    RecallVerdict,
    verdict_of,
)
from annheal.rpc import methods
from annheal.rpc.channel import Connection
from annheal.rpc.server import RpcServer
from annheal.wire.recall import (
    decode_recall_reports,
    decode_recall_summary,
    encode_recall_reports,
    encode_recall_summary,
)
from tests.support.memory_cluster import memory_cluster, soon, spec
from tests.support.recall_reports import (
    BROAD,
    MEASURED_AT_S,
    SELECTIVE,
    SLOWER,
    UNKNOWN,
    estimate,
    report,
    shard_band,
)

COLLECTION = Collection(
    id="c1",
    name="things",
    models=(ModelSpec("m", 3, Metric.COSINE),),
    schema=(),
    shard_count=2,
)


def test_verdicts_need_the_whole_interval_below_the_objective() -> None:
    assert verdict_of(None, 0.9) is RecallVerdict.UNMEASURED
    assert verdict_of(estimate(0, 0, 1, queries=0), 0.9) is RecallVerdict.UNMEASURED
    assert verdict_of(estimate(0.9, 0.8, 0.95), 0.9) is RecallVerdict.MET
    assert verdict_of(estimate(0.89, 0.8, 0.9), 0.9) is RecallVerdict.UNCLEAR
    assert verdict_of(estimate(0.89, 0.8, 0.899), 0.9) is RecallVerdict.MISSED


def test_few_queries_show_that_an_objective_is_missed_but_not_that_it_is_met() -> None:
    few = QUERIES_KNOWN_MIN - 1
    assert verdict_of(estimate(1.0, 0.78, 1.0, queries=few), 0.9) is RecallVerdict.UNKNOWN
    assert verdict_of(estimate(0.8, 0.6, 0.93, queries=few), 0.9) is RecallVerdict.UNKNOWN
    assert verdict_of(estimate(0.2, 0.1, 0.5, queries=few), 0.9) is RecallVerdict.MISSED
    assert verdict_of(estimate(1.0, 0.79, 1.0, queries=few + 1), 0.9) is RecallVerdict.MET


def test_parts_with_the_same_queries_have_their_bounds_averaged_by_queries() -> None:
    joined = join_dependent(
        [
            estimate(1.0, 0.9, 1.0, queries=30),
            estimate(0.6, 0.5, 0.8, queries=10, plan="scan"),
            estimate(0.0, 0.0, 1.0, queries=0),
        ]
    )
    assert joined is not None
    assert joined.recall == pytest.approx(0.9)
    assert (joined.low, joined.high) == pytest.approx((0.8, 0.95))
    assert joined.queries == 30
    assert joined.plans == {"graph": 30, "scan": 10}
    assert join_dependent([estimate(0, 0, 1, queries=0)]) is None


def test_parts_with_queries_of_their_own_pool_their_intervals() -> None:
    joined = join_independent(
        [(estimate(0.9, 0.8, 0.95, queries=10), 3.0), (estimate(0.5, 0.1, 0.6, queries=5), 1.0)]
    )
    assert joined is not None
    assert joined.recall == pytest.approx(0.8)
    assert joined.low == pytest.approx(0.8 - math.hypot(0.075, 0.1))
    assert joined.high == pytest.approx(0.8 + math.hypot(0.0375, 0.025))
    assert joined.queries == 15
    unweighted = join_independent(
        [(estimate(0.9, 0.8, 1, queries=10), 0.0), (estimate(0.6, 0, 1, queries=20), 0.0)]
    )
    assert unweighted is not None
    assert unweighted.recall == pytest.approx(0.7)
    # Of 10 queries one is of a band that was not measured.
    partly = join_independent(
        [(estimate(0.9, 0.8, 0.95), 9.0), (None, 0.5), (estimate(0, 0, 1, queries=0), 0.5)]
    )
    assert partly is not None
    assert (partly.recall, partly.low) == pytest.approx((0.9, 0.72))
    assert partly.high == pytest.approx(0.1 + 0.9 * 0.95)
    assert partly.queries == 100
    assert join_independent([]) is None


def test_the_pooled_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Bands with recall of their own, sampled again and again, weighted by their traffic."""
    random = np.random.default_rng(5)
    shares, means = np.array([0.7, 0.2, 0.1]), np.array([0.95, 0.8, 0.5])
    truth = float(shares @ means)
    covered = 0
    for _ in range(400):
        parts = []
        for share, mean in zip(shares, means, strict=True):
            values = random.binomial(10, mean, size=60) / 10
            half = 1.96 * float(values.std(ddof=1)) / math.sqrt(60)
            got = float(values.mean())
            parts.append((estimate(got, got - half, got + half, queries=60), float(share)))
        joined = join_independent(parts)
        assert joined is not None
        covered += joined.low <= truth <= joined.high
    assert 0.91 <= covered / 400 <= 0.985


def test_a_summary_has_every_slice() -> None:
    summary = summarise(
        COLLECTION, [report("c1", shards=[0]), report("c1", shards=[1])], errors={"n3": "away"}
    )
    assert [one.name for one in summary.bands] == ["unfiltered", "0.1-1%"]
    healthy, poor = summary.bands
    assert (healthy.verdict, poor.verdict) == (RecallVerdict.MET, RecallVerdict.MISSED)
    assert (healthy.seen, poor.seen) == (9_000, 1_000)
    assert poor.stability == pytest.approx(0.5)
    # By traffic, 9 to 1, not by the 100 and 40 queries that were sampled.
    assert summary.overall.estimate is not None
    assert summary.overall.estimate.recall == pytest.approx(0.9 * 0.98 + 0.1 * 0.8)
    assert summary.overall.verdict is RecallVerdict.MET
    assert summary.overall.seen == 10_000
    assert [one.name for one in summary.shards] == ["0", "1"]
    tiers = {one.name: one.estimate.recall for one in summary.tiers if one.estimate}
    assert tiers == pytest.approx({"cold": 0.8, "warm": 0.98})
    (model,) = summary.models
    assert model.estimate is not None
    assert model.estimate.recall == pytest.approx(0.9 * 0.98 + 0.1 * 0.8)
    assert [(one.shard, one.segment_id) for one in summary.segments] == [
        (0, "cold-0"),
        (0, "warm-0"),
        (1, "cold-1"),
        (1, "warm-1"),
    ]
    selective, broad = summary.filters
    assert (selective.filter, selective.shard) == (SELECTIVE, ALL_SHARDS)
    assert (selective.matches, selective.live_rows) == (10, 2_000)
    assert (selective.recall, selective.queries) == pytest.approx((0.8, 40))
    assert (broad.filter, broad.recall) == (BROAD, -1.0)
    assert summary.errors == {"n3": "away"}
    empty = summarise(COLLECTION, [])
    assert empty.overall.verdict is RecallVerdict.UNMEASURED
    assert empty.bands == ()


def test_reports_and_summaries_round_trip() -> None:
    reports = (report("c1", shards=[0, 1]), report("c2", latency=None))
    # tests/unit/test_recall_merging.py compares the queries.
    decoded = decode_recall_reports(encode_recall_reports(reports))
    assert [len(one.queries) for one in decoded] == [2, 1]
    plain = tuple(replace(one, queries=()) for one in reports)
    assert tuple(replace(one, queries=()) for one in decoded) == plain
    unknown = replace(
        report("c1"),
        shards=(shard_band(0, SelectivityBand.FROM_50, estimate(1, 1, 1), stability=math.nan),),
    )
    (back,) = decode_recall_reports(encode_recall_reports([unknown]))
    assert math.isnan(back.shards[0].stability)
    for summary in (
        summarise(
            COLLECTION, reports[:1], errors={"n": "away"}, latency={"a": SLOWER, "b": UNKNOWN}
        ),
        summarise(COLLECTION, []),
    ):
        assert decode_recall_summary(encode_recall_summary(summary)) == summary


async def test_the_coordinator_asks_every_owner_over_grpc(tmp_path: Path) -> None:
    async with memory_cluster(tmp_path) as cluster:
        nodes = [await cluster.add_node("a"), await cluster.add_node("b")]
        coordinator = await cluster.add_coordinator()
        made = await coordinator.collections.create(spec("things"), deadline=soon())
        owned = {node.node_id: sorted(shard.number for shard in node.shards) for node in nodes}
        for node in nodes:  # each tells of all shards, also of those it does not own any more
            node.recalls.append(report(made.id, shards=range(4)))
        server = RpcServer(services(coordinator))
        address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
        await server.start()
        try:
            async with Connection(address) as connection:

                async def ask(name: str) -> object:
                    request = methods.GET_RECALL.request(collection=name)
                    answer = await connection.call(methods.GET_RECALL, request, timeout_s=20)
                    return decode_recall_summary(answer)

                whole = summarise(
                    made,
                    [report(made.id, shards=range(4))],
                    latency={"a": SLOWER, "b": SLOWER},  # by node: times are not joined
                )
                assert await ask("things") == whole
                nodes[0].silent = Unavailable("the node is away")
                half = summarise(
                    made,
                    [report(made.id, shards=owned["b"])],
                    latency={"b": SLOWER},
                    errors={"a": "the node is away"},
                )
                assert await ask("things") == half
        finally:
            await server.stop(grace_s=0)


def test_a_trend_is_scraped_by_node_and_measure() -> None:
    summary = summarise(COLLECTION, [report("c1")], latency={"a": SLOWER, "b": UNKNOWN})
    families = {one.name: one for one in recall_families([summary], now_s=MEASURED_AT_S)}
    assert dict(families["annheal_search_trend_ratio"].values) == {
        ("things", "a", "p50", "estimate"): 2.0,
        ("things", "a", "p50", "low"): 1.9,
        ("things", "a", "p50", "high"): 2.1,
        ("things", "a", "visited", "estimate"): 2.0,
        ("things", "a", "visited", "low"): 1.95,
        ("things", "a", "visited", "high"): 2.05,
    }
