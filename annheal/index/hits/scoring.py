"""The score that a hit is returned with, whichever search found it.

Searches compute distances in the way that is fastest for them: matrix products for several queries,
codes, four rows at a time. The last bits of one pair's score then depend on what else is computed.
So every hit is scored once more by one routine that looks at nothing but its query and its row.
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from annheal.model.collection import Metric
from annheal.model.records import Float32Matrix

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_ZERO, _ONE = np.float32(0), np.float32(1)
ROUNDING = 32 * float(np.finfo(np.float32).eps)
"""Error of a float32 score, relative to the lengths of its vectors; several times what is seen."""


def scores_of(
    vectors: Float32Matrix, queries: Float32Matrix, rows: Rows, *, metric: Metric
) -> Scores:
    """Return the score of each query (n, d) with its own `rows` (n, m), -inf where a row is -1.

    Higher is better: inner products, in [-1, 1] for cosine, or negated squared distances. A score
    depends on the two vectors alone, not on n, m or the place of the row. `vectors` (rows, d) may
    be unaligned. Costs 8 us for one query and 11 rows of 384 floats, 28 us for 32 queries.
    """
    n, m = rows.shape
    scores = np.empty((n, m), dtype=np.float32)
    if not scores.size:
        return scores
    wanted = np.ascontiguousarray(rows)
    l2 = metric is Metric.L2
    compare = faiss.fvec_L2sqr_by_idx if l2 else faiss.fvec_inner_products_by_idx
    compare(
        faiss.swig_ptr(scores),
        faiss.swig_ptr(np.ascontiguousarray(queries)),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(wanted),
        queries.shape[1],
        n,
        m,
    )
    if l2:
        np.subtract(_ZERO, scores, out=scores)  # not negated: the best score is 0, not -0
    elif metric is Metric.COSINE:
        np.minimum(scores, _ONE, out=scores)
        np.maximum(scores, -_ONE, out=scores)
    missing = rows < 0
    if missing.any():
        scores[missing] = -np.inf
    return scores


def score_errors(
    queries: Float32Matrix, scores: Scores, *, metric: Metric, from_products: bool
) -> npt.NDArray[np.float64] | float:
    """Return how far a search's own value of a score near `scores` (n,) may be off, (n,) or one.

    `from_products`: squared distances were computed as |a|^2 - 2ab + |b|^2, whose error grows with
    the distance from the origin. An inner product is taken to be at least a tenth of the product of
    the lengths, as those of near vectors are.
    """
    if metric is Metric.COSINE:
        return ROUNDING
    sizes = np.abs(scores.astype(np.float64))
    sizes[~np.isfinite(sizes)] = 0.0
    if metric is Metric.L2 and from_products:
        squares = np.einsum("ij,ij->i", queries, queries).astype(np.float64)
        sizes = squares + (np.sqrt(squares) + np.sqrt(sizes)) ** 2
    return ROUNDING * sizes
