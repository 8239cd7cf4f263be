"""When a merge goes on with a graph, and when what came of it must not stay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from annheal.compactor.build.base_plan import (
    BASE_ROWS_MIN,
    COST_SHARE_MAX,
    DEAD_SHARE_MAX,
    DRIFT_MAX,
    GROWTH_DRIFT,
    MERGES_MAX,
    BaseCandidate,
    BasePlan,
    cost_share,
    drift_reason,
    plan_base,
)
from annheal.model.collection import IndexSettings
from annheal.segment import RecallPoint

CURVE = (RecallPoint(10, 32, 0.94), RecallPoint(10, 64, 0.97), RecallPoint(10, 512, 0.999))
GRAPH = BaseCandidate(100_000, 95_000, IndexSettings(), reference=CURVE)
FLAT = BaseCandidate(5_000, 5_000, None)


def plan(*sources: BaseCandidate, rebuild_why: str = "", k: int = 10) -> BasePlan:
    return plan_base(
        sources,
        rows=sum(source.kept_rows for source in sources),
        rebuild_why=rebuild_why,
        allowed=[IndexSettings(), IndexSettings(32, 200)],
        recall_k=k,
    )


def test_the_source_with_the_largest_graph_is_the_base() -> None:
    smaller = replace(GRAPH, rows=30_000, kept_rows=30_000)
    assert plan(FLAT, smaller, GRAPH, FLAT) == BasePlan(2)
    assert plan(replace(GRAPH, settings=IndexSettings(32, 200))) == BasePlan(0)


@pytest.mark.parametrize(
    ("sources", "options", "why"),
    [
        ((GRAPH, FLAT), {"rebuild_why": "kernels are missing"}, "kernels are missing"),
        ((GRAPH, FLAT), {"k": 20}, "not measured at the collection's k"),
        ((FLAT, replace(FLAT, rows=90_000, kept_rows=90_000)), {}, "no source has a graph"),
        ((replace(GRAPH, rows=5_000, kept_rows=5_000),), {}, "few rows"),
        ((replace(GRAPH, settings=IndexSettings(8, 50)),), {}, "no longer those"),
        ((replace(GRAPH, merges=MERGES_MAX),), {}, "20 merges"),
        ((replace(GRAPH, reference=()),), {}, "not measured"),
        ((replace(GRAPH, reference=(RecallPoint(10, 64, 1.0, band="0.5"),)),), {}, "not measured"),
        ((replace(GRAPH, kept_rows=69_000),), {}, "31000 of 100000 rows"),
        ((GRAPH, replace(FLAT, rows=300_000, kept_rows=300_000)), {}, "of a rebuild"),
    ],
)
def test_otherwise_the_graph_is_rebuilt_and_the_plan_says_why(
    sources: tuple[BaseCandidate, ...], options: dict[str, object], why: str
) -> None:
    found = plan(*sources, **options)  # type: ignore[arg-type]
    assert found.base is None
    assert why in found.why


def test_limits_are_where_they_are_documented() -> None:
    assert plan(replace(GRAPH, merges=MERGES_MAX - 1)).base == 0
    rows = BASE_ROWS_MIN
    assert plan(replace(GRAPH, rows=rows, kept_rows=rows)).base == 0
    assert plan(replace(GRAPH, rows=rows, kept_rows=rows - 1)).base is None
    dead = int(100_000 * DEAD_SHARE_MAX)
    degraded = replace(GRAPH, kept_rows=100_000 - dead)
    assert cost_share(degraded, rows=degraded.kept_rows) > COST_SHARE_MAX
    many = replace(FLAT, rows=40_000, kept_rows=40_000)
    assert cost_share(degraded, rows=degraded.kept_rows + 40_000) > COST_SHARE_MAX
    assert plan(degraded, many).base is None


def test_cost_is_that_of_what_is_added_and_twice_what_is_removed() -> None:
    assert cost_share(replace(GRAPH, kept_rows=100_000), rows=100_000) == 0.0
    assert cost_share(GRAPH, rows=100_000) == pytest.approx(0.05 + 2 * 0.05)


def test_curve_below_the_objective_or_the_reference_is_refused() -> None:
    def drift(recall_at_64: float, *, growth: float = 1.0, objective: float = 0.95) -> str:
        curve = (RecallPoint(10, 64, recall_at_64), RecallPoint(10, 512, 0.99))
        return drift_reason(curve, CURVE, k=10, objective=objective, growth=growth)

    assert drift(0.97) == drift(0.97 - DRIFT_MAX + 0.001) == ""
    assert "0.9540 at ef 64 was 0.9700" in drift(0.97 - DRIFT_MAX - 0.001)
    assert drift(0.97 - DRIFT_MAX - 0.001, growth=2.0) == ""
    assert drift(0.97 - DRIFT_MAX - GROWTH_DRIFT - 0.001, growth=2.0) != ""
    assert drift(0.97 - DRIFT_MAX - 0.001, growth=0.5) != ""
    assert "below the objective" in drift(0.999, objective=0.9995)
    assert "no recall to compare" in drift_reason(CURVE, (), k=10, objective=0.95, growth=1.0)
    assert "below the objective" in drift_reason((), CURVE, k=10, objective=0.95, growth=1.0)


def test_curve_that_ended_early_is_as_good_beyond_its_end() -> None:
    short = (
        RecallPoint(10, 32, 0.999),
        RecallPoint(100, 128, 0.5),
        RecallPoint(10, 64, 0, band="1"),
    )
    assert drift_reason(short, CURVE, k=10, objective=0.95, growth=1.0) == ""
