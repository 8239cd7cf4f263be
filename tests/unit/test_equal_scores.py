"""Scores depend on two vectors alone, and equal ones are ordered by id, wherever the rows lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.coordinator.data_path.merge import merge_answers
from annheal.index import best_columns, build_hnsw, scores_of
from annheal.model.collection import Collection, IndexSettings, Metric, ModelSpec
from annheal.model.records import RecordBatch
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.segment import DeleteVector
from annheal.shard_node.rows.growing import GrowingSegment
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher
from annheal.shards.wal import empty_attributes
from tests.support.compaction import collection
from tests.support.segments import open_local, sample_rows, write_sample

ROWS, DIMENSION = 240, 4
Vectors = npt.NDArray[np.float32]
Hit = tuple[float, str]


def tied_vectors(rng: np.random.Generator, metric: Metric) -> Vectors:
    """Return vectors of few distinct values, some equal and most at equal distances."""
    values = rng.integers(-1, 2, (ROWS, DIMENSION)).astype(np.float32)
    if metric is Metric.COSINE:
        values[~values.any(axis=1)] = 1.0
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def growing(ids: Sequence[str], vectors: Vectors) -> GrowingSegment:
    segment = GrowingSegment(DIMENSION)
    batch = RecordBatch(
        ids=pa.array(ids, type=pa.string()),
        vectors=vectors,
        attributes=empty_attributes(len(ids)),
        payloads=pa.nulls(len(ids), type=pa.binary()),
    )
    segment.append(batch, first_sequence=1)
    return segment


def segment_view(
    directory: Path, ids: Sequence[str], vectors: Vectors, model: ModelSpec, *, graph: bool
) -> SegmentView:
    rows = replace(
        sample_rows(len(ids), model=model, schema=()),
        ids=pa.array(ids, type=pa.string()),
        vectors=vectors,
        attributes=pa.RecordBatch.from_arrays([], names=[]),
    )
    index = None
    if graph:
        index = build_hnsw(vectors, metric=model.metric, settings=IndexSettings(), threads=1)
    entry = write_sample(directory, rows=rows, model=model, schema=(), index=index)
    return SegmentView(open_local(directory, entry), DeleteVector.empty(len(ids)))


def layouts(
    directory: Path, ids: list[str], vectors: Vectors, model: ModelSpec
) -> Iterator[ShardView]:
    """Yield the same rows in memory, in one segment, and in several of every kind."""
    yield ShardView(growing=(growing(ids, vectors).view(),))
    yield ShardView(segments=(segment_view(directory / "one", ids, vectors, model, graph=True),))
    third, two_thirds = ROWS // 3, 2 * ROWS // 3
    flat = segment_view(directory / "flat", ids[:third], vectors[:third], model, graph=False)
    middle = slice(third, two_thirds)
    graph = segment_view(directory / "graph", ids[middle], vectors[middle], model, graph=True)
    rest = growing(ids[two_thirds:], vectors[two_thirds:]).view()
    yield ShardView(segments=(graph, flat), growing=(rest,))


def hits_of(answer: SearchAnswer) -> list[list[Hit]]:
    ends = np.cumsum(answer.counts)
    pairs = list(zip(answer.scores.tolist(), answer.records.ids, strict=True))
    return [pairs[end - count : end] for end, count in zip(ends, answer.counts, strict=True)]


def collection_of(model: ModelSpec) -> Collection:
    return collection(model=model, schema=())


@pytest.mark.timeout(400)  # the first test of a machine compiles the kernels
@pytest.mark.parametrize("metric", list(Metric))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1_000), ks=st.lists(st.integers(1, ROWS + 5), min_size=1, max_size=3))
def test_the_answer_is_a_prefix_of_every_longer_one(
    tmp_path_factory: pytest.TempPathFactory, metric: Metric, seed: int, ks: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    model = ModelSpec("test-model", DIMENSION, metric)
    vectors = tied_vectors(rng, metric)
    ids = [f"{number:04d}" for number in rng.permutation(ROWS)]
    queries = np.ascontiguousarray(np.concatenate([vectors[:2], tied_vectors(rng, metric)[:28]]))
    searcher = Searcher(collection_of(model), FilterCache())
    scores = scores_of(vectors, queries, np.tile(np.arange(ROWS), (len(queries), 1)), metric=metric)
    truth = [
        sorted(zip(query_scores.tolist(), ids, strict=True), key=lambda hit: (-hit[0], hit[1]))
        for query_scores in scores
    ]
    for view in layouts(tmp_path_factory.mktemp("segments"), ids, vectors, model):
        for k in (5, 10, *ks):
            exactly = SearchOptions(k, exact=True)
            together = hits_of(searcher.search([(0, view)], queries, exactly))
            assert together == [hits[:k] for hits in truth]
            alone = hits_of(searcher.search([(0, view)], queries[3:4], exactly))
            assert alone == together[3:4]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_score_of_a_row_with_itself_is_one(tmp_path: Path, batch: int) -> None:
    dimension, rows = 384, 256
    model = ModelSpec("test-model", dimension, Metric.COSINE)
    values = np.random.default_rng(1).standard_normal((rows, dimension)).astype(np.float32)
    vectors = values / np.linalg.norm(values, axis=1, keepdims=True)
    ids = [f"{number:04d}" for number in range(rows)]
    entry = write_sample(
        tmp_path,
        rows=replace(
            sample_rows(rows, model=model, schema=()),
            ids=pa.array(ids),
            vectors=vectors,
            attributes=pa.RecordBatch.from_arrays([], names=[]),
        ),
        model=model,
        schema=(),
    )
    held = SegmentView(open_local(tmp_path, entry), DeleteVector.empty(rows))
    searcher = Searcher(collection_of(model), FilterCache())
    found = [
        hits_of(searcher.search([(0, ShardView((held,)))], vectors[start : start + batch], wanted))
        for start in range(0, rows, batch)
        for wanted in [SearchOptions(3)]
    ]
    best = [hits[0] for part in found for hits in part]
    assert [hit[1] for hit in best] == ids
    assert all(1.0 - 1e-6 < hit[0] <= 1.0 for hit in best)
    first = hits_of(searcher.search([(0, ShardView((held,)))], vectors[:1], SearchOptions(3)))
    assert found[0][0] == first[0]


def test_nodes_are_merged_in_the_order_that_each_has() -> None:
    rng = np.random.default_rng(3)
    model = ModelSpec("test-model", DIMENSION, Metric.L2)
    vectors = tied_vectors(rng, Metric.L2)
    ids = [f"{number:04d}" for number in rng.permutation(ROWS)]
    searcher = Searcher(collection_of(model), FilterCache())
    halves = [
        ShardView(growing=(growing(ids[part], vectors[part]).view(),))
        for part in (slice(0, 100), slice(100, ROWS))
    ]
    whole = ShardView(growing=(growing(ids, vectors).view(),))
    for k in (5, 10, 100):
        options = SearchOptions(k)
        answers = [searcher.search([(0, half)], vectors[:9], options) for half in halves]
        merged = merge_answers(answers, k=k)
        assert hits_of(merged) == hits_of(searcher.search([(0, whole)], vectors[:9], options))


def test_ids_are_asked_for_ties_only() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [2.0, 5.0, 2.0, -np.inf]], dtype=np.float32)
    asked: list[tuple[list[int], list[int]]] = []

    def ids_of(queries: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> list[str]:
        asked.append((queries.tolist(), columns.tolist()))
        return [f"{9 - column}" for column in columns.tolist()]

    assert best_columns(scores, k=2, ids_of=ids_of).tolist() == [[0, 1], [1, 2]]
    assert asked == [([1, 1], [0, 2])]
    assert best_columns(scores, k=9).tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]
