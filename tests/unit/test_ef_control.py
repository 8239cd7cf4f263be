"""What the controller of ef concludes from measured recall: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.model.measures.recall import RecallEstimate, Rung, SelectivityBand, Shortfall
from annheal.recall.interval import mean_interval
from annheal.shard_node.recall.ef_control import (
    ABOVE_RUNS,
    BELOW_RUNS,
    FEW_QUERIES,
    FLOOR_RUNS,
    LIMIT_RUNS,
    QUERIES_MIN,
    SOON_QUERIES,
    EfController,
    EfState,
    for_changed_goal,
    for_changed_queries,
    next_state,
    queries_until_next,
    with_answers,
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


@pytest.mark.parametrize(("by_curve", "raised"), [(2.5, 80), (1.01, 46), (20.0, 128), (None, 46)])
def test_a_step_goes_as_far_as_the_curve_says_within_limits(
    by_curve: float | None, raised: int
) -> None:
    state = next_state(
        EfState(),
        estimate=SHORT,
        serials=range(128),
        curve_ef=CURVE_EF,
        objective=OBJECTIVE,
        by_curve=lambda _: by_curve,
    )
    assert ef(state) == raised


def test_what_changed_or_is_open_is_measured_again_before_the_interval() -> None:
    def wanted(run: RecallEstimate, state: EfState | None = None) -> int | None:
        state = state or EfState()
        found = after(run, state=state)
        return queries_until_next(state, found, estimate=run, objective=OBJECTIVE)

    at_limit = EfState(scale=EF_CONTROL_MAX / CURVE_EF)
    assert wanted(SHORT) == SOON_QUERIES, "ef was raised"
    assert wanted(BROKEN, at_limit) == SOON_QUERIES, "other methods answer"
    assert wanted(DOUBTFUL) == 64, "half of the sample must be new to count against it again"
    raised = after(*[DOUBTFUL] * BELOW_RUNS)
    assert wanted(DOUBTFUL, after(*[DOUBTFUL] * (BELOW_RUNS - 1))) == SOON_QUERIES
    assert [wanted(one, raised) for one in (GOOD, FAIR)] == [None, None]
    room = after(*[GOOD] * (ABOVE_RUNS - 1), state=replace(raised, floor=0.0))
    assert wanted(GOOD, room) == SOON_QUERIES, "ef was lowered"
    flagged = EfState(scale=2.0, shortfall=Shortfall(0.94))
    assert wanted(UNKNOWN, flagged) == 64, "answers say below_objective"
    assert wanted(FAIR, flagged) == SOON_QUERIES, "they do no longer"
    few = measured(0.96, 0.8, 1.0, queries=FEW_QUERIES - 1)
    assert wanted(few) == FEW_QUERIES - 1
    assert wanted(replace(few, queries=FEW_QUERIES)) is None
    assert wanted(measured(1.0, 0.96, 1.0, queries=20)) is None, "it is decided"
    rebuilding = after(*[SHORT] * (BELOW_RUNS + 2), state=at_limit)
    assert rebuilding.rebuild
    assert wanted(SHORT, rebuilding) is None, "nothing more follows from it"


def test_probably_below_is_answered_after_several_samples_in_a_row() -> None:
    assert ef(after(*[DOUBTFUL] * (BELOW_RUNS - 1))) == CURVE_EF
    assert ef(after(*[DOUBTFUL] * BELOW_RUNS)) > CURVE_EF
    interrupted = [DOUBTFUL] * (BELOW_RUNS - 1) + [FAIR]
    assert ef(after(*interrupted, *interrupted, *interrupted)) == CURVE_EF
    assert ef(after(*[UNKNOWN] * 50)) == CURVE_EF


def test_one_sample_raises_ef_again_until_the_objective_is_confirmed() -> None:
    raised = ef(after(SHORT))
    assert ef(after(SHORT, DOUBTFUL)) > raised
    assert ef(after(SHORT, FAIR, DOUBTFUL)) == raised
    once = next_state(
        after(SHORT), estimate=DOUBTFUL, serials=range(1, 129), curve_ef=32, objective=OBJECTIVE
    )
    assert ef(once) > raised, "the same queries are new to the ef that was raised"


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


def test_the_graph_is_left_at_the_limit_or_far_below_and_comes_back_when_it_is_good() -> None:
    marginal = after(SHORT)
    assert marginal.shortfall == Shortfall(SHORT.high, Rung.GRAPH), "a larger ef is tried first"
    at_limit = EfState(scale=EF_CONTROL_MAX / CURVE_EF)
    assert after(SHORT, state=at_limit).shortfall == Shortfall(SHORT.high, Rung.CODES)
    far = after(BROKEN)
    assert far.shortfall == Shortfall(BROKEN.high, Rung.CODES), "not worth waiting for"
    assert ef(far) > CURVE_EF, "the graph is searched for with a larger ef all the same"
    assert not far.rebuild
    # Doubt changes nothing, in both directions.
    assert after(UNKNOWN, DOUBTFUL, state=far).shortfall == far.shortfall
    assert after(UNKNOWN).shortfall is None
    assert after(SHORT, state=far).shortfall == Shortfall(SHORT.high, Rung.CODES)
    few = measured(1.0, 0.79, 1.0, queries=QUERIES_MIN - 1)
    assert after(few, state=far).shortfall == far.shortfall, "too few to tell"
    assert after(FAIR, state=far).shortfall is None


def test_codes_that_fall_short_are_not_used_again() -> None:
    state = after(BROKEN)
    assert with_answers(state, answered=FAIR, objective=OBJECTIVE) == state
    assert with_answers(state, answered=UNKNOWN, objective=OBJECTIVE) == state
    exact = with_answers(state, answered=SHORT, objective=OBJECTIVE)
    assert exact.shortfall == Shortfall(BROKEN.high, Rung.EXACT)
    assert after(BROKEN, state=exact).shortfall == exact.shortfall
    assert with_answers(EfState(), answered=SHORT, objective=OBJECTIVE) == EfState()
    assert for_changed_goal(exact).shortfall is None


def test_a_state_knows_when_answers_became_better() -> None:
    def at(run: RecallEstimate, at_s: float) -> RecallEstimate:
        return replace(run, measured_at_s=at_s)

    raised = after(at(SHORT, 5.0))
    assert raised.raised_at_s == 5.0
    assert after(at(FAIR, 6.0), state=raised).raised_at_s == 5.0
    probably = after(*(at(DOUBTFUL, float(run)) for run in range(BELOW_RUNS)))
    assert probably.raised_at_s == BELOW_RUNS - 1
    limit = EfState(scale=EF_CONTROL_MAX / CURVE_EF)
    lifted = after(at(SHORT, 7.0), state=limit)
    assert lifted.raised_at_s == 7.0, "codes answer instead"
    again = after(at(SHORT, 8.0), state=lifted)
    assert again.raised_at_s == 7.0, "nothing has changed"
    exact = with_answers(again, answered=at(SHORT, 9.0), objective=OBJECTIVE)
    assert exact.raised_at_s == for_changed_goal(exact).raised_at_s == 9.0
    lowered = after(*[GOOD] * ABOVE_RUNS, state=replace(raised, floor_runs=0))
    assert lowered.scale < raised.scale
    assert lowered.raised_at_s == 5.0


def test_a_scale_that_was_too_small_for_earlier_queries_may_do_for_others() -> None:
    band, narrow = SelectivityBand.UNFILTERED, SelectivityBand.FROM_1
    raised = after(SHORT)
    assert raised.floor == 1.0
    controller = EfController()
    for segment_id in ("s", "other"):
        for of in (band, narrow):
            controller.store(segment_id, of, raised)
    controller.change_queries({"s"}, band)
    changed = controller.state("s", band)
    assert (changed.scale, changed.shortfall) == (raised.scale, raised.shortfall)
    assert (changed.floor, changed.floor_runs) == (0.0, 0)
    assert controller.state("s", narrow) == controller.state("other", band) == raised
    controller.change_queries({"s"}, SelectivityBand.FROM_10)
    assert controller.state("s", narrow).floor == 0.0, "bands of filters differ by segment"
    # Measurements of the earlier queries do not lower the scale for the new ones either.
    nearly = after(*[GOOD] * (ABOVE_RUNS - 1), state=replace(raised, scale=1.4))
    assert nearly.above_runs == ABOVE_RUNS - 1
    assert after(GOOD, state=for_changed_queries(nearly)).scale == 1.4
    assert after(*[GOOD] * ABOVE_RUNS, state=for_changed_queries(nearly)).scale == 1.0
    assert after(*[GOOD] * ABOVE_RUNS, state=nearly).scale == 1.4, "the floor"


def test_a_rebuilt_segment_is_answered_as_its_source_until_it_is_measured() -> None:
    band, other = SelectivityBand.UNFILTERED, SelectivityBand.FROM_10
    controller = EfController()
    assert controller.shortfall("s1", ("s0",), band) is None
    failing = after(BROKEN)
    controller.store("s1", band, failing)
    controller.store("s0", band, after(SHORT))  # only its ef is being raised
    assert controller.shortfall("s1", (), band) == failing.shortfall
    assert controller.shortfall("s2", ("s0", "s1"), band) == failing.shortfall
    assert controller.shortfall("s2", ("s0",), band) is None
    assert controller.shortfall("s2", ("s1",), other) is None
    heir = controller.state("s2", band, sources=("s1",))
    assert heir == EfState(shortfall=failing.shortfall)
    # Its first measurement decides.
    assert after(SHORT, state=heir).shortfall == Shortfall(SHORT.high, Rung.CODES)
    controller.store("s2", band, after(FAIR, state=heir))
    assert controller.shortfall("s2", ("s1",), band) is None
    controller.forget_all_but(["s2"])
    assert controller.shortfall("s3", ("s1",), band) is None


def test_a_changed_goal_ends_what_is_known_against_the_graph() -> None:
    controller = EfController()
    controller.store("s1", SelectivityBand.UNFILTERED, after(BROKEN))
    controller.change_goal(["s1"])
    assert controller.shortfall("s1", (), SelectivityBand.UNFILTERED) is None
