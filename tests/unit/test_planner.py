"""How a segment is searched: pure decisions."""

from __future__ import annotations

import pytest

from annheal.model.limits import EF_MAX
from annheal.model.manifest import IndexKind
from annheal.segment import RecallPoint
from shard_node.planner import EF_MIN, EF_UNCALIBRATED_MAX, PlanKind, choose_ef, plan_segment

CURVE = (RecallPoint(10, 16, 0.9), RecallPoint(10, 64, 0.99), RecallPoint(10, 32, 0.96))


def plan(**changes: object) -> tuple[PlanKind, int]:
    arguments = {
        "index_kind": IndexKind.HNSW,
        "rows": 100_000,
        "allowed": 100_000,
        "filtered": False,
        "ef": 64,
        "exact": False,
    }
    found = plan_segment(**{**arguments, **changes})  # type: ignore[arg-type]
    return found.kind, found.ef


def test_nothing_allowed_is_skipped() -> None:
    assert plan(allowed=0) == (PlanKind.SKIP, 0)
    assert plan(allowed=0, exact=True) == (PlanKind.SKIP, 0)


def test_the_whole_graph_is_walked_with_the_chosen_ef() -> None:
    assert plan() == (PlanKind.GRAPH, 64)


def test_a_flat_index_and_an_exact_search_compare() -> None:
    assert plan(index_kind=IndexKind.FLAT) == (PlanKind.SCAN, 0)
    assert plan(exact=True) == (PlanKind.SCAN, 0)
    assert plan(exact=True, allowed=99_000) == (PlanKind.SCAN, 0)


def test_few_matches_are_compared_alone() -> None:
    assert plan(index_kind=IndexKind.FLAT, allowed=10, filtered=True)[0] is PlanKind.ROWS
    assert plan(allowed=500, filtered=True)[0] is PlanKind.ROWS


def test_tombstones_widen_the_beam() -> None:
    assert plan(allowed=80_000) == (PlanKind.SELECTOR, 80)


def test_the_beam_has_a_limit() -> None:
    kind, ef = plan(rows=10_000_000, allowed=300_000, filtered=True, ef=4_096)
    assert (kind, ef) == (PlanKind.SELECTOR, EF_MAX)


@pytest.mark.parametrize(
    ("objective", "ef"), [(0.5, 16), (0.9, 16), (0.91, 32), (0.96, 32), (0.97, 64), (0.999, 64)]
)
def test_the_smallest_ef_that_meets_the_objective(objective: float, ef: int) -> None:
    assert choose_ef(CURVE, k=10, objective=objective) == ef


def test_ef_is_never_below_k() -> None:
    assert choose_ef(CURVE, k=10, objective=0.5) == 16
    assert choose_ef((RecallPoint(100, 16, 1.0),), k=100, objective=0.5) == 100


def test_without_a_measurement_ef_grows_with_k_within_bounds() -> None:
    assert choose_ef((), k=1, objective=0.9) == EF_MIN
    assert choose_ef((), k=20, objective=0.9) == 160
    assert choose_ef((), k=100, objective=0.9) == EF_UNCALIBRATED_MAX
    assert choose_ef((), k=1_000, objective=0.9) == 1_000
