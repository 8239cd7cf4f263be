"""Reading recall curves: the smallest ef that meets a recall objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from annheal.index import RATIO_MAX, Reach
from annheal.model.limits import EF_MAX
from annheal.segment import RecallPoint

EF_MIN, EF_UNCALIBRATED_MAX, EF_PER_K = 64, 512, 8
CONFIDENCE_Z = 3.0
"""Standard errors: 99.9 % of the normal distribution, one-sided. Indexes are rebuilt hundreds of
times: with 97.5 % one build in forty would miss its objective."""
PROBE_OPTIMISM = 0.008
"""Subtracted from recall measured with rows of the collection, which are easier to find than
other queries, 0.958 against 0.951 at ef 64 on 100,000 package embeddings and 1,500 other packages
as queries, 0.962 against 0.953 at ef 40 on 10,000 and 500."""

POST_FILTER_OPTIMISM = 0.016
"""The same for walks whose hits are filtered afterwards (`selector`): 0.010 to 0.021 at ef 64 to
128 on 100,000 package embeddings with half of the rows allowed and 750 other packages as queries.
Of walks that test the filter it is 0.001 to 0.009 there."""

CURVE_MISSES_MIN = 1e-4
"""Smaller shares of missed neighbours are noise: curves are measured with some 10,000 of them."""


def choose_ef(curve: Sequence[RecallPoint], *, k: int, objective: float) -> int:
    """Return the smallest ef that meets `objective` without a filter, with 99.9 % confidence.

    A point meets it when its recall minus `CONFIDENCE_Z` standard errors and `PROBE_OPTIMISM` does,
    or when its recall is 1. Between two points recall is interpolated linearly. Where no point
    meets the objective, the largest measured ef. Between two measured k, ef is on the line
    between theirs; above the largest it grows as k does, below the smallest it is that of the
    smallest. Without any point, `EF_PER_K` times `k`, at least `EF_MIN` and at most
    `EF_UNCALIBRATED_MAX`. Never below `k`, at most `EF_MAX`.
    """
    measured = sorted({point.k for point in curve if not point.band})
    if not measured:
        return max(EF_MIN, min(EF_UNCALIBRATED_MAX, EF_PER_K * k), k)
    above = next((one for one in measured if one >= k), measured[-1])
    below = next((one for one in reversed(measured) if one <= k), measured[0])
    ef = float(_ef_at(curve, k=above, objective=objective))
    if below < k < above:
        low = _ef_at(curve, k=below, objective=objective)
        ef = low + (ef - low) * (k - below) / (above - below)
    return min(max(math.ceil(ef * max(1.0, k / above)), k), EF_MAX)


def _ef_at(curve: Sequence[RecallPoint], *, k: int, objective: float) -> int:
    """Return what `choose_ef` does for a measured `k`."""
    points = _points(curve, k=k)
    return (_interpolated(points, objective) or points[-1]).ef


def plain_ef(curve: Sequence[RecallPoint], *, k: int, objective: float) -> int | None:
    """Return `choose_ef`, or None where only exact comparison meets `objective`.

    That is an objective of 1, or one above the largest mean recall measured, at the largest
    measured k where `k` is larger. Where only the confidence of `choose_ef` is not reached, the
    largest measured ef is used.
    """
    measured = {point.k for point in curve if not point.band}
    points = _points(curve, k=min(k, max(measured, default=k)))
    if objective >= 1.0 or (points and max(point.recall for point in points) < objective):
        return None
    return choose_ef(curve, k=k, objective=objective)


def measured_visits(curve: Sequence[RecallPoint], *, k: int, ef: int) -> float:
    """Return the rows that an unfiltered walk at `ef` compared at build; 0 where not measured."""
    points = [point for point in _points(curve, k=k) if point.visited]
    for low, high in itertools.pairwise(points):
        if low.ef <= ef < high.ef:
            return _between(low, high, (ef - low.ef) / (high.ef - low.ef)).visited
    return points[-1].visited if points and points[-1].ef <= ef else 0.0


def choose_reach(curve: Sequence[RecallPoint], *, k: int, ef: int) -> Reach | None:
    """Return the reach at which an adaptive walk has the recall of a walk of width `ef`.

    It is that of the smallest k not below `k` that has reaches: recall@k is then no lower either.
    It is interpolated linearly in the logarithm of ef, and beyond the largest measured ef it rises
    as between the last two points. None above the largest k with reaches, where fewer than two
    points have one, or where `ef` is below all that have one.
    """
    rank = min((point.k for point in curve if point.reach and point.k >= k), default=None)
    if rank is None:
        return None
    points = [point for point in _points(curve, k=rank) if point.reach]
    if len(points) < 2 or ef < points[0].ef:
        return None
    low, high = points[-2:]
    for before, after in itertools.pairwise(points):
        if ef <= after.ef:
            low, high = before, after
            break
    share = math.log(ef / low.ef) / math.log(high.ef / low.ef)
    ratio = low.reach + share * (high.reach - low.reach)
    return Reach(min(max(ratio, 1.0), RATIO_MAX), rank)


def curve_factor(curve: Sequence[RecallPoint], *, k: int, ef: int, fewer: float) -> float | None:
    """Return by which factor `ef` must grow until `fewer` times fewer neighbours are missed.

    Read on the lines between the points of the curve in the logarithms of ef and of the share that
    is missed. None where the curve does not reach so far.
    """
    points = _points(curve, k=k)
    if len(points) < 2 or not points[0].ef <= ef < points[-1].ef:
        return None
    efs = np.log([point.ef for point in points])
    found = np.log([max(1.0 - point.recall, CURVE_MISSES_MIN) for point in points])
    found = -np.minimum.accumulate(found)
    wanted = float(np.interp(math.log(ef), efs, found)) + math.log(fewer)
    if wanted > found[-1]:
        return None
    return math.exp(float(np.interp(wanted, found, efs))) / ef


def choose_band_ef(
    curve: Sequence[RecallPoint],
    *,
    k: int,
    objective: float,
    share: float,
    far: bool = False,
    selector: bool = False,
) -> RecallPoint | None:
    """Return the point of smallest ef that meets `objective` where `share` of the rows is allowed.

    Reads the largest band not above `share`; more selective bands need a larger ef. `far` and
    `selector` choose the kind of walk that was measured. None without such a band, or where none of
    its points meets the objective. For a k that was not measured in the band, ef is that of the
    next larger one, else of the largest, and grows by the same factor as without a filter.
    """
    of_kind = [p for p in curve if p.band and p.far == far and p.selector == selector]
    band = max((p.band for p in of_kind if float(p.band) <= share), key=float, default=None)
    in_band = [p for p in of_kind if p.band == band]
    if not in_band:
        return None
    measured = sorted({point.k for point in in_band})
    measured_k = next((one for one in measured if one >= k), measured[-1])
    found = _first_meeting(_points(in_band, k=measured_k, band=band or ""), objective)
    if found is None or measured_k == k:
        return found
    wider = plain_ef(curve, k=k, objective=objective)
    if wider is None:
        return None
    times = max(1.0, wider / choose_ef(curve, k=measured_k, objective=objective))
    return replace(
        found,
        ef=math.ceil(found.ef * times),
        visited=found.visited * times,
        checked=found.checked * times,
    )


def _points(curve: Sequence[RecallPoint], *, k: int, band: str = "") -> list[RecallPoint]:
    """Return the points of one band at the smallest measured k not below `k`, by ascending ef."""
    of_band = [point for point in curve if point.band == band]
    measured_k = min((p.k for p in of_band if p.k >= k), default=None)
    return sorted((p for p in of_band if p.k == measured_k), key=lambda point: point.ef)


def _interpolated(points: Sequence[RecallPoint], objective: float) -> RecallPoint | None:
    """Return the point that meets `objective` on the line to the first measured one that does.

    Without a filter recall is concave in ef, so the line is below the curve. Those of bands need
    not be concave.
    """
    point = _first_meeting(points, objective)
    before = [one for one in points if point is not None and one.ef < point.ef]
    if point is None or not before or _recall_bound(point) < objective:
        return point
    low, high = _recall_bound(before[-1]), _recall_bound(point)
    return _between(before[-1], point, (objective - low) / (high - low))


def _first_meeting(points: Sequence[RecallPoint], objective: float) -> RecallPoint | None:
    for point in points:
        if _recall_bound(point) >= objective or point.recall >= 1.0:
            return point
    return None


def _recall_bound(point: RecallPoint) -> float:
    optimism = POST_FILTER_OPTIMISM if point.selector else PROBE_OPTIMISM
    return point.recall - CONFIDENCE_Z * point.error - optimism


def _between(low: RecallPoint, high: RecallPoint, share: float) -> RecallPoint:
    """Return the point at `share` of the way from `low` to `high`."""
    ef = min(high.ef, math.ceil(low.ef + share * (high.ef - low.ef)))
    share = (ef - low.ef) / (high.ef - low.ef)

    def mixed(a: float, b: float) -> float:
        return a + share * (b - a)

    return replace(
        high,
        ef=ef,
        recall=mixed(low.recall, high.recall),
        error=mixed(low.error, high.error),
        visited=mixed(low.visited, high.visited),
        checked=mixed(low.checked, high.checked),
    )
