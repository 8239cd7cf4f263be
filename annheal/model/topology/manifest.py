"""The manifest: the versioned list of what a shard consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Tier(StrEnum):
    """Segments by size and age; `growing` is in memory and never in a manifest."""

    GROWING = "growing"
    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


class IndexKind(StrEnum):
    """What answers searches inside a segment."""

    FLAT = "flat"
    HNSW = "hnsw"


@dataclass(frozen=True, slots=True)
class VectorPartEntry:
    """The vectors of one further model for rows of a segment, as the manifest names them.

    `rows` of the segment have one. `skipped` live rows were given none by a backfill. The checksum
    is that of `part.json`, which has those of the other files.
    """

    part_id: str
    model: str
    index_kind: IndexKind
    rows: int
    size_bytes: int
    meta_checksum: str
    created_at_s: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment as the manifest names it.

    `meta_checksum` is the xxh3-128 hex digest of its `segment.json`, which in turn holds the
    checksum of every other file, so one flipped byte anywhere is found at load (INV-5).
    Sequences are the smallest and largest row sequence inside. `lacking` rows have no vector of
    `model`, that of its own index; `parts` are the vectors of other models, one part each.
    """

    segment_id: str
    tier: Tier
    model: str
    index_kind: IndexKind
    rows: int
    size_bytes: int
    meta_checksum: str
    min_sequence: int
    max_sequence: int
    generation: int = 0
    created_at_s: float = 0.0
    lacking: int = 0
    parts: tuple[VectorPartEntry, ...] = ()

    def part_of(self, model: str) -> VectorPartEntry | None:
        """Return the part with the vectors of `model`; None: there is none."""
        return next((part for part in self.parts if part.model == model), None)


@dataclass(frozen=True, slots=True)
class DeleteVectorEntry:
    """A checkpointed delete vector: object key, xxh3-128 of the object, and dead rows in it."""

    segment_id: str
    key: str
    checksum: str
    dead_rows: int


@dataclass(frozen=True, slots=True)
class CollectedObjects:
    """Objects of a shard that garbage collection deletes, or has deleted.

    Stored under `collected/<collection_id>/<shard>` before the first of them is deleted, and only
    if the manifest is still the one that does not reference them. The owner stores a manifest only
    if this value has not changed since it knew that the objects of the manifest are not in it. So
    a manifest never references an object that is deleted, however short the grace period is.

    `units` are prefixes of segments and vector parts (with the slash at the end) and keys of delete
    vectors. A unit
    stays in it until a later round, which finds the unit in no listing any more, stores others.
    """

    collection_id: str
    shard: int
    units: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One shard's state on durable storage, stored under `manifests/<collection_id>/<shard>`.

    Every row of a WAL slot <= `checkpoint_slot` is in a segment or dead; recovery loads the
    segments with their delete vectors and replays the slots after it. `last_sequence` is the
    last sequence used at the checkpoint. `epoch` is that of the owner who wrote this version;
    `version` counts changes.
    """

    collection_id: str
    shard: int
    version: int = 0
    epoch: int = 0
    checkpoint_slot: int = -1
    last_sequence: int = 0
    segments: tuple[SegmentEntry, ...] = field(default_factory=tuple)
    delete_vectors: tuple[DeleteVectorEntry, ...] = field(default_factory=tuple)
