"""Shards, their owners, and the nodes that serve them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from annheal.model.measures.part_health import PartHealth


@dataclass(frozen=True, slots=True, order=True)
class ShardId:
    """One shard of a collection; the unit of ownership, placement and (later) splitting."""

    collection_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.collection_id}/{self.number:05d}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who owns a shard. Stored under `shards/<collection_id>/<shard>`.

    The leader writes `target`; the target node loads, fences, and then writes itself as `owner`
    with a higher `epoch` (and `target` empty) by compare-and-swap. `owner` is empty until the
    shard was first opened. `replicas` is room for nodes that will serve copies.
    """

    collection_id: str
    shard: int
    owner: str = ""
    epoch: int = 0
    target: str = ""
    replicas: tuple[str, ...] = ()

    @property
    def id(self) -> ShardId:
        """The shard's identity."""
        return ShardId(self.collection_id, self.shard)


@dataclass(frozen=True, slots=True)
class NodeRegistration:
    """A live shard node, stored under `nodes/<node_id>` with the node's lease."""

    node_id: str
    address: str
    zone: str = ""
    capacity: float = 1.0
    started_at_s: float = 0.0
    version: str = ""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What an operator decided about a node; outlives the node's lease."""

    node_id: str
    draining: bool = False


class WorkerRole(StrEnum):
    """Processes that register themselves beside shard nodes."""

    COORDINATOR = "coordinator"
    COMPACTOR = "compactor"


@dataclass(frozen=True, slots=True)
class WorkerRegistration:
    """A live coordinator or compactor, stored under its role's prefix with its lease.

    `parts` are the stores and disks of a compactor; coordinators answer calls about theirs.
    """

    worker_id: str
    role: WorkerRole
    address: str = ""
    started_at_s: float = 0.0
    version: str = ""
    parts: tuple[PartHealth, ...] = ()


class ShardPhase(StrEnum):
    """Where a shard stands on one node."""

    LOADING = "loading"
    SERVING = "serving"
    FAILED = "failed"
    RELEASED = "released"
