"""Noticing that live queries are distributed otherwise: its bounds, and how soon it is noticed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.change import (
    FEATURES,
    NEWEST_TESTED,
    REFERENCE_MIN,
    SCORE,
    ChangeDetector,
    Sketch,
    directions,
    distance_limit,
    ks_distances,
    sketch_of,
)
from annheal.shard_node.search.searcher import MatchCount

DIMENSION = 24
RED = Comparison("colour", ComparisonOp.EQ, "red")
Queries = npt.NDArray[np.float32]


def by_definition(values: Queries, reference: Queries) -> float:
    """Return the distance of two empirical distribution functions at every point of both."""
    both = np.concatenate([values, reference])
    return max(abs(np.mean(values <= at) - np.mean(reference <= at)) for at in both)


@pytest.mark.parametrize("steps", [3, 1_000])
def test_the_distance_is_that_of_the_definition_also_with_ties(steps: int) -> None:
    rng = np.random.default_rng(1)
    for m, n in [(1, 1), (5, 9), (32, 128), (128, 33)]:
        values = rng.integers(0, steps, (m, 4)).astype(np.float32)
        reference = np.sort(rng.integers(0, steps, (n, 4)).astype(np.float32), axis=0)
        expected = [by_definition(values[:, at], reference[:, at]) for at in range(4)]
        np.testing.assert_allclose(ks_distances(values, reference), expected)


@pytest.mark.parametrize(("m", "n"), [(32, 128), (128, 128), (128, 32), (32, 32)])
def test_equal_distributions_exceed_the_limit_as_rarely_as_it_says(m: int, n: int) -> None:
    rng = np.random.default_rng(2)
    pairs, chance = 2_000, 0.05
    distances = ks_distances(
        rng.random((m, pairs), dtype=np.float32),
        np.sort(rng.random((n, pairs), dtype=np.float32), axis=0),
    )
    exceeded = np.mean(distances > distance_limit(m, n, chance=chance))
    assert 0.005 < exceeded < chance + 4.5 * math.sqrt(chance / pairs)


def test_false_alarms_are_as_rare_as_asked_for() -> None:
    """Looks at independent streams, with a chance that a simulation can see."""
    rng = np.random.default_rng(3)
    looks, chance, alarms = 300, 0.05, 0
    for _ in range(looks):
        detector = ChangeDetector(false_alarm=chance)
        both = rng.standard_normal((128 + NEWEST_TESTED[-1], FEATURES)).astype(np.float32)
        detector.refer_to(list(both[:128]))
        for number, sketch in enumerate(both[128:]):
            detector.add(float(number), sketch)
        alarms += detector.look() is not None
    assert alarms < chance * looks + 4.5 * math.sqrt(chance * looks)


def test_too_few_queries_are_not_compared_and_a_change_is_found_once() -> None:
    detector = ChangeDetector()
    nothing, all_else = (np.full(FEATURES, value, dtype=np.float32) for value in (0.0, 1.0))
    for number in range(200):
        detector.add(float(number), all_else)
    assert detector.look() is None
    detector.refer_to([nothing] * (REFERENCE_MIN - 1))
    assert detector.look() is None
    detector.refer_to([nothing] * REFERENCE_MIN)
    detector.add(200.0, all_else)
    assert detector.look() is None, "one new query is no reason to look"
    for number in range(7):
        detector.add(201.0 + number, all_else)
    assert detector.look() == 208.0 - NEWEST_TESTED[-1]
    for number in range(100):
        detector.add(300.0 + number, nothing)
    assert detector.look() is None


@pytest.mark.parametrize("forgotten", [False, True])
def test_other_scores_of_the_same_queries_are_no_change_where_the_way_of_answering_has_changed(
    forgotten: bool,
) -> None:
    """The best hits of a graph that finds little score less than those of an exact comparison."""
    rng = np.random.default_rng(5)

    def scored(best_score: float, count: int) -> list[Sketch]:
        sketches = rng.standard_normal((count, FEATURES)).astype(np.float32)
        sketches[:, SCORE] += best_score
        return list(sketches)

    def fed(sketches: list[Sketch]) -> float | None:
        for sketch in sketches:
            detector.add(0.0, sketch)
        return detector.look()

    detector = ChangeDetector()
    by_graph = scored(0.0, 64)
    detector.refer_to(by_graph)
    assert fed(by_graph) is None
    if not forgotten:
        assert fed(scored(5.0, 40)) is not None
        return
    detector.forget_scores()
    exactly = scored(5.0, 40)
    assert fed(exactly) is None
    detector.refer_to([*by_graph, *exactly])
    assert fed(scored(5.0, 128)) is None, "scores of the same way are compared, and are the same"
    others = scored(5.0, 40)
    for sketch in others:
        sketch[0] += 5.0
    assert fed(others) is not None, "the vectors are compared all the time"
    detector.refer_to([*by_graph, *exactly])
    assert fed(scored(10.0, 128)) is not None, "and the scores again"


def test_sketches_of_odd_queries_are_comparable() -> None:
    along = directions(3)
    zero = sketch_of(np.zeros(3, dtype=np.float32), along, best_score=None)
    assert not np.isnan(zero).any()
    one = sketch_of(np.array([0.0, 2.0, 0.0], dtype=np.float32), along, best_score=0.5)
    np.testing.assert_allclose(one[:-2], along[1], rtol=1e-6)
    assert one[-2:].tolist() == pytest.approx([math.log(2.0), 0.5])
    assert np.sort(np.stack([zero, one]), axis=0)[0, -1] == -math.inf


def of_centre(rng: np.random.Generator, count: int, *, sign: float = 1.0) -> Queries:
    """Return queries around a centre, as embeddings of texts are; `sign` -1 negates them."""
    centre = np.linspace(-1.0, 1.0, DIMENSION)
    found: Queries = (sign * (centre + rng.standard_normal((count, DIMENSION)))).astype(np.float32)
    return found


def one_hit(score: float) -> SearchAnswer:
    """Return the answer to a query that has one hit."""
    return SearchAnswer(
        counts=np.array([1], dtype=np.int32),
        scores=np.array([score], dtype=np.float32),
        records=RecordSet(["a"]),
    )


@dataclass(slots=True)
class Load:
    """A sampler that is measured every minute, and looked at every second, as the monitor does."""

    seed: int
    at_s: float = 1_000.0
    measured_s: float = 1_000.0
    noticed: list[float] = field(default_factory=list)
    rng: np.random.Generator = field(init=False)
    sampler: RecallSampler = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.sampler = RecallSampler(
            draw=random.Random(self.seed), clock=lambda: self.at_s, now_s=lambda: 1e9 + self.at_s
        )

    def run(
        self,
        seconds: int,
        *,
        sign: float = 1.0,
        per_s: int = 50,
        red: bool = False,
        way: str = "",
        score: float = 0.0,
    ) -> None:
        options = SearchOptions(k=10, filter=RED if red else None)
        for _ in range(seconds):
            for query in of_centre(self.rng, per_s, sign=sign):
                self.at_s += 1.0 / per_s
                matches = [MatchCount(0, 20 if red else 1_000, 1_000)]
                answer = one_hit(score + float(self.rng.standard_normal()))
                self.sampler.note("c", query[np.newaxis], options, matches, answer)
            self.noticed += [one.since_s for one in self.sampler.look_for_changes("c", way)]
            if self.at_s - self.measured_s >= 60.0:
                self.measured_s = self.at_s
                self.sampler.note_measured("c", self.sampler.sample("c"))


def test_negated_queries_are_noticed_within_seconds_and_then_only_they_judge() -> None:
    for seed in range(4):
        load = Load(seed)
        load.run(75 + 7 * seed)
        assert load.noticed == []
        began_s = load.at_s
        load.run(10, sign=-1.0)
        (since_s,) = load.noticed
        assert began_s - 2.0 < since_s < began_s + 2.0
        change = load.sampler.change("c")
        assert change is not None
        assert change.noticed_s - began_s <= 10.0
        assert change.noticed_at_s == 1e9 + change.noticed_s
        judging = load.sampler.sample("c")
        assert 32 <= len(judging) == load.sampler.judging_since("c", change)
        assert min(one.arrived_s for one in judging) >= since_s
        assert sum(one.arrived_s < began_s for one in judging) <= 8


def test_a_steady_load_of_minutes_raises_no_alarm_and_bands_are_told_apart() -> None:
    load = Load(11)
    for _ in range(3):
        load.run(40, per_s=20)
        load.run(40, per_s=20, red=True)
    assert load.noticed == []
    load.run(60, per_s=20)
    load.run(15, per_s=20, sign=-1.0, red=True)
    assert len(load.noticed) == 1
    change = load.sampler.change("c")
    assert change is not None
    assert change.band == "1-10%"
    plain = [one for one in load.sampler.sample("c") if one.filter is None]
    assert len(plain) > 100, "the other band has not changed"


@pytest.mark.parametrize("way", ["by graphs", "exactly"])
def test_other_scores_are_a_change_only_if_queries_are_answered_in_the_same_way(way: str) -> None:
    load = Load(13)
    load.run(75, way="by graphs")
    load.run(20, way=way, score=5.0)
    assert len(load.noticed) == (way == "by graphs")
    load.run(75, way=way, score=5.0)
    load.run(10, way=way, score=5.0, sign=-1.0)
    assert len(load.noticed) == 1 + (way == "by graphs")
