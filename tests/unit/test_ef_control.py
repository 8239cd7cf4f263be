"""What the controller of ef concludes from measured recall: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.model.recall import RecallEstimate, SelectivityBand
from shard_node.ef_control import (
    ABOVE_RUNS,
    BELOW_RUNS,
    EF_CONTROL_MAX,
    FLOOR_RUNS,
    LIMIT_RUNS,
    EfController,
    EfState,
    next_state,
    scaled_ef,
)

CURVE_EF = 32
OBJECTIVE = 0.95


def measured(recall: float, low: float, high: float, *, queries: int = 128) -> RecallEstimate:
    return RecallEstimate(10, recall, low, high, queries, 0.0, {})


GOOD = measured(0.999, 0.985, 1.0)
FAIR = measured(0.96, 0.94, 0.98)
DOUBTFUL = measured(0.945, 0.93, 0.96)
SHORT = measured(0.93, 0.91, 0.94)
BROKEN = measured(0.5, 0.4, 0.6)


def after(*runs: RecallEstimate, state: EfState | None = None, **how: bool) -> EfState:
    state = state or EfState()
    for run in runs:
        state = next_state(state, estimate=run, curve_ef=CURVE_EF, objective=OBJECTIVE, **how)
    return state


def ef(state: EfState) -> int:
    return scaled_ef(CURVE_EF, state.scale)


def test_nothing_changes_while_the_objective_is_met() -> None:
    assert ef(after(*[FAIR] * 50)) == ef(after(*[GOOD] * 50)) == CURVE_EF


def test_certainly_below_is_answered_at_once_and_harder_the_farther() -> None:
    assert ef(after(SHORT)) == 46  # 32 times the square root of 2
    assert ef(after(measured(0.88, 0.85, 0.91))) == 64
    assert ef(after(BROKEN)) == 128


def test_doubtfully_below_is_answered_after_several_runs_in_a_row() -> None:
    assert ef(after(*[DOUBTFUL] * (BELOW_RUNS - 1))) == CURVE_EF
    assert ef(after(*[DOUBTFUL] * BELOW_RUNS)) > CURVE_EF
    interrupted = [DOUBTFUL] * (BELOW_RUNS - 1) + [FAIR]
    assert ef(after(*interrupted, *interrupted, *interrupted)) == CURVE_EF


def test_few_queries_decide_only_when_certain() -> None:
    assert after(*[measured(0.9, 0.5, 0.99, queries=5)] * 20) == EfState()
    assert after(*[measured(1.0, 0.96, 1.0, queries=5)] * 20, state=EfState(4.0)).scale == 4.0
    assert ef(after(measured(0.0, 0.0, 0.4, queries=5))) > CURVE_EF


def test_at_the_limit_a_rebuild_is_asked_for_until_recall_is_back() -> None:
    state = after(*[BROKEN] * 3)
    assert (ef(state), state.rebuild) == (EF_CONTROL_MAX, False)
    state = after(*[BROKEN] * LIMIT_RUNS, state=state)
    assert (ef(state), state.rebuild, state.stuck) == (EF_CONTROL_MAX, True, False)
    assert after(BROKEN, state=state).rebuild
    assert not after(FAIR, state=state).rebuild


def test_what_was_rebuilt_for_its_recall_is_not_rebuilt_again() -> None:
    state = after(*[BROKEN] * 20, rebuilt=True)
    assert (ef(state), state.rebuild, state.stuck) == (EF_CONTROL_MAX, False, True)
    assert not after(FAIR, state=state, rebuilt=True).stuck


def test_room_lowers_ef_step_by_step_but_never_below_the_curve() -> None:
    raised = EfState(scale=4.0)
    assert after(*[GOOD] * (ABOVE_RUNS - 1), state=raised).scale == 4.0
    lower = after(*[GOOD] * ABOVE_RUNS, state=raised)
    assert lower.scale == pytest.approx(4.0 / 2**0.5)
    assert after(*[FAIR] * 50, state=raised).scale == 4.0
    assert ef(after(*[GOOD] * 100, state=raised)) == CURVE_EF


def test_what_was_too_little_is_not_tried_again_for_long() -> None:
    raised = after(SHORT)
    assert after(*[GOOD] * (FLOOR_RUNS - ABOVE_RUNS), state=raised).scale == raised.scale
    assert after(*[GOOD] * (FLOOR_RUNS + ABOVE_RUNS), state=raised).scale == 1.0


@given(
    st.lists(st.sampled_from([GOOD, FAIR, DOUBTFUL, SHORT, BROKEN]), max_size=60),
    st.sampled_from([10, 32, 48, 512, 1_024, 5_000]),
    st.sampled_from([0.5, 0.95, 0.999, 1.0]),
)
def test_ef_stays_between_the_curve_and_the_limit(
    runs: Sequence[RecallEstimate], curve_ef: int, objective: float
) -> None:
    state = EfState()
    for run in runs:
        state = next_state(state, estimate=run, curve_ef=curve_ef, objective=objective)
        assert curve_ef <= scaled_ef(curve_ef, state.scale) <= max(curve_ef, EF_CONTROL_MAX)
        assert not state.rebuild or scaled_ef(curve_ef, state.scale) >= EF_CONTROL_MAX
        assert not state.stuck


def test_states_of_segments_that_are_gone_are_forgotten() -> None:
    controller = EfController()
    band = SelectivityBand.UNFILTERED
    assert controller.scale("a", band) == 1.0
    for name in ("a", "b"):
        controller.store(name, band, replace(EfState(), scale=2.0))
    controller.forget_all_but({"b"})
    assert (controller.scale("a", band), controller.scale("b", band)) == (1.0, 2.0)
    assert controller.scale("b", SelectivityBand.FROM_50) == 1.0
