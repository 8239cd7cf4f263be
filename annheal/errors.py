"""The one hierarchy of errors; every error tells its caller what to do.

::

    AnnhealError
    ├── InvalidArgument      change the request: `violations` name the fields
    ├── NotFound             the thing named does not exist
    ├── AlreadyExists        the thing to create exists; put-if-absent tells the loser so
    ├── FailedPrecondition   the system must be put into another state first
    ├── Conflict             a compare-and-swap lost its race: read again, then decide
    ├── Fenced               this process no longer owns the shard: find the new owner
    ├── ResourceExhausted    a stated limit was reached: retry after `retry_after_s`
    ├── Unavailable          a part is away for now: retry after `retry_after_s`
    ├── DeadlineExceeded     the caller's time is over
    ├── UnknownOutcome       a write may or may not have taken effect: read back, or repeat it
    ├── DataCorruption       stored bytes do not match their checksum; never served
    ├── Unimplemented        this version cannot do it
    └── InvariantViolation   a bug: an invariant of DESIGN section 11 does not hold

`retryable` says whether repeating the same call may succeed. `annheal.rpc.status` holds the one
table that maps these kinds to gRPC status codes and `google.rpc` details.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong, and how to fix it."""

    field: str
    description: str


class AnnhealError(Exception):
    """Base of every error that Annheal raises on purpose.

    `reason` is a stable upper-case word for programs; the message is for people; `metadata`
    holds short facts (collection, shard, limit) that travel in `google.rpc.ErrorInfo`.
    """

    retryable: ClassVar[bool] = False
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s
        if reason is not None:
            self.reason = reason


class InvalidArgument(AnnhealError):
    """The request is wrong whatever the state of the system."""

    reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidArgument:
        """Return the error for one wrong `field`."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class NotFound(AnnhealError):
    """The named thing does not exist."""

    reason = "NOT_FOUND"


class AlreadyExists(AnnhealError):
    """The thing to be created exists already."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(AnnhealError):
    """The system is not in the state that the request needs."""

    reason = "FAILED_PRECONDITION"


class Conflict(AnnhealError):
    """A compare-and-swap lost its race; nothing was changed."""

    retryable = True
    reason = "CONFLICT"


class Fenced(AnnhealError):
    """This process does not (or no longer) own the shard; nothing was acknowledged."""

    retryable = True
    reason = "NOT_OWNER"


class ResourceExhausted(AnnhealError):
    """A stated limit was reached."""

    retryable = True
    reason = "RESOURCE_EXHAUSTED"


class Unavailable(AnnhealError):
    """A needed part cannot be reached for now; nothing was changed."""

    retryable = True
    reason = "UNAVAILABLE"


class DeadlineExceeded(AnnhealError):
    """The caller's deadline passed before the answer was ready."""

    reason = "DEADLINE_EXCEEDED"


class UnknownOutcome(AnnhealError):
    """A mutation may or may not have taken effect.

    Record writes are idempotent by id and may be repeated; a compare-and-swap must be read back.
    """

    retryable = True
    reason = "UNKNOWN_OUTCOME"


class DataCorruption(AnnhealError):
    """Stored bytes do not match their checksum or format; they are named and never served."""

    reason = "DATA_CORRUPTION"


class Unimplemented(AnnhealError):
    """This version of Annheal cannot do what was asked."""

    reason = "UNIMPLEMENTED"


class InvariantViolation(AnnhealError):
    """A bug: an invariant does not hold. The process must not go on as if it did."""

    reason = "INVARIANT_VIOLATION"
