"""Client side: one channel to one address, with every failure as an `AnnhealError`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import grpc
import grpc.aio

from annheal.errors import InvalidArgument, Unavailable, UnknownOutcome
from annheal.model.limits import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX
from annheal.rpc.forks import check_usable
from annheal.rpc.methods import Method, RequestT, ResponseT
from annheal.rpc.status import CANNOT_CONNECT, error_of

KEEPALIVE_TIME_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
RECONNECT_BACKOFF_MIN_MS = 100
RECONNECT_BACKOFF_MAX_MS = 2_000

Options: TypeAlias = "list[tuple[str, Any]]"

CHANNEL_OPTIONS: Options = [
    ("grpc.max_send_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS),
    # Retries belong to one layer: the callers, who know what may be repeated.
    ("grpc.enable_retries", 0),
    # Peers are inside the cluster or named on purpose; a proxy from the environment is neither.
    ("grpc.enable_http_proxy", 0),
    # A name with several addresses, such as a headless service, is used evenly.
    ("grpc.lb_policy_name", "round_robin"),
    # A channel of its own: two clients in one process do not share flow control.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM bytes. No `root_certificates` means those of the system; key and chain for mutual TLS."""

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None


def open_channel(address: str, *, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Return a channel to `address` (`host:port`, or a gRPC target); connects when first used.

    Call it inside the event loop that will use it.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        tls.root_certificates, tls.private_key, tls.certificate_chain
    )
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def is_own_cancellation() -> bool:
    """Return whether a `CancelledError` just caught is meant for the running task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class Connection:
    """Calls to one address. Safe for concurrent use within one event loop."""

    def __init__(self, address: str, *, tls: ClientTls | None = None) -> None:
        self.address = address
        self._tls = tls
        self._opened: grpc.aio.Channel | None = self._open()
        self._stubs: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {}
        self.closed = False

    @property
    def _channel(self) -> grpc.aio.Channel:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> grpc.aio.Channel:
        check_usable()
        return open_channel(self.address, tls=self._tls)

    async def suspend(self) -> None:
        """Close the channel; the next call opens another one."""
        channel, self._opened = self._opened, None
        self._stubs.clear()
        if channel is not None:
            await channel.close()

    async def reach(self, *, timeout_s: float) -> None:
        """Return when the server speaks gRPC, or when it is known that it cannot be reached.

        In the second case the next call says why. Raises `Unavailable` (CANNOT_CONNECT) when
        neither happened within `timeout_s`.
        """
        settled = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        try:
            async with asyncio.timeout(timeout_s):
                state = self._channel.get_state(try_to_connect=True)
                while state not in settled:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise Unavailable(
                f"no server answers at {self.address} within {timeout_s:.1f} s: whatever listens"
                " there does not speak gRPC, or the address cannot be reached; is the port right?",
                reason=CANNOT_CONNECT,
            ) from None

    async def call(
        self, method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float
    ) -> ResponseT:
        """Return the response, or raise the `AnnhealError` that the call failed with.

        A lost answer of a method that mutates is an `UnknownOutcome`; after `close` nothing is
        sent and `Unavailable` raised. Nothing is retried.
        """
        if self.closed:
            raise Unavailable(f"{self.address}: the connection is closed")
        packed = request.SerializeToString()
        if len(packed) > REQUEST_BYTES_MAX:
            raise InvalidArgument(
                f"the request has {len(packed)} bytes, the limit is {REQUEST_BYTES_MAX}; send"
                " less in one call",
                reason="MESSAGE_TOO_LARGE",
            )
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._channel.unary_unary(
                method.path, response_deserializer=method.response.FromString
            )
            self._stubs[method.path] = stub
        try:
            response: ResponseT = await stub(packed, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, mutation=method.mutates, peer=self.address) from error
        except asyncio.CancelledError as error:
            if is_own_cancellation():
                raise
            # Closing a channel cancels its calls, but nobody cancelled the caller.
            text = f"{self.address}: the connection was closed during the call"
            if method.mutates:
                raise UnknownOutcome(f"{text}; the change may or may not have been made") from error
            raise Unavailable(text) from error
        return response

    async def close(self) -> None:
        """End the connection; calls in flight fail."""
        self.closed = True
        await self.suspend()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
