"""The controller of ef: scales the ef of each segment by the measured recall of live queries.

A segment's recall curve was measured when it was built, with held-out rows. Live queries may be
harder, rows may have been deleted, or the graph may be damaged. Then the measured recall is below
the objective, and ef is scaled up until it is not. There is one scale for each segment and band. It
multiplies the ef that the curve gives for the k and the objective of a query. `next_state` is pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from annheal.model.measures.recall import RecallEstimate, Rung, SelectivityBand, Shortfall
from annheal.shard_node.search.ef_scale import EF_CONTROL_MAX, scaled_ef

STEP = math.sqrt(2.0)
"""Factor of one step of the scale, up or down."""
STEP_MANY_MISSES, STEP_MORE_MISSES = 4.0, 2.0
"""Factors of larger steps up, for recall far below the objective."""
MANY_MISSES, MORE_MISSES = 4.0, 2.0
"""They apply when more than this many times the misses that the objective allows were measured."""
AIMED_MISSES = 0.8
"""A step by the curve aims at this share of the misses that the objective allows: if it aimed at
the objective itself, every other step would end just below."""
QUERIES_MIN = 16
"""With fewer different queries the state changes only if the whole interval is below the
objective."""
PROBABLY_SHARE = 0.4
"""Recall is probably below the objective (about 80 %) if the point at this share of the way from
the mean to the upper end of the interval is below it."""
BELOW_RUNS = 3
"""Measurements of fresh samples in a row, probably below the objective, that raise the scale."""
LIMIT_RUNS = 2
"""Measurements in a row certainly below the objective at the largest ef that ask for a rebuild."""
SOON_QUERIES = 16
"""New queries after which a changed ef is confirmed by another measurement."""
FEW_QUERIES = 64
"""If fewer queries leave it open whether recall is below the objective, twice as many are measured
as soon as they have come."""
ABOVE_RUNS = 5
"""Measurements of fresh samples in a row, well above the objective, that lower the scale."""
FRESH_SHARE = 0.5
"""A sample is fresh if this share of its queries is new since the last fresh one."""
ABOVE_MARGIN = 0.25
"""Recall is well above the objective if it probably is by this share of the misses that the
objective allows."""
ABOVE_SHARE = 0.6
"""It probably is if the point at this share of the way from the mean to the lower end of the
interval is. The lower end itself allows for 3.7 hard queries that one sample did not draw, and so
is hardly ever well above; `ABOVE_RUNS` samples in a row leave less room for them."""
FLOOR_RUNS = 120
"""Measurements for which the scale is not lowered again to a value that was too small."""

_ROUNDING = 1.001

StepByCurve = Callable[[float], float | None]
"""Returns by which factor ef must grow until so many times fewer neighbours are missed; None where
nothing is known of it."""


def no_curve(fewer: float) -> float | None:
    """Return None: nothing is known of how recall grows with ef."""
    return None


@dataclass(frozen=True, slots=True)
class _Goal:
    """An estimated `value`, with its interval, and the `objective` that it should reach.

    There are up to two: the mean recall, and the share of the queries with enough recall each. ef
    is raised if either is missed, and lowered only if both are well above.
    """

    value: float
    low: float
    high: float
    objective: float
    is_tail: bool = False

    @property
    def misses(self) -> float:
        """How many times the misses that the objective allows there are."""
        return (1.0 - self.value) / max(1.0 - self.objective, 0.005)

    @property
    def certainly_missed(self) -> bool:
        return self.high < self.objective

    @property
    def probably_missed(self) -> bool:
        return self.value + PROBABLY_SHARE * (self.high - self.value) < self.objective

    @property
    def well_above(self) -> bool:
        """Whether a smaller ef may do.

        A sample is too small to show that a share is well above 0.99. It is taken to be if every
        query has enough recall, in `ABOVE_RUNS` samples in a row.
        """
        likely_low = self.value - ABOVE_SHARE * (self.value - self.low)
        margin = ABOVE_MARGIN * (1.0 - self.objective)
        return likely_low > self.objective + margin or (self.is_tail and self.value >= 1.0)


def _goals(estimate: RecallEstimate, objective: float) -> list[_Goal]:
    goals = [_Goal(estimate.recall, estimate.low, estimate.high, objective)]
    tail = estimate.tail
    if tail is not None:
        goals.append(_Goal(tail.share, tail.low, tail.high, tail.objective.share, is_tail=True))
    return goals


def _worst(goals: Sequence[_Goal]) -> _Goal | None:
    """Return the goal that is missed by most; None of none."""
    return max(goals, key=lambda goal: goal.misses, default=None)


@dataclass(frozen=True, slots=True)
class EfState:
    """The controller's state of one segment in one band.

    Attributes:
        scale: factor of the curve's ef, at least 1.
        sample_version: serial of the newest query of the last fresh sample; 0 after ef was raised.
        below_runs: measurements in a row that were below the objective: certainly, or probably and
            of a fresh sample.
        above_runs: measurements of fresh samples in a row that were well above it.
        floor: the last scale that was too small for the present queries.
        floor_runs: measurements for which `floor` still holds.
        rebuild: whether the segment should be rebuilt for its recall.
        stuck: whether it was rebuilt for that already and is below the objective again.
        shortfall: set by a measurement certainly below the objective, until one is at it again.
        raised_at_s: when ef was last raised, or a surer method began to answer: seconds since the
            epoch, 0: never. Answers before that were worse.
    """

    scale: float = 1.0
    sample_version: int = 0
    below_runs: int = 0
    above_runs: int = 0
    floor: float = 0.0
    floor_runs: int = 0
    rebuild: bool = False
    stuck: bool = False
    shortfall: Shortfall | None = None
    raised_at_s: float = 0.0


def for_changed_goal(state: EfState) -> EfState:
    """Return the state after a change of the collection's recall objectives or k.

    The scale stays until recall is measured against the new goal. Conclusions from the old goal are
    dropped: the floor, `rebuild`, `stuck` and `shortfall`.
    """
    return EfState(scale=state.scale, raised_at_s=state.raised_at_s)


def for_changed_queries(state: EfState) -> EfState:
    """Return the state after a change of the distribution of the queries.

    Which scale was too small was learnt from other queries, and so were the measurements that would
    lower the scale.
    """
    return replace(state, floor=0.0, floor_runs=0, above_runs=0)


def next_state(
    state: EfState,
    *,
    estimate: RecallEstimate,
    serials: Sequence[int],
    curve_ef: int,
    objective: float,
    by_curve: StepByCurve = no_curve,
    rebuilt: bool = False,
) -> EfState:
    """Return the state after one more measurement, made with the present scale.

    `serials` are those of the queries behind the estimate. They grow with every sampled query
    and tell whether this sample is fresh, as measuring the same queries again is no new evidence.
    `curve_ef` is the ef that the curve gives for the collection's k and `objective`. If the
    estimate has a tail, the objective about it counts too. `by_curve` says how far a step goes.
    `rebuilt`: whether the segment was rebuilt for its recall, so that another rebuild would not
    help.
    """
    new = sum(serial > state.sample_version for serial in serials)
    fresh = new > 0 and new >= FRESH_SHARE * len(serials)
    floor_runs = max(0, state.floor_runs - 1)
    state = replace(
        state,
        floor_runs=floor_runs,
        floor=state.floor if floor_runs else 0.0,
        sample_version=max(serials) if fresh else state.sample_version,
    )
    goals = _goals(estimate, objective)
    if (missed := _worst([goal for goal in goals if goal.certainly_missed])) is not None:
        return _certainly_below(
            state,
            missed,
            estimate=estimate,
            curve_ef=curve_ef,
            by_curve=by_curve,
            rebuilt=rebuilt,
        )
    if estimate.evidence < QUERIES_MIN:
        return state
    if (missed := _worst([goal for goal in goals if goal.probably_missed])) is not None:
        return _probably_below(
            state,
            missed,
            at_s=estimate.measured_at_s,
            curve_ef=curve_ef,
            by_curve=by_curve,
            fresh=fresh,
        )
    if all(goal.value >= goal.objective for goal in goals):
        state = replace(state, rebuild=False, stuck=False, shortfall=None)
    state = replace(state, below_runs=0)
    return _perhaps_above(state, all(goal.well_above for goal in goals), fresh=fresh)


def with_answers(state: EfState, *, answered: RecallEstimate, objective: float) -> EfState:
    """Return the state after the answers by codes were measured.

    Codes that are certainly below the objective are not used again before the graph is at it.
    """
    missed = any(goal.certainly_missed for goal in _goals(answered, objective))
    if state.shortfall is None or not missed:
        return state
    return replace(
        state,
        shortfall=replace(state.shortfall, rung=Rung.EXACT),
        raised_at_s=answered.measured_at_s,
    )


def queries_until_next(
    before: EfState, after: EfState, *, estimate: RecallEstimate, objective: float
) -> int | None:
    """Return after how many new queries recall is measured again, before the interval has passed.

    None: at the interval. A state that an `estimate` has changed is to be confirmed, answers that
    say `below_objective` and measurements that count against a state are to be decided, and a
    sample of few queries that decides nothing is to grow.
    """
    if _answering(after) != _answering(before):
        return SOON_QUERIES
    is_flagged = after.shortfall is not None and after.shortfall.rung is Rung.GRAPH
    is_open = is_flagged or 0 < after.below_runs < BELOW_RUNS
    if is_open and not (after.rebuild or after.stuck):
        return max(SOON_QUERIES, math.ceil(FRESH_SHARE * estimate.queries))
    is_undecided = any(one.low < one.objective <= one.high for one in _goals(estimate, objective))
    return estimate.queries if estimate.queries < FEW_QUERIES and is_undecided else None


def _answering(state: EfState) -> tuple[float, Rung | None]:
    """Return what of the state says how queries are answered."""
    return state.scale, None if state.shortfall is None else state.shortfall.rung


def _certainly_below(
    state: EfState,
    missed: _Goal,
    *,
    estimate: RecallEstimate,
    curve_ef: int,
    by_curve: StepByCurve,
    rebuilt: bool,
) -> EfState:
    """Raise the scale; at the largest ef, ask for a rebuild or mark the segment as stuck.

    At the largest ef, and already if recall is far below the objective, other methods than the
    graph answer from now on.
    """
    at_limit = scaled_ef(curve_ef, state.scale) >= EF_CONTROL_MAX
    rung, raised_at_s = _rung(state) or Rung.GRAPH, state.raised_at_s
    if rung is Rung.GRAPH and (at_limit or missed.misses > MANY_MISSES):
        rung, raised_at_s = Rung.CODES, estimate.measured_at_s
    state = replace(
        state,
        below_runs=state.below_runs + 1,
        above_runs=0,
        shortfall=Shortfall(estimate.high, rung),
        raised_at_s=raised_at_s,
    )
    if not at_limit:
        at_s = estimate.measured_at_s
        return _raised(state, missed, at_s=at_s, curve_ef=curve_ef, by_curve=by_curve)
    at_last = state.below_runs >= LIMIT_RUNS
    return replace(
        state,
        rebuild=(state.rebuild or at_last) and not rebuilt,
        stuck=(state.stuck or at_last) and rebuilt,
    )


def _probably_below(
    state: EfState,
    missed: _Goal,
    *,
    at_s: float,
    curve_ef: int,
    by_curve: StepByCurve,
    fresh: bool,
) -> EfState:
    """Raise the scale after `BELOW_RUNS` fresh samples, unless ef is the largest already.

    One suffices after a measurement certainly below: the graph is not at the objective until a
    measurement says so.
    """
    state = replace(state, below_runs=state.below_runs + fresh, above_runs=0)
    at_limit = scaled_ef(curve_ef, state.scale) >= EF_CONTROL_MAX
    wanted = BELOW_RUNS if state.shortfall is None else 1
    if at_limit or state.below_runs < wanted:
        return state
    return _raised(state, missed, at_s=at_s, curve_ef=curve_ef, by_curve=by_curve)


def _perhaps_above(state: EfState, well_above: bool, *, fresh: bool) -> EfState:
    """Lower the scale by a step after `ABOVE_RUNS` fresh samples well above, not to the floor."""
    if state.scale <= 1.0 or not well_above:
        return replace(state, above_runs=0)
    above_runs = state.above_runs + fresh
    if above_runs < ABOVE_RUNS:
        return replace(state, above_runs=above_runs)
    lower = max(1.0, state.scale / STEP)
    if lower <= state.floor * _ROUNDING:
        return replace(state, above_runs=0)
    return replace(state, scale=lower, above_runs=0)


def _raised(
    state: EfState, missed: _Goal, *, at_s: float, curve_ef: int, by_curve: StepByCurve
) -> EfState:
    """Return the state with a larger scale from `at_s` on. All queries are new to that."""
    scale = state.scale * _step(missed.misses, by_curve)
    return replace(
        state,
        scale=min(scale, EF_CONTROL_MAX / curve_ef),
        sample_version=0,
        below_runs=0,
        floor=state.scale,
        floor_runs=FLOOR_RUNS,
        raised_at_s=at_s,
    )


def _step(misses: float, by_curve: StepByCurve) -> float:
    """Return the factor of the next step up; larger if much more is missed than allowed.

    It is what the curve says, if it says anything, but never below `STEP` or above
    `STEP_MANY_MISSES`.
    """
    factor = by_curve(max(1.0, misses / AIMED_MISSES))
    if factor is not None:
        return min(max(factor, STEP), STEP_MANY_MISSES)
    if misses > MANY_MISSES:
        return STEP_MANY_MISSES
    return STEP_MORE_MISSES if misses > MORE_MISSES else STEP


Answering = tuple[str, SelectivityBand, float, Rung | None]
"""Segment, band, scale of its ef, and the method that answers where the graph is below."""


class EfController:
    """The states of all segments of a node, by segment and band.

    Search threads read it while the event loop writes: states are immutable and are replaced.
    A segment that was not measured yet has the shortfall of the segments that it was built from, if
    these were not answered by their graphs: its own graph answers once it was measured to be good.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[str, SelectivityBand], EfState] = {}
        self._failing: set[tuple[str, SelectivityBand]] = set()

    def scale(self, segment_id: str, band: SelectivityBand) -> float:
        """Return the factor of the curve's ef, 1 for a segment that was not measured."""
        state = self._states.get((segment_id, band))
        return 1.0 if state is None else state.scale

    def shortfall(
        self, segment_id: str, sources: Sequence[str], band: SelectivityBand
    ) -> Shortfall | None:
        """Return how far a segment, built from `sources`, is known to be below the objective."""
        if not self._failing:
            return None
        return self.state(segment_id, band, sources=sources).shortfall

    def state(
        self, segment_id: str, band: SelectivityBand, *, sources: Sequence[str] = ()
    ) -> EfState:
        """Return the state of a segment in a band.

        If it was not measured, this is the default one with the shortfall of one of its `sources`.
        """
        state = self._states.get((segment_id, band))
        if state is not None:
            return state
        for source in sources:
            former = self._states.get((source, band), _UNMEASURED).shortfall
            if former is not None and former.rung is not Rung.GRAPH:
                return EfState(shortfall=former)
        return _UNMEASURED

    def answering(self, segment_ids: Collection[str]) -> frozenset[Answering]:
        """Return how segments are answered; those as their recall curves say are left out."""
        return frozenset(
            (segment_id, band, state.scale, _rung(state))
            for (segment_id, band), state in self._states.items()
            if segment_id in segment_ids and (state.scale != 1.0 or state.shortfall is not None)
        )

    def store(self, segment_id: str, band: SelectivityBand, state: EfState) -> None:
        """Use `state` from the next search on."""
        self._states[segment_id, band] = state
        if state.shortfall is None:
            self._failing.discard((segment_id, band))
        else:
            self._failing.add((segment_id, band))

    def change_goal(self, segment_ids: Collection[str]) -> None:
        """Drop conclusions about these segments: their collection's objective or k has changed."""
        for key, state in self._states.items():
            if key[0] in segment_ids:
                self._states[key] = for_changed_goal(state)
                self._failing.discard(key)

    def change_queries(self, segment_ids: Collection[str], band: SelectivityBand) -> None:
        """Drop what was learnt of these segments from earlier queries of `band`.

        A filter may be of another band within a segment, so all bands with filters go together.
        """
        unfiltered = SelectivityBand.UNFILTERED
        for (segment_id, of), state in self._states.items():
            if segment_id in segment_ids and (of is unfiltered) == (band is unfiltered):
                self._states[segment_id, of] = for_changed_queries(state)

    def forget_all_but(self, segment_ids: Collection[str]) -> None:
        """Drop the states of all other segments: they are gone, and nothing was built from them."""
        for key in [key for key in self._states if key[0] not in segment_ids]:
            del self._states[key]
            self._failing.discard(key)


def _rung(state: EfState) -> Rung | None:
    return None if state.shortfall is None else state.shortfall.rung


_UNMEASURED = EfState()
