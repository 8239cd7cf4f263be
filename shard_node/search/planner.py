"""How one segment answers a query: pure decisions from counts, curves and costs (DESIGN 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from annheal.index import ShortlistCosts, WalkCosts
from annheal.model.limits import EF_MAX
from annheal.model.topology.manifest import IndexKind
from annheal.segment import RecallPoint
from annheal.shard_node.search.recall_curves import choose_band_ef, plain_ef

WALK_COMPARISONS_PER_EF = 12
"""Vectors that a walk compares per unit of ef: 600 to 900 at ef 64, M 16 on the sample data."""
PLAIN_SHARE = 0.9
"""With this share of rows allowed, the curve without a filter holds for a beam wider by 1/share."""
WALK_SHARE_MIN = 0.05
"""Below it, without a measurement, only exact comparison is certain to find what matches."""
UNCALIBRATED_WIDENING = ((0.5, 1.0), (0.1, 1.25), (WALK_SHARE_MIN, 2.0))
"""Beam of a filtered walk by that of a plain one, from a share on; measured at 100,000 x 384."""
PLANS_REMEMBERED = 4_096
"""Reading a curve of 49 points takes 14 us, finding the plan again 1.4."""
SELECTOR_KEPT_NS = 400.0
"""Taking one row of the beam out of FAISS and asking the bitmap about it."""
SHORTLIST_ROWS_MIN = 2_000
"""With fewer allowed rows codes save nothing worth their memory."""
SHORTLIST_ROWS_PER_K = 50
"""With fewer allowed rows for each wanted one, codes leave most of them in doubt: the best 100 of
5,000 took 0.9 of the time of comparing by vectors, the best 500 took 2.5 times as long."""
SHORTLIST_RECALL = 0.995
"""Above this objective rows are compared by their vectors alone."""
SHORTLIST_TIME_SHARE = 0.2
"""Comparing by codes takes about so much of the time of comparing by vectors: 0.13 to 0.16 for half
and a fifth of 100,000 x 384 that are not in the caches, up to 0.25 without AVX-512 VNNI."""
SCAN_EF_MIN = 4_096
"""From this beam on a walk is compared with a scan, which can be stopped between slices. FAISS's
walk of 30,000 x 384 took 0.7, 20 and 129 ms with ef 64, 4,096 and 16,384."""
FAR_MARGIN = 0.8
"""A wider walk for a far query must cost less than this part of comparing exactly."""


class PlanKind(StrEnum):
    """Ways to answer inside one segment.

    SCAN compares every row, ROWS the allowed ones; SHORTLIST too, reading the codes of all and the
    vectors of the few that may be among the best. GRAPH is FAISS's walk over all rows; SELECTOR the
    same, keeping the allowed ones of the rows in its beam; IN_GRAPH compares allowed rows only and
    looks through the others.
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
    """The way chosen, its beam width (0 where no graph is walked) and its expected cost.

    `ef_far` is the beam for queries around which few rows are allowed; 0 compares exactly.
    `work_max` is the number of comparisons at which a walk costs more than exact comparison.
    `visited` is what FAISS's walk, which does not count, is expected to compare for one query.
    `by_codes`: where this plan compares, codes choose the rows. `codes_wanted`: it would be cheaper
    if the segment had codes. `far_check`: queries around which few rows are allowed are looked for
    before the walk.
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


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What a plan depends on, of the segment and the node.

    `allowed` of `rows` live and match. `walk_ready`: the kernels of IN_GRAPH are compiled.
    `shortlist`: what comparing by codes costs, None while the segment has none.
    """

    index_kind: IndexKind
    rows: int
    allowed: int
    curve: Sequence[RecallPoint] = field(hash=False)  # long; compared where the rest is equal
    costs: WalkCosts
    walk_ready: bool
    shortlist: ShortlistCosts | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
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


def plan_segment(facts: SegmentFacts, wanted: Wanted) -> SegmentPlan:
    """Return the cheapest way that meets the objective by the segment's measured curves.

    Exact comparison of the allowed rows always does, and nothing else meets an objective of 1.
    Without curves the beams are those measured elsewhere, wide enough to be safe. Plans are
    remembered by everything that they depend on.
    """
    return _remembered_plan(facts, wanted)


@lru_cache(maxsize=PLANS_REMEMBERED)
def _remembered_plan(facts: SegmentFacts, wanted: Wanted) -> SegmentPlan:
    if facts.allowed == 0:
        return SegmentPlan(PlanKind.SKIP)
    if wanted.exact or facts.index_kind is IndexKind.FLAT or _must_miss_nothing(wanted):
        sparse = wanted.filtered and facts.allowed * 2 < facts.rows
        return SegmentPlan(PlanKind.ROWS if sparse else PlanKind.SCAN)
    if facts.allowed == facts.rows:
        ef = _plain_ef(facts, wanted)
        if ef is None or _scan_is_cheaper(facts, max(ef, wanted.k)):
            return SegmentPlan(PlanKind.SCAN, cost_ns=facts.costs.exact_ns(facts.rows))
        return SegmentPlan(PlanKind.GRAPH, ef, visited=_plain_visited(facts, ef))
    exact = _comparing(facts, wanted)
    if facts.allowed <= wanted.k:
        return exact
    candidates = [exact, *_selector_plans(facts, wanted), *_in_graph_plans(facts, wanted)]
    best = min(candidates, key=lambda plan: plan.cost_ns)
    codes_wanted = _wants_codes(facts, wanted, best)
    if best is exact:
        return replace(exact, cost_ns=0.0, codes_wanted=codes_wanted)
    work_max = max(1, int(exact.cost_ns / facts.costs.walk_row_ns))
    return replace(
        best,
        ef_far=_far_ef(facts, wanted, exact.cost_ns),
        work_max=work_max,
        by_codes=exact.by_codes,
        codes_wanted=codes_wanted,
        far_check=best.kind is PlanKind.SELECTOR
        and facts.walk_ready
        and _share(facts) < PLAIN_SHARE,
    )


def codes_are_worthwhile(facts: SegmentFacts, wanted: Wanted) -> bool:
    """Return whether comparing by codes is allowed for such a query and not possible yet."""
    return (
        facts.shortlist is None
        and facts.walk_ready
        and facts.index_kind is not IndexKind.FLAT
        and facts.allowed >= SHORTLIST_ROWS_MIN
        and _codes_suit(facts, wanted)
        and not wanted.exact
    )


def _codes_suit(facts: SegmentFacts, wanted: Wanted) -> bool:
    return wanted.objective <= SHORTLIST_RECALL and facts.allowed >= SHORTLIST_ROWS_PER_K * wanted.k


def _comparing(facts: SegmentFacts, wanted: Wanted) -> SegmentPlan:
    """Return the cheaper way to compare all allowed rows."""
    rows = SegmentPlan(PlanKind.ROWS, cost_ns=facts.costs.exact_ns(facts.allowed))
    if facts.shortlist is None or not facts.walk_ready or not _codes_suit(facts, wanted):
        return rows
    cost_ns = facts.shortlist.shortlist_ns(facts.allowed)
    if cost_ns >= rows.cost_ns:
        return rows
    return SegmentPlan(PlanKind.SHORTLIST, cost_ns=cost_ns, by_codes=True)


def _wants_codes(facts: SegmentFacts, wanted: Wanted, best: SegmentPlan) -> bool:
    if not codes_are_worthwhile(facts, wanted):
        return False
    return facts.costs.exact_ns(facts.allowed) * SHORTLIST_TIME_SHARE < best.cost_ns


def _must_miss_nothing(wanted: Wanted) -> bool:
    """Return whether the objective is 1 and no beam is given in its place."""
    return wanted.ef is None and wanted.objective >= 1.0


def _plain_ef(facts: SegmentFacts, wanted: Wanted) -> int | None:
    if wanted.ef is not None:
        return wanted.ef
    return plain_ef(facts.curve, k=wanted.k, objective=wanted.objective)


def _scan_is_cheaper(facts: SegmentFacts, ef: int) -> bool:
    """Return whether a walk with so wide a beam costs more than comparing every row."""
    if ef < SCAN_EF_MIN:
        return False
    walk_ns = facts.costs.walk_ns(visited=_plain_visited(facts, ef), checked=0)
    return walk_ns >= facts.costs.exact_ns(facts.rows)


def _share(facts: SegmentFacts) -> float:
    return facts.allowed / facts.rows


def _has_bands(facts: SegmentFacts) -> bool:
    return any(point.band for point in facts.curve)


def _selector_plans(facts: SegmentFacts, wanted: Wanted) -> Iterator[SegmentPlan]:
    """Yield the plain walk whose beam holds enough allowed rows, if there is one."""
    share = _share(facts)
    if wanted.ef is None and share < PLAIN_SHARE and _has_bands(facts):
        point = choose_band_ef(
            facts.curve, k=wanted.k, objective=wanted.objective, share=share, selector=True
        )
        if point is None:
            return
        ef = point.ef
    else:
        plain = _plain_ef(facts, wanted)
        if plain is None:
            return
        ef = math.ceil(plain / share)
    if wanted.k <= ef * share and ef <= EF_MAX:
        visited = _plain_visited(facts, ef)
        cost_ns = facts.costs.walk_ns(visited=visited, checked=0) + SELECTOR_KEPT_NS * ef
        yield SegmentPlan(PlanKind.SELECTOR, ef, cost_ns=cost_ns, visited=visited)


def _in_graph_plans(facts: SegmentFacts, wanted: Wanted) -> Iterator[SegmentPlan]:
    if not facts.walk_ready:
        return
    beam = _in_graph_beam(facts, wanted)
    if beam is not None and beam.ef <= EF_MAX:
        cost_ns = facts.costs.walk_ns(visited=beam.visited, checked=beam.checked)
        yield SegmentPlan(PlanKind.IN_GRAPH, beam.ef, cost_ns=cost_ns)


def _in_graph_beam(facts: SegmentFacts, wanted: Wanted) -> _Beam | None:
    share = _share(facts)
    if wanted.ef is None and share < PLAIN_SHARE and _has_bands(facts):
        point = choose_band_ef(facts.curve, k=wanted.k, objective=wanted.objective, share=share)
        return None if point is None else _Beam(point.ef, point.visited, point.checked)
    ef = _plain_ef(facts, wanted)
    if ef is None:
        return None
    if wanted.ef is None:
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


def _far_ef(facts: SegmentFacts, wanted: Wanted, exact_ns: float) -> int:
    """Return the beam that finds far rows for less than comparing them all; 0 without one."""
    if not facts.walk_ready:
        return 0
    point = choose_band_ef(
        facts.curve, k=wanted.k, objective=wanted.objective, share=_share(facts), far=True
    )
    if point is None or point.ef > EF_MAX:
        return 0
    cost_ns = facts.costs.walk_ns(visited=point.visited, checked=point.checked)
    return point.ef if cost_ns < FAR_MARGIN * exact_ns else 0
