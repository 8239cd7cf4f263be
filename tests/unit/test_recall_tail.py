"""The worst queries are said beside the mean, and a bad tail is not called met."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.cli.operator_commands.filters import is_validated, sentence
from annheal.cli.operator_commands.recall import tail_text
from annheal.coordinator.metrics import recall_families
from annheal.coordinator.recall.summary import join_dependent, join_independent
from annheal.model.measures.recall import RecallEstimate
from annheal.model.measures.recall_summary import (
    RecallSlice,
    RecallSummary,
    RecallVerdict,
    verdict_of,
)
from annheal.recall.estimating import recall_estimate
from annheal.wire.recall import decode_recall_summary, encode_recall_summary


def measured(*recalls: float) -> RecallEstimate:
    asked = Counter({10: len(recalls)})
    return recall_estimate(np.array(recalls), asked, {}, measured_at_s=1.0)


@given(st.lists(st.integers(0, 10), min_size=1, max_size=60), st.integers(1, 10))
def test_shares_are_those_of_the_queries(tenths: list[int], limit: int) -> None:
    recalls = [tenth / 10 for tenth in tenths]
    estimate = measured(*recalls)
    assert sum(estimate.shares) == pytest.approx(1.0)
    below = sum(tenth < limit for tenth in tenths) / len(tenths)
    assert estimate.share_below(limit / 10) == pytest.approx(below)
    p5 = estimate.percentile(0.05)
    assert p5 == pytest.approx(sorted(recalls)[int(0.05 * len(recalls) + 1e-9)])


def test_five_of_400_queries_without_a_hit_are_a_bad_tail() -> None:
    bad = measured(*[0.0] * 5, *[1.0] * 395)
    good = measured(*[0.0] * 3, *[1.0] * 397)
    assert bad.recall > 0.95
    assert verdict_of(bad, 0.95) is RecallVerdict.MET_WITH_BAD_TAIL
    assert verdict_of(good, 0.95) is RecallVerdict.MET
    assert verdict_of(bad, 0.99) is not RecallVerdict.MET
    assert verdict_of(replace(bad, shares=()), 0.95) is RecallVerdict.MET  # an older node
    assert tail_text(bad, 0.95) == "1.2% below the objective, 1.2% below a half; p5 1.00"
    assert tail_text(replace(bad, shares=()), 0.95) is None
    one = RecallSlice("unfiltered", verdict_of(bad, 0.95), bad)
    assert not is_validated(one, 0.95)
    assert "met, with a bad tail" in sentence(one, 0.95)
    again = replace(one, verdict=RecallVerdict.RECOVERING)
    assert not is_validated(again, 0.95)
    assert "recovering" in sentence(again, 0.95)


def test_joined_parts_keep_their_tails() -> None:
    bad, good = measured(*[0.0] * 50, *[1.0] * 50), measured(*[1.0] * 100)
    for joined in (
        join_dependent([bad, good]), join_independent([(bad, 1.0), (good, 1.0)])
    ):  # fmt: skip
        assert joined is not None
        assert joined.share_below(0.5) == pytest.approx(0.25)
        assert joined.percentile(0.05) == 0.0
    unknown = join_dependent([bad, replace(good, shares=())])
    assert unknown is not None
    assert unknown.share_below(0.5) is None


def test_tails_travel_and_are_exported() -> None:
    bad = measured(*[0.0] * 5, *[0.9] * 20, *[1.0] * 375)
    one = RecallSlice("", verdict_of(bad, 0.95), bad)
    summary = RecallSummary("things", "id", 0.95, 0.01, one)
    assert decode_recall_summary(encode_recall_summary(summary)) == summary
    families = {family.name: family for family in recall_families([summary], now_s=2.0)}
    values = {labels[-1]: value for labels, value in families["annheal_recall_tail_ratio"].values}
    assert values == pytest.approx({"p5": 0.9, "below_objective": 0.0625, "below_half": 0.0125})
