"""What comes back equals what went in, or the write was refused naming field and row.

Random values of every Python, numpy, pandas, Arrow and JSON type, through the SDK, raw gRPC and
`annheal import`, compared by an oracle that shares no code with the conversion.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.v1 import columns_pb2, records_pb2
from tests.support.any_values import COLUMNS, PLAIN, PYTHON, arrow_arrays, elements, meaning
from tests.support.cluster import EmbeddedServer
from tests.support.raw_rpc import CALL_TIMEOUT_S, Stubs, open_stubs, packed

NAME = "values-round-trip"
KINDS = list(AttributeType)
UNIT = [1.0, 0.0]
_numbers = count()

random_values = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few_random_values = settings(random_values, max_examples=30)


@pytest.fixture(scope="module")
def client(embedded_server: EmbeddedServer) -> Iterator[Client]:
    with Client(embedded_server.address) as client:
        client.create_collection(
            NAME, 2, metric="l2", attributes={f"a_{kind.value}": kind for kind in KINDS}
        )
        yield client
        client.drop_collection(NAME)


@pytest.fixture(scope="module")
def stubs(embedded_server: EmbeddedServer) -> Iterator[Stubs]:
    with open_stubs(embedded_server.address) as stubs:
        yield stubs


def stored(client: Client, ids: list[str], kind: AttributeType) -> list[Any]:
    records = client.get(NAME, ids, include="attributes")
    assert records.ids == ids
    return [(record.attributes or {}).get(f"a_{kind.value}") for record in records]


def fresh_ids(rows: int) -> list[str]:
    return [f"r{next(_numbers)}" for _ in range(rows)]


def assert_same(given: list[Any], found: list[Any], kind: AttributeType) -> None:
    wanted = [meaning(value, kind) for value in given]
    assert [meaning(value, kind) for value in found] == wanted
    for value in found:  # and of the type that is declared
        assert value is None or type(value) is _PYTHON_TYPES[kind]


_PYTHON_TYPES = {
    AttributeType.BOOL: bool,
    AttributeType.INT64: int,
    AttributeType.FLOAT64: float,
    AttributeType.KEYWORD: str,
    AttributeType.KEYWORD_LIST: list,
    AttributeType.TIMESTAMP: datetime,
}


# -------------------------------------------------------------------------------------------- SDK


@given(kind=st.sampled_from(KINDS), column=COLUMNS)
@example(kind=AttributeType.TIMESTAMP, column=[1_700_000_000])
@example(kind=AttributeType.BOOL, column=[5])
@example(kind=AttributeType.INT64, column=[2**63])
@example(kind=AttributeType.FLOAT64, column=[2**64])
@random_values
def test_attributes_through_the_sdk(client: Client, kind: AttributeType, column: Any) -> None:
    rows = len(column)
    ids, field = fresh_ids(rows), f"attributes.a_{kind.value}"
    try:
        client.upsert(NAME, ids, [UNIT] * rows, attributes={f"a_{kind.value}": column})
    except InvalidArgument as error:
        event("refused")
        assert_names_a_row(error, field, rows)
        assert client.get(NAME, ids).ids == []
    else:
        event(f"taken as {kind.value}")
        assert_same(elements(column), stored(client, ids, kind), kind)


def assert_names_a_row(error: InvalidArgument, field: str, rows: int) -> None:
    """The field is named, and a row of those given unless the whole type is refused."""
    [violation] = error.violations
    match = re.fullmatch(rf"{re.escape(field)}(?:\[(\d+)\].*)?", violation.field)
    assert match is not None, violation
    if match[1] is None:
        assert re.search(
            r"has the type|holds bytes|cannot be read as values", violation.description
        )
    else:
        assert int(match[1]) < rows


@given(data=st.data(), kind=st.sampled_from(KINDS))
@random_values
def test_values_of_the_declared_type_are_always_taken(
    client: Client, data: st.DataObject, kind: AttributeType
) -> None:
    values = data.draw(st.lists(st.one_of(st.none(), PLAIN[kind]), min_size=1, max_size=4))
    ids = fresh_ids(len(values))
    client.upsert(
        NAME, ids, [UNIT] * len(ids), attributes=[{f"a_{kind.value}": value} for value in values]
    )
    assert_same(values, stored(client, ids, kind), kind)


JSON_LIKE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=4),
        PYTHON,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 3)), inner, max_size=3),
        st.just({1, 2}),
    ),
    max_leaves=6,
)


@given(payloads=st.lists(JSON_LIKE, min_size=1, max_size=3))
@random_values
def test_payloads_through_the_sdk(client: Client, payloads: list[Any]) -> None:
    ids = fresh_ids(len(payloads))
    try:
        client.upsert(NAME, ids, [UNIT] * len(ids), payloads=payloads)
    except InvalidArgument as error:
        event("refused")
        match = re.match(r"payloads\[(\d+)\]", error.violations[0].field)
        assert match is not None
        assert int(match[1]) < len(payloads)
    else:
        event("taken")
        for record, given in zip(client.get(NAME, ids, include="payload"), payloads, strict=True):
            assert shape(record.payload) == shape(
                msgspec.json.decode(given) if isinstance(given, bytes) else given
            )


def shape(value: Any) -> Any:
    """Return a payload so that 1, 1.0 and True differ, and a tuple is the list that it becomes."""
    if isinstance(value, list | tuple):
        return [shape(part) for part in value]
    if isinstance(value, dict):
        return {repr(str(key)): shape(part) for key, part in value.items()} | {
            type(key): "" for key in value
        }
    if isinstance(value, str):
        return ("text", str(value))
    return (float if isinstance(value, float) else type(value), repr(value))


NUMBERS = st.one_of(st.floats(width=32), st.integers(-(2**40), 2**40), st.booleans(), st.none())
VECTOR_LISTS = st.lists(st.lists(NUMBERS, min_size=1, max_size=3), min_size=1, max_size=3)
FLOATS = st.floats(-(2.0**40), 2.0**40, width=32)
WHOLE_VECTORS = st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=1, max_size=3)


@given(
    rows=st.one_of(VECTOR_LISTS, WHOLE_VECTORS),
    form=st.sampled_from(["lists", "arrow", "large", "slice", "chunks", "numpy", "fixed"]),
)
@random_values
def test_vectors_through_the_sdk(client: Client, rows: list[list[Any]], form: str) -> None:
    try:
        vectors = vectors_in(form, rows)
    except (pa.ArrowException, ValueError, TypeError):
        return  # the library itself cannot hold it
    ids = fresh_ids(len(rows))
    try:
        client.upsert(NAME, ids, vectors)
    except InvalidArgument as error:
        assert_names_vectors(error)
        assert not is_whole(rows)
    else:
        event("taken")
        assert is_whole(rows)
        found = client.get(NAME, ids, include="vector").vectors
        assert found is not None
        assert found.tobytes() == np.array(rows, np.float32).tobytes()


def assert_names_vectors(error: InvalidArgument) -> None:
    event("refused")
    assert re.match(r"(columns\.)?vectors", error.violations[0].field)


def is_whole(rows: list[list[Any]]) -> bool:
    flat = [value for row in rows for value in row]
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in flat)
    return numbers and all(map(math.isfinite, flat)) and all(len(row) == 2 for row in rows)


def vectors_in(form: str, rows: list[list[Any]]) -> Any:
    if form == "lists":
        return rows
    if form == "numpy":
        return np.array(rows, dtype=object) if not is_whole(rows) else np.array(rows, np.float64)
    if any(isinstance(value, bool) for row in rows for value in row):
        raise TypeError("Arrow takes bools for numbers when it is told to")
    kind: Any = pa.list_(pa.float64())
    if form == "large":
        kind = pa.large_list(pa.float64())
    elif form == "fixed":
        kind = pa.list_(pa.float64(), len(rows[0]))
    if form == "slice":
        return pa.array([[9.0], *rows], kind)[1:]
    column: Any = pa.array(rows, kind)
    return pa.chunked_array([column[:1], column[1:]]) if form == "chunks" else column


# -------------------------------------------------------------------------------------- raw gRPC

WIRE_VALUES = st.one_of(
    st.builds(lambda v: ("keyword", v), st.text(max_size=4)),
    st.builds(lambda v: ("int64_value", v), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda v: ("float64_value", v), st.floats()),
    st.builds(lambda v: ("bool_value", v), st.booleans()),
    st.builds(
        lambda s, n: ("timestamp_value", {"seconds": s, "nanos": n}),
        st.one_of(st.integers(-(10**11), 10**12), st.integers(-(2**63), 2**63 - 1)),
        st.one_of(
            st.just(0), st.integers(-1, 10**9), st.integers(0, 10**6 - 1).map(lambda us: us * 1_000)
        ),
    ),
    st.builds(lambda v: ("keyword_list", {"values": v}), st.lists(st.text(max_size=2), max_size=3)),
)
_WIRE_KINDS = {
    "keyword": AttributeType.KEYWORD,
    "int64_value": AttributeType.INT64,
    "float64_value": AttributeType.FLOAT64,
    "bool_value": AttributeType.BOOL,
    "timestamp_value": AttributeType.TIMESTAMP,
    "keyword_list": AttributeType.KEYWORD_LIST,
}


def wire_meaning(name: str, value: Any) -> Any:
    if name == "timestamp_value":
        nanos = value["seconds"] * 10**9 + value["nanos"]
        return meaning(np.datetime64(0, "us"), AttributeType.TIMESTAMP) and (
            "moment",
            meaning(nanos, AttributeType.INT64)[1] / 10**9,  # type: ignore[index]
        )
    return meaning(value["values"] if name == "keyword_list" else value, _WIRE_KINDS[name])


@given(kind=st.sampled_from(KINDS), value=WIRE_VALUES, fits=st.booleans())
@random_values
def test_rows_through_raw_grpc(
    client: Client, stubs: Stubs, kind: AttributeType, value: tuple[str, Any], fits: bool
) -> None:
    name, given = value
    kind = _WIRE_KINDS[name] if fits else kind
    ids = fresh_ids(2)
    record = records_pb2.Record(
        id=ids[1],
        vectors=[records_pb2.Vector(packed=np.array(UNIT, "<f4").tobytes())],
        attributes={f"a_{kind.value}": records_pb2.AttributeValue(**{name: given})},
    )
    first = records_pb2.Record(id=ids[0], vectors=record.vectors)
    refused = written(stubs, records_pb2.UpsertRequest(collection=NAME, records=[first, record]))
    if refused is None:
        event("taken")
        assert kind is _WIRE_KINDS[name]
        found = stored(client, ids, kind)
        assert found[0] is None
        assert meaning(found[1], kind) == wire_meaning(name, given)
    else:
        event("refused")
        assert f"a_{kind.value}" in refused
        assert "1]" in refused


@given(
    kind=st.sampled_from([AttributeType.INT64, AttributeType.FLOAT64, AttributeType.TIMESTAMP]),
    words=st.lists(
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-(10**9), 10**9)),
        min_size=1,
        max_size=3,
    ),
)
@random_values
def test_columns_through_raw_grpc(
    client: Client, stubs: Stubs, kind: AttributeType, words: list[int]
) -> None:
    """Any eight bytes are some number: they are stored bit for bit, or refused by row."""
    ids = fresh_ids(len(words))
    octets = np.array(words, "<i8").tobytes()
    fields = {
        AttributeType.INT64: "int64s",
        AttributeType.FLOAT64: "float64s",
        AttributeType.TIMESTAMP: "timestamps_us",
    }
    column = columns_pb2.AttributeColumn(name=f"a_{kind.value}", **{fields[kind]: octets})  # type: ignore[arg-type]
    columns = columns_pb2.RecordColumns(
        ids=ids, vectors=[packed(*[UNIT] * len(ids))], attributes=[column]
    )
    refused = written(stubs, records_pb2.UpsertRequest(collection=NAME, columns=columns))
    floats = np.array(words, "<i8").view("<f8")
    if refused is None:
        found = stored(client, ids, kind)
        if kind is AttributeType.FLOAT64:
            assert np.array(found, "<f8").tobytes() == octets
        else:
            given = words if kind is AttributeType.INT64 else np.array(words).view("M8[us]")
            assert_same(list(given), found, kind)
    elif kind is AttributeType.FLOAT64:
        assert f"[{int(np.argmin(np.isfinite(floats)))}]" in refused
    else:
        assert kind is AttributeType.TIMESTAMP
        assert re.search(r"a_timestamp\[\d\].*1 to 9999", refused)


def written(stubs: Stubs, request: records_pb2.UpsertRequest) -> str | None:
    """Write; return the message of a refusal as INVALID_ARGUMENT."""
    try:
        stubs.records.Upsert(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        failed: Any = error
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT, failed.details()
        return str(failed.details())
    return None


# ----------------------------------------------------------------------------------------- import

Import = Callable[[Path, AttributeType], Result]


@pytest.fixture
def import_file(embedded_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Import:
    monkeypatch.setenv("ANNHEAL_ADDRESS", embedded_server.address)

    def run(file: Path, kind: AttributeType) -> Result:
        column = ("--attributes", f"a_{kind.value}")
        return CliRunner().invoke(app, hoist(["import", str(file), "-c", NAME, *column]))

    return run


@given(kind=st.sampled_from(KINDS), column=arrow_arrays())
@few_random_values
def test_parquet_through_an_import(
    client: Client, import_file: Import, tmp_path: Path, kind: AttributeType, column: Any
) -> None:
    ids = fresh_ids(len(column))
    name = f"a_{kind.value}"
    table = pa.table({"id": ids, "vector": [UNIT] * len(ids), name: column})
    file = tmp_path / "rows.parquet"
    try:
        pq.write_table(table, file)
        column = pq.read_table(file).column(name)
    except (pa.ArrowException, NotImplementedError):
        return  # Parquet has no such type
    check_import(client, import_file(file, kind), ids, elements(column), kind)


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.lists(st.text(max_size=2), max_size=2),
    st.just({"a": 1}),
)


@given(kind=st.sampled_from(KINDS), values=st.lists(JSON_VALUES, min_size=1, max_size=3))
@few_random_values
def test_json_lines_through_an_import(
    client: Client, import_file: Import, tmp_path: Path, kind: AttributeType, values: list[Any]
) -> None:
    ids = fresh_ids(len(values))
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": one, "vector": UNIT, f"a_{kind.value}": value}
        for one, value in zip(ids, values, strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    check_import(client, import_file(file, kind), ids, values, kind)


def check_import(
    client: Client, result: Result, ids: list[str], given: list[Any], kind: AttributeType
) -> None:
    if result.exit_code == 0:
        event("taken")
        assert_same(given, stored(client, ids, kind), kind)
        return
    event("refused")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert f"a_{kind.value}" in result.stderr
    assert client.get(NAME, ids).ids == []
