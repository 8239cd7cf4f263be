"""A build that is told to stop ends after the slice that it is at, wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annheal.compactor.build import bands, slices
from annheal.compactor.build.bands import measure_bands
from annheal.compactor.build.build import BuildOrder, build_segment
from annheal.compactor.build.calibrate import EF_LIMIT, calibrate, own_recall
from annheal.compactor.fetch import Source
from annheal.index import VectorIndex, build_hnsw, merge_hnsw
from annheal.index.building import BUILD_BATCH_ROWS, batch_rows
from annheal.index.carry.merge import SLICE_ROWS
from annheal.model.collection import CollectionSettings, IndexSettings, Metric, VectorStorage
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import Tier
from annheal.runtime.stop import StopSignal, WorkStopped, YieldPoint
from annheal.segment import DeleteVector
from tests.support.compaction import collection
from tests.support.segments import open_local, sample_rows, unit_vectors, write_sample

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

ROWS, DIMENSION = 3_000, 8
COMPARISONS, BEAM_ROWS = 50 * ROWS, 4_000  # one walk for k 1,000 at the end of its ladder


class Searches:
    """Counts what the searches of every index do, and what they do between two yield points."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.on_call: Callable[[], None] = lambda: None
        self.most_compared = self.most_walked = 0
        self._compared = self._walked = 0
        for name in ("search", "search_matching", "walk_filtered"):
            self._count(name, monkeypatch)

    def yield_point(self) -> None:
        self._compared = self._walked = 0

    def _count(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(VectorIndex, name)

        def counted(index: VectorIndex, queries: Float32Matrix, **options: Any) -> Any:
            self.calls += 1
            if options.get("exact"):
                self._compared += len(queries) * index.rows
            elif "ef" in options:
                self._walked += len(queries) * options["ef"]
            else:
                self._compared += len(queries) * options["matching"].count
            self.most_compared = max(self.most_compared, self._compared)
            self.most_walked = max(self.most_walked, self._walked)
            try:
                return real(index, queries, **options)
            finally:
                self.on_call()

        monkeypatch.setattr(VectorIndex, name, counted)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Searches:
    monkeypatch.setattr(bands, "BAND_ROWS_MIN", 500)
    monkeypatch.setattr(bands, "FAR_ROWS_MIN", 1_000)
    monkeypatch.setattr(bands, "VISITED_QUERIES", 4)
    monkeypatch.setattr(bands, "BANDS_TIME_MIN_S", 600.0)  # a slow machine measures as many
    monkeypatch.setattr(slices, "SLICE_COMPARISONS", COMPARISONS)
    monkeypatch.setattr(slices, "SLICE_BEAM_ROWS", BEAM_ROWS)
    return Searches(monkeypatch)


@pytest.fixture(scope="module")
def graph() -> VectorIndex:
    vectors = unit_vectors(ROWS, DIMENSION)
    return build_hnsw(vectors, metric=Metric.COSINE, settings=IndexSettings(), threads=1)


QUERIES = unit_vectors(200, DIMENSION, seed=9)

MEASUREMENTS: dict[str, Callable[[VectorIndex, YieldPoint], object]] = {
    "calibration": lambda index, pause: calibrate(
        index, QUERIES, k=10, logged_queries=QUERIES[:50], yield_point=pause
    ),
    "bands": lambda index, pause: measure_bands(
        index, QUERIES, k=10, limit_s=60.0, yield_point=pause
    ),
    "own rows": lambda index, pause: own_recall(index, k=10, yield_point=pause),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_does_little_between_two_yield_points(
    graph: VectorIndex, searches: Searches, name: str
) -> None:
    MEASUREMENTS[name](graph, searches.yield_point)
    assert 0 < searches.most_compared <= COMPARISONS
    assert EF_LIMIT / 2 <= searches.most_walked <= BEAM_ROWS


def stopped_after(searches: Searches, call: int, run: Callable[[YieldPoint], object]) -> int:
    """Tell `run` to stop in the middle of a search; return how many more searches it did."""
    signal = StopSignal()
    searches.calls = 0

    def stop_at_call() -> None:
        if searches.calls == call:
            signal.stop()

    searches.on_call = stop_at_call
    with pytest.raises(WorkStopped):
        run(signal.check)
    return searches.calls - call


def spread(count: int, parts: int) -> Iterator[int]:
    """Yield `parts` numbers from 1 to less than `count`."""
    yield from np.linspace(1, count - 1, parts).astype(int).tolist()


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_stop_in_the_middle_of_a_measurement_ends_it_before_the_next_search(
    graph: VectorIndex, searches: Searches, name: str
) -> None:
    MEASUREMENTS[name](graph, searches.yield_point)
    for call in spread(searches.calls, 8):
        assert not stopped_after(searches, call, lambda pause: MEASUREMENTS[name](graph, pause))


@pytest.mark.parametrize("storage", [VectorStorage.FLOAT32, VectorStorage.INT8])
def test_a_stop_at_any_place_of_a_build_ends_it_before_the_next_search(
    tmp_path: Path, searches: Searches, storage: VectorStorage
) -> None:
    entry = write_sample(tmp_path / "in", segment_id="in", rows=sample_rows(ROWS))
    source = Source(open_local(tmp_path / "in", entry), DeleteVector.empty(ROWS))

    def build(yield_point: YieldPoint) -> object:
        order = BuildOrder(
            segment_id="out",
            tier=Tier.WARM,
            collection=collection(settings=CollectionSettings(storage=storage)),
            threads=1,
            created_at_s=5.0,
            on_progress=lambda share: None,
            yield_point=yield_point,
        )
        return build_segment([source], order, directory=tmp_path / "out")

    pauses: list[None] = []
    build(lambda: pauses.append(None))
    assert len(pauses) > searches.calls, "there are yield points without searches too"
    for call in spread(searches.calls, 4):
        assert not stopped_after(searches, call, build)


def test_rows_are_added_to_a_graph_in_small_batches() -> None:
    vectors = unit_vectors(1_600, DIMENSION)
    strong = IndexSettings(m=8, ef_construction=400)
    assert batch_rows(strong) == BUILD_BATCH_ROWS // 4
    assert batch_rows(IndexSettings(m=8, ef_construction=50)) == BUILD_BATCH_ROWS
    done = [0]
    base = build_hnsw(
        vectors, metric=Metric.L2, settings=strong, threads=1, on_progress=done.append
    )
    assert max(np.diff(done)) == BUILD_BATCH_ROWS // 4
    carried = [0]
    merge_hnsw(
        base,
        np.arange(1_200),
        vectors,
        settings=IndexSettings(m=8),
        threads=1,
        on_progress=carried.append,
    )
    assert max(np.diff(carried)) == SLICE_ROWS == BUILD_BATCH_ROWS
