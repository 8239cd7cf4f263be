"""The one table between Annheal's errors and gRPC statuses, both ways.

A server answers with a status code, the message, and `google.rpc` details: `ErrorInfo` (always:
reason, domain `annheal`, metadata with the error's kind), `BadRequest` (fields to correct) and
`RetryInfo` (when to try again). A client gets the same error back from them. What never reached
Annheal (a lost connection, a deadline) has no details and is read from the code alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from annheal.errors import (
    AlreadyExists,
    AnnhealError,
    Conflict,
    DataCorruption,
    DeadlineExceeded,
    FailedPrecondition,
    Fenced,
    FieldViolation,
    InvalidArgument,
    InvariantViolation,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    UnknownOutcome,
)

DOMAIN = "annheal"
DETAILS_KEY = "grpc-status-details-bin"
KIND_KEY = "kind"

# gRPC refuses more than 8 KiB of trailing metadata by default; message and details share it.
MESSAGE_CHARACTERS_MAX = 1_500
VIOLATIONS_BYTES_MAX = 2_000
METADATA_BYTES_MAX = 1_000

_CODES: dict[type[AnnhealError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    Fenced: grpc.StatusCode.ABORTED,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnknownOutcome: grpc.StatusCode.UNAVAILABLE,
    DataCorruption: grpc.StatusCode.DATA_LOSS,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    InvariantViolation: grpc.StatusCode.INTERNAL,
    AnnhealError: grpc.StatusCode.INTERNAL,
}
_KINDS: dict[str, type[AnnhealError]] = {kind.reason: kind for kind in _CODES}

# Codes that gRPC itself gives out, without details.
_BARE: dict[grpc.StatusCode, type[AnnhealError]] = {
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: FailedPrecondition,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: DataCorruption,
}
_LOST = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)
# gRPC's words when it found no connection to send the request on.
_NEVER_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "errors resolving",
)
CANNOT_CONNECT = "CANNOT_CONNECT"
"""The reason of an `Unavailable` for which nothing was sent: nobody answers at the address."""
_TOO_LARGE = "larger than max"


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """What a server answers with instead of a response."""

    code: grpc.StatusCode
    message: str
    details: bytes

    @property
    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The details as gRPC carries them."""
        return ((DETAILS_KEY, self.details),)


def status_of(error: AnnhealError) -> RpcStatus:
    """Return the status of `error`; long texts are cut so that gRPC carries them."""
    kind = _kind(error)
    code = _CODES[kind]
    message = _printable(error.message, MESSAGE_CHARACTERS_MAX)
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={KIND_KEY: kind.reason}
    )
    room = METADATA_BYTES_MAX
    for key, value in error.metadata.items():
        room -= len(key.encode()) + len(value.encode(errors="replace"))
        if room < 0:
            break
        info.metadata[key] = _printable(value, METADATA_BYTES_MAX)
    _add(status, info)
    if isinstance(error, InvalidArgument) and error.violations:
        _add(status, _bad_request(error))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(error.retry_after_s * 1e6))
        _add(status, retry)
    return RpcStatus(code=code, message=message, details=status.SerializeToString())


def _kind(error: AnnhealError) -> type[AnnhealError]:
    return next(kind for kind in type(error).__mro__ if kind in _CODES)


def _bad_request(error: InvalidArgument) -> Message:
    bad: Any = error_details_pb2.BadRequest()
    room = VIOLATIONS_BYTES_MAX
    for violation in error.violations:
        field = _printable(violation.field, VIOLATIONS_BYTES_MAX // 4)
        description = _printable(violation.description, VIOLATIONS_BYTES_MAX // 4)
        room -= len(field.encode()) + len(description.encode())
        if room < 0:
            break
        bad.field_violations.add(field=field, description=description)
    packed: Message = bad
    return packed


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)


def _printable(text: str, characters_max: int) -> str:
    clean = text.encode(errors="replace").decode()
    return clean if len(clean) <= characters_max else clean[: characters_max - 1] + "…"


def error_of(error: grpc.aio.AioRpcError, *, mutation: bool, peer: str = "server") -> AnnhealError:
    """Return the error that a call to `peer` failed with.

    With details it is the server's own. Without, a `mutation` that was lost on the way is
    an `UnknownOutcome`, unless no connection could be made.
    """
    code = error.code()
    message = error.details() or code.name
    restored = _restore(error, message)
    if restored is not None:
        return restored
    text = f"{peer}: {message}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in message:
        return InvalidArgument(
            f"{text}; send or ask for less in one call", reason="MESSAGE_TOO_LARGE"
        )
    if mutation and code in _LOST and not message.startswith(_NEVER_SENT):
        return UnknownOutcome(f"{text}; the change may or may not have been made")
    if code is grpc.StatusCode.UNAVAILABLE and message.startswith(_NEVER_SENT):
        cause = message.rpartition(": ")[2].rstrip("]")
        return Unavailable(f"no server answers at {peer}: {cause}", reason=CANNOT_CONNECT)
    kind = _BARE.get(code, AnnhealError)
    return kind(text, reason=None if kind is not AnnhealError else code.name)


def _restore(error: grpc.aio.AioRpcError, message: str) -> AnnhealError | None:
    raw = _details(error)
    if raw is None:
        return None
    status = status_pb2.Status()
    try:
        status.ParseFromString(raw)
    except DecodeError:
        return None
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        # Unpack leaves the message alone when the types differ.
        if not (detail.Unpack(info) or detail.Unpack(bad)):
            has_retry = detail.Unpack(retry) or has_retry
    if info.domain != DOMAIN:
        return None
    metadata = dict(info.metadata)
    kind = _KINDS.get(metadata.pop(KIND_KEY, ""), _BARE.get(error.code(), AnnhealError))
    if issubclass(kind, InvalidArgument):
        return kind(
            message,
            violations=[FieldViolation(v.field, v.description) for v in bad.field_violations],
            reason=info.reason,
            metadata=metadata,
        )
    return kind(
        message,
        reason=info.reason,
        metadata=metadata,
        retry_after_s=retry.retry_delay.ToMicroseconds() / 1e6 if has_retry else None,
    )


def _details(error: grpc.aio.AioRpcError) -> bytes | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return None
