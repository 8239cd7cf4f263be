"""Measures recall@k on request: stored vectors are the queries, exact answers the truth.

A neighbour counts as found if its score is at least the k-th exact score (within
`SCORE_TOLERANCE`): of several equally near records each counts. The query's own record is left out
of both answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from annheal.coordinator.data_path.fanout import Fanout
from annheal.coordinator.data_path.reads import Reads
from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.filters import validate_filter
from annheal.model.collection import Collection
from annheal.model.limits import K_MAX, SEARCH_HITS_MAX
from annheal.model.records import Float32Matrix, Projection, lacking
from annheal.model.search import Consistency, SearchAnswer, SearchOptions
from annheal.model.topology.cluster import RecallOptions, RecallReport, ShardRecall
from annheal.model.validation import validate_search_options
from annheal.model.write import ScanRequest
from annheal.recall.interval import mean_interval
from annheal.runtime.deadline import Deadline
from annheal.shards.routing import hash_ids, shards_of

SAMPLE_MAX = 10_000
SCORE_TOLERANCE = 1e-6
"""Relative to the larger of 1 and the score."""
_QUERIES_PER_CALL = 64
_TIMED_QUERIES = 20


@dataclass(frozen=True, slots=True)
class _Sample:
    ids: list[str]
    vectors: Float32Matrix


@dataclass(frozen=True, slots=True)
class _Tally:
    """True neighbours and found ones: by query (n,), and by the shard of the true neighbour."""

    expected: npt.NDArray[np.int64]
    found: npt.NDArray[np.int64]
    shard_expected: npt.NDArray[np.int64]
    shard_found: npt.NDArray[np.int64]


class RecallMeter:
    """Measures the recall of a collection on request."""

    def __init__(self, reads: Reads, fanout: Fanout) -> None:
        self._reads = reads
        self._fanout = fanout

    async def measure(
        self, collection: Collection, options: RecallOptions, *, deadline: Deadline
    ) -> RecallReport:
        """Return recall@k of the collection for a random sample of its own vectors as queries.

        Queries without a matching record are left out of the mean. Raises `InvalidArgument` for a k
        or a sample size out of range, `FailedPrecondition` when the collection has no records, and
        what searches raise.
        """
        k = options.k if options.k is not None else collection.settings.recall_k
        if not 1 <= k < K_MAX:
            raise InvalidArgument.of("k", f"{k} is not between 1 and {K_MAX - 1}")
        if not 1 <= options.sample_size <= SAMPLE_MAX:
            raise InvalidArgument.of(
                "sample_size", f"{options.sample_size} is not between 1 and {SAMPLE_MAX}"
            )
        wanted = options.filter
        canonical = None if wanted is None else validate_filter(wanted, collection.schema)
        # The nodes do not sample explained searches as live queries.
        approximate = SearchOptions(
            k=k + 1,
            filter=canonical,
            ef=options.ef,
            explain=True,
            model=collection.model.name if len(collection.models) > 1 else "",
        )
        validate_search_options(approximate, model=collection.model)
        sample = await self._sample(collection, options, deadline=deadline)
        exact = replace(approximate, exact=True, ef=None)
        tallies: list[_Tally] = []
        step = max(1, min(_QUERIES_PER_CALL, SEARCH_HITS_MAX // (k + 1)))
        for first in range(0, len(sample.ids), step):
            queries = sample.vectors[first : first + step]
            found = await self._search(collection, queries, approximate, deadline)
            truth = await self._search(collection, queries, exact, deadline)
            own = sample.ids[first : first + step]
            tallies.append(tally(found, truth, own=own, k=k, shard_count=collection.shard_count))
        timed = sample.vectors[:_TIMED_QUERIES]
        return _report(
            collection,
            tallies,
            k=k,
            approximate_p50_s=await self._p50(collection, timed, approximate, deadline),
            exact_p50_s=await self._p50(collection, timed, exact, deadline),
        )

    async def _sample(
        self, collection: Collection, options: RecallOptions, *, deadline: Deadline
    ) -> _Sample:
        """Return random records: from each shard a run in hash order from a random hash on.

        Those without a vector of the serving model are left out, so there may be fewer.
        """
        models = (collection.model.name,) if len(collection.models) > 1 else ()
        draw = np.random.default_rng(options.seed)
        count = collection.shard_count
        per_shard = draw.multinomial(options.sample_size, np.full(count, 1.0 / count))
        ids: list[str] = []
        vectors: list[Float32Matrix] = []
        for shard in range(count):
            low = -(-(shard << 64) // count)
            width = (1 << 64) // count
            start = low + int(draw.random() * width)
            rows = int(per_shard[shard])
            for after_hash in (start, -1):  # the second run starts at the shard's beginning
                if rows <= 0:
                    break
                page = await self._reads.scan_shard(
                    collection,
                    ScanRequest(
                        collection_id=collection.id,
                        shard=shard,
                        rows_max=rows,
                        after_hash=min(after_hash, (1 << 64) - 1),
                        projection=Projection(attributes=(), vector=True, models=models),
                    ),
                    deadline=deadline,
                )
                known = set(ids)
                found = page.records
                fresh = [n for n, one in enumerate(found.ids) if one not in known]
                rows -= len(fresh)
                if fresh and found.vectors is not None:
                    absent = lacking(found.vectors)
                    fresh = [n for n in fresh if not absent[n]]
                    ids += [found.ids[n] for n in fresh]
                    vectors.append(found.vectors[fresh])
        if not ids:
            raise FailedPrecondition(
                f"collection {collection.name!r} holds no records to measure recall with",
                reason="COLLECTION_EMPTY",
            )
        return _Sample(ids, np.concatenate(vectors))

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

    async def _p50(
        self,
        collection: Collection,
        queries: Float32Matrix,
        options: SearchOptions,
        deadline: Deadline,
    ) -> float:
        times: list[float] = []
        for row in range(len(queries)):
            began = time.perf_counter()
            await self._search(collection, queries[row : row + 1], options, deadline)
            times.append(time.perf_counter() - began)
        return float(np.median(times))


def tally(
    found: SearchAnswer, truth: SearchAnswer, *, own: Sequence[str], k: int, shard_count: int
) -> _Tally:
    """Return how many of the true neighbours were found, by query and by shard.

    Both answers have up to k + 1 hits for each query, of which the query's own record is dropped.
    `own` are the ids of the queries' records.
    """
    expected = np.zeros(len(own), dtype=np.int64)
    hits = np.zeros(len(own), dtype=np.int64)
    shard_expected = np.zeros(shard_count, dtype=np.int64)
    shard_found = np.zeros(shard_count, dtype=np.int64)
    starts = (_starts(found), _starts(truth))
    for query, record_id in enumerate(own):
        got_ids, got_scores = _hits(found, starts[0], query, without=record_id, k=k)
        true_ids, true_scores = _hits(truth, starts[1], query, without=record_id, k=k)
        if not true_ids:
            continue
        kth = float(true_scores[-1])
        good = got_scores >= kth - SCORE_TOLERANCE * max(1.0, abs(kth))
        expected[query] = len(true_ids)
        hits[query] = min(int(good.sum()), len(true_ids))
        shards = shards_of(hash_ids(true_ids), shard_count=shard_count)
        got = set(got_ids)
        ties = int(good.sum()) - sum(1 for one in true_ids if one in got)
        for shard, one, score in zip(shards.tolist(), true_ids, true_scores, strict=True):
            shard_expected[shard] += 1
            tied = abs(float(score) - kth) <= SCORE_TOLERANCE * max(1.0, abs(kth))
            if one in got:
                shard_found[shard] += 1
            elif tied and ties > 0:
                shard_found[shard] += 1
                ties -= 1
    return _Tally(expected, hits, shard_expected, shard_found)


def _report(
    collection: Collection,
    tallies: Sequence[_Tally],
    *,
    k: int,
    approximate_p50_s: float,
    exact_p50_s: float,
) -> RecallReport:
    expected = np.concatenate([one.expected for one in tallies])
    found = np.concatenate([one.found for one in tallies])
    counted = expected > 0
    # If no query has a true neighbour, nothing was missed: recall 1.
    values = found[counted] / expected[counted] if counted.any() else np.ones(1)
    interval = mean_interval(values)
    shard_expected = np.sum([one.shard_expected for one in tallies], axis=0)
    shard_found = np.sum([one.shard_found for one in tallies], axis=0)
    return RecallReport(
        recall=interval.mean,
        recall_low=interval.low,
        recall_high=interval.high,
        queries=int(counted.sum()),
        k=k,
        recall_objective=collection.settings.recall_objective,
        approximate_p50_s=approximate_p50_s,
        exact_p50_s=exact_p50_s,
        shards=tuple(
            ShardRecall(
                shard=shard,
                recall=float(shard_found[shard] / count) if count else 1.0,
                expected=int(count),
            )
            for shard, count in enumerate(shard_expected.tolist())
        ),
    )


def _starts(answer: SearchAnswer) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(answer.counts)]).astype(np.int64)


def _hits(
    answer: SearchAnswer, starts: npt.NDArray[np.int64], query: int, *, without: str, k: int
) -> tuple[list[str], npt.NDArray[np.float32]]:
    low, high = int(starts[query]), int(starts[query + 1])
    rows = [row for row in range(low, high) if answer.records.ids[row] != without][:k]
    return [answer.records.ids[row] for row in rows], answer.scores[rows]
