"""Measures the recall curve of a graph, with queries that are not in the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.bands import mean_visited
from annheal.compactor.build.reaches import REACH_QUERIES, with_reaches
from annheal.compactor.build.recalls import best_scores, recalls_of
from annheal.compactor.build.slices import queries_walked, slices
from annheal.index import VectorIndex
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import IndexKind
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.segment import RecallPoint, Segment

HELD_OUT_MAX = 1_000
"""Held-out rows of a build. They give a recall of 0.95 at k 10 a standard error of about 0.004."""
EF_LADDER = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512)
EF_LIMIT = EF_LADDER[-1]
K_LADDER = (1, 100, 1_000)
"""Recall is measured at these k, and at the collection's."""

HELD_OUT_SHARE_MAX = 0.1
"""Share of the rows that is held out, so that the measured graph has nearly all rows."""
LONG_WALK_QUERIES = 250
"""Queries that measure long walks: those from k 100 on, and those above `SHORT_WALK_EF_MAX`."""
SHORT_WALK_EF_MAX = 128
WIDEST_QUERIES = 25
"""Queries that measure recall@1000. That of one query varies little: 0.988 with a standard error of
0.001 for 100 of them, on 30,000 package embeddings."""
WIDE_K, WIDE_EFS_PER_K = 128, (1.0, 1.4, 2.0, 2.8, 4.0)
"""From this k on the values of ef are these multiples of k instead of `EF_LADDER`."""
CURVE_END_RECALL = 0.998
"""A curve ends at the first point that reaches this: nothing is gained by a larger ef."""
WIDE_END_RECALL = 0.98
"""The same above `WIDE_K`, where a point takes a second. With a higher objective than the curve
reaches a search compares all rows."""

LOGGED_MIN = 32
"""With fewer logged queries the curve is measured with held-out rows alone."""
HARDER_Z = 2.576
"""Logged queries are harder if they are lower by more standard errors than this: 1 % by chance."""

OWN_ROWS = 100
"""Rows of a graph that are used as queries by `own_recall`."""
DAMAGE_RECALL_LOSS = 0.05
"""A graph is damaged if the recall for its own rows is this much below its recall curve."""


def held_out_count(rows: int) -> int:
    """Return how many of `rows` rows are held out to measure the graph of the others."""
    return min(HELD_OUT_MAX, int(rows * HELD_OUT_SHARE_MAX))


def recall_of(found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    """Return the mean of `recalls_of`."""
    return float(recalls_of(found, truth).mean())


@dataclass(frozen=True, slots=True)
class Calibration:
    """The recall curves of a graph.

    Attributes:
        curve: the curve that is stored, from which nodes choose ef.
        held_out: the curve of the held-out rows alone; the same unless logged queries are harder.
        queries: (n, d) queries to measure recall under filters with.
    """

    curve: tuple[RecallPoint, ...]
    held_out: tuple[RecallPoint, ...]
    queries: Float32Matrix

    @property
    def logged_are_harder(self) -> bool:
        """Whether logged queries lowered the curve."""
        return self.curve != self.held_out


def calibrate(
    index: VectorIndex,
    held_out: Float32Matrix,
    *,
    k: int,
    logged_queries: Float32Matrix | None = None,
    yield_point: YieldPoint = no_yield_point,
) -> Calibration:
    """Measure the recall curve of `index` with `held_out` rows (n, d) and `logged_queries` (m, d).

    Logged queries may be unlike the rows. If their recall is significantly lower at any ef, the
    curve is the lower of the two at each ef. Otherwise it is that of the held-out rows, which are
    more. Logged queries are ignored if there are fewer than `LOGGED_MIN`.
    """
    curve_held_out = measure_recall(index, held_out, k=k, yield_point=yield_point)
    if logged_queries is None or len(logged_queries) < LOGGED_MIN:
        return Calibration(curve_held_out, curve_held_out, held_out)
    curve_logged = measure_recall(index, logged_queries, k=k, yield_point=yield_point)
    curve = lower_curve(curve_held_out, curve_logged)
    if curve == curve_held_out:
        return Calibration(curve_held_out, curve_held_out, held_out)
    return Calibration(curve, curve_held_out, np.concatenate([logged_queries, held_out]))


def lower_curve(
    held_out: Sequence[RecallPoint], logged: Sequence[RecallPoint]
) -> tuple[RecallPoint, ...]:
    """Return the lower curve at each ef if `logged` is significantly lower, else `held_out`.

    This is decided for each k apart. Beyond the end of one curve, where it has reached
    `CURVE_END_RECALL`, the points are those of the other.
    """
    points: list[RecallPoint] = []
    for k in sorted({point.k for point in held_out}):
        by_ef = {point.ef: point for point in held_out if point.k == k}
        logged_by_ef = {point.ef: point for point in logged if point.k == k}
        if any(ef in by_ef and _is_below(point, by_ef[ef]) for ef, point in logged_by_ef.items()):
            for ef in sorted(by_ef.keys() | logged_by_ef.keys()):
                both = [curve[ef] for curve in (by_ef, logged_by_ef) if ef in curve]
                points.append(min(both, key=lambda point: point.recall))
        else:
            points += by_ef.values()
    return tuple(points)


def _is_below(logged: RecallPoint, held_out: RecallPoint) -> bool:
    """Return whether `logged` is lower by more than `HARDER_Z` standard errors."""
    error = float(np.hypot(logged.error, held_out.error))
    return held_out.recall - logged.recall > HARDER_Z * error


def measure_recall(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    k: int,
    yield_point: YieldPoint = no_yield_point,
) -> tuple[RecallPoint, ...]:
    """Return recall@`k` and recall at each k of `K_LADDER`, by ascending k and ef.

    `queries` (n, d) must not be rows of the index: links would lead straight to them. Recall@1
    comes from the searches for `k`. Long walks are measured with the first `LONG_WALK_QUERIES` of
    the queries, those for k 1,000 with `WIDEST_QUERIES`. A k above the number of rows is left out,
    and each curve ends at `CURVE_END_RECALL`. Points have the reach of adaptive walks with the same
    recall (`with_reaches`), but for k 1, whose searches are those for `k`, and above `WIDE_K`.
    """
    curves: dict[int, list[RecallPoint]] = {}
    if k <= index.rows:
        curves |= _curves(index, queries, ks=sorted({1, k}), yield_point=yield_point)
    for other in K_LADDER:
        if other not in curves and other <= index.rows:
            few = LONG_WALK_QUERIES if other < K_LADDER[-1] else WIDEST_QUERIES
            curves |= _curves(index, queries[:few], ks=[other], yield_point=yield_point)
    return tuple(point for point_k in sorted(curves) for point in curves[point_k])


def ef_ladder(k: int) -> tuple[int, ...]:
    """Return the values of ef that recall@`k` is measured at, ascending, none below `k`."""
    if k > WIDE_K:
        return tuple(math.ceil(k * times) for times in WIDE_EFS_PER_K)
    return tuple(ef for ef in EF_LADDER if ef >= k)


def _curves(
    index: VectorIndex, queries: Float32Matrix, *, ks: Sequence[int], yield_point: YieldPoint
) -> dict[int, list[RecallPoint]]:
    """Return the recall curve of each of `ks`, ascending, from searches for the last of them."""
    widest = ks[-1]
    end = WIDE_END_RECALL if widest > WIDE_K else CURVE_END_RECALL
    truth = best_scores(index, queries, k=widest, yield_point=yield_point)
    curves: dict[int, list[RecallPoint]] = {k: [] for k in ks}
    open_ks, of_few = list(ks), list[float]()
    for ef in ef_ladder(widest):
        count = len(queries) if ef <= SHORT_WALK_EF_MAX else LONG_WALK_QUERIES
        found = walked_scores(index, queries[:count], k=widest, ef=ef, yield_point=yield_point)
        visited = 0.0
        if widest <= WIDE_K:
            visited = mean_visited(index, queries, ef=ef, k=widest, yield_point=yield_point)
        for k in tuple(open_ks):
            recalls = recalls_of(found[:, :k], truth[:count, :k])
            error = float(recalls.std() / np.sqrt(len(recalls)))
            recall = round(float(recalls.mean()), 4)
            curves[k].append(RecallPoint(k, ef, recall, round(error, 5), visited=visited))
            if k == widest:
                of_few.append(float(recalls[:REACH_QUERIES].mean()))
            if recall >= end:
                open_ks.remove(k)
        if not open_ks:
            break
    if widest <= WIDE_K:
        curves[widest] = with_reaches(
            index, queries, truth, curves[widest], recalls=of_few, yield_point=yield_point
        )
    return curves


def walked_scores(
    index: VectorIndex, queries: Float32Matrix, *, k: int, ef: int, yield_point: YieldPoint
) -> npt.NDArray[np.float32]:
    """Return the scores (n, k) that walks of `queries` (n, d) with beam width `ef` find."""
    return np.concatenate(
        [
            index.search(queries[part], k=k, ef=ef)[0]
            for part in slices(len(queries), queries_walked(ef), yield_point)
        ]
    )


def meets_objective(curve: Sequence[RecallPoint], *, k: int, objective: float) -> bool:
    """Return whether some ef of `ef_ladder` reaches `objective` at `k`."""
    limit = ef_ladder(k)[-1]
    return any(
        point.k == k and not point.band and point.ef <= limit and point.recall >= objective
        for point in curve
    )


def own_recall(
    index: VectorIndex, *, k: int, ef: int = EF_LIMIT, yield_point: YieldPoint = no_yield_point
) -> float:
    """Return the mean recall@`k` at `ef` of `OWN_ROWS` rows of the index, used as queries.

    The rows are random but always the same for the same number of rows, so that one graph always
    gives one result. A sound graph finds its own rows more easily than other queries, unless many
    of its vectors are equal: such rows link only to one another, and a walk does not leave them.
    """
    count = min(index.rows, OWN_ROWS)
    chosen = np.random.default_rng(index.rows).choice(index.rows, count, replace=False)
    queries = index.reconstruct(chosen.astype(np.int64))
    found = walked_scores(index, queries, k=k, ef=ef, yield_point=yield_point)
    return recall_of(found, best_scores(index, queries, k=k, yield_point=yield_point))


def misses_own_rows(
    index: VectorIndex,
    curve: Sequence[RecallPoint],
    *,
    yield_point: YieldPoint = no_yield_point,
) -> bool:
    """Return whether the recall for own rows is `DAMAGE_RECALL_LOSS` below the end of `curve`."""
    unfiltered = [point for point in curve if not point.band]
    # A row is itself its nearest one: recall@1 of own rows is high in a damaged graph too.
    k = min((point.k for point in unfiltered if point.k > 1), default=1)
    last = max((point for point in unfiltered if point.k == k), key=lambda point: point.ef)
    recall = own_recall(index, k=k, ef=last.ef, yield_point=yield_point)
    return recall < last.recall - DAMAGE_RECALL_LOSS


def is_damaged(segment: Segment, *, yield_point: YieldPoint = no_yield_point) -> bool:
    """Return whether the graph of a segment has a lower recall than its curve says.

    False for a flat index, and for one without a curve. A build never writes such a graph, so it
    was damaged later.
    """
    if segment.kind is not IndexKind.HNSW or not segment.recall_curve:
        return False
    return misses_own_rows(segment.index, segment.recall_curve, yield_point=yield_point)
