"""Maps from old vectors to what the scores of the new model are made of, learned from pairs.

What is predicted of a record is its *target*: its new vector, followed by the squared length of it.
Every metric's score is an affine function of the target, so the expected score of a record is the
score of its expected target:

    cosine, inner product   q . y
    l2                      2 q . y - |y|^2 - |q|^2

A map is affine, plus a weighted sum of similarities to *landmarks* (some of the pairs' old vectors)
where it has them. All fits are done in float64 and stored in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from annheal.embedding.bridge.pairs import Floats, Pairs, Space, squares
from annheal.model.collection import Metric

LANDMARKS_MAX = 512
"""Each costs one product of two vectors for each candidate of a query."""
LANDMARKS_MIN = 16
AXES_MAX = 64

_PENALTIES = (1e-6, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
_VALIDATED_SHARE = 0.2
_KERNEL_WIDTH = 1.5
_KERNEL_PENALTY = 0.1
_JITTER = 1e-4

Wide = npt.NDArray[np.float64]


class MapKind(StrEnum):
    """How new vectors are predicted from old ones."""

    ORTHOGONAL = "orthogonal"
    LOW_RANK = "low_rank"
    AFFINE = "affine"
    LANDMARKS = "landmarks"


@dataclass(frozen=True)
class Landmarks:
    """Similarities exp(-|v - l|^2 / (2 `width_square`)) to `vectors` (m, d_old), less `mean` (m,).

    `weights` (m, t) turn them into what is added to the target.
    """

    vectors: Floats
    mean: Floats
    weights: Floats
    width_square: float

    def similarities(self, old: Floats) -> Floats:
        """Return (n, m) for `old` (n, d_old)."""
        exponent: Floats = old @ self._scaled
        exponent -= (squares(old) * np.float32(0.5 / self.width_square))[:, None]
        exponent -= self._squares
        np.minimum(exponent, 0.0, out=exponent)
        np.exp(exponent, out=exponent)
        exponent -= self.mean
        return exponent

    @cached_property
    def _scaled(self) -> Floats:
        return np.ascontiguousarray(self.vectors.T / np.float32(self.width_square))

    @cached_property
    def _squares(self) -> Floats:
        return squares(self.vectors) * np.float32(0.5 / self.width_square)


@dataclass(frozen=True)
class TargetMap:
    """Predicts the targets (n, t), t = d_new + 1, of old vectors (n, d_old).

    The affine part is (v - `old_mean`) @ `weights` + `target_mean`. `axes` (d_new, r) has
    orthonormal columns that span most of what the map predicts; the length of a prediction is
    measured within them, at a fraction of the cost of the prediction itself.
    """

    kind: MapKind
    old_mean: Floats
    weights: Floats
    target_mean: Floats
    axes: Floats
    landmarks: Landmarks | None = None

    def targets(self, old: Floats) -> Floats:
        """Return the predicted targets (n, t)."""
        marks = self.landmarks
        centred: Floats = old - self.old_mean
        found: Floats = centred @ self.weights
        found += self.target_mean
        if marks is not None:
            found += marks.similarities(old) @ marks.weights
        return found

    def vectors(self, old: Floats, space: Space) -> Floats:
        """Return the predicted new vectors (n, d_new), of unit length where `space` has cosine."""
        return space.prepared(self.targets(old)[:, :-1], field="old")

    def columns(self, rows: Floats) -> Columns:
        """Return the map to the targets @ `rows` (t, p), which computes no target."""
        marks = self.landmarks
        weights = self.weights @ rows
        return Columns(
            weights,
            self.target_mean @ rows - self.old_mean @ weights,
            None if marks is None else marks.weights @ rows,
        )

    @cached_property
    def spread_columns(self) -> Columns:
        """The predicted vector along `axes`, and its predicted squared length: r + 1 columns."""
        rows = np.zeros((self.weights.shape[1], self.axes.shape[1] + 1), dtype=np.float32)
        rows[:-1, :-1] = self.axes
        rows[-1, -1] = 1.0
        return self.columns(rows)


@dataclass(frozen=True, slots=True)
class Columns:
    """A map of old vectors (n, d_old) to p columns: see `TargetMap.columns`."""

    weights: Floats
    offset: Floats
    landmark_weights: Floats | None

    def of(self, old: Floats, similarities: Floats | None) -> Floats:
        """Return (n, p); `similarities` (n, m) are those of the map's landmarks to `old`."""
        found: Floats = old @ self.weights + self.offset
        if similarities is not None and self.landmark_weights is not None:
            found += similarities @ self.landmark_weights
        return found


def target_rows(pairs: Pairs) -> Wide:
    """Return what a map is to predict, (n, d_new + 1)."""
    new = pairs.new.astype(np.float64)
    return np.concatenate([new, np.einsum("ij,ij->i", new, new)[:, None]], axis=1)


def query_rows(space: Space, queries: Floats) -> tuple[Floats, Floats]:
    """Return rows (q, t) and constants (q,): a score is row . target + constant."""
    last = np.zeros((len(queries), 1), dtype=np.float32)
    if space.metric is not Metric.L2:
        return np.concatenate([queries, last], axis=1), last[:, 0]
    return np.concatenate([2.0 * queries, last - 1.0], axis=1), -squares(queries)


def fit_maps(kinds: Iterable[MapKind], pairs: Pairs) -> dict[MapKind, TargetMap]:
    """Return maps of these kinds, learned from one pair or more; the order of the pairs matters.

    Landmarks are the first pairs, and the last ones choose the strength of the penalty: give them
    in random order. Where there are too few pairs for landmarks, their map has none.
    """
    affine = _affine(pairs)
    fits = {
        MapKind.ORTHOGONAL: _orthogonal,
        MapKind.LOW_RANK: _low_rank,
        MapKind.LANDMARKS: _with_landmarks,
    }
    return {kind: fits[kind](affine, pairs) if kind in fits else affine for kind in kinds}


def _affine(pairs: Pairs) -> TargetMap:
    """Ridge regression (Hoerl & Kennard 1970); its penalty is the best on a fifth of the pairs."""
    old, targets = pairs.old.astype(np.float64), target_rows(pairs)
    fitted = len(pairs) - int(_VALIDATED_SHARE * len(pairs))
    penalty = _PENALTIES[-1]
    if fitted < len(pairs):
        weights = _ridge(old[:fitted], targets[:fitted], _PENALTIES)
        left_old = old[fitted:] - old[:fitted].mean(axis=0)
        left = targets[fitted:, :-1] - targets[:fitted, :-1].mean(axis=0)
        errors = [float(np.square(left_old @ one[:, :-1] - left).sum()) for one in weights]
        penalty = _PENALTIES[int(np.argmin(errors))]
    return _map(MapKind.AFFINE, pairs, old.mean(axis=0), _ridge(old, targets, (penalty,))[0])


def _ridge(old: Wide, targets: Wide, penalties: tuple[float, ...]) -> list[Wide]:
    """Return the weights (d_old, t) for each penalty, in units of the mean squared deviation."""
    centred = old - old.mean(axis=0)
    square = float(np.square(centred).sum(axis=1).mean())
    if square == 0.0:
        return [np.zeros((old.shape[1], targets.shape[1]))] * len(penalties)
    gram = centred.T @ centred
    right = centred.T @ (targets - targets.mean(axis=0))
    identity = np.eye(len(gram))
    return [np.linalg.solve(gram + one * square * identity, right) for one in penalties]


def _orthogonal(affine: TargetMap, pairs: Pairs) -> TargetMap:
    """Orthogonal Procrustes (Schönemann 1966), scaled where lengths count.

    Directions are compared by cosine and inner product, so only l2 has an offset. The last column,
    the squared length, is that of the affine map.
    """
    old, new = pairs.old.astype(np.float64), pairs.new.astype(np.float64)
    old_mean, new_mean = np.zeros(old.shape[1]), np.zeros(new.shape[1])
    if pairs.new_space.metric is Metric.L2:
        old_mean, new_mean = old.mean(axis=0), new.mean(axis=0)
    left, singular, right = np.linalg.svd((old - old_mean).T @ (new - new_mean), False)
    square = float(np.square(old - old_mean).sum())
    cosine = pairs.new_space.metric is Metric.COSINE
    scale = 1.0 if cosine or square == 0.0 else float(singular.sum()) / square
    length = affine.weights[:, -1:].astype(np.float64)
    length_mean = affine.target_mean[-1] + (old_mean - affine.old_mean) @ length
    return TargetMap(
        MapKind.ORTHOGONAL,
        old_mean.astype(np.float32),
        np.concatenate([scale * left @ right, length], axis=1).astype(np.float32),
        np.concatenate([new_mean, length_mean]).astype(np.float32),
        affine.axes[:, :0],
    )


def _low_rank(affine: TargetMap, pairs: Pairs) -> TargetMap:
    """Reduced-rank regression (Izenman 1975): predictions stay within their main axes."""
    rank = max(1, min(pairs.old_space.dimension, pairs.new_space.dimension) // 3)
    centred = (pairs.old - affine.old_mean) @ affine.weights[:, :-1]
    axes = _main_axes(centred.astype(np.float64), rank)
    weights = affine.weights.astype(np.float64)
    weights[:, :-1] = weights[:, :-1] @ axes @ axes.T
    return _map(MapKind.LOW_RANK, pairs, affine.old_mean.astype(np.float64), weights)


def _with_landmarks(affine: TargetMap, pairs: Pairs) -> TargetMap:
    """Kernel ridge regression of what the affine map leaves, on the first pairs (Nyström)."""
    old, targets = pairs.old, target_rows(pairs)
    square = float(np.square(old - affine.old_mean).sum(axis=1).mean())
    chosen = np.unique(old[: min(LANDMARKS_MAX, len(old) // 2)], axis=0)
    if len(chosen) < LANDMARKS_MIN or square == 0.0:
        return replace(affine, kind=MapKind.LANDMARKS)
    count = len(chosen)
    none = np.zeros(count, dtype=np.float32)
    empty = np.zeros((count, targets.shape[1]), dtype=np.float32)
    marks = Landmarks(chosen, none, empty, square / _KERNEL_WIDTH)
    raw = marks.similarities(old).astype(np.float64)
    mean = raw.mean(axis=0)
    raw -= mean
    between = marks.similarities(chosen).astype(np.float64)
    gram = raw.T @ raw + _KERNEL_PENALTY * between + _JITTER * len(old) / count * np.eye(count)
    left = targets - affine.targets(old)
    weights = np.linalg.solve(gram, raw.T @ left).astype(np.float32)
    full = Landmarks(chosen, mean.astype(np.float32), weights, marks.width_square)
    found = TargetMap(
        MapKind.LANDMARKS, affine.old_mean, affine.weights, affine.target_mean, affine.axes, full
    )
    return replace(found, axes=_axes_of(found.targets(old)[:, :-1]))


def _map(kind: MapKind, pairs: Pairs, old_mean: Wide, weights: Wide) -> TargetMap:
    target_mean = target_rows(pairs).mean(axis=0)
    narrow = weights.astype(np.float32)
    mean = target_mean.astype(np.float32)
    predicted = (pairs.old - old_mean.astype(np.float32)) @ narrow[:, :-1] + mean[:-1]
    return TargetMap(kind, old_mean.astype(np.float32), narrow, mean, _axes_of(predicted))


def _axes_of(predicted: Floats) -> Floats:
    return _main_axes(predicted.astype(np.float64), AXES_MAX).astype(np.float32)


def _main_axes(rows: Wide, rank: int) -> Wide:
    """Return the first `rank` main axes of `rows` (n, d), not centred: (d, r), orthonormal."""
    _, vectors = np.linalg.eigh(rows.T @ rows)
    return vectors[:, ::-1][:, :rank]
