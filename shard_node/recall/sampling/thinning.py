"""Chooses which queries of a stream are looked at, before any work is done for the others.

A query passes with a probability that was set before it came, by the queries before it: the gaps
between those that pass are geometrically distributed, so a query that does not pass costs a
subtraction. The probability follows from the load, so that about equally many queries pass in the
same time, whatever the load. One that passes with the probability p stands for 1 / p queries
(Horvitz and Thompson, "A generalization of sampling without replacement from a finite universe",
Journal of the American Statistical Association 47, 1952).

Nodes that hold shards of one collection must choose the same queries. Then a query brings a random
number, and passes where the number is below the probability of the node (permanent random numbers:
K. R. W. Brewer, L. J. Early and S. F. Joyce, "Selecting several samples from a single population",
Australian Journal of Statistics 14, 1972).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from annheal.model.measures.shard_queries import Numbers

TICK_S = 1.0
"""Seconds after which the probability is set again; the weight of the rate before halves."""
PASSED_MAX = 128
"""After so many queries within a tick, the probability halves: a burst is no reason for work."""

_BELOW_ONE = math.nextafter(1.0, 0.0)


def uniform_of(numbers: Numbers) -> list[float]:
    """Return the random numbers in [0, 1) of queries with `numbers` (n,)."""
    # The largest ones would be rounded to 1.
    return [min(number, _BELOW_ONE) for number in (numbers * 2.0**-64).tolist()]


class Thinning:
    """Lets about `wanted` of the queries of each `horizon_s` pass; of fewer queries all.

    Args:
        wanted: queries in `horizon_s` seconds, at least 1.
        horizon_s: see above.
        share_max: the largest probability with which a query passes, in (0, 1].
        at_s: when the stream begins, by the clock of `skips`.
        draw: source of randomness.
    """

    def __init__(
        self,
        wanted: int,
        *,
        horizon_s: float,
        share_max: float,
        at_s: float,
        draw: random.Random,
    ) -> None:
        self._wanted = wanted
        self._horizon_s = horizon_s
        self._share_max = share_max
        self._draw = draw
        self._tick_s = at_s
        self._count = 0
        """Queries since `_tick_s`."""
        self._passed = 0
        """Queries that passed since `_tick_s`, or since the probability halved."""
        self._total = 0
        """Queries before `_tick_s`."""
        self._rate = math.inf
        """Queries a second before `_tick_s`; not known in the first tick."""
        self.share = share_max
        """The probability with which the next query passes."""
        self._gap = self._draw_gap()
        """Queries until one passes."""

    def skips(self, count: int, at_s: float) -> bool:
        """Count `count` queries of one moment; return True if none of them passes.

        Else `passing` must be called, with the same count.
        """
        if at_s - self._tick_s >= TICK_S:
            self._plan(at_s)
        self._count += count
        if self._gap < count:
            return False
        self._gap -= count
        return True

    def passing(self, count: int) -> Iterator[tuple[int, float]]:
        """Yield the positions of the queries that pass, and how many queries each stands for.

        The iterator must be used up.
        """
        place = self._gap
        while place < count:
            yield place, 1.0 / self.share
            self._note_passed()
            place += 1 + self._draw_gap()
        self._gap = place - count

    def skips_drawn(self, lowest: float, count: int, at_s: float) -> bool:
        """Count `count` queries of one moment; return True if none of them passes.

        `lowest` is the lowest of their random numbers in [0, 1). Else `chosen` must be called.
        """
        if at_s - self._tick_s >= TICK_S:
            self._plan(at_s)
        self._count += count
        return lowest >= self.share

    def chosen(self, uniform: Sequence[float]) -> Iterator[tuple[int, float, float]]:
        """Yield the queries that pass, of those with the random numbers `uniform`, (n,).

        That is the position of each, how many queries it stands for, and a random number,
        exponentially distributed with mean 1, that follows from its own one. It is a sample's key
        (`DecayingReservoir.offer_drawn`), whatever the probability was. The iterator must be used
        up.
        """
        for place, number in enumerate(uniform):
            if number < self.share:  # which halves now and then
                yield place, 1.0 / self.share, -math.log1p(-number / self.share)
                self._note_passed()

    def _note_passed(self) -> None:
        self._passed += 1
        if self._passed >= PASSED_MAX:
            self._passed = 0
            self.share /= 2.0

    def _plan(self, at_s: float) -> None:
        """Set the probability by the rate; too few queries are not extrapolated."""
        waited_s = at_s - self._tick_s
        rate = self._count / waited_s
        if self._rate < math.inf:
            rate += (self._rate - rate) * 0.5 ** (waited_s / TICK_S)
        self._rate = rate
        self._total += self._count
        self._count = self._passed = 0
        self._tick_s = at_s
        expected = float(self._total)
        if self._total >= self._wanted:
            expected = rate * self._horizon_s
        self.share = min(self._share_max, self._wanted / max(1.0, expected))
        # Gaps have no memory: the rest of one is distributed as a whole one.
        self._gap = self._draw_gap()

    def _draw_gap(self) -> int:
        if self.share >= 1.0:
            return 0
        return int(math.log(1.0 - self._draw.random()) / math.log1p(-self.share))
