"""Settings of a compactor: frozen, validated, documented in docs/configuration.md."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from annheal.errors import InvalidArgument

LEASE_TTL_MIN_S = 1.0
POLL_INTERVAL_MIN_S = 0.01
NICE_MAX = 19


@dataclass(frozen=True, slots=True)
class CompactorSettings:
    """How one compactor runs.

    `scratch_dir` holds files of the build in progress, below a folder named after the worker, which
    is locked while it lives and removed when it ended. Tasks are taken as long as their estimates
    fit into `memory_bytes_max` and `disk_bytes_max` together; 0 bytes of disk means nine tenths of
    what is free. `threads` build graphs, all builds together; 0 means all cores. They run at the
    priority `nice`, 0 to 19, so that queries on the same machine go first. `transfer_bytes_per_s`
    limits what is read from and written to the object store; 0: no limit. `poll_interval_s` is how
    often the queue is looked at when nothing in it changed: a task that waits after a failure
    becomes due without a change. `listen` is where the health service answers when the compactor is
    a process of its own.
    """

    worker_id: str
    scratch_dir: Path = Path("var/compactor")
    memory_bytes_max: int = 8 << 30
    disk_bytes_max: int = 0
    threads: int = 0
    nice: int = 10
    transfer_bytes_per_s: int = 0
    poll_interval_s: float = 1.0
    lease_ttl_s: float = 10.0
    listen: str = "127.0.0.1:7720"

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not self.worker_id or "/" in self.worker_id:
            raise InvalidArgument.of("worker_id", "must not be empty or hold a slash")
        if self.memory_bytes_max < 1:
            raise InvalidArgument.of("memory_bytes_max", "must be positive")
        if self.disk_bytes_max < 0:
            raise InvalidArgument.of("disk_bytes_max", "must be 0 (what is free) or more")
        if self.threads < 0:
            raise InvalidArgument.of("threads", "must be 0 (all cores) or more")
        if not 0 <= self.nice <= NICE_MAX:
            raise InvalidArgument.of("nice", f"must lie between 0 and {NICE_MAX}")
        if self.transfer_bytes_per_s < 0:
            raise InvalidArgument.of("transfer_bytes_per_s", "must be 0 (no limit) or more")
        if self.poll_interval_s < POLL_INTERVAL_MIN_S:
            raise InvalidArgument.of("poll_interval_s", f"must be at least {POLL_INTERVAL_MIN_S}")
        if self.lease_ttl_s < LEASE_TTL_MIN_S:
            raise InvalidArgument.of("lease_ttl_s", f"must be at least {LEASE_TTL_MIN_S}")

    @property
    def build_threads(self) -> int:
        """Threads of a build, all cores resolved."""
        return self.threads or os.cpu_count() or 1

    @property
    def worker_dir(self) -> Path:
        """The folder that belongs to this worker alone."""
        return self.scratch_dir / self.worker_id
