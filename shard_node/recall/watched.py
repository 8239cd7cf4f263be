"""What measuring recall, and remembering it, need of an owned shard."""

from __future__ import annotations

from typing import Protocol

from annheal.model.collection import Collection
from annheal.shard_node.rows.view import ShardView


class WatchedShard(Protocol):
    """A shard whose recall is measured and kept; `OwnedShard` is one."""

    @property
    def collection(self) -> Collection:
        """Its collection, with the settings of now."""
        ...

    @property
    def view(self) -> ShardView:
        """Its rows as of now."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch of this node's ownership."""
        ...
