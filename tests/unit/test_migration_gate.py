"""The gate lets a model of use pass, and refuses broken ones with the figure that shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from annheal.coordinator.app import Coordinator
from annheal.coordinator.migration.measure import GateMeter, rank_correlation
from annheal.errors import FailedPrecondition
from annheal.metastore import keys
from annheal.metastore.codec import encode_value
from annheal.metastore.protocol import Compare, Put
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.records import Float32Matrix, ModelVectors, RecordBatch
from annheal.model.topology.migration import transitions as steps
from annheal.model.topology.migration.gate import GateReport
from annheal.model.topology.migration.state import CoverageTotals, Migration, MigrationPhase
from annheal.model.topology.migration.transitions import Order
from annheal.runtime.clock import monotonic_s
from tests.support.memory_cluster import MemoryCluster, batch, memory_cluster, soon, started

ROWS = 250
IDS = [f"p{number}" for number in range(ROWS)]
NEW = ModelSpec("new", 24, Metric.INNER_PRODUCT)
ADA = Order("ada", 1.0, "because")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path) as running:
        yield running


def unit(vectors: Float32Matrix) -> Float32Matrix:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(slots=True)
class Measured:
    """A collection whose records have vectors of two models, and what the gate finds."""

    coordinator: Coordinator
    collection: Collection

    async def report(self) -> GateReport:
        meter = GateMeter(self.coordinator.reads, self.coordinator.search, clock=monotonic_s)
        return await meter.measure(self.collection, self.migration(), at_s=5.0, deadline=soon())

    def migration(self) -> Migration:
        return Migration(
            self.collection.id, "m", "new", MigrationPhase.VALIDATE, validations=1,
            coverage=CoverageTotals(1.0, ROWS, rows_lacking=0),
        )  # fmt: skip


async def measured(cluster: MemoryCluster, new: Float32Matrix) -> Measured:
    """Store records with random vectors of one model, and `new` ones; NaN for records without."""
    coordinator, made = await started(cluster, "a", shard_count=3, automatic=False)
    key = keys.collection_key("packages")
    two = replace(made, models=(*made.models, NEW), revision=0)
    await cluster.meta.commit([Put(key, encode_value(two))], compares=[Compare(key, made.revision)])
    records = old_records()
    both = replace(records, further=(ModelVectors("new", new.astype(np.float32)),))
    await coordinator.writes.upsert(two, both, deadline=soon())
    return Measured(coordinator, two)


def old_records() -> RecordBatch:
    records = batch(IDS, seed=1)
    return replace(records, vectors=np.ascontiguousarray(unit(records.vectors)))


def projected() -> Float32Matrix:
    """The old vectors in another space, with noise: another dimension, similar neighbours."""
    draw = np.random.default_rng(2)
    axes = np.linalg.qr(draw.normal(size=(NEW.dimension, 8)))[0]
    vectors = old_records().vectors @ axes.T
    noisy = vectors + 0.02 * draw.normal(size=vectors.shape)
    return np.ascontiguousarray(unit(noisy.astype(np.float32)))


async def test_a_model_of_another_dimension_that_agrees_passes(cluster: MemoryCluster) -> None:
    found = await measured(cluster, projected())
    report = await found.report()
    assert report.recall == 1.0  # the nodes of this test search exactly
    assert report.overlap is not None
    assert report.overlap > 0.6
    assert report.rank_correlation is not None
    assert report.rank_correlation > 0.5
    assert report.queries == 201  # 67 of each of three shards
    passed = steps.validated(found.migration(), replace(report, latency_ratio=1.0), order=ADA)
    assert passed.phase is MigrationPhase.READY
    assert steps.commit(passed, order=ADA).serving == "new"


@pytest.mark.parametrize("broken", ["shuffled", "constant"])
async def test_broken_outputs_are_refused_by_their_overlap(
    cluster: MemoryCluster, broken: str
) -> None:
    good = projected()
    vectors = {
        "shuffled": good[np.random.default_rng(3).permutation(ROWS)],
        "constant": np.repeat(good[:1], ROWS, axis=0),
    }[broken]
    found = await measured(cluster, vectors)
    report = await found.report()
    assert report.overlap is not None
    assert report.overlap < 0.1
    judged = steps.validated(found.migration(), replace(report, latency_ratio=1.0), order=ADA)
    assert judged.phase is MigrationPhase.VALIDATE
    with pytest.raises(FailedPrecondition, match=r"overlap is 0\.0.*, needed is at least 0\.1"):
        steps.commit(judged, order=ADA)


async def test_a_model_on_a_part_of_the_records_is_refused_by_their_share(
    cluster: MemoryCluster,
) -> None:
    vectors = projected()
    vectors[ROWS * 6 // 10 :] = np.nan
    found = await measured(cluster, vectors)
    report = await found.report()
    with_vectors = set(IDS[: ROWS * 6 // 10])
    assert 0 < report.queries <= len(with_vectors)
    seen = CoverageTotals(1.0, ROWS, rows_lacking=ROWS * 4 // 10)
    partial = replace(found.migration(), coverage=seen)
    judged = steps.validated(partial, replace(report, latency_ratio=1.0), order=ADA)
    with pytest.raises(FailedPrecondition, match=r"lacking_share is 0\.4, needed is at most 0\.01"):
        steps.commit(judged, order=ADA)


async def test_without_a_record_of_both_models_nothing_is_measured(cluster: MemoryCluster) -> None:
    found = await measured(cluster, np.full((ROWS, NEW.dimension), np.nan))
    with pytest.raises(FailedPrecondition, match="none has vectors of both 'm' and 'new'"):
        await found.report()


@pytest.mark.parametrize(
    ("now", "then", "tau"),
    [
        ("abcd", "abcd", 1.0),
        ("abcd", "dcba", -1.0),
        ("abcd", "abdc", 2 / 3),
        ("axby", "ab", 1.0),
        ("ax", "ab", None),
        ("", "", None),
    ],
)
def test_the_rank_correlation_is_of_what_both_lists_have(
    now: str, then: str, tau: float | None
) -> None:
    assert rank_correlation(now, then) == (tau if tau is None else pytest.approx(tau))
