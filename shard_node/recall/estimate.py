"""From found and true neighbours to recall with an interval. Pure."""

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
    """Return each query's share of true neighbours found, NaN where there is none to find.

    Both are scores (n, k) and rows (n, k), best first, padded with -inf and -1. What was found
    counts when it is one of the true rows, or scores as well as the last of them: rows that tie
    stand for one another, and the same row may score differently in the last bit.
    """
    scores, rows = found
    true_scores, true_rows = truth
    wanted = np.count_nonzero(true_rows >= 0, axis=1)
    highest = np.finfo(np.float32).max  # where nothing is true, nothing is as good
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

    Wilson's score interval with the number of independent hits: n k hits, less the more the hits
    of one query succeed and fail together (Kish's design effect between 1 and k). The design effect
    is estimated from the spread of the queries, drawn towards its worst case k as long as there
    are few queries, and is k where nothing was missed at all: a sample without a miss says nothing
    about how misses would come.
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
    # The mean lies inside; rounding must not make a perfect one look as if it did not.
    return min(mean, max(0.0, centre - spread)), max(mean, min(1.0, centre + spread))
