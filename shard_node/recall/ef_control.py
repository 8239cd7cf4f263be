"""How much wider than its recall curve says a segment is searched, from what was measured.

The curve was measured when the segment was built, on rows that were held out. Live queries may be
harder, deletes wear a graph, and a graph may be damaged: then measured recall is below the
objective, and the beam width is scaled up until it is not. The scale is kept per segment and band
and multiplies what the curve says, whatever k and objective a query asks for. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from annheal.model.measures.recall import RecallEstimate, SelectivityBand
from annheal.shard_node.search.ef_scale import EF_CONTROL_MAX, scaled_ef

STEP = math.sqrt(2.0)
SHORT_FAR, SHORT_MORE = 4.0, 2.0
"""Misses, as multiples of the misses the objective allows, that ask for larger steps up."""
STEP_FAR, STEP_MORE = 4.0, 2.0
QUERIES_MIN = 16
"""Fewer queries decide nothing, unless their whole interval is below the objective."""
DOUBT = 0.4
"""Probably below: this share of the way from the mean to the interval's end is (about 80 %)."""
BELOW_RUNS = 3
"""Fresh samples in a row probably below the objective that ask for a step up."""
LIMIT_RUNS = 2
"""Runs in a row certainly below the objective at the limit that ask for a rebuild."""
ABOVE_RUNS = 5
"""Fresh samples in a row well above the objective that allow a step down."""
FRESH_SHARE = 0.5
"""A sample is fresh, and so new evidence, when so much of it is new since the last that counted."""
ABOVE_MARGIN = 0.25
"""Well above: the whole interval, and this share of the allowed misses more."""
FLOOR_RUNS = 120
"""Runs for which a scale that was too small is not tried again."""

_ROUNDING = 1.001


@dataclass(frozen=True, slots=True)
class EfState:
    """How one segment is searched in one band: the curve's ef times `scale` (at least 1).

    `sample_version` is that of the last sample that counted.
    """

    scale: float = 1.0
    sample_version: int = 0
    below_runs: int = 0
    above_runs: int = 0
    floor: float = 0.0
    floor_runs: int = 0
    rebuild: bool = False
    stuck: bool = False


def for_changed_goal(state: EfState) -> EfState:
    """Return the state to go on with after the collection's objective or k was changed.

    The scale stays until it is measured against the new goal; what was concluded from the old one
    (a scale that was too small, a rebuild that is needed or did not help) does not.
    """
    return EfState(scale=state.scale)


def next_state(
    state: EfState,
    *,
    estimate: RecallEstimate,
    sample_version: int,
    curve_ef: int,
    objective: float,
    rebuilt: bool = False,
) -> EfState:
    """Return the state after one more measurement, made with the present scale.

    `sample_version` grows by one with every query sampled: running the same queries again proves
    nothing new. `curve_ef` is what the curve says for the collection's k and `objective`; `rebuilt`
    whether the segment comes from a rebuild for its recall, so that one more would not help.
    """
    fresh = sample_version - state.sample_version >= FRESH_SHARE * estimate.queries
    floor_runs = max(0, state.floor_runs - 1)
    state = replace(
        state,
        floor_runs=floor_runs,
        floor=state.floor if floor_runs else 0.0,
        sample_version=sample_version if fresh else state.sample_version,
    )
    if estimate.high < objective:
        return _certainly_below(
            state, recall=estimate.recall, curve_ef=curve_ef, objective=objective, rebuilt=rebuilt
        )
    if estimate.queries < QUERIES_MIN:
        return state
    likely_high = estimate.recall + DOUBT * (estimate.high - estimate.recall)
    if likely_high < objective:
        return _probably_below(
            state, recall=estimate.recall, curve_ef=curve_ef, objective=objective, fresh=fresh
        )
    if estimate.recall >= objective:
        state = replace(state, rebuild=False, stuck=False)
    state = replace(state, below_runs=0)
    return _perhaps_above(state, low=estimate.low, objective=objective, fresh=fresh)


def _certainly_below(
    state: EfState, *, recall: float, curve_ef: int, objective: float, rebuilt: bool
) -> EfState:
    state = replace(state, below_runs=state.below_runs + 1, above_runs=0)
    if scaled_ef(curve_ef, state.scale) < EF_CONTROL_MAX:
        return _raised(state, recall=recall, curve_ef=curve_ef, objective=objective)
    asks = state.below_runs >= LIMIT_RUNS
    return replace(
        state,
        rebuild=(state.rebuild or asks) and not rebuilt,
        stuck=(state.stuck or asks) and rebuilt,
    )


def _probably_below(
    state: EfState, *, recall: float, curve_ef: int, objective: float, fresh: bool
) -> EfState:
    state = replace(state, below_runs=state.below_runs + fresh, above_runs=0)
    at_limit = scaled_ef(curve_ef, state.scale) >= EF_CONTROL_MAX
    if at_limit or state.below_runs < BELOW_RUNS:
        return state
    return _raised(state, recall=recall, curve_ef=curve_ef, objective=objective)


def _perhaps_above(state: EfState, *, low: float, objective: float, fresh: bool) -> EfState:
    margin = ABOVE_MARGIN * (1.0 - objective)
    if state.scale <= 1.0 or low <= objective + margin:
        return replace(state, above_runs=0)
    above_runs = state.above_runs + fresh
    if above_runs < ABOVE_RUNS:
        return replace(state, above_runs=above_runs)
    lower = max(1.0, state.scale / STEP)
    if lower <= state.floor * _ROUNDING:
        return replace(state, above_runs=0)
    return replace(state, scale=lower, above_runs=0)


def _raised(state: EfState, *, recall: float, curve_ef: int, objective: float) -> EfState:
    scale = state.scale * _step(recall, objective)
    return replace(
        state,
        scale=min(scale, EF_CONTROL_MAX / curve_ef),
        below_runs=0,
        floor=state.scale,
        floor_runs=FLOOR_RUNS,
    )


def _step(recall: float, objective: float) -> float:
    short = (1.0 - recall) / max(1.0 - objective, 0.005)
    if short > SHORT_FAR:
        return STEP_FAR
    return STEP_MORE if short > SHORT_MORE else STEP


class EfController:
    """The states of all segments of a node.

    Read by the search thread while the event loop changes it: states are replaced, never changed.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[str, SelectivityBand], EfState] = {}

    def scale(self, segment_id: str, band: SelectivityBand) -> float:
        """Return by how much the curve's ef is multiplied."""
        state = self._states.get((segment_id, band))
        return 1.0 if state is None else state.scale

    def state(self, segment_id: str, band: SelectivityBand) -> EfState:
        """Return the state of a segment in a band."""
        return self._states.get((segment_id, band), EfState())

    def store(self, segment_id: str, band: SelectivityBand, state: EfState) -> None:
        """Use `state` from the next search on."""
        self._states[segment_id, band] = state

    def change_goal(self, segment_ids: Collection[str]) -> None:
        """Judge these segments anew: the objective or k of their collection was changed."""
        for slot, state in self._states.items():
            if slot[0] in segment_ids:
                self._states[slot] = for_changed_goal(state)

    def forget_all_but(self, segment_ids: Collection[str]) -> None:
        """Drop the states of segments that are gone."""
        for gone in [slot for slot in self._states if slot[0] not in segment_ids]:
            del self._states[gone]
