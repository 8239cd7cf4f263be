"""Whether a part that a process depends on does its work, and since when not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class PartKind(StrEnum):
    """What may be away while the process lives."""

    OBJECT_WRITES = "object store writes"
    OBJECT_READS = "object store reads"
    METADATA = "metadata store"
    LOG = "log"
    DISK = "disk"
    EMBEDDER = "embedder"


@dataclass(frozen=True, slots=True)
class PartHealth:
    """One part as one process finds it.

    `process` names who says so, `place` the shard of a log or the folder of a disk. Times are
    seconds since the epoch: `failing_since_s` is 0 while the part works, `succeeded_at_s` is 0 when
    it has not been used yet. `error` is what it failed with, empty while it works. `note` is what
    an operator should know of it although it works.
    """

    kind: PartKind
    process: str
    place: str = ""
    failing_since_s: float = 0.0
    error: str = ""
    succeeded_at_s: float = 0.0
    note: str = ""

    @property
    def works(self) -> bool:
        """Whether nothing is known to be wrong."""
        return not self.failing_since_s


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """What the processes of a cluster depend on; `errors` says who did not answer, and why."""

    parts: tuple[PartHealth, ...]
    errors: Mapping[str, str] = field(default_factory=dict)
