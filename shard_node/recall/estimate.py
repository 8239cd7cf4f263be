"""Computes recall and its confidence interval from found and true neighbours. Pure."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Z_95 = 1.959964
_DESIGN_PRIOR_QUERIES = 8.0
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


def estimate_interval(recalls: npt.NDArray[np.float64], *, k: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of per-query `recalls` (n,), each a mean of `k` hits.

    Wilson's score interval for n k hits, divided by the design effect (Kish), because hits of one
    query are correlated. The design effect, between 1 and k, is estimated from the variance of the
    queries' recalls. With few queries it is weighted towards its largest value k, and it is k if
    nothing was missed: such a sample does not show how misses are correlated.
    """
    n = len(recalls)
    mean = float(recalls.mean())
    design = float(k)
    hit_variance = mean * (1.0 - mean)
    if n > 1 and hit_variance > 0.0:
        found = k * float(recalls.var(ddof=1)) / hit_variance
        design = (n * found + _DESIGN_PRIOR_QUERIES * k) / (n + _DESIGN_PRIOR_QUERIES)
        design = min(float(k), max(1.0, design))
    return wilson_interval(mean, n * k / design)


def wilson_interval(mean: float, trials: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval (1927) of a share `mean` of `trials`; inside [0, 1]."""
    square = Z_95 * Z_95
    centre = (mean + square / (2.0 * trials)) / (1.0 + square / trials)
    spread = (
        Z_95
        * math.sqrt(mean * (1.0 - mean) / trials + square / (4.0 * trials * trials))
        / (1.0 + square / trials)
    )
    # The mean is inside the interval; without this, rounding could put a mean of 0 or 1 outside.
    return min(mean, max(0.0, centre - spread)), max(mean, min(1.0, centre + spread))
