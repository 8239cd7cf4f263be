"""Keepalive pings, frame by frame: a server takes those of its clients and refuses a flood.

Spoken over a bare socket (RFC 9113, section 6.7), because no client sends pings faster than its
keepalive allows. Times are a hundredth of the real ones.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from annheal.rpc import channel, methods
from annheal.rpc import server as server_module
from annheal.rpc.channel import CHANNEL_OPTIONS, KEEPALIVE_TIME_MS
from annheal.rpc.server import PING_INTERVAL_MIN_MS, SERVER_OPTIONS, RpcServer
from tests.support.ports import LOOPBACK

PING_INTERVAL = "grpc.http2.min_ping_interval_without_data_ms"
FASTER = 100
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
PATIENCE_S = 10.0
FORGIVEN = 2
"""gRPC's default of `grpc.http2.max_ping_strikes`."""


class Nobody:
    async def Search(self, request: object, context: object) -> None: ...


@asynccontextmanager
async def pinged(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pinger]:
    """A server with its own options, but for one time that is a hundredth."""
    options = dict(SERVER_OPTIONS)
    options[PING_INTERVAL] //= FASTER  # fails where the option is gone
    monkeypatch.setattr(server_module, "SERVER_OPTIONS", list(options.items()))
    server = RpcServer({methods.SEARCH_SERVICE: Nobody()})
    port = server.listen(f"{LOOPBACK}:0")
    await server.start()
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(PREFACE + frame(SETTINGS))
        yield Pinger(reader, writer)
    finally:
        writer.close()
        await server.stop(grace_s=0)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0) + payload


class Pinger:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ping(self, number: int) -> str:
        """Send one ping; return why the server ends the connection, or "" for an answer."""
        body = struct.pack(">Q", number)
        self._writer.write(frame(PING, body))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags = head[3], head[4]
                if kind == SETTINGS and not flags & ACK:
                    self._writer.write(frame(SETTINGS, flags=ACK))
                if kind == GOAWAY:
                    return payload[8:].decode()
                if kind == PING and flags & ACK and payload == body:
                    return ""


async def test_pings_as_often_as_clients_send_them_keep_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pinged(monkeypatch) as pinger:
        for number in range(3 * FORGIVEN):
            assert await pinger.ping(number) == ""
            await asyncio.sleep(KEEPALIVE_TIME_MS / 1e3 / FASTER)


async def test_a_flood_of_pings_ends_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pinged(monkeypatch) as pinger:
        said = [await pinger.ping(number) for number in range(FORGIVEN + 1)]
        while not said[-1]:
            said.append(await pinger.ping(len(said)))
            assert len(said) < 20
    assert said[-1] == "too_many_pings"


def test_clients_ping_without_calls_and_not_too_often() -> None:
    client = dict(CHANNEL_OPTIONS)
    assert client["grpc.keepalive_permit_without_calls"] == 1
    assert client["grpc.http2.max_pings_without_data"] == 0
    # A factor of two: a late ping and an early one come closer together than they were sent.
    assert client["grpc.keepalive_time_ms"] >= 2 * PING_INTERVAL_MIN_MS
    assert dict(SERVER_OPTIONS)[PING_INTERVAL] == PING_INTERVAL_MIN_MS
    assert client["grpc.keepalive_timeout_ms"] == channel.KEEPALIVE_TIMEOUT_MS
