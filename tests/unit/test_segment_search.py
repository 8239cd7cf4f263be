"""Plans carried out on one segment: every way agrees with comparing, and falls back to it."""

from __future__ import annotations

import numpy as np
import pytest

from annheal.index import LiveBitmap, VectorIndex, build_hnsw, warm_up
from annheal.model.collection import IndexSettings, Metric
from annheal.shard_node.search import run_plan as run_plan_module
from annheal.shard_node.search import threads as threads_module
from annheal.shard_node.search.planner import PlanKind, SegmentPlan
from annheal.shard_node.search.run_plan import run_plan
from annheal.shard_node.search.threads import SearchThreads
from tests.support.segments import unit_vectors

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

ROWS, K = 3_000, 10
WALKS = (
    SegmentPlan(PlanKind.SELECTOR, 400, 0, visited=900),
    SegmentPlan(PlanKind.SELECTOR, 400, 400, visited=900),
    SegmentPlan(PlanKind.SELECTOR, 400, 0, visited=900, by_codes=True, far_check=True),
    SegmentPlan(PlanKind.IN_GRAPH, 400, 0),
    SegmentPlan(PlanKind.IN_GRAPH, 400, 400, work_max=1_000_000),
)
COMPARISONS = (SegmentPlan(PlanKind.ROWS), SegmentPlan(PlanKind.SHORTLIST, by_codes=True))


def names(rows: np.ndarray) -> list[str]:
    return [f"{row:05d}" for row in rows.tolist()]


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    warm_up()
    vectors = unit_vectors(ROWS, 8)
    built = build_hnsw(vectors, metric=Metric.COSINE, settings=IndexSettings(), threads=1)
    built.make_shortlist()
    return built


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return unit_vectors(8, 8, seed=77)


@pytest.mark.parametrize("plan", [*WALKS, *COMPARISONS, SegmentPlan(PlanKind.SCAN)])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
def test_every_plan_finds_the_best_of_the_allowed(
    index: VectorIndex, queries: np.ndarray, plan: SegmentPlan, share: float
) -> None:
    live = LiveBitmap.from_mask(np.random.default_rng(3).random(ROWS) < share)
    truth = index.search(queries, k=K, live=live, exact=True)
    ran = run_plan(index, plan, queries, k=K, live=live, ids_at=names)
    same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ran.hits[1], truth[1], strict=True)])
    assert same >= 0.98 * K
    assert live.contains(ran.hits[1].ravel()).all()
    assert (np.diff(ran.hits[0], axis=1) <= 0).all()
    assert ran.visited > 0


@pytest.mark.parametrize("plan", [*WALKS, *COMPARISONS])
def test_threads_change_nothing(
    index: VectorIndex, plan: SegmentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "PART_COMPARISONS_MIN", 100)
    monkeypatch.setattr(threads_module, "PART_CODES_MIN", 100)
    many = unit_vectors(23, 8, seed=5)
    for share in (0.9, 0.2, 0.004):
        live = LiveBitmap.from_mask(np.random.default_rng(8).random(ROWS) < share)
        for queries in (many, many[:1]):
            alone = run_plan(index, plan, queries, k=K, live=live, ids_at=names)
            shared = run_plan(
                index, plan, queries, k=K, live=live, ids_at=names, threads=SearchThreads(4)
            )
            np.testing.assert_allclose(shared.hits[0], alone.hits[0], rtol=1e-5)
            np.testing.assert_array_equal(shared.hits[1], alone.hits[1])
            assert (shared.visited, shared.repeated) == (alone.visited, alone.repeated)


def test_a_failing_part_fails_the_whole() -> None:
    def run(part: int) -> int:
        if part == 2:
            raise ValueError("part 2")
        return part * 10

    threads = SearchThreads(2)
    assert threads.run([1, 3, 4], run) == [10, 30, 40]
    with pytest.raises(ValueError, match="part 2"):
        threads.run([1, 2, 3], run)
    with pytest.raises(ValueError, match="part 2"):
        threads.run([2, 1], run)


@pytest.mark.parametrize("plan", WALKS)
def test_rows_far_from_the_query_are_found(
    index: VectorIndex, queries: np.ndarray, plan: SegmentPlan
) -> None:
    query = queries[:1]
    farthest = np.argsort(index.vectors @ query[0])[: ROWS // 4]
    live = LiveBitmap.from_rows(farthest.astype(np.int64), rows=ROWS)
    truth = index.search(query, k=K, live=live, exact=True)
    ran = run_plan(index, plan, query, k=K, live=live, ids_at=names)
    assert len(np.intersect1d(ran.hits[1], truth[1])) >= 9


@pytest.mark.parametrize("plan", WALKS)
def test_fewer_than_k_only_where_fewer_match(
    index: VectorIndex, queries: np.ndarray, plan: SegmentPlan
) -> None:
    live = LiveBitmap.from_rows(np.array([5, 900, 2_000]), rows=ROWS)
    ran = run_plan(index, plan, queries, k=K, live=live, ids_at=names)
    assert (np.sort(ran.hits[1][:, :3], axis=1) == [5, 900, 2_000]).all()
    assert (ran.hits[1][:, 3:] == -1).all()


def test_a_walk_over_its_limit_of_work_is_answered_exactly(
    index: VectorIndex, queries: np.ndarray
) -> None:
    live = LiveBitmap.from_mask(np.arange(ROWS) % 3 == 0)
    plan = SegmentPlan(PlanKind.IN_GRAPH, 64, 64, work_max=1)
    ran = run_plan(index, plan, queries, k=K, live=live, ids_at=names)
    truth = index.search(queries, k=K, live=live, exact=True)
    assert ran.repeated == len(queries)
    np.testing.assert_array_equal(ran.hits[1], truth[1])


def test_the_plain_walk_is_believed_near_matches_only(
    index: VectorIndex, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    farthest = np.argsort(index.vectors @ queries[0])[: ROWS // 2]
    live = LiveBitmap.from_rows(farthest.astype(np.int64), rows=ROWS)
    plan = SegmentPlan(PlanKind.SELECTOR, 100, 0)
    assert run_plan(index, plan, queries[:1], k=K, live=live, ids_at=names).repeated == 1
    everywhere = LiveBitmap.from_mask(np.arange(ROWS) % 2 == 0)
    assert run_plan(index, plan, queries, k=K, live=everywhere, ids_at=names).repeated == 0
    monkeypatch.setattr(run_plan_module, "NEAR_SHARE", 2.1)
    assert run_plan(index, plan, queries, k=K, live=everywhere, ids_at=names).repeated == len(
        queries
    )


def test_a_plain_walk_that_finds_too_few_is_repeated_exactly() -> None:
    vectors = unit_vectors(2_000, 8)
    vectors[:1_000] = vectors[0]  # equal rows link to each other only
    index = build_hnsw(vectors, metric=Metric.L2, settings=IndexSettings(), threads=1)
    plan = SegmentPlan(PlanKind.GRAPH, 2_000, visited=2_000)
    assert (index.search(vectors[:1], k=2_000, ef=2_000)[1] < 0).any()
    ran = run_plan(index, plan, vectors[[0, 1_500]], k=2_000, live=None, ids_at=names)
    for rows in ran.hits[1]:
        assert sorted(rows.tolist()) == list(range(2_000))
    assert (np.diff(ran.hits[0], axis=1) <= 0).all()
    assert ran.repeated >= 1
