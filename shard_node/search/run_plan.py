"""Carrying out a plan on one segment, with exact comparison where a walk fell short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from annheal.index import (
    ABORTED,
    OK,
    ROW_MISSING,
    SCORE_MISSING,
    LiveBitmap,
    VectorIndex,
    best_columns,
)
from annheal.index.hits.ranking import IdsOf
from annheal.model.records import Float32Matrix
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.shard_node.search.planner import PlanKind, SegmentPlan
from annheal.shard_node.search.slices import (
    SLICE_COMPARISONS,
    SLICE_EF,
    Hits,
    joined,
    queries_per_slice,
    query_slices,
    scan_in_slices,
)
from annheal.shard_node.search.threads import (
    ONE_THREAD,
    SearchThreads,
    compare_matching,
    query_parts,
)

ScalarT = TypeVar("ScalarT", bound=np.generic)
IdsAt = Callable[[npt.NDArray[np.int64]], Sequence[str]]
"""Returns the ids of rows of the segment."""

WALKS = (PlanKind.GRAPH, PlanKind.SELECTOR, PlanKind.IN_GRAPH)
NEAR_SHARE = 0.5
"""A plain walk is believed where at least this part of the expected rows in its beam is allowed."""

TIES_FACTOR, TIES_MAX = 8, 4_096
"""A query whose last hit ties is asked for so many times as many hits, up to so many more than k.
Of more equal scores in one segment, those with the lowest ids may be missing."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Hits (n, k), rows compared over all queries, and how many queries were repeated exactly.

    FAISS's walks count by the plan's expectation.
    """

    hits: Hits
    visited: int
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class _Walks:
    """Walks of one segment that end in exact comparison where they fall short."""

    index: VectorIndex
    plan: SegmentPlan
    k: int
    live: LiveBitmap
    threads: SearchThreads
    yield_point: YieldPoint


def run_plan(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap | None,
    ids_at: IdsAt,
    threads: SearchThreads = ONE_THREAD,
    yield_point: YieldPoint = no_yield_point,
) -> Ran:
    """Answer `queries` (n, d) as planned; only rows of `live` (all when None) are returned.

    Fewer than k hits only where fewer than k rows are allowed. Scores are those of
    `VectorIndex.scores`, equal ones are ordered by id (`ids_at` names rows). What FAISS does not do
    uses at most `threads`; for FAISS the caller has set their number. `yield_point` is called
    before each slice of a few milliseconds.

    One hit more than k is looked for. Where it scores as well as the last of the k, others may
    too, and the query is asked for more.
    """
    within = index.graph_rows(live)
    if live is None and plan.kind is PlanKind.GRAPH:
        within = None  # a walk meets no copies
    allowed = index.graph_size if within is None else within.count
    ranking = _Ranking(index, plan, k, live, ids_at)
    width = k + 1
    ran = _answer(
        index, plan, queries, k=width, live=within, threads=threads, yield_point=yield_point
    )
    best, tied = ranking.best_of(queries, ran.hits, yield_point)
    visited = ran.visited
    while len(tied) and width < min(allowed, k + TIES_MAX):
        width = min(allowed, k + TIES_MAX, TIES_FACTOR * width)
        asked = np.ascontiguousarray(queries[tied])
        more = _answer(
            index, plan, asked, k=width, live=within, threads=threads, yield_point=yield_point
        )
        visited += more.visited
        found, still = ranking.best_of(asked, more.hits, yield_point)
        best[0][tied], best[1][tied] = found
        tied = tied[still]
    return Ran(best, visited, ran.repeated)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Orders what a plan found of one segment by score and id; `live` as in `run_plan`."""

    index: VectorIndex
    plan: SegmentPlan
    k: int
    live: LiveBitmap | None
    ids_at: IdsAt

    def best_of(
        self, queries: Float32Matrix, hits: Hits, yield_point: YieldPoint
    ) -> tuple[Hits, npt.NDArray[np.int64]]:
        """Return the best k of more than k hits, and the queries whose last hit ties.

        Such a query may have hits as good as its last one that are not among `hits`. `yield_point`
        is called before each few queries, where there are many hits.
        """
        rows = hits[1]
        size = queries_per_slice(rows.shape[1], budget=SLICE_COMPARISONS)
        if len(queries) <= size:
            yield_point()
            return self._best_of(queries, rows)
        best: list[Hits] = []
        tied: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(queries), size):
            yield_point()
            part = slice(start, start + size)
            found, still = self._best_of(queries[part], rows[part])
            best.append(found)
            tied.append(still + start)
        return joined(best), _joined(tied)

    def _best_of(
        self, queries: Float32Matrix, rows: npt.NDArray[np.int64]
    ) -> tuple[Hits, npt.NDArray[np.int64]]:
        k = self.k
        scores = self.index.scores(queries, rows)
        with_copies = self.index.with_copies(rows, scores, k=k, live=self.live)
        if with_copies is rows and (scores[:, :-1] > scores[:, 1:]).all():
            # Nothing to order, as in most answers; the last hit of all is the worst.
            best, worst = (scores[:, :k], rows[:, :k]), scores[:, -1]
        else:
            worst = scores.min(axis=1)
            if with_copies is not rows:
                rows, scores = with_copies, self.index.scores(queries, with_copies)
            columns = best_columns(scores, k=k, ids_of=_names_of(rows, self.ids_at))
            best = np.take_along_axis(scores, columns, axis=1), np.take_along_axis(rows, columns, 1)
        last = best[0][:, -1]
        errors = self.index.score_errors(queries, last, exact=self.plan.kind not in WALKS)
        tied = (last - 2 * errors <= worst) & (worst > -np.inf)
        return best, tied.nonzero()[0]


def _names_of(rows: npt.NDArray[np.int64], ids_at: IdsAt) -> IdsOf:
    return lambda queries, columns: ids_at(rows[queries, columns])


def _answer(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap | None,
    threads: SearchThreads,
    yield_point: YieldPoint,
) -> Ran:
    if plan.kind is PlanKind.SCAN or (live is None and plan.kind is not PlanKind.GRAPH):
        allowed = index.rows if live is None else live.count
        hits = scan_in_slices(index, queries, k=k, live=live, yield_point=yield_point)
        return Ran(hits, len(queries) * allowed)
    if live is not None and plan.kind in (PlanKind.ROWS, PlanKind.SHORTLIST):
        hits = compare_matching(
            index,
            queries,
            matching=live,
            k=k,
            threads=threads,
            by_codes=plan.by_codes,
            yield_point=yield_point,
        )
        return Ran(hits, len(queries) * live.count)

    def run(part: Float32Matrix) -> Ran:
        if live is None:
            return _walk_all(index, plan, part, k=k, threads=threads, yield_point=yield_point)
        walks = _Walks(index, plan, k, live, threads, yield_point)
        if plan.kind is PlanKind.GRAPH:
            return _walk_live(walks, part)
        return _walk(walks, part) if plan.kind is PlanKind.IN_GRAPH else _select(walks, part)

    beam = max(plan.ef, plan.ef_far, k)
    size = threads.count * queries_per_slice(beam, budget=SLICE_EF)
    return _together([run(part) for part in query_slices(queries, size, yield_point)])


def _together(slices: list[Ran]) -> Ran:
    if len(slices) == 1:
        return slices[0]
    return Ran(
        joined([one.hits for one in slices]),
        sum(one.visited for one in slices),
        sum(one.repeated for one in slices),
    )


def _walk_all(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    threads: SearchThreads,
    yield_point: YieldPoint,
) -> Ran:
    """Walk the graph where every row is allowed."""
    if plan.reach is None:
        hits = index.search(queries, k=k, ef=max(plan.ef, 1))
        visited = len(queries) * plan.visited
    else:
        hits, visited = _adaptive(index, plan, queries, k=k, live=None, threads=threads)
    # Parts of the graph may be out of reach, where many rows are equal for example.
    short = np.flatnonzero(hits[1][:, min(k, index.graph_size) - 1] < 0)
    if len(short):
        asked = np.ascontiguousarray(queries[short])
        every = index.graph_rows(None)
        again = scan_in_slices(index, asked, k=k, live=every, yield_point=yield_point)
        hits[0][short], hits[1][short] = again
    return Ran(hits, visited + len(short) * index.graph_size, len(short))


def _walk_live(walks: _Walks, queries: Float32Matrix) -> Ran:
    """Walk the graph where few rows are dead, with the plan's reach."""
    k, live = walks.k, walks.live
    hits, visited = _adaptive(
        walks.index, walks.plan, queries, k=k, live=live, threads=walks.threads
    )
    short = np.flatnonzero(hits[1][:, min(k, live.count) - 1] < 0)
    _compare(walks, queries, short, hits)
    return Ran(hits, visited + len(short) * live.count, len(short))


def _adaptive(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap | None,
    threads: SearchThreads,
) -> tuple[Hits, int]:
    """Return hits of walks whose width adapts, and how many rows they compared."""
    reach = plan.reach
    if reach is None:
        raise ValueError(f"a {plan.kind} plan without a reach, for {index.rows} rows")
    walks = threads.run(
        query_parts(queries, threads=threads.count),
        lambda part: index.walk_adaptive(part, k=k, ef=plan.ef, reach=reach, live=live),
    )
    hits = _joined([walk.scores for walk in walks]), _joined([walk.rows for walk in walks])
    return hits, sum(int(walk.visited.sum()) for walk in walks)


def _walk(walks: _Walks, queries: Float32Matrix) -> Ran:
    plan, k, live = walks.plan, walks.k, walks.live
    ran = walks.threads.run(
        query_parts(queries, threads=walks.threads.count),
        lambda part: walks.index.walk_filtered(
            part, k=k, ef=plan.ef, ef_far=plan.ef_far, matching=live, work_max=plan.work_max
        ),
    )
    hits = _joined([walk.scores for walk in ran]), _joined([walk.rows for walk in ran])
    status = _joined([walk.status for walk in ran])
    short = np.flatnonzero((status != OK) | (hits[1][:, min(k, live.count) - 1] < 0))
    visited = sum(int(walk.visited.sum()) for walk in ran)
    _compare(walks, queries, short, hits)
    return Ran(hits, visited + len(short) * live.count, len(short))


def _select(walks: _Walks, queries: Float32Matrix) -> Ran:
    """Walk without the filter, and keep what is allowed of the beam.

    How many of the beam's rows are allowed tells whether the query lies where rows match: if they
    are much fewer than overall, better rows may lie beyond the beam, and the query is asked anew.
    """
    index, plan, k, live = walks.index, walks.plan, walks.k, walks.live
    kept = max(plan.ef, k)
    far = _far_queries(walks, queries)
    if far.all() and not plan.ef_far:
        hits = _missing(len(queries), k)
        every = np.arange(len(queries))
        _compare(walks, queries, every, hits)
        return Ran(hits, len(queries) * live.count, len(queries))
    near = np.flatnonzero(~far)
    hits = _missing(len(queries), k)
    asked = queries if len(near) == len(queries) else np.ascontiguousarray(queries[near])
    scores, rows = index.search(asked, k=kept, ef=kept)
    inside = (rows >= 0) & live.contains(np.maximum(rows, 0))
    expected = NEAR_SHARE * kept * live.count / index.graph_size
    few = inside.sum(axis=1) < max(min(k, live.count), expected)
    first = np.argsort(~inside, axis=1, kind="stable")[:, :k]
    allowed = np.take_along_axis(inside, first, axis=1)
    hits[0][near] = np.where(allowed, np.take_along_axis(scores, first, axis=1), SCORE_MISSING)
    hits[1][near] = np.where(allowed, np.take_along_axis(rows, first, axis=1), ROW_MISSING)
    visited = len(near) * plan.visited
    again = np.flatnonzero(far)
    if few.any():
        again = np.union1d(again, near[few])
    if not len(again):
        return Ran(hits, visited)
    if not plan.ef_far:
        _compare(walks, queries, again, hits)
        return Ran(hits, visited + len(again) * live.count, len(again))
    wider = replace(walks, plan=replace(plan, kind=PlanKind.IN_GRAPH, ef=plan.ef_far))
    asked = np.ascontiguousarray(queries[again])
    walked = _walk(wider, asked)
    hits[0][again], hits[1][again] = walked.hits
    return Ran(hits, visited + walked.visited, walked.repeated)


def _far_queries(walks: _Walks, queries: Float32Matrix) -> npt.NDArray[np.bool_]:
    """Return which queries lie where few rows are allowed: the plain walk would be for nothing."""
    if not walks.plan.far_check:
        return np.zeros(len(queries), dtype=np.bool_)
    looked = walks.index.walk_filtered(queries, k=1, ef=1, ef_far=0, matching=walks.live)
    far: npt.NDArray[np.bool_] = looked.status == ABORTED
    return far


def _missing(n: int, k: int) -> Hits:
    return (
        np.full((n, k), SCORE_MISSING, dtype=np.float32),
        np.full((n, k), ROW_MISSING, dtype=np.int64),
    )


def _compare(
    walks: _Walks, queries: Float32Matrix, which: npt.NDArray[np.int64], hits: Hits
) -> None:
    """Replace the hits of some queries with exact ones."""
    if len(which):
        chosen = np.ascontiguousarray(queries[which])
        hits[0][which], hits[1][which] = compare_matching(
            walks.index,
            chosen,
            matching=walks.live,
            k=walks.k,
            threads=walks.threads,
            by_codes=walks.plan.by_codes,
            yield_point=walks.yield_point,
        )


def _joined(parts: list[npt.NDArray[ScalarT]]) -> npt.NDArray[ScalarT]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
