"""Importers: every format gives the same rows, and bad files are refused by name."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annheal.cli.sources import Chunk, Columns, ImportSource, open_source
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType

ROWS, DIMENSION = 50, 8
NO_COLUMNS = Columns()


@pytest.fixture
def vectors() -> npt.NDArray[np.float32]:
    # Halves: what half floats and JSON hold exactly.
    numbers = np.random.default_rng(5).integers(-8, 8, (ROWS, DIMENSION))
    return (numbers / 2).astype(np.float32)


def joined(source: ImportSource, *, rows_max: int = 7, limit: int | None = None) -> Chunk:
    chunks = list(source.chunks(rows_max=rows_max, limit=limit))
    assert all(len(chunk) <= rows_max for chunk in chunks)
    attributes = [chunk.attributes for chunk in chunks if chunk.attributes is not None]
    payloads = [payload for chunk in chunks for payload in chunk.payloads or ()]
    return Chunk(
        [name for chunk in chunks for name in chunk.ids],
        np.concatenate([chunk.vectors for chunk in chunks]),
        pa.concat_tables(attributes) if attributes else None,
        payloads or None,
    )


def packages(vectors: npt.NDArray[np.float32]) -> pa.Table:
    rows = len(vectors)
    flat: Any = pa.array(vectors.astype(np.float16).ravel())
    lists: Any = pa.FixedSizeListArray.from_arrays(flat, DIMENSION)
    return pa.table(
        {
            "id": [f"p{row}" for row in range(rows)],
            "summary": [f"a text that says what number {row} is for" for row in range(rows)],
            "kind": ["ab"[row % 2] for row in range(rows)],
            "year": pa.array([None if row == 3 else 2000 + row for row in range(rows)], pa.int32()),
            "seen": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * rows, pa.timestamp("ns", "UTC")),
            "tags": pa.array([["x", "y"]] * rows),
            "embedding": lists,
        }
    )


def test_parquet_tells_attributes_from_payload_and_widens_half_floats(
    tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(packages(vectors), path, row_group_size=20)
    source = open_source(path, NO_COLUMNS)
    assert source.layout.rows == ROWS
    assert source.layout.dimension == DIMENSION
    assert source.layout.attributes == {
        "kind": AttributeType.KEYWORD,
        "year": AttributeType.INT64,
        "seen": AttributeType.TIMESTAMP,
        "tags": AttributeType.KEYWORD_LIST,
    }
    assert source.layout.payload == ("summary",)
    found = joined(source)
    assert found.ids == [f"p{row}" for row in range(ROWS)]
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.attributes is not None
    assert found.attributes["year"].to_pylist()[2:5] == [2002, None, 2004]
    assert found.attributes["seen"].type == pa.timestamp("us", "UTC")
    assert found.payloads is not None
    assert msgspec.json.decode(found.payloads[4]) == {
        "summary": "a text that says what number 4 is for"
    }


def test_limit_stops_inside_a_batch(tmp_path: Path, vectors: npt.NDArray[np.float32]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(packages(vectors), path)
    assert len(joined(open_source(path, NO_COLUMNS), limit=10)) == 10


def test_columns_are_chosen_by_name_and_by_the_collection(
    tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(packages(vectors), path)
    named = Columns(attributes=("year",), payload=("kind",), id_prefix="x:")
    source = open_source(path, named)
    assert list(source.layout.attributes) == ["year"]
    assert source.layout.payload == ("kind",)
    assert joined(source).ids[0] == "x:p0"
    # A declared float64 takes the integers of the file.
    declared = open_source(path, Columns(schema={"year": AttributeType.FLOAT64}))
    assert declared.layout.attributes == {"year": AttributeType.FLOAT64}
    found = joined(declared).attributes
    assert found is not None
    assert found["year"].type == pa.float64()


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        (Columns(id="nope"), "nope"),
        (Columns(vector="year"), "no list of numbers"),
        (Columns(attributes=("nope",)), "nope"),
        (Columns(attributes=("kind",), schema={"year": AttributeType.INT64}), "declares no"),
        (Columns(payload=("nope",)), "nope"),
        (Columns(schema={"kind": AttributeType.INT64}), "kind"),
    ],
)
def test_columns_that_cannot_be_are_refused(
    tmp_path: Path, vectors: npt.NDArray[np.float32], columns: Columns, word: str
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(packages(vectors), path)
    with pytest.raises(InvalidArgument, match=word):
        joined(open_source(path, columns))


def test_two_vector_columns_must_be_told_apart(
    tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    path = tmp_path / "rows.parquet"
    table = packages(vectors).rename_columns(
        ["id", "summary", "kind", "year", "seen", "tags", "one"]
    )
    pq.write_table(table.append_column("two", table["one"]), path)
    with pytest.raises(InvalidArgument, match="one, two"):
        open_source(path, NO_COLUMNS)
    source = open_source(path, Columns(vector="two"))
    assert "one" not in source.layout.payload


def test_uneven_and_missing_vectors_are_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    uneven = [[1.0, 2.0], [1.0], [3.0, 4.0]]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "vector": uneven}), path)
    with pytest.raises(InvalidArgument, match="row 1 has 1 floats"):
        joined(open_source(path, NO_COLUMNS))
    pq.write_table(pa.table({"id": ["a", "b"], "vector": [[1.0, 2.0], None]}), path)
    with pytest.raises(InvalidArgument, match="row 1 has no vector"):
        joined(open_source(path, NO_COLUMNS))


def test_jsonl_takes_objects_with_any_keys(
    tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        msgspec.json.encode(
            {"id": row, "vector": vectors[row].tolist(), "year": 2000 + row}
            | ({"kind": "even"} if row % 2 == 0 else {})
            | {"payload": {"n": row}}
        )
        for row in range(ROWS)
    ]
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    source = open_source(path, NO_COLUMNS)
    assert source.layout.dimension == DIMENSION
    assert source.layout.rows is None
    assert dict(source.layout.attributes) == {
        "year": AttributeType.INT64,
        "kind": AttributeType.KEYWORD,
    }
    found = joined(source)
    assert found.ids[:3] == ["0", "1", "2"]
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.attributes is not None
    assert found.attributes["kind"].to_pylist()[:3] == ["even", None, "even"]
    assert found.payloads is not None
    assert found.payloads[5] == b'{"n":5}'


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"id": "b", "vector": [1]}', "list of 2 numbers"),
        (b'{"id": "b", "vector": [1, "x"]}', "vector"),
        (b'{"id": "b", "vector": [1, 2]', "no JSON object"),
        (b"[1, 2]", "no JSON object"),
        (b'{"id": "b", "vector": [1, 2], "year": "soon"}', "year"),
        (b'{"id": "b", "vector": [1, 2], "year": 1.5}', "year"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, word: str) -> None:
    path = tmp_path / "rows.jsonl"
    good = b'{"id": "a", "vector": [1, 2], "year": 1}\n'
    path.write_bytes(good * 2_500 + line)  # beyond the sample that types are inferred from
    with pytest.raises(InvalidArgument, match=word) as caught:
        joined(open_source(path, NO_COLUMNS), rows_max=2_500)
    assert "rows.jsonl:2501" in caught.value.message


@pytest.mark.parametrize("kind", ["npy", "fvecs", "hdf5"])
def test_vector_files_have_row_numbers_for_ids(
    tmp_path: Path, vectors: npt.NDArray[np.float32], kind: str
) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "npy":
        np.save(path, vectors.astype(np.float16))
    elif kind == "fvecs":
        dimensions = np.full((ROWS, 1), DIMENSION, dtype="<i4").view("<f4")
        np.hstack([dimensions, vectors]).astype("<f4").tofile(path)
    else:
        with h5py.File(path, "w") as file:
            file["train"] = vectors
            file.attrs["distance"] = "angular"
    source = open_source(path, Columns(id_prefix="v"))
    assert source.layout.rows == ROWS
    assert source.layout.metric == ("cosine" if kind == "hdf5" else None)
    found = joined(source, limit=20)
    assert found.ids == [f"v{row}" for row in range(20)]
    np.testing.assert_array_equal(found.vectors, vectors[:20])


def test_bvecs_are_bytes(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 255, (9, 4)).astype(np.uint8)
    path = tmp_path / "rows.bvecs"
    heads = np.full((9, 1), 4, dtype="<i4").view(np.uint8).reshape(9, 4)
    np.hstack([heads, numbers]).tofile(path)
    np.testing.assert_array_equal(joined(open_source(path, NO_COLUMNS)).vectors, numbers)


def test_meta_gives_ids_and_attributes_to_vectors(
    tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    np.save(tmp_path / "rows.npy", vectors)
    pq.write_table(packages(vectors).drop_columns(["embedding"]), tmp_path / "meta.parquet")
    source = open_source(tmp_path / "rows.npy", NO_COLUMNS, meta=tmp_path / "meta.parquet")
    found = joined(source)
    assert found.ids[3] == "p3"
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.attributes is not None
    assert found.attributes["kind"].to_pylist()[:2] == ["a", "b"]
    np.save(tmp_path / "rows.npy", vectors[:-1])
    with pytest.raises(InvalidArgument, match="50 rows for 49 vectors"):
        open_source(tmp_path / "rows.npy", NO_COLUMNS, meta=tmp_path / "meta.parquet")


def test_damaged_and_strange_files_are_refused(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, word: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=word):
            open_source(path, NO_COLUMNS)

    refused("a.parquet", b"not parquet", "Parquet")
    refused("a.npy", b"not npy", "npy")
    refused("a.fvecs", np.array([3], "<i4").tobytes() + b"12345", "damaged")
    refused("a.fvecs", b"", "cannot be read")
    refused("a.hdf5", b"not hdf5", "HDF5")
    refused("a.jsonl", b"", "no lines")
    refused("a.csv", b"", "suffix")
    with pytest.raises(InvalidArgument, match="does not exist"):
        open_source(tmp_path / "missing.npy", NO_COLUMNS)


def test_npy_with_objects_or_texts_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidArgument, match="npy"):
        open_source(tmp_path / "a.npy", NO_COLUMNS)
    np.save(tmp_path / "b.npy", np.array([["a"]]))
    with pytest.raises(InvalidArgument, match="no numbers"):
        open_source(tmp_path / "b.npy", NO_COLUMNS)
    np.save(tmp_path / "c.npy", np.zeros(4))
    with pytest.raises(InvalidArgument, match="rows, dimension"):
        open_source(tmp_path / "c.npy", NO_COLUMNS)
