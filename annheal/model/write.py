"""Writes and reads by id between coordinator and shard node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from annheal.model.filter import Filter
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
