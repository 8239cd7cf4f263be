"""Graphs over lossy codes: found through codes, scored with float32."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from annheal.errors import DataCorruption
from annheal.index import (
    OK,
    LiveBitmap,
    VectorIndex,
    build_flat,
    build_hnsw,
    can_store,
    load_mapped,
    measure_costs,
    quantized,
)
from annheal.index.kernels.catalog import walk_over
from annheal.index.kernels.loaded import machine_code
from annheal.index.quantized import reranked_rows
from annheal.model.collection import IndexSettings, Metric, VectorStorage

# Compiling the kernels without a cache takes ten seconds of processor time each.
pytestmark = pytest.mark.timeout(400)

Vectors = npt.NDArray[np.float32]
LOSSY = (VectorStorage.FP16, VectorStorage.INT8)
ROWS, DIMENSION = 3_000, 24


def values(rows: int, dimension: int, metric: Metric, *, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((12, dimension)) * 2
    found = centres[rng.integers(0, 12, rows)] + rng.standard_normal((rows, dimension)) + 1
    if metric is Metric.COSINE:
        found /= np.linalg.norm(found, axis=1, keepdims=True)
    return np.ascontiguousarray(found, dtype=np.float32)


def graph(vectors: Vectors, metric: Metric) -> VectorIndex:
    settings = IndexSettings(m=16, ef_construction=60)
    return build_hnsw(vectors, metric=metric, settings=settings, threads=1)


def scores_of(queries: Vectors, vectors: Vectors, metric: Metric) -> npt.NDArray[np.float64]:
    wide_queries, wide_vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.L2:
        return -((wide_queries[:, None] - wide_vectors[None]) ** 2).sum(axis=2)
    return np.asarray(wide_queries @ wide_vectors.T)


def recall(scores: Vectors, truth: npt.NDArray[np.float64], *, k: int) -> float:
    worst = -np.sort(-truth, axis=1)[:, k - 1 : k]
    return float((scores >= worst - 1e-4).sum(axis=1).clip(max=k).mean() / k)


def assert_exact(
    scores: Vectors, rows: npt.NDArray[np.int64], truth: npt.NDArray[np.float64]
) -> None:
    """Every row once, sorted, with the score that float32 vectors give."""
    assert (rows >= 0).all()
    for number, found in enumerate(rows):
        assert len(np.unique(found)) == len(found)
        np.testing.assert_allclose(scores[number], truth[number, found], rtol=2e-6, atol=2e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("storage", LOSSY)
@pytest.mark.parametrize("metric", list(Metric))
def test_what_is_found_through_codes_has_exact_scores(
    storage: VectorStorage, metric: Metric, tmp_path: Path
) -> None:
    vectors = values(ROWS, DIMENSION, metric, seed=1)
    queries = values(60, DIMENSION, metric, seed=2)
    truth = scores_of(queries, vectors, metric)
    built = quantized(graph(vectors, metric), storage=storage)
    built.write(tmp_path / "index")
    built.write_raw(tmp_path / "raw")
    mapped = load_mapped(tmp_path / "index", metric=metric, raw=tmp_path / "raw")
    for index in (built, mapped):
        assert index.storage is storage
        np.testing.assert_array_equal(index.vectors, vectors)
        np.testing.assert_array_equal(index.reconstruct(np.arange(5)), vectors[:5])
        for k, ef in ((10, 100), (1, 1), (50, 50)):
            scores, rows = index.search(queries, k=k, ef=ef)
            assert_exact(scores, rows, truth)
            walked = index.walk_filtered(queries, k=k, ef=ef, matching=None)
            assert_exact(walked.scores, walked.rows, truth)
            # The kernel and FAISS decode alike: rows differ where distances are equal.
            assert (walked.rows != rows).mean() < 0.005
        assert recall(index.search(queries, k=10, ef=100)[0], truth, k=10) > 0.97
        scores, rows = index.search(queries, k=10, exact=True)
        assert recall(scores, truth, k=10) == 1.0


@pytest.mark.parametrize("storage", LOSSY)
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2])
def test_only_matching_rows_are_found(storage: VectorStorage, metric: Metric) -> None:
    vectors = values(ROWS, DIMENSION, metric, seed=3)
    queries = values(40, DIMENSION, metric, seed=4)
    index = quantized(graph(vectors, metric), storage=storage)
    allowed = np.random.default_rng(5).random(ROWS) < 0.2
    live = LiveBitmap.from_mask(allowed)
    truth = np.where(allowed, scores_of(queries, vectors, metric), -np.inf)
    walked = index.walk_filtered(queries, k=10, ef=100, matching=live)
    assert_exact(walked.scores, walked.rows, truth)
    assert recall(walked.scores, truth, k=10) > 0.97
    scores, rows = index.search(queries, k=10, ef=300, live=live)
    assert allowed[rows[rows >= 0]].all()
    for scores, rows in (
        index.search(queries, k=10, live=live, exact=True),
        index.search_matching(queries, matching=live, k=10),
        index.search_rows(queries, rows=live.members(), k=10),
    ):
        assert_exact(scores, rows, truth)
        assert recall(scores, truth, k=10) == 1.0


@pytest.mark.parametrize("storage", LOSSY)
def test_fewer_matches_than_k_are_padded(storage: VectorStorage) -> None:
    vectors = values(ROWS, DIMENSION, Metric.L2, seed=6)
    index = quantized(graph(vectors, Metric.L2), storage=storage)
    few = LiveBitmap.from_rows(np.array([5, 70, 2_999]), rows=ROWS)
    walked = index.walk_filtered(vectors[:2], k=5, ef=50, matching=few)
    compared = index.search_matching(vectors[:2], matching=few, k=5)
    found = (walked.rows >= 0).sum(axis=1)
    assert (found[walked.status == OK] == few.count).all(), "it says so when it misses one"
    for scores, rows in ((walked.scores, walked.rows), compared):
        assert {*rows[0].tolist()} <= {5, 70, 2_999, -1}
        assert (rows[:, 3:] == -1).all()
        assert ((scores == -np.inf) == (rows < 0)).all()
    assert index.walk_filtered(vectors[:0], k=5, ef=50, matching=few).rows.shape == (0, 5)
    assert index.search(vectors[:0], k=5)[1].shape == (0, 5)
    assert sorted(compared[1][0][:3].tolist()) == [5, 70, 2_999]


def test_re_ranking_corrects_what_coarse_codes_confuse() -> None:
    """One far outlier stretches the steps of int8: neighbours then share their codes."""
    vectors = values(ROWS, DIMENSION, Metric.L2, seed=7)
    vectors[0] = 300.0
    queries = values(100, DIMENSION, Metric.L2, seed=8)
    truth = scores_of(queries, vectors, Metric.L2)
    index = quantized(graph(vectors, Metric.L2), storage=VectorStorage.INT8)
    by_codes, rows = np.empty((100, 10), np.float32), np.empty((100, 10), np.int64)
    index._index.search(queries, 10, D=by_codes, I=rows)
    best = np.argsort(-truth)[:, :10]
    shared = [len({*found} & {*true}) for found, true in zip(rows, best, strict=True)]
    confused = float(np.mean(shared)) / 10
    reranked = recall(index.search(queries, k=10, ef=100)[0], truth, k=10)
    assert confused < 0.75
    assert reranked > confused + 0.15


def test_halves_are_decoded_as_numpy_decodes_them() -> None:
    """Of every kind: subnormal, zero of both signs, the largest."""
    halves = np.array([6e-8, -6e-8, 5.9e-5, 0.0, -0.0, 1.0, -65_504.0, 0.333], dtype=np.float16)
    vectors = np.ascontiguousarray(np.eye(8, dtype=np.float32) * halves.astype(np.float32))
    index = quantized(graph(vectors, Metric.INNER_PRODUCT), storage=VectorStorage.FP16)
    from annheal.index.walk import filtered_walk

    assert index._quantized is not None
    ones = np.ones((1, 8), dtype=np.float32)
    walked = filtered_walk.walk(
        index._graph,
        index._quantized,
        ones,
        l2=False,
        k=8,
        ef=8,
        ef_far=None,
        matching=None,
        seeds=None,
        work_max=None,
        kept=8,
    )
    found = np.empty(8, dtype=np.float32)
    found[walked.rows[0]] = walked.scores[0]
    assert found.tolist() == halves.astype(np.float32).tolist()


@pytest.mark.parametrize("in_hardware", [False, True])
def test_every_half_is_read_as_numpy_reads_it(
    in_hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba import njit, uint64

    from annheal.index import distances

    if in_hardware and not distances.FLOAT16_IN_HARDWARE:
        pytest.skip("this processor has no float16 instructions")
    monkeypatch.setattr(distances, "FLOAT16_IN_HARDWARE", in_hardware)
    element = distances.element

    @njit
    def read(stored, found):  # type: ignore[no-untyped-def]
        for position in range(stored.size):
            found[position] = element(stored, uint64(position))

    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)
    finite = np.isfinite(halves)
    found = np.empty(len(bits), dtype=np.float32)
    read(bits, found)
    np.testing.assert_array_equal(found[finite], halves[finite].astype(np.float32))


def test_values_beyond_halves_cannot_be_stored() -> None:
    vectors = values(200, 8, Metric.L2, seed=9)
    vectors[17, 3] = -65_600.0
    assert not can_store(vectors, VectorStorage.FP16)
    assert can_store(vectors, VectorStorage.INT8)
    assert can_store(vectors, VectorStorage.FLOAT32)


def test_equal_values_in_a_dimension_have_codes() -> None:
    vectors = values(500, 8, Metric.L2, seed=10)
    vectors[:, 2] = 4.5
    index = quantized(graph(vectors, Metric.L2), storage=VectorStorage.INT8)
    walked = index.walk_filtered(vectors[:20], k=1, ef=30, matching=None)
    assert walked.rows[:, 0].tolist() == list(range(20))


def test_only_float32_graphs_can_be_quantized() -> None:
    vectors = values(300, 8, Metric.L2, seed=11)
    with pytest.raises(ValueError, match="float32 graph"):
        quantized(build_flat(vectors, metric=Metric.L2), storage=VectorStorage.INT8)
    lossy = quantized(graph(vectors, Metric.L2), storage=VectorStorage.INT8)
    with pytest.raises(ValueError, match="float32 graph"):
        quantized(lossy, storage=VectorStorage.FP16)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    vectors = values(300, 8, Metric.L2, seed=12)
    lossy = quantized(graph(vectors, Metric.L2), storage=VectorStorage.INT8)
    lossy.write(tmp_path / "index")
    lossy.write_raw(tmp_path / "raw")
    with pytest.raises(DataCorruption, match="not a flat or HNSW"):
        load_mapped(tmp_path / "index", metric=Metric.L2)
    build_flat(vectors[:299], metric=Metric.L2).write(tmp_path / "fewer")
    with pytest.raises(DataCorruption, match="299 x 8"):
        load_mapped(tmp_path / "index", metric=Metric.L2, raw=tmp_path / "fewer")
    with pytest.raises(DataCorruption, match="not a flat index"):
        load_mapped(tmp_path / "index", metric=Metric.L2, raw=tmp_path / "index")
    (tmp_path / "cut").write_bytes((tmp_path / "raw").read_bytes()[:100])
    with pytest.raises(DataCorruption, match=r"cut as the vectors of .* cannot be read"):
        load_mapped(tmp_path / "index", metric=Metric.L2, raw=tmp_path / "cut")
    other = faiss.index_factory(8, "HNSW16_SQ4", faiss.METRIC_L2)
    other.train(vectors)
    other.add(vectors)
    faiss.write_index(other, str(tmp_path / "sq4"))
    with pytest.raises(DataCorruption, match="unknown scalar quantizer"):
        load_mapped(tmp_path / "sq4", metric=Metric.L2, raw=tmp_path / "raw")


def test_costs_of_a_lossy_walk_can_be_measured() -> None:
    vectors = values(ROWS, DIMENSION, Metric.COSINE, seed=13)
    index = quantized(graph(vectors, Metric.COSINE), storage=VectorStorage.INT8)
    costs = measure_costs(index)
    assert costs is not None
    assert costs.walk_row_ns > 0


def test_every_storage_has_a_walk_of_its_own() -> None:
    walks = {machine_code(walk_over(storage)) for storage in VectorStorage}
    assert len(walks) == len(VectorStorage)


def test_more_rows_than_asked_for_are_compared_again_within_the_beam() -> None:
    assert reranked_rows(10, ef=64) == 18
    assert reranked_rows(10, ef=12) == 12
    assert reranked_rows(10, ef=400) == 100
    assert reranked_rows(100, ef=64) == 100
    assert reranked_rows(100, ef=512) == 150
