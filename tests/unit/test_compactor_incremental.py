"""Incremental merges: the graph of the base is kept and extended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from annheal.compactor.build import base_plan, calibrate, storage
from annheal.compactor.build.build import HNSW_ROWS_MIN, BuildOrder, build_segment
from annheal.compactor.build.calibrate import held_out_count, meets_objective
from annheal.compactor.build.incremental import Base
from annheal.compactor.fetch import Source
from annheal.index import VectorIndex
from annheal.index.kernels import loaded
from annheal.index.kernels.catalog import MERGE_KERNELS
from annheal.model.collection import CollectionSettings, IndexSettings, VectorStorage
from annheal.model.records import EVERYTHING
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.model.topology.task import TaskReason
from annheal.runtime.stop import YieldPoint
from annheal.segment import DeleteVector, GraphHistory, GraphKind, RecallPoint, Segment, SegmentRows
from annheal.segment.meta import decode_meta, encode_meta
from annheal.shards.routing import hash_ids
from tests.support.compaction import collection
from tests.support.damaged_graph import damaged_graph
from tests.support.graphs import assert_valid_graph, levels_of
from tests.support.segments import MODEL, open_local, sample_rows, write_sample

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

ROWS, NEW, DEAD = 3_000, 200, 150


@pytest.fixture(autouse=True)
def _bases_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_plan, "BASE_ROWS_MIN", HNSW_ROWS_MIN)


def merge(
    directory: Path,
    name: str,
    sources: list[Source],
    reason: TaskReason = TaskReason.MERGE,
    settings: CollectionSettings | None = None,
) -> Segment:
    order = BuildOrder(
        segment_id=name,
        tier=Tier.WARM,
        collection=collection(settings=settings),
        threads=2,
        created_at_s=5.0,
        on_progress=lambda share: None,
        reason=reason,
    )
    entry = build_segment(sources, order, directory=directory / name)
    assert entry is not None
    return open_local(directory / name, entry)


def flat(directory: Path, name: str, rows: SegmentRows) -> Source:
    entry = write_sample(directory / name, segment_id=name, rows=rows)
    return Source(open_local(directory / name, entry), DeleteVector.empty(len(rows)))


def with_dead(segment: Segment, dead: npt.NDArray[np.int64]) -> Source:
    return Source(segment, DeleteVector.empty(segment.rows).with_dead(dead))


@pytest.fixture
def graph(tmp_path: Path) -> Segment:
    return merge(tmp_path, "graph", [flat(tmp_path, "first", sample_rows(ROWS))])


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (
            TaskReason.MERGE,
            "the kernels that extend a graph (carry-links, mark-reached) are missing",
        ),
        (TaskReason.RECALL, "the task is a rewrite for recall"),
    ],
)
def test_the_log_says_why_the_graph_is_rebuilt(
    tmp_path: Path,
    graph: Segment,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reason: TaskReason,
    why: str,
) -> None:
    missing = {
        kernel: code for kernel, code in loaded._loaded.items() if kernel not in MERGE_KERNELS
    }
    monkeypatch.setattr(loaded, "_loaded", missing)
    monkeypatch.setattr(loaded, "_suppliers", 0)
    new = flat(tmp_path, "new", sample_rows(NEW, first=ROWS))
    with caplog.at_level("INFO"):
        made = merge(tmp_path, "made", [with_dead(graph, np.arange(0)), new], reason)
    assert made.meta.build.graph.kind is GraphKind.FULL
    assert f"the graph of {ROWS + NEW} rows is rebuilt: {why}" in caplog.text


def test_a_quantized_base_is_extended_and_nothing_of_its_codes_is_kept(
    tmp_path: Path,
) -> None:
    first = [flat(tmp_path, "first", sample_rows(ROWS))]
    int8 = CollectionSettings(storage=VectorStorage.INT8)
    base = merge(tmp_path, "base", first, settings=int8)
    assert (base.storage, base.meta.build.graph.kind) == (VectorStorage.INT8, GraphKind.FULL)
    dead = np.random.default_rng(3).permutation(ROWS)[:DEAD].astype(np.int64)
    new = sample_rows(NEW, first=ROWS)
    sources = [flat(tmp_path, "new", new), with_dead(base, dead)]
    for wanted in VectorStorage:
        settings = CollectionSettings(storage=wanted)
        merged = merge(tmp_path, f"merged-{wanted}", sources, settings=settings)
        assert merged.meta.build.graph.kind is GraphKind.INCREMENTAL
        assert (merged.storage, merged.kind) == (wanted, IndexKind.HNSW)
        assert meets_objective(merged.recall_curve, k=10, objective=0.95)
        numbers = np.array([int(name.removeprefix("record-")) for name in merged.ids.to_pylist()])
        everything = np.concatenate([sample_rows(ROWS).vectors, new.vectors])
        np.testing.assert_array_equal(merged.vectors, everything[numbers])


def test_recall_under_filters_is_not_taken_over_from_another_storage(graph: Segment) -> None:
    point = RecallPoint(10, 64, 0.97, band="0.5")
    build_info = replace(graph.meta.build, recall_curve=(*graph.recall_curve, point))
    graph.meta = replace(graph.meta, build=build_info)
    kept = np.arange(ROWS)
    same, other = (
        Base(graph, kept, IndexSettings(), (), ROWS, wanted)
        for wanted in (VectorStorage.FLOAT32, VectorStorage.INT8)
    )
    assert same.bands(ROWS) == (point,)
    assert other.bands(ROWS) == ()
    assert other.history(ROWS).changed_rows == 0


def test_base_keeps_its_rows_in_front_and_every_row_is_itself(
    tmp_path: Path, graph: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert graph.meta.build.graph == GraphHistory(kind=GraphKind.FULL)
    measured: list[tuple[int, npt.NDArray[np.float32]]] = []
    real = calibrate.measure_recall

    def noting(
        index: VectorIndex, queries: npt.NDArray[np.float32], *, k: int, yield_point: YieldPoint
    ) -> tuple[RecallPoint, ...]:
        measured.append((index.rows, queries.copy()))
        return real(index, queries, k=k, yield_point=yield_point)

    monkeypatch.setattr(calibrate, "measure_recall", noting)
    new = sample_rows(NEW, first=ROWS)
    dead = np.random.default_rng(3).permutation(ROWS)[:DEAD].astype(np.int64)
    gone = set(graph.ids_at(dead))
    sources = [flat(tmp_path, "new", new), with_dead(graph, dead)]
    merged = merge(tmp_path, "merged", sources)

    live = ROWS - DEAD + NEW
    build_info = merged.meta.build
    assert (merged.kind, merged.rows) == (IndexKind.HNSW, live)
    assert build_info.graph.kind is GraphKind.INCREMENTAL
    assert build_info.graph.merges == 1
    assert build_info.graph.reference == tuple(p for p in graph.recall_curve if not p.band)
    assert build_info.graph.reference_rows == ROWS
    assert build_info.sources == ("new", "graph")
    assert build_info.settings == graph.meta.build.settings
    assert meets_objective(merged.recall_curve, k=10, objective=0.95)
    assert_valid_graph(merged.index, m=16)

    records = merged.take(np.arange(live), EVERYTHING)
    numbers = np.array([int(name.removeprefix("record-")) for name in records.ids])
    assert set(records.ids) == ({f"record-{n}" for n in range(ROWS + NEW)} - gone)
    everything = np.concatenate([sample_rows(ROWS).vectors, new.vectors])
    np.testing.assert_array_equal(merged.vectors, everything[numbers])
    np.testing.assert_array_equal(merged.sequences, numbers * 10)

    # The held-out rows are random rows of both sources, removed from the graph for the measurement.
    held_out = held_out_count(live)
    [(rows, queries)] = measured
    assert rows == live - held_out
    np.testing.assert_array_equal(queries, merged.vectors[rows:])
    queries = numbers[-held_out:]
    expected = held_out * NEW / live
    assert expected / 3 < np.count_nonzero(queries >= ROWS) < expected * 3
    # The base comes first, with the levels that its rows had.
    of_base = int(np.count_nonzero(numbers[:-held_out] < ROWS))
    assert (numbers[:of_base] < ROWS).all()
    old = graph.find(records.ids[:of_base], hash_ids(records.ids[:of_base]))
    np.testing.assert_array_equal(levels_of(merged.index)[:of_base], levels_of(graph.index)[old])


def test_merges_are_counted_up_to_the_limit_and_then_the_graph_is_rebuilt(
    tmp_path: Path, graph: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_plan, "MERGES_MAX", 2)
    kinds, merges = [], []
    for number in range(4):
        new = sample_rows(NEW, first=ROWS + number * NEW)
        dead = np.arange(number, graph.rows, 30)
        graph = merge(
            tmp_path, f"m{number}", [with_dead(graph, dead), flat(tmp_path, f"n{number}", new)]
        )
        kinds.append(graph.meta.build.graph.kind.value)
        merges.append(graph.meta.build.graph.merges)
    assert kinds == ["incremental", "incremental", "full", "incremental"]
    assert merges == [1, 2, 0, 1]
    assert graph.entry.generation == 5


def test_a_graph_with_less_recall_than_the_last_rebuilt_one_is_rebuilt(
    tmp_path: Path, graph: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [with_dead(graph, np.arange(100)), flat(tmp_path, "n", sample_rows(NEW, first=ROWS))]
    monkeypatch.setattr(base_plan, "DRIFT_MAX", -1.0)
    merged = merge(tmp_path, "merged", sources)
    assert merged.meta.build.graph == GraphHistory(kind=GraphKind.FULL)
    assert merged.rows == ROWS - 100 + NEW
    monkeypatch.undo()
    monkeypatch.setattr(base_plan, "BASE_ROWS_MIN", HNSW_ROWS_MIN)
    recall = merge(tmp_path, "recall", sources, TaskReason.RECALL)
    assert recall.meta.build.graph.kind is GraphKind.FULL


def test_damage_of_a_base_is_not_carried_over(tmp_path: Path, graph: Segment) -> None:
    vectors = np.array(graph.vectors)
    cut = damaged_graph(vectors, metric=MODEL.metric, lost_share=0.3)
    segment = open_local(tmp_path / "graph", graph.entry)
    damaged = Segment(
        entry=segment.entry,
        meta=segment.meta,
        index=cut,
        columns=segment.columns,
        lookup=segment.lookup,
        indexed=segment.indexed,
    )
    new = flat(tmp_path, "n", sample_rows(NEW, first=ROWS))
    merged = merge(tmp_path, "merged", [with_dead(damaged, np.arange(50)), new])
    found, _ = merged.index.search(np.array(merged.vectors[:500]), k=1, ef=64)
    assert (found[:, 0] > 0.999).mean() > 0.99


def test_recall_under_filters_is_taken_over_until_too_many_rows_changed(
    tmp_path: Path, graph: Segment
) -> None:
    band = RecallPoint(10, 64, 0.97, band="0.5")
    info = replace(graph.meta.build, recall_curve=(*graph.recall_curve, band))
    rows = SegmentRows(
        ids=graph.ids,
        sequences=np.array(graph.sequences),
        vectors=np.array(graph.vectors),
        attributes=sample_rows(ROWS).attributes,
        payloads=sample_rows(ROWS).payloads,
    )
    entry = write_sample(tmp_path / "b", segment_id="b", rows=rows, index=graph.index, build=info)
    segment = open_local(tmp_path / "b", entry)
    changed: list[int] = []
    for number in range(3):
        new = flat(tmp_path, f"n{number}", sample_rows(NEW, first=ROWS + number * NEW))
        segment = merge(tmp_path, f"m{number}", [with_dead(segment, np.arange(0)), new])
        changed.append(segment.meta.build.graph.changed_rows)
        if not changed[-1]:
            break
        assert band in segment.recall_curve
    # Rows added, and rows held out of the base and added again, up to a quarter of all.
    assert changed[0] > NEW
    assert changed[-1] == 0
    assert not any(point.band for point in segment.recall_curve)


def test_history_survives_the_file_and_is_unknown_in_older_ones(graph: Segment) -> None:
    history = GraphHistory(
        kind=GraphKind.INCREMENTAL,
        merges=3,
        changed_rows=7,
        reference_rows=5,
        reference=(RecallPoint(10, 64, 0.97),),
    )
    meta = replace(graph.meta, build=replace(graph.meta.build, graph=history))
    assert decode_meta(encode_meta(meta), segment_id=meta.segment_id) == meta
    document = msgspec.json.decode(encode_meta(meta))
    del document["build"]["graph"]
    read = decode_meta(msgspec.json.encode(document), segment_id=meta.segment_id)
    assert read == replace(meta, build=replace(meta.build, graph=GraphHistory()))


def test_reference_is_what_rows_say_where_live_queries_are_harder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (RecallPoint(10, 64, 0.99),)
    live = (RecallPoint(10, 64, 0.96),)

    def harder(
        index: VectorIndex, held_out: npt.NDArray[np.float32], **options: object
    ) -> calibrate.Calibration:
        return calibrate.Calibration(live, rows, held_out)

    monkeypatch.setattr(storage, "calibrate", harder)
    first = merge(tmp_path, "first", [flat(tmp_path, "rows", sample_rows(ROWS))])
    assert first.recall_curve == live
    assert first.meta.build.graph.reference == rows
    new = flat(tmp_path, "new", sample_rows(NEW, first=ROWS))
    merged = merge(tmp_path, "merged", [with_dead(first, np.arange(0)), new])
    assert merged.meta.build.graph.kind is GraphKind.INCREMENTAL
    assert merged.meta.build.graph.reference == rows
    assert merged.recall_curve == live
