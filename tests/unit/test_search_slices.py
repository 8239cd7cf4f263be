"""Searches in slices: the same answers, and a yield point every few milliseconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from annheal.index import (
    LiveBitmap,
    VectorIndex,
    build_flat,
    build_hnsw,
    set_search_threads,
    warm_up,
)
from annheal.model.collection import IndexSettings, Metric
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.search import slices
from annheal.shard_node.search import threads as threads_module
from annheal.shard_node.search.planner import PlanKind, SegmentPlan
from annheal.shard_node.search.run_plan import run_plan
from annheal.shard_node.search.threads import SearchThreads
from tests.support.segments import unit_vectors

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(600)

ROWS, DIMENSION, K = 3_001, 16, 10
WITH_LIVE = (
    SegmentPlan(PlanKind.SCAN),
    SegmentPlan(PlanKind.ROWS),
    SegmentPlan(PlanKind.SHORTLIST, by_codes=True),
    SegmentPlan(PlanKind.IN_GRAPH, 64, ef_far=64, work_max=100_000),
    SegmentPlan(PlanKind.SELECTOR, 128),
)
WITHOUT = (SegmentPlan(PlanKind.SCAN), SegmentPlan(PlanKind.GRAPH, 64))


def names(rows: npt.NDArray[np.int64]) -> list[str]:
    return [f"{row:06d}" for row in rows.tolist()]


class Stop(Exception):
    """Raised by a yield point."""


@pytest.fixture(scope="module", params=[Metric.COSINE, Metric.L2])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    warm_up()
    vectors = unit_vectors(ROWS, DIMENSION)
    built = build_hnsw(vectors, metric=request.param, settings=IndexSettings(), threads=1)
    built.make_shortlist()
    return built


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_COMPARISONS", 500)
    monkeypatch.setattr(slices, "SCAN_ROWS_MIN", 64)
    monkeypatch.setattr(threads_module, "SLICE_ROWS_MIN", 64)
    monkeypatch.setattr("annheal.shard_node.search.run_plan.SLICE_EF", 128)
    monkeypatch.setattr(threads_module, "SLICE_CODES", 3_000)


def plans() -> list[tuple[SegmentPlan, bool]]:
    return [(plan, True) for plan in WITH_LIVE] + [(plan, False) for plan in WITHOUT]


def live_rows() -> LiveBitmap:
    return LiveBitmap.from_mask(np.random.default_rng(3).random(ROWS) < 0.6)


@pytest.mark.parametrize(("plan", "limited"), plans())
@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_slices_change_no_answer(
    index: VectorIndex,
    plan: SegmentPlan,
    limited: bool,
    queries: int,
    threads: int,
    request: pytest.FixtureRequest,
) -> None:
    asked = unit_vectors(queries, DIMENSION, seed=9)
    live = live_rows() if limited else None
    whole = run_plan(index, plan, asked, k=K, live=live, ids_at=names)
    request.getfixturevalue("small_slices")
    calls: list[None] = []
    ran = run_plan(
        index,
        plan,
        asked,
        k=K,
        live=live,
        ids_at=names,
        threads=SearchThreads(threads),
        yield_point=lambda: calls.append(None),
    )
    np.testing.assert_allclose(ran.hits[0], whole.hits[0], rtol=1e-5)
    np.testing.assert_array_equal(ran.hits[1], whole.hits[1])
    assert (ran.visited, ran.repeated) == (whole.visited, whole.repeated)
    walks = plan.kind in (PlanKind.GRAPH, PlanKind.IN_GRAPH, PlanKind.SELECTOR)
    one_slice = queries == 1 and (walks or plan.kind is PlanKind.SHORTLIST)
    assert len(calls) > 1 or one_slice


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(("plan", "limited"), plans())
def test_what_a_yield_point_raises_ends_the_search(
    index: VectorIndex, plan: SegmentPlan, limited: bool
) -> None:
    asked = unit_vectors(20, DIMENSION, seed=9)
    calls = 0

    def stop_at_second() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stop

    with pytest.raises(Stop):
        run_plan(
            index,
            plan,
            asked,
            k=K,
            live=live_rows() if limited else None,
            ids_at=names,
            yield_point=stop_at_second,
        )
    assert calls == 2


@pytest.mark.parametrize("metric", [Metric.INNER_PRODUCT, Metric.L2])
def test_scan_compares_the_rows_asked_for(metric: Metric) -> None:
    vectors = unit_vectors(100, DIMENSION)
    flat = build_flat(vectors, metric=metric)
    live = LiveBitmap.from_mask(np.arange(100) % 3 != 0)
    for between in (range(100), range(8, 31), range(96, 100), range(40, 40)):
        for bitmap in (None, live):
            scores, rows = flat.scan(vectors[:5], k=4, row_range=between, live=bitmap)
            allowed = np.zeros(100, dtype=np.bool_)
            allowed[between.start : between.stop] = True
            if bitmap is not None:
                allowed &= bitmap.mask()
            expected = flat.search(vectors[:5], k=4, live=LiveBitmap.from_mask(allowed), exact=True)
            np.testing.assert_array_equal(rows, expected[1])
            np.testing.assert_allclose(scores, expected[0], atol=1e-5)
    for wrong in (range(4, 20), range(101), range(0, 16, 2)):
        with pytest.raises(ValueError, match="of 100 rows"):
            flat.scan(vectors[:1], k=1, row_range=wrong)


def longest_gap_s(work: Callable[[Callable[[], None]], object]) -> float:
    """Return the longest time of this thread's CPU between two yield points, start and end too."""
    marks = [time.thread_time()]
    work(lambda: marks.append(time.thread_time()))
    marks.append(time.thread_time())
    return max(later - earlier for earlier, later in itertools.pairwise(marks))


def test_a_large_exact_search_is_never_long_without_a_yield_point() -> None:
    set_search_threads(1)
    vectors = unit_vectors(40_000, 128)
    flat = build_flat(vectors, metric=Metric.COSINE)
    live = LiveBitmap.from_mask(np.random.default_rng(3).random(len(vectors)) < 0.6)
    queries = np.ascontiguousarray(vectors[:400])
    scan, rows = SegmentPlan(PlanKind.SCAN), SegmentPlan(PlanKind.ROWS)
    for plan, bitmap in ((scan, None), (scan, live), (rows, live)):
        gap_s = longest_gap_s(
            lambda yield_point, plan=plan, bitmap=bitmap: run_plan(  # type: ignore[misc]
                flat, plan, queries, k=10, live=bitmap, ids_at=names, yield_point=yield_point
            )
        )
        assert gap_s < 0.05, (plan.kind, gap_s)


def test_growing_rows_are_compared_by_blocks_of_queries() -> None:
    vectors = unit_vectors(30_000, 32)
    view = GrowingView(
        number=0,
        vectors=vectors,
        ids=[],
        newest={},
        sequences=np.zeros(len(vectors), dtype=np.int64),
        parts=(),
        rows=len(vectors),
        dead=None,
        dead_count=0,
    )
    calls: list[None] = []
    found = view.search(
        vectors[:100],
        k=1,
        metric=Metric.COSINE,
        allowed=None,
        yield_point=lambda: calls.append(None),
    )
    assert found[1][:, 0].tolist() == list(range(100))
    assert len(calls) >= 10
