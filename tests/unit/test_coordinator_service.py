"""The public services over gRPC, in front of in-memory nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from annheal.coordinator.service import services
from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from annheal.model.collection import Metric, ModelSpec
from annheal.model.records import EVERYTHING, Projection, lacking
from annheal.rpc import methods
from annheal.rpc.channel import Connection
from annheal.rpc.methods import Method, RequestT, ResponseT
from annheal.rpc.server import RpcServer
from annheal.v1 import collections_pb2, search_pb2, session_pb2
from annheal.wire import records as wire_records
from annheal.wire import search as wire_search
from annheal.wire.lifecycle import collections as wire_collections
from annheal.wire.records import GivenVectors
from tests.support.memory_cluster import DIMENSION, MemoryCluster, batch, memory_cluster, spec

IDS = [f"id{n}" for n in range(60)]


@dataclass(slots=True)
class Served:
    """A coordinator that answers on a port, and a connection to it."""

    cluster: MemoryCluster
    connection: Connection
    address: str

    async def call(self, method: Method[RequestT, ResponseT], request: RequestT) -> ResponseT:
        return await self.connection.call(method, request, timeout_s=20.0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with memory_cluster(tmp_path) as cluster:
        await cluster.add_node("a")
        await cluster.add_node("b")
        coordinator = await cluster.add_coordinator()
        server = RpcServer(services(coordinator))
        address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
        await server.start()
        await server.set_serving(True)
        try:
            async with Connection(address) as connection:
                yield Served(cluster, connection, address)
        finally:
            await server.stop(grace_s=1.0)


async def create(served: Served) -> None:
    wanted = spec("packages", shard_count=3)
    request = wire_collections.encode_create_collection(
        wanted.name, models=wanted.models, schema=(), shard_count=3, index=None, settings=None
    )
    await served.call(methods.CREATE_COLLECTION, request)


async def test_records_go_in_and_come_out(served: Served):
    await create(served)
    records = batch(IDS)
    upsert = wire_records.encode_upsert(
        "packages", ids=IDS, vectors=records.vectors, attributes={}, payloads=None, model="m"
    )
    written = await served.call(methods.UPSERT, upsert)
    assert written.upserted == 60
    assert set(written.session.sequences) == {0, 1, 2}
    for _ in range(2):  # the second time the options come from the cache
        search = wire_search.encode_search("packages", k=3, queries=records.vectors[:2])
        search.session.CopyFrom(written.session)
        response = await served.call(methods.SEARCH, search)
        truth = np.argsort(-(records.vectors[:2] @ records.vectors.T), axis=1)[:, :3]
        assert list(response.ids) == [IDS[row] for row in truth.ravel()]
        assert list(response.counts) == [3, 3]
        assert dict(response.session.sequences) == dict(written.session.sequences)
    by_id = wire_search.encode_search("packages", k=1, query_ids=["id5", "id9"])
    alone = await served.call(methods.SEARCH, by_id)
    assert len(alone.ids) == 2
    scan = wire_records.encode_scan(
        "packages", filter=None, projection=EVERYTHING, page_size=100, cursor=""
    )
    page = await served.call(methods.SCAN, scan)
    assert page.next_cursor
    listed = await served.call(
        methods.LIST_COLLECTIONS, collections_pb2.ListCollectionsRequest(page_size=1)
    )
    assert [one.name for one in listed.collections] == ["packages"]
    assert listed.next_page_token == ""


async def test_a_model_is_added_when_the_nodes_know_it(served: Served) -> None:
    await create(served)
    for node in served.cluster.nodes.values():
        node.failures += [InvalidArgument.of("model", "is 'new'; there is 'm'")] * 2
    request = wire_collections.encode_add_model(
        "packages", model=ModelSpec("new", 2, Metric.L2), text_model=None
    )
    added = await served.call(methods.ADD_MODEL, request)
    assert [one.name for one in added.collection.models] == ["m", "new"]
    assert not any(node.failures for node in served.cluster.nodes.values() if node.shards)


async def test_records_have_vectors_of_two_models(served: Served) -> None:
    """Each search is answered from one model's vectors, the serving one's unless it names another.

    The scores of the two are swapped: what is near for one is far for the other.
    """
    await create(served)
    new = ModelSpec("new", 2, Metric.INNER_PRODUCT)
    await served.call(
        methods.ADD_MODEL, wire_collections.encode_add_model("packages", model=new, text_model=None)
    )
    count = len(IDS)
    old_vectors = np.zeros((count, DIMENSION), dtype=np.float32)
    old_vectors[:, 0] = np.arange(1, count + 1)
    new_vectors = np.ascontiguousarray(-old_vectors[:, :2])
    lacks_new = np.arange(count) % 3 == 0
    lacks_old = np.arange(count) % 3 == 1
    upsert = wire_records.encode_upsert(
        "packages",
        ids=IDS,
        further=[
            GivenVectors("new", new_vectors, lacks_new),
            GivenVectors("m", old_vectors, lacks_old),
        ],
    )
    await served.call(methods.UPSERT, upsert)

    async def found(model: str, dimension: int) -> list[str]:
        query = np.eye(1, dimension, dtype=np.float32)
        request = wire_search.encode_search("packages", k=count, queries=query, model=model)
        return list((await served.call(methods.SEARCH, request)).ids)

    with_old = [name for name, lacks in zip(IDS, lacks_old, strict=True) if not lacks][::-1]
    with_new = [name for name, lacks in zip(IDS, lacks_new, strict=True) if not lacks]
    assert await found("", DIMENSION) == await found("m", DIMENSION) == with_old
    assert await found("new", 2) == with_new
    with pytest.raises(InvalidArgument, match=r"'m' \(8 floats\), 'new' \(2 floats\)"):
        await found("newer", 2)

    projection = Projection(vector=True, models=("new", "m"))
    get = wire_records.encode_get("packages", ids=IDS, projection=projection)
    read, _ = wire_records.decode_get_response(
        await served.call(methods.GET, get), projection=projection
    )
    assert (read.ids, read.model, [one.model for one in read.further]) == (IDS, "new", ["m"])
    assert read.vectors is not None
    assert np.array_equal(lacking(read.vectors), lacks_new)
    assert np.array_equal(read.vectors[~lacks_new], new_vectors[~lacks_new])
    assert np.array_equal(lacking(read.further[0].vectors), lacks_old)
    bare = wire_records.encode_get("packages", ids=IDS, projection=Projection(vector=True))
    (vectors,) = (await served.call(methods.GET, bare)).records.vectors
    assert (vectors.model, len(vectors.validity)) == ("m", (count + 7) // 8)

    by_id = wire_search.encode_search("packages", k=1, query_ids=[IDS[0]], model="new")
    with pytest.raises(NotFound, match=r"'id0' .* has no vector of model 'new'"):
        await served.call(methods.SEARCH, by_id)

    update = wire_records.encode_update(
        "packages", ids=[IDS[0]], vectors=np.full((1, 2), 5.0), model="new"
    )
    assert (await served.call(methods.UPDATE, update)).updated == 1
    assert await found("new", 2) == [IDS[0], *with_new], "it has a vector of the new model now"
    assert await found("", DIMENSION) == with_old, "and keeps that of the old one"


def search(**changes: object) -> search_pb2.SearchRequest:
    query = np.ones((1, DIMENSION), dtype=np.float32)
    request = wire_search.encode_search("packages", k=3, queries=query)
    for name, value in changes.items():
        setattr(request, name, value)
    return request


async def test_bad_searches_are_told_what_is_wrong(served: Served):
    await create(served)
    wrong_dimension = wire_search.encode_search("packages", k=3, queries=np.ones((1, 3)))
    not_finite = wire_search.encode_search("packages", k=3, queries=np.full((1, DIMENSION), np.nan))
    foreign = search()
    foreign.session.CopyFrom(session_pb2.SessionToken(collection_id="x", sequences={0: 1}))
    cases: list[tuple[search_pb2.SearchRequest, type[AnnhealError], str]] = [
        (search(k=0), InvalidArgument, "k: 0 is not between"),
        (search(k=1 << 20), InvalidArgument, "k"),
        (search(ef=0), InvalidArgument, "ef"),
        (search(timeout_ms=0), InvalidArgument, "timeout"),
        (search(collection="nothing"), NotFound, "nothing"),
        (wrong_dimension, InvalidArgument, "dimension"),
        (not_finite, InvalidArgument, "nan"),
        (search_pb2.SearchRequest(collection="packages", k=1), InvalidArgument, "no query"),
        (foreign, FailedPrecondition, "session"),
    ]
    for request, kind, text in cases:
        with pytest.raises(kind, match=text):
            await served.call(methods.SEARCH, request)
    assert (await served.call(methods.SEARCH, search())).counts == [0]


async def test_health_says_serving(served: Served):
    async with grpc.aio.insecure_channel(served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
