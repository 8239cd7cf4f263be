"""What the controller of ef concludes from measured recall: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.model.measures.recall import RecallEstimate, SelectivityBand
from annheal.recall.interval import mean_interval
from annheal.shard_node.recall.ef_control import (
    ABOVE_RUNS,
    BELOW_RUNS,
    FLOOR_RUNS,
    LIMIT_RUNS,
    EfController,
    EfState,
    next_state,
)
from annheal.shard_node.search.ef_scale import EF_CONTROL_MAX, scaled_ef

CURVE_EF = 32
OBJECTIVE = 0.95


def measured(recall: float, low: float, high: float, *, queries: int = 128) -> RecallEstimate:
    return RecallEstimate(10, recall, low, high, queries, 0.0, {})


GOOD = measured(0.999, 0.985, 1.0)
FAIR = measured(0.96, 0.94, 0.98)
DOUBTFUL = measured(0.94, 0.92, 0.955)
UNKNOWN = measured(0.945, 0.92, 0.965)
SHORT = measured(0.93, 0.91, 0.94)
BROKEN = measured(0.5, 0.4, 0.6)


def after(
    *runs: RecallEstimate, state: EfState | None = None, rebuilt: bool = False, renewed: int = 128
) -> EfState:
    """Return the state after `runs`, between which `renewed` queries were sampled."""
    state = state or EfState()
    version = state.sample_version
    for run in runs:
        version += renewed
        state = next_state(
            state,
            estimate=run,
            serials=range(version - run.queries + 1, version + 1),
            curve_ef=CURVE_EF,
            objective=OBJECTIVE,
            rebuilt=rebuilt,
        )
    return state


def ef(state: EfState) -> int:
    return scaled_ef(CURVE_EF, state.scale)


def test_nothing_changes_while_the_objective_is_met() -> None:
    assert ef(after(*[FAIR] * 50)) == ef(after(*[GOOD] * 50)) == CURVE_EF


def test_certainly_below_is_answered_at_once_and_harder_the_farther() -> None:
    assert ef(after(SHORT)) == 46  # 32 times the square root of 2
    assert ef(after(measured(0.88, 0.85, 0.91))) == 64
    assert ef(after(BROKEN)) == 128


def test_probably_below_is_answered_after_several_samples_in_a_row() -> None:
    assert ef(after(*[DOUBTFUL] * (BELOW_RUNS - 1))) == CURVE_EF
    assert ef(after(*[DOUBTFUL] * BELOW_RUNS)) > CURVE_EF
    interrupted = [DOUBTFUL] * (BELOW_RUNS - 1) + [FAIR]
    assert ef(after(*interrupted, *interrupted, *interrupted)) == CURVE_EF
    assert ef(after(*[UNKNOWN] * 50)) == CURVE_EF


def test_the_same_queries_again_are_no_new_evidence() -> None:
    assert ef(after(*[DOUBTFUL] * 20, renewed=0)) == CURVE_EF
    assert ef(after(*[DOUBTFUL] * 4, renewed=16)) == CURVE_EF
    assert ef(after(*[DOUBTFUL] * 4 * BELOW_RUNS, renewed=16)) > CURVE_EF
    assert after(*[GOOD] * 50, state=EfState(scale=4.0), renewed=0).scale == 4.0
    assert ef(after(*[BROKEN] * 3, renewed=0)) == EF_CONTROL_MAX
    assert after(*[BROKEN] * (3 + LIMIT_RUNS), renewed=0).rebuild


def test_few_queries_decide_only_when_certain() -> None:
    assert ef(after(*[measured(0.9, 0.5, 0.99, queries=5)] * 20)) == CURVE_EF
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
    for version, run in enumerate(runs):
        state = next_state(
            state,
            estimate=run,
            serials=range(128 * version, 128 * version + 128),
            curve_ef=curve_ef,
            objective=objective,
        )
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


def states(
    state: EfState, rng: np.random.Generator, *, truth: float, spread: float, runs: int
) -> Iterator[EfState]:
    """Yield the state after each measurement: 128 queries of recall `truth`, half of them new."""
    sample = np.empty(0)
    for run in range(1, runs):
        chances = rng.beta(spread * truth, spread * (1 - truth), 64)
        sample = np.concatenate([sample, rng.binomial(10, chances) / 10])[-128:]
        found = mean_interval(sample)
        state = next_state(
            state,
            estimate=measured(found.mean, found.low, found.high, queries=len(sample)),
            serials=range(64 * run - len(sample), 64 * run),
            curve_ef=CURVE_EF,
            objective=OBJECTIVE,
        )
        yield state


@pytest.mark.parametrize(("truth", "lowered"), [(0.985, True), (0.96, False), (0.95, False)])
def test_ef_is_lowered_where_recall_is_well_above_the_objective(
    truth: float, lowered: bool
) -> None:
    """Samples of 128 renewed by half; k 10 with correlated misses."""
    rng = np.random.default_rng(3)
    for state in states(EfState(scale=2.0), rng, truth=truth, spread=4, runs=200):
        if state.scale < 2.0:
            break
    assert (state.scale < 2.0) is lowered


def test_a_segment_that_meets_its_objective_is_left_alone_for_long() -> None:
    """Recall 0.96, samples of 128 renewed by half: how often is ef above the curve's?"""
    rng = np.random.default_rng(11)
    raised = {}
    for truth in (0.96, 0.93):
        above = runs = 0
        for state in states(EfState(), rng, truth=truth, spread=8, runs=1_000):
            runs += 1
            above += state.scale > 1.0
            if truth < OBJECTIVE and state.scale > 1.0:
                break
        raised[truth] = (above, runs)
    assert raised[0.96][0] < 300  # of 1,000 runs; a raise lasts at least 120
    assert raised[0.93][1] < 20
