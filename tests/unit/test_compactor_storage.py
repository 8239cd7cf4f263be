"""Merging into lossy storage: the objective holds, and nothing drifts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from annheal.compactor.build import calibrate
from annheal.compactor.build.build import HNSW_ROWS_MIN, BuildOrder, build_segment
from annheal.compactor.build.calibrate import is_damaged, recall_of
from annheal.compactor.fetch import Source
from annheal.errors import DataCorruption
from annheal.filters import validate_filter
from annheal.index import VectorIndex
from annheal.model.collection import (
    Collection,
    CollectionSettings,
    Metric,
    ModelSpec,
    VectorStorage,
)
from annheal.model.filter import Membership
from annheal.model.search import SearchOptions
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.runtime.stop import YieldPoint
from annheal.segment import DeleteVector, RecallPoint, Segment, SegmentRows, local_segment
from annheal.segment.meta import INDEX_FILE, VECTORS_FILE
from annheal.shard_node.rows.view import SegmentView
from annheal.shard_node.search.costs import MeasuredCosts
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher
from tests.support.compaction import collection
from tests.support.packages import load_packages
from tests.support.segments import SCHEMA, open_local, sample_rows, write_sample

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

LOSSY = (VectorStorage.FP16, VectorStorage.INT8)
ROWS = HNSW_ROWS_MIN + 100
HELD_BACK = 200


def into(metric: Metric, storage: VectorStorage, *, dimension: int = 384) -> Collection:
    model = ModelSpec("minilm", dimension, metric)
    return collection(settings=CollectionSettings(storage=storage), model=model)


def packages(metric: Metric) -> tuple[SegmentRows, npt.NDArray[np.float32]]:
    """Return rows of the samples, and others to ask with; of many lengths unless for cosine."""
    vectors = load_packages(rows=ROWS + HELD_BACK).vectors
    if metric is not Metric.COSINE:
        lengths = np.random.default_rng(1).uniform(0.5, 3.0, (len(vectors), 1))
        vectors = np.ascontiguousarray(vectors * lengths, dtype=np.float32)
    model = ModelSpec("minilm", vectors.shape[1], metric)
    return replace(sample_rows(ROWS, model=model), vectors=vectors[:ROWS]), vectors[ROWS:]


def merge(directory: Path, sources: list[Source], target: Collection) -> Segment:
    order = BuildOrder(
        segment_id=directory.name,
        tier=Tier.WARM,
        collection=target,
        threads=1,
        created_at_s=5.0,
        on_progress=lambda share: None,
    )
    entry = build_segment(sources, order, directory=directory)
    assert entry is not None
    return open_local(directory, entry)


def flushed(directory: Path, rows: SegmentRows, target: Collection) -> Source:
    entry = write_sample(directory, segment_id=directory.name, rows=rows, model=target.model)
    return Source(open_local(directory, entry), DeleteVector.empty(len(rows)))


def score_of(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.float64]:
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if metric is not Metric.L2:
        return np.asarray(products)
    squares = (vectors.astype(np.float64) ** 2).sum(axis=1)
    own = (queries.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
    return np.asarray(2 * products - squares - own)


@pytest.mark.parametrize("storage", LOSSY)
@pytest.mark.parametrize("metric", list(Metric))
def test_the_objective_holds_with_exact_scores_filters_and_deletes(
    tmp_path: Path, storage: VectorStorage, metric: Metric
) -> None:
    target = into(metric, storage)
    rows, queries = packages(metric)
    merged = merge(tmp_path / "out", [flushed(tmp_path / "in", rows, target)], target)
    assert (merged.storage, merged.kind) == (storage, IndexKind.HNSW)
    assert merged.recall_curve
    assert not is_damaged(merged)
    dead = np.random.default_rng(2).choice(ROWS, ROWS // 5, replace=False)
    deletes = DeleteVector.empty(ROWS).with_dead(dead)
    searcher = Searcher(target, FilterCache(), costs=MeasuredCosts())
    red = validate_filter(Membership("colour", ("red",)), SCHEMA)
    every = score_of(queries, merged.vectors, metric)
    for held, filter in (
        (SegmentView(merged, DeleteVector.empty(ROWS)), None),
        (SegmentView(merged, deletes), None),
        (SegmentView(merged, deletes), red),
    ):
        allowed = ~held.deletes.dead_mask()
        if filter is not None:
            allowed &= merged.matches(filter).mask()
        options = SearchOptions(k=10, filter=filter)
        plan, count, ran = searcher.search_segment(held, queries, options)
        assert ran is not None
        assert count == int(allowed.sum())
        scores, found = ran.hits
        assert allowed[found].all()
        np.testing.assert_allclose(
            scores, np.take_along_axis(every, found, axis=1), rtol=1e-5, atol=1e-5
        )
        truth = -np.sort(-np.where(allowed, every, -np.inf), axis=1)[:, :10]
        recall = float((scores >= truth[:, -1:] - 1e-5).sum(axis=1).clip(max=10).mean() / 10)
        assert recall >= target.settings.recall_objective, plan


def test_merges_start_from_the_vectors_as_they_were_written(tmp_path: Path) -> None:
    rows, _ = packages(Metric.COSINE)
    source = flushed(tmp_path / "in", rows, into(Metric.COSINE, VectorStorage.INT8))
    for generation, storage in enumerate((VectorStorage.INT8, VectorStorage.FLOAT32)):
        target = into(Metric.COSINE, storage)
        merged = merge(tmp_path / f"out-{generation}", [source], target)
        assert merged.storage is storage
        source = Source(merged, DeleteVector.empty(merged.rows))
    numbers = [int(name.removeprefix("record-")) for name in merged.ids.to_pylist()]
    np.testing.assert_array_equal(merged.vectors, rows.vectors[numbers])


def test_lossy_files_are_smaller_where_walks_read_and_verified(tmp_path: Path) -> None:
    rows, _ = packages(Metric.COSINE)
    sizes = {}
    for storage in VectorStorage:
        target = into(Metric.COSINE, storage)
        source = flushed(tmp_path / f"in-{storage}", rows, target)
        merged = merge(tmp_path / storage.value, [source], target)
        sizes[storage] = (tmp_path / storage.value / INDEX_FILE).stat().st_size / ROWS
        lossy = storage is not VectorStorage.FLOAT32
        assert (tmp_path / storage.value / VECTORS_FILE).exists() == lossy
        assert merged.meta.format_version == (3 if lossy else 2)
    assert sizes[VectorStorage.FLOAT32] - sizes[VectorStorage.FP16] == pytest.approx(768, abs=2)
    assert sizes[VectorStorage.FP16] - sizes[VectorStorage.INT8] == pytest.approx(384, abs=4)
    assert merged.storage is VectorStorage.INT8
    damaged = tmp_path / "int8" / VECTORS_FILE
    body = bytearray(damaged.read_bytes())
    body[1_000] ^= 1
    damaged.write_bytes(body)
    with pytest.raises(DataCorruption, match=r"vectors\.faiss of segment int8 is damaged"):
        local_segment(tmp_path / "int8", merged.entry)


def test_a_storage_that_cannot_hold_the_values_is_not_used(tmp_path: Path) -> None:
    rows = sample_rows(ROWS, model=ModelSpec("test-model", 8, Metric.L2))
    rows = replace(rows, vectors=np.ascontiguousarray(rows.vectors * 1e5, dtype=np.float32))
    target = into(Metric.L2, VectorStorage.FP16, dimension=8)
    target = replace(target, models=(ModelSpec("test-model", 8, Metric.L2),))
    merged = merge(tmp_path / "out", [flushed(tmp_path / "in", rows, target)], target)
    assert (merged.storage, merged.kind) == (VectorStorage.FLOAT32, IndexKind.HNSW)


def test_a_storage_that_misses_the_objective_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows so close together, beside one far away, that their bytes are the same."""
    rng = np.random.default_rng(3)
    vectors = np.ascontiguousarray(rng.standard_normal((ROWS, 8)), dtype=np.float32)
    vectors[0] = 1e5
    rows = replace(sample_rows(ROWS), vectors=vectors)
    target = replace(
        into(Metric.L2, VectorStorage.INT8), models=(ModelSpec("test-model", 8, Metric.L2),)
    )
    measured: list[VectorStorage] = []
    real = calibrate.measure_recall

    def noting(
        index: VectorIndex, queries: npt.NDArray[np.float32], *, k: int, yield_point: YieldPoint
    ) -> tuple[RecallPoint, ...]:
        measured.append(index.storage)
        return real(index, queries, k=k, yield_point=yield_point)

    monkeypatch.setattr("annheal.compactor.build.calibrate.measure_recall", noting)
    merged = merge(tmp_path / "out", [flushed(tmp_path / "in", rows, target)], target)
    assert (merged.storage, merged.kind) == (VectorStorage.FLOAT32, IndexKind.HNSW)
    assert measured == [VectorStorage.INT8, VectorStorage.FLOAT32]
    queries = merged.index.reconstruct(np.arange(1, 50))
    truth, _ = merged.index.search(queries, k=10, exact=True)
    best = max(point.ef for point in merged.recall_curve)
    assert recall_of(merged.index.search(queries, k=10, ef=best)[0], truth) >= 0.95
