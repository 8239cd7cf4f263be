"""Writes and reads by id between coordinator and shard node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from annheal.model.filter import Filter
from annheal.model.records import (
    EVERYTHING,
    Float32Matrix,
    Projection,
    RecordBatch,
    RecordPatch,
    RecordSet,
    Versions,
)
from annheal.model.search import Consistency

ANY_VERSION = -1
"""As a wanted version: there is no condition."""
NO_RECORD = 0
"""As a version: there is no record."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """Insert or wholly replace the records of `batch`; ids are unique within it (last one won).

    `if_versions` (n,): a record is written only while its version is the wanted one (`NO_RECORD`:
    while it does not exist). So too below.
    """

    batch: RecordBatch
    if_versions: Versions | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Replace parts of the records that exist; ids are unique within `patch`."""

    patch: RecordPatch
    if_versions: Versions | None = None


@dataclass(frozen=True, slots=True)
class TextRecords:
    """Rows to write that have no vectors yet: n ids, texts, attributes and payloads.

    Without `texts` the source of the collection's model gives them. `by_row` says whether they
    came row by row, for messages.
    """

    ids: pa.StringArray
    texts: tuple[str, ...] | None
    attributes: pa.RecordBatch
    payloads: pa.BinaryArray
    by_row: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def with_vectors(self, vectors: Float32Matrix) -> RecordBatch:
        """Return the rows with their vectors (n, d)."""
        return RecordBatch(
            ids=self.ids, vectors=vectors, attributes=self.attributes, payloads=self.payloads
        )

    def place_of_vectors(self, row: int) -> str:
        """Return the caller's word for the vectors of a row."""
        return f"records[{row}].vectors" if self.by_row else f"vectors[{row}]"

    def place(self, row: int) -> str:
        """Return the caller's word for the text of a row."""
        if self.texts is None:
            return f"records[{row}]"
        return f"records[{row}].text" if self.by_row else f"texts[{row}]"


@dataclass(frozen=True, slots=True)
class DeleteIds:
    """Delete by id; unknown ids are no error."""

    ids: tuple[str, ...]
    if_versions: Versions | None = None


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Delete every record that matches, as of the moment the write is ordered."""

    filter: Filter


WriteOperation: TypeAlias = Upsert | Update | DeleteIds | DeleteWhere


def depends_on_records(operation: WriteOperation) -> bool:
    """Return whether the records that exist decide what `operation` writes."""
    if isinstance(operation, Upsert | DeleteIds):
        return operation.if_versions is not None
    return True


def is_repeatable(operation: WriteOperation) -> bool:
    """Return whether `operation` may be sent again when nobody knows if it took effect.

    A conditional one would find that its records have the versions that it gave them itself.
    """
    return isinstance(operation, DeleteWhere) or operation.if_versions is None


@dataclass(frozen=True, slots=True)
class VersionConflict:
    """A record that was not written: its version is `version`, another one than wanted.

    `NO_RECORD`: it does not exist.
    """

    id: str
    version: int


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

    `sequence` is the shard's sequence after it; `upserted` counts records written, updated ones
    included, and `deleted` those that existed. `missing` are ids to update that do not exist, and
    `conflicts` the records whose versions are not the wanted ones: nothing of either was written.
    """

    sequence: int
    upserted: int = 0
    deleted: int = 0
    missing: tuple[str, ...] = ()
    conflicts: tuple[VersionConflict, ...] = ()


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
