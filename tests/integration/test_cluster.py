"""A cluster of processes on real etcd and S3 gives the answers of embedded mode and brute force."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest

from annheal import AsyncClient, Client
from annheal.model.topology.state import SegmentState
from tests.support.cluster import Cluster, EmbeddedServer, compact_fully
from tests.support.etcd_server import EtcdServer
from tests.support.packages import (
    SCHEMA,
    Packages,
    assert_same_neighbours,
    load_packages,
    recall,
)
from tests.support.processes import ProcessGroup, wait_until_async
from tests.support.s3_server import S3Server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.etcd,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

COLLECTION = "packages"
SHARDS = 6
NODES = 3
K = 10
QUERIES = 200

Matches = Callable[[Packages], list[bool]]
FILTERS: dict[str, Matches] = {
    "year = 2023": lambda p: [y == 2023 for y in p.column("year")],
    "year >= 2024 and ecosystem != 'npm'": lambda p: [
        y is not None and y >= 2024 and e != "npm"
        for y, e in zip(p.column("year"), p.column("ecosystem"), strict=True)
    ],
    "exists(rank)": lambda p: [r is not None for r in p.column("rank")],
    "not exists(rank) or rank < 500": lambda p: [r is None or r < 500 for r in p.column("rank")],
    "month in ('2019-03', '2021-07')": lambda p: [
        m in ("2019-03", "2021-07") for m in p.column("month")
    ],
}


@pytest.fixture(scope="module")
def packages() -> Packages:
    return load_packages()


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return load_packages("packages-queries").vectors[:QUERIES]


@pytest.fixture(scope="module")
def cluster(etcd_server: EtcdServer, s3_server: S3Server, packages: Packages) -> Iterator[Cluster]:
    """One coordinator, three shard nodes, two compactors; the packages are loaded."""
    with ProcessGroup() as group:
        cluster = Cluster(
            group,
            metadata_url=etcd_server.url("cluster-test"),
            object_store_url=s3_server.url(prefix="cluster-test"),
            environment=s3_server.environment(),
        )
        cluster.add_coordinator("coordinator-0")
        for number in range(NODES):
            cluster.add_node(f"node-{number}")
        for number in range(2):
            cluster.add_compactor(f"compactor-{number}")
        cluster.start()
        load(cluster.address, packages)
        yield cluster


@pytest.fixture(scope="module")
def embedded(embedded_server: EmbeddedServer, packages: Packages) -> Iterator[EmbeddedServer]:
    load(embedded_server.address, packages)
    yield embedded_server
    with Client(embedded_server.address) as client:
        client.drop_collection(COLLECTION)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address) as client:
        yield client


def load(address: str, packages: Packages) -> None:
    with Client(address) as client:
        client.create_collection(
            COLLECTION, packages.vectors.shape[1], attributes=SCHEMA, shard_count=SHARDS
        )
        client.upsert(
            COLLECTION,
            packages.ids,
            packages.vectors,
            attributes=packages.attributes,
            payloads=packages.payloads,
        )


async def compact(client: AsyncClient, collection: str) -> list[SegmentState]:
    """Flush and rewrite every shard; return the segments once all tasks are published."""
    await client.flush(collection)
    await compact_fully(client, collection)
    listed = await client.segments(collection)
    assert not listed.missing_shards
    return list(listed.segments)


async def test_shards_are_spread_evenly_and_served(client: AsyncClient) -> None:
    """Waits: a node that missed its lease while all processes started gets its shards back."""

    async def spread() -> bool:
        shards = await client.shards(COLLECTION)
        owners = Counter(shard.owner for shard in shards)
        serving = {shard.phase for shard in shards} == {"serving"}
        return serving and owners == {f"node-{n}": SHARDS // NODES for n in range(NODES)}

    await wait_until_async(spread, timeout_s=60, what="shards evenly spread and served")
    assert len(await client.shards(COLLECTION)) == SHARDS


async def test_exact_answers_are_those_of_brute_force_and_of_embedded_mode(
    client: AsyncClient, embedded: EmbeddedServer, packages: Packages, queries: np.ndarray
) -> None:
    truth = packages.scores(queries)
    async with AsyncClient(embedded.address) as other:
        for one in (client, other):
            batch = await one.search_batch(COLLECTION, queries, k=K, exact=True)
            for row, result in enumerate(batch):
                assert_same_neighbours(
                    result.ids, result.scores, truth[row], names=packages.ids, k=K
                )


async def test_default_search_finds_the_neighbours_before_and_after_compaction(
    client: AsyncClient, embedded: EmbeddedServer, packages: Packages, queries: np.ndarray
) -> None:
    truth = packages.scores(queries)
    async with AsyncClient(embedded.address) as other:
        for one in (client, other):
            fresh = await one.search_batch(COLLECTION, queries, k=K)
            assert recall(fresh.ids, truth, names=packages.ids) >= 0.95
            segments = await compact(one, COLLECTION)
            assert len(segments) == SHARDS, "one segment a shard is left"
            assert sum(segment.rows for segment in segments) == len(packages)
            compacted = await one.search_batch(COLLECTION, queries, k=K)
            assert recall(compacted.ids, truth, names=packages.ids) >= 0.95
            single = await one.search(COLLECTION, queries[0], k=K)
            assert single.ids == compacted.ids[0]


@pytest.mark.parametrize("expression", FILTERS)
async def test_filters_select_what_brute_force_selects(
    client: AsyncClient, packages: Packages, queries: np.ndarray, expression: str
) -> None:
    matches = np.array(FILTERS[expression](packages))
    assert 0 < matches.sum() < len(packages), "the filter is a filter"
    assert await client.count(COLLECTION, filter=expression) == matches.sum()
    truth = np.where(matches, packages.scores(queries), -np.inf)
    k = min(K, int(matches.sum()))
    exact = await client.search_batch(COLLECTION, queries, k=k, filter=expression, exact=True)
    for row, result in enumerate(exact):
        assert_same_neighbours(result.ids, result.scores, truth[row], names=packages.ids, k=k)
    found = await client.search_batch(COLLECTION, queries, k=k, filter=expression)
    assert all(len(ids) == k for ids in found.ids)
    assert recall(found.ids, truth, names=packages.ids) >= 0.95


async def test_a_scan_sees_every_record_once_and_whole(
    client: AsyncClient, packages: Packages
) -> None:
    rows = {name: row for row, name in enumerate(packages.ids)}
    seen: list[str] = []
    async for records in client.scan(COLLECTION, include="all", page_rows=777):
        for record in records:
            row = rows[record.id]
            assert record.payload == packages.payloads[row]
            assert record.attributes is not None
            rank = packages.attributes.column("rank")[row].as_py()
            assert record.attributes.get("rank") == rank
            assert record.vector is not None
            np.testing.assert_allclose(record.vector, packages.vectors[row], atol=1e-6)
        seen += records.ids
    assert len(seen) == len(packages)
    assert set(seen) == set(packages.ids)
    assert await client.count(COLLECTION) == len(packages)
    wanted = [packages.ids[9_999], "pypi:no-such-package", packages.ids[0]]
    assert (await client.get(COLLECTION, wanted)).ids == [wanted[0], wanted[2]]


async def test_sessions_and_strong_reads_see_what_another_client_wrote(cluster: Cluster) -> None:
    async with AsyncClient(cluster.address) as writer, AsyncClient(cluster.address) as reader:
        await writer.create_collection("sessions", 4, shard_count=3)
        for turn in range(30):
            vector = np.eye(4, dtype=np.float32)[turn % 4]
            written = await writer.upsert("sessions", [f"r{turn}"], vector[None], payloads=[turn])
            record = await reader.get("sessions", [f"r{turn}"], session=written.session)
            assert [one.payload for one in record] == [turn]
            assert await reader.count("sessions", consistency="strong") == turn + 1
            hits = await reader.search(
                "sessions", vector, k=100, session=written.session, exact=True
            )
            assert f"r{turn}" in hits.ids
        deleted = await writer.delete("sessions", ["r0"])
        assert deleted.count == 1
        assert not await reader.get("sessions", ["r0"], session=deleted.session)
        hits = await reader.search(
            "sessions", np.eye(4, dtype=np.float32)[0], k=100, consistency="strong"
        )
        assert "r0" not in hits.ids
        await writer.drop_collection("sessions")


async def test_worn_out_data_stays_true_through_compaction(
    client: AsyncClient, packages: Packages, queries: np.ndarray
) -> None:
    """Delete 30 %, replace 20 %: neither old nor dead rows come back, worn out or healed."""
    subset = slice(0, 3_000)
    ids, vectors = packages.ids[subset], packages.vectors[subset].copy()
    await client.create_collection("worn", vectors.shape[1], shard_count=3)
    await client.upsert("worn", ids, vectors)
    await compact(client, "worn")
    rng = np.random.default_rng(3)
    order = rng.permutation(len(ids))
    dead, replaced = order[:900], order[900:1_500]
    vectors[replaced] = packages.vectors[5_000:5_600]
    await client.delete("worn", [ids[row] for row in dead])
    await client.upsert("worn", [ids[row] for row in replaced], vectors[replaced])
    truth = queries @ vectors.T
    truth[:, dead] = -np.inf
    for healed in (False, True):
        if healed:
            assert sum(one.dead_rows for one in await compact(client, "worn")) == 0
        exact = await client.search_batch("worn", queries, k=K, exact=True)
        for row, result in enumerate(exact):
            assert_same_neighbours(result.ids, result.scores, truth[row], names=ids, k=K)
        found = await client.search_batch("worn", queries, k=K)
        assert recall(found.ids, truth, names=ids) >= 0.95
        assert await client.count("worn") == len(ids) - len(dead)
        assert not await client.get("worn", [ids[row] for row in dead[:50]])
    await client.drop_collection("worn")


async def test_a_model_is_added_while_another_serves(
    client: AsyncClient, packages: Packages
) -> None:
    """Its vectors can be written and searched at once; a record need not have both models'."""
    ids, old = packages.ids[:600], packages.vectors[:600]
    new = np.random.default_rng(5).standard_normal((len(ids), 96)).astype(np.float32)
    await client.create_collection("changing", old.shape[1], shard_count=4, model="old")
    await client.upsert("changing", ids[:400], old[:400])
    for turn in range(3):  # nodes know each model when the call returns
        model = f"new-{turn}"
        await client.add_model("changing", model, 96, metric="inner_product")
        await client.update("changing", ids[200:400], vectors=new[200:400], model=model)
    await client.upsert("changing", ids[400:], {"new-0": new[400:], "old": [None] * 200})
    held = ids[200:]
    for compacted in (False, True):
        if compacted:
            await compact(client, "changing")
        truth = new[:20] @ new[200:].T
        found = await client.search_batch("changing", new[:20], model="new-0", k=K, exact=True)
        for row, result in enumerate(found):
            assert_same_neighbours(result.ids, result.scores, truth[row], names=held, k=K)
        truth = old[:20] @ old[:400].T
        found = await client.search_batch("changing", old[:20], k=K, exact=True)
        for row, result in enumerate(found):
            assert_same_neighbours(result.ids, result.scores, truth[row], names=ids[:400], k=K)
        seen = set()
        async for page in client.scan("changing", model=["new-0", "old"]):
            for record in page:
                assert record.vectors is not None
                row = ids.index(record.id)
                for model, vectors, has in (
                    ("new-0", new, row >= 200), ("old", old, row < 400),
                ):  # fmt: skip
                    vector = record.vectors[model]
                    assert (vector is not None) == has
                    if vector is not None:
                        np.testing.assert_allclose(vector, vectors[row], atol=1e-6)
                seen.add(record.id)
        assert seen == set(ids)
    await client.drop_collection("changing")
