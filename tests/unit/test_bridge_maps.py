"""Maps between the vectors of two models, and the other ways to join, on planted relations."""

from __future__ import annotations

import numpy as np
import pytest

from annheal.embedding.bridge.estimates import Weights, terms
from annheal.embedding.bridge.fusion import fit_curve, rank_scores
from annheal.embedding.bridge.judging import Best, joined_recall, recalls_at
from annheal.embedding.bridge.maps import LANDMARKS_MIN, MapKind, fit_maps
from annheal.embedding.bridge.pairs import Pairs, unit
from annheal.model.collection import Metric

RNG_SEED = 5


def planted(metric: Metric, *, rows: int = 400, old: int = 10, new: int = 10) -> Pairs:
    """New vectors are old ones turned by orthonormal columns; moved and stretched under l2."""
    rng = np.random.default_rng(RNG_SEED)
    vectors = rng.standard_normal((rows, old)).astype(np.float32)
    axes = np.linalg.qr(rng.standard_normal((max(old, new), max(old, new))))[0][:old, :new]
    turned = (unit(vectors) if metric is Metric.COSINE else vectors) @ axes.astype(np.float32)
    if metric is Metric.L2:
        turned = 2 * turned + rng.standard_normal(new).astype(np.float32)
    return Pairs.of(vectors, turned, old_metric=metric, new_metric=metric)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", list(MapKind))
def test_a_rotation_is_recovered(metric: Metric, kind: MapKind) -> None:
    pairs = planted(metric)
    found = fit_maps([kind], pairs)[kind].targets(pairs.old)[:, :-1]
    if kind is MapKind.LOW_RANK:  # three of ten axes
        assert np.corrcoef(found.ravel(), pairs.new.ravel())[0, 1] > 0.4
    else:
        np.testing.assert_allclose(found, pairs.new, atol=2e-3)


@pytest.mark.parametrize("kind", [MapKind.ORTHOGONAL, MapKind.AFFINE, MapKind.LANDMARKS])
def test_a_larger_dimension_is_recovered(kind: MapKind) -> None:
    pairs = planted(Metric.COSINE, old=6, new=10)
    found = fit_maps([kind], pairs)[kind].targets(pairs.old)[:, :-1]
    np.testing.assert_allclose(found, pairs.new, atol=2e-3)


@pytest.mark.parametrize("metric", list(Metric))
def test_estimates_of_a_planted_map_are_the_new_scores(metric: Metric) -> None:
    pairs = planted(metric)
    map_ = fit_maps([MapKind.AFFINE], pairs)[MapKind.AFFINE]
    found = terms(
        map_,
        old_space=pairs.old_space,
        new_space=pairs.new_space,
        old_queries=pairs.old[:5],
        new_queries=pairs.new[:5],
        old=pairs.old,
    )
    truth = pairs.new_space.scores(pairs.new[:5], pairs.new)
    if metric is Metric.L2:  # the squared length is no affine function of the old vector
        assert np.corrcoef(found.bridged.ravel(), truth.ravel())[0, 1] > 0.6
    else:
        np.testing.assert_allclose(found.weighted(Weights()), truth, atol=1e-2)


def test_landmarks_learn_what_is_not_affine() -> None:
    rng = np.random.default_rng(1)
    old = rng.standard_normal((1_500, 3)).astype(np.float32)
    new = np.concatenate([old, old**2], axis=1)
    pairs = Pairs.of(old[:1_000], new[:1_000], old_metric=Metric.L2, new_metric=Metric.L2)
    maps = fit_maps([MapKind.AFFINE, MapKind.LANDMARKS], pairs)
    errors = {
        kind: float(np.abs(one.targets(old[1_000:])[:, :-1] - new[1_000:]).mean())
        for kind, one in maps.items()
    }
    assert errors[MapKind.LANDMARKS] < 0.5 * errors[MapKind.AFFINE]


def test_few_or_equal_pairs_have_no_landmarks() -> None:
    pairs = planted(Metric.COSINE, rows=2 * LANDMARKS_MIN - 2)
    assert fit_maps([MapKind.LANDMARKS], pairs)[MapKind.LANDMARKS].landmarks is None


def test_ranks_of_a_smaller_share_count_for_more() -> None:
    new, old = rank_scores(4, 0.25), rank_scores(12, 0.75)
    assert (np.diff(new) < 0).all()
    order = np.argsort(-np.concatenate([new, old]), kind="stable")[:8]
    assert sorted(order.tolist()) == [0, 1, 4, 5, 6, 7, 8, 9]
    assert np.isfinite(rank_scores(3, 0.0)).all()


def test_a_curve_gives_scores_the_scale_of_the_other_model() -> None:
    new = np.random.default_rng(2).standard_normal((50, 400)).astype(np.float32)
    curve = fit_curve(4 * new - 7, new)
    asked = np.linspace(-18, 8, 20, dtype=np.float32)
    np.testing.assert_allclose(curve(asked), (asked + 7) / 4, atol=0.3)
    assert (np.diff(curve(asked)) >= 0).all()


def test_recall_at_many_offsets_is_that_of_each() -> None:
    rng = np.random.default_rng(3)
    scores = -np.sort(-rng.standard_normal((2, 30, 6)).astype(np.float32), axis=2)
    hits = rng.random((2, 30, 6)) < 0.5
    new, old = Best(scores[0], hits[0]), Best(scores[1][:, :4], hits[1][:, :4])
    offsets = np.linspace(-3, 3, 13)
    expected = [
        joined_recall(new, Best(old.scores + np.float32(one), old.hits), k=6) for one in offsets
    ]
    np.testing.assert_allclose(recalls_at(new, old, offsets=offsets, k=6), expected)
