"""Measuring recall against ef, with queries that the graph has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.bands import plain_visits
from annheal.compactor.build.recalls import best_scores, recalls_of
from annheal.index import VectorIndex
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import IndexKind
from annheal.segment import RecallPoint, Segment

PROBES = 1_000
"""Held-out queries. The standard error of a recall of 0.95 at k 10 is then about 0.4 points."""
EF_LADDER = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512)
EF_LIMIT = EF_LADDER[-1]
K_WIDE = 100
"""Recall is measured at the collection's k and at this one, for callers who ask for more."""

PROBES_SHARE_MAX = 0.1
"""Of a small segment's rows, so that the graph that is measured is nearly the whole one."""
PROBES_FEW = 250
"""Probes where a walk is long: for the wide k, and for beams wider than `EF_SHORT_MAX`."""
EF_SHORT_MAX = 128
RECALL_FULL = 0.998
"""A curve ends here; a wider beam than that is not worth its measuring."""

LOGGED_MIN = 32
"""Fewer live queries say nothing about a curve."""
HARDER_Z = 2.576
"""Live queries are harder when chance explains it in less than one case of a hundred."""

OWN_PROBES = 100
"""Rows of a graph that it is asked for itself."""
DAMAGE_RECALL = 0.05
"""A graph that finds so much less than its recall curve says is damaged."""


def probe_count(rows: int) -> int:
    """Return how many of `rows` rows are held out to measure the graph of the others."""
    return min(PROBES, int(rows * PROBES_SHARE_MAX))


def recall_of(found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    """Return the mean of `recalls_of`."""
    return float(recalls_of(found, truth).mean())


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of a graph. `probes` (n, d) are the queries to measure filters with.

    `curve` is what the node will go by; `held_out` what rows alone say, the same unless live
    queries are harder.
    """

    curve: tuple[RecallPoint, ...]
    held_out: tuple[RecallPoint, ...]
    probes: Float32Matrix

    @property
    def live_are_harder(self) -> bool:
        """Whether live queries decided."""
        return self.curve != self.held_out


def calibrate(
    index: VectorIndex, held_out: Float32Matrix, *, k: int, logged: Float32Matrix | None = None
) -> Calibration:
    """Measure recall with `held_out` rows (n, d) and, if there are enough, `logged` live queries.

    Live queries may be of another kind than rows. Where they miss more than chance explains at any
    ef, the curve is the lower of the two at each; otherwise the many rows are the better measure.
    """
    rows = measure_recall(index, held_out, k=k)
    if logged is None or len(logged) < LOGGED_MIN:
        return Calibration(rows, rows, held_out)
    curve = harder_curve(rows, measure_recall(index, logged, k=k))
    if curve == rows:
        return Calibration(rows, rows, held_out)
    return Calibration(curve, rows, np.concatenate([logged, held_out]))


def harder_curve(
    held_out: Sequence[RecallPoint], live: Sequence[RecallPoint]
) -> tuple[RecallPoint, ...]:
    """Return the lower of two curves at each ef if `live` is surely below, else `held_out`.

    Decided for each k. A curve that ended earlier was full there, so the other one stands alone.
    """
    points: list[RecallPoint] = []
    for k in sorted({point.k for point in held_out}):
        rows = {point.ef: point for point in held_out if point.k == k}
        asked = {point.ef: point for point in live if point.k == k}
        if any(ef in rows and _is_below(point, rows[ef]) for ef, point in asked.items()):
            for ef in sorted(rows.keys() | asked.keys()):
                both = [curve[ef] for curve in (rows, asked) if ef in curve]
                points.append(min(both, key=lambda point: point.recall))
        else:
            points += rows.values()
    return tuple(points)


def _is_below(live: RecallPoint, rows: RecallPoint) -> bool:
    error = float(np.hypot(live.error, rows.error))
    return rows.recall - live.recall > HARDER_Z * error


def measure_recall(
    index: VectorIndex, queries: Float32Matrix, *, k: int, efs: Sequence[int] = EF_LADDER
) -> tuple[RecallPoint, ...]:
    """Return recall@`k` and recall@`K_WIDE` of `index` at every ef that is not below k.

    `queries` (n, d) must not be rows of the index, whose own links would lead to them. Long walks
    are measured with the first `PROBES_FEW` of them.
    """
    points: list[RecallPoint] = []
    for wanted in sorted({k, K_WIDE}):
        if wanted > index.rows:
            continue
        asked = queries if wanted == k else queries[:PROBES_FEW]
        truth = best_scores(index, asked, k=wanted)
        for ef in efs:
            if ef < wanted:
                continue
            probes = len(asked) if ef <= EF_SHORT_MAX else PROBES_FEW
            found, _ = index.search(asked[:probes], k=wanted, ef=ef)
            recalls = recalls_of(found, truth[:probes])
            error = float(recalls.std() / np.sqrt(len(recalls)))
            points.append(
                RecallPoint(
                    wanted,
                    ef,
                    round(float(recalls.mean()), 4),
                    round(error, 5),
                    visited=plain_visits(index, queries, ef=ef, k=wanted),
                )
            )
            if points[-1].recall >= RECALL_FULL:
                break
    return tuple(points)


def meets_objective(curve: Sequence[RecallPoint], *, k: int, objective: float) -> bool:
    """Return whether some ef up to `EF_LIMIT` reaches `objective` at `k`."""
    return any(
        point.k == k and not point.band and point.ef <= EF_LIMIT and point.recall >= objective
        for point in curve
    )


def own_recall(index: VectorIndex, *, k: int, ef: int = EF_LIMIT) -> float:
    """Return recall@`k` for rows of the index itself, compared by score.

    Which rows depends on their number alone, so that the same graph always gives the same answer.
    A sound graph finds its own rows more easily than others, unless many of its vectors are equal:
    their links lead to one another, and the walk does not leave them.
    """
    probes = min(index.rows, OWN_PROBES)
    chosen = np.random.default_rng(index.rows).choice(index.rows, probes, replace=False)
    queries = index.reconstruct(chosen.astype(np.int64))
    found, _ = index.search(queries, k=k, ef=ef)
    return recall_of(found, best_scores(index, queries, k=k))


def finds_less(index: VectorIndex, curve: Sequence[RecallPoint]) -> bool:
    """Return whether a graph does not find of its own rows what its recall curve says."""
    plain = [point for point in curve if not point.band]
    k = min(point.k for point in plain)
    best = max((point for point in plain if point.k == k), key=lambda point: point.ef)
    return own_recall(index, k=k, ef=best.ef) < best.recall - DAMAGE_RECALL


def is_damaged(segment: Segment) -> bool:
    """Return whether the graph of a segment does not find what its recall curve says.

    False for a flat index, and without a curve. A graph that was never better than that is not
    written (`build.py`).
    """
    if segment.kind is not IndexKind.HNSW or not segment.recall_curve:
        return False
    return finds_less(segment.index, segment.recall_curve)
