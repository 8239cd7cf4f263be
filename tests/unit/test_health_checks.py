"""What `annheal health` makes of what a cluster says: pure decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from annheal.cli.operator_commands.health_checks import (
    Finding,
    Health,
    Observed,
    examine,
    examine_cluster,
    worst_of,
)
from annheal.cli.operator_commands.recall import actions
from annheal.model.collection import Collection, CollectionSettings, Metric, ModelSpec
from annheal.model.measures.latency import LatencyTrend, TrendRatio, TrendVerdict
from annheal.model.measures.recall import FilterRecall, Rung, SegmentRecall, SelectivityBand
from annheal.model.measures.recall_summary import RecallSlice, RecallSummary, RecallVerdict
from annheal.model.topology.cluster import (
    ClusterStatus,
    CollectionStatus,
    NodeStatus,
    ShardStatus,
    TaskStatus,
)
from annheal.model.topology.shard import NodeRegistration, WorkerRegistration
from annheal.model.topology.state import ModelCoverage, SegmentState
from annheal.model.topology.task import TaskPhase, TaskReason
from annheal.wire.recall import decode_recall_summary, encode_recall_summary
from tests.support.recall_reports import SELECTIVE, SLOWER, UNKNOWN, estimate

STEADY = LatencyTrend(TrendVerdict.STEADY, p50=TrendRatio(0.002, 1.05, 0.95, 1.15))
GOOD = estimate(0.98, 0.97, 0.99)
BAND = RecallSlice("unfiltered", RecallVerdict.MET, GOOD, seen=1_000)
SEGMENT = SegmentState(
    shard=0,
    segment_id="one",
    tier="warm",
    model="m",
    index_kind="hnsw",
    rows=10_000,
    dead_rows=500,
    size_bytes=1,
    generation=1,
    created_at_s=0.0,
    min_sequence=0,
    max_sequence=1,
    visited=900.0,
    visited_baseline=800.0,
)
HEALTHY = Observed(
    collection=Collection("c", "things", (ModelSpec("m", 8, Metric.COSINE),), (), 1),
    shards=(ShardStatus("things", "c", 0, unindexed_rows=100),),
    segments=(SEGMENT,),
    missing_shards=(),
    tasks=(TaskStatus("t", "things", "c", 0, TaskPhase.PUBLISHED, TaskReason.MERGE),),
    recall=RecallSummary(
        collection="things",
        collection_id="c",
        recall_objective=0.95,
        sampled_share=0.01,
        overall=RecallSlice("", RecallVerdict.MET, GOOD, seen=1_000),
        bands=(BAND,),
        latency={"a": STEADY},
    ),
)
WORN = replace(SEGMENT, dead_rows=2_500)
ON_REQUEST = replace(HEALTHY.collection, settings=CollectionSettings(compaction_automatic=False))
MISSED = RecallSlice("0-0.1%", RecallVerdict.MISSED, estimate(0.5, 0.4, 0.6), seen=5)
UNMEASURED = RecallSlice("", RecallVerdict.UNMEASURED)
BELOW = SegmentRecall(
    0, "one", "warm", "m", SelectivityBand.UNFILTERED, estimate(0.1, 0.0, 0.2), 1_024, 1_024,
    rebuild=True, below=True,
)  # fmt: skip
LIFTED = replace(BELOW, rung=Rung.CODES, answered=estimate(1.0, 0.97, 1.0))


def finding(word: str, **changes: Any) -> Finding:
    [found] = [one for one in examine(replace(HEALTHY, **changes)) if word in one.question]
    return found


def recall(**changes: Any) -> RecallSummary:
    return replace(HEALTHY.recall, **changes)


def test_a_healthy_collection_needs_nothing() -> None:
    findings = examine(HEALTHY)
    assert {one.health for one in findings} == {Health.GOOD}
    assert not any(one.advice for one in findings)
    assert len({one.question for one in findings}) == 8
    assert worst_of(findings) is Health.GOOD


FAILED_TASK = replace(HEALTHY.tasks[0], phase=TaskPhase.FAILED, error="disk full")


@pytest.mark.parametrize(
    ("word", "changes", "health", "says"),
    [
        ("rewritten", {"tasks": (FAILED_TASK,)}, Health.BAD, "disk full"),
        ("rewritten", {"collection": ON_REQUEST}, Health.WATCH, "only on request"),
        ("in order", {"missing_shards": (3,)}, Health.BAD, "shards 3"),
        ("in order", {"segments": (replace(SEGMENT, stuck=True),)}, Health.BAD, "although rebuilt"),
        (
            "in order",
            {"segments": (replace(SEGMENT, without_kernels=True),)},
            Health.WATCH,
            "1 are searched without compiled kernels",
        ),
        ("in order", {"segments": ()}, Health.GOOD, "none yet"),
        ("recall meet", {"recall": recall(overall=UNMEASURED)}, Health.UNKNOWN, "none of them"),
        ("recall meet", {"recall": recall(overall=replace(MISSED, name=""))}, Health.BAD, "0.5000"),
        ("recall meet",
         {"recall": recall(overall=replace(MISSED, verdict=RecallVerdict.UNCLEAR))},
         Health.WATCH, "0.5000"),
        ("recall meet",
         {"recall": recall(overall=replace(BAND, verdict=RecallVerdict.RECOVERING))},
         Health.WATCH, "answers of the last minute were worse"),
        ("recall meet", {"recall": recall(segments=(LIFTED,))}, Health.WATCH, "by codes or exact"),
        ("recall meet", {"recall": recall(segments=(BELOW,))}, Health.WATCH, "say that they are"),
        ("load", {"recall": recall(latency={})}, Health.UNKNOWN, "no node"),
        ("load", {"recall": recall(latency={"a": UNKNOWN})}, Health.UNKNOWN, "10 minutes"),
        ("load", {"recall": recall(latency={"a": STEADY, "b": SLOWER})}, Health.WATCH, "node b"),
        ("dead", {"segments": (WORN,)}, Health.WATCH, "2,500 of 10,000"),
        ("dead", {"segments": (WORN,), "collection": ON_REQUEST}, Health.BAD, "25.0%"),
        ("dead", {"segments": (replace(SEGMENT, rows=1_000, dead_rows=900),)}, Health.GOOD, "900"),
        ("up to date", {"shards": (replace(HEALTHY.shards[0], unindexed_rows=500_000),)},
         Health.BAD, "500,000"),
        ("up to date", {"shards": (replace(HEALTHY.shards[0], unindexed_rows=300_000),)},
         Health.WATCH, "300,000"),
        ("up to date", {"segments": (replace(SEGMENT, visited=1_600.0),)},
         Health.WATCH, "2.0 times"),
        ("filtered", {"recall": recall(bands=())}, Health.UNKNOWN, "no live query"),
        ("filtered", {"recall": recall(bands=(BAND, MISSED))}, Health.BAD, "0-0.1%"),
        ("filtered",
         {"recall": recall(bands=(BAND, replace(BAND, estimate=estimate(0.96, 0.9, 1.0))))},
         Health.WATCH, "50%"),
        ("filtered",
         {"recall": recall(filters=(FilterRecall(0, SELECTIVE, 5, 1_000, 0.96, 40, {}),))},
         Health.GOOD, "ecosystem = 'pypi'"),
        ("which model", {"segments": (SEGMENT, replace(SEGMENT, model="old"))}, Health.BAD, "old"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    word: str, changes: dict[str, Any], health: Health, says: str
) -> None:
    found = finding(word, **changes)
    assert found.health is health
    assert says in found.answer.replace('"', "'")
    if health in (Health.BAD, Health.WATCH) and word != "load":
        assert found.advice


def test_records_without_a_vector_of_the_serving_model_are_counted() -> None:
    two = replace(
        HEALTHY.collection, models=(*HEALTHY.collection.models, ModelSpec("n", 4, Metric.L2))
    )
    for lacking, health in ((0, Health.GOOD), (1, Health.WATCH)):
        models = (
            ModelCoverage("m", 10 - lacking, lacking),
            ModelCoverage("n", 4, 6),
            ModelCoverage("old", 3, 7),
        )
        segments = (replace(SEGMENT, models=models), replace(SEGMENT, model="old", models=models))
        found = finding("which model", collection=two, segments=segments)
        assert found.health is health
        assert f"{20 - 2 * lacking} of 20 records have a vector of m" in found.answer
        assert "8 of 20 records have a vector of n" in found.answer
        assert "6 of 20 records have a vector of old (removed)" in found.answer
        assert bool(found.advice) is bool(lacking)


CLUSTER = ClusterStatus(
    leader="coordinator-1",
    nodes=(NodeStatus(NodeRegistration("a", "127.0.0.1:1")),),
    workers=(WorkerRegistration("w", "compactor"),),
    shards=2,
    totals=CollectionStatus(shards_serving=2),
)


@pytest.mark.parametrize(
    ("changes", "health", "says"),
    [
        ({}, Health.GOOD, "1 shard nodes"),
        ({"leader": ""}, Health.BAD, "no coordinator leads"),
        ({"workers": ()}, Health.BAD, "0 compactors"),
        ({"totals": CollectionStatus(shards_serving=1)}, Health.BAD, "1 of 2"),
        ({"nodes": (replace(CLUSTER.nodes[0], error="timed out"),)}, Health.BAD, "a do not answer"),
    ],
)
def test_the_parts_of_the_cluster(changes: dict[str, Any], health: Health, says: str) -> None:
    [found] = examine_cluster(replace(CLUSTER, **changes))
    assert (found.health, says in found.answer) == (health, True)
    assert worst_of([found]) is health


def test_annheal_recall_says_how_a_failing_segment_is_answered() -> None:
    def said(one: SegmentRecall) -> str:
        (sentence,) = actions(recall(segments=(one,)))
        return sentence

    assert "a rebuild is asked for; it is answered by codes instead, with recall 1.0" in said(
        LIFTED
    )
    assert "exactly instead" in said(replace(LIFTED, rung=Rung.EXACT))
    assert "recall_budget allows" in said(BELOW)
    assert "recall_budget allows" in said(replace(BELOW, rebuild=False, ef=64))
    assert "is answered" in said(replace(LIFTED, rebuild=False, stuck=True))
    assert not actions(
        recall(segments=(replace(BELOW, estimate=GOOD, rebuild=False, below=False),))
    )


def test_rungs_travel_and_an_older_node_has_only_the_graph() -> None:
    summary = recall(segments=(LIFTED, BELOW))
    message = encode_recall_summary(summary)
    assert decode_recall_summary(message).segments == summary.segments
    message.segments[0].ClearField("rung")
    assert decode_recall_summary(message).segments[0].rung is Rung.GRAPH
