"""Methods that compute a 95 % interval of mean recall, for comparison with the one in use.

Every method takes samples (r, n) of recall in rows, with k neighbours for each query, and returns
the lower and upper ends, both (r,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from annheal.recall.interval import mean_interval

Values = npt.NDArray[np.float64]
Ends = tuple[Values, Values]
Method = Callable[[Values, int], Ends]

ALPHA = 0.05
_Z = 1.959964
_HARD_BELOW = 0.8
_BISECTIONS = 18
_RESAMPLES = 199


def chosen(values: Values, k: int) -> Ends:
    """The method in use, `annheal.recall.interval.mean_interval`."""
    del k
    found = [mean_interval(row) for row in values]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def wilson_kish(values: Values, k: int) -> Ends:
    """Wilson (1927) on n k hits divided by Kish's design effect: the method used before."""
    n = values.shape[1]
    mean = values.mean(axis=1)
    variance = mean * (1.0 - mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = k * values.var(axis=1, ddof=1) / variance
    design = np.clip((n * measured + 8.0 * k) / (n + 8.0), 1.0, k)
    design = np.where(variance > 0.0, design, k)
    trials = n * k / design
    square = _Z * _Z
    centre = (mean + square / (2.0 * trials)) / (1.0 + square / trials)
    spread = _Z * np.sqrt(variance / trials + square / (4.0 * trials * trials))
    spread /= 1.0 + square / trials
    return np.maximum(0.0, centre - spread), np.minimum(1.0, centre + spread)


def normal(values: Values, k: int) -> Ends:
    """Mean and standard error."""
    del k
    mean = values.mean(axis=1)
    half = _Z * values.std(axis=1, ddof=1) / math.sqrt(values.shape[1])
    return np.maximum(0.0, mean - half), np.minimum(1.0, mean + half)


def bootstrap_t(values: Values, k: int) -> Ends:
    """Studentised bootstrap (Efron 1982) with 199 resamples; no width without a variance."""
    n = values.shape[1]
    random = np.random.default_rng(1)
    levels = np.arange(k + 1) / k
    counts = _level_counts(values, k)
    drawn = random.multinomial(n, counts[:, None, :] / n, size=(len(values), _RESAMPLES))
    means = drawn @ levels / n
    squares = drawn @ np.square(levels) / n
    errors = np.sqrt(np.maximum(squares - np.square(means), 0.0) / (n - 1))
    mean = values.mean(axis=1)
    error = values.std(axis=1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num((means - mean[:, None]) / errors, posinf=1e9, neginf=-1e9)
    below, above = np.quantile(ratios, [ALPHA / 2, 1 - ALPHA / 2], axis=1)
    return np.maximum(0.0, mean - above * error), np.minimum(1.0, mean - below * error)


def empirical_bernstein(values: Values, k: int) -> Ends:
    """A. Maurer and M. Pontil, theorem 4 of "Empirical Bernstein Bounds" (2009), on both sides."""
    del k
    n = values.shape[1]
    logarithm = math.log(4.0 / ALPHA)
    mean = values.mean(axis=1)
    half = np.sqrt(2.0 * values.var(axis=1, ddof=1) * logarithm / n)
    half += 7.0 * logarithm / (3.0 * (n - 1))
    return np.maximum(0.0, mean - half), np.minimum(1.0, mean + half)


def betting(values: Values, k: int) -> Ends:
    """Hedged capital with predictable bets for a fixed n (Waudby-Smith and Ramdas 2024)."""
    del k
    r, n = values.shape
    count = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(values, axis=1)) / (count + 1)
    variances = (0.25 + np.cumsum(np.square(values - means), axis=1)) / (count + 1)
    before = np.concatenate([np.full((r, 1), 0.25), variances[:, :-1]], axis=1)
    bets = np.sqrt(2.0 * math.log(2.0 / ALPHA) / (n * before))
    return _bet_below(values, bets), 1.0 - _bet_below(1.0 - values, bets)


def _bet_below(values: Values, bets: Values) -> Values:
    """Return the largest mean that bets on a larger mean refute, (r,)."""
    low, high = np.zeros(len(values)), values.mean(axis=1)
    limit = math.log(2.0 / ALPHA)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        bet = np.minimum(bets, 0.75 / np.maximum(middle, 1e-12)[:, None])
        capital = np.log1p(bet * (values - middle[:, None])).sum(axis=1)
        refuted = capital >= limit
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return low


def beta_binomial(values: Values, k: int) -> Ends:
    """Posterior of the mean of a beta-binomial; flat in the mean and in the logit of the
    correlation."""
    edges = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 120)])
    misses = (edges[1:] + edges[:-1]) / 2.0
    odds = np.exp(np.linspace(-7.0, 3.0, 16))
    mean, total = np.meshgrid(1.0 - misses, 1.0 / odds, indexing="ij")
    found, missed = (mean * total).ravel(), ((1.0 - mean) * total).ravel()
    table = _log_rises(found, k) + _log_rises(missed, k)[:, ::-1]
    table -= _log_rises(total.ravel(), k)[:, -1:]
    likelihood = _level_counts(values, k) @ table.T
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    by_mean = likelihood.reshape(len(values), len(misses), len(odds)).sum(axis=2)
    cumulative = np.cumsum(by_mean * np.diff(edges), axis=1)
    cumulative /= cumulative[:, -1:]
    ends = [
        1.0 - np.array([np.interp(level, row, edges[1:]) for row in cumulative])
        for level in (1.0 - ALPHA / 2, ALPHA / 2)
    ]
    return ends[0], ends[1]


def _log_rises(base: Values, k: int) -> Values:
    """Return log(base (base + 1) ... (base + i - 1)) for i from 0 to k, (b, k + 1)."""
    steps = np.log(base[:, None] + np.arange(k))
    return np.concatenate([np.zeros((len(base), 1)), np.cumsum(steps, axis=1)], axis=1)


def hard_share(values: Values, k: int) -> Ends:
    """Clopper-Pearson bounds of the share of hard queries, normal ones of the easy queries' mean.

    A query is hard if its recall is below 0.8. Unseen hard queries are taken to find nothing.
    """
    del k
    n = values.shape[1]
    hard = values < _HARD_BELOW
    count = hard.sum(axis=1)
    easy = np.maximum(1, n - count)
    easy_mean = np.where(hard, 0.0, values).sum(axis=1) / easy
    deviations = np.where(hard, 0.0, values - easy_mean[:, None])
    error = _Z * np.sqrt(np.square(deviations).sum(axis=1) / easy) / np.sqrt(easy)
    hard_mean = np.where(hard, values, 0.0).sum(axis=1) / np.maximum(1, count)
    fewest, most = _clopper_pearson(n)
    low = (1.0 - most[count]) * (easy_mean - error) + most[count] * hard_mean
    high = (1.0 - fewest[count]) * (easy_mean + error) + fewest[count] * hard_mean
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


@cache
def _clopper_pearson(n: int) -> Ends:
    """Return the 95 % bounds of a share for 0 to n of n, both (n + 1,)."""
    found = [mean_interval(np.repeat([1.0, 0.0], [count, n - count])) for count in range(n + 1)]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def _level_counts(values: Values, k: int) -> Values:
    """Return how many values of each row are 0, 1 / k, ..., 1: (r, k + 1)."""
    level = np.rint(values * k).astype(np.int64) + np.arange(len(values))[:, None] * (k + 1)
    counts = np.bincount(level.ravel(), minlength=len(values) * (k + 1))
    return counts.reshape(len(values), k + 1).astype(np.float64)


METHODS: dict[str, Method] = {
    "one worse value": chosen,
    "Wilson, Kish": wilson_kish,
    "normal": normal,
    "bootstrap-t": bootstrap_t,
    "Bernstein": empirical_bernstein,
    "betting": betting,
    "beta-binomial": beta_binomial,
    "hard share": hard_share,
}
SLOW = frozenset({"bootstrap-t", "betting"})
"""Methods that get fewer samples."""
