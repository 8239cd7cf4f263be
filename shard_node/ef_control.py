"""How much wider than its recall curve says a segment is searched, from what was measured.

The curve was measured when the segment was built, on rows that were held out. Live queries may be
harder, deletes wear a graph, and a graph may be damaged: then measured recall is below the
objective, and the beam width is scaled up until it is not. The scale is kept per segment and band
and multiplies what the curve says, whatever k and objective a query asks for. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from annheal.model.recall import RecallEstimate, SelectivityBand

EF_CONTROL_MAX = 1_024
"""The widest beam of the controller. Beyond it exact comparison is not much slower."""
STEP = math.sqrt(2.0)
SHORT_FAR, SHORT_MORE = 4.0, 2.0
"""Misses, as multiples of the misses the objective allows, that ask for larger steps up."""
STEP_FAR, STEP_MORE = 4.0, 2.0
QUERIES_MIN = 16
"""Fewer queries decide nothing, unless their whole interval is below the objective."""
BELOW_RUNS = 3
"""Runs in a row with a mean below the objective that ask for a step up without certainty."""
LIMIT_RUNS = 2
"""Runs in a row below the objective at the limit that ask for a rebuild."""
ABOVE_RUNS = 5
"""Runs in a row well above the objective that allow a step down."""
ABOVE_MARGIN = 0.25
"""Well above: the whole interval, and this share of the allowed misses more."""
FLOOR_RUNS = 120
"""Runs for which a scale that was too small is not tried again."""

_ROUNDING = 1.001


@dataclass(frozen=True, slots=True)
class EfState:
    """How one segment is searched in one band: the curve's ef times `scale` (at least 1)."""

    scale: float = 1.0
    below_runs: int = 0
    above_runs: int = 0
    floor: float = 0.0
    floor_runs: int = 0
    rebuild: bool = False
    stuck: bool = False


def scaled_ef(curve_ef: int, scale: float) -> int:
    """Return `curve_ef` times `scale`, at most `EF_CONTROL_MAX` unless the curve says more."""
    if scale <= 1.0:
        return curve_ef
    return max(curve_ef, min(EF_CONTROL_MAX, math.ceil(curve_ef * scale)))


def next_state(
    state: EfState,
    *,
    estimate: RecallEstimate,
    curve_ef: int,
    objective: float,
    rebuilt: bool = False,
) -> EfState:
    """Return the state after one more measurement, made with the present scale.

    `curve_ef` is what the curve says for the collection's k and `objective`; `rebuilt` whether the
    segment comes from a rebuild for its recall, so that one more would not help.
    """
    floor_runs = max(0, state.floor_runs - 1)
    state = replace(state, floor_runs=floor_runs, floor=state.floor if floor_runs else 0.0)
    below = estimate.queries >= QUERIES_MIN and estimate.recall < objective
    certain = estimate.high < objective
    if below or certain:
        return _below(
            replace(state, below_runs=state.below_runs + 1, above_runs=0),
            estimate=estimate,
            certain=certain,
            curve_ef=curve_ef,
            objective=objective,
            rebuilt=rebuilt,
        )
    if estimate.queries < QUERIES_MIN:
        return state
    state = replace(state, below_runs=0, rebuild=False, stuck=False)
    margin = ABOVE_MARGIN * (1.0 - objective)
    if state.scale <= 1.0 or estimate.low <= min(objective + margin, 1.0):
        return replace(state, above_runs=0)
    if state.above_runs + 1 < ABOVE_RUNS:
        return replace(state, above_runs=state.above_runs + 1)
    lower = max(1.0, state.scale / STEP)
    if lower <= state.floor * _ROUNDING:
        return replace(state, above_runs=0)
    return replace(state, scale=lower, above_runs=0)


def _below(
    state: EfState,
    *,
    estimate: RecallEstimate,
    certain: bool,
    curve_ef: int,
    objective: float,
    rebuilt: bool,
) -> EfState:
    at_limit = scaled_ef(curve_ef, state.scale) >= EF_CONTROL_MAX
    if at_limit:
        asks = state.below_runs >= LIMIT_RUNS
        return replace(
            state,
            rebuild=(state.rebuild or asks) and not rebuilt,
            stuck=(state.stuck or asks) and rebuilt,
        )
    if not certain and state.below_runs < BELOW_RUNS:
        return state
    scale = state.scale * _step(estimate.recall, objective)
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

    def forget_all_but(self, segment_ids: Collection[str]) -> None:
        """Drop the states of segments that are gone."""
        for gone in [slot for slot in self._states if slot[0] not in segment_ids]:
            del self._states[gone]


EfScale = Callable[[str, SelectivityBand], float]
"""Of a segment id and a band: by how much the curve's ef is multiplied."""


def curve_alone(segment_id: str, band: SelectivityBand) -> float:
    """Return 1: what the curve says, as long as nothing was measured."""
    return 1.0
