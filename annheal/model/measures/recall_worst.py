"""The live queries that find least: what was asked, what is returned, and what is missed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.errors import InvalidArgument
from annheal.model.filter import Filter
from annheal.model.measures.recall import SelectivityBand

WORST_DEFAULT, WORST_MAX = 10, 100
"""Queries of each band that are listed."""
REVIEWED_MAX = 512
"""Sampled queries that are searched again for one list, the newest of each band alike."""
HITS_SHOWN_MAX = 100
"""Hits of a query that are listed as returned, and as missed; the best ones."""


@dataclass(frozen=True, slots=True)
class LiveQuery:
    """A sampled live query.

    `vector` is (d,) float32, of the serving model. `objective` and `ef` are what the client set;
    None: as the collection's settings say. `asked_at_s` is seconds since the epoch. `number` is the
    same in all nodes that answered; None where one shard has the whole answer.
    """

    vector: npt.NDArray[np.float32]
    k: int
    band: SelectivityBand
    asked_at_s: float
    filter: Filter | None = None
    objective: float | None = None
    ef: int | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class ShownHit:
    """A record, and its score or (l2) distance."""

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class WorstQuery:
    """A live query with its recall as the cluster answers it now.

    `returned` and `missed` are the best hits of each kind, at most `HITS_SHOWN_MAX`; `missed_count`
    counts all that are missed.
    """

    query: LiveQuery
    recall: float
    returned: tuple[ShownHit, ...]
    missed: tuple[ShownHit, ...]
    missed_count: int

    @property
    def found_nothing(self) -> bool:
        """Whether none of the true neighbours is among the hits."""
        return self.recall == 0.0


@dataclass(frozen=True, slots=True)
class WorstReport:
    """The worst queries of a collection, by band and then by recall, the lowest first.

    `reviewed` of `sampled` queries were searched again; fewer if time was short. `errors` has the
    nodes that did not report their samples.
    """

    collection: str
    sampled: int
    reviewed: int
    queries: tuple[WorstQuery, ...]
    errors: dict[str, str]


def checked_worst(queries_max: int) -> int:
    """Return how many queries are listed; raises `InvalidArgument` for a number out of range."""
    if not 1 <= queries_max <= WORST_MAX:
        raise InvalidArgument.of("queries_max", f"{queries_max} is not between 1 and {WORST_MAX}")
    return queries_max
