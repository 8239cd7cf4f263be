"""Live queries of another kind than the rows: what the curve of a new segment says for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from annheal.compactor.build import build
from annheal.compactor.build.build import BUILD_STRENGTHS, BuildOrder, build_segment
from annheal.compactor.build.calibrate import LOGGED_MIN, calibrate, lower_curve, recall_of
from annheal.compactor.build.recalls import best_scores
from annheal.compactor.fetch import Source, fetch_logged_queries
from annheal.index import VectorIndex
from annheal.model.collection import Metric, ModelSpec
from annheal.model.measures.recall import SelectivityBand
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.objectstore.local import LocalObjectStore
from annheal.recall import LoggedQuery, RecallMemory, store_memory
from annheal.segment import DeleteVector, RecallPoint, Segment, SegmentRows
from annheal.shard_node.search.recall_curves import choose_ef
from tests.support.compaction import COLLECTION_ID, SHARD, collection, merge_task
from tests.support.segments import open_local, sample_rows, write_sample

ROWS, DIMENSION, CLUSTERS = 4_000, 32, 200
OBJECTIVE = 0.95
MODEL = ModelSpec("clustered", DIMENSION, Metric.COSINE)
Vectors = npt.NDArray[np.float32]


def unit(vectors: npt.NDArray[np.float64]) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray((vectors / lengths).astype(np.float32))


def clustered(rows: int) -> SegmentRows:
    """Return rows in tight clusters: a held-out row lies in one of them."""
    random = np.random.default_rng(1)
    centres = random.standard_normal((CLUSTERS, DIMENSION))
    spread = 0.3 * random.standard_normal((rows, DIMENSION))
    vectors = unit(centres[random.integers(CLUSTERS, size=rows)] + spread)
    return replace(sample_rows(rows, model=MODEL), vectors=vectors)


@pytest.fixture(scope="module")
def strangers() -> Vectors:
    """Return queries from everywhere, which lie between the clusters."""
    return unit(np.random.default_rng(9).standard_normal((800, DIMENSION)))


def built(
    directory: Path, rows: SegmentRows, *, logged: Vectors | None, objective: float = OBJECTIVE
) -> Segment:
    entry = write_sample(directory / "source", segment_id="s", rows=rows, model=MODEL)
    source = Source(open_local(directory / "source", entry), DeleteVector.empty(len(rows)))
    into = collection(model=MODEL)
    order = BuildOrder(
        segment_id="out",
        tier=Tier.WARM,
        collection=replace(into, settings=replace(into.settings, recall_objective=objective)),
        threads=1,
        created_at_s=5.0,
        on_progress=lambda share: None,
        logged_queries=logged,
    )
    made = build_segment([source], order, directory=directory / "out")
    assert made is not None
    return open_local(directory / "out", made)


def ef_of(segment: Segment) -> int:
    return choose_ef(segment.recall_curve, k=10, objective=OBJECTIVE)


def recall_at(index: VectorIndex, queries: Vectors, ef: int) -> float:
    found, _ = index.search(queries, k=10, ef=ef)
    return recall_of(found, best_scores(index, queries, k=10))


def test_queries_unlike_the_rows_get_a_wider_beam_than_rows_alone_would_give(
    tmp_path: Path, strangers: Vectors
) -> None:
    rows = clustered(ROWS)
    alone = built(tmp_path / "a", rows, logged=None)
    told = built(tmp_path / "b", rows, logged=strangers[:200])
    assert told.kind is IndexKind.HNSW
    assert ef_of(told) > ef_of(alone)
    # Others of the same kind: promised too much before, kept now.
    assert recall_at(alone.index, strangers[200:], ef_of(alone)) < OBJECTIVE - 0.05
    assert recall_at(told.index, strangers[200:], ef_of(told)) >= OBJECTIVE


def test_queries_like_the_rows_change_nothing(tmp_path: Path) -> None:
    rows, alike = clustered(ROWS), clustered(300).vectors  # of the same clusters
    alone = built(tmp_path / "a", rows, logged=None)
    told = built(tmp_path / "b", rows, logged=alike)
    assert told.recall_curve == alone.recall_curve


def test_a_handful_of_queries_says_nothing(strangers: Vectors, tmp_path: Path) -> None:
    segment = built(tmp_path, clustered(ROWS), logged=None)
    held_out = clustered(ROWS + 300).vectors[ROWS:]
    few = calibrate(segment.index, held_out, k=10, logged_queries=strangers[: LOGGED_MIN - 1])
    assert not few.logged_are_harder
    enough = calibrate(segment.index, held_out, k=10, logged_queries=strangers[:200])
    assert enough.logged_are_harder
    # Filters are measured with the harder ones first.
    np.testing.assert_array_equal(enough.queries[:200], strangers[:200])
    assert len(enough.queries) == 500


def points(k: int, *recalls: tuple[int, float], error: float = 0.005) -> tuple[RecallPoint, ...]:
    return tuple(RecallPoint(k, ef, recall, error) for ef, recall in recalls)


def test_the_lower_of_two_curves_where_live_queries_are_surely_harder() -> None:
    rows = points(10, (16, 0.90), (32, 0.97), (64, 0.999)) + points(100, (128, 0.99))
    live = points(10, (16, 0.80), (32, 0.98), (64, 0.985), (96, 0.999)) + points(100, (128, 0.985))
    found = lower_curve(rows, live)
    assert [(p.k, p.ef, p.recall) for p in found] == [
        (10, 16, 0.80),
        (10, 32, 0.97),  # the lower of the two, whichever it is
        (10, 64, 0.985),
        (10, 96, 0.999),  # where the rows' curve had ended, full
        (100, 128, 0.99),  # within chance: the rows say it better
    ]
    easier = points(10, (16, 0.95), (32, 0.999))
    assert lower_curve(rows, easier) == rows
    assert lower_curve(rows, ()) == rows


def test_what_no_graph_reaches_for_live_queries_is_still_a_graph(
    tmp_path: Path, strangers: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact comparison of a large segment would be no answer; the strongest graph is kept."""
    tried: list[object] = []
    real = build.build_hnsw

    def noting(vectors: Vectors, **options: object) -> VectorIndex:
        tried.append(options["settings"])
        return real(vectors, **options)  # type: ignore[arg-type]

    def hopeless(held_out: object, live: object) -> tuple[RecallPoint, ...]:
        return points(10, (512, 0.5))

    monkeypatch.setattr(build, "build_hnsw", noting)
    monkeypatch.setattr("annheal.compactor.build.calibrate.lower_curve", hopeless)
    segment = built(tmp_path, clustered(3_000), logged=strangers[:50])
    assert len(tried) == len(BUILD_STRENGTHS)
    assert segment.kind is IndexKind.HNSW
    assert segment.recall_curve == points(10, (512, 0.5))


async def test_the_queries_of_the_shards_memory_are_those_of_its_model(
    tmp_path: Path, strangers: Vectors
) -> None:
    objects = LocalObjectStore(tmp_path)
    task = merge_task("s1")
    assert await fetch_logged_queries(objects, task, model=MODEL) is None
    asked = tuple(LoggedQuery(10, SelectivityBand.UNFILTERED, 1.0) for _ in range(40))
    memory = RecallMemory(MODEL.name, 1.0, queries=asked, vectors=strangers[:40])
    await store_memory(objects, COLLECTION_ID, SHARD, memory, epoch=1, number=1)
    logged = await fetch_logged_queries(objects, task, model=MODEL)
    assert logged is not None
    np.testing.assert_array_equal(logged, strangers[:40])
    for other in (replace(MODEL, name="other"), replace(MODEL, dimension=8)):
        assert await fetch_logged_queries(objects, task, model=other) is None
    await objects.close()
