"""Which live queries are kept for measuring recall: a reservoir per collection and band.

A query is kept with a fixed probability. Instead of one draw a query, the number of queries to
pass over is drawn after each one that is kept (it is geometric), so that a batch without a kept
query costs one subtraction.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal.model.filter import Filter
from annheal.model.measures.recall import SelectivityBand, band_of
from annheal.model.records import Float32Matrix
from annheal.model.search import SearchOptions
from annheal.shard_node.search.searcher import MatchCount

RESERVOIR_QUERIES = 128
"""Queries kept of a band: a recall of 1.0 then has an interval from 0.97."""
FIRST_QUERIES = 32
"""Queries of a band that are always kept, so that quiet collections are measured too."""
MEMORY_QUERIES = 8 * RESERVOIR_QUERIES
"""A new sample displaces an old one as if only so many had been there: the sample ages."""


@dataclass(frozen=True, slots=True)
class SampledQuery:
    """A live query: `vector` (d,) float32, a copy of its own."""

    vector: npt.NDArray[np.float32]
    k: int
    filter: Filter | None
    sampled_at_s: float


@dataclass(slots=True)
class _Band:
    """A reservoir of one band. `skip` queries are passed over before the next is kept."""

    seen: int = 0
    kept: int = 0
    skip: int = 0
    queries: list[SampledQuery] = field(default_factory=list)


@dataclass(slots=True)
class _Samples:
    """The reservoirs of one collection; `version` grows with every query that is kept."""

    bands: dict[SelectivityBand, _Band] = field(default_factory=dict)
    seen: dict[tuple[int, SelectivityBand], int] = field(default_factory=dict)
    version: int = 0


class RecallSampler:
    """Keeps a share of the live queries. Used on the event loop only.

    Args:
        share: probability that a query is kept, in [0, 1]; 0 keeps none.
        draw: source of randomness.
        now_s: seconds since the epoch.
    """

    def __init__(
        self,
        share: float,
        *,
        draw: random.Random | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.share = share
        self._draw = draw or random.Random()
        self._now_s = now_s
        self._collections: dict[str, _Samples] = {}

    def note(
        self,
        collection_id: str,
        queries: Float32Matrix,
        options: SearchOptions,
        match_counts: Sequence[MatchCount],
    ) -> None:
        """Count the answered `queries` (n, d), and keep those whose turn it is.

        Exact and explained searches are an operator's questions, not traffic; they do not count.
        """
        if not self.share or options.exact or options.explain:
            return
        samples = self._collections.get(collection_id)
        if samples is None:
            samples = self._collections[collection_id] = _Samples()
        n = len(queries)
        filtered = options.filter is not None
        for count in match_counts:
            slot = (
                count.shard,
                band_of(count.matches, count.live_rows, filtered=filtered),
            )
            samples.seen[slot] = samples.seen.get(slot, 0) + n
        matches = sum(count.matches for count in match_counts)
        live_rows = sum(count.live_rows for count in match_counts)
        name = band_of(matches, live_rows, filtered=filtered)
        band = samples.bands.get(name)
        if band is None:
            band = samples.bands[name] = _Band()
        if band.skip >= n:
            band.skip -= n
            band.seen += n
            return
        self._keep(samples, band, queries, options)

    def sample(self, collection_id: str) -> tuple[SampledQuery, ...]:
        """Return what is kept of a collection, all bands together."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        return tuple(query for band in samples.bands.values() for query in band.queries)

    def by_band(
        self, collection_id: str
    ) -> tuple[tuple[SelectivityBand, tuple[SampledQuery, ...]], ...]:
        """Return what is kept of a collection, band by band."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        return tuple((band, tuple(held.queries)) for band, held in sorted(samples.bands.items()))

    def restore(
        self, collection_id: str, queries: Iterable[tuple[SelectivityBand, SampledQuery]]
    ) -> None:
        """Go on with queries that were sampled before a restart; bands that have some keep those.

        Live queries displace them as they do each other.
        """
        if not self.share:
            return
        samples = self._collections.setdefault(collection_id, _Samples())
        taken = {name for name, band in samples.bands.items() if band.queries}
        for name, query in queries:
            if name not in taken:
                band = samples.bands.setdefault(name, _Band())
                if len(band.queries) < RESERVOIR_QUERIES:
                    band.queries.append(query)
                    band.kept += 1
                    samples.version += 1

    def seen(self, collection_id: str, shard: int, band: SelectivityBand) -> int:
        """Return how many live queries of the band the shard has answered here."""
        samples = self._collections.get(collection_id)
        return 0 if samples is None else samples.seen.get((shard, band), 0)

    def version(self, collection_id: str) -> int:
        """Return a number that grows whenever a query is kept."""
        samples = self._collections.get(collection_id)
        return 0 if samples is None else samples.version

    def forget_all_but(self, collection_ids: Iterable[str]) -> None:
        """Drop the samples of collections that are not here any more."""
        present = set(collection_ids)
        for gone in [one for one in self._collections if one not in present]:
            del self._collections[gone]

    def _keep(
        self, samples: _Samples, band: _Band, queries: Float32Matrix, options: SearchOptions
    ) -> None:
        now_s = self._now_s()
        position = band.skip
        while position < len(queries):
            kept = SampledQuery(queries[position].copy(), options.k, options.filter, now_s)
            self._place(band, kept)
            samples.version += 1
            position += 1 + self._skip(band.seen + position + 1)
        band.skip = position - len(queries)
        band.seen += len(queries)

    def _skip(self, seen: int) -> int:
        """Return how many queries to pass over after the `seen` first ones."""
        if seen < FIRST_QUERIES or self.share >= 1.0:
            return 0
        return int(math.log(1.0 - self._draw.random()) / math.log1p(-self.share))

    def _place(self, band: _Band, query: SampledQuery) -> None:
        """Algorithm R (Vitter 1985), but with a number seen that stops growing.

        So the chance of a new sample never falls below RESERVOIR_QUERIES / MEMORY_QUERIES, and
        an old one is forgotten exponentially.
        """
        band.kept += 1
        if len(band.queries) < RESERVOIR_QUERIES:
            band.queries.append(query)
            return
        place = self._draw.randrange(min(band.kept, MEMORY_QUERIES))
        if place < RESERVOIR_QUERIES:
            band.queries[place] = query
