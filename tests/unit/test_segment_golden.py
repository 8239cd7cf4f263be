from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from annheal.model.collection import VectorStorage
from annheal.model.records import EVERYTHING
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier
from annheal.segment import RecallPoint, decode_delete_vector
from annheal.shards.routing import hash_ids
from tests.support.segments import SCHEMA, attribute_batch, open_local, sample_columns, sample_rows

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
