"""The rows of one shard in memory: which rows exist, which are dead, what a read sees.

No I/O here. The owner's write path, flush and publication change a shard one at a time (they
hold `OwnedShard.mutation`); reads take `view` and never wait.
"""

from __future__ import annotations

from collections.abc import Collection as AbstractCollection
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from annheal.errors import InvariantViolation
from annheal.model.collection import Collection
from annheal.segment import Segment
from annheal.shard_node.rows.growing import GrowingSegment
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shards.routing import hash_ids
from annheal.shards.wal import UpsertEntry, WalEntry

LAST_WRITES_BYTES = 16 << 20
"""Vectors of one log object, which may come into a growing segment that is nearly full."""


class Shard:
    """Segments, sealed segments that wait for their flush, and the growing one."""

    def __init__(self, collection: Collection, number: int) -> None:
        self.collection = collection
        self.number = number
        self._segments: list[SegmentView] = []
        self._sealed: list[GrowingSegment] = []
        self._growing = _growing_segment(collection)
        self.sequence = 0
        self.slot = -1
        self._start_slot = -1
        self.view = ShardView()

    def install(
        self, segments: Sequence[SegmentView], *, last_sequence: int, checkpoint_slot: int
    ) -> None:
        """Start from the state of a manifest."""
        self._segments = list(segments)
        self.sequence = last_sequence
        self.slot = checkpoint_slot
        self._start_slot = checkpoint_slot
        self._growing.last_slot = checkpoint_slot
        self._growing.last_sequence = last_sequence
        self._refresh()

    def apply(self, entries: Sequence[WalEntry], *, slot: int, last_sequence: int) -> list[int]:
        """Apply one log object; return how many live rows each entry replaced or deleted.

        Nothing of it is visible before all of it is (the view is swapped once).
        """
        if slot != self.slot + 1:
            raise InvariantViolation(f"log slot {slot} applied after slot {self.slot}")
        killed = [self._apply_entry(entry) for entry in entries]
        self.slot = slot
        self.sequence = max(self.sequence, last_sequence)
        self._growing.last_slot = slot
        self._growing.last_sequence = self.sequence
        if self._is_full():
            self._seal()
        self._refresh()
        return killed

    def release(self) -> None:
        """Let go of all rows; whoever holds a view keeps it. The shard must not be used again."""
        self._segments, self._sealed = [], []
        self._growing = _growing_segment(self.collection)
        self.view = ShardView()

    def _is_full(self) -> bool:
        settings = self.collection.settings
        return (
            self._growing.rows >= settings.seal_rows_max
            or self._growing.size_bytes >= settings.seal_bytes_max
        )

    def _apply_entry(self, entry: WalEntry) -> int:
        if isinstance(entry, UpsertEntry):
            killed = self._kill(entry.batch.id_list(), entry.first_sequence)
            self._growing.append(entry.batch, first_sequence=entry.first_sequence)
            return killed
        return self._kill(entry.id_list(), entry.sequence)

    def _kill(self, ids: list[str], sequence: int) -> int:
        """Mark every row of `ids` older than `sequence` dead."""
        killed = 0
        for growing in (*self._sealed, self._growing):
            rows = growing.find(ids)
            rows = rows[rows >= 0]
            if len(rows):
                killed += growing.kill(rows, before_sequence=sequence)
        if self._segments:
            hashes = hash_ids(ids)
            for position, held in enumerate(self._segments):
                rows = held.segment.find(ids, hashes)
                rows = rows[rows >= 0]
                rows = rows[held.segment.sequences[rows] < sequence]
                if not len(rows):
                    continue
                deletes = held.deletes.with_dead(rows)
                killed += deletes.dead_count - held.deletes.dead_count
                self._segments[position] = SegmentView(held.segment, deletes)
        return killed

    @property
    def growing_rows(self) -> int:
        """Rows in the growing segment, dead ones included."""
        return self._growing.rows

    @property
    def sealed(self) -> tuple[GrowingSegment, ...]:
        """Sealed segments that wait for their flush, oldest first."""
        return tuple(self._sealed)

    def seal(self) -> None:
        """Close the growing segment at the last applied log slot, if it holds anything of the log.

        It may hold deletes alone: then it has no rows, and its flush only moves the checkpoint.
        """
        if self.slot > self._start_slot:
            self._seal()
            self._refresh()

    def _seal(self) -> None:
        self._sealed.append(self._growing)
        self._growing = _growing_segment(self.collection)
        self._growing.last_slot = self.slot
        self._growing.last_sequence = self.sequence
        self._start_slot = self.slot

    def replace_sealed(self, flushed: Sequence[tuple[GrowingSegment, SegmentView | None]]) -> None:
        """Put flushed segments in the place of the sealed ones that they were written from."""
        gone = [sealed for sealed, _ in flushed]
        if self._sealed[: len(gone)] != gone:
            raise InvariantViolation("sealed segments were flushed out of order")
        self._sealed = self._sealed[len(gone) :]
        self._segments += [view for _, view in flushed if view is not None]
        self._refresh()

    def replace_segments(
        self, sources: AbstractCollection[str], output: SegmentView | None
    ) -> None:
        """Put a compaction's output in the place of its sources."""
        kept = [view for view in self._segments if view.segment.id not in sources]
        if len(kept) != len(self._segments) - len(sources):
            raise InvariantViolation(f"not every source of {sorted(sources)} is held")
        self._segments = kept if output is None else [*kept, output]
        self._refresh()

    def replace_part(self, segment: Segment) -> None:
        """Put `segment`, which differs from the present one in its vector parts, in its place."""
        places = [
            place for place, held in enumerate(self._segments) if held.segment.id == segment.id
        ]
        if not places:
            raise InvariantViolation(f"segment {segment.id} is not held")
        held = self._segments[places[0]]
        self._segments[places[0]] = SegmentView(segment, held.deletes)
        self._refresh()

    def _refresh(self) -> None:
        growing = [g.view() for g in (*self._sealed, self._growing) if g.rows]
        self.view = ShardView(tuple(self._segments), tuple(growing), self.sequence)


def _growing_segment(collection: Collection) -> GrowingSegment:
    """Return an empty one that expects as many rows as it is sealed at, and its last writes."""
    model, settings = collection.usable_models[0], collection.settings
    row_bytes = 4 * model.dimension
    full = min(settings.seal_rows_max, settings.seal_bytes_max // row_bytes)
    return GrowingSegment(
        model.dimension,
        sealed_at=full + LAST_WRITES_BYTES // row_bytes,
        model=model.name,
        unnamed=collection.models[0].name,
    )


def rows_to_kill(
    view: SegmentView, ids: list[str], sequences: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the rows of `view` that hold exactly these (id, sequence) pairs."""
    rows = view.segment.find(ids, hash_ids(ids))
    found = rows >= 0
    rows = rows[found]
    matching: npt.NDArray[np.int64] = rows[view.segment.sequences[rows] == sequences[found]]
    return matching
