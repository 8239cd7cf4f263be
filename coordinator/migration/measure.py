"""What the gate of a migration judges, measured with stored records as queries.

A sampled record with vectors of both models is searched for by its new vector with the new model,
as planned and exactly, and by its old vector with the old model. The record itself is left out of
every answer. Queries of users are harder than stored vectors, so the recall found is an upper
bound of theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from annheal.coordinator.data_path.fanout import Fanout
from annheal.coordinator.data_path.reads import Reads
from annheal.coordinator.recall.probe import tally
from annheal.errors import FailedPrecondition
from annheal.model.collection import Collection
from annheal.model.records import Float32Matrix, Projection, lacking, vectors_of
from annheal.model.search import Consistency, SearchAnswer, SearchOptions
from annheal.model.topology.migration.gate import GateReport
from annheal.model.topology.migration.state import Migration
from annheal.model.write import ScanRequest
from annheal.runtime.clock import Clock
from annheal.runtime.deadline import Deadline

QUERIES: Final = 200
"""Records that one validation searches for."""
TIMED_QUERIES: Final = 50
"""Of them, those that are searched for one by one, in turns with both models."""
SAMPLED_MAX: Final = 4 * QUERIES
"""Records that are read to find `QUERIES` with vectors of both models."""
_QUERIES_PER_CALL: Final = 50


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Records with vectors of both models: (n,) ids, (n, d) vectors of the old and the new one."""

    ids: Sequence[str]
    old: Float32Matrix
    new: Float32Matrix


class GateMeter:
    """Measures a migration's new model against its own exact answers and against the old model."""

    def __init__(self, reads: Reads, fanout: Fanout, *, clock: Clock) -> None:
        self._reads = reads
        self._fanout = fanout
        self._clock = clock

    async def measure(
        self, collection: Collection, migration: Migration, *, at_s: float, deadline: Deadline
    ) -> GateReport:
        """Return the report on the migration's outstanding validation.

        Raises `FailedPrecondition` when no sampled record has vectors of both models, and what
        searches raise.
        """
        pairs = await self._sample(collection, migration, deadline)
        k = collection.settings.recall_k
        # The nodes do not sample explained searches as live queries.
        new = SearchOptions(k=k + 1, explain=True, model=migration.to_model)
        exact = SearchOptions(k=k + 1, explain=True, model=migration.to_model, exact=True)
        old = SearchOptions(k=k + 1, explain=True, model=migration.from_model)
        recalls: list[float] = []
        overlaps: list[float] = []
        orders: list[float] = []
        for first in range(0, len(pairs.ids), _QUERIES_PER_CALL):
            own = pairs.ids[first : first + _QUERIES_PER_CALL]
            queries = pairs.new[first : first + _QUERIES_PER_CALL]
            found = await self._search(collection, queries, new, deadline)
            truth = await self._search(collection, queries, exact, deadline)
            before = await self._search(
                collection, pairs.old[first : first + _QUERIES_PER_CALL], old, deadline
            )
            counted = tally(found, truth, own=own, k=k, shard_count=collection.shard_count)
            some = counted.expected > 0
            recalls += (counted.found[some] / counted.expected[some]).tolist()
            now_ids, old_ids = answers(found, own, k=k), answers(before, own, k=k)
            for now, then in zip(now_ids, old_ids, strict=True):
                if then:
                    overlaps.append(len(set(now) & set(then)) / len(then))
                order = rank_correlation(now, then)
                orders += [] if order is None else [order]
        return GateReport(
            number=migration.validations,
            at_s=at_s,
            queries=len(pairs.ids),
            k=k,
            recall=_mean(recalls),
            overlap=_mean(overlaps),
            rank_correlation=_mean(orders),
            latency_ratio=await self._latency_ratio(collection, pairs, old, new, deadline),
        )

    async def _sample(
        self, collection: Collection, migration: Migration, deadline: Deadline
    ) -> _Pairs:
        """Return up to `QUERIES` records, from a random place in each shard on."""
        draw = np.random.default_rng(migration.validations)
        each = -(-SAMPLED_MAX // collection.shard_count)
        wanted = -(-QUERIES // collection.shard_count)
        names = (migration.from_model, migration.to_model)
        projection = Projection(vector=True, models=names)
        ids: list[str] = []
        olds: list[Float32Matrix] = []
        news: list[Float32Matrix] = []
        for shard in range(collection.shard_count):
            width = (1 << 64) // collection.shard_count
            start = shard * width + int(draw.random() * width)
            left, seen = wanted, set[str]()
            for after_hash in (start, -1):  # the second run starts at the shard's beginning
                request = ScanRequest(
                    collection_id=collection.id,
                    shard=shard,
                    rows_max=each,
                    after_hash=after_hash,
                    projection=projection,
                )
                page = await self._reads.scan_shard(collection, request, deadline=deadline)
                old, new = (vectors_of(page.records, name) for name in names)
                if old is None or new is None:
                    continue
                both = np.flatnonzero(~(lacking(old) | lacking(new))).tolist()
                rows = [row for row in both if page.records.ids[row] not in seen][:left]
                seen.update(page.records.ids[row] for row in rows)
                ids += [page.records.ids[row] for row in rows]
                olds.append(old[rows])
                news.append(new[rows])
                left -= len(rows)
                if not left:
                    break
        if not ids:
            raise FailedPrecondition(
                f"of the sampled records of collection {collection.name!r} none has vectors of both"
                f" {names[0]!r} and {names[1]!r}",
                reason="NO_PAIRS",
            )
        return _Pairs(ids, np.concatenate(olds), np.concatenate(news))

    async def _latency_ratio(
        self,
        collection: Collection,
        pairs: _Pairs,
        old: SearchOptions,
        new: SearchOptions,
        deadline: Deadline,
    ) -> float:
        """Return the median time of single searches with the new model, by that with the old."""
        times: dict[str, list[float]] = {old.model: [], new.model: []}
        for row in range(min(TIMED_QUERIES, len(pairs.ids))):
            for vectors, options in ((pairs.old, old), (pairs.new, new)):
                began_s = self._clock()
                await self._search(collection, vectors[row : row + 1], options, deadline)
                times[options.model].append(self._clock() - began_s)
        return float(np.median(times[new.model]) / np.median(times[old.model]))

    async def _search(
        self,
        collection: Collection,
        queries: Float32Matrix,
        options: SearchOptions,
        deadline: Deadline,
    ) -> SearchAnswer:
        return await self._fanout.search(
            collection,
            np.ascontiguousarray(queries),
            options=options,
            deadline=deadline,
            consistency=Consistency.STRONG,
        )


def answers(answer: SearchAnswer, own: Sequence[str], *, k: int) -> list[list[str]]:
    """Return the ids of the best k hits of each query, without the query's own record."""
    ends = np.cumsum(answer.counts).tolist()
    found: list[list[str]] = []
    for record_id, (low, high) in zip(own, itertools.pairwise([0, *ends]), strict=True):
        found.append([one for one in answer.records.ids[low:high] if one != record_id][:k])
    return found


def rank_correlation(now: Sequence[str], then: Sequence[str]) -> float | None:
    """Return Kendall's tau of the ids that both lists have; None for fewer than two of them."""
    places = {one: place for place, one in enumerate(then)}
    ranks = [places[one] for one in now if one in places]
    pairs = list(itertools.combinations(ranks, 2))
    if not pairs:
        return None
    return sum(1 if first < second else -1 for first, second in pairs) / len(pairs)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
