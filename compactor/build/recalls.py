"""Recall of scores against exact ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from annheal.index import VectorIndex
from annheal.model.collection import Metric
from annheal.model.records import Float32Matrix

_TIE_TOLERANCE = np.float32(1e-6)


def best_scores(index: VectorIndex, queries: Float32Matrix, *, k: int) -> npt.NDArray[np.float32]:
    """Return the exact best `k` scores of each query, (n, k), best first, as a walk scores them.

    For many queries FAISS takes squared distances from products of whole matrices. Where vectors
    are long beside their distances, what that rounds away is more than what tells neighbours
    apart, so each pair that was found is compared once more by itself.
    """
    scores, rows = index.search(queries, k=k, exact=True)
    if index.metric is Metric.L2:
        for query, found in enumerate(rows):
            present = found >= 0
            apart = index.reconstruct(found[present]) - queries[query]
            scores[query, present] = -np.einsum("ij,ij->i", apart, apart)
        scores = -np.sort(-scores, axis=1)
    return scores


def recalls_of(
    found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return each query's recall of scores `found` (n, k) against the exact best `truth` (n, k).

    Compared by score and not by row, so that equal vectors count for one another. Both are
    higher = better, best first; -inf pads.
    """
    present = np.isfinite(truth)
    worst = np.where(present, truth, np.inf).min(axis=1, keepdims=True)
    # By the largest of them: the error of a product does not shrink where terms cancel out.
    scale = np.where(present, np.abs(truth), 0).max(axis=1, keepdims=True)
    worst -= scale * _TIE_TOLERANCE
    wanted = np.count_nonzero(present, axis=1)
    hits = np.minimum(np.count_nonzero(found >= worst, axis=1), wanted)
    recalls: npt.NDArray[np.float64] = hits / np.maximum(wanted, 1)
    return recalls
