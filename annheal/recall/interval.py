"""95 % confidence intervals of mean recall, of one sample of queries and of several. Pure.

The interval of one sample makes no assumption about how recall varies between queries, only that
each query's recall is within [0, 1]. Coverage and width were measured with
`benchmarks/impact/recall_intervals.py`; ADR 30 has the figures and the alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

_Z_95 = 1.959964
# The root lies within these bounds for samples from 1 to some millions of values.
_TILTS = np.geomspace(1e-3, 1e4, 25)
_TILTS_BETWEEN = np.geomspace(1.0, _TILTS[1] / _TILTS[0], 13)
"""From one tilt to the next, as factors."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A `mean` with its 95 % confidence interval: 0 <= `low` <= `mean` <= `high` <= 1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the queries that was sampled by itself, such as a selectivity band.

    `weight` is its share of the traffic, or any number in proportion to it. `interval` is that of
    its recall; None if no query of it was measured.
    """

    weight: float
    interval: Interval | None


def mean_interval(
    values: Values, *, times: Values | None = None, population: int | None = None
) -> Interval:
    """Return the mean of `values` (n,), each within [0, 1], with its 95 % confidence interval.

    The values are a random sample of queries. The interval supposes that the sample has missed the
    worst that it can have missed: one more value of 0 is added for the lower end, one more value of
    1 for the upper end. Each end is then the 2.5 % quantile of the mean under random weights
    (Dirichlet, 1 for each value). N. Gaffke, "Three test statistics for a nonparametric one-sided
    hypothesis on the mean of a nonnegative variable", Mathematical Methods of Statistics 14, 2005.
    For values of 0 and 1 only it is the interval of Clopper and Pearson (1934); for values that are
    all 1 the lower end is 0.025 ** (1 / n), or about 1 - 3.7 / n.

    Args:
        values: (n,), n >= 1.
        times: (n,), how often each value was drawn, if draws depend on one another because a query
            was repeated. The mean counts every draw. The interval counts distinct queries, or fewer
            if some were drawn more often than others (L. Kish, "Survey Sampling", 1965).
        population: number of queries of which `values` are a sample without replacement, at least
            n, if the mean of just these queries is wanted and not that of queries like them. The
            interval is narrower, and has no width if all of them were drawn.
    """
    distinct, place = np.unique(values, return_inverse=True)
    counts = np.bincount(place, weights=times).astype(np.float64)
    mean = float(counts @ distinct / counts.sum())
    if times is not None:
        counts *= float(times.sum() / np.square(times).sum())
    low, below_high = _lower_ends(distinct, counts)
    scale = 1.0 if population is None else _finite_scale(len(values) / population)
    # Rounding could put a mean of 0 or 1 outside.
    return Interval(
        mean,
        mean - scale * max(0.0, mean - max(0.0, low)),
        mean + scale * max(0.0, min(1.0, 1.0 - below_high) - mean),
    )


def combine_strata(strata: Iterable[Stratum]) -> Interval | None:
    """Return the mean over all queries with its 95 % interval; None if no stratum is measured.

    With weights w_i that add up to 1, the mean is sum(w_i mean_i), the lower end is
    mean - sqrt(sum((w_i (mean_i - low_i))^2)), and the upper end likewise, because strata are
    sampled independently. G. Y. Zou and A. Donner, "Construction of confidence limits about effect
    measures: a general approach", Statistics in Medicine 27, 2008.

    The queries of strata that were not measured may have found nothing or everything: they leave
    the mean as it is, and move the ends towards 0 and 1 by their share of the weights.
    """
    all_strata = list(strata)
    measured = [(one.weight, one.interval) for one in all_strata if one.interval is not None]
    known = math.fsum(weight for weight, _ in measured)
    if not known:
        return None
    shares = [(weight / known, interval) for weight, interval in measured]
    mean = math.fsum(share * one.mean for share, one in shares)
    below = math.hypot(*(share * (one.mean - one.low) for share, one in shares))
    above = math.hypot(*(share * (one.high - one.mean) for share, one in shares))
    share_known = known / math.fsum(one.weight for one in all_strata)
    low = share_known * max(0.0, mean - below)
    high = 1.0 - share_known * (1.0 - min(1.0, mean + above))
    return Interval(mean, min(mean, low), max(mean, high))


def _lower_ends(values: Values, counts: Values) -> tuple[float, float]:
    """Return the lower end of the mean of `values` (v,), and that of 1 - `values`.

    With weights Dirichlet(counts, 1) of the values and a further 0, it is the quantile of the
    weighted mean. That P(mean <= t) is P(S <= 0) for the sum S of Gamma(counts_i) (values_i - t),
    which a saddlepoint approximation gives with a relative error below 1 % for n >= 8 (O. E.
    Barndorff-Nielsen, "Inference on full or partial parameters based on the standardized signed log
    likelihood ratio", Biometrika 73, 1986). Every `tilt` b > 0 is the saddlepoint of one t: the
    mean of the values weighted by counts / (1 + b values). The root is looked for in b, twice on a
    grid of tilts and then by a line between two of them.
    """
    x = np.zeros((2, len(values) + 1))
    x[0, :-1], x[1, :-1] = values, 1.0 - values
    largest = x.max(axis=1)
    x /= np.maximum(largest, np.finfo(np.float64).tiny)[:, None]
    weights = np.append(counts, 1.0)
    row = np.arange(2)
    after = _first_after(_signed_roots(x, weights, _TILTS[None, :])[0])
    between = _TILTS[after - 1, None] * _TILTS_BETWEEN
    roots, means = _signed_roots(x, weights, between)
    after = _first_after(roots)
    near, far = roots[row, after - 1], roots[row, after]
    part = (near + _Z_95) / (near - far)
    ends = means[row, after - 1] + part * (means[row, after] - means[row, after - 1])
    low, below_high = np.where(largest > 0.0, ends * largest, 0.0).tolist()
    return low, below_high


def _first_after(roots: Values) -> npt.NDArray[np.int64]:
    """Return, for each row of falling `roots` (2, b), the first place beyond the quantile, >= 1."""
    passed: npt.NDArray[np.int64] = np.count_nonzero(roots > -_Z_95, axis=1)
    return np.clip(passed, 1, roots.shape[1] - 1)


def _signed_roots(x: Values, weights: Values, tilt: Values) -> tuple[Values, Values]:
    """Return the modified signed root r* and the mean t, both (2, b), for tilts (1 or 2, b).

    `x` is (2, v) with a maximum of 1 in each row, `weights` (v,).
    """
    tilted = 1.0 + tilt[:, :, None] * x[:, None, :]
    shares = weights / tilted
    means = (shares * x[:, None, :]).sum(axis=2) / shares.sum(axis=2)
    at_mean = 1.0 + tilt * means
    cumulant = (weights * np.log(tilted / at_mean[:, :, None])).sum(axis=2)
    spread = (weights * np.square((x[:, None, :] - means[:, :, None]) / tilted)).sum(axis=2)
    tiny = np.finfo(np.float64).tiny
    root = -np.sqrt(np.maximum(2.0 * cumulant, tiny))
    wald = -tilt * np.sqrt(np.maximum(spread, tiny))
    roots: Values = root + np.log(wald / root) / root
    return roots, means


def _finite_scale(drawn: float) -> float:
    """Return the factor of the interval if a share `drawn` of a finite population was sampled.

    It is drawn / -log(1 - drawn): a sample that found everything then allows for as many others as
    it misses with a probability of 2.5 %. It is above sqrt(1 - drawn), the correction of the
    standard error (W. G. Cochran, "Sampling Techniques", 1977).
    """
    if drawn >= 1.0:
        return 0.0
    return drawn / -math.log1p(-drawn)
