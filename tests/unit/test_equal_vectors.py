"""Groups of equal vectors: one row of each in the graph, and every live row in the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.compactor.build import base_plan
from annheal.compactor.build.build import BuildOrder, build_segment
from annheal.compactor.build.order import order_rows, vector_hashes, vector_labels
from annheal.compactor.fetch import Source
from annheal.errors import DataCorruption
from annheal.index import LiveBitmap, VectorIndex, add_copies, build_hnsw, load_mapped, warm_up
from annheal.index.carry.merge import unreachable_rows
from annheal.model.collection import (
    CollectionSettings,
    IndexSettings,
    Metric,
    ModelSpec,
    VectorStorage,
)
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.segment import DeleteVector, GraphKind, Segment
from annheal.shard_node.search.planner import PlanKind, SegmentPlan
from annheal.shard_node.search.run_plan import run_plan
from tests.support.compaction import collection
from tests.support.segments import open_local, sample_rows, write_sample

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

GROUPS, COPIES, OTHERS, DIMENSION, K = 30, 50, 2_600, 16, 10
ROWS = GROUPS * COPIES + OTHERS
MODEL = ModelSpec("test-model", DIMENSION, Metric.L2)
Vectors = npt.NDArray[np.float32]
PLANS = (
    SegmentPlan(PlanKind.GRAPH, 200, visited=900),
    SegmentPlan(PlanKind.SELECTOR, 400, 0, visited=900),
    SegmentPlan(PlanKind.SELECTOR, 400, 400, visited=900, far_check=True),
    SegmentPlan(PlanKind.IN_GRAPH, 300, 300),
    SegmentPlan(PlanKind.ROWS),
    SegmentPlan(PlanKind.SHORTLIST, by_codes=True),
    SegmentPlan(PlanKind.SCAN),
)


def grouped_vectors(seed: int) -> tuple[Vectors, Vectors]:
    """Return rows in a random order, a third of them in groups of equal ones, and queries."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((GROUPS, DIMENSION))
    others = rng.standard_normal((OTHERS, DIMENSION))
    vectors = np.concatenate([np.repeat(groups, COPIES, axis=0), others])
    near = groups + 0.1 * rng.standard_normal(groups.shape)
    queries = np.concatenate([near, rng.standard_normal((GROUPS, DIMENSION))])
    return vectors[rng.permutation(ROWS)].astype(np.float32), queries.astype(np.float32)


def source_of(
    directory: Path, vectors: Vectors, ids: Sequence[str], *, dead: npt.NDArray[np.int64]
) -> Source:
    rows = replace(
        sample_rows(len(ids), model=MODEL, schema=()),
        ids=pa.array(ids),
        vectors=vectors,
        attributes=pa.RecordBatch.from_arrays([], names=[]),
    )
    entry = write_sample(directory, segment_id=directory.name, rows=rows, model=MODEL, schema=())
    deletes = DeleteVector.empty(len(ids)).with_dead(dead)
    return Source(open_local(directory, entry), deletes)


def built(
    sources: Sequence[Source],
    directory: Path,
    *,
    storage: VectorStorage = VectorStorage.FLOAT32,
) -> Segment:
    settings = CollectionSettings(storage=storage)
    into = collection(model=MODEL, schema=(), settings=settings)
    order = BuildOrder(directory.name, Tier.WARM, into, 1, 1.0, lambda done: None)
    entry = build_segment(sources, order, directory=directory)
    assert entry is not None
    return open_local(directory, entry)


def ids_of(rng: np.random.Generator, rows: int = ROWS) -> list[str]:
    return [f"{number:05d}" for number in rng.permutation(rows)]


def recall_of(
    segment: Segment, plan: SegmentPlan, queries: Vectors, live: LiveBitmap | None
) -> npt.NDArray[np.float64]:
    """Return the share of the first K by (score, id) that `plan` finds, of each query."""
    index = segment.index
    every = np.tile(np.arange(index.rows), (len(queries), 1))
    scores = index.scores(queries, every)
    if live is not None:
        scores[:, ~live.mask()] = -np.inf
    ids = np.array(segment.ids.to_pylist())
    by_id = np.argsort(np.argsort(ids))
    truth = np.lexsort((np.broadcast_to(by_id, scores.shape), -scores), axis=1)[:, :K]
    ran = run_plan(index, plan, queries, k=K, live=live, ids_at=segment.ids_at)
    wanted = min(K, index.rows if live is None else live.count)
    same = [
        len(np.intersect1d(ours[:wanted], best[:wanted]))
        for ours, best in zip(ran.hits[1], truth, strict=True)
    ]
    for row_hits in ran.hits[1]:
        found = row_hits[row_hits >= 0]
        assert len(found) == wanted
        assert len(np.unique(found)) == wanted
        assert live is None or live.contains(found).all()
    return np.array(same) / wanted


@pytest.fixture(scope="module", params=[VectorStorage.FLOAT32, VectorStorage.INT8])
def segment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Segment:
    warm_up()
    vectors, _ = grouped_vectors(1)
    folder = tmp_path_factory.mktemp("grouped")
    ids = ids_of(np.random.default_rng(1))
    source = source_of(folder / "flat", vectors, ids, dead=np.empty(0, dtype=np.int64))
    segment = built([source], folder / "graph", storage=request.param)
    segment.index.make_shortlist()
    return segment


def test_a_graph_holds_each_vector_once(segment: Segment) -> None:
    assert (segment.kind, segment.rows) == (IndexKind.HNSW, ROWS)
    assert segment.index.graph_size == segment.meta.graph_rows == GROUPS + OTHERS
    assert segment.meta.format_version == 4
    assert not len(unreachable_rows(segment.index))
    assert len(set(segment.ids.to_pylist())) == ROWS


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_returns_the_live_rows_of_a_group(segment: Segment, plan: SegmentPlan) -> None:
    _, queries = grouped_vectors(1)
    rng = np.random.default_rng(7)
    copies = segment.index.rows - segment.index.graph_size
    lives = [LiveBitmap.from_mask(rng.random(ROWS) < share) for share in (0.9, 0.5, 0.02)]
    # Every row of the graph is dead, most copies live.
    dead_originals = np.arange(ROWS) >= segment.index.graph_size
    lives.append(LiveBitmap.from_mask(dead_originals))
    few = np.flatnonzero(dead_originals)[: copies // 40]
    lives.append(LiveBitmap.from_rows(few, rows=ROWS))
    for live in [None, *lives] if plan.kind is not PlanKind.GRAPH else [None]:
        if live is None and plan.kind not in (PlanKind.GRAPH, PlanKind.SCAN):
            continue
        recalls = recall_of(segment, plan, queries, live)
        assert recalls.mean() >= 0.97
        assert recalls.min() > 0.5


def test_hits_do_not_depend_on_k(segment: Segment) -> None:
    _, queries = grouped_vectors(1)
    live = LiveBitmap.from_mask(np.random.default_rng(2).random(ROWS) < 0.5)
    plan = SegmentPlan(PlanKind.ROWS)
    long = run_plan(segment.index, plan, queries, k=120, live=live, ids_at=segment.ids_at)
    for k in (1, 5, 49, 60):
        short = run_plan(segment.index, plan, queries, k=k, live=live, ids_at=segment.ids_at)
        np.testing.assert_array_equal(short.hits[1], long.hits[1][:, :k])
        np.testing.assert_array_equal(short.hits[0], long.hits[0][:, :k])


def test_a_copy_takes_the_place_of_a_dead_row_in_an_incremental_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up()
    monkeypatch.setattr(base_plan, "BASE_ROWS_MIN", 1_000)
    vectors, queries = grouped_vectors(4)
    ids = ids_of(np.random.default_rng(4), 2 * ROWS)
    nothing = np.empty(0, dtype=np.int64)
    first = built(
        [source_of(tmp_path / "flat", vectors, ids[:ROWS], dead=nothing)], tmp_path / "first"
    )
    # Of every group the row in the graph dies, of one group all rows; new copies come.
    size = first.index.graph_size
    originals = np.unique(first.index.originals(np.arange(size, ROWS)))
    gone = np.flatnonzero(first.index.originals(np.arange(ROWS)) == originals[0])
    dead = DeleteVector.empty(ROWS).with_dead(np.union1d(originals, gone))
    more = np.concatenate([vectors[:100], grouped_vectors(9)[0][:100]])
    added = source_of(tmp_path / "more", more, ids[ROWS : ROWS + 200], dead=nothing)
    merged = built([added, Source(first, dead)], tmp_path / "merged")
    assert merged.meta.build.graph.kind is GraphKind.INCREMENTAL
    expected = {first.ids[row].as_py() for row in dead.live_rows().tolist()}
    assert set(merged.ids.to_pylist()) == expected | set(ids[ROWS : ROWS + 200])
    distinct = np.unique(merged.index.reconstruct(np.arange(merged.rows)), axis=0)
    assert merged.index.graph_size == len(distinct)
    assert not len(unreachable_rows(merged.index))
    by_id = {
        name: first.index.reconstruct(np.array([row]))[0]
        for row, name in enumerate(first.ids.to_pylist())
    }
    by_id |= dict(zip(ids[ROWS : ROWS + 200], more, strict=True))
    found = merged.index.reconstruct(np.arange(merged.rows))
    np.testing.assert_array_equal(found, [by_id[name] for name in merged.ids.to_pylist()])
    recalls = recall_of(merged, PLANS[0], queries, None)
    assert recalls.mean() >= 0.97
    assert recalls.min() > 0.5


def test_a_base_whose_graph_holds_equal_rows_gives_them_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As segments of format 2 and 3 do."""
    warm_up()
    monkeypatch.setattr(base_plan, "BASE_ROWS_MIN", 1_000)
    monkeypatch.setattr(base_plan, "DEAD_SHARE_MAX", 0.9)
    monkeypatch.setattr(base_plan, "COST_SHARE_MAX", 9.0)
    vectors, queries = grouped_vectors(5)
    ids = ids_of(np.random.default_rng(5))
    nothing = np.empty(0, dtype=np.int64)
    flat = source_of(tmp_path / "flat", vectors, ids, dead=nothing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "annheal.compactor.build.order.vector_hashes",
            lambda vectors, rows, yield_point: np.arange(len(rows), dtype=np.uint64),
        )
        old = built([flat], tmp_path / "old")
    assert old.index.graph_size == ROWS
    assert old.meta.format_version == 2
    new = built([Source(old, DeleteVector.empty(ROWS))], tmp_path / "new")
    assert new.index.graph_size == GROUPS + OTHERS
    assert recall_of(new, PLANS[0], queries, None).min() > 0.5


def test_equal_hashes_of_different_vectors_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.array([[1, 2], [3, 4], [1, 2], [-0.0, 1], [0.0, 1]], dtype=np.float32)
    rows = np.arange(5)
    hashes = vector_hashes(vectors, rows)
    assert hashes[0] == hashes[2]
    assert hashes[3] == hashes[4]
    assert len(np.unique(hashes)) == 3
    wide = np.zeros((5, DIMENSION), dtype=np.float32)
    wide[:, :2] = vectors
    ids = ["e", "d", "c", "b", "a"]
    source = source_of(tmp_path / "flat", wide, ids, dead=np.array([1]))
    kept = [np.array([0, 2, 3, 4])]
    for same in (False, True):
        if same:
            monkeypatch.setattr(
                "annheal.compactor.build.order.vector_hashes",
                lambda vectors, rows, yield_point: np.zeros(len(rows), dtype=np.uint64),
            )
        [labels] = vector_labels([source], kept)
        assert labels[0] == labels[1] == 0
        assert labels[2] >= 2
    order = order_rows([source], kept, [np.array([0, 0, 2, 2])], hold_out=lambda total: kept[0][:0])
    assert order.positions.tolist() == [0, 2, 1, 3]
    assert (order.graph_size, order.originals.tolist()) == (2, [0, 1])


def test_damaged_links_of_copies_are_refused(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    copied = np.array([3, 3, 20])

    def fresh() -> VectorIndex:
        index = build_hnsw(vectors, metric=Metric.L2, settings=IndexSettings(), threads=1)
        return add_copies(index, vectors[copied], copied)

    index = fresh()
    index.write(tmp_path / "index")
    read = load_mapped(tmp_path / "index", metric=Metric.L2, graph_size=50)
    assert read.originals(np.array([7, 50, 51, 52])).tolist() == [7, 3, 3, 20]
    for wrong in (10, 60):
        with pytest.raises(DataCorruption, match="cannot be read"):
            load_mapped(tmp_path / "index", metric=Metric.L2, graph_size=wrong)
    with pytest.raises(ValueError, match="copies are added once"):
        add_copies(index, vectors[copied], copied)
