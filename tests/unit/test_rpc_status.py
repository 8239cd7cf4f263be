from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from annheal import errors
from annheal.errors import AnnhealError, FieldViolation, InvalidArgument, UnknownOutcome
from annheal.rpc.status import DETAILS_KEY, error_of, status_of

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AnnhealError)
]


def failed(
    code: grpc.StatusCode, message: str, details: bytes | None = None
) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata() if details is None else grpc.aio.Metadata((DETAILS_KEY, details))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=message)


def over_the_wire(error: AnnhealError, *, mutation: bool = False) -> AnnhealError:
    status = status_of(error)
    return error_of(failed(status.code, status.message, status.details), mutation=mutation)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mutation", [False, True])
def test_every_kind_comes_back_as_itself(kind: type[AnnhealError], mutation: bool) -> None:
    sent = kind("größer: no", metadata={"shard": "3"})
    got = over_the_wire(sent, mutation=mutation)
    assert type(got) is kind
    assert str(got) == "größer: no"
    assert got.metadata == {"shard": "3"}
    assert got.reason == sent.reason
    assert got.retryable == sent.retryable
    assert got.retry_after_s is None


def test_every_kind_is_in_the_table() -> None:
    assert len(KINDS) >= 14
    codes = {kind: status_of(kind("x")).code for kind in KINDS}
    assert codes[errors.InvalidArgument] is grpc.StatusCode.INVALID_ARGUMENT
    assert codes[errors.Conflict] is grpc.StatusCode.ABORTED
    assert codes[errors.ResourceExhausted] is grpc.StatusCode.RESOURCE_EXHAUSTED
    internal = {kind for kind, code in codes.items() if code is grpc.StatusCode.INTERNAL}
    assert internal == {AnnhealError, errors.InvariantViolation}


def test_standard_details_are_there_for_clients_that_know_only_them() -> None:
    error = errors.ResourceExhausted("full", reason="UNINDEXED_ROWS", retry_after_s=1.5)
    status = status_pb2.Status.FromString(status_of(error).details)
    assert (status.code, status.message) == (8, "full")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("UNINDEXED_ROWS", "annheal")
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1_500
    back = over_the_wire(error)
    assert back.retry_after_s == 1.5
    assert back.reason == "UNINDEXED_ROWS"


def test_violations_travel() -> None:
    back = over_the_wire(InvalidArgument.of("records[3].id", "is empty"))
    assert isinstance(back, InvalidArgument)
    assert back.violations == (FieldViolation("records[3].id", "is empty"),)


def test_subclasses_travel_as_the_kind_they_are() -> None:
    class TooManyThings(errors.ResourceExhausted):
        reason = "TOO_MANY_THINGS"

    back = over_the_wire(TooManyThings("x"))
    assert type(back) is errors.ResourceExhausted
    assert back.reason == "TOO_MANY_THINGS"


def test_long_errors_fit_into_what_grpc_carries() -> None:
    violations = [FieldViolation(f"records[{n}].id", "ü" * 300) for n in range(1_000)]
    error = InvalidArgument(
        "x" * 100_000, violations=violations, metadata={f"k{n}": "v" * 400 for n in range(100)}
    )
    status = status_of(error)
    # Percent-encoded message + base64 details must stay below gRPC's 8 KiB.
    assert len(status.message) + len(status.details) * 4 / 3 < 8_000
    back = over_the_wire(error)
    assert isinstance(back, InvalidArgument)
    assert 1 <= len(back.violations) < 1_000
    assert status.message.endswith("…")


def test_texts_that_are_not_unicode_do_not_break_the_answer() -> None:
    assert str(over_the_wire(errors.NotFound("no \udcff here"))) == "no ? here"


@pytest.mark.parametrize("code", ["CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "UNKNOWN"])
def test_lost_changes_are_unknown_outcomes_and_lost_reads_are_not(code: str) -> None:
    lost = failed(grpc.StatusCode[code], "Socket closed")
    assert type(error_of(lost, mutation=True, peer="n1:7")) is UnknownOutcome
    read = error_of(lost, mutation=False, peer="n1:7")
    assert not isinstance(read, UnknownOutcome)
    assert "n1:7: Socket closed" in str(read)


def test_changes_that_were_never_sent_are_not_unknown() -> None:
    lost = failed(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: x")
    assert type(error_of(lost, mutation=True)) is errors.Unavailable


def test_a_node_that_says_unavailable_changed_nothing() -> None:
    assert type(over_the_wire(errors.Unavailable("busy"), mutation=True)) is errors.Unavailable


def test_foreign_or_broken_details_fall_back_to_the_code() -> None:
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason="X", domain="elsewhere"))
    foreign = status_pb2.Status(details=[packed]).SerializeToString()
    for details in (foreign, b"\xff\xff"):
        error = error_of(failed(grpc.StatusCode.NOT_FOUND, "gone", details), mutation=True)
        assert type(error) is errors.NotFound
