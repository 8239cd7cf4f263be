"""A random sample of a stream in which newer items are exponentially more likely.

An item that arrived at time t has the weight w(t) = exp(t / horizon) (forward decay: Cormode,
Shkapenyuk, Srivastava and Xu, "Forward decay: a practical time decay model for streaming systems",
ICDE 2009). Weighted sampling without replacement gives each item the key E / w, where E is
exponentially distributed with mean 1, and keeps the items with the `size` smallest keys
(Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing
Letters 97, 2006). Weights of exponential decay only ever scale together, so the sample is right at
any later time without another look at it.

An item may stand for several of a stream that was thinned before (`thinning.py`): its weight is so
many times larger. Keys are held as logarithms, log(E) - t / horizon, so nothing overflows however
long the stream is.
Once the reservoir is full, the weight that passes until the next item enters is exponentially
distributed too (the exponential jumps of Efraimidis and Spirakis): a batch from which nothing
enters costs one exp and a comparison, and no random number.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

PARTS_KEPT = 2
"""Parts of time that are held in any case: the present one, and the one before."""

_EXPONENT_MAX = 700.0
"""exp of more overflows a float; the largest threshold means that the next item enters."""
_SMALLEST = 5e-324

ItemT = TypeVar("ItemT")


class DecayingReservoir(Generic[ItemT]):
    """At most `size` items of a stream; the chance that one is held falls with its age.

    While more than `size` items arrive in a horizon, an item of age a is held with a probability in
    proportion to exp(-a / `horizon_s`). With fewer arrivals nearly all of the newest `size` items
    are held.

    Args:
        size: most items, at least 1.
        horizon_s: seconds in which the weight of an item falls by the factor e.
        draw: source of randomness.
    """

    def __init__(self, size: int, *, horizon_s: float, draw: random.Random) -> None:
        self.size = size
        self.horizon_s = horizon_s
        self._draw = draw
        self._order = itertools.count()
        self._held: list[tuple[float, int, ItemT]] = []
        """A heap by the negative logarithm of the key: the first item is the next to leave."""
        self._jump = 0.0
        """Weight that passes until the next item enters, where an item that arrives at `_at_s`
        has the weight 1."""
        self._at_s = 0.0

    def __len__(self) -> int:
        """Return how many items are held."""
        return len(self._held)

    def offer(
        self,
        count: int,
        at_s: float,
        item: Callable[[int], ItemT],
        *,
        first: int = 0,
        weight: float = 1.0,
    ) -> int:
        """Offer `count` items that arrive at `at_s`; return how many entered.

        `item(i)`, for i from `first` to `first` + `count` - 1, is called for those that enter only.
        Each stands for `weight` items of the stream. `at_s` must not be earlier than at a previous
        call.
        """
        if weight != 1.0:  # as heavy as one item at a later time
            at_s += self.horizon_s * math.log(weight)
        place, end, entered = first, first + count, 0
        while len(self._held) < self.size:
            if place == end:
                return entered
            self._push(self._exponential(), at_s, item(place))
            place += 1
            entered += 1
            if len(self._held) == self.size:
                self._draw_jump(at_s)
        if at_s != self._at_s:
            self._jump *= math.exp((self._at_s - at_s) / self.horizon_s)
            self._at_s = at_s
        while self._jump < end - place:
            place += int(self._jump)
            # The key is drawn under the condition that it is below the largest one held.
            below = -math.expm1(-self._threshold(at_s))
            key = -math.log1p(-below * (1.0 - self._draw.random()))
            self._push(max(key, _SMALLEST), at_s, item(place))
            place += 1
            entered += 1
            self._draw_jump(at_s)
        self._jump -= end - place
        return entered

    def offer_drawn(
        self, drawn: float, at_s: float, item: Callable[[], ItemT], *, weight: float = 1.0
    ) -> bool:
        """Offer one item whose random number was drawn elsewhere; return whether it entered.

        `drawn` is exponentially distributed with mean 1, and has nothing to do with the weight.
        Reservoirs in different processes that are offered the same numbers hold the same items
        (coordinated samples: E. Cohen and H. Kaplan, "Summarizing data using bottom-k sketches",
        Symposium on Principles of Distributed Computing, 2007). The other parameters are as in
        `offer`.
        """
        at_s += self.horizon_s * math.log(weight)
        drawn = max(drawn, _SMALLEST)
        if len(self._held) == self.size and drawn >= self._threshold(at_s):
            return False
        self._push(drawn, at_s, item())
        if len(self._held) == self.size:
            # The largest key has changed; weights until the next item enters have no memory.
            self._draw_jump(at_s)
        return True

    def add_earlier(self, item: ItemT, *, arrived_s: float, now_s: float) -> None:
        """Offer an item of the past, such as one that was stored; `now_s` as in `offer`."""
        self._push(self._exponential(), arrived_s, item)
        if len(self._held) == self.size:
            self._draw_jump(now_s)

    def items(self) -> list[ItemT]:
        """Return the items. The first m of them are a sample of size m by the same weights."""
        return [item for _, item in sorted(self.ranked(), key=_rank)]

    def ranked(self) -> list[tuple[float, ItemT]]:
        """Return the items in any order, each with a rank by which `items` sorts them.

        Ranks of reservoirs with the same horizon can be compared: the first m of several together
        are a sample of all their streams.
        """
        return [(-key, item) for key, _, item in self._held]

    def chance(self, at_s: float) -> float:
        """Return the probability with which an item that arrives at `at_s` enters."""
        if len(self._held) < self.size:
            return 1.0
        return -math.expm1(-self._threshold(at_s))

    def _push(self, key: float, at_s: float, item: ItemT) -> None:
        """Add an item with `key`, relative to the weights of `at_s`; drop one if there are more."""
        held = (at_s / self.horizon_s - math.log(key), next(self._order), item)
        if len(self._held) < self.size:
            heapq.heappush(self._held, held)
        else:
            heapq.heappushpop(self._held, held)

    def _threshold(self, at_s: float) -> float:
        """Return the largest key held, for items of weight 1 at `at_s`."""
        return math.exp(min(_EXPONENT_MAX, at_s / self.horizon_s - self._held[0][0]))

    def _draw_jump(self, at_s: float) -> None:
        self._jump = self._exponential() / self._threshold(at_s)
        self._at_s = at_s

    def _exponential(self) -> float:
        return max(-math.log(1.0 - self._draw.random()), _SMALLEST)


class RotatingReservoir(Generic[ItemT]):
    """A decaying sample that forgets a burst too: one reservoir for each part of time.

    Weights alone do not: 10,000 queries of a second that is two horizons ago weigh more than ten
    queries a second since. So the stream is cut into parts of `part_s`, and only the present part
    and the one before are held, besides older ones as long as these have fewer than `enough` items.
    Each part holds up to `size` items, so that a burst within them is weighed by its items.

    Args:
        size, horizon_s, draw: of each part's reservoir.
        part_s: seconds of a part.
        enough: items of newer parts with which an older one is dropped.
    """

    def __init__(
        self, size: int, *, horizon_s: float, part_s: float, enough: int, draw: random.Random
    ) -> None:
        self.size = size
        self._horizon_s = horizon_s
        self._part_s = part_s
        self._enough = min(enough, size)
        self._draw = draw
        self._parts: deque[DecayingReservoir[ItemT]] = deque([self._part()])
        self._began_s = -math.inf

    def __len__(self) -> int:
        """Return how many items are held: below `size` * `PARTS_KEPT` + `enough` + `size`."""
        return sum(len(part) for part in self._parts)

    def offer(
        self,
        count: int,
        at_s: float,
        item: Callable[[int], ItemT],
        *,
        first: int = 0,
        weight: float = 1.0,
    ) -> int:
        """Offer items as to a `DecayingReservoir`; return how many entered."""
        if at_s - self._began_s >= self._part_s:
            self._rotate(at_s)
        return self._parts[-1].offer(count, at_s, item, first=first, weight=weight)

    def offer_drawn(
        self, drawn: float, at_s: float, item: Callable[[], ItemT], *, weight: float = 1.0
    ) -> bool:
        """Offer one item as to a `DecayingReservoir`; return whether it entered."""
        if at_s - self._began_s >= self._part_s:
            self._rotate(at_s)
        return self._parts[-1].offer_drawn(drawn, at_s, item, weight=weight)

    def add_earlier(self, item: ItemT, *, arrived_s: float, now_s: float) -> None:
        """Offer an item of the past, such as one that was stored; `now_s` as in `offer`."""
        if now_s - self._began_s >= self._part_s:
            self._rotate(now_s)
        self._parts[-1].add_earlier(item, arrived_s=arrived_s, now_s=now_s)

    def items(self) -> list[ItemT]:
        """Return the items. The first m of those that are newer than t are a sample of size m."""
        ranked = [pair for part in self._parts for pair in part.ranked()]
        return [item for _, item in sorted(ranked, key=_rank)]

    def chance(self, at_s: float, *, weight: float = 1.0) -> float:
        """Return about the probability with which an item that arrives at `at_s` will be held.

        That is the chance in a single reservoir of the items of the parts held, for an item that
        stands for `weight` of them.
        """
        ranks = sorted(rank for part in self._parts for rank, _ in part.ranked())
        if len(ranks) < self.size:
            return 1.0
        threshold = ranks[self.size - 1] + at_s / self._horizon_s + math.log(weight)
        return -math.expm1(-math.exp(min(_EXPONENT_MAX, threshold)))

    def _rotate(self, at_s: float) -> None:
        """Begin a part, and drop old ones."""
        self._began_s = at_s
        if not len(self._parts[-1]):
            return
        self._parts.append(self._part())
        newer = 0
        for kept, part in enumerate(reversed(self._parts)):
            if kept >= PARTS_KEPT and newer >= self._enough:
                while len(self._parts) > kept:
                    self._parts.popleft()
                return
            newer += len(part)

    def _part(self) -> DecayingReservoir[ItemT]:
        return DecayingReservoir(self.size, horizon_s=self._horizon_s, draw=self._draw)


def _rank(ranked: tuple[float, object]) -> float:
    return ranked[0]
