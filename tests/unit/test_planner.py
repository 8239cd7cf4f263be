"""How a segment is searched: pure decisions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from annheal.index import ShortlistCosts, WalkCosts
from annheal.model.limits import EF_MAX, K_MAX
from annheal.model.topology.manifest import IndexKind
from annheal.segment import RecallPoint
from annheal.shard_node.search.planner import (
    WALK_COMPARISONS_PER_EF,
    PlanKind,
    QueryFacts,
    SegmentFacts,
    SegmentPlan,
    plan_segment,
)
from annheal.shard_node.search.recall_curves import (
    EF_MIN,
    EF_UNCALIBRATED_MAX,
    choose_band_ef,
    choose_ef,
    curve_factor,
    measured_visits,
)

CURVE = (RecallPoint(10, 16, 0.9), RecallPoint(10, 64, 0.99), RecallPoint(10, 32, 0.96))
COSTS = WalkCosts(exact_row_ns=70.0, walk_row_ns=160.0, check_ns=2.0, call_ns=10_000.0)
BANDS = (
    *CURVE,
    RecallPoint(10, 64, 0.94, band="0.5", visited=700, checked=2_000),
    RecallPoint(10, 96, 0.97, band="0.5", visited=1_000, checked=3_000),
    RecallPoint(10, 128, 0.97, band="0.1", visited=1_000, checked=9_000),
    RecallPoint(10, 256, 0.96, band="0.1", far=True, visited=1_500, checked=20_000),
    RecallPoint(10, 512, 0.80, band="0.5", far=True, visited=3_500, checked=20_000),
)
FACTS = SegmentFacts(
    index_kind=IndexKind.HNSW,
    rows=100_000,
    allowed=100_000,
    curve=BANDS,
    costs=COSTS,
    walk_ready=True,
)
WANTED = QueryFacts(k=10, objective=0.95, filtered=True)


def plan(wanted: QueryFacts = WANTED, **changes: object) -> SegmentPlan:
    return plan_segment(replace(FACTS, **changes), wanted)  # type: ignore[arg-type]


def test_nothing_allowed_is_skipped() -> None:
    assert plan(allowed=0).kind is PlanKind.SKIP
    assert plan(replace(WANTED, exact=True), allowed=0).kind is PlanKind.SKIP


def test_the_whole_graph_is_walked_with_the_ef_of_the_curve_or_the_callers() -> None:
    assert plan() == SegmentPlan(PlanKind.GRAPH, 32, visited=32 * WALK_COMPARISONS_PER_EF)
    assert plan(replace(WANTED, ef=200)).ef == 200
    measured = (RecallPoint(10, 32, 0.96, visited=650), RecallPoint(10, 64, 0.97, visited=1_000))
    assert plan(curve=measured).visited == 650
    assert plan(replace(WANTED, ef=40), curve=measured).visited == round(650 * 40 / 32)


def test_a_beam_that_costs_more_than_a_scan_is_not_walked() -> None:
    widest = replace(WANTED, ef=16_384)
    assert plan(widest).kind is PlanKind.SCAN
    assert plan(replace(WANTED, ef=64, k=10_000)).kind is PlanKind.SCAN
    assert plan(replace(WANTED, ef=2_000)).kind is PlanKind.GRAPH
    assert plan(widest, rows=1_000_000, allowed=1_000_000).kind is PlanKind.GRAPH


def test_plans_are_remembered_by_all_that_they_depend_on() -> None:
    first = plan()
    assert plan() is first, "read from the curve again"
    better = tuple(replace(point, recall=1.0) for point in BANDS)
    assert plan(curve=better).ef < first.ef, "a curve of as many points is another curve"
    assert plan(replace(WANTED, objective=0.5)).ef < first.ef


def test_a_flat_index_and_an_exact_search_compare() -> None:
    exact = replace(WANTED, exact=True)
    assert plan(index_kind=IndexKind.FLAT).kind is PlanKind.SCAN
    assert plan(exact, allowed=99_000).kind is PlanKind.SCAN
    assert plan(exact, allowed=1_000).kind is PlanKind.ROWS
    assert plan(replace(exact, filtered=False), allowed=1_000).kind is PlanKind.SCAN


def test_an_objective_of_one_misses_nothing() -> None:
    perfect = (RecallPoint(10, 64, 1.0), *BANDS)
    everything = replace(WANTED, objective=1.0, filtered=False)
    assert plan(everything, curve=perfect).kind is PlanKind.SCAN
    assert plan(everything, curve=()).kind is PlanKind.SCAN
    for allowed in (99_000, 60_000, 10_000):
        kind = plan(replace(WANTED, objective=1.0), allowed=allowed, curve=perfect).kind
        assert kind in (PlanKind.SCAN, PlanKind.ROWS)
    assert plan(replace(everything, ef=40), curve=perfect).ef == 40, "a given beam is used"


def test_no_walk_that_was_measured_below_the_objective_is_planned() -> None:
    unsure = (*CURVE, RecallPoint(10, 512, 0.996, error=0.004))
    assert plan(replace(WANTED, objective=0.995), curve=unsure).ef == 512, "its mean is enough"
    for k in (10, 50, 1_000):
        high = QueryFacts(k=k, objective=0.995)
        assert plan(high).kind is PlanKind.SCAN
        for walk_ready in (True, False):
            found = plan(high, allowed=95_000, walk_ready=walk_ready)
            assert found.kind is PlanKind.ROWS
    hard = (*BANDS, RecallPoint(100, 512, 0.6))
    assert plan(curve=hard).kind is PlanKind.GRAPH
    assert plan(QueryFacts(k=100, objective=0.95), curve=hard).kind is PlanKind.SCAN
    assert plan(QueryFacts(k=100, objective=0.95), curve=hard, allowed=60_000).kind is PlanKind.ROWS


def test_few_matches_are_compared_alone_and_many_walked_to() -> None:
    assert plan(allowed=500).kind is PlanKind.ROWS
    assert plan(allowed=2_000).kind is PlanKind.ROWS
    found = plan(allowed=10_000)
    assert (found.kind, found.ef) == (PlanKind.IN_GRAPH, 128)
    assert (plan(allowed=60_000).kind, plan(allowed=60_000).ef) == (PlanKind.IN_GRAPH, 96)


def test_the_cheaper_way_depends_on_what_the_machine_measured() -> None:
    slow_walk = replace(COSTS, walk_row_ns=1_000.0)
    assert plan(allowed=10_000, costs=slow_walk).kind is PlanKind.ROWS
    slow_rows = replace(COSTS, exact_row_ns=700.0)
    assert plan(allowed=10_000, costs=slow_rows).kind is PlanKind.IN_GRAPH


CODES = ShortlistCosts(call_ns=25_000.0, row_ns=12.0)


def test_codes_are_compared_where_that_is_cheapest() -> None:
    found = plan(allowed=10_000, shortlist=CODES)
    assert (found.kind, found.by_codes) == (PlanKind.SHORTLIST, True)
    assert plan(allowed=150, shortlist=CODES).kind is PlanKind.ROWS
    many = plan(allowed=60_000, shortlist=CODES)
    assert (many.kind, many.by_codes, many.ef_far) == (PlanKind.IN_GRAPH, True, 0)
    assert many.work_max == int(CODES.shortlist_ns(60_000) / COSTS.walk_row_ns)


def test_codes_answer_neither_exact_searches_nor_the_highest_objectives() -> None:
    assert plan(replace(WANTED, exact=True), allowed=10_000, shortlist=CODES).kind is PlanKind.ROWS
    high = plan(replace(WANTED, objective=0.999), allowed=10_000, shortlist=CODES)
    assert (high.kind, high.by_codes) == (PlanKind.ROWS, False)


def test_codes_answer_no_search_that_wants_many_of_few_rows() -> None:
    cheap = ShortlistCosts(call_ns=1_000.0, row_ns=1.0)
    assert plan(replace(WANTED, k=10), allowed=500, shortlist=cheap).by_codes
    assert plan(replace(WANTED, k=200), allowed=10_000, shortlist=cheap).by_codes
    many = plan(replace(WANTED, k=201), allowed=10_000, shortlist=cheap)
    assert (many.kind, many.by_codes) == (PlanKind.ROWS, False)
    assert not plan(replace(WANTED, k=201), allowed=10_000).codes_wanted


def test_codes_are_wanted_where_they_would_pay() -> None:
    assert plan(allowed=4_000).codes_wanted
    assert not plan(allowed=4_000, shortlist=CODES).codes_wanted
    assert not plan(allowed=60_000).codes_wanted
    assert not plan(allowed=500).codes_wanted
    assert not plan(allowed=4_000, walk_ready=False).codes_wanted
    assert not plan(replace(WANTED, objective=0.999), allowed=4_000).codes_wanted


def test_far_queries_are_looked_for_before_a_plain_walk() -> None:
    point = RecallPoint(10, 96, 0.97, band="0.5", selector=True)
    cheap = tuple(replace(p, visited=4.0 * p.ef) if not p.band else p for p in BANDS)
    assert plan(allowed=50_000, curve=(*cheap, point)).far_check
    assert not plan(allowed=50_000, curve=(*cheap, point), walk_ready=False).far_check
    assert not plan(allowed=95_000, walk_ready=False).far_check


def test_a_walk_may_not_cost_more_than_comparing_everything() -> None:
    found = plan(allowed=10_000)
    assert found.work_max == int(COSTS.exact_ns(10_000) / COSTS.walk_row_ns)
    assert found.cost_ns == COSTS.walk_ns(visited=1_000, checked=9_000)


def test_far_queries_get_the_wider_beam_where_it_is_measured_and_cheaper() -> None:
    assert plan(allowed=10_000).ef_far == 256
    assert plan(allowed=20_000).ef_far == 256
    dear = tuple(replace(p, visited=9_000.0) if p.far else p for p in BANDS)
    assert plan(allowed=10_000, curve=dear).ef_far == 0
    assert plan(allowed=60_000).ef_far == 0  # its curve stays below the objective


def test_a_band_that_misses_the_objective_is_compared_exactly() -> None:
    assert plan(replace(WANTED, objective=0.98), allowed=10_000).kind is PlanKind.ROWS


def test_the_plain_walk_wins_where_most_rows_are_allowed() -> None:
    found = plan(replace(WANTED, filtered=False), allowed=95_000, walk_ready=False)
    assert (found.kind, found.ef) == (PlanKind.SELECTOR, math.ceil(32 / 0.95))
    point = RecallPoint(10, 96, 0.97, band="0.5", selector=True)
    cheap = tuple(replace(p, visited=4.0 * p.ef) if not p.band else p for p in BANDS)
    assert plan(allowed=50_000, curve=(*cheap, point)).kind is PlanKind.SELECTOR


def test_without_kernels_nothing_waits_for_them() -> None:
    kinds = {plan(allowed=n, walk_ready=False).kind for n in (500, 10_000, 60_000, 95_000)}
    assert PlanKind.IN_GRAPH not in kinds
    assert plan(allowed=10_000, walk_ready=False).kind is PlanKind.ROWS


def test_without_curves_beams_are_wide_and_rare_matches_compared() -> None:
    found = plan(allowed=40_000, curve=())
    assert (found.kind, found.ef, found.ef_far) == (PlanKind.IN_GRAPH, 100, 0)
    assert plan(allowed=4_000, curve=()).kind is PlanKind.ROWS


def test_an_explicit_ef_wins_over_the_curves() -> None:
    found = plan(replace(WANTED, ef=40), allowed=20_000)
    assert (found.kind, found.ef) == (PlanKind.IN_GRAPH, 40)


def test_no_beam_is_narrower_than_what_it_must_hold() -> None:
    found = plan(replace(WANTED, ef=10), allowed=95_000, walk_ready=False)
    assert found.kind is PlanKind.SELECTOR
    assert found.ef * 0.95 >= 10


@pytest.mark.parametrize(
    ("objective", "ef"), [(0.5, 16), (0.89, 16), (0.9, 19), (0.95, 32), (0.96, 41), (0.999, 64)]
)
def test_the_smallest_ef_that_meets_the_objective(objective: float, ef: int) -> None:
    assert choose_ef(BANDS, k=10, objective=objective) == ef


def test_between_two_points_recall_rises_evenly_with_its_error() -> None:
    curve = (RecallPoint(10, 64, 0.95, 0.002), RecallPoint(10, 96, 0.97, 0.002))
    assert choose_ef(curve, k=10, objective=0.946) == 80  # 0.936 and 0.956 are sure
    assert choose_ef(curve, k=10, objective=0.93) == 64
    assert choose_ef(curve, k=10, objective=0.96) == 96


def test_the_curve_says_how_far_ef_must_grow() -> None:
    """Misses fall to a quarter where ef doubles."""
    curve = [RecallPoint(10, ef, 1.0 - 0.1 * (64 / ef) ** 2) for ef in (64, 128, 256)]

    def factor(fewer: float, *, ef: int = 64) -> float | None:
        return curve_factor(curve, k=10, ef=ef, fewer=fewer)

    assert factor(2.0) == pytest.approx(2**0.5)
    assert [factor(4.0), factor(4.0, ef=96)] == pytest.approx([2.0, 2.0])
    assert factor(1.0) == pytest.approx(1.0)
    assert factor(100.0) is None, "farther than the curve"
    assert factor(4.0, ef=256) is factor(4.0, ef=32) is None
    assert curve_factor(curve[:1], k=10, ef=64, fewer=2.0) is None
    assert curve_factor([], k=10, ef=64, fewer=2.0) is None


def test_a_band_is_read_at_or_below_the_share() -> None:
    def chosen(share: float, **more: object) -> int | None:
        point = choose_band_ef(BANDS, k=10, objective=0.95, share=share, **more)  # type: ignore[arg-type]
        return None if point is None else point.ef

    assert chosen(0.5) == 96
    assert chosen(0.49) == 128
    assert chosen(0.09) is None
    assert chosen(0.3, far=True) == 256
    assert chosen(0.3, selector=True) is None


def test_uncertain_points_do_not_count() -> None:
    unsure = (RecallPoint(10, 64, 0.96, 0.01, band="0.1"), RecallPoint(10, 96, 0.98, band="0.1"))
    point = choose_band_ef(unsure, k=10, objective=0.95, share=0.2)
    assert point is not None
    assert point.ef == 96


def test_filtering_afterwards_needs_more_than_a_walk_that_tests_the_filter() -> None:
    """Held-out rows flatter it more: 0.974 at ef 80, where other queries have 0.955."""
    kinds = {
        selector: [
            RecallPoint(10, ef, recall, band="0.5", selector=selector)
            for ef, recall in ((64, 0.965), (96, 0.979))
        ]
        for selector in (False, True)
    }
    chosen = {
        selector: choose_band_ef(points, k=10, objective=0.95, share=0.5, selector=selector)
        for selector, points in kinds.items()
    }
    assert [point.ef for point in chosen.values() if point is not None] == [64, 96]


def test_more_neighbours_than_measured_widen_the_beam_as_without_a_filter() -> None:
    curve = (*BANDS, RecallPoint(100, 128, 0.97))
    point = choose_band_ef(curve, k=100, objective=0.95, share=0.1)
    assert point is not None
    assert (point.ef, point.visited) == (128 * 4, 4_000)


AT_SEVERAL_K = (
    RecallPoint(1, 20, 0.97),
    RecallPoint(10, 40, 0.97),
    RecallPoint(100, 200, 0.97),
    RecallPoint(1_000, 1_400, 0.97),
)


def test_between_measured_k_ef_is_on_the_line_between_theirs() -> None:
    efs = {k: choose_ef(AT_SEVERAL_K, k=k, objective=0.95) for k in (1, 4, 10, 55, 100, 400, 1_000)}
    assert efs == {1: 20, 4: 27, 10: 40, 55: 120, 100: 200, 400: 600, 1_000: 1_400}


def test_above_the_largest_measured_k_ef_grows_as_k_does() -> None:
    assert choose_ef(AT_SEVERAL_K, k=3_000, objective=0.95) == 4_200
    assert choose_ef(AT_SEVERAL_K, k=K_MAX, objective=0.95) == EF_MAX
    assert choose_ef(CURVE, k=100, objective=0.95) == 320, "a segment with one curve only"


@pytest.mark.parametrize("k", [1, 2, 5, 10, 50, 100, 500, 1_000, 5_000, K_MAX])
def test_ef_is_a_valid_one_that_does_not_fall_as_k_grows(k: int) -> None:
    for curve in ((), CURVE, AT_SEVERAL_K):
        ef = choose_ef(curve, k=k, objective=0.95)
        assert k <= ef <= EF_MAX
        assert choose_ef(curve, k=min(2 * k, K_MAX), objective=0.95) >= ef


def test_fewer_neighbours_than_measured_in_a_band_may_need_a_wider_beam() -> None:
    """Where the nearest row is harder to find than the first ten, as without a filter."""
    curve = (*BANDS, RecallPoint(1, 96, 0.97))
    wider = choose_band_ef(curve, k=1, objective=0.95, share=0.1)
    assert wider is not None
    assert wider.ef == 128 * 3
    easier = choose_band_ef((*BANDS, RecallPoint(1, 16, 0.97)), k=1, objective=0.95, share=0.1)
    assert easier is not None
    assert easier.ef == 128


def test_ef_is_never_below_k() -> None:
    assert choose_ef(CURVE, k=10, objective=0.5) == 16
    assert choose_ef((RecallPoint(100, 16, 1.0),), k=100, objective=0.5) == 100


def test_without_a_measurement_ef_grows_with_k_within_bounds() -> None:
    assert choose_ef((), k=1, objective=0.9) == EF_MIN
    assert choose_ef((), k=20, objective=0.9) == 160
    assert choose_ef((), k=100, objective=0.9) == EF_UNCALIBRATED_MAX
    assert choose_ef((), k=1_000, objective=0.9) == 1_000


def test_the_baseline_of_a_walk_is_what_was_counted_at_its_beam() -> None:
    curve = [
        RecallPoint(10, 16, 0.8, visited=300.0),
        RecallPoint(10, 32, 0.9, visited=500.0),
        RecallPoint(10, 64, 0.96, visited=0.0),
        RecallPoint(10, 32, 0.9, band="0.5", visited=9_000.0),
        RecallPoint(100, 128, 0.97, visited=2_000.0),
    ]
    assert measured_visits(curve, k=10, ef=32) == 500.0
    assert measured_visits(curve, k=10, ef=20) == 350.0
    assert measured_visits(curve, k=10, ef=64) == 500.0, "where nothing was counted: the one below"
    assert measured_visits(curve, k=50, ef=128) == 2_000.0
    assert measured_visits(curve, k=10, ef=10) == 0.0
    assert measured_visits([], k=10, ef=64) == 0.0
