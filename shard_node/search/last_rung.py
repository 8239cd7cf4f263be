"""Which segments are answered without their graphs, because these miss the objective. Pure.

The recall monitor knows the segments whose graphs are below the objective (`Shortfall`). They are
answered by codes or exactly, as long as the whole search of the shard is estimated to cost at most
`recall_budget` times an unfiltered one as graphs would answer it. Beyond that, answers say that
they are below the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from annheal.model.measures.recall import Rung, Shortfall
from annheal.shard_node.search.planner import (
    SHORTLIST_TIME_SHARE,
    PlanKind,
    QueryFacts,
    SegmentFacts,
    SegmentPlan,
    plan_ns,
    plan_segment,
    plan_without_graph,
    scaled_plan,
)

_EXACT = (PlanKind.SKIP, PlanKind.SCAN, PlanKind.ROWS)


@dataclass(frozen=True, slots=True)
class Offer:
    """One segment of a search: its plan, and what would keep the objective at which cost.

    Attributes:
        plan: as the recall curve and the controller of ef say.
        ns: its cost for one query, in nanoseconds of one thread.
        usual_ns: cost of an unfiltered query that asks for what the collection promises.
        below: whether answers by `plan` are known to be below the objective.
        lift: the plan that would keep it; None: there is nothing to lift, or it must not be.
    """

    plan: SegmentPlan
    ns: float
    usual_ns: float
    below: bool = False
    lift: SegmentPlan | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The plan of one segment. `below`: its answers are known to be below the objective."""

    plan: SegmentPlan
    below: bool = False
    lifted: bool = False


def offer(
    facts: SegmentFacts,
    query: QueryFacts,
    plan: SegmentPlan,
    *,
    shortfall: Shortfall | None,
    scale: float,
    goal: QueryFacts,
    live_rows: int,
) -> Offer:
    """Return what can be done about a segment whose `plan` has the controller's `scale`.

    `goal` is an unfiltered query with the collection's k and objective; `live_rows` are not dead. A
    query with an ef of its own is never lifted. It is known to be below if its ef is no larger
    than the one that was measured to be below.
    """
    ns = plan_ns(facts, plan)
    if shortfall is None or plan.kind in _EXACT:
        return Offer(plan, ns, _usual_ns(facts, goal, live_rows))
    below = _is_below(facts, query, plan, shortfall, scale=scale, objective=goal.objective)
    usual_ns = _usual_ns(facts, goal, live_rows)
    if not below or query.ef is not None or shortfall.rung is Rung.GRAPH:
        return Offer(plan, ns, usual_ns, below)
    by_codes = shortfall.rung is Rung.CODES and plan.kind is not PlanKind.SHORTLIST
    lift = plan_without_graph(facts, query, by_codes=by_codes)
    return Offer(plan, ns, usual_ns, below, lift)


def choose(offers: Sequence[Offer], *, budget: float) -> list[Chosen]:
    """Return the plan of each segment of a search.

    Segments are lifted, the cheapest first, while the search costs at most `budget` times the
    usual one, or no more than without lifting. A budget of 0 lifts none. Codes are wanted where the
    budget would allow for them.
    """
    chosen = [Chosen(one.plan, one.below) for one in offers]
    if budget <= 0.0 or not any(one.lift for one in offers):
        return chosen
    spent_ns = sum(one.ns for one in offers)
    limit_ns = max(spent_ns, budget * sum(one.usual_ns for one in offers))
    for extra_ns, place, lift in _extras(offers):
        if spent_ns + extra_ns <= limit_ns:
            spent_ns += extra_ns
            chosen[place] = Chosen(lift, lifted=True)
            continue
        by_codes_ns = lift.cost_ns * SHORTLIST_TIME_SHARE - offers[place].ns
        if lift.codes_wanted and spent_ns + by_codes_ns <= limit_ns:
            plan = replace(chosen[place].plan, codes_wanted=True)
            chosen[place] = replace(chosen[place], plan=plan)
    return chosen


def _extras(offers: Sequence[Offer]) -> list[tuple[float, int, SegmentPlan]]:
    """Return (extra cost of lifting, position, plan) of the segments that can be lifted."""
    found = [
        (one.lift.cost_ns - one.ns, place, one.lift)
        for place, one in enumerate(offers)
        if one.lift is not None
    ]
    return sorted(found, key=lambda item: item[:2])


def _is_below(
    facts: SegmentFacts,
    query: QueryFacts,
    plan: SegmentPlan,
    shortfall: Shortfall,
    *,
    scale: float,
    objective: float,
) -> bool:
    """Return whether answers by `plan` are known to be below what the query asks for.

    The shortfall was measured with the collection's objective and the ef that follows from it. A
    query with a lower objective has a smaller ef, so it is below if even the measured recall is.
    """
    if query.ef is not None:
        query = replace(query, ef=None)
        measured = scaled_plan(facts, query, plan_segment(facts, query), scale)
        return measured.kind not in _EXACT and plan.ef <= measured.ef
    return query.objective >= objective or shortfall.high < query.objective


def _usual_ns(facts: SegmentFacts, goal: QueryFacts, live_rows: int) -> float:
    facts = replace(facts, allowed=live_rows)
    return plan_ns(facts, plan_segment(facts, goal))
