"""Recall, computed by comparing found scores with exact scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.slices import queries_compared_at_once, slices
from annheal.index import LiveBitmap, VectorIndex
from annheal.model.collection import Metric
from annheal.model.records import Float32Matrix
from annheal.runtime.stop import YieldPoint, no_yield_point

_TIE_TOLERANCE = np.float32(1e-6)


def best_scores(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    k: int,
    yield_point: YieldPoint = no_yield_point,
) -> npt.NDArray[np.float32]:
    """Return the exact best `k` scores of each query, (n, k) float32, best first; -inf pads.

    Copies of rows of the graph (`annheal.index.copies`) are left out: a walk does not find them.
    For many queries FAISS computes squared distances from a matrix product. If vectors are long
    compared with their distances, its rounding error exceeds the differences between neighbours.
    So the l2 distance of each pair that was found is computed again, as a walk computes it.
    """
    live = index.graph_rows(None)
    size = queries_compared_at_once(len(queries), rows=index.rows, dimension=index.dimension)
    return np.concatenate(
        [
            _best_scores(index, queries[part], k=k, live=live)
            for part in slices(len(queries), size, yield_point)
        ]
    )


def _best_scores(
    index: VectorIndex, queries: Float32Matrix, *, k: int, live: LiveBitmap | None
) -> npt.NDArray[np.float32]:
    scores, rows = index.search(queries, k=k, exact=True, live=live)
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
    """Return the recall of each query, (n,) float64, in [0, 1].

    `found` (n, k) are the scores of a search, `truth` (n, k) the exact best ones; higher is better,
    best first, -inf pads. Scores are compared and not rows, so that a row with an equal vector
    counts as found. A query without any exact score has recall 0.
    """
    present = np.isfinite(truth)
    worst = np.where(present, truth, np.inf).min(axis=1, keepdims=True)
    # Relative to the largest score: the rounding error of a product does not shrink with its sum.
    scale = np.where(present, np.abs(truth), 0).max(axis=1, keepdims=True)
    worst -= scale * _TIE_TOLERANCE
    wanted = np.count_nonzero(present, axis=1)
    hits = np.minimum(np.count_nonzero(found >= worst, axis=1), wanted)
    recalls: npt.NDArray[np.float64] = hits / np.maximum(wanted, 1)
    return recalls
