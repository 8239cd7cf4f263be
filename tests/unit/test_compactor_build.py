from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from annheal.compactor.build import build, calibrate
from annheal.compactor.build.build import HNSW_ROWS_MIN, BuildOrder, build_segment
from annheal.compactor.build.calibrate import (
    CURVE_END_RECALL,
    EF_LADDER,
    ef_ladder,
    held_out_count,
    is_damaged,
    meets_objective,
    own_recall,
    recall_of,
)
from annheal.compactor.build.recalls import best_scores
from annheal.compactor.fetch import Source
from annheal.compactor.verify import verify_segment
from annheal.errors import DataCorruption
from annheal.index import VectorIndex, build_flat, build_hnsw
from annheal.model.collection import (
    AttributeField,
    AttributeType,
    Collection,
    CollectionSettings,
    IndexSettings,
    Metric,
    ModelSpec,
)
from annheal.model.records import EVERYTHING
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.model.topology.task import TaskReason
from annheal.objectstore.local import LocalObjectStore
from annheal.runtime.stop import YieldPoint
from annheal.segment import (
    BuildInfo,
    DeleteVector,
    RecallPoint,
    Segment,
    SegmentRows,
    upload_segment,
)
from tests.support.compaction import collection
from tests.support.damaged_graph import damaged_graph
from tests.support.segments import (
    MODEL,
    SCHEMA,
    open_local,
    sample_rows,
    unit_vectors,
    write_sample,
)


def source(
    directory: Path, rows: SegmentRows, *, dead: Iterable[int] = (), model: ModelSpec = MODEL
) -> Source:
    name = f"seg-{len(list(directory.glob('seg-*')))}"
    entry = write_sample(directory / name, segment_id=name, rows=rows, model=model)
    deletes = DeleteVector.empty(len(rows)).with_dead(np.array(sorted(dead), dtype=np.int64))
    return Source(open_local(directory / name, entry), deletes)


def merge(
    directory: Path,
    sources: list[Source],
    *,
    into: Collection | None = None,
    reason: TaskReason = TaskReason.MERGE,
) -> Segment | None:
    order = BuildOrder(
        segment_id="out",
        tier=Tier.WARM,
        collection=into or collection(),
        threads=1,
        created_at_s=5.0,
        on_progress=lambda share: None,
        reason=reason,
    )
    entry = build_segment(sources, order, directory=directory / "out")
    return None if entry is None else open_local(directory / "out", entry)


def test_live_rows_are_kept_as_they_are_and_dead_ones_are_gone(tmp_path: Path) -> None:
    first, second = sample_rows(30), sample_rows(20, first=30)
    sources = [source(tmp_path, first, dead=[0, 7, 29]), source(tmp_path, second, dead=[1])]
    merged = merge(tmp_path, sources)
    assert merged is not None
    numbers = [n for n in range(50) if n not in (0, 7, 29, 31)]
    everything = merged.take(np.arange(merged.rows), EVERYTHING)
    assert everything.ids == [f"record-{n}" for n in numbers]
    assert merged.sequences.tolist() == [n * 10 for n in numbers]
    assert everything.attributes is not None
    assert everything.payloads is not None
    assert everything.vectors is not None
    for position, number in enumerate(numbers):
        original, row = (first, number) if number < 30 else (second, number - 30)
        assert everything.payloads[position].as_py() == original.payloads[row].as_py()
        assert (
            everything.attributes.slice(position, 1).to_pylist()
            == original.attributes.slice(row, 1).to_pylist()
        )
        np.testing.assert_array_equal(everything.vectors[position], original.vectors[row])
    assert merged.kind is IndexKind.FLAT
    assert merged.meta.build.sources == ("seg-0", "seg-1")
    assert (merged.entry.generation, merged.entry.tier) == (1, Tier.WARM)
    assert (merged.entry.min_sequence, merged.entry.max_sequence) == (10, 490)


def test_nothing_is_written_when_no_row_lives(tmp_path: Path) -> None:
    rows = sample_rows(5)
    assert merge(tmp_path, [source(tmp_path, rows, dead=range(5))]) is None
    assert not (tmp_path / "out").exists()


def test_large_output_gets_a_graph_with_an_honest_recall_curve(tmp_path: Path) -> None:
    rows = sample_rows(HNSW_ROWS_MIN + 500)
    merged = merge(tmp_path, [source(tmp_path, rows, dead=range(100))])
    assert merged is not None
    assert merged.kind is IndexKind.HNSW
    assert merged.rows == HNSW_ROWS_MIN + 400
    assert merged.meta.build.settings == IndexSettings()
    curve = merged.recall_curve
    measured = [point for point in curve if point.k == 10 and not point.band]
    assert [point.ef for point in measured] == list(EF_LADDER)[: len(measured)]
    assert measured[-1].recall >= CURVE_END_RECALL or len(measured) == len(EF_LADDER)
    assert all(point.recall < CURVE_END_RECALL for point in measured[:-1])
    assert {point.k for point in curve} == {1, 10, 100, 1_000}
    for k in (1, 10, 100, 1_000):
        efs = [point.ef for point in curve if point.k == k and not point.band]
        assert efs == list(ef_ladder(10 if k == 1 else k))[: len(efs)]
    assert meets_objective(curve, k=10, objective=0.95)
    # Row i of the index is row i of the columns, though rows were moved for the measurement.
    numbers = np.array([int(name.removeprefix("record-")) for name in merged.ids.to_pylist()])
    assert sorted(numbers.tolist()) == list(range(100, len(rows)))
    np.testing.assert_array_equal(merged.vectors, rows.vectors[numbers])
    np.testing.assert_array_equal(merged.sequences, numbers * 10)
    assert merged.find(["record-0"], np.array([0], dtype=np.uint64)).tolist() == [-1]
    held_out = held_out_count(merged.rows)
    moved = numbers[-held_out:]
    assert (np.diff(numbers[:-held_out]) > 0).all()
    assert (np.diff(moved) > 0).all()


def test_recall_is_measured_with_rows_that_the_graph_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, npt.NDArray[np.float32]]] = []
    real = calibrate.measure_recall

    def noting(
        index: VectorIndex, queries: npt.NDArray[np.float32], *, k: int, yield_point: YieldPoint
    ) -> tuple[RecallPoint, ...]:
        seen.append((index.rows, queries.copy()))
        return real(index, queries, k=k, yield_point=yield_point)

    monkeypatch.setattr(calibrate, "measure_recall", noting)
    merged = merge(tmp_path, [source(tmp_path, sample_rows(HNSW_ROWS_MIN))])
    assert merged is not None
    [(rows, queries)] = seen
    assert rows == HNSW_ROWS_MIN - held_out_count(HNSW_ROWS_MIN)
    np.testing.assert_array_equal(queries, merged.vectors[rows:])


def with_equal(rows: SegmentRows, share: float) -> SegmentRows:
    """Return `rows` with one and the same vector in a random share of them."""
    vectors = rows.vectors.copy()
    equal = np.random.default_rng(2).permutation(len(rows))[: int(share * len(rows))]
    vectors[equal] = vectors[equal[0]]
    return replace(rows, vectors=vectors)


@pytest.mark.parametrize(("dimension", "share"), [(8, 0.9), (128, 0.5), (128, 0.9), (8, 1.0)])
async def test_many_equal_vectors_are_merged_and_found(
    tmp_path: Path, dimension: int, share: float
) -> None:
    """A walk does not leave equal vectors: a graph that misses the others is not kept."""
    model = ModelSpec("m", dimension, Metric.COSINE)
    rows = with_equal(sample_rows(3_000, model=model), share)
    merged = merge(tmp_path, [source(tmp_path, rows, model=model)], into=collection(model=model))
    assert merged is not None
    store = LocalObjectStore(tmp_path / "objects")
    await upload_segment(store, "c1", 0, tmp_path / "out", merged.entry)
    await verify_segment(
        store,
        collection_id="c1",
        shard=0,
        entry=merged.entry,
        rows=3_000,
        settings=CollectionSettings(),
        directory=tmp_path / "stored",
    )
    await store.close()
    assert not is_damaged(merged)
    if merged.kind is IndexKind.HNSW:
        assert own_recall(merged.index, k=10) >= CollectionSettings().recall_objective


def test_rows_that_no_graph_serves_are_left_flat_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "own_recall", lambda index, *, k, yield_point: 0.9)
    merged = merge(tmp_path, [source(tmp_path, sample_rows(HNSW_ROWS_MIN))])
    assert merged is not None
    assert merged.kind is IndexKind.FLAT
    assert merged.recall_curve == ()
    assert "recall 0.9000 of its own rows" in caplog.text
    assert "no graph of its 2000 different vectors meets the recall objective" in caplog.text


def test_an_objective_of_one_needs_no_graph(tmp_path: Path) -> None:
    into = collection(settings=CollectionSettings(recall_objective=1.0))
    merged = merge(tmp_path, [source(tmp_path, sample_rows(HNSW_ROWS_MIN))], into=into)
    assert merged is not None
    assert merged.kind is IndexKind.FLAT


def test_neighbours_much_nearer_than_they_are_long_count_as_found() -> None:
    """FAISS rounds squared distances of long vectors when it is asked for many at once."""
    noise = 1e-3 * np.random.default_rng(5).standard_normal((500, 384))
    vectors = (20 * unit_vectors(1, 384) + noise).astype(np.float32)
    index = build_flat(vectors, metric=Metric.L2)
    alone = np.concatenate([index.search(vectors[i : i + 1], k=10)[0] for i in range(500)])
    assert recall_of(alone, best_scores(index, vectors, k=10)) == 1.0


async def test_stored_graph_below_the_objective_is_refused(tmp_path: Path) -> None:
    merged = merge(tmp_path, [source(tmp_path, sample_rows(HNSW_ROWS_MIN))])
    assert merged is not None
    store = LocalObjectStore(tmp_path / "objects")
    await upload_segment(store, "c1", 0, tmp_path / "out", merged.entry)

    async def verify(*, rows: int, objective: float) -> None:
        await verify_segment(
            store,
            collection_id="c1",
            shard=0,
            entry=merged.entry,
            rows=rows,
            settings=CollectionSettings(recall_objective=objective),
            directory=tmp_path / "stored",
        )

    await verify(rows=HNSW_ROWS_MIN, objective=0.95)
    with pytest.raises(DataCorruption, match="recall"):
        await verify(rows=HNSW_ROWS_MIN, objective=1.1)
    with pytest.raises(DataCorruption, match="rows instead of"):
        await verify(rows=HNSW_ROWS_MIN + 1, objective=0.95)
    await store.close()


def test_id_that_lives_twice_keeps_its_newest_row(tmp_path: Path) -> None:
    old, new = sample_rows(6), sample_rows(6, seed=9)
    newer = replace(new, sequences=new.sequences + np.array([1_000, -5, 1_000, -5, 0, 7]))
    sources = [source(tmp_path, old), source(tmp_path, newer, dead=[5])]
    merged = merge(tmp_path, sources)
    assert merged is not None
    found = dict(zip(merged.ids.to_pylist(), merged.sequences.tolist(), strict=True))
    assert found == {
        "record-0": 1_000,
        "record-1": 10,
        "record-2": 1_020,
        "record-3": 30,
        "record-4": 40,
        "record-5": 50,
    }


def test_column_that_a_source_does_not_have_is_null(tmp_path: Path) -> None:
    wider = (*SCHEMA[:1], AttributeField("added", AttributeType.KEYWORD_LIST))
    merged = merge(tmp_path, [source(tmp_path, sample_rows(4))], into=collection(schema=wider))
    assert merged is not None
    records = merged.take(np.arange(4), EVERYTHING)
    assert records.attributes is not None
    assert records.attributes.to_pydict() == {
        "colour": ["red", "green", "blue", None],
        "added": [None] * 4,
    }


def test_vectors_of_two_models_are_never_in_one_index(tmp_path: Path) -> None:
    """Rows with vectors of a model that the collection has not any more have none."""
    other = ModelSpec("other-model", MODEL.dimension, Metric.COSINE)
    sources = [
        source(tmp_path, sample_rows(3)),
        source(tmp_path, sample_rows(3, first=3), model=other),
    ]
    merged = merge(tmp_path, sources)
    assert merged is not None
    assert (merged.meta.model, merged.entry.lacking) == (MODEL, 3)
    assert merged.ids_at(merged.lacking_rows) == ["record-3", "record-4", "record-5"]


def test_graph_below_the_objective_is_built_stronger_and_then_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[IndexSettings] = []
    enough_at = [2]

    def fake_measure(
        index: object, queries: object, *, k: int, yield_point: YieldPoint
    ) -> tuple[RecallPoint, ...]:
        return (RecallPoint(k, 512, 0.99 if len(tried) >= enough_at[0] else 0.5),)

    real_build = build.build_hnsw

    def noting_build(vectors: npt.NDArray[np.float32], **options: object) -> object:
        settings = options["settings"]
        assert isinstance(settings, IndexSettings)
        tried.append(settings)
        return real_build(vectors, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate, "measure_recall", fake_measure)
    monkeypatch.setattr(build, "build_hnsw", noting_build)
    rows = sample_rows(HNSW_ROWS_MIN)
    merged = merge(tmp_path / "a", [source(tmp_path / "a", rows)])
    assert merged is not None
    assert tried == [IndexSettings(16, 100), IndexSettings(32, 200)]
    assert merged.meta.build.settings == IndexSettings(32, 200)

    tried.clear()
    enough_at[0] = 99
    exact = merge(tmp_path / "b", [source(tmp_path / "b", rows)])
    assert exact is not None
    assert len(tried) == 3
    assert (exact.kind, exact.recall_curve) == (IndexKind.FLAT, ())


def test_rebuild_for_recall_is_stronger_unless_the_graph_was_damaged(tmp_path: Path) -> None:
    rows = sample_rows(HNSW_ROWS_MIN)
    curve = (RecallPoint(10, 64, 0.98), RecallPoint(10, 256, 1.0))
    info = BuildInfo(settings=IndexSettings(), generation=1, sources=("x",), recall_curve=curve)
    sound = build_hnsw(rows.vectors, metric=MODEL.metric, settings=IndexSettings(), threads=1)
    cut = damaged_graph(rows.vectors, metric=MODEL.metric, lost_share=0.3)
    for name, index, settings in (
        ("sound", sound, IndexSettings(32, 200)),
        ("cut", cut, IndexSettings(16, 100)),
    ):
        directory = tmp_path / name
        entry = write_sample(directory, segment_id=name, rows=rows, index=index, build=info)
        segment = open_local(directory, entry)
        assert is_damaged(segment) == (name == "cut")
        rebuilt = merge(
            directory, [Source(segment, DeleteVector.empty(len(rows)))], reason=TaskReason.RECALL
        )
        assert rebuilt is not None
        assert rebuilt.meta.build.settings == settings
        assert rebuilt.meta.build.reason == TaskReason.RECALL
        assert not is_damaged(rebuilt)


def test_recall_counts_equal_scores_as_found_and_ignores_padding() -> None:
    truth = np.array([[3, 2, 1], [5, -np.inf, -np.inf]], dtype=np.float32)
    assert recall_of(truth, truth) == 1.0
    tied = np.array([[3, 1, 1], [5, -np.inf, -np.inf]], dtype=np.float32)
    assert recall_of(tied, truth) == 1.0
    short = np.array([[3, 0.5, -np.inf], [-np.inf] * 3], dtype=np.float32)
    assert recall_of(short, truth) == pytest.approx((1 / 3 + 0) / 2)
    distances = -truth[:1, ::-1].copy()
    assert recall_of(distances, distances) == 1.0


def test_objective_is_met_at_the_collections_k_only() -> None:
    curve = [RecallPoint(10, 64, 0.90), RecallPoint(10, 512, 0.96), RecallPoint(100, 512, 0.99)]
    assert meets_objective(curve, k=10, objective=0.96)
    assert not meets_objective(curve, k=10, objective=0.97)
    assert CollectionSettings().recall_k == 10
