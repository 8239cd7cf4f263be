"""Health of parts on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from annheal.model.part_health import ClusterHealth, PartHealth
from annheal.v1 import admin_pb2, internal_pb2
from annheal.wire.enums import PART_KIND


def encode_part(part: PartHealth) -> admin_pb2.PartHealth:
    """Return one part."""
    return admin_pb2.PartHealth(
        part=PART_KIND.encode(part.kind),
        process=part.process,
        place=part.place,
        failing_since_s=part.failing_since_s,
        error=part.error,
        succeeded_at_s=part.succeeded_at_s,
    )


def decode_parts(messages: Iterable[admin_pb2.PartHealth]) -> tuple[PartHealth, ...]:
    """Return the parts of kinds that this version knows."""
    return tuple(
        PartHealth(
            kind=kind,
            process=message.process,
            place=message.place,
            failing_since_s=message.failing_since_s,
            error=message.error,
            succeeded_at_s=message.succeeded_at_s,
        )
        for message in messages
        if (kind := PART_KIND.known(message.part)) is not None
    )


def encode_node_health(parts: Iterable[PartHealth]) -> internal_pb2.CheckNodeResponse:
    """Return what a node depends on."""
    return internal_pb2.CheckNodeResponse(parts=[encode_part(one) for one in parts])


def encode_cluster_health(health: ClusterHealth) -> admin_pb2.CheckHealthResponse:
    """Return what a cluster depends on."""
    return admin_pb2.CheckHealthResponse(
        parts=[encode_part(one) for one in health.parts], errors=dict(health.errors)
    )


def decode_cluster_health(message: admin_pb2.CheckHealthResponse) -> ClusterHealth:
    """Return what a cluster depends on."""
    errors: Mapping[str, str] = dict(message.errors)
    return ClusterHealth(decode_parts(message.parts), errors)
