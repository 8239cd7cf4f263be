"""Updates of parts of records, and writes on condition, by the SDK and a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annheal import AsyncClient, Client
from annheal.errors import InvalidArgument
from annheal.model.write import VersionConflict
from tests.support.cluster import EmbeddedServer

ROWS, DIMENSION = 60, 8
IDS = [f"r{row}" for row in range(ROWS)]
VECTORS = np.random.default_rng(3).standard_normal((ROWS, DIMENSION)).astype(np.float32)
SCHEMA = {"year": "int64", "kind": "keyword", "tags": "keyword_list"}


@pytest.fixture
async def client(embedded_server: EmbeddedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(embedded_server.address) as client:
        yield client


async def filled(client: AsyncClient, name: str, *, shards: int = 2) -> None:
    await client.create_collection(
        name, DIMENSION, metric="l2", attributes=SCHEMA, shard_count=shards
    )
    await client.upsert(
        name,
        IDS,
        VECTORS,
        attributes={
            "year": list(range(ROWS)),
            "kind": ["old"] * ROWS,
            "tags": [["a"]] * ROWS,
        },
        payloads=[{"row": row} for row in range(ROWS)],
    )


async def test_only_what_is_given_changes(client: AsyncClient) -> None:
    name = "updates-parts"
    await filled(client, name)
    before = await client.get(name, IDS)
    assert before.versions is not None
    await client.flush(name)
    await client.compact(name, full=True)
    changed = IDS[::2]
    result = await client.update(
        name,
        [*changed, "nobody"],
        attributes={"kind": ["new"] * (len(changed) + 1)},
        batch_rows=7,
    )
    assert (result.count, result.missing, result.conflicts) == (len(changed), ("nobody",), ())
    await client.update(name, ["r1"], attributes=[{"year": None, "tags": ["b", "c"]}])
    await client.update(name, ["r3"], payloads=[None])
    await client.update(name, ["r5"], payloads=[[1, 2]])
    await client.update(name, ["r7"], vectors=[[9.0] * DIMENSION])
    after = await client.get(name, IDS)
    assert after.versions is not None
    assert await client.count(name, filter='kind = "new"') == len(changed)
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        expected = dict(old.attributes or {})
        if row % 2 == 0:
            expected["kind"] = "new"
        if row == 1:
            del expected["year"]
            expected["tags"] = ["b", "c"]
        payload: Any = {3: None, 5: [1, 2]}.get(row, old.payload)
        vector = [9.0] * DIMENSION if row == 7 else old.vector
        assert (new.id, new.attributes, new.payload) == (old.id, expected, payload)
        np.testing.assert_array_equal(new.vector, vector)
        assert old.version is not None
        assert new.version is not None
        is_changed = row % 2 == 0 or row in (1, 3, 5, 7)
        assert (new.version > old.version) == is_changed
    (hit,) = await client.search(name, [9.0] * DIMENSION, k=1, include="version")
    assert (hit.id, hit.version) == ("r7", after.versions[7])
    pages = [page async for page in client.scan(name, include="version")]
    seen = {one.id: one.version for page in pages for one in page}
    assert seen == dict(zip(IDS, after.versions.tolist(), strict=True))


async def test_a_condition_that_does_not_hold_writes_nothing(client: AsyncClient) -> None:
    name = "updates-conditions"
    await filled(client, name)
    found = await client.get(name, ["r0", "r1", "r2"], include="version")
    assert found.versions is not None
    first = [int(version) for version in found.versions]
    await client.update(name, ["r1"], attributes={"year": [1]})
    (present,) = await client.get(name, ["r1"], include="version")
    assert present.version is not None
    lost = VersionConflict("r1", present.version)

    updated = await client.update(
        name, ["r0", "r1", "r2"], attributes={"year": [7, 7, 7]}, if_versions=first
    )
    assert (updated.count, updated.conflicts) == (2, (lost,))
    added = await client.upsert(
        name, ["r1", "new"], VECTORS[:2], if_versions=np.array([0, 0], dtype=np.int64)
    )
    assert (added.count, added.conflicts) == (1, (lost,))
    deleted = await client.delete(name, ["r1", "nobody"], if_versions=[first[1], 5])
    assert deleted.count == 0
    assert set(deleted.conflicts) == {lost, VersionConflict("nobody", 0)}
    years = {one.id: (one.attributes or {}).get("year") for one in await client.get(name, IDS[:3])}
    assert years == {"r0": 7, "r1": 1, "r2": 7}
    assert (await client.delete(name, ["r1"], if_versions=[present.version])).count == 1
    gone = await client.update(name, ["r1"], payloads=[1], if_versions=[present.version])
    assert gone.conflicts == (VersionConflict("r1", 0),)
    assert await client.get(name, ["r1"]) == [] or not len(await client.get(name, ["r1"]))


async def test_two_clients_count_without_losing_an_increment(
    embedded_server: EmbeddedServer, client: AsyncClient
) -> None:
    name, increments = "updates-counter", 25
    await filled(client, name)
    await client.update(name, ["r0"], attributes={"year": [0]})

    async def count(own: AsyncClient) -> None:
        for _ in range(increments):
            while True:
                (record,) = await own.get(name, ["r0"], include=["year", "version"])
                year = (record.attributes or {})["year"] + 1
                result = await own.update(
                    name, ["r0"], attributes={"year": [year]}, if_versions=[record.version]
                )
                if result.count:
                    break

    async with AsyncClient(embedded_server.address) as other:
        await asyncio.gather(count(client), count(other), count(client))
    (record,) = await client.get(name, ["r0"])
    assert (record.attributes or {})["year"] == 3 * increments


async def test_updates_of_large_records_are_sent_in_parts(client: AsyncClient) -> None:
    name = "updates-large"
    await filled(client, name, shards=1)
    rows = 80
    ids = [f"large{row}" for row in range(rows)]
    payload = pa.array([b'"' + b"x" * 1_000_000 + b'"'] * rows, type=pa.binary())
    await client.upsert(name, ids, np.zeros((rows, DIMENSION)), payloads=payload)
    result = await client.update(name, ids, attributes={"year": [5] * rows})
    assert result.count == rows
    assert await client.count(name, filter="year = 5") == rows + 1


Call = Callable[[AsyncClient, str], Awaitable[object]]
REFUSED: dict[str, tuple[Call, str]] = {
    "nothing to change": (lambda c, n: c.update(n, ["r0"]), "attributes"),
    "no such attribute": (
        lambda c, n: c.update(n, ["r0"], attributes={"yaer": [1]}),
        "attributes.yaer",
    ),
    "rows that differ": (
        lambda c, n: c.update(n, ["r0", "r1"], attributes=[{"year": 1}, {"kind": "x"}]),
        "attributes[1]",
    ),
    "too few values": (
        lambda c, n: c.update(n, ["r0", "r1"], attributes={"year": [1]}),
        "attributes.year",
    ),
    "another dimension": (
        lambda c, n: c.update(n, ["r0"], vectors=[[1.0, 2.0]]),
        "columns.vectors[0].dimension",
    ),
    "another model": (
        lambda c, n: c.update(n, ["r0"], vectors=VECTORS[:1], model="other"),
        "columns.vectors[0].model",
    ),
    "a version of nothing": (
        lambda c, n: c.update(n, ["r0"], payloads=[1], if_versions=[0]),
        "if_versions[0]",
    ),
    "a negative version": (
        lambda c, n: c.upsert(n, ["r0"], VECTORS[:1], if_versions=[-1]),
        "if_versions[0]",
    ),
    "a version that is no number": (
        lambda c, n: c.delete(n, ["r0"], if_versions=["1"]),  # type: ignore[list-item]
        "if_versions[0]",
    ),
    "a version that was not read": (
        lambda c, n: c.update(n, ["r0"], payloads=[1], if_versions=[None]),
        "if_versions[0]",
    ),
    "too few versions": (
        lambda c, n: c.update(n, ["r0", "r1"], payloads=[1, 2], if_versions=[1]),
        "if_versions",
    ),
    "an id twice": (
        lambda c, n: c.update(n, ["r0", "r0"], payloads=[1, 2], if_versions=[1, 1]),
        "ids[0]",
    ),
    "versions of a filter": (
        lambda c, n: c.delete(n, filter="year = 1", if_versions=[1]),
        "if_versions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_does_not_fit_is_named(client: AsyncClient, name: str) -> None:
    collection = "updates-refused"
    if collection not in {one.name for one in await client.list_collections()}:
        await filled(client, collection)
    call, field = REFUSED[name]
    before = await client.get(collection, ["r0", "r1"])
    with pytest.raises(InvalidArgument) as refused:
        await call(client, collection)
    assert refused.value.violations[0].field == field
    after = await client.get(collection, ["r0", "r1"])
    assert [one.version for one in after] == [one.version for one in before]


async def test_of_equal_ids_the_last_row_wins(client: AsyncClient) -> None:
    name = "updates-twice"
    await filled(client, name)
    result = await client.update(name, ["r0", "r1", "r0"], attributes={"year": [1, 2, 3]})
    assert result.count == 2
    found = await client.get(name, ["r0", "r1"], include="year")
    assert [(one.attributes or {})["year"] for one in found] == [3, 2]


def test_the_client_without_asyncio_updates_too(embedded_server: EmbeddedServer) -> None:
    with Client(embedded_server.address) as client:
        client.create_collection("updates-sync", 2, attributes={"year": "int64"})
        client.upsert("updates-sync", ["a"], [[1.0, 0.0]])
        assert client.update("updates-sync", ["a"], attributes={"year": [4]}).count == 1
        (record,) = client.get("updates-sync", ["a"])
        assert (record.attributes, record.version) == ({"year": 4}, 2)
