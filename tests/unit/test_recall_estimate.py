"""Recall of one query, and the interval of the mean of many, by simulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from annheal.shard_node.recall.estimate import estimate_interval, query_recalls

K = 10
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]


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


def independent(mean: float) -> Draw:
    return lambda rng, n: np.asarray(rng.binomial(K, mean, n) / K, dtype=np.float64)


def clustered(mean: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
        chances = rng.beta(3 * mean, 3 * (1 - mean), n)
        return np.asarray(rng.binomial(K, chances) / K, dtype=np.float64)

    return draw


def all_or_nothing(mean: float) -> Draw:
    return lambda rng, n: (rng.random(n) < mean) * 1.0


@pytest.mark.parametrize("n", [32, 128])
@pytest.mark.parametrize("mean", [0.5, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("draws", [independent, clustered, all_or_nothing])
def test_the_interval_holds_the_truth_95_times_of_100(
    draws: Callable[[float], Draw], mean: float, n: int
) -> None:
    rng = np.random.default_rng(7)
    intervals = np.array(
        [estimate_interval(draws(mean)(rng, n), k=K) for _ in range(600)], dtype=np.float64
    )
    held = np.mean((intervals[:, 0] <= mean) & (mean <= intervals[:, 1]))
    assert held >= 0.92  # three standard deviations of the simulation below 0.95
    width = (intervals[:, 1] - intervals[:, 0]).mean()
    # Wilson's interval of n queries that are all or nothing is the widest that makes sense.
    assert width < 2.2 * 1.96 * np.sqrt(mean * (1 - mean) / n) + 4.0 / n


def test_intervals_at_the_ends_are_sane() -> None:
    for n, least in ((1, 0.2), (16, 0.8), (128, 0.97)):
        low, high = estimate_interval(np.ones(n), k=K)
        assert least <= low < 1.0
        assert high == 1.0
    low, high = estimate_interval(np.zeros(16), k=K)
    assert low == 0.0
    assert high == pytest.approx(1 - estimate_interval(np.ones(16), k=K)[0])
    assert estimate_interval(np.full(64, 0.9), k=K)[0] > 0.85
