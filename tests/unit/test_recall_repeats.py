"""Queries that are asked again and again: what they show, and what they do not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from annheal.model.measures.recall import SelectivityBand
from annheal.recall.estimating import arrivals_of, interval_of, recall_estimate
from annheal.shard_node.recall.measuring.answer_parts import Moment
from annheal.shard_node.recall.measuring.measure import GroupFinding, group_queries
from annheal.shard_node.recall.result import band_recalls
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery

Values = npt.NDArray[np.float64]
BAND = SelectivityBand.UNFILTERED
HARD_SHARE, HARD = 0.05, 0.5
MEAN = 1.0 - HARD_SHARE * (1.0 - HARD)


def recalls_of(draw: np.random.Generator, count: int) -> Values:
    """Return the recall of different queries: one in twenty finds half."""
    return np.where(draw.random(count) < HARD_SHARE, HARD, 1.0)


def test_repetitions_within_a_second_are_one_arrival() -> None:
    queries = np.array([7, 9, 7, 7, 9, 7], dtype=np.uint64)
    asked_at_s = np.array([10.1, 10.2, 10.9, 11.0, 10.3, 70.5])
    arrivals = arrivals_of(queries, asked_at_s)
    assert arrivals[0] == arrivals[2]
    assert arrivals[1] == arrivals[4]
    assert len(set(arrivals.tolist())) == arrivals.max() + 1 == 4


def test_a_loop_of_a_client_counts_in_the_mean_and_once_in_the_interval() -> None:
    others = np.array([1.0] * 29 + [0.9])
    recalls = np.append(others, np.full(100, 0.5))
    queries = np.append(np.arange(30), np.full(100, 30)).astype(np.uint64)
    loop = interval_of(recalls, arrivals_of(queries, np.full(130, 5.2)))
    assert loop.mean == pytest.approx((29.9 + 50.0) / 130)
    once = interval_of(np.append(others, 0.5), np.arange(31))
    assert loop.high - loop.low > once.high - once.low, "it is certain of less, not of more"
    spread = interval_of(recalls, arrivals_of(queries, np.arange(130.0)))
    assert spread.high - spread.low < 0.2, "asked all the time, it is known to be that frequent"


@pytest.mark.parametrize("n", [32, 128])
def test_loops_of_clients_do_not_make_the_interval_too_narrow(n: int) -> None:
    """Every query is sent about four times in a row; the recall is that of users like these."""
    draw = np.random.default_rng(n)
    contained = trials = 0
    for _ in range(400):
        queries = np.repeat(np.arange(n), draw.geometric(0.25, n))[:n].astype(np.uint64)
        recalls = recalls_of(draw, n)[queries.astype(np.int64)]
        asked_at_s = queries * 1.0 + 0.5
        found = interval_of(recalls, arrivals_of(queries, asked_at_s))
        contained += found.low <= MEAN <= found.high
        trials += 1
    assert contained >= 0.95 * trials


def test_a_hot_query_does_not_make_the_interval_useless() -> None:
    """Half of the traffic of a minute is one query, of which nothing is missed or much is."""
    draw = np.random.default_rng(3)
    contained = 0
    widths = []
    for _ in range(400):
        of_hot = float(recalls_of(draw, 1)[0])
        is_hot = draw.random(128) < 0.5
        recalls = np.where(is_hot, of_hot, recalls_of(draw, 128))
        queries = np.where(is_hot, 0, np.arange(1, 129)).astype(np.uint64)
        found = interval_of(recalls, arrivals_of(queries, np.sort(draw.random(128) * 60.0)))
        contained += found.low <= 0.5 * of_hot + 0.5 * MEAN <= found.high
        widths.append(found.high - found.low)
    assert contained >= 0.95 * 400
    assert np.mean(widths) < 0.08  # 0.63 if the hot query counted once


def test_the_monitor_tells_loops_from_hot_queries() -> None:
    def low(asked_at_s: npt.NDArray[np.float64]) -> float:
        same = [
            SampledQuery(np.full(2, number % 8, np.float32), 10, None, at_s, serial=number)
            for number, at_s in enumerate(asked_at_s.tolist())
        ]
        (group,) = group_queries(same, dimension=2)
        none = np.full(len(same), np.nan)
        recalls = np.ones(len(same))
        finding = GroupFinding(group, BAND, 9, 9, recalls, none, 1, 1, ())
        (found,) = band_recalls(0, [finding], seen={}, moment=Moment(100.0, 600.0))
        assert (found.estimate.queries, found.estimate.distinct) == (64, 8)
        assert found.served is None
        return found.estimate.low

    assert low(np.full(64, 5.0)) == pytest.approx(0.025 ** (1 / 8), abs=0.01)
    assert low(np.arange(64.0)) == pytest.approx(0.025 ** (1 / 64), abs=0.01)


def test_without_arrivals_every_query_is_another_one() -> None:
    recalls = np.array([1.0, 0.5, 1.0, 0.9])
    plain = recall_estimate(recalls, Counter({10: 4}), {}, measured_at_s=1.0)
    told = recall_estimate(recalls, Counter({10: 4}), {}, measured_at_s=1.0, arrivals=np.arange(4))
    assert plain == told
