"""How one segment answers a query: pure decisions from counts (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from annheal.model.limits import EF_MAX
from annheal.model.manifest import IndexKind
from annheal.segment import RecallPoint

EF_MIN, EF_UNCALIBRATED_MAX, EF_PER_K = 64, 512, 8
CONFIDENCE_Z = 1.96
"""97.5 % of the normal distribution."""
WALK_COMPARISONS_PER_EF = 12
"""Vectors that a walk compares per unit of ef: 600 to 900 at ef 64, M 16 on the sample data."""


class PlanKind(StrEnum):
    """Ways to answer inside one segment."""

    SKIP = "skip"
    SCAN = "scan"
    ROWS = "rows"
    GRAPH = "graph"
    SELECTOR = "selector"


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The way chosen and its beam width (0 where no graph is walked)."""

    kind: PlanKind
    ef: int = 0


def plan_segment(
    *,
    index_kind: IndexKind,
    rows: int,
    allowed: int,
    filtered: bool,
    ef: int,
    exact: bool,
) -> SegmentPlan:
    """Return how to find the best of `allowed` rows among `rows`.

    `allowed` rows live and match. The comparison of only these rows (ROWS) is exact and costs
    `allowed` comparisons; a walk whose results are limited by a selector needs a beam wider by
    the share of rows that do not count.
    """
    if allowed == 0:
        return SegmentPlan(PlanKind.SKIP)
    if exact or index_kind is IndexKind.FLAT:
        sparse = filtered and allowed * 2 < rows
        return SegmentPlan(PlanKind.ROWS if sparse else PlanKind.SCAN)
    if allowed == rows:
        return SegmentPlan(PlanKind.GRAPH, ef)
    widened = min(EF_MAX, -(-ef * rows // allowed))
    if allowed <= widened * WALK_COMPARISONS_PER_EF:
        return SegmentPlan(PlanKind.ROWS)
    return SegmentPlan(PlanKind.SELECTOR, widened)


def choose_ef(curve: Sequence[RecallPoint], *, k: int, objective: float) -> int:
    """Return the smallest ef that meets `objective` on this segment with 97.5 % confidence.

    A point meets it when its measured recall less `CONFIDENCE_Z` standard errors does, or when its
    recall is perfect. Read from the curve of the smallest k that is at least the one asked for:
    recall at a given ef falls as k grows. When even the largest measured ef falls short, that one;
    without a measurement, `EF_PER_K` times k within stated bounds.
    """
    measured_k = min((p.k for p in curve if p.k >= k), default=None)
    points = sorted((p for p in curve if p.k == measured_k), key=lambda point: point.ef)
    if not points:
        return max(EF_MIN, min(EF_UNCALIBRATED_MAX, EF_PER_K * k), k)
    for point in points:
        if point.recall - CONFIDENCE_Z * point.error >= objective or point.recall >= 1.0:
            return max(point.ef, k)
    return max(points[-1].ef, k)
