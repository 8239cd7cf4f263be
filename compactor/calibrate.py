"""Measuring recall against ef, with queries that the graph has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from annheal.index import VectorIndex
from annheal.model.records import Float32Matrix
from annheal.segment import RecallPoint
from compactor.bands import plain_visits
from compactor.recalls import recalls_of

PROBES = 500
"""Held-out queries. The standard error of a recall of 0.95 at k 10 is then below half a point."""
EF_LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
EF_LIMIT = EF_LADDER[-1]
K_WIDE = 100
"""Recall is measured at the collection's k and at this one, for callers who ask for more."""


def recall_of(found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    """Return the mean of `recalls_of`."""
    return float(recalls_of(found, truth).mean())


def measure_recall(
    index: VectorIndex, queries: Float32Matrix, *, k: int, efs: Sequence[int] = EF_LADDER
) -> tuple[RecallPoint, ...]:
    """Return recall@`k` and recall@`K_WIDE` of `index` at every ef that is not below k.

    `queries` (n, d) must not be rows of the index, whose own links would lead to them.
    """
    points: list[RecallPoint] = []
    for wanted in sorted({k, K_WIDE}):
        if wanted > index.rows:
            continue
        truth, _ = index.search(queries, k=wanted, exact=True)
        for ef in efs:
            if ef < wanted:
                continue
            found, _ = index.search(queries, k=wanted, ef=ef)
            recalls = recalls_of(found, truth)
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
    return tuple(points)


def meets_objective(curve: Sequence[RecallPoint], *, k: int, objective: float) -> bool:
    """Return whether some ef up to `EF_LIMIT` reaches `objective` at `k`."""
    return any(
        point.k == k and not point.band and point.ef <= EF_LIMIT and point.recall >= objective
        for point in curve
    )
