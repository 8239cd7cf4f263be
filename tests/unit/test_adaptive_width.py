"""Walks whose width adapts to the query: the rule, its calibration, and what a node makes of it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.compactor.build import reaches
from annheal.compactor.build.calibrate import measure_recall
from annheal.compactor.build.recalls import best_scores, recalls_of
from annheal.index import (
    RATIO_MAX,
    WIDTH_TIMES_MAX,
    LiveBitmap,
    Reach,
    VectorIndex,
    WalkCosts,
    build_flat,
    build_hnsw,
    quantized,
    squared_distances,
    warm_up,
)
from annheal.index.walk.walk_layout import ENTRY, TOP_LEVEL, WIDTHS
from annheal.model.collection import IndexSettings, Metric, ModelSpec, VectorStorage
from annheal.model.search import SearchOptions
from annheal.model.topology.manifest import IndexKind, SegmentEntry
from annheal.segment import BuildInfo, DeleteVector, RecallPoint
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.planner import PlanKind, QueryFacts, SegmentFacts, plan_segment
from annheal.shard_node.search.recall_curves import choose_reach
from annheal.shard_node.search.searcher import Searcher
from tests.support.compaction import collection
from tests.support.segments import open_local, sample_rows, write_sample

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

ROWS, DIMENSION_SMALL, K = 4_000, 16, 10
Vectors = npt.NDArray[np.float32]
CURVE = (
    RecallPoint(10, 16, 0.90, visited=300, reach=1.02),
    RecallPoint(10, 32, 0.97, visited=500, reach=1.04),
    RecallPoint(10, 64, 0.99, visited=900, reach=1.06),
)


@dataclass(frozen=True, slots=True)
class PointWithoutReach:
    """`RecallPoint` as the last release has it."""

    k: int
    ef: int
    recall: float
    error: float = 0.0
    band: str = ""
    far: bool = False
    selector: bool = False
    visited: float = 0.0
    checked: float = 0.0


FACTS = SegmentFacts(
    index_kind=IndexKind.HNSW,
    rows=100_000,
    allowed=100_000,
    curve=CURVE,
    costs=WalkCosts(exact_row_ns=70.0, walk_row_ns=160.0, check_ns=2.0, call_ns=10_000.0),
    walk_ready=True,
)
GOAL = QueryFacts(k=10, objective=0.95)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm_up()


def clustered(rows: int, *, seed: int, metric: Metric = Metric.COSINE) -> Vectors:
    """Return rows of clusters that are dense and sparse: queries differ in how hard they are."""
    shape, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centres = shape.standard_normal((40, DIMENSION_SMALL))
    spreads = shape.uniform(0.2, 1.5, 40)
    cluster = rng.integers(0, 40, rows)
    noise = rng.standard_normal((rows, DIMENSION_SMALL)) * spreads[cluster][:, np.newaxis]
    values = centres[cluster] + noise
    if metric is Metric.COSINE:
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(values, dtype=np.float32)


def hnsw(vectors: Vectors, metric: Metric = Metric.COSINE) -> VectorIndex:
    weak = IndexSettings(m=6, ef_construction=30)
    return build_hnsw(vectors, metric=metric, settings=weak, threads=1)


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    return hnsw(clustered(ROWS, seed=1))


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return clustered(300, seed=2)


def reference(
    index: VectorIndex, query: Vectors, *, ef: int, reach: Reach, dead: Sequence[int] = ()
) -> tuple[list[int], int]:
    """Return the best `K` rows and the number of rows compared, by the rule read literally.

    Best first, every row within reach is expanded; at least a quarter of `ef` rows of the beam are,
    and at most four times `ef`. `dead` rows have no rank and are not returned.
    """
    graph = index._graph
    assert graph is not None
    layout = graph.layout
    rows = index.vectors.astype(np.float64)
    wide = query.astype(np.float64)
    apart = np.sqrt(((rows - wide) ** 2).sum(axis=1))

    def links(row: int, level: int) -> list[int]:
        first = int(graph.offsets[row])
        low, high = int(layout[WIDTHS + level]), int(layout[WIDTHS + level + 1])
        return [int(v) for v in graph.neighbors[first + low : first + high] if v >= 0]

    current, compared = int(layout[ENTRY]), 1
    for level in range(int(layout[TOP_LEVEL]), 0, -1):
        moved = True
        while moved:
            moved = False
            near = links(current, level)
            compared += len(near)
            for v in near:
                if apart[v] < apart[current]:
                    current, moved = v, True
    seen, waiting, beam = {current}, [(apart[current], current)], [(apart[current], current)]
    without_rank = frozenset(dead)
    while waiting:
        distance, row = heapq.heappop(waiting)
        place = next(i for i, (d, v) in enumerate(beam) if (d, v) >= (distance, row))
        ranked = [i for i, (_, v) in enumerate(beam) if v not in without_rank]
        kth = beam[ranked[reach.rank - 1]][0] if len(ranked) >= reach.rank else np.inf
        least = max(reach.rank, K)
        enough = ranked[least - 1] + 1 if len(ranked) >= least else len(rows)
        floor = max(ef // WIDTH_TIMES_MAX, enough)
        beyond = place >= floor and distance > reach.ratio * kth
        if beyond or place >= ef * WIDTH_TIMES_MAX:
            break
        fresh = [v for v in links(row, 0) if v not in seen]
        compared += len(fresh)
        seen.update(fresh)
        for v in fresh:
            heapq.heappush(waiting, (apart[v], v))
            beam.append((apart[v], v))
        beam.sort()
    return [row for _, row in beam if row not in without_rank][:K], compared


@pytest.mark.parametrize("dead_share", [0.0, 0.08, 0.4])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2], ids=str)
@pytest.mark.parametrize(("ef", "ratio"), [(8, 1.05), (32, 1.0), (32, 1.1), (24, 1.5), (40, 9.0)])
def test_the_kernel_does_what_the_rule_says(
    metric: Metric, ef: int, ratio: float, dead_share: float
) -> None:
    built = hnsw(clustered(1_500, seed=1, metric=metric), metric)
    asked = clustered(40, seed=2, metric=metric)
    reach = Reach(ratio, K)
    dead = np.flatnonzero(np.random.default_rng(3).random(1_500) < dead_share)
    mask = np.ones(1_500, dtype=np.bool_)
    mask[dead] = False
    live = LiveBitmap.from_mask(mask) if len(dead) else None
    walked = built.walk_adaptive(asked, k=K, ef=ef, reach=reach, live=live)
    different = 0
    for query, rows, visited in zip(asked, walked.rows, walked.visited, strict=True):
        best, compared = reference(built, query, ef=ef, reach=reach, dead=dead.tolist())
        different += best != rows[rows >= 0].tolist() or compared != visited
    # Distances are float32 in the kernel: rows on the very limit may be on its other side.
    assert different <= 1


def test_a_reach_without_end_is_a_walk_of_the_greatest_width(
    index: VectorIndex, queries: Vectors
) -> None:
    widest = index.walk_filtered(queries, k=K, ef=16 * WIDTH_TIMES_MAX, matching=None)
    walked = index.walk_adaptive(queries, k=K, ef=16, reach=Reach(RATIO_MAX, K))
    np.testing.assert_array_equal(walked.rows, widest.rows)
    np.testing.assert_array_equal(walked.visited, widest.visited)


def test_a_reach_of_one_is_a_walk_of_the_least_width(index: VectorIndex, queries: Vectors) -> None:
    narrow = index.walk_filtered(queries, k=K, ef=20, matching=None)
    walked = index.walk_adaptive(queries, k=K, ef=20 * WIDTH_TIMES_MAX, reach=Reach(1.0, K))
    np.testing.assert_array_equal(walked.rows, narrow.rows)
    np.testing.assert_array_equal(walked.visited, narrow.visited)


@settings(max_examples=30, deadline=None)
@given(
    ef=st.integers(1, 80),
    ratio=st.floats(1.0, 1.6),
    more=st.floats(0.0, 0.5),
    k=st.integers(1, 30),
)
def test_a_longer_reach_never_finds_less(
    index: VectorIndex, queries: Vectors, ef: int, ratio: float, more: float, k: int
) -> None:
    few = queries[:30]
    short = index.walk_adaptive(few, k=k, ef=ef, reach=Reach(ratio, k))
    long = index.walk_adaptive(few, k=k, ef=ef, reach=Reach(ratio + more, k))
    assert (long.visited >= short.visited).all()
    assert (long.scores >= short.scores).all()
    assert ((short.rows >= 0).sum(axis=1) == k).all()


@pytest.mark.parametrize("storage", [VectorStorage.FP16, VectorStorage.INT8], ids=str)
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2], ids=str)
def test_quantized_vectors_have_the_same_widths(storage: VectorStorage, metric: Metric) -> None:
    vectors = clustered(ROWS, seed=1, metric=metric)
    full = hnsw(vectors, metric)
    lossy = quantized(full, storage=storage, sample=vectors)
    asked, reach = clustered(100, seed=3, metric=metric), Reach(1.15, K)
    # The quantized walk returns more rows than K, from which the best are chosen: no floor below.
    theirs = lossy.walk_adaptive(asked, k=K, ef=80, reach=reach)
    ours = full.walk_adaptive(asked, k=K, ef=80, reach=reach)
    assert theirs.visited.mean() == pytest.approx(ours.visited.mean(), rel=0.02)
    assert np.corrcoef(theirs.visited, ours.visited)[0, 1] > 0.98
    np.testing.assert_allclose(theirs.scores[:, 0], ours.scores[:, 0], rtol=1e-3, atol=1e-3)


def test_what_has_no_distances_does_not_adapt(queries: Vectors) -> None:
    vectors = clustered(500, seed=1)
    for other in (hnsw(vectors, Metric.INNER_PRODUCT), build_flat(vectors, metric=Metric.COSINE)):
        assert not other.can_adapt
        with pytest.raises(ValueError, match="do not adapt"):
            other.walk_adaptive(queries, k=K, ef=16, reach=Reach(1.1, K))
    with pytest.raises(ValueError, match="not distances"):
        squared_distances(np.zeros(1), metric=Metric.INNER_PRODUCT)
    for ratio, rank in [(0.99, 10), (float("nan"), 10), (RATIO_MAX * 2, 10), (1.1, 0)]:
        with pytest.raises(ValueError, match="a reach of"):
            Reach(ratio, rank)


def measured(
    index: VectorIndex, probes: Vectors, patch: pytest.MonkeyPatch
) -> Sequence[RecallPoint]:
    patch.setattr(reaches, "has_bands", lambda rows: True)
    return [point for point in measure_recall(index, probes, k=K) if point.k == K]


def test_the_calibrated_reach_has_the_recall_of_the_width_with_fewer_rows(
    index: VectorIndex, queries: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = measured(index, clustered(600, seed=7), monkeypatch)
    truth = best_scores(index, queries, k=K)
    chosen = [point for point in points if point.reach and point.ef >= 24]
    assert len(chosen) >= 3
    assert [p.reach for p in chosen] == sorted(p.reach for p in chosen)
    compared = []
    for point in chosen:
        reach = Reach(point.reach, K)
        adaptive = index.walk_adaptive(queries, k=K, ef=point.ef, reach=reach)
        uniform = index.walk_filtered(queries, k=K, ef=point.ef, matching=None)
        found = recalls_of(adaptive.scores, truth).mean()
        assert found >= recalls_of(uniform.scores, truth).mean() - 0.015, point
        compared.append(adaptive.visited.mean() / uniform.visited.mean())
    # Each reach is measured with few queries, other than these.
    assert max(compared) < 1.05
    assert np.mean(compared) < 0.95


def test_small_graphs_and_inner_products_have_no_reach(
    index: VectorIndex, queries: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(point.reach for point in measure_recall(index, queries, k=K))
    products = hnsw(clustered(1_000, seed=1), Metric.INNER_PRODUCT)
    assert not any(point.reach for point in measured(products, queries, monkeypatch))


def test_a_reach_lies_between_the_measured_ones() -> None:
    found = [choose_reach(CURVE, k=10, ef=ef) for ef in (16, 32, 45, 64, 128)]
    assert [reach and round(reach.ratio, 3) for reach in found] == [1.02, 1.04, 1.05, 1.06, 1.08]
    assert choose_reach(CURVE, k=3, ef=32) == Reach(1.04, 10)
    assert choose_reach(CURVE, k=11, ef=32) is None  # measured for no such k
    of_1 = RecallPoint(1, 32, 0.98, visited=500)  # recall@1 has no reach of its own
    assert choose_reach([of_1, *CURVE], k=1, ef=32) == Reach(1.04, 10)
    of_100 = (RecallPoint(100, 128, 0.95, reach=1.02), RecallPoint(100, 256, 0.98, reach=1.03))
    assert choose_reach([*CURVE, *of_100], k=30, ef=128) == Reach(1.02, 100)
    assert choose_reach([*CURVE, *of_100], k=30, ef=64) is None
    assert choose_reach(CURVE, k=10, ef=15) is None
    assert choose_reach(CURVE[:1], k=10, ef=16) is None
    assert choose_reach([replace(p, reach=0.0) for p in CURVE], k=10, ef=32) is None


def test_only_a_query_without_an_ef_adapts_where_every_row_may_be_returned() -> None:
    facts, wanted = FACTS, GOAL
    plan = plan_segment(facts, wanted)
    assert plan.reach == choose_reach(CURVE, k=10, ef=plan.ef)
    assert plan.reach is not None
    assert plan_segment(facts, replace(wanted, ef=32)).reach is None
    assert plan_segment(replace(facts, walk_ready=False), wanted).reach is None
    filtered = replace(wanted, filtered=True)
    assert plan_segment(replace(facts, allowed=99_999), filtered).reach is None


@pytest.mark.parametrize(("allowed", "ef"), [(99_999, 31), (91_000, 33)])
def test_walks_past_few_dead_rows_are_wider_and_have_the_same_reach(allowed: int, ef: int) -> None:
    facts = FACTS
    whole, some = plan_segment(facts, GOAL), plan_segment(replace(facts, allowed=allowed), GOAL)
    assert (whole.ef, whole.kind) == (30, PlanKind.GRAPH)
    assert (some.kind, some.ef) == (PlanKind.GRAPH, ef)
    assert some.reach is not None
    assert whole.reach is not None
    assert some.reach.ratio == pytest.approx(whole.reach.ratio, abs=0.002)
    assert plan_segment(replace(facts, allowed=89_000), GOAL).reach is None


def test_a_node_holds_the_objective_with_fewer_rows(
    tmp_path: Path, queries: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSpec("small", DIMENSION_SMALL, Metric.COSINE)
    rows = replace(sample_rows(ROWS, model=model), vectors=clustered(ROWS, seed=1))
    built = hnsw(rows.vectors)
    curve = tuple(measured(built, clustered(600, seed=7), monkeypatch))
    build = BuildInfo(settings=IndexSettings(), recall_curve=curve)
    entry = write_sample(tmp_path, rows=rows, model=model, index=built, build=build)
    segment = open_local(tmp_path, entry)
    assert segment.recall_curve == curve  # the reaches are stored
    view = ShardView(segments=(SegmentView(segment, DeleteVector.empty(ROWS)),))
    truth = best_scores(segment.index, queries, k=K)

    def asked(scale: float, ef: int | None = None) -> tuple[float, int, int]:
        options = SearchOptions(k=K, ef=ef, explain=True)
        searcher = Searcher(collection(model=model), FilterCache(), ef_scale=lambda *_: scale)
        answer = searcher.search([(0, view)], queries, options)
        (explained,) = answer.explain
        assert explained.plan == "graph"
        found = answer.scores.reshape(len(queries), K)
        return recalls_of(found, truth).mean(), explained.visited, explained.ef

    recall, visited, ef = asked(1.0)
    assert recall >= 0.95
    own = segment.index.walk_filtered(queries, k=K + 1, ef=ef, matching=None)
    assert visited < own.visited.sum()
    assert asked(1.0, ef=ef)[0] == pytest.approx(recalls_of(own.scores[:, :K], truth).mean())
    # The controller of ef raises the reach as it raises ef.
    wider_recall, wider_visited, wider_ef = asked(2.0)
    assert wider_ef == 2 * ef
    reach = choose_reach(curve, k=K, ef=ef)
    assert reach is not None
    same_reach = segment.index.walk_adaptive(queries, k=K + 1, ef=wider_ef, reach=reach)
    assert wider_visited > 1.1 * max(visited, same_reach.visited.sum())
    assert wider_recall >= recall


@pytest.mark.parametrize("where", ["anywhere", "nearest"])
def test_a_node_holds_the_objective_past_dead_rows(
    where: str, tmp_path: Path, queries: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead rows are `anywhere`, or the `nearest` of some queries."""
    model = ModelSpec("small", DIMENSION_SMALL, Metric.COSINE)
    vectors = clustered(ROWS, seed=1)
    rows = replace(sample_rows(ROWS, model=model), vectors=vectors)
    built = hnsw(vectors)
    curve = tuple(measured(built, clustered(600, seed=7), monkeypatch))
    build = BuildInfo(settings=IndexSettings(), recall_curve=curve)
    entry = write_sample(tmp_path, rows=rows, model=model, index=built, build=build)
    segment = open_local(tmp_path, entry)
    dead = np.random.default_rng(5).choice(ROWS, ROWS // 14, replace=False)
    if where == "nearest":
        dead = np.unique(built.search(queries[:7], k=40, exact=True)[1])
    deletes = DeleteVector.empty(ROWS).with_dead(dead)
    view = ShardView(segments=(SegmentView(segment, deletes),))
    asked = queries[:7] if where == "nearest" else queries
    searcher = Searcher(collection(model=model), FilterCache())
    answer = searcher.search([(0, view)], asked, SearchOptions(k=K, explain=True))
    (explained,) = answer.explain
    assert explained.plan == "graph"
    truth = segment.index.search(asked, k=K, exact=True, live=deletes.live)[0]
    found = answer.scores.reshape(len(asked), K)
    assert recalls_of(found, truth).mean() >= 0.95
    uniform = segment.index.walk_filtered(asked, k=K + 1, ef=explained.ef, matching=None)
    assert where == "nearest" or explained.visited < uniform.visited.sum()


def test_segments_of_the_last_release_are_read_and_it_reads_those_of_this_one() -> None:
    golden = Path(__file__).parents[1] / "golden" / "segment-v1"
    entry = msgspec.json.decode((golden / "entry.json").read_bytes(), type=SegmentEntry)
    old = open_local(golden, entry).recall_curve
    assert [point.reach for point in old] == [0.0, 0.0]
    assert choose_reach(old, k=10, ef=32) is None
    point = CURVE[0]
    read = msgspec.json.decode(msgspec.json.encode(point), type=PointWithoutReach)
    assert asdict(read) == {name: getattr(point, name) for name in asdict(read)}
