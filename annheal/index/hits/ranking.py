"""The order of hits: best score first, equal scores by id, so that equal states answer equally.

With this order the first five of ten hits are the five of a search for five, in whichever segments
the rows lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

PARTITION_FACTOR = 8
"""Sorting everything is cheaper than partitioning first below this many times `k` candidates.

Measured for 32 queries at k 10: 15 against 21 us with 80 candidates, 84 against 42 us with 200.
"""

Scores = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

IdsOf = Callable[[Int64s, Int64s], Sequence[str] | npt.NDArray[np.object_]]
"""Returns the ids of the hits in the given (query, column) places."""


def best_columns(scores: Scores, *, k: int, ids_of: IdsOf | None = None) -> Int64s:
    """Return the columns of the best min(k, m) of `scores` (n, m) of each query, best first.

    Equal scores are ordered by id as text, without `ids_of` by column. -inf stands for no hit. Ids
    are read only of hits whose equals are among the best.
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
    lost = -scores
    if scores.shape[1] <= PARTITION_FACTOR * k:
        return np.argsort(lost, axis=1, kind="stable")[:, :k]
    chosen = np.sort(np.argpartition(lost, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(lost, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _best_by_id(scores: Scores, tied: Int64s, wanted: int, ids_of: IdsOf) -> Int64s:
    """Return the best `wanted` columns of the `tied` queries by score and id."""
    lost = -scores[tied]
    order = np.argsort(lost, axis=1, kind="stable")
    lost = np.take_along_axis(lost, order, axis=1)
    same = lost[:, 1:] == lost[:, :-1]
    in_tie = np.zeros(lost.shape, dtype=np.bool_)
    in_tie[:, 1:] = same
    in_tie[:, :-1] |= same
    in_tie &= (lost <= lost[:, wanted - 1 : wanted]) & (lost < np.inf)
    query, place = np.nonzero(in_tie)
    ids = np.asarray(ids_of(tied[query], order[query, place]), dtype=object)
    ranks = np.zeros(lost.shape, dtype=np.int64)
    ranks[query, place] = np.unique(ids, return_inverse=True)[1]
    by_id = np.lexsort((ranks, lost), axis=1)[:, :wanted]
    return np.take_along_axis(order, by_id, axis=1)
