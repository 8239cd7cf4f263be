"""Which way to join is chosen, on planted and on real pairs, and what a query does with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annheal.embedding.bridge.bridge import Bridge
from annheal.embedding.bridge.choosing import (
    DIMENSION_MAX,
    PAIRS_MAX,
    PAIRS_MIN,
    choose,
    choose_each,
    plan_join,
    refit_due,
)
from annheal.embedding.bridge.codec import encode_bridge
from annheal.embedding.bridge.pairs import Pairs
from annheal.embedding.bridge.ways import Join, QueryKind
from annheal.errors import InvalidArgument
from annheal.model.collection import Metric
from benchmarks.harness.options import SAMPLE_BASE, SAMPLE_QUERIES

Floats = npt.NDArray[np.float32]
K = 10
COMPARED = (Join.RANKS, Join.RAW, Join.AFFINE, Join.LANDMARKS)

# The machine that runs the tests may be five times slower than an idle one.
pytestmark = pytest.mark.timeout(400)


def vectors(rows: int, dimension: int, *, seed: int) -> Floats:
    """Rows in clusters, as embeddings have them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dimension))
    found = centres[rng.integers(20, size=rows)] + 0.6 * rng.standard_normal((rows, dimension))
    return found.astype(np.float32)


def pairs_of(old: Floats, new: Floats, metric: Metric = Metric.COSINE) -> Pairs:
    return Pairs.of(old, new, old_metric=metric, new_metric=metric)


def rotation(dimension: int, *, seed: int) -> Floats:
    matrix = np.random.default_rng(seed).standard_normal((dimension, dimension))
    return np.linalg.qr(matrix)[0].astype(np.float32)


def recall(
    bridge: Bridge,
    old: Floats,
    new: Floats,
    *,
    queries: int,
    kind: QueryKind,
    metric: Metric = Metric.COSINE,
) -> float:
    """Recall@k of joined answers over all rows but the first ones, which are the queries."""
    pairs = pairs_of(old, new, metric)
    rows = np.arange(queries, len(old))
    cut = queries + round(bridge.share * len(rows))
    halves = np.arange(queries, cut), np.arange(cut, len(old))
    truth = np.argsort(
        -pairs.new_space.scores(pairs.new[:queries], pairs.new[rows]), axis=1, kind="stable"
    )[:, :K]
    found = 0
    for number in range(queries):
        query = bridge.query(
            old=None if kind is QueryKind.NEW else old[number],
            new=None if kind is QueryKind.OLD else new[number],
        )
        lists = []
        for space, stored, half, asked in (
            (pairs.new_space, pairs.new, halves[0], query.search_new),
            (pairs.old_space, pairs.old, halves[1], query.search_old),
        ):
            assert asked is not None
            prepared = space.prepared(asked[None], field="query")
            scores = space.scores(prepared, stored[half])[0]
            best = np.argsort(-scores, kind="stable")[:50]
            lists.append((half[best], scores[best]))
        (new_rows, new_scores), (old_rows, old_scores) = lists
        places, _ = query.join(new_scores, old_scores, k=K, old_vectors=pairs.old[old_rows])
        got = np.concatenate([new_rows, old_rows])[places]
        found += len(np.intersect1d(got, rows[truth[number]]))
    return found / (queries * K)


@pytest.mark.parametrize("metric", list(Metric))
def test_a_rotated_model_is_joined_without_loss(metric: Metric) -> None:
    old = vectors(1_200, 12, seed=1)
    new = old @ rotation(12, seed=2)
    if metric is Metric.L2:
        new = 3 * new + 5
    bridge = choose(pairs_of(old[:900], new[:900], metric), share=0.5, k=K, seed=3)
    for kind in QueryKind:
        held_out = bridge.ways[kind].held_out
        assert held_out[bridge.ways[kind].join] >= 0.97
        assert recall(bridge, old, new, metric=metric, queries=40, kind=kind) >= 0.97


def test_a_model_of_another_dimension_with_noise_is_joined() -> None:
    rng = np.random.default_rng(4)
    old = vectors(1_800, 24, seed=5)
    noise = 0.3 * rng.standard_normal((1_800, 8))
    new = (old @ rng.standard_normal((24, 8)) / 4 + noise).astype(np.float32)
    chosen, single = choose_each(pairs_of(old[300:1_050], new[300:1_050]), share=0.5, k=K, seed=7)
    assert set(single) == set(Join)
    for kind in (QueryKind.BOTH, QueryKind.NEW):
        recalls = {
            join: recall(single[join], old, new, queries=300, kind=kind) for join in COMPARED
        }
        got = recall(chosen, old, new, queries=300, kind=kind)
        # 750 pairs tell ways apart that differ by more than about 0.02.
        assert got >= max(recalls.values()) - 0.02, (kind, got, recalls)
        assert got >= recalls[Join.RAW] + 0.05


def test_on_the_samples_the_chosen_way_beats_raw_scores_and_plain_ranks() -> None:
    queries, rows = 250, 2_000
    rng = np.random.default_rng(21)
    tables = [(pq.read_table(SAMPLE_QUERIES), queries), (pq.read_table(SAMPLE_BASE), rows)]
    columns = []
    for name in ("minilm_l6", "paraphrase_l3"):
        parts = [
            np.asarray(table[name].slice(0, count).combine_chunks().flatten()).reshape(count, -1)
            for table, count in tables
        ]
        # Fewer dimensions, so that the test is quick.
        axes = rng.standard_normal((384, 64)).astype(np.float32)
        columns.append(np.concatenate(parts).astype(np.float32) @ axes)
    old, new = columns
    migrated = slice(queries, queries + rows // 2)
    chosen, single = choose_each(pairs_of(old[migrated], new[migrated]), share=0.5, k=K, seed=7)
    recalls = {
        join: recall(single[join], old, new, queries=queries, kind=QueryKind.BOTH)
        for join in COMPARED
    }
    got = recall(chosen, old, new, queries=queries, kind=QueryKind.BOTH)
    assert got >= max(recalls.values()) - 0.01, (got, recalls)
    assert got >= recalls[Join.RAW] + 0.03, (got, recalls)


def test_the_same_seed_chooses_the_same() -> None:
    old = vectors(500, 8, seed=8)
    pairs = pairs_of(old, old @ rotation(8, seed=9))
    first, second = (choose(pairs, share=0.3, seed=10) for _ in range(2))
    assert encode_bridge(first) == encode_bridge(second)


@pytest.mark.parametrize("count", [0, 1, 2, PAIRS_MIN - 1])
@pytest.mark.parametrize("metric", list(Metric))
def test_too_few_pairs_join_ranks_and_say_so(count: int, metric: Metric) -> None:
    old = vectors(max(count, 1), 6, seed=11)
    bridge = choose(pairs_of(old[:count], old[:count, :4], metric), share=0.5, seed=12)
    for kind in QueryKind:
        assert bridge.ways[kind].join is Join.RANKS
        assert bridge.ways[kind].reason.startswith(f"{count} pairs, {PAIRS_MIN} are needed")
    query = bridge.query(new=np.ones(4))
    assert (query.search_old is None) == (count == 0)
    places, scores = query.join([0.9, 0.8, 0.7], [5.0, 4.0, 3.0], k=4)
    assert places.tolist() == [0, 3, 1, 4]
    assert (np.diff(scores) <= 0).all()


def test_vectors_that_are_too_long_to_be_mapped_join_ranks() -> None:
    long = np.ones((PAIRS_MIN, DIMENSION_MAX + 1), dtype=np.float32)
    bridge = choose(pairs_of(long, long[:, :3]), share=0.5, seed=13)
    assert bridge.ways[QueryKind.BOTH].reason.startswith(f"vectors of {DIMENSION_MAX + 1} floats")
    assert bridge.query(old=long[0]).search_new is None


@settings(max_examples=15, deadline=None)
@example(400, 1, 1, (Metric.L2, Metric.COSINE), 0.0, 1e16, "one outlier")
@given(
    count=st.sampled_from([0, 1, 3, PAIRS_MIN, PAIRS_MIN + 37]),
    old_dimension=st.integers(1, 9),
    new_dimension=st.integers(1, 9),
    metrics=st.tuples(st.sampled_from(list(Metric)), st.sampled_from(list(Metric))),
    share=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    length=st.sampled_from([0.0, 1e-18, 1.0, 1e16]),
    shape=st.sampled_from(["random", "constant", "two values", "old constant", "one outlier"]),
)
def test_whatever_the_pairs_scores_are_finite(
    count: int,
    old_dimension: int,
    new_dimension: int,
    metrics: tuple[Metric, Metric],
    share: float,
    length: float,
    shape: str,
) -> None:
    rng = np.random.default_rng(14)
    old = rng.standard_normal((count, old_dimension)).astype(np.float32)
    new = rng.standard_normal((count, new_dimension)).astype(np.float32)
    if shape in {"constant", "old constant"}:
        old[:] = 1.0
    if shape == "constant":
        new[:] = 1.0
    if shape == "two values":
        old[:], new[:] = np.sign(old[:, :1]), np.sign(new[:, :1])
    if shape == "one outlier":
        old[:1] *= 1e6
    old, new = old * np.float32(length), new * np.float32(length)
    pairs = Pairs.of(old, new, old_metric=metrics[0], new_metric=metrics[1])
    bridge = choose(pairs, share=share, k=3, seed=15)
    candidates = np.concatenate([old[:5], np.full((1, old_dimension), length, np.float32)])
    for kind in QueryKind:
        query = bridge.query(
            old=None if kind is QueryKind.NEW else candidates[0],
            new=None if kind is QueryKind.OLD else np.full(new_dimension, length),
        )
        assert all(
            one is None or np.isfinite(one).all() for one in (query.search_old, query.search_new)
        )
        scores = query.score_old(np.zeros(len(candidates)), vectors=candidates)
        assert scores.shape == (len(candidates),)
        assert np.isfinite(scores).all()


def test_bad_arguments_are_named() -> None:
    old = vectors(20, 4, seed=16)
    with pytest.raises(InvalidArgument, match="new: has 19 rows for 20 of old"):
        pairs_of(old, old[:19])
    with pytest.raises(InvalidArgument, match="old: has NaN"):
        pairs_of(np.full_like(old, np.nan), old)
    with pytest.raises(InvalidArgument, match=r"old: has the shape \(4,\)"):
        pairs_of(old[0], old)
    pairs = pairs_of(old, old)
    with pytest.raises(InvalidArgument, match="share: is 2"):
        choose(pairs, share=2.0, seed=0)
    with pytest.raises(InvalidArgument, match="k: is 0"):
        choose(pairs, share=0.5, k=0, seed=0)
    bridge = choose(pairs, share=0.5, seed=0)
    with pytest.raises(InvalidArgument, match="query: has no vector"):
        bridge.query()
    with pytest.raises(InvalidArgument, match=r"old: has the shape \(1, 3\), give \(n, 4\)"):
        bridge.query(old=np.ones(3))


def test_a_bridge_that_needs_vectors_says_so() -> None:
    old = vectors(500, 8, seed=17)
    new = old @ np.diag([9.0, 7, 5, 3, 1, 1, 1, 1]).astype(np.float32)
    bridge = choose(pairs_of(old, new), share=0.5, seed=19)
    query = bridge.query(old=old[0], new=new[0])
    assert query.needs_vectors
    with pytest.raises(InvalidArgument, match="vectors: are needed"):
        query.score_old([1.0])


def test_a_map_must_be_better_by_a_margin_that_shrinks_with_more_pairs() -> None:
    held_out = {Join.RANKS: 0.50, Join.RAW: 0.40, Join.AFFINE: 0.51}
    assert plan_join(held_out, pairs=400) is Join.RANKS
    assert plan_join(held_out, pairs=5_000) is Join.AFFINE
    assert plan_join({**held_out, Join.LANDMARKS: 0.54}, pairs=400) is Join.LANDMARKS


def test_more_pairs_or_another_share_ask_for_a_refit() -> None:
    old = vectors(PAIRS_MIN, 4, seed=20)
    few = choose(pairs_of(old[:0], old[:0]), share=0.0, seed=0)
    assert not refit_due(few, pairs=PAIRS_MIN - 1, share=0.2)
    assert refit_due(few, pairs=PAIRS_MIN, share=0.2)
    fitted = choose(pairs_of(old, old), share=0.2, seed=0)
    assert not refit_due(fitted, pairs=PAIRS_MIN + 100, share=0.25)
    assert refit_due(fitted, pairs=PAIRS_MIN * 3 // 2, share=0.25)
    assert refit_due(fitted, pairs=PAIRS_MIN, share=0.31)
    assert PAIRS_MAX >= 1_000
