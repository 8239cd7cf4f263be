"""The benchmark of intervals: planted means are true, every method runs, failures are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.datasets.recall_populations import BANDS, BY_NAME, POPULATIONS, RecallPopulation
from benchmarks.impact.recall_intervals import (
    BEFORE,
    CHOSEN,
    Cell,
    measure_bands,
    measure_population,
    requirements,
)
from benchmarks.systems.interval_methods import METHODS


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda one: one.name)
def test_samples_have_the_planted_mean(population: RecallPopulation) -> None:
    drawn = population.draw(np.random.default_rng(2), samples=300, n=64, k=10)
    assert drawn.values.shape == (300, 64)
    error = drawn.values.mean(axis=1).std() / np.sqrt(300)
    assert drawn.values.mean() == pytest.approx(population.mean, abs=4 * error)
    assert drawn.truth.mean() == pytest.approx(population.mean, abs=4 * error)
    if drawn.times is not None:
        assert (drawn.times.sum(axis=1) == 64).all()


def test_every_method_is_measured_and_what_fails_is_told() -> None:
    population = BY_NAME["1.25 % find nothing"]
    cells = list(measure_population(population, n=256, k=10, repeats=300))
    by_method = {one.method: one for one in cells}
    assert list(by_method) == list(METHODS)
    assert by_method[CHOSEN].covers
    assert not by_method["normal"].covers
    assert by_method[CHOSEN].width < 1.3 * by_method[BEFORE].width
    bands = list(measure_bands(BANDS[0], repeats=20))
    assert all(one.holds for one in requirements(cells, bands, cost_ms=0.5))
    wrong: Cell = replace(by_method[CHOSEN], coverage=0.9, width=0.06)
    checks = requirements([wrong], bands, cost_ms=2.0)
    assert [one.holds for one in checks] == [False, False, False]
