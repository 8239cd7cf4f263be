"""Planted measurements: what nodes would say of a collection's recall."""

from __future__ import annotations

from collections.abc import Sequence

from annheal.model.filter import And, Comparison, ComparisonOp, Filter
from annheal.model.measures.latency import LatencyTrend, TrendRatio, TrendVerdict
from annheal.model.measures.recall import (
    CollectionRecall,
    FilterRecall,
    RecallEstimate,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
)

SLOWER = LatencyTrend(
    TrendVerdict.SLOWER,
    queries_per_s=120.0,
    windows=10,
    baseline_windows=200,
    p50=TrendRatio(0.004, 2.0, 1.9, 2.1),
    visited=TrendRatio(1_600.0, 2.0, 1.95, 2.05),
)
UNKNOWN = LatencyTrend(TrendVerdict.UNKNOWN, "4 of the last 10 minutes have 20 queries")
MEASURED_AT_S = 1_700_000_000.0
SELECTIVE: Filter = And(
    (
        Comparison("ecosystem", ComparisonOp.EQ, "pypi"),
        Comparison("year", ComparisonOp.GE, 2024),
    )
)
BROAD: Filter = Comparison("year", ComparisonOp.GE, 2000)


def estimate(
    recall: float, low: float, high: float, *, queries: int = 100, plan: str = "graph"
) -> RecallEstimate:
    return RecallEstimate(10, recall, low, high, queries, MEASURED_AT_S, {plan: queries})


def shard_band(
    shard: int,
    band: SelectivityBand,
    measured: RecallEstimate,
    *,
    stability: float = 1.0,
    seen: int = 1_000,
) -> ShardBandRecall:
    return ShardBandRecall(shard, band, measured, stability, seen)


def report(
    collection_id: str, *, shards: Sequence[int] = (0,), latency: LatencyTrend | None = SLOWER
) -> CollectionRecall:
    """Return a healthy band without filters and a band of selective filters that is not."""
    none, few = SelectivityBand.UNFILTERED, SelectivityBand.FROM_0_1
    good, bad = estimate(0.98, 0.97, 0.99), estimate(0.8, 0.7, 0.9, queries=40, plan="selector")
    return CollectionRecall(
        collection_id=collection_id,
        recall_objective=0.95,
        sampled_share=0.01,
        latency=latency,
        shards=tuple(
            part
            for shard in shards
            for part in (
                shard_band(shard, none, good, seen=9_000),
                shard_band(shard, few, bad, stability=0.5, seen=1_000),
            )
        ),
        segments=tuple(
            part
            for shard in shards
            for part in (
                SegmentRecall(shard, f"warm-{shard}", "warm", "m", none, good, 32, 512),
                SegmentRecall(
                    shard, f"cold-{shard}", "cold", "m", few, bad, 512, 512, True, shard == 1
                ),
            )
        ),
        filters=tuple(
            part
            for shard in shards
            for part in (
                FilterRecall(shard, SELECTIVE, 5, 1_000, 0.8, 40, {"selector": 40}),
                FilterRecall(shard, BROAD, 900, 1_000, -1.0, 0, {}),
            )
        ),
    )
