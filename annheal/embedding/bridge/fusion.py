"""Ways to join two lists that need no map: ranks, and curves between the scores of both models."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal.embedding.bridge.pairs import Floats

RANK_CONSTANT = 60.0
"""Of reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009)."""
SHARE_MIN = 0.01
"""A smaller share of records in one of the halves counts as this one."""

_CURVE_POINTS = 48


def rank_scores(count: int, share: float) -> Floats:
    """Return falling scores (count,) for a list that covers `share` of the records.

    The rank r of a record among that share is about r / `share` among all, if the halves are alike.
    The score is that of reciprocal rank fusion for this rank.
    """
    ranks = (np.arange(count) + 0.5) / max(share, SHARE_MIN)
    return (1.0 / (RANK_CONSTANT + ranks)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Curve:
    """A rising piecewise linear function through the points (`old`, `new`), both (p,) rising.

    Beyond the ends it goes on with the slope between the ends. Without points it is the identity.
    """

    old: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    new: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def __call__(self, scores: Floats) -> Floats:
        """Return the scores on the scale of the new model, in the shape of `scores`."""
        if len(self.old) == 0:
            return scores
        width = float(self.old[-1] - self.old[0])
        slope = np.float32(float(self.new[-1] - self.new[0]) / width if width > 0 else 0.0)
        inside = np.interp(scores, self.old, self.new).astype(np.float32)
        if slope == 0.0:  # times -inf it would be NaN
            return inside
        beyond = scores - np.clip(scores, self.old[0], self.old[-1])
        found: Floats = inside + slope * beyond
        return found


def fit_curve(old_scores: Floats, new_scores: Floats) -> Curve:
    """Return the curve that gives the r-th best old score the r-th best new one, for every r.

    Both are (q, n): scores of the same records for the same queries, averaged over the queries rank
    by rank. `old_scores` and `new_scores` may hold -inf at the same places, in every row equally
    many.
    """
    count = int(np.isfinite(old_scores[:1]).sum())
    if count < 2:
        return Curve()
    ranks = np.unique(np.geomspace(1, count, _CURVE_POINTS).astype(np.int64)) - 1
    old_at, new_at = (_mean_at(scores, ranks) for scores in (old_scores, new_scores))
    rising = np.concatenate([[True], np.diff(old_at) > 0])
    return Curve(old_at[rising].astype(np.float32), new_at[rising].astype(np.float32))


def _mean_at(scores: Floats, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the mean scores at `ranks`, from the worst to the best."""
    falling = -np.sort(-scores, axis=1)
    found: npt.NDArray[np.float64] = falling[:, ranks].mean(axis=0, dtype=np.float64)[::-1]
    return found
