"""Exit codes of the command line: stable, documented in docs/cli.md, one table."""

from __future__ import annotations

from enum import IntEnum

from annheal.errors import (
    AlreadyExists,
    AnnhealError,
    Conflict,
    DataCorruption,
    DeadlineExceeded,
    FailedPrecondition,
    Fenced,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    UnknownOutcome,
)


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    NOT_FOUND = 3
    INVALID_ARGUMENT = 4
    UNAVAILABLE = 5
    CONFLICT = 6
    FAILED_PRECONDITION = 7
    DEADLINE_EXCEEDED = 8
    RESOURCE_EXHAUSTED = 9
    UNKNOWN_OUTCOME = 10
    DATA_CORRUPTION = 11
    UNIMPLEMENTED = 12
    UNHEALTHY = 13
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.INTERNAL: "a bug, or an error of no other kind",
    ExitCode.USAGE: "the command line or the configuration is wrong",
    ExitCode.NOT_FOUND: "the thing named does not exist",
    ExitCode.INVALID_ARGUMENT: "the request or an input file is wrong; the message names the field",
    ExitCode.UNAVAILABLE: "the server, or a part of it, cannot be reached",
    ExitCode.CONFLICT: "it exists already, or another client changed it meanwhile",
    ExitCode.FAILED_PRECONDITION: "the system must be put into another state first",
    ExitCode.DEADLINE_EXCEEDED: "the time was over (--timeout)",
    ExitCode.RESOURCE_EXHAUSTED: "a stated limit was reached; try again later",
    ExitCode.UNKNOWN_OUTCOME: "a write may or may not have taken effect; repeat it",
    ExitCode.DATA_CORRUPTION: "stored bytes do not match their checksum",
    ExitCode.UNIMPLEMENTED: "this version cannot do it",
    ExitCode.UNHEALTHY: "`annheal health` found something bad",
    ExitCode.INTERRUPTED: "Ctrl-C",
    ExitCode.BROKEN_PIPE: "the reader of the output went away",
}

_BY_ERROR: dict[type[AnnhealError], ExitCode] = {
    InvalidArgument: ExitCode.INVALID_ARGUMENT,
    NotFound: ExitCode.NOT_FOUND,
    AlreadyExists: ExitCode.CONFLICT,
    Conflict: ExitCode.CONFLICT,
    FailedPrecondition: ExitCode.FAILED_PRECONDITION,
    Fenced: ExitCode.UNAVAILABLE,
    ResourceExhausted: ExitCode.RESOURCE_EXHAUSTED,
    Unavailable: ExitCode.UNAVAILABLE,
    DeadlineExceeded: ExitCode.DEADLINE_EXCEEDED,
    UnknownOutcome: ExitCode.UNKNOWN_OUTCOME,
    DataCorruption: ExitCode.DATA_CORRUPTION,
    Unimplemented: ExitCode.UNIMPLEMENTED,
}


CONFIGURATION = "CONFIGURATION"
"""The reason of errors in flags, environment and configuration file: exit code 2."""


def exit_code_of(error: AnnhealError) -> ExitCode:
    """Return the exit code of `error`, by its kind."""
    if error.reason == CONFIGURATION:
        return ExitCode.USAGE
    for kind in type(error).__mro__:
        if kind in _BY_ERROR:
            return _BY_ERROR[kind]
    return ExitCode.INTERNAL
