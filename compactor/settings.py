"""Settings of a compactor: frozen, validated, documented in docs/configuration.md."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from annheal.errors import InvalidArgument
from annheal.runtime.host.disk import RESERVE_BYTES

LEASE_TTL_MIN_S = 1.0
POLL_INTERVAL_MIN_S = 0.01
NICE_MAX = 19


@dataclass(frozen=True, slots=True)
class CompactorSettings:
    """How one compactor runs; raises `InvalidArgument` for values out of range.

    Attributes:
        worker_id: unique name of this compactor; no slash.
        scratch_dir: holds a folder for each worker, named by its id, with the files of its tasks.
            The folder is locked while the worker runs and removed at its end.
        memory_bytes_max: the estimated memory of all tasks at the same time, at most.
        disk_bytes_max: the same for scratch disk; 0 means nine tenths of the free disk.
        threads: threads of all builds together; 0 means all cores.
        nice: priority of these threads, 0 to 19, so that queries on the same machine run first.
        disk_reserve_bytes: no task is begun while less than this, or a quarter of the disk, is free
            where `scratch_dir` lies; 0: tasks are always begun.
        transfer_bytes_per_s: bytes read from and written to the object store; 0: no limit.
        poll_interval_s: seconds between two reads of an unchanged queue. A task whose backoff after
            a failure ends becomes due without a change of the queue.
        lease_ttl_s: lifetime of the leases of registration and claims; at least 1 s.
        embedder_dir: folder with `keys/` and `models/` of embedders, for backfills; without it
            those that name either fail.
        embedder_urls: backfills ask endpoints at addresses that begin with one of these; empty:
            any.
        listen: address of the health service, when the compactor is a process of its own.
    """

    worker_id: str
    scratch_dir: Path = Path("var/compactor")
    memory_bytes_max: int = 8 << 30
    disk_bytes_max: int = 0
    disk_reserve_bytes: int = RESERVE_BYTES
    threads: int = 0
    nice: int = 10
    transfer_bytes_per_s: int = 0
    poll_interval_s: float = 1.0
    lease_ttl_s: float = 10.0
    listen: str = "127.0.0.1:7720"
    embedder_dir: Path | None = None
    embedder_urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for a value out of range."""
        if not self.worker_id or "/" in self.worker_id:
            raise InvalidArgument.of("worker_id", "must not be empty or hold a slash")
        if self.memory_bytes_max < 1:
            raise InvalidArgument.of("memory_bytes_max", "must be positive")
        if self.disk_bytes_max < 0:
            raise InvalidArgument.of("disk_bytes_max", "must be 0 (what is free) or more")
        if self.disk_reserve_bytes < 0:
            raise InvalidArgument.of("disk_reserve_bytes", "must be 0 (no reserve) or more")
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
        """Threads of all builds together: `threads`, or the number of cores."""
        return self.threads or os.cpu_count() or 1

    @property
    def worker_dir(self) -> Path:
        """The scratch folder of this worker."""
        return self.scratch_dir / self.worker_id
