"""Recall of joined answers on held-out pairs, and the weights that make it best.

Some of the pairs play the queries; all held-out pairs play the collection. A random share of them
counts as migrated. Of these the scores of the new model are known, of the others only what their
old vectors tell. The truth is the new model's top k over all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.embedding.bridge.estimates import Terms, Weights
from annheal.embedding.bridge.fusion import SHARE_MIN, Curve, fit_curve, rank_scores
from annheal.embedding.bridge.pairs import Floats

CANDIDATES_MAX = 64
"""Old records of a query that are looked at for each term of an estimate."""

_OLD_SCORE_GRID = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
_SPREAD_GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
_OFFSETS = np.linspace(-2.0, 2.0, 41)

# Where a half has fewer than k records: an old one is never taken, before a new one always.
_NO_NEW, _NO_OLD = -1e200, -1e250

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Trial:
    """q queries over n held-out records, of which `migrated` (n,) says which have a new vector.

    `truth` (q, n) are the new model's scores, -inf where the query is the record itself.
    `new_score` (q, n) are the scores by which migrated records are ranked: `truth`, unless the
    query has no new vector. `old_score` (q, n) are those of the old model. `k` <= n - 1.
    """

    truth: Floats
    new_score: Floats
    old_score: Floats
    migrated: npt.NDArray[np.bool_]
    k: int

    @property
    def share(self) -> float:
        """The migrated share of the records."""
        return float(self.migrated.mean())

    def rows(self, chosen: slice) -> Trial:
        """Return the trial with some of the queries."""
        return Trial(
            self.truth[chosen],
            self.new_score[chosen],
            self.old_score[chosen],
            self.migrated,
            self.k,
        )

    def hits(self) -> Hits:
        """Return (q, n): whether a record is among the true top k; more than k at equal scores."""
        count = self.truth.shape[1]
        kth = np.partition(self.truth, count - self.k, axis=1)[:, count - self.k]
        found: Hits = self.truth >= kth[:, None]
        return found


@dataclass(frozen=True, slots=True)
class Best:
    """The k best of one half: `scores` (q, c) falling, and whether they are `hits` (q, c)."""

    scores: Floats
    hits: Hits


def best_of(scores: Floats, hits: Hits, k: int) -> Best:
    """Return the `k` best of (q, n), or all where there are fewer."""
    places = top(scores, k)
    return Best(
        np.take_along_axis(scores, places, axis=1), np.take_along_axis(hits, places, axis=1)
    )


def top(scores: Floats, k: int) -> npt.NDArray[np.int64]:
    """Return the columns of the `k` best of each row of (q, n), the best first."""
    count = scores.shape[1]
    k = min(k, count)
    if k < count:
        places = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k else np.zeros((len(scores), 0))
        places = places.astype(np.int64)
    else:
        places = np.broadcast_to(np.arange(count), scores.shape)
    falling = np.argsort(-np.take_along_axis(scores, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, falling, axis=1)


def joined_recall(new: Best, old: Best, *, k: int) -> float:
    """Return the recall@k of both halves sorted together."""
    scores = np.concatenate([new.scores, old.scores], axis=1)
    hits = np.concatenate([new.hits, old.hits], axis=1)
    found = np.take_along_axis(hits, top(scores, k), axis=1)
    return float(np.minimum(found.sum(axis=1), k).mean() / k)


def recalls_at(
    new: Best, old: Best, *, offsets: npt.NDArray[np.float64], k: int
) -> npt.NDArray[np.float64]:
    """Return the recall@k for each of the offsets (o,) added to the old scores: (o,).

    j old records are among the k best if the j-th of them beats the (k - j + 1)-th new one, so the
    offset decides between k + 1 answers of each query, whose hits are counted once.
    """
    new_scores, new_hits = _padded(new, k, _NO_NEW)
    old_scores, old_hits = _padded(old, k, _NO_OLD)
    needed = new_scores[:, ::-1] - old_scores
    taken = (needed[:, :, None] < offsets).sum(axis=1)
    hits = new_hits[:, ::-1] + old_hits
    found = np.take_along_axis(np.minimum(hits, k), taken, axis=1)
    recalls: npt.NDArray[np.float64] = found.mean(axis=0) / k
    return recalls


def _padded(
    best: Best, k: int, none: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the scores (q, k), with `none` where there is no record, and the number of hits among
    the first 0 to k, (q, k + 1).
    """
    scores = np.full((len(best.scores), k), none)
    hits = np.zeros((len(best.scores), k + 1), dtype=np.int64)
    count = best.scores.shape[1]
    wide = best.scores.astype(np.float64)
    scores[:, :count] = np.where(np.isfinite(wide), wide, none)
    hits[:, 1 : count + 1] = best.hits
    return scores, np.cumsum(hits, axis=1)


def score_recall(trial: Trial, old: Floats) -> float:
    """Return the recall where old records have the scores `old` (q, n), on the new scale."""
    hits, left = trial.hits(), ~trial.migrated
    return joined_recall(
        best_of(trial.new_score[:, trial.migrated], hits[:, trial.migrated], trial.k),
        best_of(old[:, left], hits[:, left], trial.k),
        k=trial.k,
    )


def rank_recall(trial: Trial) -> float:
    """Return the recall of rank fusion."""
    hits, halves = trial.hits(), []
    for scores, half, share in (
        (trial.new_score, trial.migrated, trial.share),
        (trial.old_score, ~trial.migrated, 1.0 - trial.share),
    ):
        best = best_of(scores[:, half], hits[:, half], trial.k)
        ranks = np.broadcast_to(rank_scores(best.scores.shape[1], share), best.scores.shape)
        halves.append(Best(ranks, best.hits))
    return joined_recall(halves[0], halves[1], k=trial.k)


def calibrate(trial: Trial) -> Curve:
    """Return the curve from old scores to those by which migrated records are ranked."""
    return fit_curve(trial.old_score, trial.new_score)


def tune(trial: Trial, terms: Terms) -> Weights:
    """Return the weights with the best recall, the smallest ones where several are as good.

    Recalls are averaged with those of neighbouring weights first.
    """
    left = np.flatnonzero(~trial.migrated)
    hits = trial.hits()
    new = best_of(trial.new_score[:, trial.migrated], hits[:, trial.migrated], trial.k)
    spreads: Floats = np.broadcast_to(terms.spread, terms.bridged.shape)
    places = _candidates(terms, left)
    bridged = np.take_along_axis(terms.bridged, places, axis=1)
    old_score = np.take_along_axis(terms.old_score, places, axis=1)
    spread = np.take_along_axis(spreads, places, axis=1)
    hits = np.take_along_axis(hits, places, axis=1)
    scale = _deviation(trial.truth)
    old_unit, spread_unit = (_ratio(scale, _deviation(one)) for one in (old_score, terms.spread))
    tried: list[Weights] = []
    recalls: list[float] = []
    for old_weight in np.multiply(_OLD_SCORE_GRID, old_unit):
        for spread_weight in np.multiply(_SPREAD_GRID, spread_unit):
            estimates = bridged + np.float32(old_weight) * old_score
            estimates += np.float32(spread_weight) * spread
            old = best_of(estimates, hits, trial.k)
            recall, offset = _best_offset(trial, new, old, scale)
            recalls.append(recall)
            tried.append(Weights(float(old_weight), float(spread_weight), offset))
    table = np.reshape(recalls, (len(_OLD_SCORE_GRID), len(_SPREAD_GRID)))
    return tried[int(np.argmax(_smooth(_smooth(table).T).T))]


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the means of neighbours along the first axis: chance favours no single one."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    smooth: npt.NDArray[np.float64] = (padded[:-2] + padded[1:-1] + padded[2:]) / 3.0
    return smooth


def _candidates(terms: Terms, left: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return columns (q, c) of old records, the best by each term; none twice in a row."""
    if len(left) <= 2 * CANDIDATES_MAX:
        return np.broadcast_to(left, (len(terms.bridged), len(left)))
    bridged = terms.bridged[:, left]
    chosen = top(bridged, CANDIDATES_MAX)
    others = terms.old_score[:, left]
    np.put_along_axis(others, chosen, np.float32(-np.inf), axis=1)
    found: npt.NDArray[np.int64] = left[
        np.concatenate([chosen, top(others, CANDIDATES_MAX)], axis=1)
    ]
    return found


def _best_offset(trial: Trial, new: Best, old: Best, scale: float) -> tuple[float, float]:
    """Return the best recall and its offset; neighbouring offsets are averaged against chance."""
    share = min(max(trial.share, SHARE_MIN), 1.0 - SHARE_MIN)
    new_rank = min(new.scores.shape[1] - 1, int(share * trial.k))
    old_rank = min(old.scores.shape[1] - 1, int((1.0 - share) * trial.k))
    centre = float(np.median(new.scores[:, new_rank]) - np.median(old.scores[:, old_rank]))
    offsets = (centre if np.isfinite(centre) else 0.0) + scale * _OFFSETS
    recalls = recalls_at(new, old, offsets=offsets, k=trial.k)
    smooth = _smooth(recalls)
    best = np.flatnonzero(smooth >= smooth.max() - 1e-9)
    place = best[len(best) // 2]
    return float(smooth[place]), float(offsets[place])


def _deviation(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.std(dtype=np.float64)) if len(finite) else 0.0


def _ratio(scale: float, deviation: float) -> float:
    return scale / deviation if deviation > 1e-6 * max(scale, 1e-6) else 0.0
