"""Plans of searches in one segment: pure decisions from row counts, recall curves and costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from annheal.index import Reach, ShortlistCosts, WalkCosts
from annheal.model.limits import EF_MAX
from annheal.model.topology.manifest import IndexKind
from annheal.segment import RecallPoint
from annheal.shard_node.search.ef_scale import scaled_ef
from annheal.shard_node.search.recall_curves import choose_band_ef, choose_reach, plain_ef

WALK_COMPARISONS_PER_EF = 12
"""Rows that a walk compares per unit of ef, without a measurement: 600 to 900 at ef 64 with M 16 on
the sample data."""
PLAIN_SHARE = 0.9
"""From this share of allowed rows on, plans read the curve without a filter; SELECTOR divides ef by
the share."""
WALK_SHARE_MIN = 0.05
"""Below this share of allowed rows no IN_GRAPH walk is planned unless the band was measured."""
UNCALIBRATED_WIDENING = ((0.5, 1.0), (0.1, 1.25), (WALK_SHARE_MIN, 2.0))
"""(least share of allowed rows, factor of the unfiltered ef), where the band was not measured; from
100,000 x 384."""
PLANS_CACHED_MAX = 4_096
"""Making a plan from a curve of 49 points takes 14 us, taking it from the cache 1.4."""
SELECTOR_ROW_NS = 400.0
"""Cost of returning one row of the beam from FAISS and testing it against the bitmap."""
SHORTLIST_ROWS_MIN = 2_000
"""Below this number of allowed rows codes are not worth their memory."""
SHORTLIST_ROWS_PER_K = 50
"""Below this number of allowed rows per k, codes exclude too few of them: the best 100 of 5,000
took 0.9 of the time of comparing by vectors, the best 500 took 2.5 times as long."""
SHORTLIST_RECALL = 0.995
"""Above this objective only vectors are compared, because codes may miss a row."""
SHORTLIST_TIME_SHARE = 0.2
"""Time of comparing by codes, as a part of that of comparing by vectors: 0.13 to 0.16 for half and
a fifth of 100,000 x 384 outside of the caches, up to 0.25 without AVX-512 VNNI."""
SCAN_EF_MIN = 4_096
"""From this ef on a scan is planned if it costs less than the walk: it can be stopped between
slices. FAISS's walk of 30,000 x 384 took 0.7, 20 and 129 ms with ef 64, 4,096 and 16,384."""
FAR_MARGIN = 0.8
"""A walk of a far query with `ef_far` must cost less than this part of exact comparison."""


class PlanKind(StrEnum):
    """How the hits of one segment are found. A row is allowed if it is live and matches the filter.

    SKIP: no row is allowed. SCAN compares all rows, ROWS the allowed ones. SHORTLIST compares the
    allowed ones by their codes, and by their vectors those that can be among the best. GRAPH is
    a walk over all rows: FAISS's, or with a reach that of the kernel, where few rows are dead too.
    SELECTOR is FAISS's walk, and returns the allowed rows of its beam.
    IN_GRAPH is a walk that compares allowed rows only, and follows links through the others.
    """

    SKIP = "skip"
    SCAN = "scan"
    ROWS = "rows"
    SHORTLIST = "shortlist"
    GRAPH = "graph"
    SELECTOR = "selector"
    IN_GRAPH = "in-graph"


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """What is done with the queries of a batch in one segment.

    Attributes:
        kind: how hits are found.
        ef: beam width, 0 where no graph is walked.
        ef_far: beam width for far queries, those around which few rows are allowed; 0: they are
            answered by exact comparison.
        work_max: comparisons of one query after which a walk costs more than exact comparison; the
            query is then compared exactly. None: no limit.
        cost_ns: expected cost of one query.
        visited: rows that FAISS's walk, which does not count them, should compare for one query.
        by_codes: exact comparison reads codes first.
        codes_wanted: the query would cost less if the segment had codes.
        far_check: far queries are recognised by a short walk before FAISS's.
        reach: of a GRAPH plan: every query is walked with a width of its own, such that mean recall
            is that of `ef`; None: all with width `ef`.
    """

    kind: PlanKind
    ef: int = 0
    ef_far: int = 0
    work_max: int | None = None
    cost_ns: float = 0.0
    visited: int = 0
    by_codes: bool = False
    codes_wanted: bool = False
    far_check: bool = False
    reach: Reach | None = None


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What a plan depends on, of the segment and the node.

    `allowed` of its `rows` are live and match. `curve`: its recall curve. `walk_ready`: the kernels
    are loaded. `shortlist`: costs of comparing by codes, None while the segment has none.
    """

    index_kind: IndexKind
    rows: int
    allowed: int
    curve: Sequence[RecallPoint] = field(hash=False)  # long; compared where the rest is equal
    costs: WalkCosts
    walk_ready: bool
    shortlist: ShortlistCosts | None = None


@dataclass(frozen=True, slots=True)
class QueryFacts:
    """What a plan depends on, of the query. `ef` None: the smallest that meets `objective`."""

    k: int
    objective: float
    ef: int | None = None
    exact: bool = False
    filtered: bool = False


@dataclass(frozen=True, slots=True)
class _Beam:
    """A beam width and the rows that a walk with it compares and tests."""

    ef: int
    visited: float
    checked: float


def plan_segment(facts: SegmentFacts, query: QueryFacts) -> SegmentPlan:
    """Return the cheapest plan that meets the objective by the recall curve of the segment.

    Exact comparison meets every objective, and alone meets an objective of 1. Where the curve has
    no points of the band, ef follows from `UNCALIBRATED_WIDENING`. Plans are cached.
    """
    return _cached_plan(facts, query)


@lru_cache(maxsize=PLANS_CACHED_MAX)
def _cached_plan(facts: SegmentFacts, query: QueryFacts) -> SegmentPlan:
    if facts.allowed == 0:
        return SegmentPlan(PlanKind.SKIP)
    if query.exact or facts.index_kind is IndexKind.FLAT or _requires_exact(query):
        sparse = query.filtered and facts.allowed * 2 < facts.rows
        return SegmentPlan(PlanKind.ROWS if sparse else PlanKind.SCAN)
    if facts.allowed == facts.rows:
        ef = _plain_ef(facts, query)
        if ef is None or _scan_is_cheaper(facts, max(ef, query.k)):
            return SegmentPlan(PlanKind.SCAN, cost_ns=facts.costs.exact_ns(facts.rows))
        visited = _plain_visited(facts, ef)
        return SegmentPlan(PlanKind.GRAPH, ef, visited=visited, reach=_reach(facts, query, ef))
    exact = _exact_plan(facts, query)
    if facts.allowed <= query.k:
        return exact
    adaptive = _adaptive_plan(facts, query)
    walks = (
        [adaptive] if adaptive else [*_selector_plans(facts, query), *_in_graph_plans(facts, query)]
    )
    best = min([exact, *walks], key=lambda plan: plan.cost_ns)
    codes_wanted = _codes_would_be_cheaper(facts, query, best)
    if best is exact:
        return replace(exact, cost_ns=0.0, codes_wanted=codes_wanted)
    if best.kind is PlanKind.GRAPH:
        return replace(best, by_codes=exact.by_codes, codes_wanted=codes_wanted)
    work_max = max(1, int(exact.cost_ns / facts.costs.walk_row_ns))
    return replace(
        best,
        ef_far=_far_ef(facts, query, exact.cost_ns),
        work_max=work_max,
        by_codes=exact.by_codes,
        codes_wanted=codes_wanted,
        far_check=best.kind is PlanKind.SELECTOR
        and facts.walk_ready
        and _share(facts) < PLAIN_SHARE,
    )


def scaled_plan(
    facts: SegmentFacts, query: QueryFacts, plan: SegmentPlan, scale: float
) -> SegmentPlan:
    """Return `plan` with its ef multiplied by `scale`, the factor that measured recall requires."""
    if scale <= 1.0 or not plan.ef:
        return plan
    ef = scaled_ef(plan.ef, scale)
    ef_far = scaled_ef(plan.ef_far, scale) if plan.ef_far else 0
    reach = None if plan.reach is None else _reach(facts, query, ef)
    return replace(plan, ef=ef, ef_far=ef_far, cost_ns=plan.cost_ns * ef / plan.ef, reach=reach)


def plan_ns(facts: SegmentFacts, plan: SegmentPlan) -> float:
    """Return the expected cost of one query in nanoseconds of one thread."""
    if plan.kind is PlanKind.SKIP:
        return 0.0
    if plan.kind in (PlanKind.GRAPH, PlanKind.SELECTOR):
        returned = plan.ef if plan.kind is PlanKind.SELECTOR else 0
        visited = _plain_visited(facts, max(plan.ef, 1))
        return facts.costs.walk_ns(visited=visited, checked=0) + SELECTOR_ROW_NS * returned
    if plan.kind is PlanKind.SHORTLIST and facts.shortlist is not None:
        return facts.shortlist.shortlist_ns(facts.allowed)
    if plan.kind is PlanKind.IN_GRAPH:
        return plan.cost_ns
    return facts.costs.exact_ns(facts.allowed)


def plan_without_graph(facts: SegmentFacts, query: QueryFacts, *, by_codes: bool) -> SegmentPlan:
    """Return the cheapest plan that walks no graph: by codes, where `by_codes` and they meet the
    objective, or exact."""
    facts = facts if by_codes else replace(facts, shortlist=None)
    plan = _exact_plan(facts, query)
    wanted = by_codes and codes_are_worthwhile(facts, query)
    if plan.kind is PlanKind.ROWS and not (query.filtered and facts.allowed * 2 < facts.rows):
        plan = replace(plan, kind=PlanKind.SCAN)
    return replace(plan, codes_wanted=wanted)


def codes_are_worthwhile(facts: SegmentFacts, query: QueryFacts) -> bool:
    """Return whether the segment lacks codes that such a query could be compared by."""
    return (
        facts.shortlist is None
        and facts.walk_ready
        and facts.index_kind is not IndexKind.FLAT
        and facts.allowed >= SHORTLIST_ROWS_MIN
        and _codes_meet(facts, query)
        and not query.exact
    )


def _codes_meet(facts: SegmentFacts, query: QueryFacts) -> bool:
    return query.objective <= SHORTLIST_RECALL and facts.allowed >= SHORTLIST_ROWS_PER_K * query.k


def _exact_plan(facts: SegmentFacts, query: QueryFacts) -> SegmentPlan:
    """Return the cheaper plan that compares all allowed rows: ROWS or SHORTLIST."""
    rows = SegmentPlan(PlanKind.ROWS, cost_ns=facts.costs.exact_ns(facts.allowed))
    if facts.shortlist is None or not facts.walk_ready or not _codes_meet(facts, query):
        return rows
    cost_ns = facts.shortlist.shortlist_ns(facts.allowed)
    if cost_ns >= rows.cost_ns:
        return rows
    return SegmentPlan(PlanKind.SHORTLIST, cost_ns=cost_ns, by_codes=True)


def _codes_would_be_cheaper(facts: SegmentFacts, query: QueryFacts, best: SegmentPlan) -> bool:
    if not codes_are_worthwhile(facts, query):
        return False
    return facts.costs.exact_ns(facts.allowed) * SHORTLIST_TIME_SHARE < best.cost_ns


def _requires_exact(query: QueryFacts) -> bool:
    """Return whether the objective is 1 and the query does not give its own ef."""
    return query.ef is None and query.objective >= 1.0


def _plain_ef(facts: SegmentFacts, query: QueryFacts) -> int | None:
    if query.ef is not None:
        return query.ef
    return plain_ef(facts.curve, k=query.k, objective=query.objective)


def _scan_is_cheaper(facts: SegmentFacts, ef: int) -> bool:
    """Return whether a walk with `ef` costs more than comparing every row."""
    if ef < SCAN_EF_MIN:
        return False
    walk_ns = facts.costs.walk_ns(visited=_plain_visited(facts, ef), checked=0)
    return walk_ns >= facts.costs.exact_ns(facts.rows)


@lru_cache(maxsize=PLANS_CACHED_MAX)
def _reach(facts: SegmentFacts, query: QueryFacts, ef: int) -> Reach | None:
    """Return the reach of walks of all rows whose width adapts.

    None for a query that gives its own ef, which is the width of its walks.
    """
    if query.ef is not None or not facts.walk_ready:
        return None
    return choose_reach(facts.curve, k=query.k, ef=round(ef * _share(facts)))


def _share(facts: SegmentFacts) -> float:
    return facts.allowed / facts.rows


def _has_bands(facts: SegmentFacts) -> bool:
    return any(point.band for point in facts.curve)


def _adaptive_plan(facts: SegmentFacts, query: QueryFacts) -> SegmentPlan | None:
    """Return the GRAPH plan whose beams hold enough live rows, where few are dead.

    Its cost is that of a fixed width. A walk with a reach compares fewer rows than that, so where
    there is one no walk of a fixed width is considered.
    """
    share = _share(facts)
    plain = None if query.filtered or share < PLAIN_SHARE else _plain_ef(facts, query)
    if plain is None:
        return None
    ef = math.ceil(plain / share)
    reach = _reach(facts, query, ef)
    if reach is None or ef > EF_MAX:
        return None
    visited = _plain_visited(facts, ef)
    cost_ns = facts.costs.walk_ns(visited=visited, checked=0)
    return SegmentPlan(PlanKind.GRAPH, ef, cost_ns=cost_ns, visited=visited, reach=reach)


def _selector_plans(facts: SegmentFacts, query: QueryFacts) -> Iterator[SegmentPlan]:
    """Yield the SELECTOR plan whose beam holds enough allowed rows, if there is one."""
    share = _share(facts)
    if query.ef is None and share < PLAIN_SHARE and _has_bands(facts):
        point = choose_band_ef(
            facts.curve, k=query.k, objective=query.objective, share=share, selector=True
        )
        if point is None:
            return
        ef = point.ef
    else:
        plain = _plain_ef(facts, query)
        if plain is None:
            return
        ef = math.ceil(plain / share)
    if query.k <= ef * share and ef <= EF_MAX:
        visited = _plain_visited(facts, ef)
        cost_ns = facts.costs.walk_ns(visited=visited, checked=0) + SELECTOR_ROW_NS * ef
        yield SegmentPlan(PlanKind.SELECTOR, ef, cost_ns=cost_ns, visited=visited)


def _in_graph_plans(facts: SegmentFacts, query: QueryFacts) -> Iterator[SegmentPlan]:
    if not facts.walk_ready:
        return
    beam = _in_graph_beam(facts, query)
    if beam is not None and beam.ef <= EF_MAX:
        cost_ns = facts.costs.walk_ns(visited=beam.visited, checked=beam.checked)
        yield SegmentPlan(PlanKind.IN_GRAPH, beam.ef, cost_ns=cost_ns)


def _in_graph_beam(facts: SegmentFacts, query: QueryFacts) -> _Beam | None:
    share = _share(facts)
    if query.ef is None and share < PLAIN_SHARE and _has_bands(facts):
        point = choose_band_ef(facts.curve, k=query.k, objective=query.objective, share=share)
        return None if point is None else _Beam(point.ef, point.visited, point.checked)
    ef = _plain_ef(facts, query)
    if ef is None:
        return None
    if query.ef is None:
        if share < WALK_SHARE_MIN:
            return None
        ef = math.ceil(ef * next(times for low, times in UNCALIBRATED_WIDENING if share >= low))
    visited = _plain_visited(facts, ef)
    return _Beam(ef, visited, visited / share)


def _plain_visited(facts: SegmentFacts, ef: int) -> int:
    """Return the rows that a walk without a filter compares at `ef`."""
    measured = [point for point in facts.curve if not point.band and point.visited]
    per_ef = float(WALK_COMPARISONS_PER_EF)
    if measured:
        nearest = min(measured, key=lambda point: abs(math.log(point.ef / ef)))
        per_ef = nearest.visited / nearest.ef
    return min(facts.rows, round(per_ef * ef))


def _far_ef(facts: SegmentFacts, query: QueryFacts, exact_ns: float) -> int:
    """Return the ef of far queries, 0 where exact comparison is cheaper or nothing was measured."""
    if not facts.walk_ready:
        return 0
    point = choose_band_ef(
        facts.curve, k=query.k, objective=query.objective, share=_share(facts), far=True
    )
    if point is None or point.ef > EF_MAX:
        return 0
    cost_ns = facts.costs.walk_ns(visited=point.visited, checked=point.checked)
    return point.ef if cost_ns < FAR_MARGIN * exact_ns else 0
