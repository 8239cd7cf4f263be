"""Which queries the shards of a collection are measured with: those of the round, and when not."""

from __future__ import annotations

import math
import random

import numpy as np

from annheal.model.measures.recall import SelectivityBand
from annheal.model.search import SearchOptions
from annheal.shard_node.recall.rounds import Rounds
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.stratum import JUDGING_QUERIES
from annheal.shard_node.search.searcher import MatchCount

INTERVAL_S = 60.0
NEVER_S = -math.inf


class World:
    """A sampler that queries come to, and the rounds of its only collection."""

    def __init__(self) -> None:
        self.at_s = 1_000.0
        self.draw = np.random.default_rng(3)
        self.sampler = RecallSampler(
            interval_s=INTERVAL_S,
            draw=random.Random(3),
            clock=lambda: self.at_s,
            now_s=lambda: self.at_s,
        )
        self.rounds = Rounds(self.sampler, interval_s=INTERVAL_S)

    def ask(self, seconds: float, *, per_s: float = 50.0) -> None:
        """Send queries at a steady rate, looking once a second as the monitor does."""
        for _ in range(round(seconds)):
            for _ in range(round(per_s)):
                self.at_s += 1.0 / per_s
                query = self.draw.standard_normal((1, 8), dtype=np.float32)
                self.sampler.note("c", query, SearchOptions(k=10), [MatchCount(0, 100, 100)])
            self.rounds.begin("c", wall_s=self.at_s, at_s=self.at_s, queries_max=None)

    def serials(self, *, measured_s: float) -> set[int]:
        sample = self.rounds.sample("c", measured_s=measured_s, wall_s=self.at_s, queries_max=None)
        return {one.serial for one in sample.queries}


def test_shards_that_were_not_measured_in_the_round_get_its_queries() -> None:
    world = World()
    world.ask(90)
    first = world.serials(measured_s=NEVER_S)
    assert len(first) == JUDGING_QUERIES
    began_s = world.at_s
    world.ask(20)
    assert world.serials(measured_s=NEVER_S) == first, "the round is the same"
    again = world.serials(measured_s=began_s)
    assert again != first, "what is measured again needs new evidence"
    assert max(again) > max(first)
    world.ask(60)
    assert world.serials(measured_s=began_s) != first, "another round has begun"
    assert world.rounds.began_after("c", began_s)


def test_a_round_that_has_ended_gives_the_queries_of_now() -> None:
    world = World()
    world.ask(90)
    first = world.serials(measured_s=NEVER_S)
    world.rounds.end("c")
    assert not world.rounds.began_after("c", NEVER_S)
    world.ask(20)
    now = world.serials(measured_s=NEVER_S)
    assert now == {one.serial for one in world.sampler.sample("c")}
    assert now != first
    world.ask(60)
    assert world.rounds.began_after("c", NEVER_S), "the next one begins at its time"


def test_a_round_of_few_queries_does_not_hold_back_those_that_come() -> None:
    world = World()
    world.ask(2, per_s=5.0)
    assert SelectivityBand.UNFILTERED in dict(world.sampler.by_band("c"))
    few = world.serials(measured_s=NEVER_S)
    world.ask(10, per_s=5.0)
    assert few < world.serials(measured_s=NEVER_S)
