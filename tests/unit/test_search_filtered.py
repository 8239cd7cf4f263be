"""Filtered searches of a segment with tombstones: complete, alive and matching, by every plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.filters import validate_filter
from annheal.index import VectorIndex, WalkCosts, build_hnsw, warm_up
from annheal.model.collection import Collection, IndexSettings
from annheal.model.filter import And, Comparison, ComparisonOp, Filter, Membership
from annheal.model.search import SearchOptions
from annheal.segment import DeleteVector, Segment
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.costs import MeasuredCosts
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher
from annheal.shard_node.search.threads import SearchThreads
from tests.support.compaction import collection
from tests.support.segments import (
    MODEL,
    SCHEMA,
    open_local,
    sample_rows,
    unit_vectors,
    write_sample,
)

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

ROWS = 3_000
WALKING = WalkCosts(exact_row_ns=1e6, walk_row_ns=1.0, check_ns=0.001, call_ns=1.0)
COMPARING = WalkCosts(exact_row_ns=0.001, walk_row_ns=1e6, check_ns=1e6, call_ns=1.0)


class FixedCosts(MeasuredCosts):
    def __init__(self, costs: WalkCosts) -> None:
        super().__init__()
        self._fixed = costs

    def costs_of(self, index: VectorIndex) -> WalkCosts:
        return self._fixed


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Segment:
    warm_up()
    rows = sample_rows(ROWS)
    index = build_hnsw(rows.vectors, metric=MODEL.metric, settings=IndexSettings(), threads=1)
    folder: Path = tmp_path_factory.mktemp("segment")
    return open_local(folder, write_sample(folder, rows=rows, index=index))


FILTERS = st.one_of(
    st.integers(0, ROWS).map(lambda n: Comparison("size", ComparisonOp.LT, n)),
    st.sampled_from(["red", "green", "blue"]).map(lambda c: Membership("colour", (c,))),
    st.integers(0, ROWS).map(
        lambda n: And((Comparison("size", ComparisonOp.GE, n), Membership("colour", ("red",))))
    ),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    filter=st.one_of(st.none(), FILTERS),
    dead_share=st.sampled_from([0.0, 0.03, 0.4, 0.99]),
    walking=st.booleans(),
    k=st.sampled_from([1, 10, 60]),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 1_000),
)
def test_answers_are_alive_matching_distinct_and_complete(
    segment: Segment,
    filter: Filter | None,
    dead_share: float,
    walking: bool,
    k: int,
    threads: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dead = np.flatnonzero(rng.random(ROWS) < dead_share)
    deletes = DeleteVector.empty(ROWS).with_dead(dead)
    if filter is not None:
        filter = validate_filter(filter, SCHEMA)
    allowed = np.ones(ROWS, dtype=np.bool_) if filter is None else segment.matches(filter).mask()
    allowed = allowed.copy()
    allowed[dead] = False
    into: Collection = collection()
    costs = FixedCosts(WALKING if walking else COMPARING)
    searcher = Searcher(into, FilterCache(), costs=costs, threads=SearchThreads(threads))
    view = ShardView(segments=(SegmentView(segment, deletes),))
    queries = unit_vectors(5, MODEL.dimension, seed=seed + 1)
    answer = searcher.search([(0, view)], queries, SearchOptions(k=k, filter=filter, explain=True))
    matches = int(allowed.sum())
    assert answer.counts.tolist() == [min(k, matches)] * len(queries)
    [explained] = answer.explain
    assert explained.matches == matches
    assert (explained.visited > 0) == (matches > 0)
    names = list(answer.records.ids)
    good = {f"record-{row}" for row in np.flatnonzero(allowed)}
    assert set(names) <= good
    close = 0
    for number, query in enumerate(queries):
        found = names[number * min(k, matches) : (number + 1) * min(k, matches)]
        assert len(set(found)) == len(found)
        scores = np.where(allowed, segment.index.reconstruct(np.arange(ROWS)) @ query, -np.inf)
        best = {f"record-{row}" for row in np.argsort(-scores)[: len(found)]}
        close += len(best & set(found))
    assert close >= 0.7 * len(names)
    if not walking and matches < ROWS:
        assert explained.plan in ("rows", "skip")
        assert close == len(names)


def test_walks_are_planned_when_they_are_cheap(segment: Segment) -> None:
    searcher = Searcher(collection(), FilterCache(), costs=FixedCosts(WALKING))
    view = ShardView(segments=(SegmentView(segment, DeleteVector.empty(ROWS)),))
    options = SearchOptions(k=10, filter=validate_filter(Membership("colour", ("red",)), SCHEMA))
    queries = unit_vectors(5, MODEL.dimension, seed=1)
    answer = searcher.search([(0, view)], queries, SearchOptions(10, options.filter, explain=True))
    [explained] = answer.explain
    assert (explained.plan, explained.matches) == ("in-graph", ROWS // 4)
    assert 0 < explained.visited < ROWS * len(queries)
