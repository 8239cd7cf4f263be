"""Graphs that are carried over without their dead rows, repaired, and added to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.compactor.build.recalls import recalls_of
from annheal.index import (
    VectorIndex,
    build_flat,
    build_hnsw,
    load_mapped,
)
from annheal.index.carry.merge import CarriedLinks, is_base, merge_hnsw, unreachable_rows
from annheal.model.collection import IndexSettings, Metric
from tests.support.graphs import assert_valid_graph, levels_of, links_by_level
from tests.support.packages import load_packages
from tests.support.segments import unit_vectors

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

Matrix = npt.NDArray[np.float32]
TINY_GRAPH_NOISE = 0.1
"""What graphs of so few rows and links differ by in recall, whichever is the better one."""
SMALL = IndexSettings(m=4, ef_construction=20)
DIMENSION = 8


def built(vectors: Matrix, metric: Metric = Metric.L2, to: IndexSettings = SMALL) -> VectorIndex:
    return build_hnsw(vectors, metric=metric, settings=to, threads=1)


def live_rows(rows: int, dead: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.setdiff1d(np.arange(rows), dead)


def clusters(rows: int, *, seed: int) -> Matrix:
    """Return rows in eight clusters far apart: deleting a whole one leaves a hole."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, DIMENSION)) * 10
    return (centres[np.arange(rows) % 8] + rng.standard_normal((rows, DIMENSION))).astype(
        np.float32
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(2, 300),
    dead_share=st.floats(0.0, 0.95),
    added=st.one_of(st.just(0), st.integers(1, 120)),
    metric=st.sampled_from(list(Metric)),
    repair=st.booleans(),
    whole_clusters=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 999),
)
def test_whatever_dies_the_graph_is_valid_and_every_row_is_itself(
    rows: int,
    dead_share: float,
    added: int,
    metric: Metric,
    repair: bool,
    whole_clusters: bool,
    threads: int,
    seed: int,
) -> None:
    vectors = clusters(rows + added, seed=seed)
    if metric is Metric.COSINE:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    base = built(vectors[:rows], metric)
    rng = np.random.default_rng(seed)
    order = (
        np.argsort(np.arange(rows) % 8, kind="stable") if whole_clusters else rng.permutation(rows)
    )
    kept = live_rows(rows, order[: min(rows - 1, int(rows * dead_share))])
    merged_vectors = np.concatenate([vectors[kept], vectors[rows:]])
    told: list[CarriedLinks] = []
    merged = merge_hnsw(
        base,
        kept,
        merged_vectors,
        settings=SMALL,
        threads=threads,
        repair=repair,
        on_carried=told.append,
    )
    assert_valid_graph(merged, m=SMALL.m)
    np.testing.assert_array_equal(merged.vectors, merged_vectors)
    np.testing.assert_array_equal(levels_of(merged)[: len(kept)], levels_of(base)[kept])
    [links] = told
    assert links.unreachable == 0
    if not added:
        assert not len(unreachable_rows(merged))
    assert repair or links.made == 0
    scores, found = merged.search(merged_vectors, k=3, ef=64)
    truth, _ = build_flat(merged_vectors, metric=metric).search(merged_vectors, k=3)
    # What a row scores is what that row's own vector scores: nobody answers for a dead row.
    present = found >= 0
    products = np.take_along_axis(merged_vectors @ merged_vectors.T, np.maximum(found, 0), axis=1)
    lengths = np.einsum("ij,ij->i", merged_vectors, merged_vectors)
    apart = lengths[:, None] + lengths[np.maximum(found, 0)] - 2 * products
    expected = -apart if metric is Metric.L2 else products
    np.testing.assert_allclose(scores[present], expected[present], rtol=1e-3, atol=1e-2)
    if repair and not added and metric is not Metric.INNER_PRODUCT:  # which has hubs to lose
        before, _ = base.search(merged_vectors, k=3, ef=64)
        all_truth, _ = build_flat(vectors, metric=metric).search(merged_vectors, k=3)
        recall, of_base = recalls_of(scores, truth).mean(), recalls_of(before, all_truth).mean()
        assert recall >= of_base - TINY_GRAPH_NOISE


def test_links_to_live_rows_stay_and_the_lost_ones_are_replaced() -> None:
    vectors = unit_vectors(2_000, DIMENSION)
    base = built(vectors)
    dead = np.arange(0, 2_000, 10)
    kept = live_rows(2_000, dead)
    told: list[CarriedLinks] = []
    repaired = merge_hnsw(
        base, kept, vectors[kept], settings=SMALL, threads=1, on_carried=told.append
    )
    dropped = merge_hnsw(base, kept, vectors[kept], settings=SMALL, threads=1, repair=False)
    before, after, bare = (links_by_level(one) for one in (base, repaired, dropped))
    new_of_old = {int(old): new for new, old in enumerate(kept)}
    lost = made = 0
    for new, old in enumerate(kept.tolist()):
        for level, places in enumerate(before[old]):
            links = [place for place in places if place >= 0]
            stayed = [new_of_old[place] for place in links if place in new_of_old]
            assert set(stayed) <= set(after[new][level])
            assert bare[new][level] == stayed + [-1] * (len(places) - len(stayed))
            extra = set(after[new][level]) - set(stayed) - {-1}
            assert len(extra) <= len(links) - len(stayed)
            lost += len(links) - len(stayed)
            made += len(extra)
    assert told[0].lost == lost
    assert told[0].made == made > lost / 2


def test_row_that_lost_nearly_all_links_gets_a_floor_of_new_ones() -> None:
    vectors = unit_vectors(2_000, DIMENSION)
    base = built(vectors)
    poor = 7
    before = [place for place in links_by_level(base)[poor][0] if place >= 0]
    kept = live_rows(2_000, np.array(before[1:]))
    merged = merge_hnsw(base, kept, vectors[kept], settings=SMALL, threads=1)
    row = int(np.searchsorted(kept, poor))
    links = [place for place in links_by_level(merged)[row][0] if place >= 0]
    assert len(links) >= min(SMALL.m, len(before))


def test_graph_does_not_depend_on_threads_and_survives_writing(tmp_path: Path) -> None:
    vectors = unit_vectors(3_000, DIMENSION)
    base = built(vectors[:2_500])
    base.write(tmp_path / "base")
    mapped = load_mapped(tmp_path / "base", metric=Metric.L2)
    kept = live_rows(2_500, np.arange(0, 2_500, 7))
    rows = np.concatenate([vectors[kept], vectors[2_500:]])
    one = merge_hnsw(base, kept, rows, settings=SMALL, threads=1)
    two = merge_hnsw(mapped, kept, rows, settings=SMALL, threads=2)
    assert links_by_level(one) == links_by_level(two)
    two.write(tmp_path / "merged")
    read = load_mapped(tmp_path / "merged", metric=Metric.L2)
    for found, expected in zip(
        read.search(rows[:50], k=5), one.search(rows[:50], k=5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_probes_are_no_part_of_the_graph_that_is_measured() -> None:
    vectors = unit_vectors(1_000, DIMENSION)
    base = built(vectors[:900])
    kept = np.arange(100, 900)
    rows = np.concatenate([vectors[kept], vectors[900:]])
    measured: list[int] = []
    steps: list[int] = []
    merged = merge_hnsw(
        base,
        kept,
        rows,
        settings=SMALL,
        threads=1,
        on_progress=steps.append,
        probe_rows=60,
        probe=lambda part: measured.append(part.rows),
    )
    assert measured == [840]
    assert merged.rows == 900
    assert steps == sorted(steps)
    assert steps[-1] == 900

    class Ended(Exception):
        pass

    def end(done: int) -> None:
        raise Ended

    with pytest.raises(Ended):
        merge_hnsw(base, kept, rows, settings=SMALL, threads=2, on_progress=end)


def test_bases_that_do_not_fit_are_refused() -> None:
    vectors = unit_vectors(100, DIMENSION)
    flat = build_flat(vectors, metric=Metric.L2)
    base = built(vectors)
    everything = np.arange(100)
    assert is_base(base)
    assert not is_base(flat)
    with pytest.raises(ValueError, match="no graph"):
        merge_hnsw(flat, everything, vectors, settings=SMALL, threads=1)
    with pytest.raises(ValueError, match="M 8"):
        merge_hnsw(base, everything, vectors, settings=IndexSettings(m=8), threads=1)
    with pytest.raises(ValueError, match="probes"):
        merge_hnsw(base, everything, vectors, settings=SMALL, threads=1, probe_rows=1)


def test_recall_stays_that_of_a_rebuild_over_many_merges() -> None:
    """Of real packages a fifth is replaced six times; without repair recall falls."""
    vectors = load_packages().vectors
    queries = load_packages("packages-queries").vectors
    settings = IndexSettings()
    rows, replaced = 4_000, 800
    rng = np.random.default_rng(1)
    graphs = dict.fromkeys((True, False), built(vectors[:rows], Metric.COSINE, settings))
    live = vectors[:rows]
    for generation in range(6):
        kept = np.sort(rng.permutation(rows)[replaced:])
        first = rows + generation * replaced
        live = np.concatenate([live[kept], vectors[first : first + replaced]])
        graphs = {
            repair: merge_hnsw(base, kept, live, settings=settings, threads=2, repair=repair)
            for repair, base in graphs.items()
        }
    rebuilt = built(live, Metric.COSINE, settings)
    truth, _ = rebuilt.search(queries, k=10, exact=True)

    def recall(index: VectorIndex) -> float:
        return float(recalls_of(index.search(queries, k=10, ef=24)[0], truth).mean())

    assert recall(graphs[True]) > recall(rebuilt) - 0.01
    assert recall(graphs[False]) < recall(rebuilt) - 0.015
