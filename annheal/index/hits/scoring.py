"""The scores that hits are returned with.

Searches compute distances in different ways: by matrix products for several queries, by codes, four
rows at a time. The rounding of a score then depends on the other rows and queries. So each hit is
scored once more, by a routine whose result depends on its query and its row alone.
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
"""Largest error of a float32 score, relative to the product of the lengths of its vectors: several
times the errors that were seen."""


def scores_of(
    vectors: Float32Matrix, queries: Float32Matrix, rows: Rows, *, metric: Metric
) -> Scores:
    """Return the scores (n, m) float32 of each query (n, d) with its own `rows` (n, m) int64.

    Higher is better: inner products, in [-1, 1] for cosine, or negated squared distances; -inf
    where a row is -1. A score depends on the two vectors alone. `vectors` (rows, d) may be
    unaligned. Takes 8 us for one query and 11 rows of 384 floats, 28 us for 32 queries.
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
        np.subtract(_ZERO, scores, out=scores)  # not np.negative, which makes -0 of 0
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
    """Return the largest rounding error of scores near `scores` (n,) in a search, (n,) or a float.

    `from_products`: the search computes squared distances as |a|^2 - 2ab + |b|^2, whose error grows
    with the distance of the vectors from the origin. Inner products are assumed to be at least a
    tenth of the product of the lengths, as they are for near vectors.
    """
    if metric is Metric.COSINE:
        return ROUNDING
    magnitudes = np.abs(scores.astype(np.float64))
    magnitudes[~np.isfinite(magnitudes)] = 0.0
    if metric is Metric.L2 and from_products:
        squares = np.einsum("ij,ij->i", queries, queries).astype(np.float64)
        magnitudes = squares + (np.sqrt(squares) + np.sqrt(magnitudes)) ** 2
    return ROUNDING * magnitudes


def squared_distances(
    scores: npt.NDArray[np.float64], *, metric: Metric
) -> npt.NDArray[np.float64]:
    """Return the squared Euclidean distances that `scores` of any shape stand for.

    Raises ValueError for `Metric.INNER_PRODUCT`, whose vectors have any length.
    """
    if metric is Metric.INNER_PRODUCT:
        raise ValueError("inner products of vectors of any length are not distances")
    return -scores if metric is Metric.L2 else 2.0 - 2.0 * scores
