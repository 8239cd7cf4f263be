"""Settings of a coordinator: one frozen, validated value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from annheal.coordinator.compaction.plan import CompactionSettings
from annheal.errors import FieldViolation, InvalidArgument


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """How one coordinator works; raises `InvalidArgument` for values that cannot work.

    Times are seconds. `lease_ttl_s`: how long this coordinator counts as alive (and leads) without
    a sign of life. `control_interval_s`: at the latest so often the leader looks at placement and
    tasks, `compaction_interval_s` at segments, `collection_interval_s` at garbage.
    `collection_grace_s`: how long an object must have been unreferenced before it is deleted.
    `task_retention_s`: how long finished tasks can be listed. `create_timeout_s`: how long a
    new collection's shards may take to be served. `partial_patience_s`: how long a search that
    allows partial answers waits for shards without an owner. `takeover_timeout_s`: how long a node
    may take to open a shard before another one gets it. `observe_timeout_s`: how long a node may
    take to describe its shards, `publish_timeout_s` to publish a compaction.

    Limits: `search_batch_queries_max` queries travel in one call to a node, of which at most
    `search_calls_per_node` are under way; `search_queries_waiting_max` queries may wait for a
    node, `write_requests_max` writes and `reads_max` other reads may be under way at once, each
    with at most `shard_calls_max` calls to nodes; what comes beyond is refused with a retry hint.
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
)
