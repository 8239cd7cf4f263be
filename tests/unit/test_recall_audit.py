"""Audits: which queries judge an estimate, what their recall says, and how that is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console, RenderableType

from annheal.cli.operator_commands.recall_reports.audit import audit_document, render_audit
from annheal.coordinator.metrics import recall_families
from annheal.coordinator.recall.summary import summarise
from annheal.errors import InvalidArgument
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.measures.recall import (
    BandCoverage,
    RecallEstimate,
    SelectivityBand,
    ShardBandRecall,
)
from annheal.model.measures.recall_audit import (
    AuditReport,
    AuditVerdict,
    BandAudit,
    agree,
    checked_audit_queries,
    covered,
)
from annheal.model.topology.shard import ShardId
from annheal.recall import RecallMemory, decode_memory, encode_memory
from annheal.recall.coverage import CoverageBook
from annheal.recall.estimating import recall_estimate
from annheal.shard_node.recall.auditor import audit_bands, unused_queries
from annheal.shard_node.recall.measuring.measure import GroupFinding, QueryGroup
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery
from annheal.shard_node.recall.watched import Judged
from annheal.wire.recall import (
    decode_audits,
    decode_recall_reports,
    decode_recall_summary,
    encode_audits,
    encode_recall_reports,
    encode_recall_summary,
)
from tests.support.recall_reports import report

BAND = SelectivityBand.UNFILTERED
SHARD = ShardId("c1", 0)
COLLECTION = Collection("c1", "things", (ModelSpec("m", 8, Metric.COSINE),), (), 1)


def as_text(shown: RenderableType) -> str:
    written = StringIO()
    Console(file=written, width=200).print(shown)
    return written.getvalue()


def measured(recalls: np.ndarray[tuple[int], np.dtype[np.float64]]) -> RecallEstimate:
    found = recall_estimate(recalls, Counter({10: len(recalls)}), {}, measured_at_s=100.0)
    return replace(found, window_begin_s=40.0, window_end_s=100.0, distinct=len(recalls))


def sampled(serial: int, *, at_s: float = 50.0) -> SampledQuery:
    return SampledQuery(np.zeros(4, np.float32), 10, None, at_s, arrived_s=at_s, serial=serial)


def finding(recalls: list[float], *, at_s: float = 50.0) -> GroupFinding:
    queries = tuple(sampled(serial, at_s=at_s) for serial in range(len(recalls)))
    places = np.arange(len(queries))
    group = QueryGroup(b"", 10, None, queries, queries, places, places.astype(np.uint64))
    none = np.empty(0)
    return GroupFinding(group, BAND, 9, 9, np.array(recalls), none, 1, 1, ())


def judged(estimate: RecallEstimate) -> Judged:
    return Judged((ShardBandRecall(0, BAND, estimate, 1.0, 9),), frozenset({1}))


def test_estimates_agree_with_fresh_queries_as_often_as_their_intervals_say() -> None:
    rng = np.random.default_rng(5)
    agreed = shifted = 0
    for _ in range(300):
        hard = rng.random(192) < 0.1
        recalls = np.where(hard, rng.binomial(10, 0.4, 192), rng.binomial(10, 0.98, 192)) / 10
        estimate, audited = measured(recalls[:128]), measured(recalls[128:])
        agreed += agree(estimate, audited)
        worse = measured(np.clip(recalls[128:] - 0.15, 0.0, 1.0))
        shifted += agree(estimate, worse)
    assert agreed >= 0.95 * 300
    assert shifted <= 0.1 * 300


def test_queries_of_the_estimate_never_judge_it_and_bands_take_turns() -> None:
    filtered = SelectivityBand.FROM_10
    held = [
        (BAND, [sampled(serial) for serial in range(100)]),
        (filtered, [sampled(serial) for serial in range(200, 206)]),
    ]
    used = frozenset({*range(90), 200})
    serials = [one.serial for one in unused_queries(held, used, queries_max=8)]
    assert serials == [90, 201, 91, 202, 92, 203, 93, 204]
    assert len(unused_queries(held, used, queries_max=1_000)) == 10 + 5


def test_an_audit_says_yes_no_or_why_not() -> None:
    estimate = measured(np.array([1.0] * 120 + [0.5] * 8))
    good = finding([1.0] * 60 + [0.5] * 4)
    [audit] = audit_bands(judged(estimate), [good], reason="", shard=0)
    assert audit.verdict is AuditVerdict.CONTAINED
    assert audit.audited is not None
    assert audit.audited.queries == 64
    assert audit.later == 0
    [audit] = audit_bands(judged(estimate), [finding([0.2] * 64, at_s=130.0)], reason="", shard=0)
    assert audit.verdict is AuditVerdict.OUTSIDE
    assert audit.later == 64
    # Older than the window: not of the load that the estimate is about.
    [audit] = audit_bands(judged(estimate), [finding([0.2] * 64, at_s=39.0)], reason="", shard=0)
    assert audit.verdict is AuditVerdict.UNKNOWN
    assert audit.audited is None
    assert "32 are needed" in audit.reason
    [audit] = audit_bands(judged(estimate), [good], reason="ef has changed", shard=0)
    assert (audit.verdict, audit.reason) == (AuditVerdict.UNKNOWN, "ef has changed")
    quiet = ShardBandRecall(
        0, SelectivityBand.FROM_10, replace(estimate, measured_at_s=9.0), 1.0, 9
    )
    both = replace(judged(estimate), bands=(*judged(estimate).bands, quiet))
    audits = audit_bands(both, [good], reason="", shard=0)
    assert [one.verdict for one in audits] == [AuditVerdict.CONTAINED, AuditVerdict.UNKNOWN]
    assert "earlier" in audits[1].reason


def audit_of(verdict: AuditVerdict, *, at_s: float) -> BandAudit:
    estimate = replace(measured(np.ones(64)), measured_at_s=at_s)
    return BandAudit(0, BAND, estimate, estimate, 3, verdict, "because")


def test_each_estimate_is_counted_once_and_a_successor_goes_on() -> None:
    book = CoverageBook()
    for at_s, verdict in (
        (1.0, AuditVerdict.CONTAINED),
        (1.0, AuditVerdict.CONTAINED),  # the same estimate again
        (2.0, AuditVerdict.OUTSIDE),
        (3.0, AuditVerdict.UNKNOWN),
        (4.0, AuditVerdict.CONTAINED),
    ):
        book.count(SHARD, audit_of(verdict, at_s=at_s))
    assert book.of(SHARD) == (BandCoverage(0, BAND, 3, 2, 4.0),)
    assert covered(book.of_collection("c1")) == (3, 2)
    assert book.of(ShardId("c1", 1)) == book.of_collection("c2") == ()
    stored = decode_memory(
        encode_memory(RecallMemory("m", 1.0, coverage=book.of(SHARD))), key="k"
    ).coverage
    successor = CoverageBook()
    successor.restore(SHARD, stored)
    successor.restore(SHARD, [BandCoverage(0, BAND, 99, 99, 9.0)])
    successor.count(SHARD, audit_of(AuditVerdict.CONTAINED, at_s=5.0))
    assert successor.of(SHARD) == (BandCoverage(0, BAND, 4, 3, 5.0),)
    successor.forget_all_but([])
    assert successor.of(SHARD) == ()


def test_audits_and_coverage_travel_and_are_scraped() -> None:
    audits = tuple(audit_of(verdict, at_s=2.0) for verdict in AuditVerdict)
    assert decode_audits(encode_audits(audits)) == audits
    counted = replace(report("c1"), coverage=(BandCoverage(0, BAND, 4, 3, 5.0),))
    assert decode_recall_reports(encode_recall_reports([counted])) == (counted,)
    summary = summarise(COLLECTION, [counted])
    assert decode_recall_summary(encode_recall_summary(summary)) == summary
    values = {one.name: one.values for one in recall_families([summary], now_s=9.0)}
    assert values["annheal_recall_coverage"] == [(("things",), 0.75)]
    assert values["annheal_recall_audited_windows"] == [(("things",), 4)]
    never = {
        one.name: one.values for one in recall_families([summarise(COLLECTION, [])], now_s=9.0)
    }
    assert never["annheal_recall_coverage"] == []


def test_what_a_person_and_a_program_read() -> None:
    audits = tuple(audit_of(verdict, at_s=2.0) for verdict in AuditVerdict)
    shown = as_text(
        render_audit(AuditReport("things", audits, (BandCoverage(0, BAND, 4, 3, 5.0),)))
    )
    assert "coverage so far: 3 of 4 audited windows (75.0%); intervals promise 95 %" in shown
    for word in ("yes", "NO", "unknown", "because", "unfiltered"):
        assert word in shown
    document = audit_document(AuditReport("things", audits))
    assert (document["windows"], document["coverage_share"]) == (0, None)
    assert document["audits"][0]["verdict"] == "contained"
    assert "nothing to audit" in as_text(render_audit(AuditReport("things", ())))


@pytest.mark.parametrize("queries", [0, -1, 10_001])
def test_a_number_of_queries_out_of_range_is_named(queries: int) -> None:
    with pytest.raises(InvalidArgument, match="10,000"):
        checked_audit_queries(queries)
