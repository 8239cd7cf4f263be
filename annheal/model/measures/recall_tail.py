"""The tail of recall: the share of the queries that each find enough, whatever the mean is."""

from __future__ import annotations

import math
from dataclasses import dataclass

OBJECTIVE_SHARE_MIN, OBJECTIVE_SHARE_MAX = 0.5, 0.99
"""Limits of the promised share. A measurement has at most 128 queries of a band, and a share above
0.99 is only seen with more."""


@dataclass(frozen=True, slots=True)
class TailObjective:
    """At least `share` of the queries each have a recall of at least `recall`."""

    recall: float
    share: float

    @property
    def queries_min(self) -> int:
        """Different queries that show it: of fewer, not one would be expected to be below."""
        return math.ceil(1.0 / (1.0 - self.share) - 1e-9)


@dataclass(frozen=True, slots=True)
class TailEstimate:
    """The measured `share` of queries with enough recall, with its 95 % interval.

    `objective` is the one that it was measured for.
    """

    objective: TailObjective
    share: float
    low: float
    high: float
