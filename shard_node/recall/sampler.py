"""Samples live queries for measuring recall: one reservoir for each collection and band.

A query is kept with a fixed probability. After each kept query the number of queries to skip is
drawn, from the geometric distribution. So there is no draw for each query, and a batch without a
kept query costs one subtraction.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal.model.filter import Filter
from annheal.model.measures.recall import SelectivityBand, band_of
from annheal.model.records import Float32Matrix
from annheal.model.search import SearchOptions
from annheal.runtime.clock import Clock, wall_s
from annheal.shard_node.search.searcher import MatchCount

RESERVOIR_QUERIES = 128
"""Queries of one reservoir: a measured recall of 1.0 then has an interval from 0.97."""
FIRST_QUERIES = 32
"""First queries of a band, all kept, so that collections with few queries are measured too."""
MEMORY_QUERIES = 8 * RESERVOIR_QUERIES
"""A new query displaces an old one as if only this many had been kept, so old ones disappear."""


@dataclass(frozen=True, slots=True)
class SampledQuery:
    """A live query; `vector` (d,) float32 is a copy."""

    vector: npt.NDArray[np.float32]
    k: int
    filter: Filter | None
    sampled_at_s: float


@dataclass(slots=True)
class _Band:
    """The reservoir of one band.

    `seen` counts the queries of the band, `kept` those that were sampled; the next `skip` queries
    are not kept.
    """

    seen: int = 0
    kept: int = 0
    skip: int = 0
    queries: list[SampledQuery] = field(default_factory=list)


@dataclass(slots=True)
class _Samples:
    """The reservoirs of one collection.

    `seen` counts its queries by shard and band of that shard; `version` the kept queries.
    """

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
        now_s: Clock = wall_s,
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
        """Count the answered `queries` (n, d), and keep some of them.

        `match_counts` has one item for each shard searched. Exact and explained searches are those
        of operators; they are not counted.
        """
        if not self.share or options.exact or options.explain:
            return
        samples = self._collections.get(collection_id)
        if samples is None:
            samples = self._collections[collection_id] = _Samples()
        n = len(queries)
        filtered = options.filter is not None
        for count in match_counts:
            shard_band = (
                count.shard,
                band_of(count.matches, count.live_rows, filtered=filtered),
            )
            samples.seen[shard_band] = samples.seen.get(shard_band, 0) + n
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
        """Return the kept queries of a collection, all bands together."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        return tuple(query for band in samples.bands.values() for query in band.queries)

    def by_band(
        self, collection_id: str
    ) -> tuple[tuple[SelectivityBand, tuple[SampledQuery, ...]], ...]:
        """Return the kept queries of a collection by band."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        return tuple((band, tuple(held.queries)) for band, held in sorted(samples.bands.items()))

    def restore(
        self, collection_id: str, queries: Iterable[tuple[SelectivityBand, SampledQuery]]
    ) -> None:
        """Add queries that were sampled before a restart to the bands that have none yet.

        New queries displace them like other kept ones.
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
        """Return how many live queries of the band this node has answered for the shard."""
        samples = self._collections.get(collection_id)
        return 0 if samples is None else samples.seen.get((shard, band), 0)

    def seen_by_band(self, collection_id: str) -> dict[tuple[int, SelectivityBand], int]:
        """Return how many live queries each shard has answered here in each band, as of now."""
        samples = self._collections.get(collection_id)
        return {} if samples is None else dict(samples.seen)

    def version(self, collection_id: str) -> int:
        """Return how many queries of a collection were kept; it only grows."""
        samples = self._collections.get(collection_id)
        return 0 if samples is None else samples.version

    def forget_all_but(self, collection_ids: Iterable[str]) -> None:
        """Drop the samples of all other collections."""
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
        """Return how many queries to skip after the first `seen` ones."""
        if seen < FIRST_QUERIES or self.share >= 1.0:
            return 0
        return int(math.log(1.0 - self._draw.random()) / math.log1p(-self.share))

    def _place(self, band: _Band, query: SampledQuery) -> None:
        """Put a query into the reservoir by Algorithm R (Vitter 1985), with a bounded count.

        As the count stops at `MEMORY_QUERIES`, a new query is put into a full reservoir with a
        probability of at least RESERVOIR_QUERIES / MEMORY_QUERIES, and the chance that an old one
        is still there falls exponentially.
        """
        band.kept += 1
        if len(band.queries) < RESERVOIR_QUERIES:
            band.queries.append(query)
            return
        place = self._draw.randrange(min(band.kept, MEMORY_QUERIES))
        if place < RESERVOIR_QUERIES:
            band.queries[place] = query
