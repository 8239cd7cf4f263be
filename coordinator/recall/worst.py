"""Finds the sampled live queries with the lowest recall, by merged answers of all shards.

The nodes hold the samples. Here each query is searched again, as it was asked and exactly, over all
shards, so that recall is that of the answer a user gets. Explained and exact searches are neither
sampled nor counted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import ask_nodes
from annheal.coordinator.data_path.fanout import Fanout
from annheal.coordinator.data_path.router import Router
from annheal.errors import AnnhealError
from annheal.filters import filter_key
from annheal.model.collection import Collection, Metric
from annheal.model.limits import SEARCH_HITS_MAX
from annheal.model.measures.recall import SelectivityBand
from annheal.model.measures.recall_worst import (
    HITS_SHOWN_MAX,
    REVIEWED_MAX,
    LiveQuery,
    ShownHit,
    WorstQuery,
    WorstReport,
)
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.runtime.deadline import Deadline

BATCH_QUERIES = 16
BUSY_SHARE = 0.25
"""Share of the time in which searches for a list run; between two batches it pauses."""
ANSWER_TIME_SHARE = 0.1
"""Of the caller's time, left for the answer."""
SCORE_TOLERANCE = 1e-6
"""Relative to the larger of 1 and the score."""


class WorstQueries:
    """Lists the worst queries of a collection."""

    def __init__(
        self, catalog: Catalog, router: Router, fanout: Fanout, *, timeout_s: float
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._fanout = fanout
        self._timeout_s = timeout_s

    async def find(
        self, collection: Collection, *, queries_max: int, deadline: Deadline
    ) -> WorstReport:
        """Return the worst sampled queries of each band that do not find everything.

        Searches up to `REVIEWED_MAX` queries, and ends in time. Raises what searches raise if not
        even the first queries could be searched.
        """
        asked = await ask_nodes(
            self._router,
            self._catalog.nodes(),
            lambda node: node.sampled_queries(collection.id),
            timeout_s=min(self._timeout_s, deadline.remaining_s),
            what="report its sampled queries",
        )
        sampled = distinct_queries(itertools.chain.from_iterable(asked.answers.values()))
        chosen = newest_of_each_band(sampled, queries_max=REVIEWED_MAX)
        reviewed = await search_again(self._fanout, collection, chosen, deadline=deadline)
        return WorstReport(
            collection.name,
            len(sampled),
            len(reviewed),
            worst_of(reviewed, queries_max=queries_max),
            dict(asked.errors),
        )


async def search_again(
    fanout: Fanout, collection: Collection, queries: Iterable[LiveQuery], *, deadline: Deadline
) -> list[WorstQuery]:
    """Search queries as they were asked and exactly; return the recall of those with a match.

    Ends in time, with as many as were searched by then. Raises what searches raise if not even the
    first ones could be searched.
    """
    until = Deadline.after(deadline.remaining_s * (1.0 - ANSWER_TIME_SHARE))
    reviewed: list[WorstQuery] = []
    rest_s = 0.0
    for batch in batches_of(queries):
        if reviewed and until.remaining_s <= 2.0 * rest_s:
            break
        await asyncio.sleep(min(rest_s, until.remaining_s / 2.0))
        began_s = time.perf_counter()
        try:
            reviewed += await _review(fanout, collection, batch, deadline=until)
        except AnnhealError:
            if not reviewed:
                raise
            break  # what is known by now is better than nothing
        rest_s = (time.perf_counter() - began_s) * (1.0 / BUSY_SHARE - 1.0)
    return reviewed


async def _review(
    fanout: Fanout, collection: Collection, batch: Sequence[LiveQuery], *, deadline: Deadline
) -> list[WorstQuery]:
    first = batch[0]
    vectors = np.ascontiguousarray(np.stack([one.vector for one in batch]))
    options = SearchOptions(
        k=first.k,
        filter=first.filter,
        ef=first.ef,
        recall_objective=first.objective,
        explain=True,
    )
    exact = replace(options, exact=True, ef=None, recall_objective=None)
    found = await fanout.search(collection, vectors, options=options, deadline=deadline)
    truth = await fanout.search(collection, vectors, options=exact, deadline=deadline)
    return [
        one
        for number, query in enumerate(batch)
        if (one := review(query, found, truth, number, metric=collection.model.metric))
    ]


def distinct_queries(queries: Iterable[LiveQuery]) -> list[LiveQuery]:
    """Return the different ones; several nodes sample the same query. The newest come first."""
    newest: dict[object, LiveQuery] = {}
    for one in sorted(queries, key=lambda query: query.asked_at_s):
        newest[(one.vector.tobytes(), *_asked(one))] = one
    return sorted(newest.values(), key=lambda query: -query.asked_at_s)


def newest_of_each_band(queries: Sequence[LiveQuery], *, queries_max: int) -> list[LiveQuery]:
    """Return at most `queries_max`, the newest of each band in turn."""
    by_band: Mapping[SelectivityBand, list[LiveQuery]] = defaultdict(list)
    for one in queries:
        by_band[one.band].append(one)
    turns = itertools.zip_longest(*by_band.values())
    in_turn = (one for turn in turns for one in turn if one is not None)
    return list(itertools.islice(in_turn, queries_max))


def batches_of(queries: Iterable[LiveQuery]) -> list[list[LiveQuery]]:
    """Return queries that can be searched together: equal k, filter, ef and objective."""
    together: dict[object, list[LiveQuery]] = defaultdict(list)
    for one in queries:
        together[_asked(one)].append(one)
    return [
        same[start : start + step]
        for same in together.values()
        for step in [max(1, min(BATCH_QUERIES, SEARCH_HITS_MAX // same[0].k))]
        for start in range(0, len(same), step)
    ]


def _asked(one: LiveQuery) -> tuple[object, ...]:
    key = b"" if one.filter is None else filter_key(one.filter)
    return one.k, key, one.ef, one.objective


def review(
    query: LiveQuery, found: SearchAnswer, truth: SearchAnswer, number: int, *, metric: Metric
) -> WorstQuery | None:
    """Return the recall of the query at position `number`; None if no record matches its filter.

    A hit counts if its score is at least that of the last true neighbour. As many true neighbours
    are missed as do not count; those with the best scores that were not returned are listed.
    """
    ids, scores = _hits(found, number)
    true_ids, true_scores = _hits(truth, number)
    if not true_ids:
        return None
    last = float(true_scores[-1])
    good = int(np.count_nonzero(scores >= last - SCORE_TOLERANCE * max(1.0, abs(last))))
    missing = max(0, len(true_ids) - good)
    returned = set(ids)
    absent = [place for place, name in enumerate(true_ids) if name not in returned][:missing]
    shown = _shown(metric)
    return WorstQuery(
        query,
        1.0 - missing / len(true_ids),
        tuple(ShownHit(ids[place], shown(scores[place])) for place in range(len(ids)))[
            :HITS_SHOWN_MAX
        ],
        tuple(ShownHit(true_ids[place], shown(true_scores[place])) for place in absent)[
            :HITS_SHOWN_MAX
        ],
        missing,
    )


def worst_of(reviewed: Iterable[WorstQuery], *, queries_max: int) -> tuple[WorstQuery, ...]:
    """Return the `queries_max` queries of each band with the lowest recall, below 1."""
    by_band: Mapping[SelectivityBand, list[WorstQuery]] = defaultdict(list)
    for one in reviewed:
        if one.recall < 1.0:
            by_band[one.query.band].append(one)
    return tuple(
        one
        for band in SelectivityBand
        for one in sorted(by_band[band], key=lambda one: (one.recall, -one.query.asked_at_s))[
            :queries_max
        ]
    )


def _shown(metric: Metric) -> Callable[[np.float32], float]:
    """Return how a score is shown: l2 scores are negated squared distances."""
    return (lambda score: 0.0 - float(score)) if metric is Metric.L2 else float


def _hits(answer: SearchAnswer, number: int) -> tuple[list[str], npt.NDArray[np.float32]]:
    start = int(answer.counts[:number].sum())
    end = start + int(answer.counts[number])
    return list(answer.records.ids[start:end]), answer.scores[start:end]
