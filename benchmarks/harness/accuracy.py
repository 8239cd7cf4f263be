"""How much of the truth was found, and whether that keeps a promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

OBJECTIVE = 0.95
"""The recall objective of collections that name none."""
TIE_TOLERANCE = 1e-6
"""Cosines of the same vectors, added up in another order, differ by less."""

Scores = npt.NDArray[np.float32]


def hits_by_score(found: Scores, truth: Scores) -> float:
    """Return how many of the true best (n, k) are among `found`; -inf where there is none.

    By score, so that it does not matter which of equal rows was found.
    """
    worst = np.where(np.isfinite(truth), truth, np.inf).min(axis=1, keepdims=True)
    wanted = np.isfinite(truth).sum(axis=1)
    near = (found >= worst - TIE_TOLERANCE).sum(axis=1)
    return float(np.minimum(near, wanted).sum())


def recall_by_score(found: Scores, truth: Scores) -> float:
    """Return the share of the true best that was found."""
    return hits_by_score(found, truth) / float(np.isfinite(truth).sum())


def padded_scores(counts: npt.NDArray[np.integer], scores: Scores, k: int) -> Scores:
    """Return flat `scores`, `counts[i]` of them for query i, as (n, k) filled up with -inf."""
    matrix = np.full((len(counts), k), -np.inf, dtype=np.float32)
    matrix[np.arange(k) < counts[:, np.newaxis]] = scores
    return matrix


def verdict(value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Return "pass" or "fail"."""
    low = -np.inf if at_least is None else at_least
    high = np.inf if at_most is None else at_most
    return "pass" if low <= value <= high else "fail"
