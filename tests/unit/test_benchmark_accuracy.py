"""What benchmarks conclude from figures: recall, ratios with intervals, the ef of equal recall."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.filters import summary
from benchmarks.harness.accuracy import hits_by_score, padded_scores, recall_by_score, verdict
from benchmarks.harness.pairs import paired_ratio
from benchmarks.harness.timing import await_in_turns, time_in_turns
from benchmarks.unfiltered import interpolated_ef


def test_recall_counts_scores_so_that_equal_rows_are_equal() -> None:
    truth = np.array([[0.9, 0.8, 0.8], [0.5, 0.4, -np.inf]], dtype=np.float32)
    assert recall_by_score(truth, truth) == 1.0
    found = np.array([[0.9, 0.8, 0.7], [0.5, 0.3, 0.2]], dtype=np.float32)
    assert hits_by_score(found, truth) == 3
    assert recall_by_score(found, truth) == pytest.approx(3 / 5)
    noisy = truth - np.float32(5e-7)
    assert recall_by_score(noisy, truth) == 1.0


def test_flat_scores_become_a_matrix() -> None:
    matrix = padded_scores(np.array([2, 0, 1]), np.array([3.0, 2.0, 1.0], dtype=np.float32), 2)
    expected = [[3.0, 2.0], [-np.inf, -np.inf], [1.0, -np.inf]]
    np.testing.assert_array_equal(matrix, np.array(expected, dtype=np.float32))


def test_a_promise_is_kept_at_its_limit() -> None:
    assert verdict(0.95, at_least=0.95) == "pass"
    assert verdict(0.9499, at_least=0.95) == "fail"
    assert verdict(3.0, at_most=3.0) == "pass"
    assert verdict(3.01, at_most=3.0) == "fail"
    assert verdict(math.nan, at_most=3.0) == "fail"


def test_ef_of_equal_recall_lies_between_the_measured_ones() -> None:
    points = [(16, 0.90), (32, 0.94), (64, 0.98)]
    assert interpolated_ef(points, 0.94) == 32
    assert interpolated_ef(points, 0.96) == 48
    assert interpolated_ef(points, 0.80) == 16
    assert interpolated_ef(points, 0.999) == 64


def test_the_ratio_of_pairs_has_an_interval_that_holds_it() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(1.0, 5.0, 60)
    measured = base * rng.normal(1.02, 0.01, 60)
    measured[::10] *= 3.0  # somebody else's work
    found = paired_ratio(measured.tolist(), base.tolist())
    assert found.low <= found.median <= found.high
    assert found.low > 1.01
    assert found.high < 1.03
    assert found == paired_ratio(measured.tolist(), base.tolist())
    wider = paired_ratio(measured[:8].tolist(), base[:8].tolist())
    assert wider.high - wider.low > found.high - found.low
    assert paired_ratio([2.0], [4.0]).median == 0.5
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])


def test_ways_take_turns_and_all_parts_are_asked() -> None:
    queries = np.arange(25, dtype=np.float32).reshape(25, 1)
    asked: list[tuple[str, int]] = []
    ways = {
        "a": lambda part: asked.append(("a", len(part))),
        "b": lambda part: asked.append(("b", len(part))),
    }
    took = time_in_turns(ways, queries, repeats=2, per_call=10)
    assert asked[:6] == [("a", 10), ("a", 10), ("a", 5), ("b", 10), ("b", 10), ("b", 5)]
    assert [name for name, _ in asked[6:]] == ["b"] * 3 + ["a"] * 3, "who begins changes"
    assert all(len(one.took_ms) == 3 for one in took.values())
    assert all(np.isfinite(one.p50_ms) for one in took.values())


async def test_awaited_ways_take_turns_too() -> None:
    seen: dict[str, list[float]] = {"a": [], "b": []}

    async def ask(name: str, part: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        seen[name].append(float(part[0, 0]))

    queries = np.arange(12, dtype=np.float32).reshape(12, 1)
    await await_in_turns(
        {"a": lambda part: ask("a", part), "b": lambda part: ask("b", part)}, queries, repeats=3
    )
    assert sorted(seen["a"]) == sorted(seen["b"]) == sorted([*range(12)] * 3)


def test_the_summary_of_filters_names_the_worst_lines() -> None:
    good = {"kind": "none", "selectivity": 100.0, "recall": 0.97, "ratio_to_unfiltered": 1.0}
    kept = summary([good, good | {"kind": "far", "selectivity": 5.0, "ratio_to_unfiltered": 2.9}])
    assert kept[0].startswith("worst recall 0.9700 (none 100.00 %), at least 0.95: pass; 0 of 2")
    assert kept[1].startswith("worst ratio 2.90 (far 5.00 %), at most 3: pass; 0 of 2")
    bad = {"kind": "year", "selectivity": 1.0, "recall": 0.9499, "ratio_to_unfiltered": 3.2}
    broken = summary([good, bad, good])
    assert "worst recall 0.9499 (year 1.00 %), at least 0.95: fail; 1 of 3" in broken[0]
    assert "worst ratio 3.20 (year 1.00 %), at most 3: fail; 1 of 3" in broken[1]
