"""Audits of answers over several shards: which queries judge, and what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from annheal.cli.operator_commands.recall_reports.audit import audit_document, render_audit
from annheal.coordinator.recall.merged_audit import audit_answers, unmeasured_queries
from annheal.coordinator.recall.summary import summarise
from annheal.model.measures.recall import SelectivityBand
from annheal.model.measures.recall_audit import AuditReport, AuditVerdict, BandAudit, with_doubts
from annheal.model.measures.recall_summary import ALL_SHARDS, RecallSummary
from annheal.model.measures.recall_worst import LiveQuery, WorstQuery
from annheal.wire.recall import decode_live_queries, encode_live_queries
from tests.support.compaction import collection
from tests.support.recall_reports import MEASURED_AT_S, report

BAND, NARROW = SelectivityBand.UNFILTERED, SelectivityBand.FROM_0_1


def asked(number: int | None, *, band: SelectivityBand = BAND, ef: int | None = None) -> LiveQuery:
    vector = np.array([number or 0, 1.0], dtype=np.float32)
    return LiveQuery(vector, 10, band, MEASURED_AT_S + 5.0, ef=ef, number=number)


def found(recall: float, count: int) -> list[WorstQuery]:
    return [WorstQuery(asked(number), recall, (), (), 0) for number in range(count)]


@pytest.fixture(scope="module")
def summary() -> RecallSummary:
    whole = report("c1", shards=[0, 1])
    return summarise(replace(collection(), shard_count=2), [whole])


def test_queries_that_a_shard_measured_and_those_with_settings_of_their_own_do_not_judge() -> None:
    sampled = [
        asked(3), asked(1), asked(3), asked(2), asked(None), asked(5, ef=9), asked(9, band=NARROW)
    ]  # fmt: skip
    chosen = unmeasured_queries(sampled, {2}, queries_max=10)
    assert [one.number for one in chosen] == [1, 9, 3], "of each band in turn, each once"
    assert [one.number for one in unmeasured_queries(sampled, set(), queries_max=2)] == [1, 9]
    assert decode_live_queries(encode_live_queries(sampled))[0].number == 3


def test_an_audit_of_answers_says_yes_no_or_why_not(summary: RecallSummary) -> None:
    def verdict(recall: float, count: int, *, of: RecallSummary = summary) -> BandAudit:
        audits = audit_answers(of, found(recall, count), now_s=MEASURED_AT_S + 10.0)
        assert {one.shard for one in audits} == {ALL_SHARDS}
        return next(one for one in audits if one.band is BAND)

    good = verdict(0.98, 100)
    assert (good.verdict, good.reason, good.later) == (AuditVerdict.CONTAINED, "", 100)
    assert verdict(0.6, 100).verdict is AuditVerdict.OUTSIDE
    few = verdict(0.98, 20)
    assert (few.verdict, few.reason[:10]) == (AuditVerdict.UNKNOWN, "20 queries")
    raised = tuple(replace(one, raised_at_s=MEASURED_AT_S + 1.0) for one in summary.segments)
    better = verdict(0.98, 100, of=replace(summary, segments=raised))
    assert (better.verdict, better.reason[:7]) == (AuditVerdict.UNKNOWN, "answers")


def test_answers_are_not_judged_where_one_of_their_shards_is_not(summary: RecallSummary) -> None:
    merged = audit_answers(summary, found(0.98, 100), now_s=MEASURED_AT_S + 10.0)
    of_band = [one for one in merged if one.band is BAND]
    shard = replace(of_band[0], shard=1)
    changed = replace(shard, verdict=AuditVerdict.UNKNOWN, reason="the segments have changed")
    assert with_doubts(of_band, [shard]) == tuple(of_band)
    [doubted] = with_doubts(of_band, [shard, changed])
    assert (doubted.verdict, doubted.reason) == (
        AuditVerdict.UNKNOWN,
        "shard 1: the segments have changed",
    )
    whole = AuditReport("c", (shard,), (), (doubted,))
    assert audit_document(whole)["merged"][0]["verdict"] == "unknown"
    assert render_audit(whole) is not None
