"""Whatever a file holds, an import reads it or refuses it by file, row and column."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.cli.sources import Chunk, Columns, open_source
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType

NAN = float("nan")
FAR = [253_402_300_800_000_000, None]
"""Microseconds: the year 10000."""

COLUMNS: dict[str, Any] = {
    "decimal": pa.array([decimal.Decimal("1.10"), None], pa.decimal128(10, 2)),
    "decimal of whole numbers": pa.array([decimal.Decimal(7), None], pa.decimal256(50, 0)),
    "date32": pa.array([dt.date(2024, 1, 1), None], pa.date32()),
    "date32 far away": pa.array([2**31 - 1, None], pa.int32()).view(pa.date32()),
    "date64": pa.array([dt.date(2024, 1, 1), None], pa.date64()),
    "time32": pa.array([1, None], pa.time32("s")),
    "time64": pa.array([86_399_999_999_999, None], pa.time64("ns")),
    "duration": pa.array([1, None], pa.duration("us")),
    "seconds": pa.array([10**13, None], pa.timestamp("s")),
    "milliseconds": pa.array([1, None], pa.timestamp("ms", "Europe/Berlin")),
    "microseconds": pa.array(FAR, pa.timestamp("us", "UTC")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "whole nanoseconds": pa.array([1_000, None], pa.timestamp("ns", "UTC")),
    "nested nanoseconds": pa.array([[1], None], pa.list_(pa.timestamp("ns"))),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array(np.array([1.5, np.nan], np.float16)),
    "nan": pa.array([NAN, None], pa.float64()),
    "infinite": pa.array([[float("inf")], None], pa.list_(pa.float32())),
    "nulls": pa.nulls(2),
    "bools": pa.array([True, None]),
    "bytes": pa.array([b"\xff", None]),
    "fixed bytes": pa.array([b"ab", None], pa.binary(2)),
    "large text": pa.array(["a", None], pa.large_string()),
    "text view": pa.array(["a", None], pa.string_view()),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "dictionary of numbers": pa.array([1, None]).dictionary_encode(),
    "uuid": pa.array([b"0" * 16, None], pa.uuid()),
    "json": pa.array(["[1e999]", None], pa.json_()),
    "broken json": pa.array(["{", None], pa.json_()),
    "struct": pa.array([{"a": 1, "b": None}, None]),
    "struct of bytes": pa.array([{"a": b"1"}, None]),
    "empty struct of lists": pa.array([{"a": []}, None], pa.struct([("a", pa.list_(pa.int8()))])),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "map of nanoseconds": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.timestamp("ns"))),
    "texts": pa.array([["a", None], None]),
    "large texts": pa.array([["a"], None], pa.large_list(pa.large_string())),
    "lists of lists": pa.array([[[1]], None]),
    "lists of structs": pa.array([[{"a": NAN}], None]),
    "fixed lists": pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
    "list view": pa.array([[1], None], pa.list_view(pa.int64())),
}


def read(path: Path, columns: Columns) -> tuple[list[Chunk], str]:
    """Return what was read, or nothing and why."""
    try:
        return list(open_source(path, columns).chunks(rows_max=10)), ""
    except InvalidArgument as error:
        return [], error.message


@pytest.mark.parametrize("name", COLUMNS)
def test_every_arrow_type_is_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.parquet"
    table = {"id": ["a", "b"], "vector": [[1.0], [2.0]], "value": COLUMNS[name]}
    pq.write_table(pa.table(table), path)
    ways = [
        Columns(),
        Columns(attributes=(), payload_also=("value",)),
        Columns(attributes=("value",)),
        Columns(id="value", ignored=("id",)),
        Columns(vector="value", ignored=("vector",)),
        *(Columns(schema={"value": kind}) for kind in AttributeType),
    ]
    for columns in ways:
        chunks, why = read(path, columns)
        assert chunks or "value" in why, (columns, why)
        for chunk in chunks:
            assert len(chunk) == 2
            for payload in chunk.payloads or ():
                assert payload is None or json.loads(payload)["value"] is not None
    pq.write_table(pa.table(table).rename_columns(["id", "vector", "payload"]), path)
    chunks, why = read(path, Columns())
    assert chunks or "payload" in why
    members: Any = pa.StructArray.from_arrays([COLUMNS[name]], names=["value"])
    pq.write_table(pa.table({"id": ["a", "b"], "vector": [[1.0]] * 2, "attributes": members}), path)
    chunks, why = read(path, Columns())
    assert chunks or "value" in why


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
rows = st.lists(
    st.fixed_dictionaries(
        {"id": st.text(min_size=1, max_size=2) | st.integers(0, 9), "vector": st.just([1, 2])},
        optional={
            "value": values,
            "other": values,
            "payload": values,
            "attributes": values | st.dictionaries(st.sampled_from(["value", "x"]), values),
        },
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=rows, declared=st.none() | st.sampled_from(list(AttributeType)))
def test_nothing_of_a_json_line_is_lost(
    tmp_path: Path, rows: list[dict[str, Any]], declared: AttributeType | None
) -> None:
    """Every value that is not null is an attribute or in the payload, or the file is refused."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    schema = None if declared is None else {"value": declared}
    chunks, _ = read(path, Columns(schema=schema))
    if not chunks:
        return
    (chunk,) = chunks
    assert chunk.ids == [str(row["id"]) for row in rows]
    attributes = [{}] * len(rows) if chunk.attributes is None else chunk.attributes.to_pylist()
    for number, row in enumerate(rows):
        payload = (chunk.payloads or [None] * len(rows))[number]
        held = None if payload is None else json.loads(payload)
        nested = row.get("attributes")
        members = nested if isinstance(nested, dict) else {}
        for name in ("value", "other", "x"):
            for value, is_member in ((row.get(name), False), (members.get(name), True)):
                if value is None:
                    continue
                taken = attributes[number].get(name)
                kept = held.get(name) if isinstance(held, dict) and not is_member else None
                whole = held.get("attributes") if isinstance(held, dict) else None
                assert taken is not None or kept == value or whole == nested
        if row.get("payload") is not None:
            inside = held.get("payload") if isinstance(held, dict) else None
            assert held == row["payload"] or inside == row["payload"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["parquet", "jsonl", "npy", "fvecs", "bvecs", "hdf5"]))
    path = tmp_path / f"rows.{suffix}"
    numbers = np.arange(24, dtype=np.float32).reshape(6, 4)
    match suffix:
        case "parquet":
            pq.write_table(pa.table({"id": list("abcdef"), "vector": list(numbers)}), path)
        case "jsonl":
            lines = [{"id": "a", "vector": row.tolist(), "year": 1} for row in numbers]
            path.write_text("\n".join(map(json.dumps, lines)))
        case "npy":
            np.save(path, numbers)
        case "fvecs":
            heads = np.full((6, 1), 4, dtype="<i4").view("<f4")
            np.hstack([heads, numbers]).tofile(path)
        case "bvecs":
            heads = np.full((6, 1), 4, dtype="<i4").view("u1").reshape(6, 4)
            np.hstack([heads, numbers.astype("u1")]).tofile(path)
        case "hdf5":
            with h5py.File(path, "w") as file:
                file["train"] = numbers
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    chunks, why = read(path, Columns())
    assert chunks or "rows." in why or "column" in why or "--" in why
