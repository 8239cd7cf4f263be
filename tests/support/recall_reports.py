"""Planted measurements: what nodes would say of a collection's recall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
from annheal.model.measures.shard_queries import FOUND, ShardQueries
from annheal.recall.merging import filter_number

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


def shard_queries(shard: int) -> ShardQueries:
    """Return a shard's part of 100 queries with a mean recall of 0.98, and 40 filtered ones of 0.8.

    Of two shards each has five of the ten hits of every answer; the first misses some of its own.
    """
    plain, few = 100, 40
    n, hits = plain + few, 5
    missed = np.zeros((n, hits), dtype=np.bool_)
    if shard == 0:
        missed[:20, 0] = True
        missed[plain:, :2] = True
    number = filter_number(SELECTIVE)
    return ShardQueries(
        shard=shard,
        measured_at_s=MEASURED_AT_S,
        valid_s=1e9,
        numbers=np.arange(1, n + 1, dtype=np.uint64),
        same=np.arange(1, n + 1, dtype=np.uint64),
        ks=np.full(n, 10),
        filters=np.array([0] * plain + [number] * few, dtype=np.uint64),
        own=np.zeros(n, dtype=np.bool_),
        objectives=np.full(n, np.nan),
        matches=np.array([1_000] * plain + [5] * few),
        live_rows=np.full(n, 1_000),
        sampled_at_s=np.full(n, MEASURED_AT_S),
        depths=np.full(n, hits),
        more=np.zeros(n, dtype=np.bool_),
        scores=np.tile(np.linspace(0.9, 0.5, hits, dtype=np.float32) - shard / 100, n),
        marks=np.where(missed, 0, FOUND).astype(np.uint8).ravel(),
        served=np.zeros(n, dtype=np.bool_),
        cuts=np.full(n, -np.inf, dtype=np.float32),
        gone=np.zeros(n, dtype=np.int64),
        gone_scores=np.zeros(0, dtype=np.float32),
        in_band=np.ones(n, dtype=np.bool_),
        tags=np.zeros(n, dtype=np.uint64),
    )


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
        queries=tuple(map(shard_queries, shards)),
    )
