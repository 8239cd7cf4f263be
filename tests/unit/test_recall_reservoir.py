"""The decaying reservoir: its size, who is in it, and that chance comes from outside."""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.shard_node.recall.sampling.reservoir import DecayingReservoir

Batches = list[tuple[float, int]]
"""Seconds since the batch before, and items."""
BATCHES = st.lists(
    st.tuples(st.floats(0.0, 1e5, allow_subnormal=False), st.integers(0, 40)), max_size=30
)


def filled(
    batches: Batches, *, size: int, horizon_s: float = 30.0, seed: int = 1, began_s: float = 0.0
) -> DecayingReservoir[tuple[int, float]]:
    """Return a reservoir of (number, time of arrival)."""
    reservoir: DecayingReservoir[tuple[int, float]] = DecayingReservoir(
        size, horizon_s=horizon_s, draw=random.Random(seed)
    )
    now_s, first = began_s, 0
    for gap_s, count in batches:
        now_s += gap_s
        reservoir.offer(
            count, now_s, lambda place, first=first, now_s=now_s: (first + place, now_s)
        )
        first += count
    return reservoir


@given(BATCHES, st.integers(1, 20), st.sampled_from([0.5, 30.0, 86_400.0]), st.integers(0, 9))
def test_it_has_as_many_items_as_arrived_up_to_its_size_each_once(
    batches: Batches, size: int, horizon_s: float, seed: int
) -> None:
    found = filled(batches, size=size, horizon_s=horizon_s, seed=seed, began_s=1e7).items()
    total = sum(count for _, count in batches)
    assert len(found) == min(size, total) == len({number for number, _ in found})
    assert all(0 <= number < total for number, _ in found)


@given(BATCHES, st.integers(0, 9))
def test_the_same_seed_gives_the_same_sample(batches: Batches, seed: int) -> None:
    once, again = (filled(batches, size=5, seed=seed).items() for _ in range(2))
    assert once == again


def by_definition(
    arrivals: npt.NDArray[np.float64], *, size: int, horizon_s: float, runs: int
) -> npt.NDArray[np.float64]:
    """Return how often each item is held if every item gets a key: as defined, without jumps."""
    rng = np.random.default_rng(7)
    weights = np.exp((arrivals - arrivals.max()) / horizon_s)
    counts = np.zeros(len(arrivals))
    for _ in range(runs):
        keys = rng.exponential(size=len(arrivals)) / weights
        counts[np.argpartition(keys, size - 1)[:size]] += 1
    return counts / runs


@pytest.mark.parametrize("per_batch", [1, 7])
@pytest.mark.parametrize("size", [1, 8])
def test_items_are_held_with_the_probabilities_of_the_definition(size: int, per_batch: int) -> None:
    batches: Batches = [(2.0, per_batch)] * 40
    runs = 2_000
    counts = np.zeros(40)
    for seed in range(runs):
        for number, _ in filled(batches, size=size, seed=seed).items():
            counts[number // per_batch] += 1
    arrivals = np.repeat(np.arange(40) * 2.0, per_batch)
    if size == 1:  # then it is a weighted choice of one
        weights = np.exp(arrivals / 30.0)
        expected = weights / weights.sum()
    else:
        expected = by_definition(arrivals, size=size, horizon_s=30.0, runs=runs)
    expected = expected.reshape(40, per_batch).sum(axis=1)
    # 4.5 deviations of the difference of two such shares.
    np.testing.assert_array_less(
        np.abs(counts / runs - expected), 4.5 * np.sqrt(2.0 * np.maximum(expected, 1e-3) / runs)
    )


def test_ages_are_exponential_while_more_arrive_than_fit() -> None:
    horizon_s, ages = 30.0, []
    for seed in range(20):
        batches: Batches = [(0.02, 1)] * 15_000  # 50 a second for 5 minutes
        ages += [300.0 - at_s for _, at_s in filled(batches, size=64, seed=seed).items()]
    found = np.sort(np.array(ages))
    ideal = 1.0 - np.exp(-found / horizon_s)
    ranks = (np.arange(len(found)) + 0.5) / len(found)
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed once in 1,000 times.
    assert np.abs(ranks - ideal).max() < 1.95 / math.sqrt(len(found))


def test_the_chance_to_enter_is_what_it_says() -> None:
    entered, expected = 0, 0.0
    for seed in range(150):
        reservoir = filled([(0.02, 1)] * 3_000, size=16, seed=seed)
        assert filled([(0.0, 3)], size=16).chance(0.0) == 1.0
        expected += reservoir.chance(60.5)
        entered += reservoir.offer(1, 60.5, lambda place: (-1, 60.5))
    assert entered == pytest.approx(expected, abs=4.5 * math.sqrt(expected))


def test_the_first_items_of_a_sample_are_a_smaller_sample() -> None:
    """Held to half of the size, ages stay exponential: budgets may cut a sample."""
    ages = [
        300.0 - at_s
        for seed in range(40)
        for _, at_s in filled([(0.05, 1)] * 6_000, size=64, seed=seed).items()[:32]
    ]
    assert np.mean(ages) == pytest.approx(30.0, abs=4.5 * 30.0 / math.sqrt(len(ages)))


def test_after_a_long_silence_new_items_take_over_and_nothing_overflows() -> None:
    found = filled([(1.0, 100), (1e9, 10), (0.0, 5)], size=8).items()
    assert all(number >= 100 for number, _ in found)


def test_items_of_the_past_are_displaced_by_newer_ones() -> None:
    reservoir: DecayingReservoir[int] = DecayingReservoir(4, horizon_s=30.0, draw=random.Random(2))
    for number in range(10):
        reservoir.add_earlier(number, arrived_s=-1_000.0, now_s=0.0)
    assert len(reservoir) == 4
    assert reservoir.offer(4, 0.0, lambda place: 100 + place) == 4
    assert sorted(reservoir.items()) == [100, 101, 102, 103]
