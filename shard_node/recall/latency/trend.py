"""Whether searches got slower for another reason than load. Pure; docs/adr/0015 has the reasons.

The latest windows are compared with earlier ones of nearly the same volume (queries per window).
Within that range of volumes the effect of volume is removed by a robust regression line (H. Theil
1950; P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", Journal of the
American Statistical Association 63, 1968) of log latency on log volume. For other volumes there is
no verdict: near saturation latency does not follow a line, and a new volume has no baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.model.measures.latency import LatencyTrend, TrendRatio, TrendVerdict

WINDOW_S = 60.0
RECENT_WINDOWS = 10
"""The recent windows: the latest ten minutes."""
GAP_WINDOWS = 20
"""Windows between the recent ones and the baseline: else a slow drift would be in both."""
RECENT_MIN = 5
BASELINE_MIN = 30
"""Windows of a comparable volume that a verdict needs: recent ones, and those of the baseline."""
QUERIES_MIN, TAIL_QUERIES_MIN = 20, 200
"""Queries that a window needs for its median, and for its 99th percentile, to be used."""
VOLUME_NEAR = 1.3
"""Comparable volumes differ by at most this factor."""
VOLUME_BEYOND = 1.05
"""The present volume may lie beyond those of the baseline by at most this factor."""
SLOPE_MIN, SLOPE_MAX = -1.0, 3.0
"""Bounds of the slope of log latency on log volume. Warm caches make it negative, queues steep."""
FIT_WINDOWS_MAX = 64
"""Windows whose pairs, 2,016 at most, give the slope."""

_Z_95 = 1.959964
_NORMAL_BY_MAD = 1.4826
_MEDIAN_ERROR = 1.2533
"""Standard error of a median by that of a mean, of normal values."""
_NOISE_MIN = 0.02
_STEP_MIN = math.log(1.02)
"""Pairs of windows whose log volumes differ by less are not used for the slope."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LatencyWindow:
    """Searches of one collection in one window.

    Attributes:
        number: number of the window since the zero of the clock.
        queries: queries of the collection.
        node_queries: queries of all collections of the node, the volume.
        p50_s: median latency in seconds.
        p99_s: 99th percentile of the latency in seconds.
        visited: mean rows compared for one query.
    """

    number: int
    queries: int
    node_queries: int
    p50_s: float
    p99_s: float
    visited: float


@dataclass(frozen=True, slots=True)
class _Compared:
    ratio: TrendRatio
    recent: int
    baseline: int


def estimate_trend(windows: Sequence[LatencyWindow], *, now: int) -> LatencyTrend:
    """Return the trend: the windows just before number `now`, compared with earlier ones."""
    typical = [one for one in windows if one.queries >= QUERIES_MIN]
    recent, baseline = _split(typical, now=now)
    if len(recent) < RECENT_MIN:
        return _unknown(
            f"{len(recent)} of the last {RECENT_WINDOWS} minutes have {QUERIES_MIN} queries;"
            f" {RECENT_MIN} are needed"
        )
    volume = float(np.median([one.node_queries for one in recent]))
    found = _compare(recent, baseline, volume, lambda one: one.p50_s)
    if isinstance(found, str):
        return _unknown(found, volume)
    tails = _split([one for one in typical if one.queries >= TAIL_QUERIES_MIN], now=now)
    tail = _compare(*tails, volume, lambda one: one.p99_s)
    visited = _compare(recent, baseline, volume, lambda one: one.visited + 1.0)
    p99 = None if isinstance(tail, str) else tail.ratio
    verdict = found.ratio.verdict
    if p99 is not None and p99.verdict is TrendVerdict.SLOWER:
        verdict = TrendVerdict.SLOWER
    return LatencyTrend(
        verdict,
        window_s=WINDOW_S,
        queries_per_s=volume / WINDOW_S,
        windows=found.recent,
        baseline_windows=found.baseline,
        p50=found.ratio,
        p99=p99,
        visited=None if isinstance(visited, str) else visited.ratio,
    )


def _unknown(reason: str, volume: float = 0.0) -> LatencyTrend:
    return LatencyTrend(
        TrendVerdict.UNKNOWN, reason, window_s=WINDOW_S, queries_per_s=volume / WINDOW_S
    )


def _split(
    windows: Sequence[LatencyWindow], *, now: int
) -> tuple[list[LatencyWindow], list[LatencyWindow]]:
    """Return the recent windows, and those of the baseline."""
    first = now - RECENT_WINDOWS
    recent = [one for one in windows if first <= one.number < now]
    return recent, [one for one in windows if one.number < first - GAP_WINDOWS]


def _compare(
    recent: Sequence[LatencyWindow],
    baseline: Sequence[LatencyWindow],
    volume: float,
    measure: Callable[[LatencyWindow], float],
) -> _Compared | str:
    """Return the ratio of `measure`, recent to baseline, or the reason why there is none."""
    near = [one for one in baseline if _is_near(one, volume)]
    latest = [one for one in recent if _is_near(one, volume)]
    if len(latest) < RECENT_MIN:
        return "the volume of the last minutes changes too much"
    if len(near) < BASELINE_MIN:
        return (
            f"{len(near)} earlier minutes have a volume like the present"
            f" {volume / WINDOW_S:.3g} queries/s; {BASELINE_MIN} are needed"
        )
    volumes = [one.node_queries for one in near]
    if not min(volumes) / VOLUME_BEYOND <= volume <= max(volumes) * VOLUME_BEYOND:
        return f"the present volume, {volume / WINDOW_S:.3g} queries/s, is new"
    slope = _slope(_thinned(near), measure)
    earlier = _residuals(near, measure, slope)
    residuals = _residuals(latest, measure, slope)
    expected = float(np.median(earlier))
    shift = float(np.median(residuals)) - expected
    noise = max(_NOISE_MIN, _NORMAL_BY_MAD * float(np.median(np.abs(earlier - expected))))
    error = _MEDIAN_ERROR * noise * math.sqrt(1.0 / len(latest) + 1.0 / len(near))
    now = float(np.median([measure(one) for one in latest]))
    ratio = TrendRatio(
        now, math.exp(shift), math.exp(shift - _Z_95 * error), math.exp(shift + _Z_95 * error)
    )
    return _Compared(ratio, len(latest), len(near))


def _is_near(window: LatencyWindow, volume: float) -> bool:
    return volume / VOLUME_NEAR <= window.node_queries <= volume * VOLUME_NEAR


def _thinned(windows: Sequence[LatencyWindow]) -> list[LatencyWindow]:
    count = min(len(windows), FIT_WINDOWS_MAX)
    return [windows[place] for place in np.linspace(0, len(windows) - 1, count).astype(int)]


def _slope(windows: Sequence[LatencyWindow], measure: Callable[[LatencyWindow], float]) -> float:
    """Return the Theil-Sen slope of log `measure` on log volume; 0 if volumes hardly differ."""
    x, y = _logs(windows, measure)
    first, second = np.triu_indices(len(windows), 1)
    steps = x[second] - x[first]
    far = np.abs(steps) >= _STEP_MIN
    if np.count_nonzero(far) < BASELINE_MIN:
        return 0.0
    slopes = (y[second] - y[first])[far] / steps[far]
    return float(np.clip(np.median(slopes), SLOPE_MIN, SLOPE_MAX))


def _residuals(
    windows: Sequence[LatencyWindow], measure: Callable[[LatencyWindow], float], slope: float
) -> Floats:
    x, y = _logs(windows, measure)
    rest: Floats = y - slope * x
    return rest


def _logs(
    windows: Sequence[LatencyWindow], measure: Callable[[LatencyWindow], float]
) -> tuple[Floats, Floats]:
    volumes = np.log([float(max(one.node_queries, 1)) for one in windows])
    values = np.log([max(measure(one), 1e-9) for one in windows])
    return volumes, values
