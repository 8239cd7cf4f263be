"""Recall under filters, measured at build."""

from __future__ import annotations

import numpy as np
import pytest

from annheal.compactor.build import bands
from annheal.compactor.build.bands import BAND_ROWS_MIN, mean_visited, measure_bands
from annheal.compactor.build.calibrate import meets_objective
from annheal.index import VectorIndex, build_hnsw
from annheal.model.collection import IndexSettings, Metric
from tests.support.segments import unit_vectors

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

ROWS = 10_500
LONG_S = 60.0


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    vectors = unit_vectors(ROWS, 8)
    return build_hnsw(vectors, metric=Metric.COSINE, settings=IndexSettings(), threads=2)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return unit_vectors(200, 8, seed=99)


def test_bands_with_enough_rows_are_measured(
    index: VectorIndex, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "BAND_ROWS_MIN", 2_000)
    monkeypatch.setattr(bands, "FAR_ROWS_MIN", 5_000)
    points = measure_bands(index, queries, k=10, limit_s=LONG_S)
    assert {p.band for p in points} == {"0.5", "0.2"}
    assert {(p.band, p.far) for p in points if p.far} == {("0.5", True)}
    assert any(p.selector and p.band == "0.5" for p in points)
    walked = [p for p in points if not p.selector]
    assert all(p.visited > p.ef and p.checked > p.visited for p in walked)
    near = [p for p in walked if p.band == "0.2" and not p.far]
    assert [p.ef for p in near] == sorted(p.ef for p in near)
    assert near[-1].recall > 0.95
    assert all(0 < p.recall <= 1 and p.k == 10 for p in points)


def test_a_small_index_has_no_bands(queries: np.ndarray) -> None:
    vectors = unit_vectors(2 * BAND_ROWS_MIN - 2, 8)
    small = build_hnsw(vectors, metric=Metric.COSINE, settings=IndexSettings(), threads=2)
    assert measure_bands(small, queries, k=10, limit_s=LONG_S) == ()
    assert mean_visited(small, queries, ef=64, k=10) == 0


def test_the_time_limit_leaves_the_rest_unmeasured(index: VectorIndex, queries: np.ndarray) -> None:
    assert measure_bands(index, queries, k=10, limit_s=-1.0) == ()


def test_far_filters_hold_the_rows_far_from_their_queries(
    index: VectorIndex, queries: np.ndarray
) -> None:
    order = bands._rows_far_to_near(index, queries[:4])
    for asked, matching in bands._far_filters(order, 1_000, queries):
        assert matching.count == 1_000
        similar = index.vectors @ asked[0]
        assert similar[matching.mask()].mean() < similar.mean() - 0.4


def test_points_of_bands_do_not_make_a_graph_good(
    index: VectorIndex, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "BAND_ROWS_MIN", 2_000)
    points = measure_bands(index, queries, k=10, limit_s=LONG_S)
    assert any(p.recall >= 0.9 for p in points)
    assert not meets_objective(points, k=10, objective=0.5)
