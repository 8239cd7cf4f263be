"""Server side: services, health and reflection on one port.

A servicer is an object with one coroutine method for each RPC of its service, named as in the
proto: `async def Search(self, request, context) -> response`, `context` being gRPC's. What it
raises becomes a status by `annheal.rpc.status`; what it does not raise on purpose is logged with
its trace and answered as INTERNAL with nothing but the number of the log entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from annheal.errors import (
    AnnhealError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    InvariantViolation,
    Unavailable,
)
from annheal.model.limits import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, TIMEOUT_DEFAULT_S
from annheal.rpc.channel import (
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    Options,
    is_own_cancellation,
)
from annheal.rpc.methods import METHODS, Method
from annheal.rpc.status import status_of
from annheal.runtime.clock import new_token
from annheal.runtime.deadline import Deadline

CONCURRENT_CALLS_MAX = 4_096
"""Calls in flight; more are refused with RESOURCE_EXHAUSTED."""
PING_INTERVAL_MIN_MS = 10_000
# The answer, an error above all, must be on its way before the caller gives up.
_MARGIN_SHARE = 0.05
_MARGIN_S_MAX = 0.25

SERVER_OPTIONS: Options = [
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    # Checked when a response is packed, with a better message than gRPC's.
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    # Two servers on one port would share its connections without anybody noticing.
    ("grpc.so_reuseport", 0),
]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM bytes; with `client_roots`, clients must show a certificate that these sign."""

    private_key: bytes
    certificate_chain: bytes
    client_roots: bytes | None = None


class RpcServer:
    """A gRPC server of Annheal services, named as in `annheal.rpc.methods`.

    Life: `listen`, `start`, `set_serving(True)` once the process can answer, `stop`. Health says
    NOT_SERVING until then and from the moment `stop` begins.
    """

    def __init__(
        self,
        servicers: Mapping[str, object],
        *,
        tls: ServerTls | None = None,
        concurrent_calls_max: int = CONCURRENT_CALLS_MAX,
    ) -> None:
        self._services = tuple(servicers)
        self._tls = tls
        self._server = grpc.aio.server(
            options=SERVER_OPTIONS, maximum_concurrent_rpcs=concurrent_calls_max
        )
        for service, servicer in servicers.items():
            handlers: dict[str, Any] = {
                method.name: grpc.unary_unary_rpc_method_handler(
                    unary(method, getattr(servicer, method.name))
                )
                for method in METHODS[service]
            }
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    def listen(self, address: str) -> int:
        """Bind `address` (`host:port`; port 0 picks a free one) and return the port.

        Raises `FailedPrecondition` when that is not possible.
        """
        try:
            if self._tls is None:
                return self._server.add_insecure_port(address)
            credentials = grpc.ssl_server_credentials(
                [(self._tls.private_key, self._tls.certificate_chain)],
                root_certificates=self._tls.client_roots,
                require_client_auth=self._tls.client_roots is not None,
            )
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise FailedPrecondition(
                f"cannot listen on {address}: {error}; is the port taken?", reason="CANNOT_LISTEN"
            ) from error

    async def start(self) -> None:
        """Accept calls; health says NOT_SERVING."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Say by the health service, for the server and each service, whether it can answer."""
        for service in ("", *self._services):
            await self.set_service(service, serving)

    async def set_service(self, service: str, serving: bool) -> None:
        """Say by the health service whether `service` can answer."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def stop(self, *, grace_s: float) -> None:
        """Refuse new calls, give those in flight `grace_s` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()


def deadline_of(context: Context, *, timeout_s: float | None = None) -> Deadline:
    """Return the caller's deadline, a little early so that the answer still arrives."""
    left_s = remaining_s(context)
    if timeout_s is not None:
        left_s = min(left_s, timeout_s)
    return Deadline.after(left_s - min(left_s * _MARGIN_SHARE, _MARGIN_S_MAX))


def remaining_s(context: Context, *, default_s: float = TIMEOUT_DEFAULT_S) -> float:
    """Return the seconds left of the caller's deadline, `default_s` when there is none."""
    left: float | None = context.time_remaining()  # the stubs forget None
    return default_s if left is None else left


def unary(
    method: Method[Any, Any], handler: Handler
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    """Return `handler` over packed messages, with errors, deadline and sizes seen to.

    A call without a deadline gets `TIMEOUT_DEFAULT_S`; gRPC cancels the handler when the caller's
    deadline passes or the caller goes away.
    """
    parse = method.request.FromString
    limit = RESPONSE_BYTES_MAX

    async def handle(packed: bytes, context: Context) -> bytes:
        try:
            request = parse(packed)
            if context.time_remaining() is None:
                async with asyncio.timeout(TIMEOUT_DEFAULT_S):
                    response = await handler(request, context)
            else:
                response = await handler(request, context)
            answer: bytes = response.SerializeToString()
            if len(answer) > limit:
                raise InvalidArgument(
                    f"the answer has {len(answer)} bytes, the limit is {limit}; ask for less in"
                    " one call",
                    reason="MESSAGE_TOO_LARGE",
                )
        except AnnhealError as error:
            if isinstance(error, InvariantViolation):
                _log.exception("%s found a violated invariant", method.path)
            await _abort(context, error)
        except DecodeError:
            await _abort(
                context,
                InvalidArgument(
                    f"the request is no valid {method.request.DESCRIPTOR.full_name}: its bytes"
                    " cannot be parsed, a text is not UTF-8, or it is nested too deeply",
                    reason="MALFORMED_MESSAGE",
                ),
            )
        except TimeoutError:
            await _abort(context, DeadlineExceeded(f"{method.name} did not end in time"))
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if is_own_cancellation():
                raise
            # Something inside was cancelled. gRPC would take it for a cancelled call and never
            # answer.
            await _abort(context, Unavailable(f"{method.name} was interrupted; try again"))
        except Exception:  # noqa: BLE001 - the edge of the process: logged, answered, lives on
            entry = new_token()
            _log.exception("%s failed; entry %s", method.path, entry)
            await _abort(
                context,
                AnnhealError(f"internal error; see entry {entry} in the server's log"),
            )
        return answer

    return handle


async def _abort(context: Context, error: AnnhealError) -> NoReturn:
    status = status_of(error)
    await context.abort(status.code, status.message, status.trailing_metadata)
    raise AssertionError("abort returned")
