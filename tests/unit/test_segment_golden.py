from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from annheal.errors import DataCorruption
from annheal.model.collection import VectorStorage
from annheal.model.records import EVERYTHING
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier
from annheal.segment import RecallPoint, decode_delete_vector
from annheal.segment.parts.files import local_part
from annheal.segment.parts.segment import PartSegment
from annheal.shards.routing import hash_ids
from tests.support.segments import (
    SCHEMA,
    attribute_batch,
    open_local,
    sample_columns,
    sample_rows,
    unit_vectors,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "segment-v1"
ROWS = 20


def golden_entry() -> SegmentEntry:
    return msgspec.json.decode((GOLDEN / "entry.json").read_bytes(), type=SegmentEntry)


def test_segment_of_format_1_opens_for_ever() -> None:
    segment = open_local(GOLDEN, golden_entry())
    assert (segment.id, segment.rows, segment.kind) == ("golden-v1", ROWS, IndexKind.HNSW)
    assert segment.meta.format_version == 1
    assert segment.meta.tier is Tier.HOT
    assert segment.meta.build.sources == ("seg-a", "seg-b")
    assert segment.recall_curve == (RecallPoint(10, 16, 0.9), RecallPoint(10, 32, 1.0))
    ids = [f"record-{i}" for i in range(ROWS)]
    assert segment.find(ids, hash_ids(ids)).tolist() == list(range(ROWS))
    assert segment.sequences.tolist() == [i * 10 for i in range(ROWS)]
    records = segment.take(np.arange(ROWS), EVERYTHING)
    assert records.ids == ids
    assert records.attributes is not None
    assert records.attributes.equals(attribute_batch(SCHEMA, sample_columns(ROWS)))
    assert records.payloads is not None
    assert records.payloads.to_pylist()[:4] == [b'{"n": 0}', b'{"n": 1}', b'{"n": 2}', None]
    assert records.vectors is not None
    _, rows = segment.index.search(records.vectors, k=1)
    assert rows[:, 0].tolist() == list(range(ROWS))


def test_delete_vector_of_format_1_opens_for_ever() -> None:
    body = (GOLDEN / "deletes.bin").read_bytes()
    vector = decode_delete_vector(body, key="deletes.bin", rows=ROWS)
    assert vector.dead_rows().tolist() == [0, 7, 19]


@pytest.mark.parametrize("storage", [VectorStorage.FP16, VectorStorage.INT8])
def test_segment_of_format_3_opens_for_ever(storage: VectorStorage) -> None:
    folder = GOLDEN.parent / "segment-v3" / storage.value
    entry = msgspec.json.decode((folder / "entry.json").read_bytes(), type=SegmentEntry)
    segment = open_local(folder, entry)
    assert (segment.id, segment.rows, segment.kind) == (f"golden-v3-{storage}", 150, IndexKind.HNSW)
    assert (segment.meta.format_version, segment.storage) == (3, storage)
    assert segment.recall_curve == (RecallPoint(10, 16, 0.98),)
    written = sample_rows(150)
    np.testing.assert_array_equal(segment.vectors, written.vectors)
    scores, rows = segment.index.search(written.vectors, k=1)
    assert rows[:, 0].tolist() == list(range(150))
    np.testing.assert_allclose(scores[:, 0], 1.0, rtol=1e-6)
    assert segment.ids.to_pylist() == written.ids.to_pylist()


@pytest.mark.parametrize("storage", [VectorStorage.FLOAT32, VectorStorage.INT8])
def test_segment_of_format_4_opens_for_ever(storage: VectorStorage) -> None:
    """Rows 90 to 99 are copies of rows in the graph."""
    folder = GOLDEN.parent / "segment-v4" / storage.value
    entry = msgspec.json.decode((folder / "entry.json").read_bytes(), type=SegmentEntry)
    segment = open_local(folder, entry)
    assert (segment.rows, segment.meta.format_version, segment.storage) == (100, 4, storage)
    assert segment.meta.graph_rows == segment.index.graph_size == 90
    originals = np.array([3, 3, 3, 3, 7, 20, 20, 21, 89, 89])
    copies = np.arange(90, 100)
    assert segment.index.originals(copies).tolist() == originals.tolist()
    np.testing.assert_array_equal(
        segment.index.reconstruct(copies), segment.index.reconstruct(originals)
    )
    queries = segment.index.reconstruct(originals)
    _, rows = segment.index.search(queries, k=1)
    assert rows[:, 0].tolist() == originals.tolist()
    scores = segment.index.scores(queries, rows)
    found = segment.index.with_copies(rows, scores, k=9, live=None)
    assert sorted(found[0].tolist()) == [3, 90, 91, 92, 93]
    assert sorted(found[4][found[4] >= 0].tolist()) == [7, 94]


def test_segment_of_format_5_and_vector_part_of_format_1_open_for_ever() -> None:
    """Rows 3, 7 and 59 have no vector of the segment's model, every fourth none of the other."""
    folder = GOLDEN.parent / "segment-v5"
    entry = msgspec.json.decode((folder / "entry.json").read_bytes(), type=SegmentEntry)
    segment = open_local(folder, entry)
    assert (segment.meta.format_version, segment.lacking_rows.tolist()) == (5, [3, 7, 59])
    assert entry.lacking == 3
    own = segment.vectors_of(segment.meta.model.name, np.arange(60), dimension=0)
    assert np.flatnonzero(np.isnan(own).any(axis=1)).tolist() == [3, 7, 59]
    np.testing.assert_array_equal(own[10], sample_rows(60).vectors[10])

    (part_entry,) = entry.parts
    files = local_part(folder / "golden-part", segment.id, part_entry)
    part = PartSegment(segment, files)
    rows = [row for row in range(59, -1, -1) if row % 4]
    assert (part.id, part.rows, part.kind) == ("golden-part", 45, IndexKind.HNSW)
    assert part.base_rows.tolist() == rows
    assert part.recall_curve == (RecallPoint(10, 16, 0.98),)
    assert part.skipped == {"'text' of its source is missing": 2}
    vectors = unit_vectors(45, 5, seed=5)
    _, found = part.index.search(vectors, k=1)
    assert found[:, 0].tolist() == list(range(45))
    assert part.ids_at(found[:3, 0]) == ["record-59", "record-58", "record-57"]
    stored = part.vectors_at(np.array([0, 59, 1]))
    assert np.isnan(stored[0]).all()
    np.testing.assert_array_equal(stored[1:], vectors[[0, 44]])


def test_a_damaged_vector_part_is_named() -> None:
    folder = GOLDEN.parent / "segment-v5"
    entry = msgspec.json.decode((folder / "entry.json").read_bytes(), type=SegmentEntry)
    (part,) = entry.parts
    with pytest.raises(DataCorruption, match=r"vector part golden-part of segment golden-v5"):
        local_part(folder / "golden-part", "golden-v5", replace(part, meta_checksum="0" * 32))
    with pytest.raises(
        DataCorruption, match=r"has 45 vectors of 'new model', the manifest says 44"
    ):
        local_part(folder / "golden-part", "golden-v5", replace(part, rows=44))
