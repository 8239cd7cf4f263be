"""What a read sees: an immutable view of a shard, swapped as a whole after every change."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from operator import is_ as _is

import numpy as np
import numpy.typing as npt

from annheal.model.topology.manifest import IndexKind, Tier
from annheal.segment import DeleteVector, Segment
from annheal.shard_node.rows.growing import GrowingView


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment and its dead rows as of one moment."""

    segment: Segment
    deletes: DeleteVector
    _derived: dict[str, SegmentView] = field(default_factory=dict, compare=False, repr=False)

    def of_model(self, model: str) -> SegmentView | None:
        """Return the rows that have a vector of `model`, as searched by it; None: none has."""
        segment = self.segment
        if model == segment.meta.model.name and not len(segment.lacking_rows):
            return self
        found = self._derived.get(model)
        if found is None and (model == segment.meta.model.name or model in segment.parts):
            # Made twice if two threads come at once: it is the same.
            found = self._derived[model] = self._read_by(model)
        return found

    def _read_by(self, model: str) -> SegmentView:
        part = self.segment.parts.get(model)
        if part is None:
            deletes = self.deletes.with_dead(self.segment.lacking_rows)
            return SegmentView(self.segment, deletes)
        deletes = DeleteVector.empty(part.rows)
        if self.deletes.dead_count:
            dead = self.deletes.is_dead(part.base_rows)
            deletes = deletes.with_dead(np.flatnonzero(dead))
        return SegmentView(part, deletes)

    def without_model(self, model: str) -> SegmentView:
        """Return the segment in which all rows with a vector of `model` are dead."""
        key = f"\0{model}"  # no name of a model
        found = self._derived.get(key)
        if found is None:
            found = self._derived[key] = SegmentView(
                self.segment, self.deletes.with_dead(self._rows_of(model))
            )
        return found

    def _rows_of(self, model: str) -> npt.NDArray[np.int64]:
        """Return the rows of the segment that have a vector of `model`."""
        segment = self.segment
        part = segment.parts.get(model)
        if part is not None:
            return part.base_rows
        if model != segment.meta.model.name:
            return np.empty(0, dtype=np.int64)
        return np.setdiff1d(np.arange(segment.rows), segment.lacking_rows, assume_unique=True)

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
    _derived: dict[str, ShardView] = field(default_factory=dict, compare=False, repr=False)

    def of_model(self, model: str) -> ShardView:
        """Return the records that have a vector of `model`, as searched by it."""
        found = self._derived.get(model)
        if found is None:
            segments = tuple(
                view for held in self.segments if (view := held.of_model(model)) is not None
            )
            growing = tuple(
                one for rows in self.growing if (one := rows.of_model(model)) is not None
            )
            same = all(map(_is, segments, self.segments)) and all(map(_is, growing, self.growing))
            complete = (len(segments), len(growing)) == (len(self.segments), len(self.growing))
            found = self if same and complete else ShardView(segments, growing, self.sequence)
            self._derived[model] = found
        return found

    def without_model(self, model: str) -> ShardView:
        """Return the records that have no vector of `model`."""
        return ShardView(
            tuple(held.without_model(model) for held in self.segments),
            tuple(held.without_model(model) for held in self.growing),
            self.sequence,
        )

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
        return sum(g.memory_bytes for g in self.growing)


def _waits(segment: Segment) -> bool:
    return segment.kind is IndexKind.FLAT and segment.entry.tier is Tier.HOT
