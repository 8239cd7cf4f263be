"""Scores of old records on the scale of the new model, from a map and both models' queries.

The estimate of a record with the old vector v is

    E[score | v] + a * old score + b * spread(v) + offset

The first term is the score of the predicted target (`maps`). It varies less than true scores do, so
the best true scores of the new half would push out old records that are as good: `offset` and the
spread (the standard deviation of what the map cannot predict of the record) make up for that, as an
upper confidence bound does. The old score says more than the map about records near the query. The
three weights are chosen by held-out recall (`judging`).

Under inner product the length of a query changes no order. Estimates are made for queries of length
1 and multiplied by the length at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from annheal.embedding.bridge.maps import TargetMap, query_rows
from annheal.embedding.bridge.pairs import Floats, Space, squares, unit
from annheal.model.collection import Metric

_LINEAR_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Weights:
    """How the terms of an estimate are added; all zero: the plain bridged score."""

    old_score: float = 0.0
    spread: float = 0.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Of q queries and n old records: `bridged` and `old_score` (q, n), `spread` (n,)."""

    bridged: Floats
    old_score: Floats
    spread: Floats

    def weighted(self, weights: Weights) -> Floats:
        """Return the estimates (q, n) for queries of length 1 where the metric is inner product."""
        found: Floats = self.bridged + np.float32(weights.offset)
        if weights.old_score:
            found += np.float32(weights.old_score) * self.old_score
        if weights.spread:
            found += np.float32(weights.spread) * self.spread
        return found


def direction(space: Space, queries: Floats) -> tuple[Floats, Floats]:
    """Return `queries` (q, d) for estimates, and the factors (q,) that scores get in the end."""
    if space.metric is not Metric.INNER_PRODUCT:
        return queries, np.ones(len(queries), dtype=np.float32)
    lengths = np.sqrt(squares(queries))
    return unit(queries), lengths


def terms(
    map_: TargetMap,
    *,
    old_space: Space,
    new_space: Space,
    old_queries: Floats,
    new_queries: Floats,
    old: Floats,
) -> Terms:
    """Return the terms for queries of both models (q, d_old) and (q, d_new), by `direction`, and
    old vectors (n, d_old).
    """
    rows, constants = query_rows(new_space, new_queries)
    marks = map_.landmarks
    similarities = None if marks is None else marks.similarities(old)
    bridged: Floats = map_.columns(rows.T).of(old, similarities).T + constants[:, None]
    along = map_.spread_columns.of(old, similarities)
    spread: Floats = np.sqrt(np.maximum(along[:, -1] - squares(along[:, :-1]), 0.0))
    return Terms(bridged, old_space.scores(old_queries, old), spread)


def search_vector(
    map_: TargetMap,
    *,
    old_space: Space,
    new_space: Space,
    old_query: Floats,
    new_query: Floats,
    predicted_old: Floats | None,
    given: bool,
) -> Floats:
    """Return the vector (1, d_old) to search old records with, to find the best estimates.

    Where directions are compared, the affine part of the bridged score is itself an inner product
    with the old vector; it is mixed with the old query where that was `given` and is not itself
    predicted from the new one. Under l2 it is the middle of the old query and `predicted_old`.
    """
    if old_space.metric is Metric.L2:
        if predicted_old is None:
            return old_query
        middle: Floats = np.float32(0.5) * (old_query + predicted_old)
        return middle
    rows, _ = query_rows(new_space, new_query)
    linear = unit(rows @ map_.weights.T)
    if not linear.any():
        return old_query
    if not given:
        return linear
    mixed = _LINEAR_SHARE * linear + (1.0 - _LINEAR_SHARE) * unit(old_query)
    return mixed if old_space.metric is Metric.INNER_PRODUCT else unit(mixed)
