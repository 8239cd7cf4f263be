"""The interval of mean recall: its properties, its coverage by simulation, and joined strata."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annheal.recall.interval import Interval, Stratum, combine_strata, mean_interval

K = 10
Values = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]

recalls = st.lists(st.integers(0, K), min_size=1, max_size=80).map(
    lambda hits: np.array(hits, dtype=np.float64) / K
)
intervals = st.tuples(*[st.floats(0, 1)] * 3).map(
    lambda ends: Interval(sorted(ends)[1], min(ends), max(ends))
)
strata = st.lists(
    st.builds(Stratum, st.floats(0.01, 100), st.none() | intervals), min_size=1, max_size=6
)


@given(recalls)
@example(np.zeros(1))
@example(np.ones(1))
@example(np.full(80, 0.1))
def test_the_interval_contains_the_mean_and_stays_within_0_and_1(values: Values) -> None:
    found = mean_interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert 0.0 <= found.low <= found.mean <= found.high <= 1.0


@given(recalls)
def test_the_interval_of_what_was_missed_is_its_mirror_image(values: Values) -> None:
    found, missed = mean_interval(values), mean_interval(1.0 - values)
    assert (1.0 - missed.high, 1.0 - missed.low) == pytest.approx((found.low, found.high), abs=1e-6)


@given(recalls)
def test_more_queries_of_the_same_kind_narrow_it_from_both_sides(values: Values) -> None:
    one, four = mean_interval(values), mean_interval(np.tile(values, 4))
    assert four.low >= one.low - 1e-9
    assert four.high <= one.high + 1e-9
    assert four.high - four.low < one.high - one.low


@given(recalls, st.integers(0, 79), st.integers(1, K))
def test_a_query_that_finds_more_raises_both_ends(values: Values, place: int, more: int) -> None:
    better = values.copy()
    better[place % len(values)] = min(1.0, better[place % len(values)] + more / K)
    before, after = mean_interval(values), mean_interval(better)
    # The approximation's own error is below a hundredth of the distance to the ends.
    slack = 0.01 * (before.high - before.low)
    assert after.low >= before.low - slack
    assert after.high >= before.high - slack


@given(recalls)
def test_the_order_of_the_queries_does_not_matter(values: Values) -> None:
    assert mean_interval(values[::-1].copy()) == mean_interval(values)


@pytest.mark.parametrize(("found", "n"), [(8, 8), (15, 16), (32, 32), (127, 128), (500, 1024)])
def test_for_all_or_nothing_it_is_the_interval_of_clopper_and_pearson(found: int, n: int) -> None:
    interval = mean_interval(np.repeat([1.0, 0.0], [found, n - found]))
    assert _binomial_tail(found, n, interval.low) == pytest.approx(0.025, rel=0.05)
    if found < n:
        assert _binomial_tail(n - found, n, 1.0 - interval.high) == pytest.approx(0.025, rel=0.05)


def _binomial_tail(least: int, n: int, chance: float) -> float:
    """The probability of at least `least` successes of `n`."""
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(chance) + (n - i) * math.log1p(-chance)
        for i in range(least, n + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, logs))


def test_where_nothing_was_missed_it_allows_for_hard_queries_that_were_not_drawn() -> None:
    for n in (16, 32, 128, 1024):
        interval = mean_interval(np.ones(n))
        assert interval.low == pytest.approx(0.025 ** (1 / n), rel=0.005)
        assert interval.high == 1.0


def test_a_repeated_query_counts_once() -> None:
    values = np.array([1.0] * 7 + [0.5])
    once = mean_interval(values)
    assert mean_interval(values, times=np.ones(8)) == once
    often = mean_interval(values, times=np.full(8, 9.0))
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high))
    uneven = mean_interval(values, times=np.array([1.0] * 7 + [7.0]))
    assert uneven.mean == pytest.approx(0.75)
    assert uneven.high - uneven.low > once.high - once.low


def test_a_sample_of_most_of_a_finite_population_leaves_little_open() -> None:
    values = np.array([1.0] * 60 + [0.5] * 4)
    widths = []
    for population in (None, 10_000, 256, 128, 65, 64):
        found = mean_interval(values, population=population)
        assert found.low <= found.mean <= found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0.0
    # One of 32 was not drawn: with a chance of 1 in 32, above 0.025, the only one that is hard.
    assert mean_interval(np.ones(31), population=32).low < 31 / 32


def equal(mean: float) -> Draw:
    return lambda random, n: random.binomial(K, mean, n) / K


def correlated(mean: float, total: float) -> Draw:
    return lambda random, n: (
        random.binomial(K, random.beta(total * mean, total * (1 - mean), n)) / K
    )


def mixed(share: float, easy: float, hard: float) -> Draw:
    return lambda random, n: random.binomial(K, np.where(random.random(n) < share, easy, hard)) / K


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        pytest.param(equal(0.95), 0.95, id="equal"),
        pytest.param(equal(0.999), 0.999, id="nearly perfect"),
        pytest.param(correlated(0.95, 1.0), 0.95, id="correlated"),
        pytest.param(correlated(0.99, 1.0), 0.99, id="correlated, nearly perfect"),
        pytest.param(mixed(0.95, 0.99, 0.5), 0.95 * 0.99 + 0.05 * 0.5, id="5 % hard"),
        pytest.param(mixed(0.9875, 0.99, 0.0), 0.9875 * 0.99, id="1.25 % find nothing"),
        pytest.param(mixed(0.95, 1.0, 0.0), 0.95, id="all or nothing"),
    ],
)
@pytest.mark.parametrize("n", [32, 64, 128])
def test_the_interval_contains_the_truth_95_times_of_100(draw: Draw, mean: float, n: int) -> None:
    """Wilson's interval with a design effect, used before: 82 of 100 where 1.25 % find nothing."""
    random = np.random.default_rng(7)
    found = [mean_interval(draw(random, n)) for _ in range(800)]
    held = np.mean([one.low <= mean + 1e-12 and mean - 1e-12 <= one.high for one in found])
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 800)
    width = np.mean([one.high - one.low for one in found])
    assert width < 4.4 * draw(random, 10_000).std() / math.sqrt(n) + 5.0 / n


@pytest.mark.parametrize("middle", [0.1, 0.5, 0.9])
def test_no_distribution_of_three_values_is_missed_too_often(middle: float) -> None:
    """All samples of 16 and their probabilities: no simulation error. Each end may miss 2.5 %."""
    n, levels = 16, np.array([0.0, middle, 1.0])
    counts = np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    found = [mean_interval(np.repeat(levels, row)) for row in counts]
    low, high = np.array([(one.low, one.high) for one in found]).T
    ways = [math.lgamma(n + 1) - sum(math.lgamma(c + 1) for c in row) for row in counts.tolist()]
    grid = np.concatenate([np.geomspace(1e-3, 0.2, 12), np.linspace(0.25, 0.95, 15)])
    for nothing, some in itertools.product(grid, grid):
        if nothing + some < 1.0:
            chances = np.array([nothing, some, 1.0 - nothing - some])
            probability = np.exp(ways + counts @ np.log(chances))
            mean = chances @ levels
            assert probability[low > mean].sum() <= 0.0251
            assert probability[high < mean].sum() <= 0.0251


def test_strata_count_by_their_traffic_and_their_errors_are_independent() -> None:
    joined = combine_strata(
        [Stratum(3.0, Interval(0.9, 0.8, 0.95)), Stratum(1.0, Interval(0.5, 0.1, 0.6))]
    )
    assert joined is not None
    assert joined.mean == pytest.approx(0.8)
    assert joined.low == pytest.approx(0.8 - math.hypot(0.075, 0.1))
    assert joined.high == pytest.approx(0.8 + math.hypot(0.0375, 0.025))
    assert combine_strata([]) is None
    assert combine_strata([Stratum(1.0, None)]) is None


def test_a_stratum_that_was_not_measured_widens_the_interval_by_its_share() -> None:
    joined = combine_strata([Stratum(9.0, Interval(0.9, 0.8, 1.0)), Stratum(1.0, None)])
    assert joined is not None
    assert joined.mean == pytest.approx(0.9)
    assert joined.low == pytest.approx(0.9 * 0.8)
    assert joined.high == pytest.approx(1.0)


@given(strata)
def test_joined_strata_lie_between_the_lowest_and_the_highest(parts: list[Stratum]) -> None:
    joined = combine_strata(parts)
    measured = [one.interval for one in parts if one.interval is not None]
    assert (joined is None) == (not measured)
    if joined is not None:
        assert 0.0 <= joined.low <= joined.mean <= joined.high <= 1.0
        means = [one.mean for one in measured]
        assert min(means) - 1e-9 <= joined.mean <= max(means) + 1e-9
        one_more = combine_strata([*parts, Stratum(1.0, None)])
        assert one_more is not None
        assert one_more.low <= joined.low + 1e-9
        assert joined.high <= one_more.high + 1e-9


def test_joined_strata_contain_the_truth_95_times_of_100() -> None:
    """Rare hard bands with few samples; the shares of the traffic are known."""
    random = np.random.default_rng(5)
    shares = (0.7, 0.2, 0.08, 0.02)
    draws = (correlated(0.95, 2.0), mixed(0.95, 0.99, 0.5), mixed(0.99, 1.0, 0.2), equal(0.9))
    means = (0.95, 0.95 * 0.99 + 0.025, 0.99 + 0.002, 0.9)
    truth = math.fsum(map(math.prod, zip(shares, means, strict=True)))
    held = 0
    for _ in range(400):
        joined = combine_strata(
            Stratum(share, mean_interval(draw(random, n)))
            for share, draw, n in zip(shares, draws, (64, 32, 16, 8), strict=True)
        )
        assert joined is not None
        held += joined.low <= truth <= joined.high
    assert held / 400 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


def test_counts_of_a_large_sample_are_handled() -> None:
    values = np.array(list(itertools.islice(itertools.cycle([1.0, 0.5]), 100_000)))
    interval = mean_interval(values)
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 * values.std() / math.sqrt(len(values)), rel=0.05
    )
