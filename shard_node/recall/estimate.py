"""Computes the recall of queries from found and true neighbours. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from annheal.model.measures.recall_tail import TailEstimate, TailObjective
from annheal.recall.interval import mean_interval

_TIE_TOLERANCE = np.float32(1e-6)
_ROUNDING = 1e-9

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


def tail_estimate(
    parts: Iterable[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]],
    objective: TailObjective,
) -> TailEstimate:
    """Return the share of queries with a recall of at least `objective.recall`.

    Each part has recalls (n,) and, for each of them, the number of its query within the part, (n,).
    A query that was asked ten times counts ten times in the share, and once in the interval, which
    is that of Clopper and Pearson if no query was asked twice.
    """
    reached: list[npt.NDArray[np.float64]] = []
    times: list[npt.NDArray[np.float64]] = []
    for recalls, queries in parts:
        counts = np.bincount(queries).astype(np.float64)
        good = recalls >= objective.recall - _ROUNDING
        asked = counts > 0
        # Answers of one query may differ, where they were given at different times.
        shares = np.bincount(queries, weights=good)[asked] / counts[asked]
        reached.append(shares)
        times.append(counts[asked])
    interval = mean_interval(np.concatenate(reached), times=np.concatenate(times))
    return TailEstimate(objective, interval.mean, interval.low, interval.high)
