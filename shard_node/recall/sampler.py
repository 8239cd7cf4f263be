"""Samples live queries for measuring recall: the sample is about now, whatever the load.

Each collection has reservoirs that decay with time (`reservoir.py`), for each band of selectivity
and three horizons, and a reservoir for each tag that clients state (`sampling/tags.py`). The
shortest, of half a window (a minute by default), judges recall and steers
ef. Those of an hour and of a day only calibrate: they are stored, and compactors measure new graphs
with them. The share of the queries that is kept follows from the load: a reservoir of 128 queries
that forgets within half a minute gets about 128 new ones a minute from any faster load.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from annheal.model.measures.recall import SelectivityBand, band_of
from annheal.model.measures.recall_worst import LiveQuery
from annheal.model.measures.shard_queries import Numbers
from annheal.model.records import Float32Matrix
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.runtime.clock import Clock, monotonic_s, wall_s
from annheal.shard_node.recall.sampling.change import Sketch, sketch_of
from annheal.shard_node.recall.sampling.sampled_query import Change, Sample, SampledQuery, Windows
from annheal.shard_node.recall.sampling.stratum import (
    JudgingReservoir,
    StratumReservoirs,
    stratum_reservoirs,
)
from annheal.shard_node.recall.sampling.tags import TagSamples
from annheal.shard_node.recall.sampling.thinning import uniform_of
from annheal.shard_node.recall.sampling.window_counts import WindowCounts
from annheal.shard_node.recall.served import served_hits
from annheal.shard_node.search.searcher import MatchCount

Traffic = dict[tuple[int, SelectivityBand], int]
"""Queries by shard, and by their band in that shard."""

Stratum = tuple[SelectivityBand, bool, int]
"""Band; whether the client set an ef or an objective; dimension. Each has its own reservoirs."""


@dataclass(slots=True)
class _Samples:
    """What is held of one collection.

    `traffic` counts its queries, `tags` holds those of each tag. `version` is the last serial,
    `change` the last change, `way` how queries were answered when changes were last looked for.
    """

    traffic: WindowCounts[tuple[int, SelectivityBand]]
    tags: TagSamples
    strata: dict[Stratum, StratumReservoirs] = field(default_factory=dict)
    version: int = 0
    change: Change | None = None
    way: Hashable = None


class RecallSampler:
    """Keeps a share of the live queries. Used on the event loop only.

    Args:
        share: the largest share of the queries that may be kept, in [0, 1]; 0 keeps none.
        interval_s: seconds between two measurements.
        draw: source of randomness.
        clock: a monotonic clock, in seconds.
        now_s: seconds since the epoch.
    """

    def __init__(
        self,
        share: float = 1.0,
        *,
        interval_s: float = 60.0,
        draw: random.Random | None = None,
        clock: Clock = monotonic_s,
        now_s: Clock = wall_s,
    ) -> None:
        self.share = share
        self.windows = Windows.of(interval_s)
        self._draw = draw or random.Random()
        self._clock = clock
        self._now_s = now_s
        self._collections: dict[str, _Samples] = {}
        self._models: dict[str, str] = {}

    def note(
        self,
        collection_id: str,
        queries: Float32Matrix,
        options: SearchOptions,
        match_counts: Sequence[MatchCount],
        answer: SearchAnswer | None = None,
        numbers: Numbers | None = None,
    ) -> None:
        """Count the answered `queries` (n, d), and keep some of them with what was returned.

        `match_counts` has one item for each shard searched. With random `numbers` (n,), nodes that
        are given the same ones keep the same queries, up to differences of their loads. Exact and
        explained searches are not counted: the former have recall 1, the latter are questions of
        operators.
        """
        if not self.share or options.exact or options.explain:
            return
        samples = self._collections.get(collection_id) or self._begin(collection_id)
        now_s = self._clock()
        n, dimension = queries.shape
        band = self._count(
            samples, match_counts, n, filtered=options.filter is not None, at_s=now_s
        )
        own = options.ef is not None or options.recall_objective is not None
        held = self._reservoirs(samples, (band, own, dimension), at_s=now_s)
        tagged: JudgingReservoir | None = None
        if options.tag and not own:
            tagged = samples.tags.count(options.tag, dimension, n, at_s=now_s)
        uniform: Sequence[float] | None = None
        if numbers is None and tagged is None:
            if held.thinning.skips(n, now_s):
                return
        else:
            draw = self._draw.random
            uniform = [draw() for _ in range(n)] if numbers is None else uniform_of(numbers)
            lowest = min(uniform)
            is_skipped = held.thinning.skips_drawn(lowest, n, now_s)
            if tagged is not None:
                is_skipped = tagged.thinning.skips_drawn(lowest, n, now_s) and is_skipped
            if is_skipped:
                return
        self._keep(samples, held, tagged, queries, options, answer, numbers, uniform, now_s=now_s)

    def follow(self, collection_id: str, model: str) -> None:
        """Drop the samples of a collection if they are queries of another model than `model`."""
        before = self._models.get(collection_id)
        self._models[collection_id] = model
        if before not in (None, model):
            self._collections.pop(collection_id, None)

    def _begin(self, collection_id: str) -> _Samples:
        """Begin to sample a collection."""
        samples = self._collections[collection_id] = _Samples(
            WindowCounts(self.windows.window_s),
            TagSamples(self.windows, share_max=self.share, draw=self._draw),
        )
        return samples

    def _keep(
        self,
        samples: _Samples,
        held: StratumReservoirs,
        tagged: JudgingReservoir | None,
        queries: Float32Matrix,
        options: SearchOptions,
        answer: SearchAnswer | None,
        numbers: Numbers | None,
        uniform: Sequence[float] | None,
        *,
        now_s: float,
    ) -> None:
        """Offer the queries that pass the thinning to the reservoirs; keep what enters.

        Queries with `uniform` random numbers, in [0, 1), are chosen by these: those of `tagged` by
        the same ones as those of the band.
        """
        made: dict[int, SampledQuery] = {}
        sketch: Sketch | None = None

        def made_once(place: int) -> SampledQuery:
            """Return the query at `place`: one object, in however many reservoirs it is held."""
            if place not in made:
                samples.version += 1
                made[place] = SampledQuery(
                    vector=queries[place].copy(),
                    k=options.k,
                    filter=options.filter,
                    sampled_at_s=self._now_s(),
                    arrived_s=now_s,
                    serial=samples.version,
                    objective=options.recall_objective,
                    ef=options.ef,
                    served=None if answer is None else served_hits(answer, place),
                    sketch=sketch,
                    number=None if numbers is None else int(numbers[place]),
                )
            return made[place]

        def sketched(place: int) -> Sketch:
            """Return the sketch of the query at `place`, which passed the thinning."""
            best = None if answer is None else _best_score(answer, place)
            found = sketch_of(queries[place], held.directions, best_score=best)
            held.detector.add(now_s, found)
            return found

        if uniform is None:
            for place, weight in held.thinning.passing(len(queries)):
                sketch = sketched(place)
                held.offer(place, now_s, made_once, weight=weight)
            return
        for place, weight, drawn in held.thinning.chosen(uniform):
            sketch = sketched(place)
            held.offer_drawn(drawn, now_s, partial(made_once, place), weight=weight)
        if tagged is None:
            return
        sketch = None
        for place, weight, drawn in tagged.thinning.chosen(uniform):
            tagged.judging.offer_drawn(drawn, now_s, partial(made_once, place), weight=weight)

    def sample(
        self, collection_id: str, *, queries_max: int | None = None
    ) -> tuple[SampledQuery, ...]:
        """Return the queries that judge recall now, at most `queries_max` of each stratum.

        They are those of the last window; if it has fewer than `FRESH_QUERIES`, the newest ones of
        at most `WINDOWS_MAX` windows. A smaller sample has the same distribution of ages.
        """
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        now_s = self._clock()
        return tuple(
            query
            for held in samples.strata.values()
            for query in held.judges(self.windows, now_s=now_s)[:queries_max]
        )

    def draw(self, collection_id: str, *, queries_max: int | None, turn: int) -> Sample:
        """Return the queries that judge recall now: of each stratum, and of each tag.

        `queries_max` is of each stratum; all tags together have as many as all strata. `turn` says
        which tags take their turn where these are too few for all (`TagSamples.judges`).
        """
        queries = self.sample(collection_id, queries_max=queries_max)
        samples = self._collections.get(collection_id)
        if samples is None or not len(samples.tags):
            return Sample(queries)
        most = None if queries_max is None else queries_max * self.strata(collection_id)
        tagged = samples.tags.judges(queries_max=most, turn=turn, now_s=self._clock())
        return Sample(queries, tagged)

    def has_tags(self, collection_id: str) -> bool:
        """Return whether queries of a collection have tags."""
        samples = self._collections.get(collection_id)
        return samples is not None and len(samples.tags) > 0

    def traffic_by_tag(self, collection_id: str) -> dict[str, tuple[int, int]]:
        """Return the live queries of each tag: all, and those of about the last window."""
        samples = self._collections.get(collection_id)
        return {} if samples is None else samples.tags.traffic(self._clock())

    def note_measured(self, collection_id: str, sample: Iterable[SampledQuery]) -> None:
        """Compare the queries of each stratum with those of `sample`, which are measured now."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return
        serials = {one.serial for one in sample}
        for held in samples.strata.values():
            held.detector.refer_to(
                [
                    one.sketch
                    for one in held.judging.items()
                    if one.sketch is not None and one.serial in serials
                ]
            )

    def look_for_changes(self, collection_id: str, way: Hashable = None) -> tuple[Change, ...]:
        """Return the changes since the last look; from now on only queries since then judge.

        `way` tells how queries are answered. Where it is another one than before, the scores of
        the queries so far are compared no longer.
        """
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        found = []
        is_new, samples.way = way != samples.way, way
        for (band, own, _), held in samples.strata.items():
            if is_new:
                held.forget_scores()
            since_s = held.detector.look()
            if since_s is not None:
                held.since_s = since_s
                if not own:
                    samples.tags.judge_since(since_s)
                found.append(Change(band, own, since_s, self._clock(), self._now_s()))
        if found:
            samples.change = found[-1]
        return tuple(found)

    def change(self, collection_id: str) -> Change | None:
        """Return the last change of a collection's queries; None: none was noticed."""
        samples = self._collections.get(collection_id)
        return None if samples is None else samples.change

    def judging_since(self, collection_id: str, change: Change) -> int:
        """Return how many queries that arrived since `change` judge now."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return 0
        now_s = self._clock()
        return sum(
            len(held.judges(self.windows, now_s=now_s))
            for (band, own, _), held in samples.strata.items()
            if (band, own) == (change.band, change.own)
        )

    def held(
        self, collection_id: str
    ) -> tuple[tuple[SelectivityBand, tuple[SampledQuery, ...]], ...]:
        """Return the held queries that may judge, measured or not, by band in random order.

        Those with settings of their own are left out.
        """
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        oldest_s = self._clock() - self.windows.age_max_s
        return tuple(
            (band, tuple(one for one in held.judging.items() if one.arrived_s >= since_s))
            for (band, own, _), held in sorted(samples.strata.items())
            for since_s in [max(oldest_s, held.since_s)]
            if not own
        )

    def live_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        """Return the queries that judge recall now, with their bands, of all bands in turn."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        now_s = self._clock()
        by_stratum = [
            [
                LiveQuery(
                    one.vector,
                    one.k,
                    band,
                    one.sampled_at_s,
                    one.filter,
                    one.objective,
                    one.ef,
                    one.number,
                )
                for one in held.judges(self.windows, now_s=now_s)
            ]
            for (band, _, _), held in sorted(samples.strata.items())
        ]
        turns = itertools.zip_longest(*by_stratum)
        return tuple(one for turn in turns for one in turn if one is not None)

    def newer(self, collection_id: str, serial: int, band: SelectivityBand) -> int:
        """Return how many queries of a band sampled after `serial` judge now.

        Those with settings of their own are not counted.
        """
        samples = self._collections.get(collection_id)
        if samples is None or samples.version <= serial:
            return 0
        now_s = self._clock()
        return sum(
            query.serial > serial
            for (of_band, own, _), held in samples.strata.items()
            if of_band is band and not own
            for query in held.judges(self.windows, now_s=now_s)
        )

    def strata(self, collection_id: str) -> int:
        """Return the number of strata of a collection that have a query that judges now."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return 0
        oldest_s = self._clock() - self.windows.age_max_s
        return sum(
            any(query.arrived_s >= oldest_s for query in held.judging.items())
            for held in samples.strata.values()
        )

    def by_band(
        self, collection_id: str
    ) -> tuple[tuple[SelectivityBand, tuple[SampledQuery, ...]], ...]:
        """Return all held queries of a collection by band: of every horizon, each query once."""
        samples = self._collections.get(collection_id)
        if samples is None:
            return ()
        bands: dict[SelectivityBand, dict[int, SampledQuery]] = {}
        for (band, _, _), held in samples.strata.items():
            bands.setdefault(band, {}).update((one.serial, one) for one in held.items())
        return tuple((band, tuple(found.values())) for band, found in sorted(bands.items()))

    def restore(
        self, collection_id: str, queries: Iterable[tuple[SelectivityBand, SampledQuery]]
    ) -> None:
        """Add queries that were sampled before a restart to the strata that have none yet.

        They keep their age, so they judge only if they are new enough.
        """
        if not self.share:
            return
        samples = self._collections.get(collection_id) or self._begin(collection_id)
        taken = {stratum for stratum, held in samples.strata.items() if len(held.judging)}
        now_s, wall_now_s = self._clock(), self._now_s()
        for band, query in queries:
            own = query.ef is not None or query.objective is not None
            stratum = (band, own, len(query.vector))
            if stratum in taken:
                continue
            samples.version += 1
            arrived_s = now_s - max(0.0, wall_now_s - query.sampled_at_s)
            known = SampledQuery(
                query.vector,
                query.k,
                query.filter,
                query.sampled_at_s,
                arrived_s=arrived_s,
                serial=samples.version,
                objective=query.objective,
                ef=query.ef,
            )
            self._reservoirs(samples, stratum, at_s=now_s).add_earlier(known, now_s=now_s)

    def seen(self, collection_id: str, shard: int, band: SelectivityBand) -> int:
        """Return how many live queries of the band this node has answered for the shard."""
        samples = self._collections.get(collection_id)
        return 0 if samples is None else samples.traffic.seen().get((shard, band), 0)

    def seen_by_band(self, collection_id: str) -> Traffic:
        """Return how many live queries each shard has answered here in each band, as of now."""
        samples = self._collections.get(collection_id)
        return {} if samples is None else samples.traffic.seen()

    def recent_by_band(self, collection_id: str) -> Traffic:
        """Return the same for about the last window."""
        samples = self._collections.get(collection_id)
        return {} if samples is None else samples.traffic.recent(self._clock())

    def sampled_share(self, collection_id: str) -> float:
        """Return the share of the queries of now that is kept to judge, over all strata."""
        samples = self._collections.get(collection_id)
        if samples is None or not samples.strata:
            return self.share
        now_s = self._clock()
        weights: dict[SelectivityBand, int] = {}
        for (_, band), queries in self.recent_by_band(collection_id).items():
            weights[band] = weights.get(band, 0) + queries
        chances = [
            (held.chance(now_s), weights.get(band, 0))
            for (band, _, _), held in samples.strata.items()
        ]
        total = sum(weight for _, weight in chances)
        if not total:
            return max(chance for chance, _ in chances)
        return sum(chance * weight for chance, weight in chances) / total

    def version(self, collection_id: str) -> int:
        """Return the serial of the newest sampled query of a collection; it only grows."""
        samples = self._collections.get(collection_id)
        return 0 if samples is None else samples.version

    def forget_all_but(self, collection_ids: Iterable[str]) -> None:
        """Drop the samples of all other collections."""
        present = set(collection_ids)
        for gone in [one for one in self._collections if one not in present]:
            del self._collections[gone]
        for gone in [one for one in self._models if one not in present]:
            del self._models[gone]

    def _count(
        self,
        samples: _Samples,
        match_counts: Sequence[MatchCount],
        n: int,
        *,
        filtered: bool,
        at_s: float,
    ) -> SelectivityBand:
        """Count `n` queries with these matches; return their band over all shards searched."""
        part = samples.traffic.part(at_s)
        if len(match_counts) == 1:
            (count,) = match_counts
            band = band_of(count.matches, count.live_rows, filtered=filtered)
            part[count.shard, band] = part.get((count.shard, band), 0) + n
            return band
        matches = live_rows = 0
        for count in match_counts:
            band = band_of(count.matches, count.live_rows, filtered=filtered)
            slot = (count.shard, band)
            part[slot] = part.get(slot, 0) + n
            matches += count.matches
            live_rows += count.live_rows
        return band_of(matches, live_rows, filtered=filtered)

    def _reservoirs(self, samples: _Samples, stratum: Stratum, *, at_s: float) -> StratumReservoirs:
        held = samples.strata.get(stratum)
        if held is None:
            held = samples.strata[stratum] = stratum_reservoirs(
                stratum[2],
                self.windows,
                share_max=self.share,
                at_s=at_s,
                draw=self._draw,
            )
        return held


def _best_score(answer: SearchAnswer, query: int) -> float | None:
    """Return the score of the best hit of the query at position `query`; None without a hit."""
    if not answer.counts[query]:
        return None
    return float(answer.scores[sum(answer.counts[:query].tolist())])
