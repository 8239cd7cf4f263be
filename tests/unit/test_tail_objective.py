"""The objective about single queries: what is promised, measured, concluded and said."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from annheal.cli.operator_commands.health_checks import Health
from annheal.cli.operator_commands.recall import _tail_facts
from annheal.coordinator.metrics import recall_families
from annheal.coordinator.recall.summary import join_dependent, join_independent, summarise
from annheal.errors import InvalidArgument
from annheal.model.collection import Collection, CollectionSettings, Metric, ModelSpec
from annheal.model.measures.recall import RecallEstimate
from annheal.model.measures.recall_summary import RecallSummary, RecallVerdict, tail_verdict_of
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.validation import validate_collection
from annheal.recall import RecallMemory, decode_memory, encode_memory
from annheal.recall.estimating import recall_estimate, tail_estimate
from annheal.recall.interval import mean_interval
from annheal.shard_node.recall.ef_control import ABOVE_RUNS, EfState, next_state, with_answers
from annheal.wire.lifecycle import collections
from annheal.wire.recall import decode_recall_summary, encode_recall_summary
from tests.support.recall_reports import report
from tests.unit.test_health_checks import finding

PROMISE = TailObjective(0.8, 0.99)
COLLECTION = Collection(
    "c1",
    "things",
    (ModelSpec("m", 8, Metric.COSINE),),
    (),
    1,
    settings=CollectionSettings(recall_tail_objective=0.8, recall_objective_share=0.99),
)


def measured(*recalls: float, objective: TailObjective = PROMISE) -> RecallEstimate:
    """Return the estimate from different queries with these recalls."""
    values = np.array(recalls)
    found = recall_estimate(values, Counter({10: len(values)}), {}, measured_at_s=1.0)
    tail = tail_estimate(values, np.arange(len(values)), objective)
    return replace(found, distinct=len(values), tail=tail)


FINE = measured(*[1.0] * 128)
BAD_TAIL = measured(*[0.3] * 8, *[1.0] * 120)
"""The mean, 0.956, meets 0.95; of the queries, 0.9375 have 0.8, and surely not 0.99."""
CLOSE = measured(*[0.7] * 2, *[1.0] * 126)
EDGE = measured(0.7, *[1.0] * 127)
"""At what is promised, and not well above."""


def test_the_share_counts_queries_and_its_interval_different_ones() -> None:
    recalls = np.array([0.8, 0.79, 1.0, 0.0])
    once = tail_estimate(recalls, np.arange(4), PROMISE)
    assert once.share == 0.5
    exact = mean_interval(np.array([1.0, 0.0, 1.0, 0.0]))  # that of Clopper and Pearson
    assert (once.low, once.high) == pytest.approx((exact.low, exact.high))
    # Each of them asked ten times: as many different queries, so as much evidence.
    often = tail_estimate(np.repeat(recalls, 10), np.repeat(np.arange(4), 10), PROMISE)
    assert often.share == 0.5
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    # One of them asked a hundred times: 101 of 103 answers are good, and one query shows that.
    hot = tail_estimate(np.append(recalls, [1.0] * 99), np.append(np.arange(4), [2] * 99), PROMISE)
    assert hot.share == pytest.approx(101 / 103)
    assert hot.high - hot.low > once.high - once.low > 0.5


def test_verdicts_are_about_single_queries() -> None:
    assert tail_verdict_of(FINE, None) is None
    assert tail_verdict_of(None, PROMISE) is RecallVerdict.UNMEASURED
    assert tail_verdict_of(FINE, TailObjective(0.9, 0.99)) is RecallVerdict.UNMEASURED
    assert tail_verdict_of(FINE, PROMISE) is RecallVerdict.MET
    assert tail_verdict_of(BAD_TAIL, PROMISE) is RecallVerdict.MISSED
    assert tail_verdict_of(CLOSE, PROMISE) is RecallVerdict.UNCLEAR
    old = replace(FINE, valid_until_s=5.0)
    assert tail_verdict_of(old, PROMISE, now_s=4.0) is RecallVerdict.MET
    assert tail_verdict_of(old, PROMISE, now_s=6.0) is RecallVerdict.UNKNOWN
    # 99 good queries do not show what holds for 99 of 100.
    assert tail_verdict_of(measured(*[1.0] * 99), PROMISE) is RecallVerdict.UNKNOWN
    assert tail_verdict_of(measured(*[1.0] * 100), PROMISE) is RecallVerdict.MET
    assert tail_verdict_of(measured(*[0.0] * 5), PROMISE) is RecallVerdict.MISSED


def after(*runs: RecallEstimate, state: EfState | None = None, objective: float = 0.95) -> EfState:
    state, version = state or EfState(), 0
    for run in runs:
        version += run.queries
        state = next_state(
            state,
            estimate=run,
            serials=range(version - run.queries + 1, version + 1),
            curve_ef=32,
            objective=objective,
        )
    return state


def test_the_stricter_objective_raises_ef_and_both_must_allow_a_lower_one() -> None:
    assert BAD_TAIL.recall > 0.95
    assert after(replace(BAD_TAIL, tail=None)).scale == 1.0
    raised = after(BAD_TAIL)
    assert raised.scale > 1.0
    assert raised.shortfall is not None
    assert after(FINE, state=raised).shortfall is None
    # The mean alone raises it too, where the tail is fine.
    flat = measured(*[0.8] * 128)
    assert flat.tail is not None
    assert flat.tail.share == 1.0
    assert after(flat).scale > 1.0
    # A mean that is well above does not lower ef while single queries are below.
    wide = EfState(scale=8.0)
    assert after(*[replace(EDGE, tail=None)] * ABOVE_RUNS, state=wide, objective=0.9).scale < 8.0
    assert after(*[EDGE] * ABOVE_RUNS, state=wide, objective=0.9).scale == 8.0
    assert after(*[CLOSE] * ABOVE_RUNS, state=wide, objective=0.9).scale > 8.0
    assert after(*[FINE] * ABOVE_RUNS, state=wide, objective=0.9).scale < 8.0


def test_codes_whose_answers_have_a_bad_tail_are_not_used() -> None:
    state = after(measured(*[0.0] * 64, *[1.0] * 64))
    assert state.shortfall is not None
    assert with_answers(state, answered=FINE, objective=0.95) == state
    assert with_answers(state, answered=replace(BAD_TAIL, tail=None), objective=0.95) == state
    assert with_answers(state, answered=BAD_TAIL, objective=0.95) != state


def test_tails_are_joined_like_means() -> None:
    both = join_dependent([FINE, BAD_TAIL], [1.0, 3.0])
    assert both is not None
    assert both.tail is not None
    assert both.tail.share == pytest.approx((1.0 + 3 * 0.9375) / 4)
    bands = join_independent([(FINE, 3.0), (BAD_TAIL, 1.0)])
    partly = join_independent([(FINE, 3.0), (BAD_TAIL, 1.0), (None, 4.0)])
    assert bands is not None
    assert partly is not None
    assert bands.tail is not None
    assert partly.tail is not None
    assert bands.tail.share == partly.tail.share == pytest.approx((3.0 + 0.9375) / 4)
    assert partly.tail.low < bands.tail.low < bands.tail.share < bands.tail.high
    for other in (replace(FINE, tail=None), measured(1.0, objective=TailObjective(0.5, 0.9))):
        for joined in (
            join_dependent([FINE, other]),
            join_independent([(FINE, 1.0), (other, 1.0)]),
        ):
            assert joined is not None
            assert joined.tail is None


def summary(estimate: RecallEstimate) -> RecallSummary:
    one = report("c1")
    parts = tuple(replace(part, estimate=estimate) for part in one.shards)
    return summarise(COLLECTION, [replace(one, shards=parts)])


def test_a_summary_says_it_and_travels() -> None:
    good, bad = summary(FINE), summary(BAD_TAIL)
    assert good.overall.tail_verdict is RecallVerdict.MET
    assert bad.overall.verdict is RecallVerdict.MET_WITH_BAD_TAIL
    assert bad.overall.tail_verdict is RecallVerdict.MISSED
    assert [band.tail_verdict for band in bad.bands] == [RecallVerdict.MISSED] * 2
    for one in (good, bad):
        assert decode_recall_summary(encode_recall_summary(one)) == one
    [(title, words)] = _tail_facts(bad)
    assert title == "tail objective"
    assert str(words).startswith(
        "0.99 of the queries with at least 0.8 (missed); measured 0.9375 ("
    )
    families = {family.name: family for family in recall_families([bad], now_s=2.0)}
    promised = families["annheal_recall_objective_share_ratio"].values
    assert [value for _, value in promised] == [0.99]
    shares = families["annheal_recall_tail_share_ratio"].values
    assert [value for labels, value in shares if labels[-1] == "estimate"] == [0.9375] * 3


def test_without_the_objective_nothing_is_said() -> None:
    plain = summarise(replace(COLLECTION, settings=CollectionSettings()), [report("c1")])
    assert plain.tail_objective is None
    assert plain.overall.tail_verdict is None
    assert decode_recall_summary(encode_recall_summary(plain)) == plain


@pytest.mark.parametrize(
    ("estimate", "health", "says"),
    [
        (FINE, Health.GOOD, "1.0000 of them do"),
        (CLOSE, Health.WATCH, "promised are 0.99 of them with a recall of 0.8"),
        (BAD_TAIL, Health.BAD, "0.9375 of them do"),
        (measured(*[1.0] * 20), Health.UNKNOWN, "fewer than 100 different queries"),
        (replace(FINE, tail=None), Health.UNKNOWN, "not measured yet"),
    ],
)
def test_health_answers_for_single_queries(
    estimate: RecallEstimate, health: Health, says: str
) -> None:
    found = finding("enough each", recall=summary(estimate))
    assert found.health is health
    assert says in found.answer
    assert bool(found.advice) == (health is not Health.GOOD)


def test_a_memory_keeps_what_it_was_measured_for() -> None:
    memory = RecallMemory("m", 1.0, objective=0.95, k=10, tail=PROMISE)
    assert decode_memory(encode_memory(memory), key="k").tail == PROMISE


def refused(recall: float, share: float) -> tuple[str, str]:
    settings = CollectionSettings(recall_tail_objective=recall, recall_objective_share=share)
    with pytest.raises(InvalidArgument) as error:
        validate_collection(replace(COLLECTION, settings=settings))
    [violation] = error.value.violations
    return violation.field, violation.description


def test_both_settings_or_none() -> None:
    validate_collection(COLLECTION)
    field, fix = refused(0.8, 0.0)
    assert field == "settings.recall_objective_share"
    assert "set settings.recall_objective_share too, for example 0.99" in fix
    field, fix = refused(0.0, 0.9)
    assert field == "settings.recall_tail_objective"
    assert "set settings.recall_tail_objective too, for example 0.8" in fix
    assert refused(1.1, 0.9)[0] == "settings.recall_tail_objective"
    assert refused(float("nan"), 0.9)[0] == "settings.recall_tail_objective"
    for share in (0.999, 0.1, float("nan")):
        field, fix = refused(0.8, share)
        assert field == "settings.recall_objective_share"
        assert "0.5 and 0.99" in fix


def test_the_settings_travel_and_an_older_collection_has_none() -> None:
    message = collections.encode_collection(COLLECTION)
    assert collections.decode_collection(message).settings.tail_objective == PROMISE
    message.settings.ClearField("recall_tail_objective")
    message.settings.ClearField("recall_objective_share")
    assert collections.decode_collection(message).settings.tail_objective is None
