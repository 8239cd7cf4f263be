"""How long searches take now, compared with earlier ones under the same load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SLOWER_RATIO = 1.25
"""Slower, or faster by its inverse: by so much, and surely (the interval does not hold 1)."""


class TrendVerdict(StrEnum):
    """How searches take now; `unknown`: there is nothing comparable, `reason` says why."""

    UNKNOWN = "unknown"
    STEADY = "steady"
    SLOWER = "slower"
    FASTER = "faster"


@dataclass(frozen=True, slots=True)
class TrendRatio:
    """`now` against what the same volume would have cost before: `ratio`, with its 95 % interval.

    `now` is in seconds, or in rows compared for one query.
    """

    now: float
    ratio: float
    low: float
    high: float

    @property
    def expected(self) -> float:
        """What earlier windows say for the present volume, in the unit of `now`."""
        return self.now / self.ratio

    @property
    def verdict(self) -> TrendVerdict:
        """Return what the ratio says."""
        if self.ratio >= SLOWER_RATIO and self.low > 1.0:
            return TrendVerdict.SLOWER
        if self.ratio <= 1.0 / SLOWER_RATIO and self.high < 1.0:
            return TrendVerdict.FASTER
        return TrendVerdict.STEADY


@dataclass(frozen=True, slots=True)
class LatencyTrend:
    """One node's searches of one collection: the latest windows against earlier comparable ones.

    `queries_per_s` is the node's volume now, of all its collections: they share its cores.
    `windows` and `baseline_windows` were compared, each of `window_s` seconds. What could not be
    compared is None; `reason` says why nothing could.
    """

    verdict: TrendVerdict
    reason: str = ""
    window_s: float = 60.0
    queries_per_s: float = 0.0
    windows: int = 0
    baseline_windows: int = 0
    p50: TrendRatio | None = None
    p99: TrendRatio | None = None
    visited: TrendRatio | None = None
