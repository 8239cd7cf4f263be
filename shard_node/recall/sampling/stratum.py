"""The reservoirs of one kind of queries: a band of selectivity, or a tag."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from annheal.model.records import Float32Matrix
from annheal.shard_node.recall.sampling.change import ChangeDetector, directions, forget_score
from annheal.shard_node.recall.sampling.reservoir import DecayingReservoir, RotatingReservoir
from annheal.shard_node.recall.sampling.sampled_query import (
    FRESH_QUERIES,
    SampledQuery,
    Windows,
)
from annheal.shard_node.recall.sampling.thinning import Thinning

JUDGING_QUERIES = 128
"""Queries of a reservoir that judges: a measured recall of 1.0 then has an interval from 0.97."""
CALIBRATING_QUERIES = 64
"""Queries of each reservoir that calibrates."""
CALIBRATING_HORIZONS_S = (3_600.0, 86_400.0)
SAMPLE_BYTES_MAX = 2_097_152
"""Bytes of the vectors of one reservoir; of long vectors fewer than above are kept."""
LONG_QUERIES_MIN = 16
"""Queries of one reservoir, however long the vectors are."""
OVERSAMPLED = 2
"""So many times the queries that a reservoir holds are offered to it in a horizon; others are
skipped before any work is done for them."""


@dataclass(slots=True)
class JudgingReservoir:
    """The queries of one kind that judge recall, and their thinning before they are offered.

    Queries that arrived before `since_s` do not judge: the distribution has changed since.
    """

    thinning: Thinning
    judging: RotatingReservoir[SampledQuery]
    since_s: float = -math.inf

    def judges(self, windows: Windows, *, now_s: float) -> list[SampledQuery]:
        """Return a sample of the last window, or the newest `FRESH_QUERIES` that are not too old.

        The first m of them are a smaller sample.
        """
        ranked = [one for one in self.judging.items() if one.arrived_s >= self.since_s]
        ages = sorted(now_s - one.arrived_s for one in ranked)
        in_window = bisect.bisect_right(ages, windows.window_s)
        wanted = min(len(ages), max(in_window, FRESH_QUERIES))
        oldest_s = min(ages[wanted - 1], windows.age_max_s) if wanted else 0.0
        young = [one for one in ranked if now_s - one.arrived_s <= oldest_s]
        return young[: self.judging.size]


@dataclass(slots=True)
class StratumReservoirs(JudgingReservoir):
    """The reservoirs of one stratum: those that judge, those that calibrate, and the detector."""

    calibrating: tuple[DecayingReservoir[SampledQuery], ...] = ()
    directions: Float32Matrix = field(default_factory=lambda: directions(0))
    detector: ChangeDetector = field(default_factory=ChangeDetector)

    def offer(
        self, place: int, at_s: float, item: Callable[[int], SampledQuery], *, weight: float
    ) -> None:
        """Offer the query at `place` to all of them; see `DecayingReservoir.offer`."""
        self.judging.offer(1, at_s, item, first=place, weight=weight)
        for reservoir in self.calibrating:
            reservoir.offer(1, at_s, item, first=place, weight=weight)

    def offer_drawn(
        self, drawn: float, at_s: float, item: Callable[[], SampledQuery], *, weight: float
    ) -> None:
        """Offer a query with a random number of its own; see `DecayingReservoir.offer_drawn`."""
        self.judging.offer_drawn(drawn, at_s, item, weight=weight)
        for reservoir in self.calibrating:
            reservoir.offer_drawn(drawn, at_s, item, weight=weight)

    def add_earlier(self, query: SampledQuery, *, now_s: float) -> None:
        """Offer a stored query to all of them, by its own time."""
        self.judging.add_earlier(query, arrived_s=query.arrived_s, now_s=now_s)
        for reservoir in self.calibrating:
            reservoir.add_earlier(query, arrived_s=query.arrived_s, now_s=now_s)

    def chance(self, at_s: float) -> float:
        """Return the probability with which a query of now will be held to judge."""
        share = self.thinning.share
        return share * self.judging.chance(at_s, weight=1.0 / share)

    def forget_scores(self) -> None:
        """Compare no score of the queries so far: they are answered otherwise from now on."""
        self.detector.forget_scores()
        for one in self.judging.items():
            if one.sketch is not None:
                forget_score(one.sketch)

    def items(self) -> list[SampledQuery]:
        """Return the queries of all of them; one that several hold is there several times."""
        calibrating = [query for reservoir in self.calibrating for query in reservoir.items()]
        return self.judging.items() + calibrating


def judging_reservoir(
    dimension: int, windows: Windows, *, share_max: float, at_s: float, draw: random.Random
) -> JudgingReservoir:
    """Return an empty one for queries of `dimension`, whose stream begins at `at_s`."""
    size = min(JUDGING_QUERIES, _fit(dimension))
    return JudgingReservoir(
        Thinning(
            OVERSAMPLED * size,
            horizon_s=windows.horizon_s,
            share_max=share_max,
            at_s=at_s,
            draw=draw,
        ),
        RotatingReservoir(
            size,
            horizon_s=windows.horizon_s,
            part_s=windows.horizon_s,
            enough=FRESH_QUERIES,
            draw=draw,
        ),
    )


def stratum_reservoirs(
    dimension: int, windows: Windows, *, share_max: float, at_s: float, draw: random.Random
) -> StratumReservoirs:
    """Return empty ones for queries of `dimension`, whose stream begins at `at_s`."""
    judging = judging_reservoir(dimension, windows, share_max=share_max, at_s=at_s, draw=draw)
    size = min(CALIBRATING_QUERIES, _fit(dimension))
    return StratumReservoirs(
        judging.thinning,
        judging.judging,
        calibrating=tuple(
            DecayingReservoir[SampledQuery](size, horizon_s=horizon_s, draw=draw)
            for horizon_s in CALIBRATING_HORIZONS_S
        ),
        directions=directions(dimension),
    )


def _fit(dimension: int) -> int:
    """Return how many vectors of `dimension` floats one reservoir may have."""
    return max(LONG_QUERIES_MIN, SAMPLE_BYTES_MAX // (4 * max(1, dimension)))
