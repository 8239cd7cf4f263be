"""Settings of a coordinator: one frozen, validated value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from annheal.coordinator.compaction.plan import CompactionSettings
from annheal.errors import FieldViolation, InvalidArgument


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """Settings of one coordinator; raises `InvalidArgument` for values out of range.

    Attributes:
        coordinator_id: unique name; no slash.
        listen: address of the server.
        advertise: address that others use; empty: `listen`.
        cluster: name of the cluster.
        lease_ttl_s: seconds for which the coordinator counts as alive, and leads, without renewing
            its lease.
        control_interval_s: the leader plans placement and publications when the catalog changes,
            and at the latest after these seconds.
        compaction_interval_s: seconds between two runs of the compaction rules.
        collection_interval_s: seconds between two rounds of garbage collection.
        collection_grace_s: seconds for which an object must have been unreferenced before it is
            deleted.
        orphan_grace_s: seconds after which assignments without a collection are deleted, if they
            never had an owner.
        task_retention_s: seconds for which finished tasks are stored.
        create_timeout_s: seconds in which the shards of a new collection must be served.
        partial_patience_s: seconds for which a search that allows partial answers waits for shards
            without an owner.
        takeover_timeout_s: seconds in which a node must open a shard; then another node gets it.
        observe_timeout_s: seconds in which a node must report its shards.
        publish_timeout_s: seconds in which a node must publish a compaction.
        store_retry_s: seconds between two tries when the metadata store is away.
        rebalance_automatic: whether shards are moved after a node has joined or was undrained.
        rebalance_tolerance: share in [0, 1] by which a node may exceed its fair share of shards.
        search_batch_queries_max: queries of one call to a node.
        search_calls_per_node: such calls under way to one node.
        search_queries_waiting_max: queries that wait for one node.
        write_requests_max: writes under way.
        reads_max: other reads under way.
        shard_calls_max: calls to nodes of one write or read.
        publishes_max: publications under way.
        embedder_dir: folder with `keys/` and `models/` of embedders; without it collections can
            name neither.
        embedder_urls: collections may name endpoints at addresses that begin with one of these;
            empty: at any address.
        embedder_texts_max: texts that are embedded at once.

    Beyond the limits of queries, writes, reads and texts calls are refused with a retry hint.
    """

    coordinator_id: str
    listen: str = "127.0.0.1:7700"
    advertise: str = ""
    cluster: str = "annheal"
    lease_ttl_s: float = 10.0
    control_interval_s: float = 5.0
    compaction_interval_s: float = 1.0
    collection_interval_s: float = 600.0
    collection_grace_s: float = 3_600.0
    orphan_grace_s: float = 60.0
    task_retention_s: float = 3_600.0
    create_timeout_s: float = 30.0
    partial_patience_s: float = 0.5
    takeover_timeout_s: float = 300.0
    observe_timeout_s: float = 5.0
    publish_timeout_s: float = 60.0
    store_retry_s: float = 0.5
    rebalance_automatic: bool = True
    rebalance_tolerance: float = 0.05
    search_batch_queries_max: int = 128
    search_calls_per_node: int = 1
    search_queries_waiting_max: int = 8_192
    write_requests_max: int = 256
    reads_max: int = 1_024
    shard_calls_max: int = 16
    publishes_max: int = 4
    embedder_dir: Path | None = None
    embedder_urls: tuple[str, ...] = ()
    embedder_texts_max: int = 8_192
    compaction: CompactionSettings = field(default_factory=CompactionSettings)

    def __post_init__(self) -> None:
        found = [
            FieldViolation(name, f"{getattr(self, name)} must be more than 0")
            for name in _POSITIVE
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0)
        ]
        for name in ("coordinator_id", "listen", "cluster"):
            if not getattr(self, name) or "/" in getattr(self, name):
                found.append(FieldViolation(name, "must not be empty nor hold a slash"))
        if not 0.0 <= self.rebalance_tolerance <= 1.0:
            found.append(FieldViolation("rebalance_tolerance", "must lie between 0 and 1"))
        if found:
            text = "; ".join(f"{one.field}: {one.description}" for one in found)
            raise InvalidArgument(text, violations=found)

    @property
    def address(self) -> str:
        """Where other processes reach this coordinator."""
        return self.advertise or self.listen


_POSITIVE = (
    "lease_ttl_s",
    "control_interval_s",
    "compaction_interval_s",
    "collection_interval_s",
    "collection_grace_s",
    "orphan_grace_s",
    "task_retention_s",
    "create_timeout_s",
    "partial_patience_s",
    "takeover_timeout_s",
    "observe_timeout_s",
    "publish_timeout_s",
    "store_retry_s",
    "search_batch_queries_max",
    "search_calls_per_node",
    "search_queries_waiting_max",
    "write_requests_max",
    "reads_max",
    "shard_calls_max",
    "publishes_max",
    "embedder_texts_max",
)
