"""What a read sees: an immutable view of a shard, swapped as a whole after every change."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from annheal.model.topology.manifest import IndexKind, Tier
from annheal.segment import DeleteVector, Segment
from annheal.shard_node.rows.growing import GrowingView


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment and its dead rows as of one moment."""

    segment: Segment
    deletes: DeleteVector

    @property
    def live_count(self) -> int:
        """Rows that are not dead."""
        return self.segment.rows - self.deletes.dead_count


@dataclass(frozen=True, slots=True)
class ShardView:
    """Every row of a shard as of `sequence`; each id lives in at most one place (INV-3)."""

    segments: tuple[SegmentView, ...] = ()
    growing: tuple[GrowingView, ...] = ()
    sequence: int = 0

    @property
    def segment_ids(self) -> frozenset[str]:
        """The ids of its segments."""
        return frozenset(held.segment.id for held in self.segments)

    @property
    def live_rows(self) -> int:
        """Records that exist."""
        return sum(s.live_count for s in self.segments) + sum(g.live_count for g in self.growing)

    def changed_share(self, segment_ids: Collection[str], sequence: int) -> float:
        """Return the share of rows written since `sequence`, or in other segments than those."""
        moved = sum(held.live_count for held in self.segments if held.segment.id not in segment_ids)
        return max(moved, self.sequence - sequence) / max(self.live_rows, 1)

    @property
    def dead_rows(self) -> int:
        """Tombstones: rows that are still held and never returned."""
        dead = sum(s.deletes.dead_count for s in self.segments)
        return dead + sum(g.dead_count for g in self.growing)

    @property
    def unindexed_rows(self) -> int:
        """Rows that wait for a graph, so that every search compares them.

        Those that a compactor left flat, because no graph serves them, do not wait.
        """
        flat = sum(s.segment.rows for s in self.segments if _waits(s.segment))
        return flat + sum(g.rows for g in self.growing)

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors held in memory (growing rows); segments are mapped."""
        return sum(g.rows * g.vectors.shape[1] * 4 for g in self.growing)


def _waits(segment: Segment) -> bool:
    return segment.kind is IndexKind.FLAT and segment.entry.tier is Tier.HOT
