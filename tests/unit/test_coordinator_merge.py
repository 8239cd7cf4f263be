from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.coordinator.data_path.merge import empty_answer, merge_answers, slice_answer
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, with_fallback
from annheal.model.topology.shard import ShardId

Hits = list[tuple[float, str]]


def answer(*queries: Hits, shard: int = 0, columns: bool = False) -> SearchAnswer:
    flat = [hit for hits in queries for hit in hits]
    ids = [record for _, record in flat]
    records = RecordSet(ids=ids)
    if columns:
        records = RecordSet(
            ids=ids,
            attributes=pa.record_batch({"name": pa.array(ids, type=pa.string())}),
            payloads=pa.array([f'"{one}"'.encode() for one in ids], type=pa.binary()),
            vectors=np.array([[score, 0.0] for score, _ in flat], dtype=np.float32).reshape(-1, 2),
        )
    return SearchAnswer(
        counts=np.array([len(hits) for hits in queries], dtype=np.int32),
        scores=np.array([score for score, _ in flat], dtype=np.float32),
        records=records,
        sequences={shard: 10 + shard},
    )


def hits(merged: SearchAnswer) -> list[Hits]:
    starts = [0, *np.cumsum(merged.counts).tolist()]
    pairs = list(zip(merged.scores.tolist(), merged.records.ids, strict=True))
    return [pairs[a:b] for a, b in pairwise(starts)]


def test_the_best_k_of_each_query_over_all_answers():
    merged = merge_answers(
        [
            answer([(0.5, "a"), (0.25, "b")], [(1.0, "x")]),
            answer([(0.75, "c"), (0.125, "d")], [(2.0, "y"), (0.5, "z")], shard=1),
        ],
        k=2,
    )
    assert hits(merged) == [[(0.75, "c"), (0.5, "a")], [(2.0, "y"), (1.0, "x")]]
    assert merged.sequences == {0: 10, 1: 11}
    assert merged.counts.dtype == np.int32
    assert merged.scores.dtype == np.float32


def test_one_answer_passes_through_untouched():
    only = answer([(0.5, "a")])
    assert merge_answers([only], k=1) is only
    marked = merge_answers([only], k=1, missing_shards=[ShardId("c", 3)])
    assert marked.missing_shards == (ShardId("c", 3),)
    assert marked.records is only.records


def test_inv7_an_answer_is_below_the_objective_if_any_part_of_it_is():
    sound = answer([(0.5, "a")], [(0.25, "b")])
    below = replace(answer([(0.75, "c")], [], shard=1), below_objective=True)
    assert not merge_answers([sound, sound], k=1).below_objective
    assert merge_answers([sound, below], k=1).below_objective
    assert merge_answers([below, sound], k=1).below_objective
    assert merge_answers([below], k=1).below_objective
    assert merge_answers([below], k=1, missing_shards=[ShardId("c", 3)]).below_objective
    assert not empty_answer(2).below_objective
    starts = np.array([0, 1, 1])
    assert slice_answer(below, first=0, queries=1, starts=starts).below_objective


def test_equal_scores_are_ordered_by_id():
    merged = merge_answers([answer([(0.5, "b")]), answer([(0.5, "a"), (0.5, "c")])], k=2)
    assert hits(merged) == [[(0.5, "a"), (0.5, "b")]]


def test_inv3_an_id_appears_once_with_its_best_score():
    merged = merge_answers([answer([(0.75, "a"), (0.5, "b")]), answer([(0.25, "a")])], k=3)
    assert hits(merged) == [[(0.75, "a"), (0.5, "b")]]


def test_the_same_id_may_answer_different_queries():
    merged = merge_answers([answer([(0.75, "a")], [(0.5, "a")]), answer([], [(0.25, "b")])], k=3)
    assert hits(merged) == [[(0.75, "a")], [(0.5, "a"), (0.25, "b")]]


def test_columns_follow_their_rows_and_an_empty_answer_may_lack_them():
    merged = merge_answers(
        [
            answer([(0.5, "a")], [(0.25, "b")], columns=True),
            answer([(0.75, "c")], [], columns=True),
            empty_answer(2),
        ],
        k=2,
    )
    assert merged.records.ids == ["c", "a", "b"]
    assert merged.records.attributes is not None
    assert merged.records.attributes.column(0).to_pylist() == ["c", "a", "b"]
    assert merged.records.payloads is not None
    assert merged.records.payloads.to_pylist() == [b'"c"', b'"a"', b'"b"']
    assert merged.records.vectors is not None
    assert merged.records.vectors[:, 0].tolist() == [0.75, 0.5, 0.25]


def test_no_hits_at_all():
    merged = merge_answers([empty_answer(2), empty_answer(2)], k=5)
    assert hits(merged) == [[], []]


def test_nothing_to_merge_is_a_mistake():
    with pytest.raises(ValueError, match="no answer"):
        merge_answers([], k=1)


def test_slices_give_each_caller_its_own_queries():
    whole = answer([(0.5, "a"), (0.25, "b")], [], [(1.0, "c")], columns=True)
    starts = np.concatenate([[0], np.cumsum(whole.counts)])
    assert hits(slice_answer(whole, first=0, queries=1, starts=starts)) == [
        [(0.5, "a"), (0.25, "b")]
    ]
    last = slice_answer(whole, first=1, queries=2, starts=starts)
    assert hits(last) == [[], [(1.0, "c")]]
    assert last.records.attributes is not None
    assert last.records.attributes.column(0).to_pylist() == ["c"]


ids = st.sampled_from([f"id{n}" for n in range(12)])
scores = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
query = st.lists(st.tuples(scores, ids), max_size=8, unique_by=lambda hit: hit[1]).map(
    lambda found: sorted(found, key=lambda hit: (-hit[0], hit[1]))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(query, query, query), min_size=2, max_size=4), st.integers(1, 6))
def test_merging_equals_sorting_everything(parts: list[tuple[Hits, Hits, Hits]], k: int):
    merged = merge_answers([answer(*part) for part in parts], k=k)
    expected: list[Hits] = []
    for number in range(3):
        best: dict[str, float] = {}
        for part in parts:
            for score, record in part[number]:
                best[record] = max(score, best.get(record, -1.0))
        ordered = sorted(((s, i) for i, s in best.items()), key=lambda hit: (-hit[0], hit[1]))
        expected.append(ordered[:k])
    assert hits(merged) == expected


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.tuples(query, query, query, query), min_size=2, max_size=4),
    k=st.integers(1, 5),
    fallback_k=st.integers(1, 5),
)
def test_hits_by_a_fallback_are_merged_by_themselves(
    parts: list[tuple[Hits, Hits, Hits, Hits]], k: int, fallback_k: int
):
    own = [answer(*part[:2]) for part in parts]
    rest = [answer(*part[2:]) for part in parts]
    both = [with_fallback(*pair) for pair in zip(own, rest, strict=True)]
    merged = merge_answers(both, k=k, fallback_k=fallback_k)
    for fallback, alone, limit in ((False, own, k), (True, rest, fallback_k)):
        expected = merge_answers(alone, k=limit)
        assert hits(merged.of_fallback(fallback)) == hits(expected)
    starts = np.concatenate([[0], np.cumsum(merged.counts)])
    second = slice_answer(merged, first=1, queries=1, starts=starts)
    assert hits(second.of_fallback(True)) == hits(merge_answers(rest, k=fallback_k))[1:]
