"""Comparison by 8-bit codes finds what comparison by floats finds."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from annheal.index import LiveBitmap, VectorIndex, build_flat, warm_up
from annheal.index.codes import byte_products, row_codes
from annheal.index.codes.code_layout import HIGH, LOW, WIDTH
from annheal.model.collection import Metric
from annheal.runtime.background import do_now
from annheal.runtime.lane import Work
from annheal.shard_node.search.code_maker import CodeMaker
from tests.support.segments import unit_vectors

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

Floats = NDArray[np.float32]
METRICS = (Metric.COSINE, Metric.INNER_PRODUCT, Metric.L2)


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    warm_up()


def index_of(vectors: Floats, metric: Metric) -> VectorIndex:
    index = build_flat(np.ascontiguousarray(vectors, dtype=np.float32), metric=metric)
    index.make_shortlist()
    return index


def decaying(rows: int, dimension: int, *, seed: int = 0) -> Floats:
    """Vectors of which a few directions hold most, and none of them is an axis."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((dimension, dimension)))
    spread = np.exp(-np.arange(dimension) / (dimension / 3))
    made: Floats = (rng.standard_normal((rows, dimension)) * spread @ turn).astype(np.float32)
    made += np.float32(0.02)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def callable_of(products: Any) -> Any:
    """Return a function of what only compiled code can call."""

    @njit
    def call(
        codes: Any, base: Any, rows: Any, first: Any, bytes_: Any, high: Any, low: Any, width: Any,
        found: Any, at: Any,
    ) -> None:  # fmt: skip
        products(codes, base, rows, first, bytes_, high, low, width, found, at)

    return call


WHOLE_PRODUCTS = callable_of(byte_products.whole_products)
HALF_PRODUCTS = callable_of(byte_products.nibble_products)


def widths_of(codes: row_codes.RowCodes) -> list[int]:
    widths: list[int] = codes.layout[:, WIDTH].tolist()
    return widths


def assert_same(index: VectorIndex, queries: Floats, matching: LiveBitmap, *, k: int) -> None:
    """Equal rows may change places, and ties at the end of the answer may differ."""
    truth_scores, _ = index.search_matching(queries, matching=matching, k=k)
    scores, rows = index.search_shortlisted(queries, matching=matching, k=k)
    np.testing.assert_allclose(scores, truth_scores, rtol=1e-5, atol=1e-5)
    present = rows >= 0
    assert present.sum(axis=1).tolist() == [min(k, matching.count)] * len(queries)
    assert matching.contains(rows[present]).all()
    assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in rows)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dimension", [1, 3, 31, 64, 100, 384])
def test_the_best_of_a_bitmap_are_found(metric: Metric, dimension: int) -> None:
    index = index_of(unit_vectors(2_003, dimension), metric)
    queries = unit_vectors(7, dimension, seed=5)
    rng = np.random.default_rng(1)
    for share in (1.0, 0.5, 0.03):
        matching = LiveBitmap.from_mask(rng.random(2_003) < share)
        assert_same(index, queries, matching, k=10)


@pytest.mark.parametrize("metric", METRICS)
def test_the_nearest_of_the_far_half_are_found(metric: Metric) -> None:
    """Their scores lie as close to one another as scores can: the codes alone confuse them."""
    vectors = unit_vectors(20_000, 32)
    index = index_of(vectors, metric)
    for query in unit_vectors(5, 32, seed=5):
        far = np.argsort(vectors @ query)[:10_000]
        matching = LiveBitmap.from_rows(far.astype(np.int64), rows=20_000)
        assert_same(index, query[None, :], matching, k=10)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("dimension", "widths"),
    [(192, [64, 64, 64]), (200, [64, 64, 72]), (400, [64, 128, 64, 144])],
)
def test_codes_cut_in_planes_find_the_same(
    metric: Metric, dimension: int, widths: list[int]
) -> None:
    """The first plane leaves thousands of the far half in doubt, the last decides."""
    rows = 12_000
    vectors = decaying(rows, dimension)
    index = index_of(vectors, metric)
    assert index.shortlist is not None
    assert widths_of(index.shortlist.codes) == widths
    queries, found, wanted = decaying(30, dimension, seed=5), 0, 0
    for query in queries:
        near = np.argsort(vectors @ query).astype(np.int64)
        for members in (near, near[: rows // 2], near[::7]):
            matching = LiveBitmap.from_rows(members, rows=rows)
            _, truth = index.search_matching(query[None, :], matching=matching, k=10)
            scores, best = index.search_shortlisted(query[None, :], matching=matching, k=10)
            assert (np.diff(scores[0]) <= 0).all()
            found += len(set(truth[0].tolist()) & set(best[0].tolist()))
            wanted += 10
    assert found >= 0.995 * wanted


def hits_of(index: VectorIndex, queries: Floats, matching: LiveBitmap, *, k: int) -> float:
    """Return the share of the best rows that are found; ties count, a short answer never does."""
    truth, _ = index.search_matching(queries, matching=matching, k=k)
    scores, rows = index.search_shortlisted(queries, matching=matching, k=k)
    assert ((rows >= 0).sum(axis=1) == min(k, matching.count)).all()
    return float((scores >= truth[:, -1:] - 1e-6 * np.abs(truth[:, -1:])).mean())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_rare_rows_far_out_in_weak_directions_are_found(metric: Metric, share: float) -> None:
    """No sample sees them, and a query half of them and half of the others is not near them."""
    vectors = decaying(20_000, 192)
    rng = np.random.default_rng(0)
    weakest = np.linalg.eigh(np.cov(vectors[:5_000].T))[1][:, 0]
    rare = weakest + 0.02 * rng.standard_normal((15, 192))
    vectors[7:22] = rare / np.linalg.norm(rare, axis=1, keepdims=True)
    index = index_of(vectors, metric)
    assert index.shortlist is not None
    assert index.shortlist.codes.cut
    common = decaying(40, 192, seed=5)
    queries = np.sqrt(1 - share) * weakest + np.sqrt(share) * common
    every = LiveBitmap.from_mask(np.ones(20_000, dtype=np.bool_))
    assert hits_of(index, queries.astype(np.float32), every, k=10) >= 0.995


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("metric", METRICS)
def test_a_far_common_offset_hides_nothing(metric: Metric, offset: float) -> None:
    vectors = decaying(10_000, 192) + np.float32(offset)
    queries = decaying(40, 192, seed=5) + np.float32(offset)
    every = LiveBitmap.from_mask(np.ones(10_000, dtype=np.bool_))
    assert hits_of(index_of(vectors, metric), queries, every, k=10) >= 0.995


def test_directions_without_variance_do_not_keep_codes_from_being_cut() -> None:
    """Vectors projected upwards, or with components that follow from others."""
    rng = np.random.default_rng(0)
    narrow = decaying(12_000, 192)
    vectors = (narrow @ rng.standard_normal((192, 384)) / 14).astype(np.float32)
    index = index_of(vectors, Metric.INNER_PRODUCT)
    assert index.shortlist is not None
    assert index.shortlist.codes.cut
    every = LiveBitmap.from_mask(np.ones(12_000, dtype=np.bool_))
    assert hits_of(index, vectors[:40] + vectors[40:80], every, k=10) >= 0.995


@pytest.mark.parametrize("k", [1, 250, 506, 507, 3_000])
def test_many_of_many_rows_are_found(k: int) -> None:
    """Up to a k of 506 some rows lead."""
    index = index_of(decaying(12_000, 192), Metric.COSINE)
    queries = decaying(10, 192, seed=5)
    every = LiveBitmap.from_mask(np.ones(12_000, dtype=np.bool_))
    _, rows = index.search_shortlisted(queries, matching=every, k=k)
    assert all(len(set(row.tolist())) == k for row in rows)
    assert hits_of(index, queries, every, k=k) >= 0.995


def test_many_kinds_of_rows_are_not_cut() -> None:
    """A row is a few of many categories: most are untypical of the others."""
    rng = np.random.default_rng(0)
    kinds = np.minimum(rng.zipf(1.3, (20_000, 4)) - 1, 191)
    vectors = 0.01 * rng.standard_normal((20_000, 192)).astype(np.float32)
    np.put_along_axis(vectors, kinds, 1.0, axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:50] + vectors[50:100]
    index = index_of(vectors, Metric.COSINE)
    every = LiveBitmap.from_mask(np.ones(20_000, dtype=np.bool_))
    assert hits_of(index, queries, every, k=10) >= 0.99


@pytest.mark.parametrize("scale", [1e-37, 1e-24, 1e-12, 1.0, 1e12])
def test_the_length_of_a_query_changes_nothing(scale: float) -> None:
    index = index_of(decaying(10_000, 192), Metric.INNER_PRODUCT)
    queries = decaying(60, 192, seed=5) * np.float32(scale)
    every = LiveBitmap.from_mask(np.ones(10_000, dtype=np.bool_))
    assert hits_of(index, queries, every, k=10) >= 0.995


@pytest.mark.parametrize("k", [1, 10])
def test_no_answer_is_short_however_wrong_the_codes_are(k: int) -> None:
    """Components of few values round alike in every row: the errors add up beyond the slack."""
    rng = np.random.default_rng(0)
    kinds = rng.choice(np.array([0.4515, 1.0], dtype=np.float32), (160, 768))
    signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), (160, 768))
    vectors = np.repeat(kinds * signs, 50, axis=0)
    index = index_of(vectors, Metric.INNER_PRODUCT)
    every = LiveBitmap.from_mask(np.ones(8_000, dtype=np.bool_))
    assert hits_of(index, vectors[::200].copy(), every, k=k) >= 0.95


def test_codes_are_cut_only_where_few_directions_hold_nearly_everything() -> None:
    equal = np.ones((9_000, 192), dtype=np.float32)
    for vectors in (unit_vectors(9_000, 192), decaying(4_000, 192), equal):
        for l2 in (False, True):
            assert widths_of(row_codes.RowCodes(vectors, l2=l2)) == [192]


def test_the_worked_example_of_the_manual() -> None:
    """docs/internals/codes.md: components 0 and 64 of a row, and the first byte of two planes."""
    part = np.zeros((1, 128), dtype=np.float32)
    part[0, [0, 64, 127]] = 0.037, -0.030, 0.119
    codes, scales = row_codes._encoded(part, row_codes.NIBBLES_CODE_MAX)
    assert codes[0, [0, 64]].tolist() == [37, -30]
    assert float(scales[0]) == pytest.approx(0.001)
    first_bytes = [
        int(row_codes._packed(row_codes._nibbles(codes, kind)).view(np.uint8)[0, 0])
        for kind in (HIGH, LOW)
    ]
    assert first_bytes == [106, 173]


@pytest.mark.skipif(not byte_products.HAS_VNNI, reason="the processor has no AVX-512 VNNI")
@pytest.mark.parametrize("width", [64, 128, 384])
def test_products_of_sixteen_rows_equal_those_of_the_plain_loop(width: int) -> None:
    rng = np.random.default_rng(width)
    extremes = np.array([-row_codes.QUERY_CODE_MAX, row_codes.QUERY_CODE_MAX], dtype=np.int16)
    codes = rng.integers(-127, 128, (40, width)).astype(np.int8)
    codes[3, :2], codes[7], codes[8] = (-127, 127), -127, 127
    rows = rng.permutation(40).astype(np.int32)
    zero, start, wide = np.uint64(0), np.uint64(5), np.uint64(width)
    for halves in (False, True):
        dimension = 2 * width if halves else width
        random = rng.integers(extremes[0], extremes[1] + 1, (5, dimension)).astype(np.int16)
        for asked in (*random, np.resize(extremes, dimension), np.zeros(dimension, np.int16)):
            high = (asked.astype(np.int32) + 128) >> 8
            parts = np.concatenate([high, asked - (high << 8)]).astype(np.int8)
            found = np.zeros(20, dtype=np.int32)
            at_once = HALF_PRODUCTS if halves else WHOLE_PRODUCTS
            low, at = np.uint64(dimension), np.uint64(2)
            at_once(codes.reshape(-1), zero, rows, start, parts, zero, low, wide, found, at)
            assert not found[:2].any()
            assert not found[18:].any()
            one = byte_products.nibble_product if halves else byte_products.whole_product
            for place, row in enumerate(rows[5:21].tolist()):
                plain = one(codes.reshape(-1), np.uint64(row * width), asked, zero, wide)
                excess = 0 if halves else 128 * int(asked.sum(dtype=np.int64))
                assert np.int64(found[2 + place] - excess).astype(np.int32) == plain
                lines = codes[row].view(np.uint8).reshape(-1, 1, 64)
                stored = np.concatenate([lines & 15, lines >> 4], axis=1) if halves else codes[row]
                assert plain == int(stored.reshape(-1).astype(np.int64) @ asked.astype(np.int64))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 400),
    dimension=st.integers(1, 40),
    k=st.integers(1, 30),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(["normal", "outlier", "equal", "zero", "offset", "tiny", "huge"]),
)
def test_any_vectors(
    seed: int, rows: int, dimension: int, k: int, metric: Metric, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, dimension)).astype(np.float32)
    if kind == "outlier":
        vectors[:, 0] *= 1_000
    elif kind == "equal":
        vectors[: rows // 2 + 1] = vectors[0]
    elif kind == "zero":
        vectors[rng.random(rows) < 0.5] = 0
    elif kind == "offset":
        vectors += 50
    elif kind in ("tiny", "huge"):
        vectors *= np.float32(1e-15 if kind == "tiny" else 1e15)
    index = index_of(vectors, metric)
    queries = vectors[rng.integers(0, rows, 3)] + np.float32(vectors.std() * 0.1)
    matching = LiveBitmap.from_mask(rng.random(rows) < 0.7)
    truth, _ = index.search_matching(queries, matching=matching, k=k)
    found, _ = index.search_shortlisted(queries, matching=matching, k=k)
    scale = np.abs(truth[np.isfinite(truth)]).max(initial=0.0)
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=float(scale) * 1e-5)


def test_without_codes_floats_are_compared() -> None:
    index = build_flat(unit_vectors(100, 8), metric=Metric.COSINE)
    assert index.shortlist is None
    assert_same(
        index, unit_vectors(3, 8, seed=1), LiveBitmap.from_mask(np.ones(100, np.bool_)), k=10
    )
    assert_same(index, unit_vectors(3, 8, seed=1), LiveBitmap.from_mask(np.zeros(100, bool)), k=10)


def test_wrong_shapes_are_refused() -> None:
    index = index_of(unit_vectors(100, 8), Metric.COSINE)
    every = LiveBitmap.from_mask(np.ones(100, np.bool_))
    with pytest.raises(ValueError, match="not contiguous float32"):
        index.search_shortlisted(unit_vectors(3, 9), matching=every, k=10)
    other = LiveBitmap.from_mask(np.ones(99, np.bool_))
    with pytest.raises(ValueError, match="bitmap of 99 rows"):
        index.search_shortlisted(unit_vectors(3, 8), matching=other, k=10)


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("rows", [500, row_codes.AXES_ROWS])
def test_codes_take_no_more_memory_than_is_reckoned_with(rows: int, l2: bool) -> None:
    codes = row_codes.RowCodes(decaying(rows, 256), l2=l2)
    assert len(codes.norms) == (rows if l2 else 0)
    assert 0.95 < codes.size_bytes / row_codes.size_bytes_max(rows, 256, l2=l2) <= 1.0


def test_the_book_makes_codes_within_its_memory_and_gives_it_back() -> None:
    maker = CodeMaker(bytes_max=25_000, offer=do_now)
    first, second = (
        build_flat(unit_vectors(1_000, 16), metric=Metric.COSINE),
        build_flat(unit_vectors(1_000, 16), metric=Metric.COSINE),
    )
    maker.request(first)
    assert first.shortlist is not None
    assert maker.size_bytes == first.shortlist_bytes == first.shortlist.size_bytes
    maker.request(second)
    assert second.shortlist is None
    del first
    gc.collect()
    assert maker.size_bytes == 0
    maker.request(second)
    assert second.shortlist is not None


def test_codes_that_cannot_be_made_are_not_tried_again() -> None:
    offered: list[str] = []

    def fail(work: Work[None], *, name: str) -> bool:
        offered.append(name)
        return True

    maker = CodeMaker(bytes_max=1 << 20, offer=fail)
    index = build_flat(unit_vectors(1_000, 16), metric=Metric.COSINE)
    maker.request(index)
    maker.request(index)
    assert offered == ["making codes"]


def test_a_yield_point_ends_making_codes() -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    index = build_flat(unit_vectors(1_000, 16), metric=Metric.COSINE)
    with pytest.raises(Enough):
        index.make_shortlist(stop)
    assert index.shortlist is None
