from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.errors import InvalidArgument, InvariantViolation
from annheal.index import build_flat
from annheal.model.collection import AttributeField, AttributeType, Metric, ModelSpec
from annheal.model.records import EVERYTHING, IDS_ONLY, Projection
from annheal.segment import SegmentRows
from annheal.segment.lookup import IdLookup
from annheal.shards.routing import hash_ids
from tests.support.segments import (
    MODEL,
    SCHEMA,
    attribute_batch,
    open_local,
    sample_rows,
    unit_vectors,
    write_sample,
)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
VALUES: dict[AttributeType, st.SearchStrategy[Any]] = {
    AttributeType.KEYWORD: TEXT,
    AttributeType.KEYWORD_LIST: st.lists(TEXT, max_size=3),
    AttributeType.INT64: st.integers(-(2**63), 2**63 - 1),
    AttributeType.FLOAT64: st.floats(allow_nan=False),
    AttributeType.BOOL: st.booleans(),
    AttributeType.TIMESTAMP: st.integers(-(2**60), 2**60),
}


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_is_read(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.from_regex(r"\A[A-Za-z_][a-z]{0,5}\Z"), unique=True, max_size=4))
    schema = tuple(
        AttributeField(name, data.draw(st.sampled_from(list(AttributeType)))) for name in names
    )
    ids = data.draw(st.lists(TEXT.filter(bool), unique=True, min_size=1, max_size=12))
    n = len(ids)
    columns = {
        field.name: data.draw(
            st.lists(st.none() | VALUES[field.type], min_size=n, max_size=n), label=field.name
        )
        for field in schema
    }
    payloads = data.draw(st.lists(st.none() | st.binary(max_size=9), min_size=n, max_size=n))
    sequences = data.draw(st.lists(st.integers(1, 2**62), min_size=n, max_size=n))
    metric = data.draw(st.sampled_from(list(Metric)))
    rows = SegmentRows(
        ids=pa.array(ids, type=pa.string()),
        sequences=np.array(sequences, dtype=np.int64),
        vectors=unit_vectors(n, 3),
        attributes=attribute_batch(schema, columns),
        payloads=pa.array(payloads, type=pa.binary()),
    )
    model = ModelSpec("m", 3, metric)
    with tempfile.TemporaryDirectory() as folder:
        entry = write_sample(Path(folder), rows=rows, model=model, schema=schema)
        segment = open_local(Path(folder), entry)
        assert (entry.rows, entry.min_sequence, entry.max_sequence) == (
            n,
            min(sequences),
            max(sequences),
        )
        assert entry.size_bytes == sum(path.stat().st_size for path in Path(folder).iterdir())
        assert segment.sequences.tolist() == sequences
        np.testing.assert_array_equal(segment.vectors, rows.vectors)
        order = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=6)), dtype=np.int64)
        assert segment.ids_at(order) == [ids[row] for row in order]
        records = segment.take(order, EVERYTHING)
        assert records.ids == [ids[row] for row in order]
        assert records.attributes is not None
        if schema:
            expected = rows.attributes.take(pa.array(order, type=pa.int64()))
            assert records.attributes.equals(expected)
        assert records.payloads is not None
        assert records.payloads.type == pa.binary()
        assert records.payloads.to_pylist() == [payloads[row] for row in order]
        asked = [*ids, "missing\x00"]
        assert segment.find(asked, hash_ids(asked)).tolist() == [*range(n), -1]
        by_hash = sorted(range(n), key=lambda row: (hash_ids([ids[row]])[0], ids[row].encode()))
        assert segment.hash_order.tolist() == by_hash


def test_files_may_be_deleted_while_a_segment_is_open(tmp_path: Path) -> None:
    segment = open_local(tmp_path, write_sample(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    records = segment.take(np.arange(20), EVERYTHING)
    assert records.ids == [f"record-{i}" for i in range(20)]
    assert segment.index.search(segment.index.reconstruct(np.array([3])), k=1)[1] == 3


def test_projection(tmp_path: Path) -> None:
    segment = open_local(tmp_path, write_sample(tmp_path))
    rows = np.array([4, 2])
    bare = segment.take(rows, IDS_ONLY)
    assert (bare.attributes, bare.payloads, bare.vectors) == (None, None, None)
    some = segment.take(rows, Projection(attributes=("size", "colour", "unknown")))
    assert some.attributes is not None
    assert some.attributes.to_pydict() == {"size": [1, -1], "colour": ["red", "blue"]}
    assert (some.payloads, some.vectors) == (None, None)


def test_keywords_are_stored_once(tmp_path: Path) -> None:
    segment = open_local(tmp_path, write_sample(tmp_path))
    colours = segment.attributes.column("colour")
    assert isinstance(colours, pa.DictionaryArray)
    assert sorted(colours.dictionary.to_pylist()) == ["blue", "green", "red"]


def test_keywords_of_dropped_rows_are_not_stored(tmp_path: Path) -> None:
    source = open_local(tmp_path / "a", write_sample(tmp_path / "a"))
    kept = np.array([0, 4], dtype=np.int64)  # both red
    rows = sample_rows(20)
    again = SegmentRows(
        ids=rows.ids.take(pa.array(kept)),
        sequences=rows.sequences[kept],
        vectors=rows.vectors[kept],
        attributes=source.attributes.take(pa.array(kept)),
        payloads=source.payloads.take(pa.array(kept)),
    )
    segment = open_local(tmp_path / "b", write_sample(tmp_path / "b", rows=again))
    colours = segment.attributes.column("colour")
    assert isinstance(colours, pa.DictionaryArray)
    assert colours.dictionary.to_pylist() == ["red"]


def test_ids_that_share_a_hash_are_told_apart() -> None:
    ids = [f"id-{i}" for i in range(12)]
    # Three values for twelve ids: every lookup meets collisions.
    hashes = np.array([[7, 9, 2**64 - 1][i % 3] for i in range(12)], dtype=np.uint64)
    column = pa.array(ids, type=pa.string())
    lookup = IdLookup.build(column, hashes=hashes)
    asked = ["id-5", "nobody", "id-0", "id-11", "id-9"]
    asked_hashes = np.array([hashes[5], 7, hashes[0], hashes[11], 8], dtype=np.uint64)
    found = lookup.find(asked, hashes=asked_hashes, ids=column)
    # "id-9" is asked for under a hash that it does not have.
    assert found.tolist() == [5, -1, 0, 11, -1]
    order = lookup.order.tolist()
    assert order == sorted(range(12), key=lambda row: (hashes[row], ids[row].encode()))
    assert lookup.position_after(-1, "", ids=column) == 0
    for position, row in enumerate(order):
        assert lookup.position_after(int(hashes[row]), ids[row], ids=column) == position + 1
    assert lookup.position_after(8, "", ids=column) == 4
    assert lookup.position_after(2**64 - 1, "zzz", ids=column) == 12


def test_segment_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="row"):
        write_sample(tmp_path, rows=sample_rows(0))


def test_rows_that_disagree_are_refused(tmp_path: Path) -> None:
    rows = sample_rows(5)
    other = build_flat(unit_vectors(6, MODEL.dimension), metric=MODEL.metric)
    with pytest.raises(InvariantViolation, match="6 x 8"):
        write_sample(tmp_path, rows=rows, index=other)
    with pytest.raises(InvariantViolation, match="schema"):
        write_sample(tmp_path, rows=rows, schema=SCHEMA[:2])
