"""The growth benchmark: its sizes, its lines, and the vectors it can make up."""

from __future__ import annotations

import numpy as np
import pytest

from annheal.model.search import SegmentExplain
from benchmarks.growth import Measured, fixed_ef, row_of, sentences, sizes_of
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import HALF, REPOSITORY, parse_options
from benchmarks.harness.synthetic import clustered_vectors

KEYS = "mode rows segments ef recall p50_ms plan"


def explained(plan: str, *, rows: int, ef: int) -> SegmentExplain:
    return SegmentExplain(0, "s", plan, rows, rows, rows, ef, 0, 0.0)


def measured(recall: float, *efs: int) -> Measured:
    parts = tuple(explained("graph" if ef else "scan", rows=100, ef=ef) for ef in efs)
    return Measured(np.full(50, recall), parts)


def test_sizes_grow_up_to_the_data() -> None:
    assert sizes_of(100_000, None) == (1_000, 10_000, 100_000)
    assert sizes_of(1_000_000, None) == (1_000, 10_000, 100_000, 1_000_000)
    assert sizes_of(10_000, None) == (1_000, 2_500, 10_000)
    assert sizes_of(900, None) == (900,)
    assert sizes_of(5_000, (10, 500, 50_000)) == (10, 500)
    with pytest.raises(ValueError, match="none of the sizes"):
        sizes_of(5, (10,))


@pytest.mark.parametrize("text", ["10,10", "100,10", "0,5", "x"])
def test_sizes_that_do_not_grow_are_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--sizes", text])


def test_the_first_graph_names_the_ef_that_is_kept() -> None:
    assert fixed_ef([0]) is None
    assert fixed_ef([]) is None
    assert fixed_ef([48, 64, 0]) == 64


def test_lines_have_the_documented_keys() -> None:
    row = row_of("auto", 200, measured(0.97, 48, 0), 1.5)
    assert list(row) == KEYS.split()
    assert (row["ef"], row["plan"], row["segments"]) == ([48, 0], ["graph", "scan"], 2)
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert not [key for key in KEYS.split() if f"`{key}`" not in manual]


def test_it_says_what_is_exact_and_what_falls_short() -> None:
    [said] = sentences({"auto": measured(1.0, 0)}, 1_000)
    assert said == "1,000 rows: answered exactly, no segment has a graph; there is no ef"
    assert sentences({"auto": measured(0.99, 0)}, 1_000)[-1].endswith("fail")
    both = {"auto": measured(0.96, 64), "fixed": measured(0.94, 32)}
    kept, lost = sentences(both, 10_000)
    assert kept.startswith("10,000 rows, auto: ef 64, recall 0.9600")
    assert kept.endswith("pass")
    assert lost.startswith("10,000 rows, fixed: ef 32, recall 0.9400")
    assert lost.endswith("fail")


def test_generated_vectors_repeat_and_grow_by_more_of_the_same() -> None:
    few, queries = clustered_vectors(300, dimension=50, queries=20)
    many, same = clustered_vectors(500, dimension=50, queries=20)
    assert few.shape == (300, 50)
    assert few.dtype == np.float32
    np.testing.assert_array_equal(few, many[:300])
    np.testing.assert_array_equal(queries, same)
    assert not (queries[:, np.newaxis] == few).all(axis=2).any(), "a query is among the rows"
    other, _ = clustered_vectors(300, dimension=50, queries=20, seed=51)
    assert not np.array_equal(few, other)


def test_generated_vectors_have_clusters_and_a_falling_spectrum() -> None:
    vectors, queries = clustered_vectors(4_000, dimension=20, queries=100)
    deviations = vectors.std(axis=0)
    assert deviations[0] > 1.4 * deviations[10] > 1.5 * deviations[19]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    nearest = np.sort(asked @ unit.T, axis=1)[:, -1].mean()
    shuffled = np.random.default_rng(0).permuted(unit, axis=0)  # the spectrum without clusters
    shuffled /= np.linalg.norm(shuffled, axis=1, keepdims=True)
    assert nearest > np.sort(asked @ shuffled.T, axis=1)[:, -1].mean() + 0.02


def test_a_synthetic_dataset_is_named_and_takes_the_place_of_files() -> None:
    dataset = load_dataset(parse_options(["--synthetic", "700x16", "--limit", "600"]))
    assert (dataset.rows, dataset.dimension, dataset.schema) == (600, 16, {})
    assert dataset.name == "synthetic 700 x 16"
    assert not parse_options(["--synthetic", "700x16"]).on_samples
    for bad in (["--synthetic", "700"], ["--synthetic", "0x16"]):
        with pytest.raises(SystemExit):
            parse_options(bad)


def test_queries_that_chose_constants_can_be_left_out() -> None:
    everything = load_dataset(parse_options(["--limit", "100"])).queries
    options = parse_options(["--limit", "100"], queries_from=HALF)
    np.testing.assert_array_equal(load_dataset(options).queries, everything[250:])
    options = parse_options(["--limit", "100", "--queries-from", "490"], queries_from=HALF)
    np.testing.assert_array_equal(load_dataset(options).queries, everything[490:])
    with pytest.raises(ValueError, match="none is left from 500 on"):
        load_dataset(parse_options(["--queries-from", "500"]))
    for bad in ("-1", "third"):
        with pytest.raises(SystemExit):
            parse_options(["--queries-from", bad])
