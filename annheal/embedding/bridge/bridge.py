"""A bridge: what `choosing.choose` decided, applied to one query at a time.

A caller asks for a `BridgedQuery`, searches both graphs with its vectors, hands it the hits of the
old one (scores and, where it says so, old vectors), and sorts all hits by the scores it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.embedding.bridge.estimates import direction, search_vector, terms
from annheal.embedding.bridge.fusion import rank_scores
from annheal.embedding.bridge.maps import MapKind, TargetMap
from annheal.embedding.bridge.pairs import Floats, Pairs, Space
from annheal.embedding.bridge.ways import Join, QueryKind, Way
from annheal.errors import InvalidArgument
from annheal.model.collection import Metric

_TINY = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
_CURVE_SCORE_MAX = 1e15
"""At the scale of the pairs scores are about 1; a curve's slope cannot make this one overflow."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Root mean squared lengths of the pairs; vectors are divided by them before all else.

    1 under cosine. So one set of constants fits models whose vectors have any length, and nothing
    overflows.
    """

    old: float = 1.0
    new: float = 1.0

    @classmethod
    def of(cls, pairs: Pairs) -> Scales:
        """Return the scales of some pairs."""
        return cls(_scale(pairs.old_space, pairs.old), _scale(pairs.new_space, pairs.new))

    def apply(self, pairs: Pairs) -> Pairs:
        """Return the pairs at this scale."""
        old, new = pairs.old / np.float32(self.old), pairs.new / np.float32(self.new)
        return Pairs(pairs.old_space, pairs.new_space, old, new)


@dataclass(frozen=True, slots=True)
class Bridge:
    """Joins the lists of two models. `ways` has one for each kind of query.

    It was learned from `pairs` pairs when `share` of the records had a new vector. `maps` has the
    kinds that the ways need, and one at least if there were pairs; `back` predicts old queries.
    """

    old_space: Space
    new_space: Space
    share: float
    pairs: int
    scales: Scales
    ways: Mapping[QueryKind, Way]
    maps: Mapping[MapKind, TargetMap]
    back: TargetMap | None

    def query(
        self, *, old: npt.ArrayLike | None = None, new: npt.ArrayLike | None = None
    ) -> BridgedQuery:
        """Return the query with the vectors `old` (d_old,) and `new` (d_new,), or one of them.

        Raises `InvalidArgument` where neither is given, for another length, NaN and infinity.
        """
        if old is None and new is None:
            raise InvalidArgument.of("query", "has no vector, give one of either model")
        return BridgedQuery.of(
            self,
            old=None if old is None else _row(self.old_space, old, "old", self.scales.old),
            new=None if new is None else _row(self.new_space, new, "new", self.scales.new),
        )

    def map_for(self, way: Way) -> TargetMap | None:
        """Return the map of a way, or the one that predicts missing queries for it."""
        kind = way.join.map_kind
        if kind is not None:
            return self.maps[kind]
        return self.maps.get(MapKind.AFFINE, next(iter(self.maps.values()), None))


@dataclass(frozen=True, slots=True)
class BridgedQuery:
    """One query of one kind, as the graphs are searched with it and its hits are scored.

    `search_old` (d_old,) and `search_new` (d_new,) float32 are the vectors to search with. One is
    None where the query has no vector of that model and no pair has taught how to predict it;
    the records of that model then cannot be searched. `needs_vectors`: `score_old` needs the old
    vectors of the hits; otherwise it needs their scores alone.
    """

    bridge: Bridge
    kind: QueryKind
    way: Way
    search_old: Floats | None
    search_new: Floats | None
    _old: Floats
    _new: Floats

    @classmethod
    def of(cls, bridge: Bridge, *, old: Floats | None, new: Floats | None) -> BridgedQuery:
        """Return the query for prepared rows (1, d) at the scale of the pairs."""
        kind = QueryKind.BOTH if old is not None and new is not None else QueryKind.NEW
        kind = QueryKind.OLD if new is None else kind
        way = bridge.ways[kind]
        map_ = bridge.map_for(way)
        predicted_old = None
        if new is not None and bridge.back is not None:
            predicted_old = bridge.back.vectors(new, bridge.old_space)
        old = predicted_old if old is None else old
        if new is None and old is not None and map_ is not None:
            new = map_.vectors(old, bridge.new_space)
        search_old = old
        if old is not None and new is not None and map_ is not None and _mapped(way):
            search_old = search_vector(
                map_,
                old_space=bridge.old_space,
                new_space=bridge.new_space,
                old_query=old,
                new_query=direction(bridge.new_space, new)[0],
                predicted_old=predicted_old,
                given=kind is not QueryKind.NEW,
            )
        return cls(
            bridge,
            kind,
            way,
            None if search_old is None else search_old[0] * np.float32(bridge.scales.old),
            None if new is None else new[0] * np.float32(bridge.scales.new),
            np.zeros((1, 0), dtype=np.float32) if old is None else old,
            np.zeros((1, 0), dtype=np.float32) if new is None else new,
        )

    @property
    def needs_vectors(self) -> bool:
        """Whether `score_old` needs the old vectors of the hits."""
        return _mapped(self.way)

    def score_old(self, scores: npt.ArrayLike, *, vectors: npt.ArrayLike | None = None) -> Floats:
        """Return the scores (n,) of n old hits on the scale of the new model, in their order.

        Args:
            scores: (n,), of the search with `search_old`, falling. Only their number and order
                count where `needs_vectors`.
            vectors: (n, d_old), the old vectors of the hits.

        Raises `InvalidArgument` for missing vectors, another shape, NaN and infinity.
        """
        given = np.asarray(scores, dtype=np.float32)
        if self.way.join is Join.RANKS:
            return rank_scores(len(given), 1.0 - self.bridge.share)
        if not self.needs_vectors:
            return self._calibrated(given)
        if vectors is None:
            raise InvalidArgument.of("vectors", f"are needed to join by {self.way.join}")
        rows = self.bridge.old_space.prepared(vectors, field="vectors")
        return self._estimated(rows / np.float32(self.bridge.scales.old))

    def score_new(self, scores: npt.ArrayLike) -> Floats:
        """Return the scores (n,) of n new hits, found with `search_new`, falling.

        They are unchanged, except where ranks are joined.
        """
        given = np.asarray(scores, dtype=np.float32)
        if self.way.join is Join.RANKS:
            return rank_scores(len(given), self.bridge.share)
        return given

    def join(
        self,
        new_scores: npt.ArrayLike,
        old_scores: npt.ArrayLike,
        *,
        k: int,
        old_vectors: npt.ArrayLike | None = None,
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return the places (m,) of the `k` best of both lists and their scores, the best first.

        Places below the number of new hits are those of the new list; the old list follows. Equal
        scores keep this order. m is `k`, or the number of all hits if that is smaller.
        """
        old = self.score_old(old_scores, vectors=old_vectors)
        scores = np.concatenate([self.score_new(new_scores), old])
        places = np.argsort(-scores, kind="stable")[:k]
        return places, scores[places]

    def _calibrated(self, scores: Floats) -> Floats:
        old_unit = _score_unit(self.bridge.old_space, self._old, self.bridge.scales.old)
        new_unit = _score_unit(self.bridge.new_space, self._new, self.bridge.scales.new)
        scaled = _float32(scores.astype(np.float64) / max(old_unit, _TINY), most=_CURVE_SCORE_MAX)
        return _float32(self.way.curve(scaled).astype(np.float64) * new_unit)

    def _estimated(self, rows: Floats) -> Floats:
        bridge = self.bridge
        map_ = bridge.maps[MapKind(self.way.join.value)]
        found = terms(
            map_,
            old_space=bridge.old_space,
            new_space=bridge.new_space,
            old_queries=direction(bridge.old_space, self._old)[0],
            new_queries=direction(bridge.new_space, self._new)[0],
            old=rows,
        )
        new_unit = _score_unit(bridge.new_space, self._new, bridge.scales.new)
        return _float32(found.weighted(self.way.weights)[0].astype(np.float64) * new_unit)


def _score_unit(space: Space, query: Floats, scale: float) -> float:
    """Return what a score of scaled vectors, for a query of length 1 under inner product, is to be
    multiplied with.
    """
    if space.metric is Metric.INNER_PRODUCT:
        return float(direction(space, query)[1][0]) * scale * scale
    return scale * scale if space.metric is Metric.L2 else 1.0


def _mapped(way: Way) -> bool:
    return way.join.map_kind is not None


def _row(space: Space, vector: npt.ArrayLike, field: str, scale: float) -> Floats:
    row = np.asarray(vector, dtype=np.float32)
    found: Floats = space.prepared(row[None], field=field) / np.float32(scale)
    return found


def _scale(space: Space, vectors: Floats) -> float:
    if space.metric is Metric.COSINE or len(vectors) == 0:
        return 1.0
    mean = float(np.square(vectors, dtype=np.float64).sum(axis=1).mean())
    return float(np.sqrt(mean)) if mean > 0.0 else 1.0


def _float32(scores: npt.NDArray[np.float64], *, most: float = _LARGEST) -> Floats:
    """Return finite scores within +-`most`; one that is no number is the worst."""
    return np.clip(np.nan_to_num(scores, nan=-most), -most, most).astype(np.float32)
