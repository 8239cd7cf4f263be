"""What answers a segment whose graph is below the objective, and which answers say so: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from annheal.index import ShortlistCosts, WalkCosts
from annheal.model.measures.recall import Rung, Shortfall
from annheal.model.topology.manifest import IndexKind
from annheal.segment import RecallPoint
from annheal.shard_node.search.last_rung import Chosen, Offer, choose, offer
from annheal.shard_node.search.planner import (
    SHORTLIST_RECALL,
    PlanKind,
    QueryFacts,
    SegmentFacts,
    SegmentPlan,
    plan_ns,
    plan_segment,
    scaled_plan,
)

ROWS = 100_000
COSTS = WalkCosts(exact_row_ns=70.0, walk_row_ns=160.0, check_ns=2.0, call_ns=0.0)
CODES = ShortlistCosts(0.0, 14.0)
FACTS = SegmentFacts(
    index_kind=IndexKind.HNSW,
    rows=ROWS,
    allowed=ROWS,
    curve=(RecallPoint(10, 50, 0.99, visited=1_000),),
    costs=COSTS,
    walk_ready=True,
)
CODED = replace(FACTS, shortlist=CODES)
GOAL = QueryFacts(k=10, objective=0.95)
FAILS = Shortfall(0.1, Rung.CODES)
USUAL_NS = 160.0 * 1_000
EXACT_TIMES, CODES_TIMES = 70.0 * ROWS / USUAL_NS, 14.0 * ROWS / USUAL_NS
SCALE = 2.0


def offered(
    facts: SegmentFacts = FACTS,
    query: QueryFacts = GOAL,
    *,
    shortfall: Shortfall | None = FAILS,
    live_rows: int = ROWS,
) -> Offer:
    """Return the offer for a segment whose ef is scaled, unless the query has its own."""
    plan = plan_segment(facts, query)
    if query.ef is None:
        plan = scaled_plan(facts, query, plan, SCALE)
    return offer(
        facts, query, plan, shortfall=shortfall, scale=SCALE, goal=GOAL, live_rows=live_rows
    )


def chosen(*offers: Offer, budget: float) -> list[Chosen]:
    return choose(offers, budget=budget)


def test_a_sound_graph_answers_whatever_the_budget() -> None:
    (one,) = chosen(offered(shortfall=None), budget=1_000.0)
    assert one == Chosen(scaled_plan(FACTS, GOAL, plan_segment(FACTS, GOAL), SCALE))
    assert (one.plan.kind, one.plan.ef) == (PlanKind.GRAPH, 100)


def test_the_usual_cost_is_that_of_the_graph_as_it_was_built() -> None:
    found = offered()
    assert found.usual_ns == USUAL_NS
    assert found.ns == SCALE * USUAL_NS


@pytest.mark.parametrize(
    ("facts", "times", "kind"),
    [(FACTS, EXACT_TIMES, PlanKind.SCAN), (CODED, CODES_TIMES, PlanKind.SHORTLIST)],
)
def test_the_budget_decides_to_the_last_row(
    facts: SegmentFacts, times: float, kind: PlanKind
) -> None:
    (lifted,) = chosen(offered(facts), budget=times * 1.0001)
    assert (lifted.plan.kind, lifted.lifted, lifted.below) == (kind, True, False)
    (left,) = chosen(offered(facts), budget=times * 0.9999)
    assert (left.plan.kind, left.lifted, left.below) == (PlanKind.GRAPH, False, True)


def test_a_budget_of_nothing_lifts_nothing_even_for_nothing() -> None:
    tiny = replace(FACTS, rows=1_000, allowed=1_000)  # exact comparison costs less than the walk
    (left,) = chosen(offered(tiny, live_rows=1_000), budget=0.0)
    assert (left.below, left.plan.codes_wanted) == (True, False)
    (lifted,) = chosen(offered(tiny, live_rows=1_000), budget=0.001)
    assert lifted.lifted, "it is cheaper than what it replaces"


def test_codes_are_made_where_they_would_fit_and_answers_say_so_meanwhile() -> None:
    (wants,) = chosen(offered(), budget=EXACT_TIMES * 0.5)
    assert (wants.below, wants.lifted, wants.plan.codes_wanted) == (True, False, True)
    (cannot,) = chosen(offered(), budget=3.0)
    assert (cannot.below, cannot.plan.codes_wanted) == (True, False)
    (exact,) = chosen(offered(), budget=EXACT_TIMES * 1.1)
    assert (exact.plan.kind, exact.plan.codes_wanted) == (PlanKind.SCAN, True), "until there are"
    without_kernels = replace(FACTS, walk_ready=False)
    assert not chosen(offered(without_kernels), budget=EXACT_TIMES * 0.5)[0].plan.codes_wanted


def test_codes_that_miss_the_objective_or_cannot_meet_it_are_passed_over() -> None:
    budget = EXACT_TIMES * 1.01
    (exact,) = chosen(offered(CODED, shortfall=Shortfall(0.1, Rung.EXACT)), budget=budget)
    assert (exact.plan.kind, exact.plan.codes_wanted) == (PlanKind.SCAN, False)
    higher = replace(GOAL, objective=(1.0 + SHORTLIST_RECALL) / 2)
    perfect = replace(CODED, curve=(RecallPoint(10, 50, 1.0, visited=1_000),))
    assert chosen(offered(perfect, higher), budget=budget)[0].plan.kind is PlanKind.SCAN
    wide = replace(CODED, curve=(RecallPoint(2_001, 2_100, 0.98, visited=5_000),))
    many = offered(wide, replace(GOAL, k=2_001))  # too many for codes to exclude enough rows
    assert many.lift is not None
    assert many.lift.kind is PlanKind.SCAN


def test_the_budget_is_about_all_segments_together_and_the_cheapest_are_lifted_first() -> None:
    small = replace(FACTS, rows=20_000, allowed=20_000)
    large, little = offered(), offered(small, live_rows=20_000)
    sound = offered(shortfall=None)
    cost = little.lift.cost_ns + large.ns + sound.ns  # type: ignore[union-attr]
    usual = 3 * USUAL_NS
    for order in ((large, little, sound), (sound, little, large)):
        found = dict(zip(order, chosen(*order, budget=1.001 * cost / usual), strict=True))
        assert (found[little].lifted, found[large].lifted) == (True, False)
        assert (found[little].below, found[large].below, found[sound].below) == (False, True, False)
        assert not any(one.lifted for one in chosen(*order, budget=0.99 * cost / usual))
    # A sound segment adds to the usual cost, so a failing one may cost more.
    alone = chosen(large, budget=EXACT_TIMES / 2)[0]
    beside = chosen(large, *[sound] * 3, budget=EXACT_TIMES / 2)[0]
    assert (alone.lifted, beside.lifted) == (False, True)


def test_while_a_larger_ef_is_tried_answers_only_say_so() -> None:
    (one,) = chosen(offered(shortfall=Shortfall(0.94)), budget=1_000.0)
    assert (one.plan.kind, one.below, one.lifted) == (PlanKind.GRAPH, True, False)


def test_an_ef_of_the_clients_is_obeyed_and_carries_the_flag_if_it_is_no_larger() -> None:
    for ef, below in ((10, True), (100, True), (101, False)):
        (one,) = chosen(offered(query=replace(GOAL, ef=ef)), budget=1_000.0)
        assert (one.plan.kind, one.plan.ef, one.lifted) == (PlanKind.GRAPH, ef, False)
        assert one.below is below
    whole = replace(GOAL, ef=16_384)  # costs more than a scan, which is planned instead
    assert chosen(offered(query=whole), budget=1.0) == [
        Chosen(SegmentPlan(PlanKind.SCAN, cost_ns=70.0 * ROWS))
    ]


def test_an_objective_of_the_clients_is_what_counts() -> None:
    modest = replace(GOAL, objective=0.5)
    doubtful = Shortfall(0.6, Rung.CODES)
    assert not offered(query=modest, shortfall=doubtful).below, "0.6 may be enough for it"
    assert offered(query=modest).lift is not None, "0.1 is not"
    perfect = replace(FACTS, curve=(RecallPoint(10, 50, 1.0, visited=1_000),))
    assert offered(perfect, replace(GOAL, objective=0.98), shortfall=doubtful).lift is not None
    exact = offered(query=replace(GOAL, objective=1.0))
    assert (exact.plan.kind, exact.below, exact.lift) == (PlanKind.SCAN, False, None)


def test_exact_answers_are_never_below() -> None:
    assert not offered(query=replace(GOAL, exact=True)).below
    assert not offered(replace(FACTS, allowed=0)).below
    few = replace(GOAL, filtered=True)
    assert offered(replace(FACTS, allowed=500), few).plan.kind is PlanKind.ROWS
    assert not offered(replace(FACTS, allowed=500), few).below


def test_a_filter_lowers_the_cost_of_exact_comparison_not_the_usual_one() -> None:
    filtered = replace(GOAL, filtered=True)
    curve = (*FACTS.curve, RecallPoint(10, 60, 0.99, band="0.1", visited=900, checked=9_000))
    tenth = replace(FACTS, allowed=20_000, curve=curve)
    found = offered(tenth, filtered)
    assert found.plan.kind is PlanKind.IN_GRAPH
    assert found.usual_ns == USUAL_NS
    assert found.ns == plan_ns(tenth, found.plan) == SCALE * (900 * 160.0 + 9_000 * 2.0)
    assert found.lift is not None
    assert (found.lift.kind, found.lift.cost_ns) == (PlanKind.ROWS, 20_000 * 70.0)
    (lifted,) = chosen(found, budget=1.001 * found.lift.cost_ns / USUAL_NS)
    assert lifted.lifted
    coded = offered(replace(tenth, shortlist=ShortlistCosts(0.0, 60.0)), filtered)
    assert coded.lift is not None
    assert coded.lift.kind is PlanKind.SHORTLIST


def test_codes_that_were_planned_anyway_and_fall_short_give_way_to_exact_comparison() -> None:
    filtered = replace(GOAL, filtered=True)
    found = offered(replace(CODED, allowed=4_000), filtered)
    assert found.plan.kind is PlanKind.SHORTLIST
    assert found.lift is not None
    assert (found.below, found.lift.kind) == (True, PlanKind.ROWS)


def test_a_flat_segment_costs_what_it_always_costs() -> None:
    flat = replace(FACTS, index_kind=IndexKind.FLAT)
    found = offered(flat)
    assert (found.ns, found.usual_ns, found.below) == (70.0 * ROWS, 70.0 * ROWS, False)
    (beside,) = chosen(offered(), found, budget=1.0)[:1]
    assert not beside.lifted
    # Beside a flat segment, which costs as much every time, a graph may be scanned for twice that.
    assert chosen(offered(), found, budget=2.0)[0].lifted
