"""Carrying out a plan on one segment, with exact comparison where a walk fell short."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from annheal.index import ABORTED, OK, ROW_MISSING, SCORE_MISSING, LiveBitmap, VectorIndex
from annheal.model.records import Float32Matrix
from annheal.shard_node.search.planner import PlanKind, SegmentPlan
from annheal.shard_node.search.threads import Hits, compare_matching, in_parts, query_parts

ScalarT = TypeVar("ScalarT", bound=np.generic)

NEAR_SHARE = 0.5
"""A plain walk is believed where at least this part of the expected rows in its beam is allowed."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Hits (n, k), rows compared over all queries, and how many queries were repeated exactly.

    FAISS's walks count by the plan's expectation.
    """

    hits: Hits
    visited: int
    repeated: int = 0


def run_plan(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap | None,
    threads: int = 1,
) -> Ran:
    """Answer `queries` (n, d) as planned; only rows of `live` (all when None) are returned.

    Fewer than k hits only where fewer than k rows are allowed. What FAISS does not do uses at
    most `threads` threads; for FAISS the caller has set their number.
    """
    n = len(queries)
    if live is None or plan.kind is PlanKind.SCAN:
        exact = plan.kind is not PlanKind.GRAPH
        hits = index.search(queries, k=k, ef=max(plan.ef, 1), live=live, exact=exact)
        allowed = index.rows if live is None else live.count
        if exact:
            return Ran(hits, n * allowed)
        # Parts of the graph may be out of reach, where many rows are equal for example.
        short = np.flatnonzero(hits[1][:, min(k, allowed) - 1] < 0)
        if len(short):
            asked = np.ascontiguousarray(queries[short])
            again = index.search(asked, k=k, ef=1, live=live, exact=True)
            hits[0][short], hits[1][short] = again
        return Ran(hits, n * plan.visited + len(short) * allowed, len(short))
    if plan.kind is PlanKind.IN_GRAPH:
        return _walk(index, plan, queries, k=k, live=live, threads=threads)
    if plan.kind is PlanKind.SELECTOR:
        return _select(index, plan, queries, k=k, live=live, threads=threads)
    hits = compare_matching(
        index, queries, matching=live, k=k, threads=threads, by_codes=plan.by_codes
    )
    return Ran(hits, n * live.count)


def _walk(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap,
    threads: int,
) -> Ran:
    walks = in_parts(
        query_parts(queries, threads=threads),
        lambda part: index.walk_filtered(
            part, k=k, ef=plan.ef, ef_far=plan.ef_far, matching=live, work_max=plan.work_max
        ),
    )
    hits = _joined([walk.scores for walk in walks]), _joined([walk.rows for walk in walks])
    status = _joined([walk.status for walk in walks])
    short = np.flatnonzero((status != OK) | (hits[1][:, min(k, live.count) - 1] < 0))
    visited = sum(int(walk.visited.sum()) for walk in walks)
    _compare(index, plan, queries, short, hits, k=k, live=live, threads=threads)
    return Ran(hits, visited + len(short) * live.count, len(short))


def _select(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    *,
    k: int,
    live: LiveBitmap,
    threads: int,
) -> Ran:
    """Walk without the filter, and keep what is allowed of the beam.

    How many of the beam's rows are allowed tells whether the query lies where rows match: if they
    are much fewer than overall, better rows may lie beyond the beam, and the query is asked anew.
    """
    kept = max(plan.ef, k)
    far = _far_queries(index, plan, queries, live=live)
    if far.all() and not plan.ef_far:
        hits = _missing(len(queries), k)
        every = np.arange(len(queries))
        _compare(index, plan, queries, every, hits, k=k, live=live, threads=threads)
        return Ran(hits, len(queries) * live.count, len(queries))
    near = np.flatnonzero(~far)
    hits = _missing(len(queries), k)
    asked = queries if len(near) == len(queries) else np.ascontiguousarray(queries[near])
    scores, rows = index.search(asked, k=kept, ef=kept)
    inside = (rows >= 0) & live.contains(np.maximum(rows, 0))
    expected = NEAR_SHARE * kept * live.count / index.rows
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
        _compare(index, plan, queries, again, hits, k=k, live=live, threads=threads)
        return Ran(hits, visited + len(again) * live.count, len(again))
    wider = replace(plan, kind=PlanKind.IN_GRAPH, ef=plan.ef_far)
    asked = np.ascontiguousarray(queries[again])
    walked = _walk(index, wider, asked, k=k, live=live, threads=threads)
    hits[0][again], hits[1][again] = walked.hits
    return Ran(hits, visited + walked.visited, walked.repeated)


def _far_queries(
    index: VectorIndex, plan: SegmentPlan, queries: Float32Matrix, *, live: LiveBitmap
) -> npt.NDArray[np.bool_]:
    """Return which queries lie where few rows are allowed: the plain walk would be for nothing."""
    if not plan.far_check:
        return np.zeros(len(queries), dtype=np.bool_)
    looked = index.walk_filtered(queries, k=1, ef=1, ef_far=0, matching=live)
    far: npt.NDArray[np.bool_] = looked.status == ABORTED
    return far


def _missing(n: int, k: int) -> Hits:
    return (
        np.full((n, k), SCORE_MISSING, dtype=np.float32),
        np.full((n, k), ROW_MISSING, dtype=np.int64),
    )


def _compare(
    index: VectorIndex,
    plan: SegmentPlan,
    queries: Float32Matrix,
    which: npt.NDArray[np.int64],
    hits: Hits,
    *,
    k: int,
    live: LiveBitmap,
    threads: int,
) -> None:
    """Replace the hits of some queries with exact ones."""
    if len(which):
        chosen = np.ascontiguousarray(queries[which])
        hits[0][which], hits[1][which] = compare_matching(
            index, chosen, matching=live, k=k, threads=threads, by_codes=plan.by_codes
        )


def _joined(parts: list[npt.NDArray[ScalarT]]) -> npt.NDArray[ScalarT]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
