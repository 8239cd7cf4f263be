"""Writes and reads by id between coordinator and shard node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from annheal.model.filter import Filter
from annheal.model.measures.recall import RECALL_UNKNOWN
from annheal.model.records import EVERYTHING, Projection, RecordBatch, RecordSet
from annheal.model.search import Consistency


@dataclass(frozen=True, slots=True)
class Upsert:
    """Insert or wholly replace the records of `batch`; ids are unique within it (last one won)."""

    batch: RecordBatch


@dataclass(frozen=True, slots=True)
class DeleteIds:
    """Delete by id; unknown ids are no error."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Delete every record that matches, as of the moment the write is ordered."""

    filter: Filter


WriteOperation: TypeAlias = Upsert | DeleteIds | DeleteWhere


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One operation on one shard, addressed to its owner."""

    collection_id: str
    shard: int
    operation: WriteOperation
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class WriteAnswer:
    """Durable and visible.

    `sequence` is the shard's sequence after it; `deleted` counts records that existed.
    """

    sequence: int
    upserted: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class GetRequest:
    """Read records by id from one shard; ids that do not exist are left out of the answer."""

    collection_id: str
    shard: int
    ids: tuple[str, ...]
    projection: Projection = EVERYTHING
    consistency: Consistency = Consistency.EVENTUAL
    min_sequence: int = 0


@dataclass(frozen=True, slots=True)
class CountRequest:
    """Count the live records of one shard that match `filter` (all when None)."""

    collection_id: str
    shard: int
    filter: Filter | None = None
    consistency: Consistency = Consistency.EVENTUAL
    min_sequence: int = 0


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """Read one page of a shard in the order of (64-bit id hash, id).

    `after_hash`/`after_id` name the last record seen (exclusive); a scan that follows them sees
    every record that lived throughout exactly once, whatever compaction does meanwhile.
    """

    collection_id: str
    shard: int
    rows_max: int
    after_hash: int = -1
    after_id: str = ""
    filter: Filter | None = None
    projection: Projection = EVERYTHING


@dataclass(frozen=True, slots=True)
class ScanPage:
    """One page; `last_hash`/`last_id` go into the next request unless `finished`."""

    records: RecordSet
    last_hash: int
    last_id: str
    finished: bool


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One segment as a node serves it.

    `recall` is what live queries measured, in the band that is worst off (-1: not measured), `ef`
    what that band is searched with (0: no graph). `rebuild`: recall is below the objective, and a
    wider search is not allowed or does not help. `stuck`: so it is, and a rebuild did not help.
    `visited` is how many rows a live query without a filter compares (0: not measured), and
    `visited_baseline` how many it did when the segment was built (0: not known). `built_for` is why
    it was built, empty for a flushed segment.
    """

    shard: int
    segment_id: str
    tier: str
    model: str
    index_kind: str
    rows: int
    dead_rows: int
    size_bytes: int
    generation: int
    created_at_s: float
    min_sequence: int
    max_sequence: int
    recall: float = RECALL_UNKNOWN
    ef: int = 0
    rebuild: bool = False
    stuck: bool = False
    visited: float = 0.0
    visited_baseline: float = 0.0
    built_for: str = ""


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard as a node serves it."""

    collection_id: str
    shard: int
    node_id: str
    phase: str
    epoch: int
    live_rows: int
    dead_rows: int
    unindexed_rows: int
    applied_sequence: int
    wal_slots: int
    memory_bytes: int
    segments: tuple[SegmentState, ...] = field(default_factory=tuple)
    error: str = ""
