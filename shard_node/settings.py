"""Settings of a shard node: frozen, validated, documented in docs/configuration.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annheal.errors import InvalidArgument
from annheal.runtime.host.disk import RESERVE_BYTES

LEASE_TTL_MIN_S = 1.0


@dataclass(frozen=True, slots=True)
class ShardNodeSettings:
    """How one shard node runs.

    `advertise` is the address that coordinators use (empty: the listen address). `data_dir` holds
    the segment cache and scratch files; losing it loses nothing. `search_threads` is the number of
    threads that FAISS uses for one batch of queries; 0 means all cores.

    Recall is measured on a sample of the live queries, at most a share `recall_sample_share` of
    them (0: not at all), every `recall_interval_s` and after a share `recall_changed_share` of a
    shard's rows changed, with at most a share `recall_cpu_share` of one core.
    `recall_keep_queries`: sampled queries are kept in the object store, over restarts and for the
    compactor.

    New rows are refused while less than `disk_reserve_bytes` (at most a quarter of the disk) is
    free where `data_dir`, or the object store if it is a directory, lies; 0 refuses none.
    """

    node_id: str
    listen: str = "127.0.0.1:7710"
    advertise: str = ""
    zone: str = ""
    capacity: float = 1.0
    data_dir: Path = Path("var/shard-node")
    lease_ttl_s: float = 10.0
    search_threads: int = 0
    shards_opening_max: int = 4
    drain_timeout_s: float = 30.0
    recall_sample_share: float = 1.0
    recall_interval_s: float = 60.0
    recall_changed_share: float = 0.1
    recall_cpu_share: float = 0.02
    recall_keep_queries: bool = True
    disk_reserve_bytes: int = RESERVE_BYTES

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not self.node_id:
            raise InvalidArgument.of("node_id", "must not be empty; give the node a stable name")
        if self.capacity <= 0:
            raise InvalidArgument.of("capacity", f"must be positive, not {self.capacity}")
        if self.lease_ttl_s < LEASE_TTL_MIN_S:
            raise InvalidArgument.of("lease_ttl_s", f"must be at least {LEASE_TTL_MIN_S}")
        if self.search_threads < 0:
            raise InvalidArgument.of("search_threads", "must be 0 (all cores) or more")
        if self.shards_opening_max < 1:
            raise InvalidArgument.of("shards_opening_max", "must be at least 1")
        if not 0 <= self.recall_sample_share <= 1:
            raise InvalidArgument.of("recall_sample_share", "must be from 0 to 1")
        if self.recall_interval_s <= 0:
            raise InvalidArgument.of("recall_interval_s", "must be positive")
        if self.recall_changed_share <= 0:
            raise InvalidArgument.of("recall_changed_share", "must be positive")
        if self.disk_reserve_bytes < 0:
            raise InvalidArgument.of("disk_reserve_bytes", "must be 0 (no reserve) or more")
        if not 0 < self.recall_cpu_share <= 1:
            raise InvalidArgument.of("recall_cpu_share", "must be above 0 and at most 1")
