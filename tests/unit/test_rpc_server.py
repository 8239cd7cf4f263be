from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from annheal import errors
from annheal.model.limits import REQUEST_BYTES_MAX
from annheal.rpc import methods
from annheal.rpc import server as server_module
from annheal.rpc.channel import Connection
from annheal.rpc.server import Context, RpcServer, remaining_s
from annheal.v1 import (
    admin_pb2,
    collections_pb2,
    internal_pb2,
    migration_pb2,
    records_pb2,
    search_pb2,
)
from tests.support.ports import LOOPBACK

FILES = (
    admin_pb2,
    collections_pb2,
    internal_pb2,
    migration_pb2,
    records_pb2,
    search_pb2,
)
Behaviour = Callable[[search_pb2.SearchRequest, Context], Awaitable[search_pb2.SearchResponse]]


class Searcher:
    """Does what the test says."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def Search(
        self, request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        return await self._behaviour(request, context)


@asynccontextmanager
async def served(behaviour: Behaviour) -> AsyncIterator[tuple[RpcServer, str]]:
    server = RpcServer({methods.SEARCH_SERVICE: Searcher(behaviour)})
    port = server.listen(f"{LOOPBACK}:0")
    await server.start()
    await server.set_serving(True)
    try:
        yield server, f"{LOOPBACK}:{port}"
    finally:
        await server.stop(grace_s=0)


async def search(address: str, *, timeout_s: float = 10.0, **parts: object) -> Message:
    async with Connection(address) as connection:
        return await connection.call(
            methods.SEARCH, search_pb2.SearchRequest(**parts), timeout_s=timeout_s
        )


async def echo(request: search_pb2.SearchRequest, context: Context) -> search_pb2.SearchResponse:
    return search_pb2.SearchResponse(ids=[request.collection])


async def raising(error: BaseException) -> search_pb2.SearchResponse:
    raise error


def test_the_catalogue_is_what_the_protos_say() -> None:
    services = {
        descriptor.full_name: descriptor
        for file in FILES
        for descriptor in file.DESCRIPTOR.services_by_name.values()
    }
    assert set(methods.METHODS) == set(services)
    for name, descriptor in services.items():
        known = {
            m.name: (m.request.DESCRIPTOR, m.response.DESCRIPTOR) for m in methods.METHODS[name]
        }
        assert known == {m.name: (m.input_type, m.output_type) for m in descriptor.methods}


async def test_answers_come_back() -> None:
    async with served(echo) as (_, address):
        assert await search(address, collection="things") == search_pb2.SearchResponse(
            ids=["things"]
        )


async def test_errors_come_back_with_their_details() -> None:
    error = errors.InvalidArgument.of("k", "0 is not between 1 and 16384")
    async with served(lambda r, c: raising(error)) as (_, address):
        with pytest.raises(errors.InvalidArgument, match="k: 0 is not between") as caught:
            await search(address)
        assert caught.value.violations == error.violations
        # A client that knows nothing of Annheal sees the standard code and message.
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as stock:
                await channel.unary_unary(methods.SEARCH.path)(b"")
        assert stock.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert stock.value.details() == "k: 0 is not between 1 and 16384"


async def test_long_errors_reach_the_client() -> None:
    violations = [errors.FieldViolation(f"f[{n}]", "ü" * 300) for n in range(500)]
    error = errors.InvalidArgument("ü" * 50_000, violations=violations)
    async with served(lambda r, c: raising(error)) as (_, address):
        with pytest.raises(errors.InvalidArgument) as caught:
            await search(address)
    assert caught.value.violations


async def test_bugs_are_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with served(lambda r, c: raising(KeyError("secret"))) as (_, address):
        with caplog.at_level(logging.ERROR), pytest.raises(errors.AnnhealError) as caught:
            await search(address)
        assert await search_again(address)
    assert "secret" not in str(caught.value)
    record, _ = [r for r in caplog.records if r.name == server_module.__name__]
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
    entry = str(caught.value).split("entry ")[1].split()[0]
    assert entry in record.getMessage()


async def search_again(address: str) -> bool:
    """Whether the server still answers after an error (with the same error)."""
    with pytest.raises(errors.AnnhealError, match="internal error"):
        await search(address)
    return True


@pytest.mark.parametrize("packed", [b"\xff\xff", b"\x0a\x02\xff\xfe"])
async def test_malformed_messages_are_refused_with_a_reason(packed: bytes) -> None:
    async with served(echo) as (_, address):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(methods.SEARCH.path)(packed)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no valid annheal.v1.SearchRequest" in (caught.value.details() or "")
        assert await search(address, collection="alive")


async def test_oversized_requests_are_refused_at_both_ends() -> None:
    huge = b"\0" * (REQUEST_BYTES_MAX + 1)
    async with served(echo) as (_, address):
        with pytest.raises(errors.InvalidArgument, match="the limit is 67108864") as caught:
            await search(address, vectors={"packed": huge})
        assert caught.value.reason == "MESSAGE_TOO_LARGE"
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as stock:
                await channel.unary_unary(methods.SEARCH.path)(huge)
        assert stock.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in (stock.value.details() or "")
        assert await search(address, collection="alive")


async def test_oversized_answers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RESPONSE_BYTES_MAX", 1_000)

    async def long(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        return search_pb2.SearchResponse(scores=b"\0" * 1_001)

    async with served(long) as (_, address):
        with pytest.raises(errors.InvalidArgument, match="ask for less in one call"):
            await search(address)


async def test_the_deadline_cancels_the_handler_and_reaches_the_client() -> None:
    cancelled = asyncio.Event()
    left: list[float] = []

    async def slow(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        left.append(remaining_s(context))
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with served(slow) as (_, address):
        with pytest.raises(errors.DeadlineExceeded):
            await search(address, timeout_s=0.3)
        async with asyncio.timeout(5):
            await cancelled.wait()
    assert 0 < left[0] <= 0.5  # gRPC rounds deadlines up


async def test_calls_without_a_deadline_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "TIMEOUT_DEFAULT_S", 0.1)

    async def stuck(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(stuck) as (_, address), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(methods.SEARCH.path)(b"")
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == "Search did not end in time"


async def test_health_follows_the_server() -> None:
    server = RpcServer({methods.SEARCH_SERVICE: Searcher(echo)})
    port = server.listen(f"{LOOPBACK}:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def state(service: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        assert await state("") == "NOT_SERVING"
        await server.set_serving(True)
        assert [await state(s) for s in ("", methods.SEARCH_SERVICE)] == ["SERVING", "SERVING"]
        await server.set_serving(False)
        assert await state(methods.SEARCH_SERVICE) == "NOT_SERVING"
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await state("nope")
    await server.stop(grace_s=0)


async def test_reflection_describes_the_services_to_a_stock_client() -> None:
    async with served(echo) as (_, address):

        def look() -> tuple[set[str], str]:
            with grpc.insecure_channel(address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                names = set(database.get_services())
                service = DescriptorPool(database).FindServiceByName(methods.SEARCH_SERVICE)
                return names, service.methods_by_name["Search"].input_type.full_name

        names, request = await asyncio.to_thread(look)
    assert methods.SEARCH_SERVICE in names
    assert "grpc.health.v1.Health" in names
    assert request == "annheal.v1.SearchRequest"


async def test_stopping_lets_calls_end_and_refuses_new_ones() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def patient(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        begun.set()
        await go.wait()
        return search_pb2.SearchResponse(ids=["done"])

    async with served(patient) as (server, address), asyncio.TaskGroup() as group:
        call = group.create_task(search(address))
        await begun.wait()
        stopping = group.create_task(server.stop(grace_s=10))
        # The listening socket closes before the call in flight ends.
        async with asyncio.timeout(5):
            while True:
                try:
                    await search(address, timeout_s=0.2)
                except errors.Unavailable:
                    break
                except errors.DeadlineExceeded:
                    continue
        assert not stopping.done()
        go.set()
        assert await call == search_pb2.SearchResponse(ids=["done"])


async def test_closing_a_connection_fails_its_calls_instead_of_cancelling_the_callers() -> None:
    begun = asyncio.Event()

    async def hanging(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async with served(hanging) as (_, address):
        connection = Connection(address)
        call = asyncio.create_task(
            connection.call(methods.SEARCH, search_pb2.SearchRequest(), timeout_s=10)
        )
        await begun.wait()
        await connection.close()
        with pytest.raises(errors.Unavailable, match="closed"):
            await call
        with pytest.raises(errors.Unavailable, match="closed"):
            await connection.call(methods.UPSERT, methods.UPSERT.request(), timeout_s=10)

        async with Connection(address) as connection:
            begun.clear()
            call = asyncio.create_task(
                connection.call(methods.SEARCH, search_pb2.SearchRequest(), timeout_s=10)
            )
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


async def test_a_cancellation_inside_a_handler_is_answered() -> None:
    """gRPC itself would leave the caller without an answer until its deadline."""

    async def interrupted(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner
        raise AssertionError("unreachable")

    async with served(interrupted) as (_, address):
        with pytest.raises(errors.Unavailable, match="interrupted"):
            await search(address, timeout_s=10)


async def test_a_taken_port_is_refused() -> None:
    async with served(echo) as (_, address):
        other = RpcServer({methods.SEARCH_SERVICE: Searcher(echo)})
        with pytest.raises(errors.FailedPrecondition, match=f"cannot listen on {address}"):
            other.listen(address)
        await other.stop(grace_s=0)


async def test_calls_beyond_the_limit_are_refused() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def patient(
        request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        begun.set()
        await go.wait()
        return search_pb2.SearchResponse()

    server = RpcServer({methods.SEARCH_SERVICE: Searcher(patient)}, concurrent_calls_max=1)
    port = server.listen(f"{LOOPBACK}:0")
    await server.start()
    address = f"{LOOPBACK}:{port}"
    async with asyncio.TaskGroup() as group:
        call = group.create_task(search(address))
        await begun.wait()
        with pytest.raises(errors.ResourceExhausted):
            await search(address)
        go.set()
        await call
    await server.stop(grace_s=0)


async def test_nobody_listening_is_unavailable_even_for_changes() -> None:
    async with Connection(f"{LOOPBACK}:1") as connection:
        with pytest.raises(errors.Unavailable, match=f"{LOOPBACK}:1"):
            await connection.call(methods.UPSERT, methods.UPSERT.request(), timeout_s=5)
