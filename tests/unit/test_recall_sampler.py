"""The sample of live queries: what judges recall is about now, under every load."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.measures.recall import SelectivityBand
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.sampled_query import (
    FRESH_QUERIES,
    WINDOW_MIN_S,
    WINDOWS_MAX,
    SampledQuery,
    Windows,
)
from annheal.shard_node.recall.sampling.stratum import (
    CALIBRATING_QUERIES,
    JUDGING_QUERIES,
    LONG_QUERIES_MIN,
    SAMPLE_BYTES_MAX,
)
from annheal.shard_node.recall.served import HITS_BYTES_MAX
from annheal.shard_node.search.searcher import MatchCount

ALL = [MatchCount(0, 1_000, 1_000)]
PLAIN = SearchOptions(k=10)
RED = Comparison("colour", ComparisonOp.EQ, "red")
HORIZON_S = Windows.of(60.0).horizon_s
UNFILTERED, NARROW = SelectivityBand.UNFILTERED, SelectivityBand.FROM_1


def numbered(first: int, count: int) -> npt.NDArray[np.float32]:
    """Return queries that say which number they have."""
    return np.arange(first, first + count, dtype=np.float32).reshape(count, 1)


@dataclass(slots=True)
class Node:
    """A sampler with default settings and a clock that the test moves."""

    seed: int = 1
    share: float = 1.0
    at_s: float = 1_000.0
    sent: int = 0
    sampler: RecallSampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = RecallSampler(
            self.share,
            draw=random.Random(self.seed),
            clock=lambda: self.at_s,
            now_s=lambda: 1e9 + self.at_s,
        )

    def ask(self, count: int, *, filter: Filter | None = None, batch: int = 1) -> None:
        """Send queries at one moment."""
        options = SearchOptions(k=10, filter=filter)
        matches = [MatchCount(0, 1_000 if filter is None else 20, 1_000)]
        for start in range(0, count, batch):
            queries = numbered(self.sent, min(batch, count - start))
            self.sampler.note("c", queries, options, matches)
            self.sent += len(queries)

    def load(
        self, seconds: float, *, per_s: float, filter: Filter | None = None, batch: int = 1
    ) -> None:
        """Send queries at a steady rate."""
        for _ in range(round(seconds * per_s / batch)):
            self.at_s += batch / per_s
            self.ask(batch, filter=filter, batch=batch)

    def judging(self, *, filter: Filter | None = None) -> list[SampledQuery]:
        return [one for one in self.sampler.sample("c") if one.filter == filter]

    def since(self, first: int) -> int:
        """Return how many of the queries that judge were sent after the first `first` ones."""
        return sum(one.vector[0] >= first for one in self.judging())


@pytest.mark.parametrize("per_s", [2.0, 5.0, 50.0, 1_000.0])
def test_an_interval_brings_64_to_128_fresh_queries_under_every_load(per_s: float) -> None:
    node = Node()
    node.load(180.0, per_s=per_s, batch=1 if per_s < 100 else 10)
    before = node.sent
    node.load(60.0, per_s=per_s, batch=1 if per_s < 100 else 10)
    fresh = node.since(before)
    assert FRESH_QUERIES <= fresh <= JUDGING_QUERIES
    # The share follows from the load; at most 60 seconds' worth is needed of each second.
    share = node.sampler.sampled_share("c")
    assert share == pytest.approx(min(1.0, JUDGING_QUERIES / (HORIZON_S * per_s)), rel=0.35)


def test_at_a_steady_load_ages_are_exponential_and_end_with_the_window() -> None:
    ages = np.array([])
    for seed in range(10):
        node = Node(seed=seed)
        node.load(200.0, per_s=50.0)
        ages = np.append(ages, [node.at_s - one.arrived_s for one in node.judging()])
    assert ages.max() <= WINDOW_MIN_S
    # Cut at two horizons, the mean of an exponential distribution is 0.687 horizons.
    deviation = 0.52 * HORIZON_S / math.sqrt(len(ages))
    assert abs(ages.mean() - 0.687 * HORIZON_S) < 4.5 * deviation


def test_after_a_step_change_64_queries_of_the_new_load_judge_within_30_seconds() -> None:
    counts = []
    for seed in range(8):
        node = Node(seed=seed)
        node.load(300.0 + 4.0 * seed, per_s=50.0)  # 15,000 queries of the old load, or more
        before = node.sent
        node.load(30.0, per_s=50.0)
        counts.append(node.since(before))
    assert min(counts) >= 64
    # Of all weights, the new ones have 63 %; the more, the fewer old ones are held.
    assert JUDGING_QUERIES * (1.0 - math.exp(-1.0)) < np.mean(counts) < JUDGING_QUERIES


def test_after_a_minute_the_old_load_does_not_judge_any_more() -> None:
    node = Node()
    node.load(300.0, per_s=50.0)
    before = node.sent
    node.load(61.0, per_s=50.0)
    assert node.since(before) == len(node.judging())


def test_newer_queries_are_counted_by_band_and_without_settings_of_their_own() -> None:
    node = Node()
    node.ask(3)
    before = node.sampler.version("c")
    node.ask(5)
    node.ask(2, filter=RED)
    node.sampler.note("c", numbered(0, 7), SearchOptions(k=10, ef=99), ALL)
    count = node.sampler.newer
    assert (count("c", before, UNFILTERED), count("c", before, NARROW)) == (5, 2)
    assert count("c", node.sampler.version("c"), UNFILTERED) == 0
    assert count("other", 0, UNFILTERED) == 0


def test_a_burst_is_forgotten_like_other_queries() -> None:
    """A burst of 10,000 in a second, then the usual load: it weighs by its queries, for a time."""
    node = Node()
    node.load(120.0, per_s=10.0)
    first = node.sent
    node.load(1.0, per_s=10_000.0, batch=100)
    last = node.sent
    within = [one for one in node.judging() if first <= one.vector[0] < last]
    assert len(within) > 0.9 * len(node.judging())  # 10,000 of about 10,300 by weight
    node.load(61.0, per_s=10.0)
    assert node.since(last) == len(node.judging()) >= 64


def test_a_busy_band_takes_nothing_from_a_quiet_one() -> None:
    node = Node()
    node.load(100.0, per_s=200.0, filter=RED, batch=10)  # 20,000
    node.load(2.0, per_s=10.0)
    assert len(node.judging()) == 20
    assert len(node.judging(filter=RED)) > 100
    assert {band for band, _ in node.sampler.by_band("c")} == {UNFILTERED, NARROW}
    node.at_s += WINDOW_MIN_S
    node.load(30.0, per_s=10.0)
    traffic = node.sampler.recent_by_band("c")
    assert traffic == {(0, UNFILTERED): 300}
    assert node.sampler.seen_by_band("c") == {(0, UNFILTERED): 320, (0, NARROW): 20_000}


def test_two_queries_a_second_are_all_kept_and_the_newest_judge() -> None:
    node = Node()
    node.load(600.0, per_s=2.0)
    judging = node.judging()
    # Of the 120 queries of the last minute, a few are displaced by chance.
    assert 64 <= len(judging) <= 121
    assert max(node.at_s - one.arrived_s for one in judging) <= WINDOW_MIN_S


def test_of_a_rare_load_the_newest_judge_until_they_are_too_old() -> None:
    node = Node()
    node.load(1_200.0, per_s=0.2)
    judging = node.judging()
    assert len(judging) == FRESH_QUERIES
    assert max(node.at_s - one.arrived_s for one in judging) <= WINDOWS_MAX * WINDOW_MIN_S
    assert node.sampler.strata("c") == 1
    node.at_s += WINDOWS_MAX * WINDOW_MIN_S + 1.0
    assert node.judging() == []
    assert node.sampler.strata("c") == 0
    assert node.sampler.by_band("c")[0][1], "they still calibrate"


def test_old_queries_calibrate_for_an_hour_and_a_day() -> None:
    node = Node()
    node.load(48 * 3_600.0, per_s=0.5)
    ((_, held),) = node.sampler.by_band("c")
    assert len(held) <= JUDGING_QUERIES + 2 * CALIBRATING_QUERIES
    hours = np.array([node.at_s - one.arrived_s for one in held]) / 3_600.0
    assert np.count_nonzero(hours > 6) > 25
    assert np.count_nonzero((hours > 0.2) & (hours < 4)) > 25
    assert len({one.serial for one in held}) == len(held)


def test_the_same_seed_and_times_give_the_same_sample() -> None:
    found = []
    for _ in range(2):
        node = Node(seed=5)
        node.load(100.0, per_s=20.0)
        found.append([(one.serial, float(one.vector[0])) for one in node.judging()])
    assert found[0] == found[1]


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_a_smaller_share_is_a_limit(batch: int) -> None:
    offered = 0
    for seed in range(20):
        node = Node(share=0.01, seed=seed)
        node.ask(9_000, batch=batch)
        offered += len(node.judging())
    # Too few for the reservoir, so all that were offered are held. 4.5 deviations.
    assert abs(offered - 20 * 90) < 4.5 * math.sqrt(20 * 90)
    assert Node(share=0.0).judging() == []


def test_a_smaller_sample_has_the_same_ages() -> None:
    ages = np.array([])
    for seed in range(20):
        node = Node(seed=seed)
        node.load(150.0, per_s=50.0)
        few = node.sampler.sample("c", queries_max=32)
        assert len(few) == 32
        ages = np.append(ages, [node.at_s - one.arrived_s for one in few])
    deviation = 0.52 * HORIZON_S / math.sqrt(len(ages))
    assert abs(ages.mean() - 0.687 * HORIZON_S) < 4.5 * deviation


def test_what_was_asked_and_returned_is_kept_within_its_bytes() -> None:
    kept = RecallSampler(now_s=lambda: 5.0)
    answer = SearchAnswer(
        np.array([1, 3], dtype=np.int32),
        np.array([9.0, 8.0, 7.0, 6.0], dtype=np.float32),
        RecordSet(["other", "a", "b" * HITS_BYTES_MAX, "c"]),
        sequences={0: 17},
    )
    options = SearchOptions(k=3, filter=RED, ef=40, recall_objective=0.99)
    kept.note("c", numbered(0, 2), options, ALL, answer)
    other, one = sorted(kept.sample("c"), key=lambda query: query.serial)
    assert (one.k, one.filter, one.ef, one.objective) == (3, RED, 40, 0.99)
    assert one.sampled_at_s == 5.0
    assert one.served is not None
    assert (one.served.ids, one.served.is_whole) == (("a",), False)
    assert one.served.scores.tolist() == [8.0]
    assert one.served.sequences == {0: 17}
    assert other.served is not None
    assert (other.served.ids, other.served.is_whole) == (("other",), True)


def test_queries_with_their_own_settings_take_no_place_from_the_others() -> None:
    kept = RecallSampler(draw=random.Random(1))
    kept.note("c", numbered(0, 50), PLAIN, ALL)
    for options in (SearchOptions(k=10, ef=10), SearchOptions(k=10, recall_objective=0.99)):
        kept.note("c", numbered(1_000, 5_000), options, ALL)
    found = kept.sample("c")
    assert sum(one.ef is None and one.objective is None for one in found) == 50
    assert len(found) == 50 + JUDGING_QUERIES


def test_long_vectors_are_bounded_in_bytes() -> None:
    kept = RecallSampler()
    for dimension, expected in ((8_192, 64), (32_768, LONG_QUERIES_MIN)):
        assert 4 * dimension * expected <= SAMPLE_BYTES_MAX
        queries = np.zeros((100, dimension), dtype=np.float32)
        kept.note(f"c{dimension}", queries, PLAIN, ALL)
        assert len(kept.sample(f"c{dimension}")) == expected


def test_shards_have_counts_of_their_own() -> None:
    kept = RecallSampler()
    filtered = SearchOptions(k=3, filter=RED)
    kept.note(
        "c", numbered(5_000, 2), filtered, [MatchCount(0, 1, 1_000), MatchCount(1, 999, 1_000)]
    )
    assert kept.seen("c", 0, SelectivityBand.FROM_0_1) == 2
    assert kept.seen("c", 1, SelectivityBand.FROM_50) == 2
    assert kept.seen("c", 1, UNFILTERED) == 0


def test_exact_and_explained_searches_are_not_counted() -> None:
    kept = RecallSampler()
    kept.note("c", numbered(0, 9), SearchOptions(k=1, exact=True), ALL)
    kept.note("c", numbered(0, 9), SearchOptions(k=1, explain=True), ALL)
    assert kept.sample("c") == ()
    assert kept.seen("c", 0, UNFILTERED) == 0
    nothing = RecallSampler(0.0)
    nothing.note("c", numbered(0, 9), PLAIN, ALL)
    assert nothing.version("c") == 0


def test_restored_queries_keep_their_age() -> None:
    def stored(number: int, *, age_s: float) -> tuple[SelectivityBand, SampledQuery]:
        at_s = 1e9 + 1_000.0 - age_s
        return UNFILTERED, SampledQuery(numbered(number, 1)[0], 10, None, at_s)

    node = Node()
    node.sampler.restore("c", [stored(1, age_s=20.0), stored(2, age_s=7_200.0)])
    assert [int(one.vector[0]) for one in node.judging()] == [1]
    ((_, held),) = node.sampler.by_band("c")
    assert len(held) == 2
    node.sampler.restore("c", [stored(3, age_s=1.0)])
    assert len(node.judging()) == 1, "the band has queries already"


def test_a_sample_is_a_copy_and_goes_with_its_collection() -> None:
    kept = RecallSampler(1.0, now_s=lambda: 5.0)
    queries = numbered(3, 1)
    kept.note("c", queries, PLAIN, ALL)
    kept.note("d", queries, PLAIN, ALL)
    queries[:] = 0.0
    assert [one.vector[0] for one in kept.sample("c")] == [3.0]
    assert kept.sample("c")[0].sampled_at_s == 5.0
    kept.forget_all_but(["d"])
    assert kept.sample("c") == ()
    assert len(kept.sample("d")) == 1
