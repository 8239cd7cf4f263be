from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.index import (
    ABORTED,
    OK,
    STARVED,
    LiveBitmap,
    VectorIndex,
    WalkResult,
    build_flat,
    build_hnsw,
    load_mapped,
    measure_costs,
    warm_up,
)
from annheal.model.collection import IndexSettings, Metric

# Compiling the kernels without a cache takes ten seconds of processor time.
pytestmark = pytest.mark.timeout(300)

SAMPLES = Path(__file__).parents[2] / "samples"
ROWS = 3_000
Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm_up()


def clustered(rows: int, dimension: int, metric: Metric, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, dimension)) * 2
    values = centres[rng.integers(0, 12, rows)] + rng.standard_normal((rows, dimension))
    if metric is Metric.COSINE:
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(values, dtype=np.float32)


def hnsw(vectors: Vectors, metric: Metric, m: int = 16) -> VectorIndex:
    return build_hnsw(
        vectors, metric=metric, settings=IndexSettings(m=m, ef_construction=60), threads=1
    )


def scores_of(queries: Vectors, vectors: Vectors, metric: Metric) -> npt.NDArray[np.float64]:
    wide_queries, wide_vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.L2:
        return -((wide_queries[:, None] - wide_vectors[None]) ** 2).sum(axis=2)
    return np.asarray(wide_queries @ wide_vectors.T)


def recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    pairs = zip(found, truth, strict=True)
    return float(np.mean([np.isin(true[true >= 0], rows).mean() for rows, true in pairs]))


def assert_sound(
    result: WalkResult, truth: npt.NDArray[np.float64], allowed: Mask, *, k: int
) -> None:
    """No row that does not match, none twice, scores true and sorted, padding at the end."""
    assert result.scores.shape == result.rows.shape == (len(truth), k)
    for q, (scores, rows) in enumerate(zip(result.scores, result.rows, strict=True)):
        count = int(np.count_nonzero(rows >= 0))
        assert (rows[count:] == -1).all()
        assert (scores[count:] == -np.inf).all()
        rows, scores = rows[:count], scores[:count]
        assert allowed[rows].all()
        assert len(np.unique(rows)) == count
        np.testing.assert_allclose(scores, truth[q, rows], rtol=1e-3, atol=1e-3)
        assert (np.diff(scores) <= 0).all()
        wanted = min(k, int(allowed.sum()))
        assert count == wanted or result.status[q] in (STARVED, ABORTED)


def assert_as_faiss(index: VectorIndex, queries: Vectors, *, k: int, ef: int) -> None:
    scores, rows = index.search(queries, k=k, ef=ef)
    result = index.walk_filtered(queries, k=k, ef=ef, matching=None)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-4, atol=1e-4)
    # Sums in another order differ in the last bit: neighbours of equal distance may swap.
    different = result.rows != rows
    assert different.mean() < 0.002
    assert (result.status == OK).all()
    assert (result.checked == 0).all()


@pytest.mark.parametrize("metric", list(Metric), ids=lambda metric: metric.value)
@pytest.mark.parametrize(("dimension", "m"), [(24, 16), (3, 8), (1, 4), (50, 5), (384, 32)])
def test_unfiltered_walk_finds_what_faiss_finds(metric: Metric, dimension: int, m: int) -> None:
    if dimension == 1 and metric is not Metric.L2:
        pytest.skip("on a line all vectors of one sign are equally near")
    index = hnsw(clustered(2_000, dimension, metric, seed=1), metric, m)
    queries = clustered(40, dimension, metric, seed=2)
    for k, ef in [(10, 64), (10, 4), (1, 1), (100, 300)]:
        assert_as_faiss(index, queries, k=k, ef=ef)


@pytest.fixture(scope="module")
def packages() -> tuple[VectorIndex, Vectors]:
    table = pq.read_table(SAMPLES / "packages-10k.parquet", columns=["minilm_l6"])
    asked = pq.read_table(SAMPLES / "packages-queries.parquet", columns=["minilm_l6"])

    def matrix(found: object) -> Vectors:
        values = np.stack(found["minilm_l6"].to_numpy()).astype(np.float32)  # type: ignore[index]
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        return np.ascontiguousarray(values)

    return hnsw(matrix(table), Metric.COSINE), matrix(asked)[:200]


def test_unfiltered_walk_over_the_sample_is_faisss(packages: tuple[VectorIndex, Vectors]) -> None:
    index, queries = packages
    for ef in (16, 64, 128):
        assert_as_faiss(index, queries, k=10, ef=ef)


@pytest.mark.parametrize("share", [0.95, 0.5, 0.2, 0.1, 0.05])
def test_recall_under_filters_of_the_sample(
    packages: tuple[VectorIndex, Vectors], share: float
) -> None:
    index, queries = packages
    matching = LiveBitmap.from_mask(np.random.default_rng(7).random(index.rows) < share)
    _, truth = index.search(queries, k=10, live=matching, exact=True)
    result = index.walk_filtered(queries, k=10, ef=96, matching=matching)
    assert recall(result.rows, truth) > 0.95
    assert result.visited.mean() < matching.count


def test_filter_far_from_the_query_is_noticed_and_walked_wider(
    packages: tuple[VectorIndex, Vectors],
) -> None:
    index, queries = packages
    asked = queries[:40]
    plain, wide, aborted = [], [], 0
    for query in asked[:, None]:
        similar = index.vectors @ query[0]
        matching = LiveBitmap.from_rows(np.argsort(similar)[:2_000], rows=index.rows)
        _, truth = index.search(query, k=10, live=matching, exact=True)
        same = index.walk_filtered(query, k=10, ef=64, matching=matching)
        wider = index.walk_filtered(query, k=10, ef=64, ef_far=512, matching=matching)
        refused = index.walk_filtered(query, k=10, ef=64, ef_far=0, matching=matching)
        plain.append(recall(same.rows, truth))
        wide.append(recall(wider.rows, truth))
        assert wider.ef[0] in (64, 512)
        assert (refused.status[0] == ABORTED) == (wider.ef[0] == 512)
        aborted += int(refused.status[0] == ABORTED)
    assert aborted > 20
    assert np.mean(wide) > np.mean(plain) + 0.1


@pytest.fixture(scope="module", params=list(Metric), ids=lambda metric: metric.value)
def small(request: pytest.FixtureRequest) -> tuple[VectorIndex, Vectors, Metric]:
    metric = Metric(request.param)
    vectors = clustered(700, 13, metric, seed=3)
    return hnsw(vectors, metric, 6), vectors, metric


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_walks_return_only_matching_rows_once(
    small: tuple[VectorIndex, Vectors, Metric], data: st.DataObject
) -> None:
    index, vectors, metric = small
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    share = data.draw(st.sampled_from([0.002, 0.02, 0.1, 0.5, 0.9, 1.0]), label="share")
    kind = data.draw(st.sampled_from(["random", "block", "far"]), label="kind")
    queries = clustered(data.draw(st.integers(1, 4)), 13, metric, seed=int(rng.integers(1 << 30)))
    truth = scores_of(queries, vectors, metric)
    if kind == "random":
        allowed = rng.random(700) < share
    elif kind == "block":
        allowed = np.arange(700) < share * 700
    else:
        allowed = np.zeros(700, dtype=np.bool_)
        allowed[np.argsort(truth[0])[: int(share * 700)]] = True
    allowed &= rng.random(700) < data.draw(st.sampled_from([0.3, 0.9, 1.0]), label="alive")
    matching = LiveBitmap.from_mask(allowed)
    k = data.draw(st.sampled_from([1, 7, 10, 60, 800]), label="k")
    ef = data.draw(st.sampled_from([1, 5, 64, 700]), label="ef")
    ef_far = data.draw(st.sampled_from([None, 0, 200]), label="ef_far")
    seeds = None
    if data.draw(st.booleans(), label="own seeds"):
        seeds = matching.members()[: data.draw(st.integers(0, 40))]
    work_max = data.draw(st.sampled_from([None, 3, 100]), label="work_max")
    result = index.walk_filtered(
        queries, k=k, ef=ef, ef_far=ef_far, matching=matching, seeds=seeds, work_max=work_max
    )
    assert_sound(result, truth, allowed, k=k)
    exact = index.search_matching(queries, matching=matching, k=k)
    by_rows = index.search_rows(queries, rows=matching.members(), k=k)
    found = min(k, matching.count)
    expected = -np.sort(-np.where(allowed, truth, -np.inf), axis=1)[:, :found]
    for scores, rows in (exact, by_rows):
        np.testing.assert_allclose(scores[:, :found], expected, rtol=1e-3, atol=1e-3)
        assert allowed[rows[:, :found]].all()
        assert (rows[:, found:] == -1).all()
        assert (scores[:, found:] == -np.inf).all()


def test_nothing_matches(small: tuple[VectorIndex, Vectors, Metric]) -> None:
    index, vectors, _ = small
    empty = LiveBitmap.from_mask(np.zeros(700, dtype=np.bool_))
    result = index.walk_filtered(vectors[:3], k=5, ef=10, matching=empty)
    assert (result.rows == -1).all()
    assert (result.visited == 0).all()
    assert (index.search_matching(vectors[:3], matching=empty, k=5)[1] == -1).all()
    none = index.walk_filtered(vectors[:0], k=5, ef=10, matching=None)
    assert none.rows.shape == (0, 5)


def test_all_matching_rows_are_found_when_k_is_their_number(
    small: tuple[VectorIndex, Vectors, Metric],
) -> None:
    index, vectors, _ = small
    rows = np.arange(0, 700, 23)
    result = index.walk_filtered(
        vectors[:50], k=len(rows) + 5, ef=1, matching=LiveBitmap.from_rows(rows, rows=700)
    )
    complete = result.status == OK
    assert complete.mean() > 0.9
    for found in result.rows[complete]:
        assert set(found[found >= 0].tolist()) == set(rows.tolist())


def test_work_is_limited(packages: tuple[VectorIndex, Vectors]) -> None:
    index, queries = packages
    matching = LiveBitmap.from_mask(np.random.default_rng(7).random(index.rows) < 0.1)
    free = index.walk_filtered(queries, k=10, ef=200, matching=matching)
    limited = index.walk_filtered(queries, k=10, ef=200, matching=matching, work_max=200)
    assert (free.status == OK).all()
    assert (limited.status == ABORTED).all()
    # One expansion may overshoot: the links of a row and of those that it looks through.
    assert limited.visited.max() < 200 + 3 * 32 + 32
    assert limited.checked.sum() < free.checked.sum()


def test_wrong_arguments_are_refused(small: tuple[VectorIndex, Vectors, Metric]) -> None:
    index, vectors, metric = small
    some = LiveBitmap.from_rows(np.arange(5), rows=700)
    with pytest.raises(ValueError, match="a bitmap of 8 rows"):
        index.walk_filtered(
            vectors[:1], k=1, ef=1, matching=LiveBitmap.from_mask(np.ones(8, dtype=np.bool_))
        )
    with pytest.raises(ValueError, match="seeds outside"):
        index.walk_filtered(vectors[:1], k=1, ef=1, matching=some, seeds=np.array([700]))
    with pytest.raises(ValueError, match="not in the bitmap"):
        index.walk_filtered(vectors[:1], k=1, ef=1, matching=some, seeds=np.array([6]))
    with pytest.raises(ValueError, match="no graph"):
        build_flat(vectors, metric=metric).walk_filtered(vectors[:1], k=1, ef=1, matching=None)
    with pytest.raises(ValueError, match="not contiguous float32"):
        index.walk_filtered(vectors[:1].astype(np.float64), k=1, ef=1, matching=None)  # type: ignore[arg-type]


def test_mapped_index_is_walked_in_place(
    small: tuple[VectorIndex, Vectors, Metric], tmp_path: Path
) -> None:
    index, vectors, metric = small
    matching = LiveBitmap.from_mask(np.random.default_rng(1).random(700) < 0.4)
    index.write(tmp_path / "index.faiss")
    mapped = load_mapped(tmp_path / "index.faiss", metric=metric)
    assert not mapped.vectors.flags.writeable
    for bitmap in (None, matching):
        ours = index.walk_filtered(vectors[:20], k=10, ef=30, matching=bitmap)
        theirs = mapped.walk_filtered(vectors[:20], k=10, ef=30, matching=bitmap)
        assert (ours.rows == theirs.rows).all()
        assert (ours.visited == theirs.visited).all()
    exact = mapped.search_matching(vectors[:20], matching=matching, k=10)
    assert (exact[1] == index.search_matching(vectors[:20], matching=matching, k=10)[1]).all()
    del mapped
    gc.collect()


def test_more_queries_than_epochs_of_a_thread(
    small: tuple[VectorIndex, Vectors, Metric],
) -> None:
    index, vectors, _ = small
    matching = LiveBitmap.from_mask(np.random.default_rng(1).random(700) < 0.4)
    once = index.walk_filtered(vectors, k=10, ef=30, matching=matching)
    assert len(vectors) > 255
    for q in (0, 125, 126, 127, 254, 699):
        single = index.walk_filtered(vectors[q : q + 1], k=10, ef=30, matching=matching)
        assert (single.rows[0] == once.rows[q]).all()


def test_eight_threads_at_once(small: tuple[VectorIndex, Vectors, Metric]) -> None:
    index, vectors, metric = small
    other_vectors = clustered(1_500, 20, metric, seed=9)
    cases = []
    for searched, asked, rows in (
        (index, vectors, 700),
        (hnsw(other_vectors, metric), other_vectors, 1_500),
    ):
        for share in (0.05, 0.3, 0.8):
            matching = LiveBitmap.from_mask(np.random.default_rng(rows).random(rows) < share)
            expected = searched.walk_filtered(asked[:60], k=10, ef=40, matching=matching)
            exact = searched.search_matching(asked[:60], matching=matching, k=10)
            cases.append((searched, asked[:60], matching, expected.rows, exact[1]))
    wrong: list[str] = []
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        barrier.wait()
        for step in range(24):
            searched, asked, matching, expected, exact = cases[(number + step) % len(cases)]
            result = searched.walk_filtered(asked, k=10, ef=40, matching=matching)
            if not (result.rows == expected).all():
                wrong.append(f"walk of thread {number}, step {step}")
            if not (searched.search_matching(asked, matching=matching, k=10)[1] == exact).all():
                wrong.append(f"comparison of thread {number}, step {step}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_costs_are_measured(packages: tuple[VectorIndex, Vectors]) -> None:
    index, _ = packages
    costs = measure_costs(index)
    assert costs is not None
    assert 1 < costs.exact_row_ns < 10_000
    assert 1 < costs.walk_row_ns < 100_000
    assert 0 < costs.check_ns < costs.walk_row_ns
    assert costs.exact_ns(2_000) > costs.exact_ns(1_000) > costs.call_ns
    assert costs.walk_ns(visited=10, checked=0) < costs.walk_ns(visited=10, checked=100)
    flat = measure_costs(build_flat(np.array(index.reconstruct(np.arange(500))), metric=Metric.L2))
    assert flat is not None
    assert flat.walk_row_ns == 0
    assert measure_costs(build_flat(np.zeros((3, 4), np.float32), metric=Metric.L2)) is None
