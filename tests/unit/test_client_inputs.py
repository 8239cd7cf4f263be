"""What callers may pass, and what the results look like."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from annheal.cli.output import to_json
from annheal.client.async_client import AsyncClient
from annheal.client.inputs import (
    as_attributes,
    as_ids,
    as_matrix,
    as_model_vectors,
    as_payloads,
    as_projection,
    as_schema,
    as_vector,
    check_some_vector,
    rows_renamed,
)
from annheal.client.records.rows import BATCH_BYTES, Rows, last_of_each, requests
from annheal.client.results import Records, SearchBatch
from annheal.errors import InvalidArgument
from annheal.model.limits import REQUEST_BYTES_MAX
from annheal.model.records import EVERYTHING, IDS_ONLY, ModelVectors, Projection, RecordSet
from annheal.wire.records import GivenVectors

SCHEMA = as_schema(
    {
        "year": "int64",
        "score": "float64",
        "kind": "keyword",
        "tags": "keyword_list",
        "at": "timestamp",
    }
)
MOMENT = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("year", [1, None], [1, None]),
        ("year", np.array([1, 2], dtype=np.int16), [1, 2]),
        ("year", pa.array([1, None], pa.int8()), [1, None]),
        ("year", [None, None], [None, None]),
        ("year", [2.0, None], [2, None]),
        ("score", [1, 2.5], [1.0, 2.5]),
        ("kind", pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        ("kind", np.array(["a", "b"]), ["a", "b"]),
        ("tags", [["a"], None], [["a"], None]),
        ("at", [MOMENT, None], [MOMENT, None]),
        ("at", ["2024-05-01T00:00:00Z", date(2024, 5, 1)], [MOMENT, MOMENT]),
        ("at", np.array(["2024-05-01"] * 2, "datetime64[ns]"), [MOMENT, MOMENT]),
    ],
)
def test_attribute_columns_of_many_kinds(name: str, values: Any, expected: list[Any]) -> None:
    assert as_attributes({name: values}, rows=2, schema=SCHEMA)[name].to_pylist() == expected


def test_attributes_by_row_and_by_table() -> None:
    rows = as_attributes([{"year": 1}, {"kind": "a"}], rows=2, schema=SCHEMA)
    assert rows["year"].to_pylist() == [1, None]
    assert rows["kind"].to_pylist() == [None, "a"]
    table = as_attributes(pa.table({"year": [1, 2]}), rows=2, schema=SCHEMA)
    assert table["year"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"yeer": [1, 2]}, "not declared"),
        ({"year": [1]}, "1 values for 2 ids"),
        ({"year": [1.5, 2]}, "int64"),
        ({"year": np.array([1.5, 2])}, "int64"),
        ({"year": ["x", 2]}, "int64"),
        ({"at": ["soon", None]}, "timestamp"),
        ([{"year": 1}], "1 rows for 2 ids"),
    ],
)
def test_attributes_that_do_not_fit_are_named(given: Any, word: str) -> None:
    with pytest.raises(InvalidArgument, match=word) as caught:
        as_attributes(given, rows=2, schema=SCHEMA)
    assert caught.value.violations[0].field.startswith("attributes")


def test_vectors_of_many_kinds() -> None:
    assert as_matrix([[1, 2], [3, 4]]).shape == (2, 2)
    flat: Any = pa.array([1.0, 2.0, 3.0, 4.0])
    column: Any = pa.FixedSizeListArray.from_arrays(flat, 2)
    assert as_matrix(column).tolist() == [[1, 2], [3, 4]]
    assert as_matrix(pa.chunked_array([column, column])).shape == (4, 2)
    assert as_vector(np.arange(3, dtype=np.float16)).dtype == np.float32
    for wrong in ([[1, 2], [3]], [1, 2], [["a"]], [[None, 1]]):
        with pytest.raises(InvalidArgument):
            as_matrix(wrong)
    with pytest.raises(InvalidArgument):
        as_vector([[1.0]])


def test_ids_are_texts() -> None:
    assert as_ids(np.array(["a", "b"])) == ["a", "b"]
    assert as_ids(pa.array(["a"])) == ["a"]
    for wrong in ([1], "abc", [None]):
        with pytest.raises(InvalidArgument, match="ids"):
            as_ids(wrong)


def test_payloads_are_json() -> None:
    found = as_payloads([{"a": 1}, None, b"[1]"], rows=3)
    assert found is not None
    assert found.to_pylist() == [b'{"a":1}', None, b"[1]"]
    with pytest.raises(InvalidArgument, match="JSON"):
        as_payloads([object()], rows=1)
    assert as_payloads([{"a": None, "b": "null"}], rows=1) is not None
    for wrong in (math.nan, math.inf):
        with pytest.raises(InvalidArgument, match=r"payloads\[1\]\.a\[0\]: .*send None or text"):
            as_payloads([{"a": 1.5}, {"a": (wrong, None)}], rows=2)


def test_projection_by_words() -> None:
    assert as_projection(None) == IDS_ONLY
    assert as_projection("all") == EVERYTHING
    assert as_projection(["year", "payload"]) == Projection(("year",), payload=True)
    assert as_projection(["attributes", "year"]).attributes is None


def rows(count: int, *, payloads: list[bytes] | None = None) -> Rows:
    return Rows(
        [f"r{row % 7}" for row in range(count)],
        (GivenVectors("", np.zeros((count, 4), dtype=np.float32)),),
        {"n": pa.array(range(count), pa.int64())},
        None if payloads is None else pa.array(payloads, pa.binary()),
        np.arange(count),
    )


def test_vectors_of_models_are_cut_with_their_gaps_and_tagged() -> None:
    old = np.arange(6, dtype=np.float32).reshape(3, 2)
    given = as_model_vectors({"old": old, "new": [[1, 2, 3], None, None]}, model=None, rows=3)
    whole = Rows(["a", "b", "c"], given, {}, None, np.arange(3), serving="old")
    for part in (whole.cut(0, 2), whole.take(np.array([0, 1]))):
        one, other = part.tagged
        assert (one.model, other.model) == ("old", "new")
        assert np.array_equal(one.vectors, old[:2])
        assert one.absent is None
        assert other.absent is not None
        assert other.absent.tolist() == [False, True]
    assert [one.model for one in whole.cut(1, 3).tagged] == ["old"], "no row has one of the new"
    untagged = as_model_vectors(old, model=None, rows=3)
    (tagged,) = Rows(["a", "b", "c"], untagged, {}, None, np.arange(3), serving="old").tagged
    assert tagged.model == "old", "the server never has to guess"


@pytest.mark.parametrize(
    ("given", "absent"),
    [
        ([None, [1, 2]], [True, False]),
        (pa.array([None, [1.0, 2.0]], pa.list_(pa.float32())), [True, False]),
        (pd.Series([None, [1.0, 2.0]]), [True, False]),
        (np.array([None, [1.0, 2.0]], dtype=object), [True, False]),
        ((np.ones(2), None), [False, True]),
        (np.ma.masked_array(np.ones((2, 2)), [[True, True], [False, False]]), [True, False]),
    ],
)
def test_a_gap_may_be_given_in_any_way(given: Any, absent: list[bool]) -> None:
    (found,) = as_model_vectors({"m": given}, model=None, rows=2)
    assert found.absent is not None
    assert found.absent.tolist() == absent
    assert found.vectors.shape == (2, 2)


@pytest.mark.parametrize(
    ("given", "model", "field", "words"),
    [
        ({"m": [[1, 2]]}, "m", "model", "name their models"),
        ({}, None, "vectors", "name no model"),
        ({"": [[1, 2], [3, 4]]}, None, "vectors.keys()", "an empty name"),
        ({"m": [[1, 2]]}, None, "vectors['m']", "has 1 rows for 2 ids"),
        ({"m": [None, [1, "x"]]}, None, "vectors['m'][1]", "no number,? at position 1"),
        ([[1, 2]], None, "vectors", "has 1 rows for 2 ids"),
    ],
)
def test_vectors_of_models_that_do_not_fit_are_named(
    given: Any, model: str | None, field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as error:
        as_model_vectors(given, model=model, rows=2)
    assert [one.field for one in error.value.violations] == [field]


def test_a_record_needs_one_vector() -> None:
    given = as_model_vectors({"m": [[1], None], "n": [None, None]}, model=None, rows=2)
    with pytest.raises(InvalidArgument, match=r"vectors\[1\]: is missing for every model"):
        check_some_vector(given)


def test_rows_that_the_server_refuses_are_named_as_the_caller_counts() -> None:
    rename = rows_renamed(lambda row: row + 100)
    assert rename("vectors['a/b'][3]") == "vectors['a/b'][103]"
    assert rename("vectors[3]") == "vectors[103]"


def test_records_of_several_models_say_what_they_lack() -> None:
    nan = np.full((1, 3), np.nan, dtype=np.float32)
    columns = RecordSet(
        ids=["a"],
        vectors=np.ones((1, 2), dtype=np.float32),
        model="old",
        further=(ModelVectors("new", nan),),
    )
    (record,) = Records(columns, by_model=True)
    assert record.vector is None
    assert record.vectors is not None
    assert record.vectors["new"] is None
    np.testing.assert_array_equal(record.vectors["old"], [1, 1])
    assert list(Records(columns).vectors_by_model) == ["old", "new"]
    (lacking,) = Records(RecordSet(ids=["a"], vectors=nan, model="new"))
    assert lacking.vector is None


def test_the_last_of_equal_ids_wins() -> None:
    kept = last_of_each(rows(10))
    assert sorted(kept.ids) == [f"r{row}" for row in range(7)]
    last = dict(zip(kept.ids, kept.attributes["n"].to_pylist(), strict=True))
    assert last["r0"] == 7
    assert last["r6"] == 6


def test_requests_are_cut_by_rows_and_by_bytes() -> None:
    assert [len(part) for part in requests(rows(10), 4)] == [4, 4, 2]
    # Most payloads are small, a few are huge: no request may pass the limit.
    texts = [b"x"] * 600 + [b"x" * (1 << 20)] * 100
    parts = list(requests(rows(700, payloads=texts), 700))
    assert sum(map(len, parts)) == 700
    assert max(part.size_bytes for part in parts) <= REQUEST_BYTES_MAX // 2
    assert BATCH_BYTES < REQUEST_BYTES_MAX // 2


def test_results_are_columns_with_views_of_rows() -> None:
    columns = RecordSet(
        ids=["a", "b", "c"],
        attributes=pa.RecordBatch.from_pydict({"year": [1, None, 3]}),
        payloads=pa.array([b'{"x":1}', None, b"2"], pa.binary()),
        vectors=np.arange(6, dtype=np.float32).reshape(3, 2),
    )
    batch = SearchBatch(
        columns, np.array([0.9, 0.8, 0.7], np.float32), np.array([2, 0, 1], np.int32)
    )
    assert len(batch) == 3
    assert batch.ids == [["a", "b"], [], ["c"]]
    first, empty, last = batch
    assert [hit.id for hit in first] == ["a", "b"]
    assert first[0].payload == {"x": 1}
    assert first[1].attributes == {}
    assert list(empty) == []
    assert last[-1].attributes == {"year": 3}
    assert last[0].vector is not None
    assert last[0].vector.tolist() == [4, 5]
    assert last.attributes is not None
    assert last.attributes.num_rows == 1
    with pytest.raises(IndexError):
        last[1]
    records = Records(columns)
    assert [record.payload for record in records] == [{"x": 1}, None, 2]
    assert records[1:][0].id == "b"


@pytest.mark.parametrize(
    "rows", [[{"tags": "abc"}], [{"tags": [None]}], [{"tags": ["x", None]}], [{"tags": ["\ud800"]}]]
)
def test_lists_that_would_arrive_as_something_else_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidArgument, match="tags"):
        as_attributes(rows, rows=1, schema=as_schema({"tags": "keyword_list"}))


def test_ids_that_are_no_valid_text_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"ids\[1\]"):
        as_ids(["a", "\ud800"])


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf")])
async def test_a_timeout_is_a_number_of_seconds(timeout_s: float) -> None:
    async with AsyncClient("127.0.0.1:9") as client:
        with pytest.raises(InvalidArgument, match="timeout_s"):
            await client.search("c", [1.0], timeout_s=timeout_s)
        with pytest.raises(InvalidArgument, match="Unicode"):
            await client.search("c", [1.0], filter="a = '\ud800'", timeout_s=5.0)


def test_moments_that_no_datetime_holds_can_be_read() -> None:
    """Older versions took any year; one such record must not make a page unreadable."""
    numbers: Any = pa.array([10**18, 0, None], pa.int64())
    moments = numbers.view(pa.timestamp("us", tz="UTC"))
    page = Records(RecordSet(["a", "b", "c"], pa.RecordBatch.from_arrays([moments], ["at"])))
    first, second, third = page
    assert first.attributes == {"at": np.datetime64(10**18, "us")}
    assert second.attributes == {"at": datetime(1970, 1, 1, tzinfo=UTC)}
    assert third.attributes == {}
    assert '"33658-09-27T01:46:40.000000Z"' in to_json(first)
    assert page.attributes is not None
    assert '"33658-09-27T01:46:40.000000Z"' in to_json(page.attributes)
