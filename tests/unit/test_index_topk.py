from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.index import merge_topk

Part = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def part_of(rng: np.random.Generator, queries: int, width: int, missing: int) -> Part:
    # Few distinct scores, so that ties are common.
    scores = -np.sort(-rng.integers(-3, 4, (queries, width)).astype(np.float32), axis=1)
    rows = np.stack([rng.permutation(1_000)[:width] for _ in range(queries)]).astype(np.int64)
    if missing:
        scores[:, -missing:] = -np.inf
        rows[:, -missing:] = -1
    return scores, rows


@settings(deadline=None)  # the machine may be busy
@given(
    seed=st.integers(0, 1_000),
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    k=st.integers(1, 40),
    queries=st.integers(1, 4),
)
def test_merge_is_a_stable_sort(seed: int, widths: list[int], k: int, queries: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [part_of(rng, queries, width, int(rng.integers(0, width))) for width in widths]
    merged = merge_topk(parts, k=k, queries=queries)
    for query in range(queries):
        candidates = [
            (float(scores[query, column]), number, int(rows[query, column]))
            for number, (scores, rows) in enumerate(parts)
            for column in range(scores.shape[1])
            if rows[query, column] >= 0
        ]
        expected = sorted(candidates, key=lambda hit: -hit[0])[:k]
        count = int(merged.counts[query])
        assert count == len(expected)
        assert merged.scores[query, :count].tolist() == [hit[0] for hit in expected]
        found = list(zip(merged.parts[query, :count], merged.rows[query, :count], strict=True))
        assert len(set(found)) == count
        for score, (number, row) in zip(merged.scores[query, :count], found, strict=True):
            assert (float(score), int(number), int(row)) in candidates
        assert (merged.rows[query, count:] == -1).all()
        assert (merged.parts[query, count:] == -1).all()
        assert (merged.scores[query, count:] == -np.inf).all()


def test_ties_go_to_the_earlier_part() -> None:
    same = np.ones((1, 3), dtype=np.float32)
    rows = np.arange(3, dtype=np.int64)[None]
    merged = merge_topk([(same, rows), (same, rows)], k=4, queries=1)
    assert merged.parts.tolist() == [[0, 0, 0, 1]]
    assert merged.rows.tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize("k", [10, 150])
def test_many_ties_keep_their_order(k: int) -> None:
    same = np.ones((1, 80), dtype=np.float32)
    rows = np.arange(80, dtype=np.int64)[None]
    merged = merge_topk([(same, rows), (same, rows)], k=k, queries=1)
    if k == 150:  # every candidate is sorted; below that, which of the equal ones stay is free
        assert merged.parts[0].tolist() == [0] * 80 + [1] * 70
        assert merged.rows[0].tolist() == [*range(80), *range(70)]
    again = merge_topk([(same, rows), (same, rows)], k=k, queries=1)
    assert merged.rows.tolist() == again.rows.tolist()
    assert merged.parts.tolist() == again.parts.tolist()


def test_no_parts_give_no_results() -> None:
    merged = merge_topk([], k=3, queries=2)
    assert merged.counts.tolist() == [0, 0]
    assert merged.scores.shape == (2, 3)


@pytest.mark.parametrize("k", [2, 5])
def test_single_part_is_passed_on(k: int) -> None:
    scores = np.array([[3.0, 2.0, -np.inf]], dtype=np.float32)
    rows = np.array([[7, 9, -1]], dtype=np.int64)
    merged = merge_topk([(scores, rows)], k=k, queries=1)
    assert merged.rows[0, :2].tolist() == [7, 9]
    assert merged.parts[0, :2].tolist() == [0, 0]
    assert merged.counts.tolist() == [2]
