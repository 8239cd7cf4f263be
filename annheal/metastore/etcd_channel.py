"""Calls to etcd: which member is asked, with which deadline, and what a failure means.

gRPC's own balancing does not leave a member that has stopped to answer while its connection stands
(30 s were not enough when tried), so members are rotated here: a call that ends in UNAVAILABLE or
DEADLINE_EXCEEDED moves this client to the next one. Reads, and mutations that may be repeated
without harm, are then tried there. A transaction is never sent twice: once it may have left this
process, a lost answer is `UnknownOutcome`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore.etcdpb import etcd_pb2 as pb
from annheal.metastore.protocol import LeaseExpired

# One page of a list is at most LIST_PAGE_KEYS values of 1 MiB (annheal.metastore.etcd).
RECEIVE_BYTES_MAX = 256 << 20
SEND_BYTES_MAX = 4 << 20
REQUEST_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 2.0

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Repeating is decided here, where it is known what may be repeated.
    ("grpc.enable_retries", 0),
    # etcd refuses pings that come more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", SEND_BYTES_MAX),
)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
Metadata: TypeAlias = tuple[tuple[str, str], ...]
WatchCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]"
KeepAliveCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]"
)

# Ends a stream on a member that has lost its leader, instead of letting it wait in silence.
_NEEDS_LEADER: Metadata = (("hasleader", "true"),)
_MEMBER_FAILED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
    }
)
# etcd's words for "log in again" that do not come as UNAUTHENTICATED.
_STALE_TOKEN = ("revision of auth store is old", "user name is empty")


@dataclass(frozen=True, slots=True)
class Method(Generic[RequestT, ResponseT]):
    """One unary method; `repeatable` says that sending it twice does no harm."""

    path: str
    request: type[RequestT]
    response: type[ResponseT]
    repeatable: bool = True


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse, repeatable=False)
# A grant whose answer is lost leaves a lease that nobody renews: it ends by itself.
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse
)
AUTHENTICATE = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse
)
_WATCH_PATH = "/etcdserverpb.Watch/Watch"
_KEEP_ALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM files' contents. Without `ca` the system's authorities are used."""

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return them as gRPC wants them."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.cert
        )


@dataclass(frozen=True, slots=True)
class EtcdUser:
    """Name and password for etcd's own authentication."""

    name: str
    password: str = field(repr=False)


class _Member:
    """One endpoint and its connection."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(endpoint, credentials, options=_CHANNEL_OPTIONS)
        self._stubs: dict[str, Any] = {}

    async def connected(self, timeout_s: float) -> bool:
        """Return whether the connection stands, after at most `timeout_s` of trying."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_ready()
        except TimeoutError:
            return False
        return True

    async def _wait_ready(self) -> None:
        state = self.channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            await self.channel.wait_for_state_change(state)
            state = self.channel.get_state(try_to_connect=True)

    def unary(
        self, method: Method[RequestT, ResponseT]
    ) -> grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]:
        stub: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]
        stub = self._stubs.get(method.path) or self.channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        self._stubs[method.path] = stub
        return stub

    def watch(self, metadata: Metadata) -> WatchCall:
        stub: grpc.aio.StreamStreamMultiCallable[pb.WatchRequest, pb.WatchResponse]
        stub = self.channel.stream_stream(
            _WATCH_PATH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        return stub(metadata=metadata)

    def keep_alive(self, timeout_s: float, metadata: Metadata) -> KeepAliveCall:
        stub: grpc.aio.StreamStreamMultiCallable[
            pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
        ]
        stub = self.channel.stream_stream(
            _KEEP_ALIVE_PATH,
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        return stub(timeout=timeout_s, metadata=metadata)


@dataclass(frozen=True, slots=True)
class OpenWatch:
    """A watch stream and the member that serves it, to be named when the stream fails."""

    call: WatchCall
    member: int


class EtcdChannel:
    """Connections to the members of one etcd cluster, made when first used.

    Args:
        endpoints: `host:port` of the members, at least one.
        tls: how to secure the connections; None speaks in the clear.
        user: log in as this user; tokens are renewed when etcd forgets them.
        request_timeout_s: deadline of one attempt at one member.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: EtcdTls | None = None,
        user: EtcdUser | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        if not endpoints:
            raise InvalidArgument.of("endpoints", "at least one etcd endpoint is needed")
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._user = user
        self._token = ""
        self._login_lock = asyncio.Lock()
        self._members: dict[int, _Member] = {}
        self._current = 0
        self._closed = False
        self.request_timeout_s = request_timeout_s

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def call(self, method: Method[RequestT, ResponseT], request: RequestT) -> ResponseT:
        """Send `request` and return the answer, asking every member once when it may be repeated.

        Raises `Unavailable` when nobody answered, `UnknownOutcome` when the answer to a method
        that is not repeatable was lost, and what etcd's refusals mean otherwise.
        """
        refreshed = False
        failure: grpc.aio.AioRpcError | None = None
        # One more than there are members: a member that has just restarted fails the first time.
        for _ in range(len(self._endpoints) + 1):
            member = await self._connected_member()
            token = await self._current_token()
            try:
                return await self._member(member).unary(method)(
                    request, timeout=self.request_timeout_s, metadata=_metadata(token)
                )
            except grpc.aio.AioRpcError as error:
                if self._is_stale(error) and not refreshed:
                    refreshed = True
                    self.forget_token(token)
                elif error.code() not in _MEMBER_FAILED:
                    raise refusal(error) from error
                elif not method.repeatable:
                    self.leave(member)
                    raise UnknownOutcome(_say(method.path, error)) from error
                else:
                    self.leave(member)
                failure = error
        raise Unavailable(f"etcd does not answer: {failure and _say(method.path, failure)}")

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease and return its time in seconds, 0 when it has ended."""
        request = pb.LeaseKeepAliveRequest(id=lease_id)
        failure = ""
        for _ in range(len(self._endpoints) + 1):
            member = await self._connected_member()
            token = await self._current_token()
            call = self._member(member).keep_alive(
                self.request_timeout_s, _metadata(token) + _NEEDS_LEADER
            )
            try:
                await call.write(request)
                answer = await call.read()
                if isinstance(answer, pb.LeaseKeepAliveResponse):
                    return answer.ttl
                failure = "the stream ended without an answer"
                self.leave(member)
            except grpc.aio.AioRpcError as error:
                failure = _say("LeaseKeepAlive", error)
                self._after_stream_error(error, member, token)
            finally:
                call.cancel()
        raise Unavailable(f"etcd does not answer: {failure}")

    async def open_watch(self) -> OpenWatch:
        """Open a watch stream at the present member; the caller cancels it."""
        member = await self._connected_member()
        token = await self._current_token()
        return OpenWatch(self._member(member).watch(_metadata(token) + _NEEDS_LEADER), member)

    def watch_failed(self, watch: OpenWatch, error: grpc.aio.AioRpcError | None) -> None:
        """Say that a watch stream ended; raises what opening it again does not solve."""
        if error is None:
            self.leave(watch.member)
        else:
            self._after_stream_error(error, watch.member, self._token)

    def leave(self, member: int) -> None:
        """Go on to the next member, unless somebody has already left this one."""
        if self._current == member:
            self._current = (member + 1) % len(self._endpoints)

    def forget_token(self, token: str) -> None:
        """Log in anew before the next call, unless somebody has already done so."""
        if self._token == token:
            self._token = ""

    async def close(self) -> None:
        """Close the connections; open streams end."""
        self._closed = True
        members, self._members = self._members, {}
        for member in members.values():
            await member.channel.close()

    def _member(self, index: int) -> _Member:
        if self._closed:
            raise FailedPrecondition("the metadata store is closed")
        if index not in self._members:
            credentials = None if self._tls is None else self._tls.credentials()
            self._members[index] = _Member(self._endpoints[index], credentials)
        return self._members[index]

    async def _connected_member(self) -> int:
        """Return a member with a standing connection.

        Waiting for it here makes an absent cluster a plain `Unavailable`: nothing has left this
        process, so that not even a transaction's outcome is in doubt.
        """
        for _ in self._endpoints:
            index = self._current
            if await self._member(index).connected(CONNECT_TIMEOUT_S / len(self._endpoints)):
                return index
            self.leave(index)
        raise Unavailable(f"no etcd member accepts connections: {', '.join(self._endpoints)}")

    async def _current_token(self) -> str:
        if self._user is None or self._token:
            return self._token
        async with self._login_lock:
            if not self._token:
                self._token = await self._log_in(self._user)
            return self._token

    async def _log_in(self, user: EtcdUser) -> str:
        request = pb.AuthenticateRequest(name=user.name, password=user.password)
        member = await self._connected_member()
        try:
            answer = await self._member(member).unary(AUTHENTICATE)(
                request, timeout=self.request_timeout_s
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _MEMBER_FAILED:
                self.leave(member)
                raise Unavailable(_say("Authenticate", error)) from error
            raise FailedPrecondition(
                f"etcd refuses to log {user.name!r} in: {error.details()}", reason="ETCD_LOGIN"
            ) from error
        return answer.token

    def _is_stale(self, error: grpc.aio.AioRpcError) -> bool:
        if self._user is None:
            return False
        details = error.details() or ""
        return error.code() is grpc.StatusCode.UNAUTHENTICATED or any(
            words in details for words in _STALE_TOKEN
        )

    def _after_stream_error(self, error: grpc.aio.AioRpcError, member: int, token: str) -> None:
        if self._is_stale(error):
            self.forget_token(token)
        elif error.code() in _MEMBER_FAILED:
            self.leave(member)
        else:
            raise refusal(error) from error


def refusal(error: grpc.aio.AioRpcError) -> AnnhealError:
    """Return what a refusal by etcd means; nothing was changed."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseExpired(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        reason = "METADATA_FULL" if "space exceeded" in details else "METADATA_BUSY"
        return ResourceExhausted(f"etcd refuses: {details}", reason=reason, retry_after_s=5.0)
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return InvalidArgument(f"etcd refuses: {details}")
    return FailedPrecondition(f"etcd refuses: {code.name}: {details}", reason="ETCD_REFUSED")


def _metadata(token: str) -> Metadata:
    return (("token", token),) if token else ()


def _say(what: str, error: grpc.aio.AioRpcError) -> str:
    return f"{what}: {error.code().name}: {error.details()}"
