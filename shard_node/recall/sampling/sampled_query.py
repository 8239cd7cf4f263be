"""What is kept of a sampled live query, and when such queries judge recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal.model.filter import Filter
from annheal.model.measures.recall import SelectivityBand
from annheal.shard_node.recall.sampling.change import Sketch
from annheal.shard_node.recall.served import ServedHits

WINDOW_MIN_S = 60
"""Least seconds of the window in which queries judge; else it is the measuring interval."""
HORIZONS_PER_WINDOW = 2
"""The weight of a query falls by the factor e in half a window."""
FRESH_QUERIES = 64
"""If the window has fewer queries, older ones judge too, up to so many."""
WINDOWS_MAX = 10
"""Queries older than so many windows do not judge, and estimates older than that are unknown."""


@dataclass(frozen=True, slots=True)
class SampledQuery:
    """A live query: what was asked, when, and what was returned.

    Attributes:
        vector: (d,) float32, a copy.
        sampled_at_s: seconds since the epoch.
        arrived_s: the same moment by a clock that never goes back.
        serial: grows by one with every sampled query of the collection.
        objective, ef: what the client set for this query; None: what the collection's settings say.
        served: the hits that were returned; None in a query of an earlier process.
        sketch: what a change of the queries is noticed by; None in a query of an earlier process.
        number: the same in all nodes that answered; None where one shard has the whole answer.
    """

    vector: npt.NDArray[np.float32]
    k: int
    filter: Filter | None
    sampled_at_s: float
    arrived_s: float = 0.0
    serial: int = 0
    objective: float | None = None
    ef: int | None = None
    served: ServedHits | None = None
    sketch: Sketch | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Queries with which recall is measured.

    Attributes:
        queries: a random sample of each stratum's queries.
        tagged: by tag, a random sample of its queries; one may be among `queries` too.
    """

    queries: tuple[SampledQuery, ...]
    tagged: Mapping[str, tuple[SampledQuery, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the distribution of the queries of one stratum.

    Attributes:
        band, own: the stratum: its band, and whether its clients set an ef or an objective.
        since_s: when the first query after the change arrived, by the sampler's clock.
        noticed_s: when the change was noticed, by the same clock.
        noticed_at_s: the same in seconds since the epoch.
    """

    band: SelectivityBand
    own: bool
    since_s: float
    noticed_s: float
    noticed_at_s: float


@dataclass(frozen=True, slots=True)
class Windows:
    """The times of sampling, in seconds.

    Attributes:
        window_s: queries of this time judge recall.
        horizon_s: the weight of a query falls by the factor e in this time.
        age_max_s: queries older than this do not judge.
    """

    window_s: float
    horizon_s: float
    age_max_s: float

    @classmethod
    def of(cls, interval_s: float) -> Windows:
        """Return the times for a measuring interval."""
        window_s = max(float(WINDOW_MIN_S), interval_s)
        return cls(window_s, window_s / HORIZONS_PER_WINDOW, WINDOWS_MAX * window_s)
