"""Recall of one query."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from annheal.shard_node.recall.measuring.estimate import query_recalls


def hits(*scores: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    values = np.array([scores], dtype=np.float32)
    return values, np.where(np.isneginf(values), -1, np.arange(len(scores)))


def test_recall_of_one_query_counts_ties_and_leaves_out_what_is_not_there() -> None:
    nothing = float("-inf")
    truth = hits(0.9, 0.8, 0.7)
    assert query_recalls(truth, truth).tolist() == [1.0]
    assert query_recalls(hits(0.9, 0.8, nothing), truth).tolist() == [pytest.approx(2 / 3)]
    assert query_recalls(hits(nothing, nothing, nothing), truth).tolist() == [0.0]
    few = hits(0.9, nothing, nothing)
    assert query_recalls(few, few).tolist() == [1.0]
    assert np.isnan(query_recalls(truth, hits(nothing, nothing, nothing))).all()
    scores, rows = hits(0.9, 0.8, 0.7)
    assert query_recalls((scores, rows + 3), truth).tolist() == [1.0]  # others that tie
    assert query_recalls((scores - 0.01, rows), truth).tolist() == [1.0]  # the same, worse sums
    worse = query_recalls((scores - np.float32(0.05), rows + 3), truth)
    assert worse.tolist() == [pytest.approx(2 / 3)]


def test_distances_are_recalled_alike() -> None:
    truth = hits(-1.0, -2.0, -3.0)
    scores, rows = hits(-1.0, -2.5, -4.0)
    assert query_recalls((scores, rows + 10), truth).tolist() == [pytest.approx(2 / 3)]
