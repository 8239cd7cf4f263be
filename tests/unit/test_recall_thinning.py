"""Thinning a stream of queries before any work is done for them: who passes, and for how many."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest

from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.sampled_query import FRESH_QUERIES
from annheal.shard_node.recall.sampling.stratum import JUDGING_QUERIES, OVERSAMPLED
from annheal.shard_node.recall.sampling.thinning import PASSED_MAX, Thinning
from annheal.shard_node.search.searcher import MatchCount

WANTED, HORIZON_S = 256, 30.0


@dataclass(slots=True)
class Stream:
    """A thinned stream, and what passed of it: (number, weight), numbers counted by the second."""

    seed: int
    share_max: float = 1.0
    at_s: float = 100.0
    sent: int = 0
    passed: list[tuple[float, float]] = field(default_factory=list)
    thinning: Thinning = field(init=False)

    def __post_init__(self) -> None:
        self.thinning = Thinning(
            WANTED,
            horizon_s=HORIZON_S,
            share_max=self.share_max,
            at_s=self.at_s,
            draw=random.Random(self.seed),
        )

    def send(self, count: int) -> int:
        """Send queries at one moment; return how many passed."""
        before = len(self.passed)
        if not self.thinning.skips(count, self.at_s):
            self.passed += [
                (self.sent + place, weight) for place, weight in self.thinning.passing(count)
            ]
        self.sent += count
        return len(self.passed) - before

    def load(self, seconds: float, *, per_s: float, batch: int = 1) -> int:
        """Send queries at a steady rate; return how many passed."""
        passed = 0
        for _ in range(round(seconds * per_s / batch)):
            self.at_s += batch / per_s
            passed += self.send(batch)
        return passed


def changing_load(stream: Stream) -> None:
    """Rates and batches that change within seconds."""
    for per_s, batch in [(40.0, 1), (900.0, 6), (900.0, 1), (15.0, 1), (3_000.0, 24)]:
        stream.load(4.0, per_s=per_s, batch=batch)


def test_weights_add_up_to_the_stream_wherever_one_looks() -> None:
    """Horvitz and Thompson: unbiased over the whole, and within each part of a changing load."""
    runs, parts = 60, 24
    found = np.zeros((runs, parts))
    for seed in range(runs):
        stream = Stream(seed)
        changing_load(stream)
        numbers, weights = np.array(stream.passed).T
        edges = np.linspace(0, stream.sent, parts + 1)
        found[seed], _ = np.histogram(numbers, bins=edges, weights=weights)
        expected, _ = np.histogram(np.arange(stream.sent), bins=edges)
    deviations = (found.mean(axis=0) - expected) / (found.std(axis=0) / math.sqrt(runs) + 1e-9)
    assert np.abs(deviations).max() < 4.5


@pytest.mark.parametrize("batch", [1, 24])
@pytest.mark.parametrize("per_s", [2.0, 50.0, 5_000.0])
def test_about_equally_many_pass_whatever_the_load(per_s: float, batch: int) -> None:
    stream = Stream(1)
    stream.load(30.0, per_s=per_s, batch=batch)
    passed = stream.load(2 * HORIZON_S, per_s=per_s, batch=batch)
    expected = 2 * min(WANTED, per_s * HORIZON_S)
    assert passed == pytest.approx(expected, abs=max(0.15 * expected, 4.5 * math.sqrt(expected)))


def test_the_first_queries_all_pass_and_a_burst_does_not() -> None:
    stream = Stream(1)
    assert stream.send(PASSED_MAX) == PASSED_MAX
    assert stream.send(10_000) < 1_000  # doublings of 128, 128 pass before each
    late = Stream(2)
    late.load(60.0, per_s=1.0)
    late.at_s += 0.5
    assert late.send(10_000) < 1_000


def test_when_the_load_falls_queries_pass_again_soon() -> None:
    stream = Stream(1)
    stream.load(60.0, per_s=5_000.0, batch=24)
    assert stream.load(20.0, per_s=5.0) > 40
    assert stream.load(10.0, per_s=5.0) == 50


def test_a_limit_of_the_share_is_kept() -> None:
    stream = Stream(1, share_max=0.01)
    passed = stream.load(60.0, per_s=300.0, batch=10)
    assert passed == pytest.approx(180, abs=4.5 * math.sqrt(180))
    assert {weight for _, weight in stream.passed} == {100.0}


class Watched:
    """An answer that counts how often hits are copied."""

    def __init__(self, queries: int) -> None:
        self.reads = 0
        self.scores = np.zeros(queries, dtype=np.float32)
        self.sequences = {0: 1}
        self.counts = np.ones(queries, dtype=np.int32)
        self._records = RecordSet(["a"] * queries)

    @property
    def records(self) -> RecordSet:
        self.reads += 1
        return self._records


def test_nothing_is_copied_of_a_query_that_does_not_enter() -> None:
    now, watched = [0.0], Watched(24)
    kept = RecallSampler(draw=random.Random(3), clock=lambda: now[0])
    queries = np.zeros((24, 8), dtype=np.float32)

    def load(seconds: float) -> int:
        before, held = watched.reads, kept.version("c")
        for _ in range(round(seconds * 5_000 / 24)):
            now[0] += 24 / 5_000
            kept.note(
                "c",
                queries,
                SearchOptions(k=10),
                [MatchCount(0, 1_000, 1_000)],
                cast("SearchAnswer", watched),
            )
        assert watched.reads - before == kept.version("c") - held
        return watched.reads - before

    load(30.0)
    read = load(60.0)
    # 300,000 queries; those that pass in two parts, of which not all enter.
    assert 2 * JUDGING_QUERIES < read < 2.2 * OVERSAMPLED * JUDGING_QUERIES


def test_bands_objectives_and_k_are_sampled_in_proportion_to_their_queries() -> None:
    """Over many seeds: shares of k within a band, and samples of bands of unlike traffic."""
    red = Comparison("colour", ComparisonOp.EQ, "red")
    plans = [
        (SearchOptions(k=10), 60),
        (SearchOptions(k=100), 20),
        (SearchOptions(k=1), 20),
        (SearchOptions(k=10, filter=red), 3),
        (SearchOptions(k=10, recall_objective=0.99), 40),
        (SearchOptions(k=10, recall_objective=0.9), 10),
    ]
    shares, strict = [], []
    queries = np.zeros((1, 2), dtype=np.float32)
    for seed in range(8):
        now = [0.0]
        draw = random.Random(seed)
        kept = RecallSampler(draw=draw, clock=lambda now=now: now[0])
        order = [options for options, per_s in plans for _ in range(per_s)]
        mixed = random.Random(1_000 + seed)
        for _ in range(40):
            mixed.shuffle(order)
            for options in order:
                now[0] += 1.0 / len(order)
                matches = 1_000 if options.filter is None else 20
                kept.note("c", queries, options, [MatchCount(0, matches, 1_000)])
        found = kept.sample("c")
        plain = [one.k for one in found if one.filter is None and one.objective is None]
        own = [one.objective for one in found if one.objective is not None]
        assert FRESH_QUERIES <= sum(one.filter is not None for one in found) <= JUDGING_QUERIES
        assert min(len(plain), len(own)) >= FRESH_QUERIES
        shares.append([plain.count(10), plain.count(100), plain.count(1)])
        strict.append([own.count(0.99), own.count(0.9)])
    for counts, expected in ((shares, [0.6, 0.2, 0.2]), (strict, [0.8, 0.2])):
        total = np.sum(counts)
        measured = np.sum(counts, axis=0) / total
        deviation = np.sqrt(np.array(expected) * (1.0 - np.array(expected)) / total)
        assert (np.abs(measured - expected) < 4.5 * deviation).all()


def test_nodes_that_are_given_the_same_numbers_keep_the_same_queries() -> None:
    """Two nodes answer the same queries at slightly different times, in batches of their own."""
    clocks = [[1_000.0], [7.0]]
    kept = [
        RecallSampler(draw=random.Random(seed), clock=lambda now=now: now[0])
        for seed, now in enumerate(clocks)
    ]
    rng, options = np.random.default_rng(5), SearchOptions(k=10)
    for _ in range(6_000):  # a minute at 2,400 queries a second
        numbers = rng.integers(0, 2**64, size=24, dtype=np.uint64)
        for sampler, now, batch in ((kept[0], clocks[0], 24), (kept[1], clocks[1], 8)):
            now[0] += 0.01 * rng.random() * 2
            for first in range(0, 24, batch):
                part = numbers[first : first + batch]
                vectors = np.zeros((batch, 2), dtype=np.float32)
                sampler.note("c", vectors, options, [MatchCount(0, 9, 9)], numbers=part)
    samples = [{one.number for one in sampler.sample("c")} for sampler in kept]
    assert all(len(one) == JUDGING_QUERIES for one in samples)
    # One node may hold a minute and the other half of it, as parts begin at different times.
    assert len(samples[0] & samples[1]) >= 0.63 * JUDGING_QUERIES


def test_queries_with_numbers_are_sampled_like_others() -> None:
    """Over many seeds: how old those that are held are, and how many pass."""
    ages: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(12):
        for numbered in ages:
            now, rng = [0.0], np.random.default_rng(seed)
            kept = RecallSampler(draw=random.Random(seed), clock=lambda now=now: now[0])
            for second in range(90):
                rate = 400 if second % 20 < 10 else 40  # a load that changes
                for _ in range(rate // 4):
                    now[0] += 4 / rate
                    numbers = rng.integers(0, 2**64, size=4, dtype=np.uint64)
                    kept.note(
                        "c",
                        np.zeros((4, 2), dtype=np.float32),
                        SearchOptions(k=10),
                        [MatchCount(0, 9, 9)],
                        numbers=numbers if numbered else None,
                    )
            ages[numbered] += [now[0] - one.arrived_s for one in kept.sample("c")]
    plain, numbered_ages = np.array(ages[False]), np.array(ages[True])
    assert len(plain) == len(numbered_ages)
    error = math.hypot(
        plain.std() / math.sqrt(len(plain)), numbered_ages.std() / math.sqrt(len(numbered_ages))
    )
    assert abs(plain.mean() - numbered_ages.mean()) < 4.5 * error
    shares = [[np.mean(one < limit) for limit in (10, 20, 40)] for one in (plain, numbered_ages)]
    assert np.abs(np.subtract(*shares)).max() < 4.5 * math.sqrt(0.5 / len(plain))


def test_some_with_and_some_without_numbers_are_one_fair_sample() -> None:
    """Half of the queries have numbers, as while coordinators are updated."""
    held = 0
    for seed in range(40):
        now, rng = [0.0], np.random.default_rng(seed)
        kept = RecallSampler(draw=random.Random(seed), clock=lambda now=now: now[0])
        for turn in range(4_000):
            now[0] += 0.01
            numbers = rng.integers(0, 2**64, size=1, dtype=np.uint64)
            kept.note(
                "c",
                np.zeros((1, 2), dtype=np.float32),
                SearchOptions(k=10),
                [MatchCount(0, 9, 9)],
                numbers=numbers if turn % 2 else None,
            )
        held += sum(one.number is not None for one in kept.sample("c"))
    expected = 40 * JUDGING_QUERIES / 2
    assert held == pytest.approx(expected, abs=4.5 * math.sqrt(expected / 2))
