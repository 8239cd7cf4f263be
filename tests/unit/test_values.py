"""Exact conversion of values: each type takes what it holds and refuses the rest, by row."""

from __future__ import annotations

import array
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from annheal.model.collection import AttributeType
from annheal.model.values.columns import attribute_column
from annheal.model.values.ids import id_texts
from annheal.model.values.moments import MOMENT_US_MAX, MOMENT_US_MIN
from annheal.model.values.payloads import encode_payload, payload_column
from annheal.model.values.unfit import UnfitValue
from annheal.model.values.vectors import single_vector, vector_matrix

BOOL, INT64, FLOAT64 = AttributeType.BOOL, AttributeType.INT64, AttributeType.FLOAT64
KEYWORD, LIST, TIMESTAMP = (
    AttributeType.KEYWORD,
    AttributeType.KEYWORD_LIST,
    AttributeType.TIMESTAMP,
)
MOMENT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
MIDNIGHT = datetime(2024, 5, 1, tzinfo=UTC)


class Level(IntEnum):
    LOW = 1


class Colour(StrEnum):
    RED = "red"


def dictionary(values: list[Any]) -> Any:
    return pa.array(values).dictionary_encode()


def run_ends(values: list[Any]) -> Any:
    whole: Any = pa.array(values)
    ends: Any = pa.array(range(1, len(values) + 1), pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, whole)


TAKEN: dict[str, tuple[AttributeType, Any, list[Any]]] = {
    "bools": (BOOL, [True, None, False], [True, None, False]),
    "numpy bools": (BOOL, np.array([True, False]), [True, False]),
    "numpy bools in a list": (BOOL, [np.bool_(True), None], [True, None]),
    "integers": (INT64, [1, -(2**63), 2**63 - 1, None], [1, -(2**63), 2**63 - 1, None]),
    "numpy integers in a list": (INT64, [np.int8(1), np.uint64(7)], [1, 7]),
    "big-endian": (INT64, np.array([1, 2], ">i4"), [1, 2]),
    "uint64 that fits": (INT64, np.array([2**63 - 1], np.uint64), [2**63 - 1]),
    "whole floats": (INT64, [2024.0, None], [2024, None]),
    "whole floats in Arrow": (INT64, pa.array([2.0, None]), [2, None]),
    "an array.array": (INT64, array.array("h", [1, 2]), [1, 2]),
    "a range": (INT64, range(2), [0, 1]),
    "enumerations": (INT64, [Level.LOW, 2], [1, 2]),
    "masked": (INT64, np.ma.array([1, 2], mask=[False, True]), [1, None]),
    "decimals": (INT64, [Decimal("12"), Decimal("1E+3")], [12, 1000]),
    "decimals in Arrow": (INT64, pa.array([Decimal("12.00")]), [12]),
    "floats": (FLOAT64, [0.1, -0.0, None], [0.1, -0.0, None]),
    "half floats": (FLOAT64, np.array([0.5, 1.5], np.float16), [0.5, 1.5]),
    "float32": (FLOAT64, np.array([0.1], np.float32), [float(np.float32(0.1))]),
    "whole numbers": (FLOAT64, [1, 2**53, None], [1.0, 2.0**53, None]),
    "whole numbers beyond int64": (FLOAT64, [2**64, 10**22, -(2**63)], [2.0**64, 1e22, -(2.0**63)]),
    "integers in Arrow": (FLOAT64, pa.array([2**62, None]), [2.0**62, None]),
    "bytes of integers": (FLOAT64, pa.array([200, 1], pa.uint8()), [200.0, 1.0]),
    "exact decimals": (FLOAT64, [Decimal("0.5")], [0.5]),
    "texts": (KEYWORD, ["a", "", None, "é"], ["a", "", None, "é"]),
    "numpy texts": (KEYWORD, np.array(["a", "bc"]), ["a", "bc"]),
    "numpy's strings": (KEYWORD, np.array(["a", "bc"], np.dtypes.StringDType()), ["a", "bc"]),
    "text enumerations": (KEYWORD, [Colour.RED], ["red"]),
    "a dictionary": (KEYWORD, dictionary(["a", None, "a"]), ["a", None, "a"]),
    "runs": (KEYWORD, run_ends(["a", "b"]), ["a", "b"]),
    "large strings": (KEYWORD, pa.array(["a"], pa.large_string()), ["a"]),
    "string views": (KEYWORD, pa.array(["a"], pa.string_view()), ["a"]),
    "a dictionary of string views": (
        KEYWORD,
        pa.array(["a", None, "a"], pa.string_view()).dictionary_encode(),
        ["a", None, "a"],
    ),
    "nothing": (KEYWORD, pa.nulls(2), [None, None]),
    "lists": (LIST, [["a"], [], None, ("b", "c")], [["a"], [], None, ["b", "c"]]),
    "numpy lists": (LIST, np.array([["a", "b"], ["c", "d"]]), [["a", "b"], ["c", "d"]]),
    "large lists": (LIST, pa.array([["a"], None], pa.large_list(pa.string())), [["a"], None]),
    "fixed lists": (LIST, pa.array([["a"], None], pa.list_(pa.string(), 1)), [["a"], None]),
    "list views": (LIST, pa.array([["a", "b"], []], pa.list_view(pa.string())), [["a", "b"], []]),
    "lists of dictionaries": (
        LIST,
        pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        [["a"]],
    ),
    "a slice of lists": (LIST, pa.array([["x"], ["a"], None])[1:], [["a"], None]),
    "aware datetimes": (
        TIMESTAMP,
        [MOMENT.astimezone(timezone(timedelta(hours=2))), None],
        [MOMENT, None],
    ),
    "dates": (TIMESTAMP, [date(2024, 5, 1)], [MIDNIGHT]),
    "texts of moments": (
        TIMESTAMP,
        ["2024-05-01T12:30:00Z", "2024-05-01T14:30:00+02:00", "2024-05-01"],
        [MOMENT, MOMENT, MIDNIGHT],
    ),
    "datetime64 of days": (TIMESTAMP, np.array(["2024-05-01", "NaT"], "M8[D]"), [MIDNIGHT, None]),
    "datetime64 of ns": (TIMESTAMP, np.array(["2024-05-01T12:30"], "M8[ns]"), [MOMENT]),
    "datetime64 of months": (TIMESTAMP, np.array(["2024-05"], "M8[M]"), [MIDNIGHT]),
    "datetime64 of 25 s": (TIMESTAMP, np.array([0], "M8[25s]"), [datetime(1970, 1, 1, tzinfo=UTC)]),
    "datetime64 alone": (TIMESTAMP, [np.datetime64("2024-05-01"), None], [MIDNIGHT, None]),
    "Arrow seconds": (TIMESTAMP, pa.array([MOMENT, None], pa.timestamp("s")), [MOMENT, None]),
    "Arrow with a zone": (
        TIMESTAMP,
        pa.array([MOMENT], pa.timestamp("ns", "Asia/Tokyo")),
        [MOMENT],
    ),
    "Arrow dates": (TIMESTAMP, pa.array([date(2024, 5, 1), None]), [MIDNIGHT, None]),
    "Arrow dates of 64 bits": (TIMESTAMP, pa.array([date(2024, 5, 1)], pa.date64()), [MIDNIGHT]),
    "Arrow scalars": (TIMESTAMP, [pa.scalar(MOMENT, pa.timestamp("ns", "UTC"))], [MOMENT]),
    "pandas, NaN is missing": (INT64, pd.Series([1.0, math.nan]), [1, None]),
    "pandas, nullable": (INT64, pd.Series([1, None], dtype="Int64"), [1, None]),
    "pandas, objects": (KEYWORD, pd.Series(["a", math.nan], dtype=object), ["a", None]),
    "pandas, categories": (KEYWORD, pd.Series(["a", None], dtype="category"), ["a", None]),
    "pandas, moments": (TIMESTAMP, pd.Series([MOMENT, pd.NaT]), [MOMENT, None]),
    "pandas, moments without zone": (
        TIMESTAMP,
        pd.Series(np.array(["2024-05-01"], "M8[ns]")),
        [MIDNIGHT],
    ),
    "pandas, in a list": (TIMESTAMP, [pd.Timestamp(MOMENT), pd.NaT], [MOMENT, None]),
    "pandas, NA in a list": (INT64, [1, pd.NA], [1, None]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_held_exactly_is_taken(name: str) -> None:
    kind, values, expected = TAKEN[name]
    found = attribute_column(values, kind).to_pylist()
    assert found == expected
    assert list(map(repr, found)) == list(map(repr, expected)) or kind is TIMESTAMP


REFUSED: dict[str, tuple[AttributeType, Any, int | None, str]] = {
    "5 as a bool": (BOOL, [True, 5], 1, "boolean|bool"),
    "integers as bools": (BOOL, np.array([1, 0]), None, "numbers are none"),
    "text as a bool": (BOOL, ["true"], 0, "a string"),
    "a bool as a number": (INT64, [1, True], 1, "a boolean"),
    "Arrow bools as numbers": (FLOAT64, pa.array([True]), None, "type bool"),
    "Arrow bools as integers": (INT64, pa.array([True]), None, "type bool"),
    "numpy bools as numbers": (FLOAT64, np.array([True]), None, "type bool"),
    "a fraction": (INT64, [1.0, 1.5], 1, "fraction"),
    "a fraction in numpy": (INT64, np.array([1.0, 1.5]), 1, "fraction"),
    "NaN": (INT64, np.array([1.0, math.nan]), 1, "finite"),
    "a float that may be rounded": (INT64, [2.0**53 + 2], 0, "beyond 2\\*\\*53"),
    "2**63": (INT64, [1, 2**63], 1, "does not fit int64"),
    "2**63 in numpy": (INT64, np.array([1, 2**63], np.uint64), 1, "does not fit int64"),
    "2**63 in Arrow": (INT64, pa.array([1, 2**63], pa.uint64()), 1, "does not fit int64"),
    "text of a number": (INT64, ["1"], 0, "a string"),
    "Arrow text of a number": (INT64, pa.array(["1"]), None, "type string"),
    "text of a float": (FLOAT64, ["0.5"], 0, "a string"),
    "a float64 that is none": (FLOAT64, [0.5, math.inf], 1, "finite"),
    "NaN among floats": (FLOAT64, pa.array([0.5, None, math.nan]), 2, "finite"),
    "an inexact whole number": (FLOAT64, [2**53 + 1], 0, "9007199254740992"),
    "an inexact one in Arrow": (FLOAT64, pa.array([1, 2**53 + 1]), 1, "9007199254740992"),
    "an inexact one in numpy": (FLOAT64, np.array([-(2**53) - 1]), 0, "no float64"),
    "a huge whole number": (FLOAT64, [10**400], 0, "finite"),
    "an inexact decimal": (FLOAT64, [Decimal("0.1")], 0, "no float64"),
    "a huge decimal": (INT64, [Decimal("1e999999")], 0, "finite"),
    "complex": (FLOAT64, np.array([1j]), 0, "complex"),
    "a number as text": (KEYWORD, ["a", 1], 1, "a whole number"),
    "bytes as text": (KEYWORD, [b"a"], 0, "bytes"),
    "Arrow bytes as text": (KEYWORD, pa.array([b"a"]), None, "type binary"),
    "NaN as text": (KEYWORD, ["a", math.nan], 1, "a number"),
    "half a surrogate pair": (KEYWORD, ["a", "\ud800"], 1, "surrogate"),
    "one text for two rows": (KEYWORD, "ab", None, "one text"),
    "a mapping": (KEYWORD, {"a": 1}, None, "mapping"),
    "a set": (KEYWORD, {"a", "b"}, None, "no order"),
    "one value": (INT64, 5, None, "5, not one value a row"),
    "a table": (INT64, pa.table({"a": [1]}), None, "a table"),
    "a DataFrame": (INT64, pd.DataFrame({"a": [1]}), None, "a table"),
    "a matrix": (INT64, np.zeros((2, 2), np.int64), None, "shape"),
    "a text as a list": (LIST, [["a"], "bc"], 1, "list of texts"),
    "a set as a list": (LIST, [{"a"}], 0, "list of texts"),
    "nothing in a list": (LIST, [["a"], ["b", None]], 1, "missing"),
    "nothing in an Arrow list": (LIST, pa.array([["a"], None, ["b", None]]), 2, "missing"),
    "numbers in a list": (LIST, pa.array([[1]]), None, "lists of texts"),
    "epoch seconds": (TIMESTAMP, [1_700_000_000], 0, "seconds or microseconds"),
    "epoch seconds as floats": (TIMESTAMP, [MOMENT, 1.7e9], 1, "seconds or microseconds"),
    "numbers in numpy": (TIMESTAMP, np.array([1_700_000_000]), None, "takes moments"),
    "numbers in Arrow": (TIMESTAMP, pa.array([1_700_000_000]), None, "takes moments"),
    "a naive datetime": (TIMESTAMP, [MOMENT.replace(tzinfo=None)], 0, "no time zone"),
    "text without a zone": (TIMESTAMP, ["2024-05-01T12:00:00"], 0, "no time zone"),
    "text that is no moment": (TIMESTAMP, [None, "soon"], 1, "RFC 3339"),
    "30 February": (TIMESTAMP, pa.array(["2024-02-30"]), 0, "exists"),
    "nanoseconds": (TIMESTAMP, np.array([0, 1], "M8[ns]"), 1, "finer than a microsecond"),
    "Arrow nanoseconds": (TIMESTAMP, pa.array([1_001], pa.timestamp("ns")), 0, "finer"),
    "pandas nanoseconds": (TIMESTAMP, [pd.Timestamp("2024-01-01T00:00:00.000000001Z")], 0, "finer"),
    "10**13 seconds": (TIMESTAMP, pa.array([None, 10**13], pa.timestamp("s")), 1, "1 to 9999"),
    "year 12000": (TIMESTAMP, np.array(["2024-01-01", "12000-01-01"], "M8[s]"), 1, "1 to 9999"),
    "year 0": (TIMESTAMP, np.array(["0000-12-31T23:59:59.999999"], "M8[us]"), 0, "1 to 9999"),
    "far years": (TIMESTAMP, np.array([2**62], "M8[Y]"), 0, "1 to 9999"),
    "after 9999 in UTC": (
        TIMESTAMP,
        [datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2)))],
        0,
        "1 to 9999",
    ),
    "a duration as a number": (INT64, np.array([1], "m8[s]"), 0, "int64"),
    "a duration": (TIMESTAMP, np.array([1], "m8[s]"), 0, "timestamp"),
    "a time of day": (TIMESTAMP, pa.array([1], pa.time64("us")), None, "takes moments"),
    "pandas, mixed objects": (INT64, pd.Series([1, "2"], dtype=object), 1, "a string"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_held_exactly_is_refused_by_row(name: str) -> None:
    kind, values, row, words = REFUSED[name]
    with pytest.raises(UnfitValue, match=words) as caught:
        attribute_column(values, kind)
    assert caught.value.row == row


def test_the_range_of_time_is_what_a_datetime_holds() -> None:
    ends = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    assert attribute_column(ends, TIMESTAMP).to_pylist() == ends
    numbers: Any = pa.array([MOMENT_US_MIN, MOMENT_US_MAX]).cast(pa.timestamp("us"))
    assert attribute_column(numbers, TIMESTAMP).to_pylist() == ends


def test_ids_are_texts_and_nothing_else() -> None:
    assert id_texts(np.array(["a", "b"])) == ["a", "b"]
    assert id_texts(name for name in "ab") == ["a", "b"]
    assert id_texts({"a": 1, "b": 2}.keys()) == ["a", "b"]
    assert id_texts(pd.Series(["a", "b"])) == ["a", "b"]
    assert id_texts(pa.array(["a"]).dictionary_encode()) == ["a"]
    assert id_texts([1, np.int64(2)], whole_numbers=True) == ["1", "2"]
    refused: list[tuple[Any, int]] = [
        (["a", 1], 1),
        ([1.0], 0),
        ([True], 0),
        ([uuid.UUID(int=1)], 0),
        (["a", None], 1),
        ([b"a"], 0),
    ]
    for ids, row in refused:
        with pytest.raises(UnfitValue) as caught:
            id_texts(ids)
        assert caught.value.row == row
    for whole in ("abc", b"abc", {"a": 1}, 5):
        with pytest.raises(UnfitValue):
            id_texts(whole)
    for number in (1.0, True):
        with pytest.raises(UnfitValue):
            id_texts([number], whole_numbers=True)
    with pytest.raises(UnfitValue, match="no order"):
        id_texts({"a", "b"}, ordered=True)


@dataclass
class Point:
    x: int = 1


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, 2**70, -(2**63) - 1, "é", [], {"a": [1, {"b": None}]}, {"": ""}, 1e300],
)
def test_payloads_read_back_as_what_was_given(value: Any) -> None:
    assert msgspec.json.decode(encode_payload(value)) == value


def test_payloads_may_be_json_already_and_tuples_become_lists() -> None:
    found = payload_column([{"a": (1, 2)}, None, b"[1]"])
    assert found.to_pylist() == [b'{"a":[1,2]}', None, b"[1]"]
    assert payload_column([{np.str_("a"): np.str_("b")}]).to_pylist() == [b'{"a":"b"}']
    assert payload_column(pa.array([b"1", None])).to_pylist() == [b"1", None]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (math.nan, ""),
        ({"a": [0.0, -math.inf]}, ".a[1]"),
        ({"a": {1, 2}}, ".a"),
        ({"a": Point()}, ".a"),
        ({"a": {(1, 2): 3}}, ".a"),
        ({1: "a"}, ""),
        ([b"a"], "[0]"),
        ([MOMENT], "[0]"),
        ([Decimal("1.5")], "[0]"),
        ([uuid.UUID(int=1)], "[0]"),
        ([np.float32(0.5)], "[0]"),
        ([np.zeros(2)], "[0]"),
        ({"a": "\ud800"}, ".a"),
        (object(), ""),
    ],
)
def test_what_json_would_change_is_refused_at_its_place(value: Any, part: str) -> None:
    with pytest.raises(UnfitValue) as caught:
        payload_column([None, value])
    assert (caught.value.row, caught.value.part) == (1, part)


@pytest.mark.parametrize(
    "values", [{"x": 1}, "x", b"[1]", {1}, 5, pa.array(["1"]), pd.DataFrame({"a": [1]})]
)
def test_one_payload_is_not_one_a_row(values: Any) -> None:
    with pytest.raises(UnfitValue) as caught:
        payload_column(values)
    assert caught.value.row is None


def test_too_deep_payloads_are_refused() -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(UnfitValue, match="nested"):
        encode_payload(deep)


FIXED: Any = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0]), 2)
FIXED_WITH_NULLS: Any = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))


@pytest.mark.parametrize(
    "vectors",
    [
        [[1, 2], [3, 4]],
        ((1, 2), (3, 4)),
        [np.array([1, 2]), [3.0, 4.0]],
        np.array([[1, 2], [3, 4]], ">f4"),
        FIXED,
        pa.chunked_array([FIXED[:1], FIXED[1:]]),
        FIXED_WITH_NULLS.filter(FIXED_WITH_NULLS.is_valid()),
        pa.array([[0, 0], [1, 2], [3, 4]])[1:],
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.float16())),
        pa.array([[1, 2], [3, 4]], pa.list_view(pa.int8())),
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float64(), [2]), FIXED),
        [pa.array([1, 2]), pa.array([3, 4])],
        pd.Series([[1, 2], np.array([3, 4])]),
        pd.DataFrame({"a": [1, 3], "b": [2.0, 4.0]}),
        np.ma.array([[1, 2], [3, 4]]),
    ],
)
def test_vectors_of_every_kind(vectors: Any) -> None:
    assert vector_matrix(vectors).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("vectors", "row", "words"),
    [
        (pa.array([[1.0, 2.0, 3.0], [4.0]]), 1, "equally long"),
        (pa.array([[1.0, 2.0], None]), 1, "no vector"),
        (FIXED_WITH_NULLS, 1, "no vector"),
        (FIXED_WITH_NULLS[1:], 0, "no vector"),
        (pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float32(), 2)), 1, "position 1"),
        (pa.array([[9.0, None], [1.0, 2.0], [None, 3.0]])[1:], 1, "position 0"),
        (pa.array([[True, False]]), None, "Arrow type"),
        (pa.array([1.0, 2.0]), None, "Arrow type"),
        ([[1, 2], [3]], 1, "equally long"),
        ([[1, 2], [None, 3]], 1, "position 0"),
        ([[1, 2], [3, True]], 1, "position 1"),
        ([[1, "2"]], 0, "position 1"),
        ([[1, 2], None], 1, "not a vector"),
        ([1, 2], 0, "not a vector"),
        (np.array([[1, 2], [3, None]], dtype=object), 1, "position 1"),
        (np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [0, 1]]), 1, "masked"),
        (np.zeros(3), None, "shape"),
        (np.array([["a"]]), None, "numbers"),
        (np.array([[1j]]), None, "numbers"),
        (np.array([[True]]), None, "numbers"),
        ({"a": [1.0]}, None, "mapping"),
        ("abc", None, "one text"),
        (5.0, None, "5.0"),
    ],
)
def test_vectors_that_are_not_whole_are_refused_by_row(
    vectors: Any, row: int | None, words: str
) -> None:
    with pytest.raises(UnfitValue, match=words) as caught:
        vector_matrix(vectors)
    assert caught.value.row == row


def test_one_vector() -> None:
    assert single_vector(pa.array([1.0, 2.0])).tolist() == [1, 2]
    assert single_vector([1, 2]).tolist() == [1, 2]
    for wrong in (pa.array([1.0, None]), [[1.0]], np.zeros((1, 2)), 5, "ab", None, [1, None]):
        with pytest.raises(UnfitValue) as caught:
            single_vector(wrong)
        assert caught.value.row is None
