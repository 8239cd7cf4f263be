"""What all shards of a node share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import (
    Clock,
    Jitter,
    NewId,
    boottime_s,
    jitter,
    monotonic_s,
    new_token,
    wall_s,
)
from annheal.runtime.host.disk import DiskWatch
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.manifest_store import ManifestStore


@dataclass(frozen=True, slots=True)
class ShardDependencies:
    """Stores, lanes, directories, disks, and the sources of time, random numbers and ids.

    `writer` is 16 random bytes of this process. `clock` is monotonic; `boottime` is, too, and runs
    on while the machine is suspended; `now_s` is in seconds since 1970.
    """

    objects: ObjectStore
    manifests: ManifestStore
    lanes: Lanes
    node_id: str
    writer: bytes
    cache: Path
    scratch: Path
    disks: DiskWatch
    now_s: Clock = wall_s
    clock: Clock = monotonic_s
    boottime: Clock = boottime_s
    jitter: Jitter = jitter
    new_id: NewId = new_token
