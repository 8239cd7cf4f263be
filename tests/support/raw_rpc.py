"""A stock gRPC client: the generated stubs, and what a failed call says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from annheal.v1 import (
    admin_pb2_grpc,
    collections_pb2_grpc,
    columns_pb2,
    records_pb2_grpc,
    search_pb2_grpc,
)

CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Stubs:
    """The public services of one server, untyped as generated code is."""

    channel: Any
    collections: Any
    records: Any
    search: Any
    admin: Any


@contextmanager
def open_stubs(address: str) -> Iterator[Stubs]:
    """Open stubs whose client sets no limit of its own, so that the server's limit is seen."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Stubs(
            channel,
            collections_pb2_grpc.CollectionServiceStub(channel),
            records_pb2_grpc.RecordServiceStub(channel),
            search_pb2_grpc.SearchServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a call was refused with: `google.rpc` details unpacked, empty when there were none."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None


def refusal_of(method: Any, request: Message, *, timeout_s: float = CALL_TIMEOUT_S) -> Refusal:
    """Call `method` and return how it was refused; fails when it was not."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=timeout_s)
    error: Any = caught.value
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        domain=info.domain,
        fields={one.field: one.description for one in bad.field_violations},
        retry_after_s=retry_after_s,
    )


def packed(*rows: Any, dimension: int | None = None) -> columns_pb2.Vectors:
    """Return vectors as the wire carries them."""
    matrix = np.asarray(rows, dtype="<f4")
    return columns_pb2.Vectors(
        dimension=matrix.shape[1] if dimension is None else dimension, packed=matrix.tobytes()
    )
