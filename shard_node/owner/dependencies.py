"""What every shard of a node shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from annheal.objectstore.protocol import ObjectStore
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.manifest_store import ManifestStore


@dataclass(frozen=True, slots=True)
class ShardDependencies:
    """Stores, threads and directories. `writer` is 16 random bytes of this process."""

    objects: ObjectStore
    manifests: ManifestStore
    lanes: Lanes
    node_id: str
    writer: bytes
    cache: Path
    scratch: Path
    now_s: Callable[[], float] = time.time
