"""The list of the worst live queries: which are looked at, what is said of each."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from annheal.cli.operator_commands.recall_reports.worst import render_worst, worst_document
from annheal.coordinator.recall.worst import (
    BATCH_QUERIES,
    batches_of,
    distinct_queries,
    newest_of_each_band,
    review,
    worst_of,
)
from annheal.errors import InvalidArgument
from annheal.model.collection import Metric
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.measures.recall import SelectivityBand
from annheal.model.measures.recall_worst import (
    LiveQuery,
    ShownHit,
    WorstQuery,
    WorstReport,
    checked_worst,
)
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.search.searcher import MatchCount
from annheal.wire.recall import (
    decode_live_queries,
    decode_worst,
    encode_live_queries,
    encode_worst,
)

BAND, FILTERED = SelectivityBand.UNFILTERED, SelectivityBand.FROM_10
YEAR = Comparison("year", ComparisonOp.GE, 2024)


def live(number: int, *, band: SelectivityBand = BAND, at_s: float = 1.0) -> LiveQuery:
    filter = YEAR if band is FILTERED else None
    return LiveQuery(np.full(4, number, np.float32), 4, band, at_s, filter)


def answer(*hits: dict[str, float]) -> SearchAnswer:
    ids = [name for one in hits for name in one]
    scores = np.array([score for one in hits for score in one.values()], np.float32)
    return SearchAnswer(np.array([len(one) for one in hits], np.int32), scores, RecordSet(ids=ids))


TRUTH = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.7}


@pytest.mark.parametrize(
    ("found", "recall", "missed"),
    [
        (TRUTH, 1.0, []),
        ({"a": 0.9, "b": 0.8, "x": 0.7, "y": 0.7}, 1.0, []),  # as near as the last ones
        ({"b": 0.8, "c": 0.7, "d": 0.7, "z": 0.1}, 0.75, ["a"]),
        ({"z": 0.3, "y": 0.2}, 0.0, ["a", "b", "c", "d"]),
        ({}, 0.0, ["a", "b", "c", "d"]),
    ],
)
def test_what_is_returned_and_what_is_missed(
    found: dict[str, float], recall: float, missed: list[str]
) -> None:
    # The query is the second of its batch.
    both = answer({"q": 1.0}, found), answer({"q": 1.0}, TRUTH)
    one = review(live(1), *both, 1, metric=Metric.COSINE)
    assert one is not None
    assert one.recall == pytest.approx(recall)
    assert [hit.id for hit in one.returned] == list(found)
    assert [hit.id for hit in one.missed] == missed
    assert one.missed_count == len(missed)
    assert one.found_nothing == (recall == 0.0)


def test_distances_are_shown_for_l2_and_a_filter_that_matches_nothing_is_left_out() -> None:
    one = review(live(1), answer({"a": -4.0}), answer({"b": -1.0}), 0, metric=Metric.L2)
    assert one is not None
    assert one.returned == (ShownHit("a", 4.0),)
    assert one.missed == (ShownHit("b", 1.0),)
    assert review(live(1), answer({}), answer({}), 0, metric=Metric.L2) is None


def test_queries_are_looked_at_once_and_bands_take_turns() -> None:
    asked = [live(n, at_s=n) for n in range(40)]
    again = [replace(asked[7], asked_at_s=99.0)]
    rare = [live(n, band=FILTERED, at_s=0.0) for n in range(3)]
    found = distinct_queries([*asked, *again, *rare])
    assert len(found) == 43
    assert found[0].asked_at_s == 99.0
    chosen = newest_of_each_band(found, queries_max=10)
    assert [one.band for one in chosen].count(FILTERED) == 3
    batches = batches_of([*asked, *rare, replace(asked[0], ef=7), replace(asked[0], k=9)])
    assert sorted(len(one) for one in batches) == [1, 1, 3, 8, BATCH_QUERIES, BATCH_QUERIES]
    assert all(len({(q.k, q.filter, q.ef) for q in batch}) == 1 for batch in batches)


def worst(recall: float, *, band: SelectivityBand = BAND) -> WorstQuery:
    hit = ShownHit("a\x1b", 0.5)
    return WorstQuery(live(1, band=band, at_s=5.0), recall, (hit,), (hit,), 1)


def test_the_lowest_of_each_band_come_first_and_perfect_ones_are_left_out() -> None:
    reviewed = [worst(r) for r in (1.0, 0.5, 0.0, 0.9)] + [worst(0.7, band=FILTERED)]
    listed = worst_of(reviewed, queries_max=2)
    assert [(one.query.band, one.recall) for one in listed] == [
        (BAND, 0.0),
        (BAND, 0.5),
        (FILTERED, 0.7),
    ]


def test_lists_travel_and_are_shown() -> None:
    report = WorstReport("things", 9, 8, (worst(0.0), worst(0.5, band=FILTERED)), {"n2": "away"})
    came = decode_worst(encode_worst(report), collection="things")
    assert worst_document(came) == worst_document(report)
    sent = [replace(live(1), ef=5), replace(live(2, band=FILTERED), objective=0.5)]
    for one, other in zip(sent, decode_live_queries(encode_live_queries(sent)), strict=True):
        assert one.vector.tolist() == other.vector.tolist()
        none = np.empty(0, np.float32)
        assert replace(one, vector=none).__repr__() == replace(other, vector=none).__repr__()
    written = StringIO()
    Console(file=written, width=200).print(render_worst(report))
    shown = written.getvalue()
    for words in ("8 of 9 sampled", "nothing right", "year >= 2024", "#2 missed: a\\u001b (0.5)"):
        assert words in shown
    first, second = worst_document(report)["queries"]
    assert first["found_nothing"]
    assert first["vector"] == [1.0] * 4
    assert second["filter"] == "year >= 2024"
    empty = StringIO()
    Console(file=empty, width=200).print(render_worst(WorstReport("things", 3, 3, (), {})))
    assert "finds everything" in empty.getvalue()


def test_the_sampler_lists_its_queries_with_their_bands() -> None:
    sampler = RecallSampler(clock=lambda: 5.0, now_s=lambda: 100.0)
    assert sampler.live_queries("c") == ()
    queries = np.eye(4, dtype=np.float32)
    sampler.note("c", queries, SearchOptions(k=3, ef=9), [MatchCount(0, 10, 10, 0)])
    found = sampler.live_queries("c")
    assert {(one.k, one.ef, one.band, one.asked_at_s) for one in found} == {(3, 9, BAND, 100.0)}
    assert len(found) == 4


@pytest.mark.parametrize("queries", [0, 101])
def test_a_number_out_of_range_is_named(queries: int) -> None:
    with pytest.raises(InvalidArgument, match="1 and 100"):
        checked_worst(queries)
