from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from annheal.errors import DataCorruption
from annheal.index import (
    PRODUCT_VALUES_MIN,
    LiveBitmap,
    VectorIndex,
    build_flat,
    build_hnsw,
    load_mapped,
    set_search_threads,
)
from annheal.index.vector_index import GATHER_QUERIES_MIN
from annheal.model.collection import IndexSettings, Metric
from annheal.model.topology.manifest import IndexKind

DIMENSION = 24
ROWS = 3_000
METRICS = list(Metric)


def vectors_of(rows: int, metric: Metric, seed: int = 1) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    if metric is Metric.COSINE:
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def true_scores(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.float64]:
    wide_queries, wide_vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.L2:
        return -((wide_queries[:, None, :] - wide_vectors[None]) ** 2).sum(axis=2)
    return wide_queries @ wide_vectors.T


def hnsw(vectors: npt.NDArray[np.float32], metric: Metric) -> VectorIndex:
    return build_hnsw(vectors, metric=metric, settings=IndexSettings(), threads=1)


@pytest.fixture(params=METRICS, ids=lambda metric: metric.value)
def metric(request: pytest.FixtureRequest) -> Metric:
    return Metric(request.param)


def assert_best(
    answer: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    truth: npt.NDArray[np.float64],
    allowed: npt.NDArray[np.bool_],
    k: int,
) -> None:
    scores, rows = answer
    masked = np.where(allowed[None, :], truth, -np.inf)
    found = min(k, int(allowed.sum()))
    expected = -np.sort(-masked, axis=1)[:, :found]
    assert scores.shape == rows.shape == (len(truth), k)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    np.testing.assert_allclose(scores[:, :found], expected, rtol=1e-3, atol=1e-3)
    assert allowed[rows[:, :found]].all()
    for query_rows in rows[:, :found]:
        assert len(set(query_rows.tolist())) == found
    np.testing.assert_allclose(
        np.take_along_axis(truth, rows[:, :found], axis=1), expected, rtol=1e-3, atol=1e-3
    )
    assert (rows[:, found:] == -1).all()
    assert (scores[:, found:] == -np.inf).all()


@pytest.mark.parametrize("kind", [IndexKind.FLAT, IndexKind.HNSW])
@pytest.mark.parametrize("queries", [1, 33])
@pytest.mark.parametrize("kept", [None, 700, 4, 0])
def test_exact_search_is_brute_force(
    metric: Metric, kind: IndexKind, queries: int, kept: int | None
) -> None:
    vectors = vectors_of(800, metric)
    index = build_flat(vectors, metric=metric) if kind is IndexKind.FLAT else hnsw(vectors, metric)
    asked = vectors_of(queries, metric, seed=2)
    allowed = np.ones(800, dtype=np.bool_)
    live = None
    if kept is not None:
        allowed[:] = False
        allowed[np.random.default_rng(3).permutation(800)[:kept]] = True
        live = LiveBitmap.from_mask(allowed)
    answer = index.search(asked, k=10, live=live, exact=True)
    assert_best(answer, true_scores(asked, vectors, metric), allowed, 10)
    assert index.kind is kind


def test_graph_search_finds_most_neighbours_and_only_live_rows(metric: Metric) -> None:
    vectors = vectors_of(ROWS, metric)
    index = hnsw(vectors, metric)
    asked = vectors_of(50, metric, seed=2)
    allowed = np.random.default_rng(4).random(ROWS) < 0.7
    live = LiveBitmap.from_mask(allowed)
    _, truth = index.search(asked, k=10, live=live, exact=True)
    scores, rows = index.search(asked, k=10, ef=200, live=live)
    hits = sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), rows.tolist(), strict=True))
    assert hits / truth.size > 0.93
    assert allowed[rows[rows >= 0]].all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_walk_that_falls_short_pads_with_minus_infinity(metric: Metric) -> None:
    vectors = vectors_of(ROWS, metric)
    index = hnsw(vectors, metric)
    asked = vectors_of(20, metric, seed=2)
    live = LiveBitmap.from_rows(np.arange(0, ROWS, 100), rows=ROWS)
    scores, rows = index.search(asked, k=10, ef=16, live=live)
    missing = rows < 0
    assert missing.any(), "the walk found everything: this test needs a smaller share of live rows"
    assert (scores[missing] == -np.inf).all()
    assert np.isfinite(scores[~missing]).all()
    assert (rows[missing] == -1).all()
    # What is missing stands at the end.
    assert (np.diff(missing.astype(np.int8), axis=1) >= 0).all()


def test_wider_beam_finds_more() -> None:
    vectors = vectors_of(ROWS, Metric.L2)
    index = hnsw(vectors, Metric.L2)
    asked = vectors_of(100, Metric.L2, seed=2)
    _, truth = index.search(asked, k=10, exact=True)

    def recall(ef: int) -> float:
        _, rows = index.search(asked, k=10, ef=ef)
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, rows, strict=True)]))

    assert recall(16) < recall(256)
    assert recall(256) > 0.98


@pytest.mark.parametrize("queries", [1, GATHER_QUERIES_MIN + 1])
@pytest.mark.parametrize("chosen", [0, 3, 10, 400])
def test_search_rows_compares_only_those_rows(metric: Metric, queries: int, chosen: int) -> None:
    vectors = vectors_of(900, metric)
    index = hnsw(vectors, metric)
    asked = vectors_of(queries, metric, seed=2)
    rows = np.random.default_rng(5).permutation(900)[:chosen].astype(np.int64)
    allowed = np.zeros(900, dtype=np.bool_)
    allowed[rows] = True
    answer = index.search_rows(asked, rows=rows, k=10)
    assert_best(answer, true_scores(asked, vectors, metric), allowed, 10)


def test_search_rows_refuses_rows_outside() -> None:
    index = build_flat(vectors_of(10, Metric.L2), metric=Metric.L2)
    for row in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            index.search_rows(index.reconstruct(np.array([0])), rows=np.array([row]), k=1)


def test_k_above_rows_is_padded(metric: Metric) -> None:
    vectors = vectors_of(5, metric)
    for index in (build_flat(vectors, metric=metric), hnsw(vectors, metric)):
        scores, rows = index.search(vectors[:2].copy(), k=9)
        assert (rows[:, :5] >= 0).all()
        assert (rows[:, 5:] == -1).all()
        assert (scores[:, 5:] == -np.inf).all()


def test_no_queries_give_empty_results(metric: Metric) -> None:
    index = build_flat(vectors_of(5, metric), metric=metric)
    scores, rows = index.search(np.empty((0, DIMENSION), dtype=np.float32), k=3)
    assert scores.shape == rows.shape == (0, 3)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, DIMENSION + 1), dtype=np.float32),
        np.zeros((1, DIMENSION), dtype=np.float64),
        np.zeros(DIMENSION, dtype=np.float32),
        np.zeros((DIMENSION, 2), dtype=np.float32).T,
    ],
)
def test_queries_of_another_shape_are_refused_before_faiss_reads_memory(
    bad: npt.NDArray[np.float32],
) -> None:
    index = build_flat(vectors_of(5, Metric.L2), metric=Metric.L2)
    with pytest.raises(ValueError, match="queries"):
        index.search(bad, k=1)


def test_bitmap_of_another_index_is_refused() -> None:
    index = build_flat(vectors_of(5, Metric.L2), metric=Metric.L2)
    with pytest.raises(ValueError, match="bitmap"):
        index.search(
            vectors_of(1, Metric.L2), k=1, live=LiveBitmap.from_mask(np.ones(6, dtype=np.bool_))
        )


@pytest.mark.parametrize("kind", [IndexKind.FLAT, IndexKind.HNSW])
def test_mapped_index_answers_as_the_built_one(
    tmp_path: Path, metric: Metric, kind: IndexKind
) -> None:
    vectors = vectors_of(1_000, metric)
    built = build_flat(vectors, metric=metric) if kind is IndexKind.FLAT else hnsw(vectors, metric)
    path = tmp_path / "index.faiss"
    built.write(path)
    mapped = load_mapped(path, metric=metric)
    assert (mapped.kind, mapped.rows, mapped.dimension) == (kind, 1_000, DIMENSION)
    asked = vectors_of(20, metric, seed=2)
    live = LiveBitmap.from_mask(np.random.default_rng(3).random(1_000) < 0.5)
    for options in ({}, {"live": live}, {"exact": True}, {"live": live, "exact": True}):
        expected = built.search(asked, k=7, **options)  # type: ignore[arg-type]
        answer = mapped.search(asked, k=7, **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(answer[0], expected[0])
        np.testing.assert_array_equal(answer[1], expected[1])
    np.testing.assert_array_equal(mapped.vectors, vectors)
    rows = np.array([5, 0, 999], dtype=np.int64)
    np.testing.assert_array_equal(mapped.reconstruct(rows), vectors[rows])
    np.testing.assert_array_equal(
        mapped.search_rows(asked, rows=rows, k=3)[1], built.search_rows(asked, rows=rows, k=3)[1]
    )


def test_vectors_outlive_the_index_object(tmp_path: Path) -> None:
    values = vectors_of(500, Metric.L2)
    build_flat(values, metric=Metric.L2).write(tmp_path / "index.faiss")
    views = [
        build_flat(values, metric=Metric.L2).vectors,
        load_mapped(tmp_path / "index.faiss", metric=Metric.L2).vectors,
    ]
    gc.collect()
    for view in views:
        np.testing.assert_array_equal(view, values)
        assert not view.flags.writeable


def test_file_that_is_no_index_is_corruption(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    path.write_bytes(b"not an index at all")
    with pytest.raises(DataCorruption, match=r"index\.faiss"):
        load_mapped(path, metric=Metric.L2)


def test_index_of_another_metric_is_corruption(tmp_path: Path) -> None:
    build_flat(vectors_of(5, Metric.L2), metric=Metric.L2).write(tmp_path / "index.faiss")
    with pytest.raises(DataCorruption, match="cosine"):
        load_mapped(tmp_path / "index.faiss", metric=Metric.COSINE)


def test_graph_does_not_depend_on_threads(tmp_path: Path) -> None:
    vectors = vectors_of(2_000, Metric.L2)
    for threads in (1, 2):
        build_hnsw(vectors, metric=Metric.L2, settings=IndexSettings(), threads=threads).write(
            tmp_path / str(threads)
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_progress_is_reported_and_may_cancel_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annheal.index.building.BUILD_BATCH_ROWS", 400)
    seen: list[int] = []

    def build(on_progress: Callable[[int], None]) -> None:
        build_hnsw(
            vectors_of(1_000, Metric.L2),
            metric=Metric.L2,
            settings=IndexSettings(),
            threads=1,
            on_progress=on_progress,
        )

    build(seen.append)
    assert seen == [400, 800, 1_000]

    class Cancelled(Exception):
        pass

    def cancel(_: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        build(cancel)


def test_probe_sees_all_but_the_last_rows() -> None:
    vectors = vectors_of(1_000, Metric.L2)
    seen: list[tuple[int, bool]] = []

    def probe(index: VectorIndex) -> None:
        _, rows = index.search(vectors[-100:].copy(), k=1)
        seen.append((index.rows, bool((rows < 900).all())))

    index = build_hnsw(
        vectors,
        metric=Metric.L2,
        settings=IndexSettings(),
        threads=1,
        probe_rows=100,
        probe=probe,
    )
    assert seen == [(900, True)]
    assert index.rows == 1_000
    assert index.search(vectors[-100:].copy(), k=1)[1][:, 0].tolist() == list(range(900, 1_000))


def test_one_bitmap_serves_many_threads(tmp_path: Path) -> None:
    vectors = vectors_of(2_000, Metric.COSINE)
    hnsw(vectors, Metric.COSINE).write(tmp_path / "index")
    index = load_mapped(tmp_path / "index", metric=Metric.COSINE)
    live = LiveBitmap.from_mask(np.random.default_rng(3).random(2_000) < 0.5)
    asked = vectors_of(50, Metric.COSINE, seed=2)
    _, expected = index.search(asked, k=10, live=live)
    wrong: list[int] = []

    def work() -> None:
        set_search_threads(1)
        for _ in range(20):
            for number in range(50):
                _, rows = index.search(asked[number : number + 1], k=10, live=live)
                if not np.array_equal(rows[0], expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("dimension", [16, 64])
def test_the_rounding_of_products_is_known_from_the_number_of_values_on(dimension: int) -> None:
    """FAISS decides by queries times dimension; squared distances of products are less precise."""
    enough = math.ceil(PRODUCT_VALUES_MIN / dimension)
    rng = np.random.default_rng(7)
    vectors = (50 + rng.standard_normal((64, dimension))).astype(np.float32)
    index = build_flat(vectors, metric=Metric.L2)
    queries = (50 + rng.standard_normal((enough, dimension))).astype(np.float32)
    off: dict[int, float] = {}
    for count in (enough - 1, enough):
        asked = np.ascontiguousarray(queries[:count])
        found, rows = index.search(asked, k=1, exact=True)
        apart = np.abs(found - index.scores(asked, rows))[:, 0]
        assert (apart <= index.score_errors(asked, found[:, 0], exact=True)).all()
        off[count] = float(apart.max())
    assert off[enough] > 10 * off[enough - 1]
