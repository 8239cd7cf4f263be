"""Carrying out a plan on one segment, with exact comparison where a walk fell short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from annheal.index import OK, LiveBitmap, VectorIndex
from annheal.model.records import Float32Matrix
from shard_node.planner import PlanKind, SegmentPlan
from shard_node.split import Hits, compare_matching, in_parts, query_parts

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
    hits = compare_matching(index, queries, matching=live, k=k, threads=threads)
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
    _compare(index, queries, short, hits, k=k, live=live, threads=threads)
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
    scores, rows = index.search(queries, k=kept, ef=kept)
    inside = (rows >= 0) & live.contains(np.maximum(rows, 0))
    expected = NEAR_SHARE * kept * live.count / index.rows
    few = np.flatnonzero(inside.sum(axis=1) < max(min(k, live.count), expected))
    first = np.argsort(~inside, axis=1, kind="stable")[:, :k]
    allowed = np.take_along_axis(inside, first, axis=1)
    best = np.where(allowed, np.take_along_axis(scores, first, axis=1), np.float32(-np.inf))
    best_rows = np.where(allowed, np.take_along_axis(rows, first, axis=1), -1)
    hits = (best, best_rows)
    visited = len(queries) * plan.visited
    if not len(few):
        return Ran(hits, visited)
    if not plan.ef_far:
        _compare(index, queries, few, hits, k=k, live=live, threads=threads)
        return Ran(hits, visited + len(few) * live.count, len(few))
    wider = SegmentPlan(PlanKind.IN_GRAPH, plan.ef_far, plan.ef_far, plan.work_max)
    asked = np.ascontiguousarray(queries[few])
    again = _walk(index, wider, asked, k=k, live=live, threads=threads)
    hits[0][few], hits[1][few] = again.hits
    return Ran(hits, visited + again.visited, again.repeated)


def _compare(
    index: VectorIndex,
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
            index, chosen, matching=live, k=k, threads=threads
        )


def _joined(parts: list[npt.NDArray[ScalarT]]) -> npt.NDArray[ScalarT]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
