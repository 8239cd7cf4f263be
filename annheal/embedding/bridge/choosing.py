"""Deciding how to join the lists of two models, by recall on held-out pairs.

The pairs are split in folds, and each is predicted by maps that were fitted without it. On what is
predicted so, some records play the queries (`judging`): weights are tuned with half of these, and
judged by the other half, both ways round. The maps of the ways that were chosen are then fitted
again, on all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from annheal.embedding.bridge.bridge import Bridge, Scales
from annheal.embedding.bridge.estimates import Terms, direction, terms
from annheal.embedding.bridge.fusion import Curve
from annheal.embedding.bridge.judging import (
    Trial,
    calibrate,
    rank_recall,
    score_recall,
    tune,
)
from annheal.embedding.bridge.maps import MapKind, TargetMap, fit_maps
from annheal.embedding.bridge.pairs import Floats, Pairs
from annheal.embedding.bridge.ways import Join, QueryKind, Way
from annheal.errors import InvalidArgument

PAIRS_MIN = 400
"""With fewer pairs nothing is measured, and ranks are joined."""
PAIRS_MAX = 20_000
"""Pairs that a bridge is learned from; a random sample of more."""
DIMENSION_MAX = 4_096
"""Of either model; with longer vectors ranks are joined."""
MAP_MARGIN = 0.6
FOLDS = 4
JUDGED_ROWS_MAX = 4_000
JUDGED_QUERIES_MAX = 1_000
REFIT_GROWTH = 1.5
REFIT_SHARE = 0.1

_EVEN, _ODD = slice(0, None, 2), slice(1, None, 2)
_HALVES = ((_EVEN, _ODD), (_ODD, _EVEN))


@dataclass(frozen=True, slots=True)
class _Fold:
    """Maps learned from all pairs but those in `rows`; `back` predicts old vectors."""

    rows: slice
    forward: Mapping[MapKind, TargetMap]
    back: TargetMap


@dataclass(frozen=True, slots=True)
class _Stage:
    """The held-out pairs as a collection, in which the records `asked` (q,) play the queries."""

    kind: QueryKind
    judged: Pairs
    folds: Sequence[_Fold]
    migrated: npt.NDArray[np.bool_]
    asked: npt.NDArray[np.int64]
    k: int

    def queries(self, map_kind: MapKind) -> tuple[Floats, Floats]:
        """Return both models' queries, of which one is predicted unless the kind has both."""
        old, new = self.judged.old_space, self.judged.new_space
        old_rows, new_rows = self.judged.old, self.judged.new
        if self.kind is QueryKind.NEW:
            parts = [one.back.vectors(new_rows[one.rows], old) for one in self.folds]
            old_rows = np.concatenate(parts)
        if self.kind is QueryKind.OLD:
            maps = [(one.forward[map_kind], one.rows) for one in self.folds]
            new_rows = np.concatenate([one.vectors(old_rows[rows], new) for one, rows in maps])
        return direction(old, old_rows[self.asked])[0], direction(new, new_rows[self.asked])[0]

    def trial(self, map_kind: MapKind) -> Trial:
        """Return what is known of the answers; a missing new query is predicted by `map_kind`."""
        old, new = self.judged.old_space, self.judged.new_space
        old_queries, new_queries = self.queries(map_kind)
        true_queries = direction(new, self.judged.new[self.asked])[0]
        truth = self._without_self(new.scores(true_queries, self.judged.new))
        ranked = truth
        if self.kind is QueryKind.OLD:
            ranked = self._without_self(new.scores(new_queries, self.judged.new))
        old_score = self._without_self(old.scores(old_queries, self.judged.old))
        k = min(self.k, max(1, len(self.judged) // 4))
        return Trial(truth, ranked, old_score, self.migrated, k)

    def terms(self, map_kind: MapKind) -> Terms:
        """Return the terms of all held-out records, none predicted by a map that knows it."""
        old_queries, new_queries = self.queries(map_kind)
        parts = [
            terms(
                one.forward[map_kind],
                old_space=self.judged.old_space,
                new_space=self.judged.new_space,
                old_queries=old_queries,
                new_queries=new_queries,
                old=self.judged.old[one.rows],
            )
            for one in self.folds
        ]
        return Terms(
            self._without_self(np.concatenate([one.bridged for one in parts], axis=1)),
            np.concatenate([one.old_score for one in parts], axis=1),
            np.concatenate([one.spread for one in parts]),
        )

    def _without_self(self, scores: Floats) -> Floats:
        """A query must not find the record that plays it."""
        scores[np.arange(len(self.asked)), self.asked] = -np.inf
        return scores


def refit_due(bridge: Bridge, *, pairs: int, share: float) -> bool:
    """Return whether `choose` is to be called again, now that there are `pairs` pairs.

    That is so if they grew by half, or if the migrated share moved by a tenth.
    """
    enough = max(PAIRS_MIN, bridge.pairs + 1, int(REFIT_GROWTH * bridge.pairs))
    grown = enough <= pairs and bridge.pairs < PAIRS_MAX
    moved = bridge.pairs >= PAIRS_MIN and abs(share - bridge.share) >= REFIT_SHARE
    return grown or moved


def choose(pairs: Pairs, *, share: float, k: int = 10, seed: int) -> Bridge:
    """Return the bridge of `pairs`, with the way to join that found most for each kind of query.

    Args:
        pairs: in any order; none or more.
        share: of all live records, how many have a new vector, 0 to 1.
        k: of the recall@k that is measured; less where there are few pairs.
        seed: of the random choices. The same arguments give the same bridge on the same machine.

    Raises `InvalidArgument` for another share or k.
    """
    return _decided(pairs, share=share, k=k, seed=seed, every=False)[0]


def choose_each(
    pairs: Pairs, *, share: float, k: int = 10, seed: int
) -> tuple[Bridge, dict[Join, Bridge]]:
    """Return what `choose` returns, and for comparison a bridge for every single way to join.

    The second is empty where nothing could be measured.
    """
    return _decided(pairs, share=share, k=k, seed=seed, every=True)


def _decided(
    pairs: Pairs, *, share: float, k: int, seed: int, every: bool
) -> tuple[Bridge, dict[Join, Bridge]]:
    if not 0.0 <= share <= 1.0:
        raise InvalidArgument.of("share", f"is {share}, give a number from 0 to 1")
    if k < 1:
        raise InvalidArgument.of("k", f"is {k}, give 1 or more")
    rng = np.random.default_rng(seed)
    sample = pairs.take(rng.permutation(len(pairs))[:PAIRS_MAX])
    scales = Scales.of(sample)
    sample = scales.apply(sample)
    reason = _not_measurable(pairs)
    tried: dict[QueryKind, dict[Join, Way]] = {}
    ways = {kind: Way(Join.RANKS, reason=reason) for kind in QueryKind}
    if not reason:
        for kind, stage in _stages(sample, share=share, k=k, rng=rng).items():
            held_out = _held_out(stage)
            best = plan_join(held_out, pairs=len(pairs))
            joins = list(Join) if every else [best]
            tried[kind] = {join: _fitted(stage, join, held_out) for join in joins}
            ways[kind] = tried[kind][best]
    needed = [way for one in tried.values() for way in one.values()]
    bridge = _bridge(sample, ways, needed, share=share, count=len(pairs), scales=scales)
    if not every or not tried:
        return bridge, {}
    single = {
        join: replace(bridge, ways={kind: tried[kind][join] for kind in QueryKind}) for join in Join
    }
    return bridge, single


def plan_join(held_out: Mapping[Join, float], *, pairs: int) -> Join:
    """Return the way with the best recall; a map must be better by `MAP_MARGIN` / sqrt(`pairs`).

    The held-out collection is smaller than the real one, so its neighbours are farther apart. That
    makes maps, which are right about large distances first, look better than they are.
    """
    margin = MAP_MARGIN / math.sqrt(pairs)

    def advantage(join: Join) -> float:
        return held_out[join] - (margin if join.map_kind is not None else 0.0)

    return max(held_out, key=advantage)


def _not_measurable(pairs: Pairs) -> str:
    """Return why nothing can be measured, or nothing."""
    dimension = max(pairs.old_space.dimension, pairs.new_space.dimension)
    if dimension > DIMENSION_MAX:
        return f"vectors of {dimension} floats, at most {DIMENSION_MAX} are mapped"
    if len(pairs) < PAIRS_MIN:
        return f"{len(pairs)} pairs, {PAIRS_MIN} are needed to measure"
    return ""


def _bridge(
    pairs: Pairs,
    ways: Mapping[QueryKind, Way],
    needed: Sequence[Way],
    *,
    share: float,
    count: int,
    scales: Scales,
) -> Bridge:
    """Fit what the `needed` ways use on all pairs, and the affine map for queries without a new
    vector.
    """
    maps, back = {}, None
    if len(pairs) and max(pairs.old_space.dimension, pairs.new_space.dimension) <= DIMENSION_MAX:
        kinds = {way.join.map_kind for way in needed}
        if ways[QueryKind.OLD].join.map_kind is None:
            kinds.add(MapKind.AFFINE)
        maps = fit_maps([kind for kind in MapKind if kind in kinds], pairs)
        back = _back(pairs)
    return Bridge(
        pairs.old_space,
        pairs.new_space,
        share=share,
        pairs=count,
        scales=scales,
        ways=ways,
        maps=maps,
        back=back,
    )


def _stages(
    pairs: Pairs, *, share: float, k: int, rng: np.random.Generator
) -> dict[QueryKind, _Stage]:
    judged = pairs.take(np.arange(min(len(pairs), JUDGED_ROWS_MAX)))
    edges = np.linspace(0, len(judged), FOLDS + 1).astype(np.int64)
    folds = []
    for start, end in pairwise(edges.tolist()):
        others = pairs.take(np.r_[0:start, end : len(pairs)])
        folds.append(_Fold(slice(start, end), fit_maps(MapKind, others), _back(others)))
    migrated = _migrated(len(judged), share, rng)
    order = rng.permutation(len(judged))[:JUDGED_QUERIES_MAX]
    return {kind: _Stage(kind, judged, folds, migrated, order, k) for kind in QueryKind}


def _migrated(rows: int, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw who counts as migrated: one row at least, and not all."""
    count = min(max(1, round(rows * share)), rows - 1)
    found = np.zeros(rows, dtype=np.bool_)
    found[rng.permutation(rows)[:count]] = True
    return found


def _held_out(stage: _Stage) -> dict[Join, float]:
    """Return the recall of every way: of each half of the queries, after fits on the other."""
    affine = stage.trial(MapKind.AFFINE)
    found: dict[Join, list[float]] = {join: [] for join in Join}
    for fit, judge in _HALVES:
        trial = affine.rows(judge)
        curve = calibrate(affine.rows(fit))
        found[Join.RANKS].append(rank_recall(trial))
        found[Join.RAW].append(score_recall(trial, trial.old_score))
        found[Join.CALIBRATED].append(score_recall(trial, curve(trial.old_score)))
    for kind in MapKind:
        trial, terms_ = stage.trial(kind), stage.terms(kind)
        for fit, judge in _HALVES:
            weights = tune(trial.rows(fit), _some(terms_, fit))
            estimates = _some(terms_, judge).weighted(weights)
            found[Join(kind.value)].append(score_recall(trial.rows(judge), estimates))
    return {join: float(np.mean(recalls)) for join, recalls in found.items()}


def _fitted(stage: _Stage, join: Join, held_out: Mapping[Join, float]) -> Way:
    """Return a way, fitted on all queries."""
    kind = join.map_kind
    if kind is not None:
        weights = tune(stage.trial(kind), stage.terms(kind))
        return Way(join, weights=weights, held_out=held_out)
    curve = calibrate(stage.trial(MapKind.AFFINE)) if join is Join.CALIBRATED else Curve()
    return Way(join, curve=curve, held_out=held_out)


def _some(found: Terms, chosen: slice) -> Terms:
    return Terms(found.bridged[chosen], found.old_score[chosen], found.spread)


def _back(pairs: Pairs) -> TargetMap:
    """Return the affine map from new vectors to old ones."""
    swapped = Pairs(pairs.new_space, pairs.old_space, pairs.new, pairs.old)
    return fit_maps([MapKind.AFFINE], swapped)[MapKind.AFFINE]
