"""Bad input through stock gRPC stubs: a clear error each, and the server lives on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.message import Message

from annheal.model.limits import K_MAX, REQUEST_BYTES_MAX
from annheal.v1 import (
    collections_pb2,
    columns_pb2,
    filter_pb2,
    records_pb2,
    search_pb2,
)
from tests.support.cluster import EmbeddedServer
from tests.support.raw_rpc import CALL_TIMEOUT_S, Stubs, open_stubs, packed, refusal_of

COLLECTION = "bad-input"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIT = [1.0, 0.0, 0.0, 0.0]
OTHER = [0.0, 1.0, 0.0, 0.0]


def upsert(
    *,
    vectors: columns_pb2.Vectors | None = None,
    ids: tuple[str, ...] = ("x",),
    attributes: tuple[columns_pb2.AttributeColumn, ...] = (),
    payloads: tuple[bytes, ...] = (),
    collection: str = COLLECTION,
) -> records_pb2.UpsertRequest:
    return records_pb2.UpsertRequest(
        collection=collection,
        columns=columns_pb2.RecordColumns(
            ids=ids,
            vectors=[packed(*[UNIT] * len(ids)) if vectors is None else vectors],
            attributes=attributes,
            payloads=payloads,
        ),
    )


def search(
    *,
    vectors: columns_pb2.Vectors | None = None,
    k: int = 3,
    filter: filter_pb2.Filter | None = None,
    collection: str = COLLECTION,
    ef: int | None = None,
) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(
        collection=collection,
        vectors=packed(UNIT) if vectors is None else vectors,
        k=k,
        filter=filter,
        ef=ef,
    )


def compare(
    field: str, value: filter_pb2.FilterValue, op: int = filter_pb2.COMPARISON_OP_EQ
) -> filter_pb2.Filter:
    comparison = filter_pb2.Comparison(field=field, value=value)
    comparison.op = op  # type: ignore[assignment]
    return filter_pb2.Filter(comparison=comparison)


def nested(levels: int) -> filter_pb2.Filter:
    inner = compare("year", filter_pb2.FilterValue(int64_value=1))
    for _ in range(levels):
        inner = filter_pb2.Filter(negation=inner)
    return inner


@dataclass(frozen=True, slots=True)
class Case:
    """A request, the code that refuses it, the start of the field named, words of the message."""

    method: str
    request: Callable[[], Message]
    code: grpc.StatusCode
    field: str
    words: tuple[str, ...]


CASES: dict[str, Case] = {
    "upsert, dimension 3 of 4": Case(
        "records.Upsert", lambda: upsert(vectors=packed([1.0, 0, 0])), INVALID, "", ("3", "4")
    ),
    "upsert, bytes that are no whole vector": Case(
        "records.Upsert",
        lambda: upsert(vectors=columns_pb2.Vectors(dimension=4, packed=b"\0" * 15)),
        INVALID,
        "",
        ("15",),
    ),
    "upsert, two ids and one vector": Case(
        "records.Upsert", lambda: upsert(ids=("a", "b"), vectors=packed(UNIT)), INVALID, "", ("2",)
    ),
    "upsert, NaN": Case(
        "records.Upsert",
        lambda: upsert(ids=("a", "b"), vectors=packed(UNIT, [math.nan, 0, 0, 1])),
        INVALID,
        "",
        ("[1]", "nan"),
    ),
    "upsert, infinity": Case(
        "records.Upsert", lambda: upsert(vectors=packed([math.inf, 0, 0, 1])), INVALID, "", ("inf",)
    ),
    "upsert, zero vector for cosine": Case(
        "records.Upsert", lambda: upsert(vectors=packed([0.0] * 4)), INVALID, "", ("zero",)
    ),
    "upsert, empty id": Case(
        "records.Upsert", lambda: upsert(ids=("",)), INVALID, "ids[0]", ("1 to 512",)
    ),
    "upsert, id of 513 bytes": Case(
        "records.Upsert", lambda: upsert(ids=("é" * 257,)), INVALID, "ids[0]", ("512", "514")
    ),
    "upsert, nothing": Case(
        "records.Upsert",
        lambda: records_pb2.UpsertRequest(collection=COLLECTION),
        INVALID,
        "",
        (),
    ),
    "upsert, attribute that is not declared": Case(
        "records.Upsert",
        lambda: upsert(attributes=(columns_pb2.AttributeColumn(name="colour", int64s=b"\0" * 8),)),
        INVALID,
        "columns.attributes[0].name",
        ("colour",),
    ),
    "upsert, attribute of another type": Case(
        "records.Upsert",
        lambda: upsert(
            attributes=(
                columns_pb2.AttributeColumn(
                    name="year", keywords=columns_pb2.KeywordColumn(values=["x"])
                ),
            )
        ),
        INVALID,
        "columns.attributes",
        ("int64",),
    ),
    "upsert, payload that is no JSON": Case(
        "records.Upsert", lambda: upsert(payloads=(b"{not json",)), INVALID, "payloads", ("JSON",)
    ),
    "upsert, unknown collection": Case(
        "records.Upsert",
        lambda: upsert(collection="bad-inpud"),
        grpc.StatusCode.NOT_FOUND,
        "",
        ("bad-inpud", "did you mean"),
    ),
    "search, dimension 5 of 4": Case(
        "search.Search", lambda: search(vectors=packed([1.0] * 5)), INVALID, "", ("5", "4")
    ),
    "search, NaN": Case(
        "search.Search", lambda: search(vectors=packed([math.nan] * 4)), INVALID, "", ("nan",)
    ),
    "search, zero vector": Case(
        "search.Search", lambda: search(vectors=packed([0.0] * 4)), INVALID, "", ("zero",)
    ),
    "search, no query": Case(
        "search.Search",
        lambda: search_pb2.SearchRequest(collection=COLLECTION, k=3),
        INVALID,
        "",
        ("vectors",),
    ),
    "search, k = 0": Case("search.Search", lambda: search(k=0), INVALID, "k", ("1", str(K_MAX))),
    "search, huge k": Case(
        "search.Search", lambda: search(k=4_000_000_000), INVALID, "k", (str(K_MAX),)
    ),
    "search, huge ef": Case(
        "search.Search", lambda: search(ef=1_000_000), INVALID, "ef", ("16384",)
    ),
    "search, unknown field in the filter": Case(
        "search.Search",
        lambda: search(filter=compare("yaer", filter_pb2.FilterValue(int64_value=1))),
        INVALID,
        "filter",
        ("yaer", "year"),
    ),
    "search, wrong type in the filter": Case(
        "search.Search",
        lambda: search(filter=compare("year", filter_pb2.FilterValue(string_value="new"))),
        INVALID,
        "filter",
        ("year", "int64"),
    ),
    "search, order of keywords in the filter": Case(
        "search.Search",
        lambda: search(
            filter=compare(
                "tags", filter_pb2.FilterValue(string_value="a"), filter_pb2.COMPARISON_OP_LT
            )
        ),
        INVALID,
        "filter",
        ("tags",),
    ),
    "search, a moment finer than a microsecond": Case(
        "search.Search",
        lambda: search(
            filter=compare("year", filter_pb2.FilterValue(timestamp_value={"nanos": 1}))
        ),
        INVALID,
        "filter.comparison.value",
        ("finer than a microsecond",),
    ),
    "search, a moment after the year 9999": Case(
        "search.Search",
        lambda: search(
            filter=compare("year", filter_pb2.FilterValue(timestamp_value={"seconds": 10**13}))
        ),
        INVALID,
        "filter.comparison.value",
        ("1 to 9999",),
    ),
    "search, a float that may have been rounded": Case(
        "search.Search",
        lambda: search(filter=compare("year", filter_pb2.FilterValue(float64_value=2.0**53 + 2))),
        INVALID,
        "filter.year",
        ("2**53", "integer"),
    ),
    "search, vectors of another model": Case(
        "search.Search",
        lambda: search(vectors=columns_pb2.Vectors(model="ada", packed=packed(UNIT).packed)),
        INVALID,
        "vectors.model",
        ("ada", "'m'", "cannot be compared"),
    ),
    "upsert, vectors of another model": Case(
        "records.Upsert",
        lambda: upsert(vectors=columns_pb2.Vectors(model="ada", packed=packed(UNIT).packed)),
        INVALID,
        "columns.vectors[0].model",
        ("ada", "'m'"),
    ),
    "search, filter nested 40 deep": Case(
        "search.Search", lambda: search(filter=nested(40)), INVALID, "filter", ("32",)
    ),
    "search, empty filter": Case(
        "search.Search", lambda: search(filter=filter_pb2.Filter()), INVALID, "filter", ()
    ),
    "search, unknown collection": Case(
        "search.Search",
        lambda: search(collection="nowhere-at-all"),
        grpc.StatusCode.NOT_FOUND,
        "",
        ("nowhere-at-all",),
    ),
    "delete, empty id": Case(
        "records.DeleteByIds",
        lambda: records_pb2.DeleteByIdsRequest(collection=COLLECTION, ids=[""]),
        INVALID,
        "ids[0]",
        ("1 to 512",),
    ),
    "delete by a filter that is missing": Case(
        "records.DeleteByFilter",
        lambda: records_pb2.DeleteByFilterRequest(collection=COLLECTION),
        INVALID,
        "filter",
        (),
    ),
    "get, 10,001 ids": Case(
        "records.Get",
        lambda: records_pb2.GetRequest(collection=COLLECTION, ids=[str(n) for n in range(10_001)]),
        INVALID,
        "ids",
        ("10000",),
    ),
    "scan, a cursor of nobody's": Case(
        "records.Scan",
        lambda: records_pb2.ScanRequest(collection=COLLECTION, cursor="!!"),
        INVALID,
        "cursor",
        (),
    ),
    "scan, a page too large": Case(
        "records.Scan",
        lambda: records_pb2.ScanRequest(collection=COLLECTION, page_size=1_000_000),
        INVALID,
        "page_size",
        ("10000",),
    ),
    "create, a name with a slash": Case(
        "collections.CreateCollection",
        lambda: collections_pb2.CreateCollectionRequest(
            name="a/b",
            models=[
                collections_pb2.ModelSpec(
                    name="m", dimension=4, metric=collections_pb2.METRIC_COSINE
                )
            ],
        ),
        INVALID,
        "name",
        ("letter",),
    ),
    "create, no metric": Case(
        "collections.CreateCollection",
        lambda: collections_pb2.CreateCollectionRequest(
            name="fine", models=[collections_pb2.ModelSpec(name="m", dimension=4)]
        ),
        INVALID,
        "",
        ("metric",),
    ),
    "create, dimension 0": Case(
        "collections.CreateCollection",
        lambda: collections_pb2.CreateCollectionRequest(
            name="fine",
            models=[
                collections_pb2.ModelSpec(
                    name="m", dimension=0, metric=collections_pb2.METRIC_COSINE
                )
            ],
        ),
        INVALID,
        "",
        ("dimension", "32768"),
    ),
    "create, a name that is taken": Case(
        "collections.CreateCollection",
        lambda: collections_pb2.CreateCollectionRequest(
            name=COLLECTION,
            models=[
                collections_pb2.ModelSpec(
                    name="m", dimension=4, metric=collections_pb2.METRIC_COSINE
                )
            ],
        ),
        grpc.StatusCode.ALREADY_EXISTS,
        "",
        (COLLECTION,),
    ),
    "drop, unknown collection": Case(
        "collections.DropCollection",
        lambda: collections_pb2.DropCollectionRequest(name="nowhere-at-all"),
        grpc.StatusCode.NOT_FOUND,
        "",
        ("nowhere-at-all",),
    ),
}


@pytest.fixture(scope="module")
def stubs(embedded_server: EmbeddedServer) -> Iterator[Stubs]:
    with open_stubs(embedded_server.address) as stubs:
        stubs.collections.CreateCollection(
            collections_pb2.CreateCollectionRequest(
                name=COLLECTION,
                models=[
                    collections_pb2.ModelSpec(
                        name="m", dimension=4, metric=collections_pb2.METRIC_COSINE
                    )
                ],
                attributes=[
                    collections_pb2.AttributeField(
                        name="year", type=collections_pb2.ATTRIBUTE_TYPE_INT64
                    ),
                    collections_pb2.AttributeField(
                        name="tags", type=collections_pb2.ATTRIBUTE_TYPE_KEYWORD_LIST
                    ),
                ],
                shard_count=2,
            ),
            timeout=CALL_TIMEOUT_S,
        )
        stubs.records.Upsert(
            upsert(ids=("good", "other"), vectors=packed(UNIT, OTHER)), timeout=CALL_TIMEOUT_S
        )
        yield stubs
        stubs.collections.DropCollection(
            collections_pb2.DropCollectionRequest(name=COLLECTION), timeout=CALL_TIMEOUT_S
        )


@pytest.fixture
def server_lives_on(stubs: Stubs, embedded_server: EmbeddedServer) -> Iterator[None]:
    """After the test the same process answers a search, with the two records that were good."""
    pid = embedded_server.process.pid
    yield
    answer = stubs.search.Search(search(), timeout=CALL_TIMEOUT_S)
    assert list(answer.ids) == ["good", "other"]
    assert embedded_server.process.pid == pid


def method_of(stubs: Stubs, name: str) -> object:
    service, _, method = name.partition(".")
    found: object = getattr(getattr(stubs, service), method)
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_wrong_request_is_refused_with_the_field_and_the_fix(
    stubs: Stubs, server_lives_on: None, case: Case
) -> None:
    refusal = refusal_of(method_of(stubs, case.method), case.request())
    assert refusal.code is case.code, refusal
    assert refusal.domain == "annheal"
    assert refusal.reason
    for word in case.words:
        assert word.lower() in refusal.message.lower(), refusal
    if case.code is INVALID:
        assert refusal.fields, f"no field is named: {refusal}"
        assert all(refusal.fields.values()), "every field says how to fix it"
    if case.field:
        assert any(name.startswith(case.field) for name in refusal.fields), refusal


def test_a_message_over_the_limit_is_refused(stubs: Stubs, server_lives_on: None) -> None:
    request = upsert(payloads=(b'"' + b"x" * REQUEST_BYTES_MAX + b'"',))
    refusal = refusal_of(stubs.records.Upsert, request)
    assert refusal.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, INVALID)
    assert str(REQUEST_BYTES_MAX) in refusal.message


def test_bytes_that_are_no_message_are_refused(stubs: Stubs, server_lives_on: None) -> None:
    method = stubs.channel.unary_unary(
        "/annheal.v1.SearchService/Search",
        request_serializer=lambda raw: raw,
        response_deserializer=lambda raw: raw,
    )
    refusal = refusal_of(method, b"\xff\xff\xff not a message")  # type: ignore[arg-type]
    assert refusal.code is INVALID
    assert refusal.reason == "MALFORMED_MESSAGE"


def test_a_filter_nested_5000_deep_is_refused(stubs: Stubs, server_lives_on: None) -> None:
    """As bytes, because no stock client gets so deep a message out."""
    node = compare("year", filter_pb2.FilterValue(int64_value=1)).SerializeToString()
    for _ in range(5_000):
        node = b"\x3a" + _varint(len(node)) + node  # field 7, `negation`
    request = search().SerializeToString() + b"\x2a" + _varint(len(node)) + node
    assert search_pb2.SearchRequest.DESCRIPTOR.fields_by_name["filter"].number == 5
    method = stubs.channel.unary_unary(
        "/annheal.v1.SearchService/Search",
        request_serializer=lambda raw: raw,
        response_deserializer=lambda raw: raw,
    )
    refusal = refusal_of(method, request)  # type: ignore[arg-type]
    assert refusal.code is INVALID
    assert refusal.reason == "MALFORMED_MESSAGE"


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def test_an_unknown_method_is_unimplemented(stubs: Stubs, server_lives_on: None) -> None:
    method = stubs.channel.unary_unary(
        "/annheal.v1.SearchService/Guess",
        request_serializer=lambda raw: raw,
        response_deserializer=lambda raw: raw,
    )
    refusal = refusal_of(method, b"")  # type: ignore[arg-type]
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


def test_a_refused_batch_writes_nothing(stubs: Stubs, server_lives_on: None) -> None:
    """One bad row among good ones: none of them may be there afterwards."""
    request = upsert(ids=("a", "b", "c"), vectors=packed(UNIT, [math.nan] * 4, OTHER))
    refusal_of(stubs.records.Upsert, request)
    answer = stubs.records.Count(
        records_pb2.CountRequest(collection=COLLECTION), timeout=CALL_TIMEOUT_S
    )
    assert answer.count == 2
