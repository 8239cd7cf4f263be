"""What an estimate says of now: verdicts, weights of bands, and what stays of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from annheal.coordinator.metrics import recall_families
from annheal.coordinator.recall.summary import summarise, traffic_by_band
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.measures.recall import (
    CollectionRecall,
    FilterRecall,
    OwnSettingRecall,
    RecallEstimate,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
)
from annheal.model.measures.recall_summary import QUERIES_KNOWN_MIN, RecallVerdict, verdict_of
from annheal.shard_node.recall.ef_control import EfState, next_state
from annheal.shard_node.recall.result import ShardResult, with_earlier
from annheal.wire.recall import (
    decode_recall_reports,
    decode_recall_summary,
    encode_recall_reports,
    encode_recall_summary,
)
from tests.support.recall_reports import BROAD, SELECTIVE, estimate

COLLECTION = Collection("c1", "things", (ModelSpec("m", 2, Metric.COSINE),), (), 1)
UNFILTERED, NARROW = SelectivityBand.UNFILTERED, SelectivityBand.FROM_0_1
NOW_S = 1_700_000_000.0
GOOD, BAD = (0.98, 0.97, 0.99), (0.6, 0.5, 0.7)


def asked(
    measured: tuple[float, float, float], *, age_s: float = 0.0, queries: int = 100
) -> RecallEstimate:
    """Return an estimate of queries until `age_s` ago, which is valid for ten minutes."""
    return replace(
        estimate(*measured, queries=queries),
        window_begin_s=NOW_S - age_s - 60.0,
        window_end_s=NOW_S - age_s,
        valid_until_s=NOW_S - age_s + 600.0,
        distinct=queries,
    )


def band(
    name: SelectivityBand, measured: RecallEstimate, *, seen: int, recent: int = 0
) -> ShardBandRecall:
    return ShardBandRecall(0, name, measured, 1.0, seen, recent)


def overall(*bands: ShardBandRecall) -> tuple[RecallVerdict, float]:
    report = CollectionRecall("c1", 0.95, 0.01, bands, ())
    found = summarise(COLLECTION, [report], now_s=NOW_S).overall
    assert found.estimate is not None
    return found.verdict, found.estimate.recall


def test_too_old_is_unknown_and_too_few_are_never_met() -> None:
    old, few = asked(GOOD, age_s=601.0), asked(GOOD, queries=QUERIES_KNOWN_MIN - 1)
    assert verdict_of(old, 0.95, now_s=NOW_S) is RecallVerdict.UNKNOWN
    assert verdict_of(asked(GOOD, age_s=599.0), 0.95, now_s=NOW_S) is RecallVerdict.MET
    assert verdict_of(few, 0.95, now_s=NOW_S) is RecallVerdict.UNKNOWN
    assert verdict_of(replace(few, recall=0.5, low=0.4, high=0.6), 0.95) is RecallVerdict.MISSED
    # A hundred answers to the same three queries show little.
    assert verdict_of(replace(asked(GOOD), distinct=3), 0.95) is RecallVerdict.UNKNOWN


def test_the_queries_of_the_window_weigh_not_those_of_long_ago() -> None:
    """20,000 filtered queries, then 1,000 without a filter that find little."""
    filtered = band(NARROW, asked(GOOD, age_s=300.0), seen=20_000)
    plain = band(UNFILTERED, asked(BAD), seen=1_000, recent=1_000)
    assert overall(filtered, plain) == (RecallVerdict.MISSED, pytest.approx(0.6))
    assert traffic_by_band([filtered, plain]) == {NARROW: 0.0, UNFILTERED: 1_000.0}
    # An older node counts no window.
    before = [replace(one, recent=0) for one in (filtered, plain)]
    assert traffic_by_band(before) == {NARROW: 20_000.0, UNFILTERED: 1_000.0}


def test_shards_of_a_band_weigh_by_their_queries_of_the_window() -> None:
    """One filter is of this band in shard 0 for 900 queries, in shard 1 for 100."""
    parts = [
        ShardBandRecall(0, NARROW, asked(GOOD, queries=20), 1.0, 10, 900, asked(GOOD)),
        ShardBandRecall(1, NARROW, asked(BAD, queries=100), 0.0, 9_000, 100, asked(BAD)),
    ]
    report = CollectionRecall("c1", 0.95, 0.01, tuple(parts), (), changed_at_s=NOW_S - 5.0)
    assert decode_recall_reports(encode_recall_reports([report])) == (report,)
    summary = summarise(COLLECTION, [report], now_s=NOW_S)
    assert summary.changed_at_s == NOW_S - 5.0
    (found,) = summary.bands
    for one in (found, summary.overall):
        assert one.estimate is not None
        assert one.served is not None
        assert one.estimate.recall == pytest.approx(0.9 * 0.98 + 0.1 * 0.6)
        assert one.served.recall == pytest.approx(one.estimate.recall)
        assert one.stability == pytest.approx(0.9)
        assert (one.recent, one.seen) == (900, 9_000)
    assert traffic_by_band(parts) == {NARROW: 1_000.0}
    assert decode_recall_summary(encode_recall_summary(summary)) == summary


@pytest.mark.parametrize(
    ("recent", "verdict"), [(10, RecallVerdict.MET), (1_000, RecallVerdict.UNKNOWN)]
)
def test_a_collection_is_not_met_where_most_queries_are_not_judged(
    recent: int, verdict: RecallVerdict
) -> None:
    plain = band(UNFILTERED, asked(GOOD), seen=1_000, recent=100)
    unmeasured = band(NARROW, estimate(0.0, 0.0, 1.0, queries=0), seen=recent, recent=recent)
    assert overall(plain, unmeasured)[0] is verdict


def test_without_traffic_everything_becomes_unknown() -> None:
    verdict, recall = overall(band(UNFILTERED, asked(GOOD, age_s=700.0), seen=1_000))
    assert (verdict, recall) == (RecallVerdict.UNKNOWN, 0.98)


def test_recall_that_is_too_old_is_not_scraped() -> None:
    def scraped(age_s: float) -> set[str]:
        part = replace(
            band(UNFILTERED, asked(GOOD, age_s=age_s), seen=9), served=asked(BAD, age_s=age_s)
        )
        report = CollectionRecall("c1", 0.95, 0.01, (part,), ())
        families = recall_families([summarise(COLLECTION, [report])], now_s=NOW_S)
        return {one.name for one in families if list(one.values)}

    names = {"annheal_recall_ratio", "annheal_recall_served_ratio"}
    assert names <= scraped(1.0)
    assert not names & scraped(700.0)
    assert "annheal_recall_window_end_seconds" in scraped(700.0)


def test_own_settings_are_judged_by_themselves_and_travel() -> None:
    report = CollectionRecall(
        "c1",
        0.95,
        0.01,
        (replace(band(UNFILTERED, asked(GOOD), seen=5, recent=5), served=asked(BAD)),),
        (),
        own=(
            OwnSettingRecall(0, 0.99, asked(GOOD), asked(BAD)),
            OwnSettingRecall(0, 0.9, asked(GOOD)),
            OwnSettingRecall(0, None, asked(BAD)),
        ),
    )
    assert decode_recall_reports(encode_recall_reports([report])) == (report,)
    summary = summarise(COLLECTION, [report], now_s=NOW_S)
    assert [(one.name, one.verdict) for one in summary.own] == [
        ("0.9", RecallVerdict.MET),
        ("0.99", RecallVerdict.UNCLEAR),
        ("ef", RecallVerdict.NOT_JUDGED),
    ]
    assert summary.own[1].served is not None
    assert summary.own[1].served.recall == 0.6
    assert summary.overall.verdict is RecallVerdict.RECOVERING, "what was served is below"
    assert summary.overall.served is not None
    assert decode_recall_summary(encode_recall_summary(summary)) == summary


def verdicts(
    *bands: ShardBandRecall, raised: Sequence[SelectivityBand] = (), ago_s: float = 10.0
) -> dict[str, RecallVerdict]:
    """Return the verdicts by band, and on all (""), `ago_s` after ef was raised in some bands."""
    report = CollectionRecall(
        "c1",
        0.95,
        0.01,
        bands,
        tuple(replace(segment("s", one, 0.98), raised_at_s=NOW_S - ago_s) for one in raised),
        own=(OwnSettingRecall(0, 0.9, asked(GOOD)),),
    )
    assert decode_recall_reports(encode_recall_reports([report])) == (report,)
    found = summarise(COLLECTION, [report], now_s=NOW_S)
    return {one.name: one.verdict for one in (found.overall, *found.bands, *found.own)}


def test_met_is_said_of_answers_now_and_of_those_of_the_last_minute() -> None:
    now = band(UNFILTERED, asked(GOOD), seen=5, recent=5)
    met = {"": RecallVerdict.MET, "unfiltered": RecallVerdict.MET, "0.9": RecallVerdict.MET}
    assert verdicts(now) == verdicts(replace(now, served=asked(GOOD))) == met
    below = replace(now, served=asked(BAD))
    assert verdicts(below)[""] is verdicts(below)["unfiltered"] is RecallVerdict.RECOVERING
    few = replace(now, served=asked(BAD, queries=QUERIES_KNOWN_MIN - 1))
    assert verdicts(few) == met, "so few show nothing"
    missed = replace(now, estimate=asked(BAD), served=asked(GOOD))
    assert verdicts(missed)[""] is RecallVerdict.MISSED


def test_nothing_is_met_for_a_minute_after_answers_became_better() -> None:
    now = band(UNFILTERED, asked(GOOD), seen=5, recent=95)
    assert set(verdicts(now, raised=[UNFILTERED]).values()) == {RecallVerdict.RECOVERING}
    assert set(verdicts(now, raised=[UNFILTERED], ago_s=61.0).values()) == {RecallVerdict.MET}
    rare = band(NARROW, asked(GOOD), seen=5, recent=5)
    assert verdicts(now, rare, raised=[NARROW]) == {
        "": RecallVerdict.MET,
        "unfiltered": RecallVerdict.MET,
        NARROW.value: RecallVerdict.RECOVERING,
        "0.9": RecallVerdict.MET,
    }


def segment(name: str, of: SelectivityBand, recall: float, *, stuck: bool = False) -> SegmentRecall:
    return SegmentRecall(
        0, name, "warm", "m", of, estimate(recall, 0.1, 1.0), 64, 512, stuck, stuck
    )


def test_what_is_known_of_a_quiet_band_stays_until_it_is_measured_again() -> None:
    before = ShardResult(
        bands=(band(UNFILTERED, asked(GOOD), seen=1), band(NARROW, asked(BAD), seen=1)),
        segments=(
            segment("a", UNFILTERED, 0.5),
            segment("a", NARROW, 0.6, stuck=True),
            segment("gone", NARROW, 0.7),
        ),
        filters=(
            FilterRecall(0, SELECTIVE, 5, 1_000, 0.8, 40, {}),
            FilterRecall(0, BROAD, 900, 1_000, 0.9, 40, {}),
        ),
        walks={"a": 7.0, "gone": 9.0},
        objective=0.95,
        k=10,
        own=(OwnSettingRecall(0, 0.99, asked(GOOD)),),
    )
    present = ShardResult(
        bands=(band(UNFILTERED, asked(BAD), seen=2),),
        segments=(segment("a", UNFILTERED, 0.9),),
        objective=0.95,
        k=10,
    )
    found = with_earlier(present, before, segment_ids={"a"})
    assert [(one.band, one.estimate.recall) for one in found.bands] == [
        (UNFILTERED, 0.6),
        (NARROW, 0.6),
    ]
    assert [(one.segment_id, one.band, one.estimate.recall) for one in found.segments] == [
        ("a", UNFILTERED, 0.9),
        ("a", NARROW, 0.6),
    ]
    assert found.segments[1].stuck
    assert {one.filter for one in found.filters} == {SELECTIVE, BROAD}
    assert found.walks == {"a": 7.0}
    assert found.own == before.own
    changed = with_earlier(replace(present, objective=0.9), before, segment_ids={"a"})
    assert not changed.segments[1].stuck
    assert with_earlier(replace(present, k=5), before, segment_ids={"a"}).bands == present.bands


def test_a_band_is_fresh_by_its_own_queries() -> None:
    """A busy band brings serials; a quiet band that is measured again has no new evidence."""
    probably_below = estimate(0.94, 0.92, 0.955)
    busy = quiet = EfState()
    same = range(1, 101)
    for run in range(20):
        for name in ("busy", "quiet"):
            serials = [one + 1_000 * run for one in same] if name == "busy" else same
            state = next_state(
                busy if name == "busy" else quiet,
                estimate=probably_below,
                serials=serials,
                curve_ef=32,
                objective=0.95,
            )
            busy, quiet = (state, quiet) if name == "busy" else (busy, state)
    assert busy.scale > 1.0
    assert quiet.scale == 1.0
