"""Computes the recall of queries from found and true neighbours. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_TIE_TOLERANCE = np.float32(1e-6)

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def query_recalls(
    found: tuple[Scores, Rows], truth: tuple[Scores, Rows]
) -> npt.NDArray[np.float64]:
    """Return the recall of each query, (n,); NaN for a query without true neighbours.

    Both arguments are scores (n, k) and rows (n, k), best first, padded with -inf and -1. A found
    row counts if it is one of the true rows, or if its score is at least that of the last true row,
    up to rounding: a row with an equal score is as good.
    """
    scores, rows = found
    true_scores, true_rows = truth
    wanted = np.count_nonzero(true_rows >= 0, axis=1)
    highest = np.finfo(np.float32).max  # a query without true neighbours: no score reaches it
    worst = np.where(true_rows >= 0, true_scores, highest).min(axis=1, keepdims=True)
    worst = worst - np.abs(worst) * _TIE_TOLERANCE
    hit = (rows >= 0) & (scores >= worst)
    for query in np.flatnonzero(np.count_nonzero(hit, axis=1) < wanted).tolist():
        hit[query] |= (rows[query] >= 0) & np.isin(rows[query], true_rows[query])
    hits = np.minimum(np.count_nonzero(hit, axis=1), wanted)
    recalls: npt.NDArray[np.float64] = np.where(wanted > 0, hits / np.maximum(wanted, 1), np.nan)
    return recalls


def found_ranks(found: tuple[Scores, Rows], truth: tuple[Scores, Rows]) -> npt.NDArray[np.bool_]:
    """Return which true neighbours were found, (n, k), so that their number is the recall's.

    A found row that is as good as the last true one counts for the last one that was not found.
    """
    true_rows = truth[1]
    present = true_rows >= 0
    ranks = present.copy()
    wanted = np.count_nonzero(present, axis=1)
    hits = np.rint(np.nan_to_num(query_recalls(found, truth)) * wanted).astype(np.int64)
    for query in np.flatnonzero(hits < wanted).tolist():
        of_query = present[query] & np.isin(true_rows[query], found[1][query])
        missing = np.flatnonzero(present[query] & ~of_query)
        equal = int(hits[query]) - int(np.count_nonzero(of_query))
        of_query[missing[len(missing) - equal :]] = True
        ranks[query] = of_query
    return ranks
