"""Importers: every format gives the same rows, and bad files are refused by name."""

from __future__ import annotations

import uuid
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
        chunks[0].place,
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
    # The other one is not left out in silence.
    with pytest.raises(InvalidArgument, match="--ignore-columns one"):
        open_source(path, Columns(vector="two"))
    source = open_source(path, Columns(vector="two", ignored=("one",)))
    assert source.layout.payload == ("summary",)
    assert source.layout.not_taken == ("one",)
    kept = open_source(path, Columns(vector="two", payload_also=("one",)))
    assert kept.layout.payload == ("summary", "one")
    payloads = joined(kept).payloads
    assert payloads is not None
    assert msgspec.json.decode(payloads[3] or b"")["one"] == vectors[3].tolist()


def test_uneven_and_missing_vectors_are_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    uneven = [[1.0, 2.0], [1.0], [3.0, 4.0]]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "vector": uneven}), path)
    with pytest.raises(InvalidArgument, match="row 1, vector: has 1 numbers"):
        joined(open_source(path, NO_COLUMNS))
    pq.write_table(pa.table({"id": ["a", "b"], "vector": [[1.0, 2.0], None]}), path)
    with pytest.raises(InvalidArgument, match="row 1, vector: there is no vector"):
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
    assert source.layout.rows == ROWS
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
        (b'{"id": "b", "vector": [1, 2], "year": true}', "year"),
        (b'{"id": "b", "vector": [1, 1e300]}', "float32"),
        (b'{"vector": [1, 2]}', "id is missing"),
        (b'{"id": "b", "vector": [1, 2], "a": 1, "a": 2}', "key a twice"),
        (b'{"id": "b", "vector": [1, 2], "a" : {"a": 1}, "a" : 2}', "key a twice"),
        (b'{"id": true, "vector": [1, 2]}', "id"),
        (b'{"id": "b", "vector": null}', "vector"),
        (b'{"id": "b", "vector": [1, 2], "name": "caf\xe9"}', "UTF-8"),
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


# --------------------------------------------------------------- nothing is left out in silence


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    return path


def test_columns_that_first_appear_late_are_taken(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": str(row), "vector": [1, 2]} for row in range(2_500)]
    rows[2_100] |= {"year": 2024, "note": "a text that no other line has, long enough for payload"}
    source = open_source(write_lines(tmp_path / "rows.jsonl", rows), NO_COLUMNS)
    assert source.layout.attributes == {"year": AttributeType.INT64}
    assert source.layout.payload == ("note",)
    found = joined(source, rows_max=1_000)
    assert found.attributes is not None
    assert found.attributes["year"].to_pylist()[2_100] == 2024


def test_texts_beside_a_payload_are_refused_until_somebody_decides(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": str(row), "vector": [1, 2], "text": f"a text of some length, number {row}" * 3}
        for row in range(50)
    ]
    rows[30]["payload"] = {"a": 1}
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InvalidArgument, match="text would be lost"):
        open_source(path, NO_COLUMNS)
    both = joined(open_source(path, Columns(payload_also=("payload",)))).payloads
    assert both is not None
    assert msgspec.json.decode(both[30] or b"") == {
        "text": rows[30]["text"],
        "payload": {"a": 1},
    }
    alone = open_source(path, Columns(ignored=("text",)))
    assert alone.layout.not_taken == ("text",)
    assert joined(alone).payloads == [b'{"a":1}' if row == 30 else None for row in range(50)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_lists_of_numbers_beside_the_vector_are_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = [{"id": str(row), "vector": [1.0, 2.0], "sizes": [row, 3]} for row in range(5)]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, rows)
    payloads = joined(open_source(path, NO_COLUMNS)).payloads
    assert payloads is not None
    assert [msgspec.json.decode(one or b"") for one in payloads] == [
        {"sizes": [row, 3]} for row in range(5)
    ]


def test_what_the_options_leave_out_is_listed(tmp_path: Path) -> None:
    rows = [{"id": str(n), "vector": [1.0], "a": n, "b": n, "c": n} for n in range(3)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    source = open_source(path, Columns(attributes=("a",), payload=("b",)))
    assert source.layout.not_taken == ("c",)
    nothing = open_source(path, Columns(attributes=(), payload=(), ignored=("c",)))
    assert nothing.layout.not_taken == ("c", "a", "b")
    with pytest.raises(InvalidArgument, match="--ignore-columns: there is no column d"):
        open_source(path, Columns(ignored=("d",)))


def test_a_key_inside_a_value_is_no_second_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "b", "vector": [1], "a": {"a": "id", "id": {"a": "\\"a\\":"}}}')
    assert joined(open_source(path, NO_COLUMNS)).payloads is not None


def test_mixed_types_are_kept_when_somebody_says_so(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": str(n), "vector": [1.0], "v": n} for n in range(3)]
    rows[2]["v"] = "1.0"
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InvalidArgument, match=r"rows\.jsonl:3.*--payload auto,v"):
        open_source(path, NO_COLUMNS)
    kept = joined(open_source(path, Columns(payload_also=("v",)))).payloads
    assert kept == [b'{"v":0}', b'{"v":1}', b'{"v":"1.0"}']
    # What is no attribute in any case may be mixed.
    rows[1]["v"] = {"x": 1}
    assert open_source(write_lines(path, rows), NO_COLUMNS).layout.payload == ("v",)


def test_whole_and_other_numbers_are_floats_where_they_are_exact(tmp_path: Path) -> None:
    rows = [{"id": str(n), "vector": [1.0], "v": [2, 1.5][n]} for n in range(2)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    source = open_source(path, NO_COLUMNS)
    assert source.layout.attributes == {"v": AttributeType.FLOAT64}
    found = joined(source).attributes
    assert found is not None
    assert found["v"].to_pylist() == [2.0, 1.5]
    rows[0]["v"] = 2**53 + 1
    with pytest.raises(InvalidArgument, match="v: holds"):
        open_source(write_lines(path, rows), NO_COLUMNS)


def test_payload_numbers_keep_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 18446744073709551617, "vector": [1], "n": 9223372036854775808}'
    )
    found = joined(open_source(path, NO_COLUMNS))
    assert found.ids == ["18446744073709551617"]
    assert found.payloads == [b'{"n":9223372036854775808}']
    declared = open_source(path, Columns(schema={"n": AttributeType.INT64}))
    with pytest.raises(InvalidArgument, match=r"rows\.jsonl:1.*n"):
        joined(declared)


def test_records_as_scan_prints_them_are_read_back(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "attributes": {"year": 1, "title": "x" * 90}, "payload": [1], "vector": [1]},
        {"id": "b", "attributes": {}, "vector": [2]},
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    source = open_source(path, NO_COLUMNS)
    assert source.layout.attributes == {
        "year": AttributeType.INT64,
        "title": AttributeType.KEYWORD,
    }
    with pytest.raises(InvalidArgument, match="declares no attribute title"):
        open_source(path, Columns(schema={"year": AttributeType.INT64}))
    found = joined(source)
    assert found.attributes is not None
    assert found.attributes["year"].to_pylist() == [1, None]
    assert found.payloads == [b"[1]", None]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "npy"])
def test_rows_that_were_written_can_be_skipped(
    tmp_path: Path, vectors: npt.NDArray[np.float32], suffix: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(packages(vectors), path, row_group_size=9)
    elif suffix == "jsonl":
        write_lines(path, [{"id": f"p{n}", "vector": v.tolist()} for n, v in enumerate(vectors)])
    else:
        np.save(path, vectors)
    whole = joined(open_source(path, NO_COLUMNS))
    chunks = list(open_source(path, NO_COLUMNS).chunks(rows_max=7, limit=15, skip=20))
    assert [name for chunk in chunks for name in chunk.ids] == whole.ids[20:35]
    before = [20 + sum(map(len, chunks[:number])) for number in range(len(chunks))]
    assert [chunk.place.first_row for chunk in chunks] == before
    np.testing.assert_array_equal(
        np.concatenate([chunk.vectors for chunk in chunks]), vectors[20:35]
    )
    assert not list(open_source(path, NO_COLUMNS).chunks(rows_max=7, skip=ROWS))


# -------------------------------------------------------- every failure names file, row and field


def refused_parquet(tmp_path: Path, table: pa.Table, columns: Columns = NO_COLUMNS) -> str:
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    with pytest.raises(InvalidArgument) as caught:
        joined(open_source(path, columns))
    return caught.value.message


def two_rows(**columns: Any) -> pa.Table:
    return pa.table({"id": ["a", "b"], "vector": [[1.0], [2.0]]} | columns)


def test_parquet_failures_name_row_and_column(tmp_path: Path) -> None:
    fine = pa.array([{"x": 1}, {"x": 2}])
    said = refused_parquet(tmp_path, two_rows(s=fine), Columns(schema={"s": AttributeType.KEYWORD}))
    assert "rows.parquet: row 0, s" in said
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array([[1.0]]), pa.array([1]), pa.array([2])],
        names=["id", "vector", "x", "x"],
    )
    assert "several columns of the name x" in refused_parquet(tmp_path, twice)
    assert "blob: holds bytes" in refused_parquet(tmp_path, two_rows(blob=[b"a", b"b"]))
    said = refused_parquet(
        tmp_path,
        two_rows(year=pa.array([5, 2**63], pa.uint64())),
        Columns(schema={"year": AttributeType.INT64}),
    )
    assert "rows.parquet: row 1, year" in said
    said = refused_parquet(tmp_path, two_rows().set_column(0, "id", pa.array([1.5, 2.5])))
    assert "rows.parquet: row 0, id: 1.5 is a number, and an id is a text" in said
    said = refused_parquet(tmp_path, two_rows().set_column(0, "id", pa.array(["a", None])))
    assert "rows.parquet: row 1, id" in said
    said = refused_parquet(tmp_path, two_rows().set_column(1, "vector", pa.array([[1.0], [1e300]])))
    assert "rows.parquet: row 1, vector" in said
    said = refused_parquet(tmp_path, two_rows(payload=[b'{"a": 1}', b"{"]))
    assert "rows.parquet: row 1, payload: is no JSON" in said
    said = refused_parquet(tmp_path, two_rows(extra=pa.array([{"x": 1.0}, {"x": float("nan")}])))
    assert "rows.parquet: row 1, extra" in said


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = 4_000
    ids = [f"id-{row}" for row in range(rows)]
    table = pa.table({"id": ids, "vector": [[float(row)] for row in range(rows)]})
    pq.write_table(table, path, row_group_size=2_000, compression="zstd")
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 60] = b"\xff" * 60
    path.write_bytes(content)
    source = open_source(path, NO_COLUMNS)
    with pytest.raises(InvalidArgument, match=r"rows\.parquet.*from row 2000 on"):
        joined(source, rows_max=1_000)


def test_moments_uuids_and_json_columns_are_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    name = uuid.UUID(int=7)
    fine = pa.array([1_700_000_000_123_456_789, 1], pa.timestamp("ns", "UTC"))
    table = two_rows(
        at=fine,
        more=pa.array(['{"n": 18446744073709551617}', None], pa.json_()),
        payload_id=pa.array([name.bytes, name.bytes], pa.uuid()),
    ).set_column(0, "id", pa.array([name.bytes, uuid.UUID(int=8).bytes], pa.uuid()))
    pq.write_table(table, path)
    source = open_source(path, Columns(attributes=()))
    found = joined(source)
    assert found.ids == [str(name), str(uuid.UUID(int=8))]
    assert found.payloads is not None
    assert found.payloads[0] == (
        b'{"at":"2023-11-14 22:13:20.123456789Z","more":{"n": 18446744073709551617},'
        b'"payload_id":"00000000-0000-0000-0000-000000000007"}'
    )


def test_a_payload_column_of_json_is_the_payload(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = ['{"a": 1}', None]
    for column in (
        pa.array(texts, pa.json_()),
        pa.array([None if text is None else text.encode() for text in texts], pa.binary()),
    ):
        pq.write_table(two_rows(payload=column), path)
        assert joined(open_source(path, NO_COLUMNS)).payloads == [b'{"a": 1}', None]
    members = pa.array([{"year": 1, "tag": "x"}, None])
    pq.write_table(two_rows(attributes=members), path)
    source = open_source(path, NO_COLUMNS)
    assert source.layout.attributes == {"year": AttributeType.INT64, "tag": AttributeType.KEYWORD}
    found = joined(source).attributes
    assert found is not None
    assert found.to_pylist() == [{"year": 1, "tag": "x"}, {"year": None, "tag": None}]


def test_strange_hdf5_and_npy_content_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("train")
        file["texts"] = [b"a", b"b"]
    with pytest.raises(InvalidArgument, match="a group"):
        open_source(tmp_path / "a.hdf5", NO_COLUMNS)
    with pytest.raises(InvalidArgument, match="no numbers"):
        open_source(tmp_path / "a.hdf5", Columns(dataset="texts"))
    np.save(tmp_path / "b.npy", np.array([[1.0], [np.nan]]))
    with pytest.raises(InvalidArgument, match=r"b\.npy: row 1"):
        joined(open_source(tmp_path / "b.npy", NO_COLUMNS))


def test_columns_of_a_file_without_columns_cannot_be_chosen(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    for columns in (Columns(attributes=("year",)), Columns(ignored=("x",)), Columns(id="id")):
        with pytest.raises(InvalidArgument, match="vectors alone"):
            open_source(tmp_path / "a.npy", columns)
