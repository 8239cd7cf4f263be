"""Planted populations of per-query recall, of which the true mean is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.recall.estimating import arrivals_of

Values = npt.NDArray[np.float64]
Random = np.random.Generator
Chances = Callable[[Random, tuple[int, int]], Values]
"""Draws, for each query, the chance that one of its k neighbours is found."""

POPULATION_PER_SAMPLE = 2
"""Queries of a finite population for each sampled one."""
BURST_MEAN = 4.0
"""Mean number of times that a query of a burst is sent in a row."""
HOT_SHARE = 0.5
"""Of the traffic, where one query is hot."""
SECONDS_PER_QUERY = 0.5
"""Between two sampled queries: 128 in about a minute."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples (r, n) of recall in rows, and the true mean (r,) that each should contain.

    `population` is the size of a finite population, None for an infinite one. `times` (r, n) is 0
    for a value that repeats one before, else how often it was drawn in all; None if every query is
    drawn independently.
    """

    values: Values
    truth: Values
    population: int | None = None
    times: Values | None = None


@dataclass(frozen=True, slots=True)
class RecallPopulation:
    """A population of queries; `kind` says how: "", "finite", "bursts" or "hot"."""

    name: str
    mean: float
    chances: Chances
    all_or_nothing: bool = False
    kind: str = ""

    def draw(self, random: Random, *, samples: int, n: int, k: int) -> Drawn:
        """Return `samples` samples of `n` queries with `k` neighbours each."""
        if self.kind == "finite":
            whole = self._recalls(random, (samples, POPULATION_PER_SAMPLE * n), k)
            return Drawn(whole[:, :n], whole.mean(axis=1), population=whole.shape[1])
        values = self._recalls(random, (samples, n), k)
        truth = np.full(samples, self.mean)
        if self.kind == "bursts":
            values, times = _repeated(random, values)
            return Drawn(values, truth, times=times)
        if self.kind == "hot":
            hot = self._recalls(random, (samples, 1), k)
            values, times = _with_hot(random, values, hot)
            return Drawn(values, HOT_SHARE * hot[:, 0] + (1.0 - HOT_SHARE) * truth, times=times)
        return Drawn(values, truth)

    def _recalls(self, random: Random, shape: tuple[int, int], k: int) -> Values:
        chances = self.chances(random, shape)
        if self.all_or_nothing:
            return (random.random(shape) < chances).astype(np.float64)
        found: Values = random.binomial(k, chances) / k
        return found


def _repeated(random: Random, values: Values) -> tuple[Values, Values]:
    """Return the values with every one repeated a geometric number of times, and the counts."""
    starts = random.random(values.shape) < 1.0 / BURST_MEAN
    starts[:, 0] = True
    columns = np.arange(values.shape[1])
    began = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    repeated = np.take_along_axis(values, began, axis=1)
    times = np.zeros(values.shape)
    np.add.at(times, (np.arange(len(values))[:, None], began), 1.0)
    return repeated, times


def _with_hot(random: Random, values: Values, hot: Values) -> tuple[Values, Values]:
    """Return the values with about half replaced by `hot` (r, 1), those of one query.

    Also how often each arrival was drawn: draws of the hot query within a second are one arrival.
    """
    is_hot = random.random(values.shape) < HOT_SHARE
    moments = np.sort(random.random(values.shape) * values.shape[1] * SECONDS_PER_QUERY, axis=1)
    times = np.ones(values.shape)
    for row in range(len(values)):
        places = np.flatnonzero(is_hot[row])
        arrivals = arrivals_of(np.zeros(len(places), dtype=np.uint64), moments[row, places])
        _, first, counts = np.unique(arrivals, return_index=True, return_counts=True)
        times[row, places] = 0.0
        times[row, places[first]] = counts
    return np.where(is_hot, hot, values), times


def _same(mean: float) -> Chances:
    return lambda _, shape: np.full(shape, mean)


def _beta(mean: float, correlation: float) -> Chances:
    total = 1.0 / correlation - 1.0
    return lambda random, shape: random.beta(total * mean, total * (1.0 - mean), shape)


def _mixed(share: float, mean: float, other: float) -> Chances:
    """A `share` of the queries with the chance `mean`, and the others."""
    return lambda random, shape: np.where(random.random(shape) < share, mean, other)


POPULATIONS = (
    RecallPopulation("equal 0.90", 0.9, _same(0.9)),
    RecallPopulation("equal 0.95", 0.95, _same(0.95)),
    RecallPopulation("nearly perfect", 0.999, _same(0.999)),
    RecallPopulation("correlated 0.1", 0.95, _beta(0.95, 0.1)),
    RecallPopulation("correlated 0.3", 0.95, _beta(0.95, 0.3)),
    RecallPopulation("correlated 0.6", 0.95, _beta(0.95, 0.6)),
    RecallPopulation("all or nothing 0.95", 0.95, _same(0.95), all_or_nothing=True),
    RecallPopulation("all or nothing 0.99", 0.99, _same(0.99), all_or_nothing=True),
    RecallPopulation("5 % hard", 0.95 * 0.99 + 0.05 * 0.5, _mixed(0.95, 0.99, 0.5)),
    RecallPopulation("1 % hard", 0.99 * 0.995 + 0.01 * 0.2, _mixed(0.99, 0.995, 0.2)),
    RecallPopulation("1.25 % find nothing", 0.9875 * 0.99, _mixed(0.9875, 0.99, 0.0)),
    RecallPopulation("two clusters", 0.7 * 0.99 + 0.3 * 0.85, _mixed(0.7, 0.99, 0.85)),
    RecallPopulation(
        "5 % hard, finite", 0.95 * 0.99 + 0.05 * 0.5, _mixed(0.95, 0.99, 0.5), kind="finite"
    ),
    RecallPopulation(
        "5 % hard, bursts", 0.95 * 0.99 + 0.05 * 0.5, _mixed(0.95, 0.99, 0.5), kind="bursts"
    ),
    RecallPopulation(
        "5 % hard, one hot", 0.95 * 0.99 + 0.05 * 0.5, _mixed(0.95, 0.99, 0.5), kind="hot"
    ),
    RecallPopulation("correlated 0.3, one hot", 0.95, _beta(0.95, 0.3), kind="hot"),
)
BY_NAME = {one.name: one for one in POPULATIONS}


@dataclass(frozen=True, slots=True)
class Bands:
    """Bands of one collection: populations, their traffic shares and the numbers of samples.

    `assumed` are the shares that the estimate uses, if they are not those of the traffic.
    """

    name: str
    populations: tuple[str, ...]
    shares: tuple[float, ...]
    samples: tuple[int, ...]
    assumed: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The true mean over all traffic."""
        return sum(
            share * BY_NAME[name].mean
            for share, name in zip(self.shares, self.populations, strict=True)
        )


_FOUR = ("correlated 0.3", "5 % hard", "1 % hard", "two clusters")
BANDS = (
    Bands("four bands", _FOUR, (0.7, 0.2, 0.08, 0.02), (128, 64, 32, 16)),
    Bands("four bands, few", _FOUR, (0.7, 0.2, 0.08, 0.02), (32, 16, 8, 8)),
    Bands("rare and bad", ("nearly perfect", "1 % hard"), (0.2, 0.8), (128, 32)),
    Bands("one not measured", _FOUR, (0.7, 0.2, 0.08, 0.02), (128, 64, 32, 0)),
    Bands("traffic swapped", ("equal 0.90", "nearly perfect"), (0.8, 0.2), (64, 128)),
    Bands(
        "swapped, old shares",
        ("equal 0.90", "nearly perfect"),
        (0.8, 0.2),
        (64, 128),
        assumed=(0.2, 0.8),
    ),
)
