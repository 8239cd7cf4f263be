"""Tags: what clients call their kinds of queries, and the recall of each kind."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from annheal.cli.operator_commands.recall_reports.tags import missed_tags
from annheal.client.search_calls import _options
from annheal.coordinator.metrics import recall_families
from annheal.coordinator.recall.summary import summarise
from annheal.errors import InvalidArgument
from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.measures.recall import CollectionRecall, SelectivityBand, TagRecall
from annheal.model.measures.recall_summary import RecallVerdict
from annheal.model.measures.recall_tags import (
    OTHER_TAGS,
    TAG_CHARACTERS_MAX,
    TAGS_MAX,
    checked_tag,
)
from annheal.model.search import SearchOptions, SearchRequest
from annheal.model.validation import validate_search_options
from annheal.recall.merging import tag_number
from annheal.shard_node.recall.measuring.answer_parts import Moment
from annheal.shard_node.recall.measuring.measure import GroupFinding, group_queries
from annheal.shard_node.recall.result import (
    ShardResult,
    before_change,
    tag_recalls,
    with_earlier,
    with_traffic,
)
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.sampled_query import (
    WINDOWS_MAX,
    Change,
    Sample,
    SampledQuery,
)
from annheal.shard_node.recall.sampling.stratum import JUDGING_QUERIES
from annheal.shard_node.recall.sampling.tags import TAG_QUERIES_MIN
from annheal.shard_node.search.searcher import MatchCount
from annheal.wire.internal import decode_shard_search, encode_shard_search
from annheal.wire.recall import (
    decode_recall_reports,
    decode_recall_summary,
    encode_recall_reports,
    encode_recall_summary,
)
from annheal.wire.search import decode_search, encode_search
from tests.support.compaction import collection
from tests.support.recall_reports import estimate, report

ASKED: dict[str, Any] = {
    "k": 10, "filter": None, "include": None, "exact": False, "ef": None,
    "recall_objective": None, "explain": False,
}  # fmt: skip
UNFILTERED = SelectivityBand.UNFILTERED
RED: Filter = Comparison("colour", ComparisonOp.EQ, "red")


@dataclass(slots=True)
class Node:
    """A sampler and a clock that the test moves; queries are numbers."""

    at_s: float = 1_000.0
    sent: int = 0
    sampler: RecallSampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = RecallSampler(
            draw=random.Random(1), clock=lambda: self.at_s, now_s=lambda: self.at_s
        )

    def ask(self, tag: str, count: int = 1, *, filter: Filter | None = None, ef: int = 0) -> None:
        options = SearchOptions(k=10, filter=filter, ef=ef or None, tag=tag)
        queries = np.arange(self.sent, self.sent + count, dtype=np.float32).reshape(count, 1)
        matches = [MatchCount(0, 1_000 if filter is None else 20, 1_000)]
        self.sampler.note("c", queries, options, matches)
        self.sent += count

    def load(self, seconds: float, *, per_s: float, rare_every: int = 0) -> None:
        """Send queries of the tag `busy`, and every so many one of `rare`."""
        for turn in range(round(seconds * per_s)):
            self.at_s += 1.0 / per_s
            self.ask("rare" if rare_every and turn % rare_every == 0 else "busy")

    def drawn(self, *, queries_max: int | None = None, turn: int = 0) -> Sample:
        return self.sampler.draw("c", queries_max=queries_max, turn=turn)


def test_a_rare_tag_is_sampled_although_a_busy_one_drowns_it() -> None:
    node = Node()
    node.load(120.0, per_s=200.0, rare_every=200)
    drawn = node.drawn()
    of_rare = {one.serial for one in drawn.tagged["rare"]}
    assert len(of_rare) >= 60, "one a second: all of the last minute"
    assert len(drawn.tagged["busy"]) == JUDGING_QUERIES
    # The sample of the band is one of its traffic, in which one of 200 is rare.
    assert len(drawn.queries) == JUDGING_QUERIES
    assert sum(one.serial in of_rare for one in drawn.queries) <= 5
    assert node.sampler.traffic_by_tag("c")["rare"][0] == 120


def test_a_tag_of_most_queries_costs_hardly_a_second_measurement() -> None:
    node = Node()
    node.load(120.0, per_s=200.0, rare_every=200)
    drawn = node.drawn()
    in_band = {one.serial for one in drawn.queries}
    more = [one for one in drawn.tagged["busy"] if one.serial not in in_band]
    assert len(more) < 0.1 * JUDGING_QUERIES


def test_tags_beyond_the_limit_are_counted_together_and_unused_ones_give_their_place() -> None:
    node = Node()
    for number in range(TAGS_MAX + 4):
        node.ask(f"kind-{number}")
    traffic = node.sampler.traffic_by_tag("c")
    assert set(traffic) == {*(f"kind-{number}" for number in range(TAGS_MAX)), OTHER_TAGS}
    assert traffic[OTHER_TAGS] == (4, 4)
    node.at_s += WINDOWS_MAX * node.sampler.windows.window_s + 1.0
    node.ask("kind-3", 5)
    node.ask("new", 2)
    assert node.sampler.traffic_by_tag("c") == {"kind-3": (6, 5), "new": (2, 2)}


def test_queries_with_settings_of_their_own_and_without_a_tag_are_of_no_tag() -> None:
    node = Node()
    node.ask("mine", 20, ef=99)
    node.ask("", 20)
    assert not node.sampler.has_tags("c")
    assert node.drawn().tagged == {}


def test_where_few_queries_can_be_measured_tags_take_turns() -> None:
    node = Node()
    for _ in range(40):
        node.at_s += 1.0
        for number in range(8):
            node.ask(f"kind-{number}")
    drawn = [node.drawn(queries_max=4 * TAG_QUERIES_MIN, turn=turn).tagged for turn in range(2)]
    assert [len(tagged) for tagged in drawn] == [4, 4]
    assert {*drawn[0], *drawn[1]} == {f"kind-{number}" for number in range(8)}
    assert {len(queries) for tagged in drawn for queries in tagged.values()} == {TAG_QUERIES_MIN}


def test_after_a_change_of_a_band_only_queries_since_then_judge_a_tag() -> None:
    node = Node()
    node.load(60.0, per_s=5.0)
    since_s = node.at_s
    node.load(4.0, per_s=5.0)
    samples = node.sampler._collections["c"]
    samples.tags.judge_since(since_s)
    assert len(node.drawn().tagged["busy"]) == pytest.approx(20, abs=1)


def sampled(serial: int, *, filter: Filter | None = None) -> SampledQuery:
    vector = np.array([serial], dtype=np.float32)
    return SampledQuery(vector, 10, filter, 900.0 + serial, serial=serial)


def test_each_group_is_of_one_band_or_tag_and_both_count_a_query_once() -> None:
    both, plain, rare = sampled(1), sampled(2), sampled(3, filter=RED)
    groups = group_queries([both, plain], dimension=1, tagged={"t": [both, rare]})
    kinds = {(one.in_band, one.tag): one.samples for one in groups}
    assert kinds == {(True, "t"): (both,), (True, ""): (plain,), (False, "t"): (rare,)}
    none = np.empty(0)
    found = [
        GroupFinding(group, UNFILTERED, 9, 9, np.full(1, 0.5), none, 1, 1, ()) for group in groups
    ]
    moment = Moment(1_000.0, 600.0)
    (of_tag,) = tag_recalls(0, found, moment=moment)
    assert (of_tag.tag, of_tag.estimate.queries, of_tag.estimate.distinct) == ("t", 2, 2)
    assert (of_tag.estimate.window_begin_s, of_tag.estimate.window_end_s) == (901.0, 903.0)
    # An estimate stays until there is another one; after a change it is of the past.
    later = ShardResult(k=10)
    kept = with_earlier(later, ShardResult(k=10, tags=(of_tag,)), segment_ids=())
    assert kept.tags == (of_tag,)
    ended = before_change(kept, Change(UNFILTERED, False, 0.0, 0.0, 950.0))
    assert ended.tags[0].estimate.valid_until_s == 950.0
    counted = with_traffic(kept.tags, {"t": (9, 4), "new": (2, 2)}, shards=[0], k=10)
    assert [(one.tag, one.seen, one.recent) for one in counted] == [("new", 2, 2), ("t", 9, 4)]
    assert not with_traffic(kept.tags, {}, shards=[0], k=10), "the tag has no place any more"


MISSED = TagRecall(0, "hard", estimate(0.7, 0.6, 0.8), None, 500, 50)
FINE = TagRecall(0, "easy", estimate(0.99, 0.97, 1.0), None, 9_000, 900)


def tagged_report(*tags: TagRecall) -> CollectionRecall:
    whole = report("c1")
    bands = tuple(one for one in whole.shards if one.band is UNFILTERED)
    return replace(whole, shards=bands, tags=tags, queries=())


def test_a_tag_below_the_objective_is_missed_although_its_band_is_met() -> None:
    given = tagged_report(MISSED, FINE)
    (decoded,) = decode_recall_reports(encode_recall_reports([given]))
    assert decoded.tags == given.tags
    summary = summarise(collection(), [decoded])
    assert decode_recall_summary(encode_recall_summary(summary)) == summary
    assert summary.overall.verdict is RecallVerdict.MET
    easy, hard = summary.tags
    assert (easy.name, easy.verdict) == ("easy", RecallVerdict.MET)
    assert (hard.name, hard.verdict, hard.seen, hard.recent) == (
        "hard",
        RecallVerdict.MISSED,
        500,
        50,
    )
    (sentence,) = missed_tags(summary)
    assert sentence.startswith("tag hard: certainly below the objective, with a recall of 0.7000")
    families = {one.name: one for one in recall_families([summary], now_s=0.0)}
    ratios = dict(families["annheal_recall_tag_ratio"].values)
    assert ratios[(summary.collection, "hard", "high")] == 0.8
    assert len(ratios) == 6


def test_a_collection_shows_the_most_frequent_tags_of_all_nodes() -> None:
    parts = [TagRecall(0, f"t{n}", estimate(0.99, 0.97, 1.0), None, n, n) for n in range(30)]
    parts.append(TagRecall(0, OTHER_TAGS, estimate(0.99, 0.97, 1.0), None, 999, 999))
    slices = summarise(collection(), [tagged_report(*parts)]).tags
    assert [one.name for one in slices] == [*(f"t{n}" for n in range(29, 13, -1)), OTHER_TAGS]


@pytest.mark.parametrize(
    "tag", ["9lives", "a b", "(other)", "-x", "x" * (TAG_CHARACTERS_MAX + 1), "ä"]
)
def test_what_is_no_name_is_no_tag(tag: str) -> None:
    with pytest.raises(InvalidArgument, match="tag"):
        checked_tag(tag)


def test_a_tag_of_a_client_is_checked_and_reaches_the_coordinator() -> None:
    given = _options(tag="autocomplete", **ASKED)
    request = encode_search("c", k=given.k, queries=np.zeros((1, 8), np.float32), tag=given.tag)
    options = decode_search(request, collection=collection()).options
    assert options.tag == "autocomplete"
    validate_search_options(options, model=collection().model)
    with pytest.raises(InvalidArgument, match="'9' is no tag"):
        _options(tag="9", **ASKED)
    with pytest.raises(InvalidArgument, match="is no tag"):
        validate_search_options(replace(options, tag="a b"), model=collection().model)


def test_tags_travel_to_the_nodes() -> None:
    assert checked_tag("") == ""
    assert checked_tag("autocomplete-v2_x") == "autocomplete-v2_x"
    assert tag_number("") == 0 != tag_number("a")
    options = SearchOptions(k=3, tag="autocomplete")
    request = SearchRequest("c1", (0,), np.zeros((1, 4), np.float32), options)
    assert decode_shard_search(encode_shard_search(request), timeout_s=1.0).options == options
