"""What a stock gRPC client finds: reflection, health, and an orderly end (issue 2, point 7)."""

from __future__ import annotations

import asyncio
import signal

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from annheal import AsyncClient
from annheal.errors import AnnhealError, FailedPrecondition
from tests.support.cluster import EmbeddedServer
from tests.support.processes import ProcessGroup

PUBLIC = {
    "annheal.v1.CollectionService": "CreateCollection",
    "annheal.v1.RecordService": "Upsert",
    "annheal.v1.SearchService": "Search",
    "annheal.v1.AdminService": "ListSegments",
    "annheal.v1.MigrationService": "StartMigration",
}
ROWS = 4_000


def test_reflection_describes_every_public_service(embedded_server: EmbeddedServer) -> None:
    with grpc.insecure_channel(embedded_server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        listed = set(database.get_services())
        assert {*PUBLIC, "grpc.health.v1.Health"} <= listed
        pool = DescriptorPool(database)
        for service, method in PUBLIC.items():
            described = pool.FindServiceByName(service).FindMethodByName(method)
            assert described.input_type.full_name == f"annheal.v1.{method}Request"
        request = pool.FindMessageTypeByName("annheal.v1.SearchRequest")
        assert {"collection", "k", "filter", "exact"} <= set(request.fields_by_name)


@pytest.mark.parametrize("service", ["", *PUBLIC])
def test_health_says_serving(embedded_server: EmbeddedServer, service: str) -> None:
    with grpc.insecure_channel(embedded_server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(embedded_server: EmbeddedServer) -> None:
    with grpc.insecure_channel(embedded_server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_sigterm_finishes_calls_in_flight_and_exits_with_zero() -> None:
    with ProcessGroup() as group:
        server = EmbeddedServer(group, name="graceful").start()
        rng = np.random.default_rng(7)
        vectors = rng.standard_normal((ROWS, 64)).astype(np.float32)
        async with AsyncClient(server.address) as client:
            await client.create_collection("graceful", 64, shard_count=2)
            await client.upsert("graceful", [f"r{n}" for n in range(ROWS)], vectors)
            calls = [
                asyncio.create_task(
                    client.search_batch("graceful", vectors[:500], k=50, exact=True, timeout_s=30)
                )
                for _ in range(4)
            ]
            # One call has been answered, so the others have reached the server.
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            server.process.signal(signal.SIGTERM)
            answers = await asyncio.gather(*calls)
            assert [len(answer) for answer in answers] == [500] * 4
            assert await asyncio.to_thread(server.process.wait_end) == 0
            with pytest.raises(AnnhealError):
                await client.count("graceful", timeout_s=1)
        # What was acknowledged is still there, and the port is free again.
        server.start()
        async with AsyncClient(server.address) as client:
            assert await client.count("graceful") == ROWS


async def test_sigterm_while_starting_ends_without_a_trace() -> None:
    with ProcessGroup() as group:
        server = EmbeddedServer(group, name="early").start(wait=False)
        # Python's own handler ends the process until ours is installed: either way it ends.
        code = await asyncio.to_thread(server.process.terminate)
        assert code in (0, -signal.SIGTERM)
        assert "Traceback" not in server.process.log()
        server.start()
        async with AsyncClient(server.address) as client:
            assert await client.list_collections() == []


async def test_a_closed_client_says_so_at_once(embedded_server: EmbeddedServer) -> None:
    client = AsyncClient(embedded_server.address)
    await client.list_collections()
    await client.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        await client.list_collections(timeout_s=60)
