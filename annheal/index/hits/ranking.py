"""The order of hits: best score first, equal scores by id.

So the order does not depend on the segments that hold the rows, and the first five of ten hits are
the hits of a search for five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

PARTITION_FACTOR = 8
"""Up to this many times `k` scores sorting all of them is cheaper than partitioning first.

Measured for 32 queries at k 10: 15 against 21 us with 80 candidates, 84 against 42 us with 200.
"""

Scores = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

IdsOf = Callable[[Int64s, Int64s], Sequence[str] | npt.NDArray[np.object_]]
"""Returns the ids of the hits at the positions (query, column), each (n,) int64."""


def best_columns(scores: Scores, *, k: int, ids_of: IdsOf | None = None) -> Int64s:
    """Return the columns of the best of `scores` (n, m) of each query: (n, min(k, m)) int64.

    Best first. Equal scores are ordered by id as text, without `ids_of` by column. A score of -inf
    means no hit. Only ids of hits with equal scores that may be among the best are read.
    """
    wanted = min(k, scores.shape[1])
    order = _best_by_score(scores, min(k + 1, scores.shape[1]))
    if ids_of is not None and order.shape[1] > 1:
        ordered = np.take_along_axis(scores, order, axis=1)
        ties = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > -np.inf)
        tied = np.flatnonzero(ties.any(axis=1))
        if len(tied):
            order[tied, :wanted] = _best_by_id(scores, tied, wanted, ids_of)
    return order[:, :wanted]


def _best_by_score(scores: Scores, k: int) -> Int64s:
    """Return the columns of the best `k` scores of each row, best first, ties by column."""
    negated = -scores
    if scores.shape[1] <= PARTITION_FACTOR * k:
        return np.argsort(negated, axis=1, kind="stable")[:, :k]
    chosen = np.sort(np.argpartition(negated, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(negated, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _best_by_id(scores: Scores, tied: Int64s, wanted: int, ids_of: IdsOf) -> Int64s:
    """Return the best `wanted` columns of the `tied` queries by score and id."""
    negated = -scores[tied]
    order = np.argsort(negated, axis=1, kind="stable")
    negated = np.take_along_axis(negated, order, axis=1)
    same = negated[:, 1:] == negated[:, :-1]
    in_tie = np.zeros(negated.shape, dtype=np.bool_)
    in_tie[:, 1:] = same
    in_tie[:, :-1] |= same
    in_tie &= (negated <= negated[:, wanted - 1 : wanted]) & (negated < np.inf)
    query, place = np.nonzero(in_tie)
    ids = np.asarray(ids_of(tied[query], order[query, place]), dtype=object)
    ranks = np.zeros(negated.shape, dtype=np.int64)
    ranks[query, place] = np.unique(ids, return_inverse=True)[1]
    by_id = np.lexsort((ranks, negated), axis=1)[:, :wanted]
    return np.take_along_axis(order, by_id, axis=1)
