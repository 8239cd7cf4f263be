"""Recall of the answers that were given: one shard, several, and rows that changed since."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.index import TopK
from annheal.shard_node.recall.served import ServedHits, ShardTruth, served_recalls
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import ShardView
from annheal.shards.routing import shard_of

NAMES = [f"r{n}" for n in range(200)]
HERE = [name for name in NAMES if shard_of(name, shard_count=2) == 0]
THERE = [name for name in NAMES if shard_of(name, shard_count=2) == 1]
Ranked = dict[str, float]
"""Ids with the scores that a query gives them."""


def truth_of(
    rows: Ranked,
    *,
    k: int,
    sequence: int = 5,
    written: dict[str, int] | None = None,
    shard_count: int = 1,
) -> ShardTruth:
    """Return the exact answer of shard 0 with `rows`; `written` are their sequences, 1 if not."""
    ids = list(rows)
    order = sorted(range(len(ids)), key=lambda row: -rows[ids[row]])[:k]
    fill = [-1] * (k - len(order))
    view = GrowingView(
        number=0,
        vectors=np.zeros((len(ids), 1), dtype=np.float32),
        ids=ids,
        newest={name: row for row, name in enumerate(ids)},
        sequences=np.array([(written or {}).get(name, 1) for name in ids], dtype=np.int64),
        parts=(),
        rows=len(ids),
        dead=None,
        dead_count=0,
    )
    scores = [rows[ids[row]] for row in order] + [-math.inf] * len(fill)
    best = TopK(
        np.array([scores], dtype=np.float32),
        np.array([[0] * len(order) + fill], dtype=np.int32),
        np.array([order + fill], dtype=np.int64),
    )
    shard_view = ShardView(growing=(view,), sequence=sequence)
    return ShardTruth(shard_view, [view], best, shard=0, shard_count=shard_count)


def served(
    rows: Ranked, *, sequences: dict[int, int] | None = None, is_whole: bool = True
) -> ServedHits:
    ids = sorted(rows, key=lambda name: -rows[name])
    scores = np.array([rows[name] for name in ids], dtype=np.float32)
    return ServedHits(tuple(ids), scores, is_whole, sequences or {0: 5})


def recall(truth: ShardTruth, hits: ServedHits, *, k: int) -> float:
    (found,) = served_recalls(truth, [hits], np.array([0]), k=k)
    return float(found)


@given(
    st.sets(st.integers(0, 50), min_size=10, max_size=10), st.sets(st.integers(0, 9), max_size=10)
)
def test_of_one_shard_it_is_the_share_of_the_true_hits_that_were_returned(
    others: set[int], found: set[int]
) -> None:
    rows = {NAMES[n]: 100.0 - n for n in range(10)} | {NAMES[20 + n]: -float(n) for n in others}
    returned = {NAMES[n]: rows[NAMES[n]] for n in found}
    worse = sorted((name for name in rows if rows[name] <= 0), key=lambda name: -rows[name])
    returned |= {name: rows[name] for name in worse[: 10 - len(found)]}
    assert recall(truth_of(rows, k=10), served(returned), k=10) == pytest.approx(len(found) / 10)


def test_rows_of_the_same_score_are_as_good() -> None:
    rows = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}
    assert recall(truth_of(rows, k=3), served({"a": 3.0, "b": 2.0, "d": 1.0}), k=3) == 1.0


@given(st.permutations(range(16)), st.sets(st.integers(0, 15), max_size=6))
def test_of_several_shards_each_part_is_judged_and_they_add_up(
    ranks: list[int], missed: set[int]
) -> None:
    """The other shard found everything: then the parts tell the recall of the merged answer."""
    k = 8
    here = {name: 50.0 - ranks[n] for n, name in enumerate(HERE[:8])}
    there = {name: 50.0 - ranks[8 + n] for n, name in enumerate(THERE[:8])}
    together = here | there
    true = set(sorted(together, key=lambda name: -together[name])[:k])
    lost = {HERE[n] for n in missed if n < 8}
    left = {name: score for name, score in together.items() if name not in lost}
    returned = dict(sorted(left.items(), key=lambda one: -one[1])[:k])
    expected = len(true & here.keys())
    found = recall(
        truth_of(here, k=k, shard_count=2), served(returned, sequences={0: 5, 1: 9}), k=k
    )
    if not expected:
        assert math.isnan(found)
        return
    # A row of the other shard that took the place of a lost one is not this shard's.
    assert found == pytest.approx(len(true & here.keys() & returned.keys()) / expected)


def test_rows_written_or_deleted_since_are_left_out_on_both_sides() -> None:
    rows = {"new": 9.0, "a": 3.0, "c": 1.0, "d": 0.5}  # "b" was deleted, "new" written
    truth = truth_of(rows, k=3, sequence=8, written={"new": 7})
    answer = served({"a": 3.0, "b": 2.0, "c": 1.0})
    assert recall(truth, answer, k=3) == 1.0
    worse = served({"a": 3.0, "b": 2.0, "d": 0.5})
    assert recall(truth, worse, k=3) == 0.5
    # An updated record is another row: neither expected nor found.
    updated = truth_of(rows, k=4, sequence=8, written={"new": 7, "a": 8})
    assert recall(updated, answer, k=3) == 1.0


def test_of_a_long_answer_the_best_hits_are_compared() -> None:
    rows = {name: 100.0 - n for n, name in enumerate(NAMES[:50])}
    kept = {name: rows[name] for name in NAMES[:20] if name != NAMES[4]}
    hits = served(kept, is_whole=False)
    assert recall(truth_of(rows, k=50), hits, k=50) == pytest.approx(18 / 19)


def test_what_is_not_known_is_no_recall() -> None:
    truth = truth_of({"a": 1.0}, k=3)
    assert math.isnan(served_recalls(truth, [None], np.array([0]), k=3)[0])
    assert math.isnan(recall(truth, served({"a": 1.0}, sequences={1: 5}), k=3))
    assert math.isnan(recall(truth_of({}, k=3), served({}), k=3))
    assert recall(truth, served({"a": 1.0}), k=3) == 1.0
    assert recall(truth, served({}), k=3) == 0.0
