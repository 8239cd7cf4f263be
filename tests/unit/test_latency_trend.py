"""Latency against volume, on series that are made up: what volume explains is no trend."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from annheal.model.measures.latency import TrendVerdict
from annheal.shard_node.recall.latency.history import WINDOWS_MAX, LatencyHistory
from annheal.shard_node.recall.latency.trend import (
    BASELINE_MIN,
    GAP_WINDOWS,
    QUERIES_MIN,
    RECENT_MIN,
    RECENT_WINDOWS,
    WINDOW_S,
    LatencyWindow,
    estimate_trend,
)

HOURS = 6
NOW = HOURS * 60
Series = Callable[[float], float]
"""A value by the share of the time that has passed."""


def series(
    *,
    volume: Series,
    latency: Callable[[float, float], float],
    seed: int = 1,
    noise: float = 0.1,
    visited: Series = lambda _: 800.0,
) -> list[LatencyWindow]:
    """Return windows; `latency` is of the share of time and the volume, times 10 % noise."""
    rng = np.random.default_rng(seed)
    windows = []
    for number in range(NOW):
        share = number / NOW
        queries = int(rng.poisson(volume(share)))
        p50 = latency(share, queries) * math.exp(rng.normal(0.0, noise))
        p99 = 4 * p50 * math.exp(rng.normal(0.0, 2 * noise))
        windows.append(LatencyWindow(number, queries, queries, p50, p99, visited(share)))
    return windows


def daily(share: float) -> float:
    """Return a volume that goes up and down by four."""
    return 5_000 * (1.0 + 0.6 * math.sin(4 * math.pi * share))


def queue(_: float, queries: float) -> float:
    """Return the time in a queue that is full at 9,000 queries a minute."""
    return 0.002 / (1.0 - min(queries, 8_900) / 9_000)


@pytest.mark.parametrize("seed", range(5))
def test_latency_that_grows_at_constant_volume_is_flagged(seed: int) -> None:
    windows = series(
        volume=lambda _: 3_000, latency=lambda share, _: 0.002 * (1 + share), seed=seed
    )
    trend = estimate_trend(windows, now=NOW)
    assert trend.verdict is TrendVerdict.SLOWER
    assert trend.p50 is not None
    # 1.97 now, against 1.46 at the middle of the baseline.
    assert trend.p50.ratio == pytest.approx(1.35, abs=0.15)
    assert trend.p50.low < 1.35 < trend.p50.high
    assert trend.queries_per_s == pytest.approx(50, rel=0.05)
    assert trend.visited is not None
    assert trend.visited.verdict is TrendVerdict.STEADY


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_measured_whatever_the_volume_does(seed: int) -> None:
    windows = series(
        volume=daily,
        latency=lambda share, queries: queue(share, queries) * (1.5 if share > 0.95 else 1.0),
        seed=seed,
    )
    trend = estimate_trend(windows, now=NOW)
    assert trend.verdict is TrendVerdict.SLOWER
    assert trend.p50 is not None
    assert trend.p50.ratio == pytest.approx(1.5, rel=0.12)
    assert trend.p99 is not None
    assert trend.p99.ratio == pytest.approx(1.5, rel=0.25)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "volume",
    [
        lambda share: 1_000 + 6_000 * share,  # grows all the time
        lambda share: min(7_000, 1_000 + 12_000 * share),  # grew, and stays
        daily,
        lambda share: 6_500 if share > 0.5 else 2_000,
        lambda share: 2_000 if share > 0.97 else 6_500,
        lambda share: 8_000 if share > 0.97 else 2_000,  # never seen before
    ],
)
@pytest.mark.parametrize("law", [queue, lambda _, queries: 1e-5 * queries**0.7])
def test_latency_that_follows_volume_is_not_flagged(
    volume: Series, law: Callable[[float, float], float], seed: int
) -> None:
    trend = estimate_trend(series(volume=volume, latency=law, seed=seed), now=NOW)
    assert trend.verdict in (TrendVerdict.STEADY, TrendVerdict.UNKNOWN), trend
    assert (trend.verdict is TrendVerdict.UNKNOWN) == bool(trend.reason)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        windows = series(volume=daily, latency=lambda _, q: 1e-5 * q**0.7, seed=seed)
        trend = estimate_trend(windows, now=NOW)
        assert trend.p50 is not None
        held += trend.p50.low <= 1.0 <= trend.p50.high
    assert 180 <= held <= 199


def test_more_rows_compared_are_told_apart_from_a_slower_machine() -> None:
    windows = series(
        volume=lambda _: 3_000,
        latency=lambda share, _: 0.002 * (2 if share > 0.96 else 1),
        visited=lambda share: 1_600 if share > 0.96 else 800,
    )
    trend = estimate_trend(windows, now=NOW)
    assert trend.visited is not None
    assert trend.visited.ratio == pytest.approx(2.0, rel=0.01)
    assert trend.visited.expected == pytest.approx(800, rel=0.01)


def test_faster_is_said_too() -> None:
    windows = series(
        volume=lambda _: 3_000, latency=lambda share, _: 0.001 if share > 0.96 else 0.002
    )
    assert estimate_trend(windows, now=NOW).verdict is TrendVerdict.FASTER


def steady(first: int, count: int, *, queries: int = 3_000) -> list[LatencyWindow]:
    return [LatencyWindow(first + n, queries, queries, 0.002, 0.009, 800) for n in range(count)]


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        ([], "0 of the last 10 minutes"),
        (steady(NOW - RECENT_MIN + 1, RECENT_MIN - 1), "4 of the last 10 minutes"),
        (steady(NOW - RECENT_WINDOWS, RECENT_WINDOWS), "0 earlier minutes"),
        (steady(0, 300, queries=QUERIES_MIN - 1), "have 20 queries"),
        (
            [*steady(0, 300, queries=1_000), *steady(NOW - 10, 10)],
            "0 earlier minutes have a volume like the present 50 queries/s",
        ),
        (
            [*steady(0, 300, queries=2_500), *steady(NOW - 10, 10)],
            "the present volume, 50 queries/s, is new",
        ),
        (
            [
                *steady(0, 300),
                *steady(NOW - 10, 4, queries=900),
                *steady(NOW - 6, 3),
                *steady(NOW - 3, 3, queries=9_000),
            ],
            "changes too much",
        ),
    ],
)
def test_without_enough_to_compare_it_says_so(windows: list[LatencyWindow], says: str) -> None:
    trend = estimate_trend(windows, now=NOW)
    assert trend.verdict is TrendVerdict.UNKNOWN
    assert says in trend.reason
    assert (trend.p50, trend.p99, trend.visited) == (None, None, None)


def test_few_queries_give_a_median_and_no_tail() -> None:
    trend = estimate_trend(steady(0, NOW, queries=50), now=NOW)
    assert trend.verdict is TrendVerdict.STEADY
    assert trend.p99 is None


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_windows_say_what_was_noted() -> None:
    clock = Clock()
    history = LatencyHistory(clock=clock)
    for number in range(100):
        history.note("a", queries=2, duration_s=0.001 * (number + 1), visited=1_000)
    history.note("b", queries=QUERIES_MIN - 1, duration_s=9.0, visited=0)
    assert history.windows("a") == ()  # not over yet
    clock.now_s = WINDOW_S
    (window,) = history.windows("a")
    assert (window.number, window.queries) == (0, 200)
    assert window.node_queries == 200 + QUERIES_MIN - 1
    assert window.p50_s == pytest.approx(0.05, rel=0.05)
    assert window.p99_s == pytest.approx(0.099, rel=0.05)
    assert window.visited == 500
    assert history.windows("b") == ()  # too few to mean anything


def test_the_history_is_bounded_and_forgotten() -> None:
    clock = Clock()
    history = LatencyHistory(clock=clock)
    for minute in range(WINDOWS_MAX + 5):
        clock.now_s = minute * WINDOW_S
        history.note("a", queries=QUERIES_MIN, duration_s=0.001, visited=0)
    clock.now_s += WINDOW_S
    kept = history.windows("a")
    assert (len(kept), kept[0].number) == (WINDOWS_MAX, 5)
    assert history.trend("a").verdict is TrendVerdict.STEADY
    history.forget_all_but(["b"])
    assert history.windows("a") == ()
    assert history.trend("a").verdict is TrendVerdict.UNKNOWN


def test_a_node_that_just_started_needs_an_hour() -> None:
    clock = Clock()
    history = LatencyHistory(clock=clock)
    known = []
    for minute in range(90):
        clock.now_s = minute * WINDOW_S
        known.append(history.trend("a").verdict is not TrendVerdict.UNKNOWN)
        history.note("a", queries=100, duration_s=0.001, visited=0)
    assert known.index(True) == RECENT_WINDOWS + GAP_WINDOWS + BASELINE_MIN
    assert all(known[known.index(True) :])
