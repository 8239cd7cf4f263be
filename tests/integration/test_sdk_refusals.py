"""What the SDK refuses: by the caller's names and rows, before or after the server saw it."""

from __future__ import annotations

import asyncio
import inspect
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from annheal import AsyncClient, Client
from annheal.errors import AnnhealError, InvalidArgument
from annheal.model.filter import And, Comparison, ComparisonOp, Filter, Not
from annheal.model.values.payloads import PAYLOAD_BYTES_MAX
from tests.support.cluster import EmbeddedServer

ATTRIBUTES = {"year": "int64", "share": "float64", "kind": "keyword", "at": "timestamp"}
ONE = [[1.0, 0.0, 0.0, 0.0]]
ROWS = 5_000


@pytest.fixture
async def client(embedded_server: EmbeddedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(embedded_server.address) as client:
        yield client


@pytest.fixture
async def name(client: AsyncClient, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    name = f"refuse-{request.node.originalname[:40]}"
    await client.create_collection(name, 4, attributes=ATTRIBUTES)
    yield name
    await client.drop_collection(name)


Call = Callable[[AsyncClient, str], Awaitable[Any]]


def deep() -> Filter:
    tree: Filter = Comparison("year", ComparisonOp.EQ, 1)
    for _ in range(5_000):
        tree = Not(tree)
    return tree


def search(**arguments: Any) -> Call:
    return lambda client, name: client.search(name, ONE[0], **arguments)


def upsert(ids: Any, vectors: Any = None, **arguments: Any) -> Call:
    given = ONE * len(ids) if vectors is None else vectors
    return lambda client, name: client.upsert(name, ids, given, **arguments)


def created(dimension: Any, **arguments: Any) -> Call:
    return lambda client, _: client.create_collection("refused", dimension, **arguments)


NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001

REFUSED: dict[str, tuple[Call, str]] = {
    "one mapping for payloads": (upsert(["a"], payloads={"x": 1}), "payloads"),
    "one text for attributes": (upsert(["a", "b"], attributes={"kind": "ab"}), "attributes.kind"),
    "attributes as a text": (upsert(["a"], attributes="x"), "attributes"),
    "rows that are no mappings": (upsert(["a"], attributes=[5]), "attributes[0]"),
    "two columns of one name": (
        upsert(["a"], attributes=pa.table([pa.array([1]), pa.array([2])], ["year", "year"])),
        "attributes.year",
    ),
    "a DataFrame of two columns of one name": (
        upsert(["a"], attributes=pd.DataFrame([[1, 2]], columns=["year", "year"])),
        "attributes",
    ),
    "an int where a bool is": (upsert(["a"], payloads=[{"x": {1, 2}}]), "payloads[0].x"),
    "2**63": (upsert(["a", "b"], attributes={"year": [1, 2**63]}), "attributes.year[1]"),
    "epoch seconds": (upsert(["a"], attributes={"at": [1_700_000_000]}), "attributes.at[0]"),
    "a naive datetime": (upsert(["a"], attributes={"at": [NAIVE]}), "attributes.at[0]"),
    "year 12000": (
        upsert(["a"], attributes={"at": np.array(["12000-01-01"], "M8[s]")}),
        "attributes.at[0]",
    ),
    "numbers as ids": (upsert(["a", 1]), "ids[1]"),
    "UUIDs as ids": (upsert([uuid.UUID(int=1)]), "ids[0]"),
    "a set of ids": (upsert({"a"}), "ids"),
    "one number for ids": (lambda client, name: client.get(name, 5), "ids"),  # type: ignore[arg-type]
    "a number for vectors": (upsert(["a"], 5), "vectors"),
    "a DataFrame of texts for vectors": (upsert(["a"], pd.DataFrame({"a": ["x"]})), "vectors[0]"),
    "ragged vectors": (upsert(["a", "b"], pa.array([[1.0, 2.0, 3.0], [4.0]])), "vectors[1]"),
    "NaN in a vector": (upsert(["a", "b"], [ONE[0], [math.nan, 0, 0, 0]]), "vectors[1]"),
    "too many rows": (upsert(["a"], batch_rows="5"), "batch_rows"),
    "another model": (upsert(["a"], model="other"), "model"),
    "a model that is no text": (upsert(["a"], model=5), "model"),
    "a mapping as filter": (search(filter={"year": 2024}), "filter"),
    "a list in And": (search(filter=And(["year"])), "filter.and[0]"),  # type: ignore[arg-type, list-item]
    "a value that is none": (
        search(filter=Comparison("year", ComparisonOp.EQ, [1])),  # type: ignore[arg-type]
        "filter.year",
    ),
    "5,000 times not": (search(filter=deep()), "filter"),
    "5,000 times not in text": (search(filter="not " * 5_000 + "year = 1"), "filter"),
    "an inexact number": (search(filter="share = 9007199254740993"), "filter.share"),
    "a number that no type holds": (search(filter=f"share = {2**64 + 1}"), "filter"),
    "k as text": (search(k="5"), "k"),
    "k as a bool": (search(k=True), "k"),
    "ef that is negative": (search(ef=-1), "ef"),
    "an objective as text": (search(recall_objective="0.9"), "recall_objective"),
    "an objective of NaN": (search(recall_objective=math.nan), "recall_objective"),
    "exact as text": (search(exact="no"), "exact"),
    "include of numbers": (search(include=[5]), "include[0]"),
    "include of nothing": (search(include=5), "include"),
    "another consistency": (search(consistency="often"), "consistency"),
    "a session that is none": (search(session="abc"), "session"),
    "a time that is text": (search(timeout_s="5"), "timeout_s"),
    "a model of queries": (search(model="other"), "model"),
    "a query with a hole": (lambda c, n: c.search(n, pa.array([1.0, None])), "vector"),
    "a query that is short": (lambda c, n: c.search(n, [1.0]), "vector.dimension"),
    "a query of NaN": (lambda c, n: c.search(n, [math.nan] * 4), "vector"),
    "a query that is a matrix": (lambda c, n: c.search(n, ONE), "vector"),
    "a number as query": (lambda c, n: c.search(n, 5), "vector"),
    "queries that are ragged": (
        lambda c, n: c.search_batch(n, pa.array([[1.0] * 4, [1.0]])),
        "vectors[1]",
    ),
    "queries with a hole": (
        lambda c, n: c.search_batch(n, pa.array([ONE[0], [1.0, None, 0.0, 0.0]])),
        "vectors[1]",
    ),
    "an id that is a number": (lambda c, n: c.search(n, id=5), "id"),  # type: ignore[arg-type]
    "an id that is too long": (lambda c, n: c.search(n, id="x" * 513), "id"),
    "a model for an id": (lambda c, n: c.search(n, id="a", model="x"), "model"),
    "a collection that is a number": (lambda c, n: c.count(5), "collection"),  # type: ignore[arg-type]
    "dimension -1": (created(-1), "dimension"),
    "dimension as text": (created("4"), "dimension"),
    "another metric": (created(4, metric="manhattan"), "metric"),
    "another type": (created(4, attributes={"a": "text"}), "attributes.a"),
    "attributes in a list": (created(4, attributes=["a"]), "attributes"),
    "settings in a list": (created(4, settings=["a"]), "settings"),
    "shards as text": (created(4, shard_count="2"), "shard_count"),
    "changes in a list": (lambda c, n: c.update_collection(n, settings=["a"]), "settings"),  # type: ignore[arg-type]
    "another tier": (lambda c, n: c.compact(n, tier="tepid"), "tier"),
    "segments as one text": (lambda c, n: c.compact(n, segments="abc"), "segments"),
    "another phase": (lambda c, n: c.tasks(phase="done-ish"), "phase"),
    "a shard that is text": (lambda c, n: c.move_shard(n, "0", "x"), "shard"),  # type: ignore[arg-type]
    "a filter of a number": (lambda c, n: c.count(n, filter=5), "filter"),  # type: ignore[arg-type]
    "texts that are one": (lambda c, n: c.embed("abc"), "texts"),
    "texts that are numbers": (lambda c, n: c.embed([5]), "texts[0]"),  # type: ignore[list-item]
    "an embedder that is not there": (lambda c, n: c.embed(["a"], model="ada"), "model"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_every_refusal_is_ours_and_names_the_argument(
    client: AsyncClient, name: str, case: str
) -> None:
    call, field = REFUSED[case]
    with pytest.raises(InvalidArgument) as caught:
        await call(client, name)
    named = {violation.field for violation in caught.value.violations}
    assert any(one == field or one.endswith(f".{field}") for one in named), caught.value
    assert await client.count(name) == 0


@pytest.mark.parametrize(
    "filter",
    [
        And([Comparison("year", ComparisonOp.GE, np.int64(2024))]),  # type: ignore[arg-type]
        Comparison("at", ComparisonOp.GE, date(2024, 1, 1)),  # type: ignore[arg-type]
        Comparison("at", ComparisonOp.GE, np.datetime64("2024-01-01")),  # type: ignore[arg-type]
        Comparison("share", ComparisonOp.EQ, np.float32(0.5)),  # type: ignore[arg-type]
        "share = 18446744073709551616 or at >= '2024-01-01'",
    ],
)
async def test_values_that_equal_plain_ones_are_taken_in_filters(
    client: AsyncClient, name: str, filter: Any
) -> None:
    moments = [datetime(2024, 5, 1, tzinfo=UTC), datetime(2020, 5, 1, tzinfo=UTC)]
    columns = {"year": [2024, 2020], "at": moments, "share": [0.5, 0.25]}
    await client.upsert(name, ["a", "b"], ONE * 2, attributes=columns)
    assert (await client.search(name, ONE[0], filter=filter)).ids == ["a"]


@pytest.mark.parametrize("field", ["vectors", "payloads", "attributes.kind", "ids"])
async def test_a_row_is_named_as_the_caller_counts(
    client: AsyncClient, name: str, field: str
) -> None:
    """5,000 rows travel in three requests, and the first ids repeat, so no request's rows fit."""
    ids = [f"r{max(row, 10)}" for row in range(ROWS)]
    vectors = np.tile(np.array(ONE, np.float32), (ROWS, 1))
    kinds, payloads = ["a"] * ROWS, [None] * ROWS
    wrong = 4_321
    if field == "vectors":
        vectors[wrong, 1] = math.inf
    elif field == "payloads":
        payloads[wrong] = b" " * (PAYLOAD_BYTES_MAX + 1)  # type: ignore[call-overload]
    elif field == "ids":
        ids[wrong] = "x" * 513
    else:
        kinds[wrong] = "k" * 5_000
    with pytest.raises(InvalidArgument) as caught:
        await client.upsert(name, ids, vectors, attributes={"kind": kinds}, payloads=payloads)
    assert [violation.field for violation in caught.value.violations] == [f"{field}[{wrong}]"]
    assert f"{field}[{wrong}]" in caught.value.message


async def test_a_client_that_only_writes_learns_that_the_collection_was_created_anew(
    client: AsyncClient, embedded_server: EmbeddedServer
) -> None:
    name = "refuse-created-anew"
    async with AsyncClient(embedded_server.address) as other:
        await other.create_collection(name, 4, attributes={"year": "int64"})
        await client.upsert(name, ["a"], ONE, attributes={"year": [1]})
        await other.drop_collection(name)
        await other.create_collection(name, 4, attributes={"genre": "keyword"})
        # What it remembers has no genre: the refusal comes from old knowledge, so it looks again.
        await client.upsert(name, ["a"], ONE, attributes={"genre": ["sf"]})
        assert (await other.get(name, ["a"]))[0].attributes == {"genre": "sf"}
        await other.drop_collection(name)


async def test_rows_are_encoded_again_for_a_collection_that_was_created_anew(
    client: AsyncClient, embedded_server: EmbeddedServer
) -> None:
    """By the old schema 1 is an int64, which the server refuses for the float64 of the new one."""
    name, ids = "refuse-encoded-again", ["a", "b", "a", "c", "d"]
    async with AsyncClient(embedded_server.address) as other:
        await other.create_collection(name, 4, attributes={"year": "int64"})
        with Client(embedded_server.address) as blocking:
            await client.upsert(name, ["a"], ONE, attributes={"year": [1]})
            await asyncio.to_thread(blocking.upsert, name, ["a"], ONE, attributes={"year": [1]})
            await other.drop_collection(name)
            await other.create_collection(name, 4, attributes={"year": "float64"})
            years = {"year": [1, 2, 3, 4, 5]}
            written = await client.upsert(name, ids, ONE * 5, attributes=years, batch_rows=1)
            assert written.count == 4
            await asyncio.to_thread(blocking.upsert, name, ["e"], ONE, attributes={"year": [6]})
        found = {one.id: one.attributes async for page in other.scan(name) for one in page}
        assert found == {
            row: {"year": year}
            for row, year in zip("abcde", (3.0, 2.0, 4.0, 5.0, 6.0), strict=True)
        }
        # A value that the new schema does not take either is refused, by the caller's row.
        await other.drop_collection(name)
        await other.create_collection(name, 4, attributes={"year": "timestamp"})
        with pytest.raises(InvalidArgument) as caught:
            await client.upsert(name, ["a"], ONE, attributes={"year": [1]})
        assert [one.field for one in caught.value.violations] == ["attributes.year[0]"]
        await other.drop_collection(name)


async def test_texts_are_not_compared_with_vectors_of_another_model(client: AsyncClient) -> None:
    await client.create_collection("refuse-model", 384, model="ada")
    for call in (
        client.search("refuse-model", text="x"),
        client.search_batch("refuse-model", texts=["x"]),
    ):
        with pytest.raises(InvalidArgument, match=r"'minilm_l6'.*'ada'.*embedders for minilm_l6"):
            await call
    with pytest.raises(InvalidArgument, match="no embedder 'ada'; there are minilm_l6"):
        await client.search("refuse-model", text="x", model="ada")
    unit = np.eye(1, 384, dtype=np.float32)
    await client.upsert("refuse-model", ["a"], unit, model="ada")
    assert (await client.search("refuse-model", unit[0], model="ada")).ids == ["a"]
    await client.drop_collection("refuse-model")
    await client.create_collection("refuse-model", 384, model="minilm_l6")
    # What this client remembers is the collection of ada's vectors; it looks before it refuses.
    vectors = await client.embed(["a chart in the terminal", "a cake"])
    await client.upsert("refuse-model", ["chart", "cake"], vectors, model="minilm_l6")
    assert (await client.search("refuse-model", text="draw charts", k=1)).ids == ["chart"]
    with pytest.raises(InvalidArgument, match="cannot be compared"):
        await client.search("refuse-model", unit[0], model="ada")
    await client.drop_collection("refuse-model")


ODD: tuple[Any, ...] = (
    *(None, 5, -1, 2**70, 0.5, math.nan, True, "x", "\ud800", b"x", "", object(), NAIVE, 1j),
    *([], [5], ["x", 5], [None], {}, {"x": 1}, {5: object()}, {"a"}, (1, 2), np.int64(3)),
    *(np.zeros(2), np.zeros((0, 4)), np.array(["x"]), pa.array([None]), pd.DataFrame({"x": [1]})),
    *(pd.Series(["x"]), uuid.UUID(int=1), range(3), iter("ab"), Not(Not(5))),  # type: ignore[arg-type]
)
PLAUSIBLE: dict[str, dict[str, Any]] = {
    "create_collection": {"name": "x y", "dimension": 4},  # a name that is refused in the end
    "get_collection": {"name": "refuse-odd"},
    "describe_collection": {"name": "refuse-odd"},
    "update_collection": {"name": "refuse-odd", "settings": {"recall_objective": 0.9}},
    "upsert": {"collection": "refuse-odd", "ids": ["a"], "vectors": ONE},
    "delete": {"collection": "refuse-odd", "ids": ["a"]},
    "get": {"collection": "refuse-odd", "ids": ["a"]},
    "count": {"collection": "refuse-odd"},
    "search": {"collection": "refuse-odd", "vector": ONE[0]},
    "search_batch": {"collection": "refuse-odd", "vectors": ONE},
    "shards": {"collection": "refuse-odd"},
    "segments": {"collection": "refuse-odd"},
    "tasks": {"collection": "refuse-odd"},
    "task": {"task_id": "x"},
    "cancel_task": {"task_id": "x"},
    "retry_task": {"task_id": "x"},
    "compact": {"collection": "refuse-odd", "dry_run": True},
    "flush": {"collection": "refuse-odd"},
    "measure_recall": {"collection": "refuse-odd"},
    "recall": {"collection": "refuse-odd"},
    "move_shard": {"collection": "refuse-odd", "shard": 0, "node_id": "x"},
    "drain": {"node_id": "x"},
    "undrain": {"node_id": "x"},
    "rebalance": {"dry_run": True},
    "collect_garbage": {"dry_run": True},
    "drop_collection": {"name": "nobody"},
}


@pytest.fixture
async def odd_collection(client: AsyncClient) -> AsyncIterator[None]:
    await client.create_collection("refuse-odd", 4, attributes=ATTRIBUTES)
    yield
    await client.drop_collection("refuse-odd")


@pytest.mark.parametrize("method", PLAUSIBLE)
async def test_no_argument_of_any_method_ends_in_a_python_error(
    client: AsyncClient, odd_collection: None, method: str
) -> None:
    """Each argument in turn is each odd value: it is taken, or refused by an error of ours."""
    call, plausible = getattr(client, method), PLAUSIBLE[method]
    names = [name for name in inspect.signature(call).parameters if name != "progress"]
    foreign = []
    for name in names:
        for odd in ODD:
            try:
                await call(**({"timeout_s": 20} | plausible | {name: odd}))
            except AnnhealError:
                continue
            except Exception as error:  # noqa: BLE001 - what must not be
                foreign.append(f"{name}={odd!r:.40}: {error!r:.100}")
    assert foreign == []
