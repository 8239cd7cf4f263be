"""Costs are measured once, in the background, and used from then on."""

from __future__ import annotations

import numpy as np
import pytest

from annheal.index import VectorIndex, build_flat, build_hnsw, warm_up
from annheal.model.collection import IndexSettings, Metric
from annheal.runtime.lane import Work
from annheal.runtime.stop import no_yield_point
from annheal.shard_node.search.costs import DEFAULT_COSTS, MEASURED_ROWS_MIN, MeasuredCosts
from tests.support.segments import unit_vectors

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)


class Offers:
    """Keeps what is offered, as long as `busy` is not set."""

    def __init__(self) -> None:
        self.taken: list[Work[None]] = []
        self.busy = False

    def __call__(self, work: Work[None], *, name: str) -> bool:
        if not self.busy:
            self.taken.append(work)
        return not self.busy


def test_defaults_until_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(MEASURED_ROWS_MIN, 8)
    index = build_hnsw(vectors, metric=Metric.COSINE, settings=IndexSettings(), threads=1)
    offers = Offers()
    costs = MeasuredCosts(offer=offers)
    monkeypatch.setattr(VectorIndex, "walk_ready", False)
    assert costs.costs_of(index) is DEFAULT_COSTS
    assert offers.taken == []
    monkeypatch.undo()
    warm_up()
    offers.busy = True
    costs.costs_of(index)
    offers.busy = False
    for _ in range(3):
        assert costs.costs_of(index) is DEFAULT_COSTS
    (measure,) = offers.taken
    measure(no_yield_point)
    measured = costs.costs_of(index)
    assert measured is not DEFAULT_COSTS
    assert 0 < measured.exact_ns(1_000) < measured.exact_ns(10_000)
    assert measured.walk_row_ns > 0
    assert costs.costs_of(index) is measured


def test_small_segments_and_other_kinds_say_nothing() -> None:
    warm_up()
    offers = Offers()
    costs = MeasuredCosts(offer=offers)
    small = build_flat(unit_vectors(100, 8), metric=Metric.L2)
    assert costs.costs_of(small) is DEFAULT_COSTS
    assert offers.taken == []
    flat = build_flat(unit_vectors(MEASURED_ROWS_MIN, 8), metric=Metric.L2)
    costs.measure(flat)
    assert costs.costs_of(flat) is not DEFAULT_COSTS
    graph = build_hnsw(
        np.ascontiguousarray(flat.vectors[:1_000]),
        metric=Metric.L2,
        settings=IndexSettings(),
        threads=1,
    )
    assert costs.costs_of(graph) is DEFAULT_COSTS
