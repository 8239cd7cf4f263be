"""What a write comes to: whole rows and ids to delete, as the log has them.

An update, a delete by filter and a write on condition depend on the records that exist when the
write is ordered. They are resolved against a view in which all writes before them are applied, so
the log needs no knowledge of them, and replaying it gives the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.model.collection import ModelSpec
from annheal.model.limits import REQUEST_BYTES_MAX
from annheal.model.records import EVERYTHING, Projection, Versions
from annheal.model.values.answer_size import ANSWER_TOO_LARGE
from annheal.model.write import (
    ANY_VERSION,
    NO_RECORD,
    DeleteIds,
    DeleteWhere,
    Update,
    Upsert,
    VersionConflict,
    WriteAnswer,
    WriteOperation,
)
from annheal.runtime.stop import YieldPoint
from annheal.shard_node.rows.view import ShardView
from annheal.shard_node.search.reads import (
    count_rows,
    get_records,
    live_sequences,
    matching_ids,
)
from annheal.shards.wal import DeleteEntry, UpsertEntry, WalEntry

DELETE_MATCHES_MAX = 1_000_000
"""Records that one delete by filter may match: one log object has all of their ids."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resolved:
    """`entry` for the log, None if nothing is left to write; the rest is for the answer."""

    entry: WalEntry | None
    missing: tuple[str, ...] = ()
    conflicts: tuple[VersionConflict, ...] = ()

    @property
    def size_bytes(self) -> int:
        """About the bytes of the entry in the log."""
        if isinstance(self.entry, UpsertEntry):
            return self.entry.batch.nbytes
        return 0 if self.entry is None else self.entry.ids.nbytes

    def answer(self, *, killed: int, sequence: int) -> WriteAnswer:
        """Return the acknowledgement; `sequence` counts where there is no entry."""
        if self.entry is None:
            return WriteAnswer(sequence, missing=self.missing, conflicts=self.conflicts)
        answer = WriteAnswer(
            self.entry.last_sequence, missing=self.missing, conflicts=self.conflicts
        )
        if isinstance(self.entry, UpsertEntry):
            return replace(answer, upserted=len(self.entry.batch))
        return replace(answer, deleted=killed)


def ids_of(operation: WriteOperation) -> Sequence[str]:
    """Return the ids that `operation` names; none for a delete by filter."""
    match operation:
        case Upsert(batch):
            return batch.id_list()
        case Update(patch):
            return cast("list[str]", patch.ids.to_pylist())
        case DeleteIds(ids):
            return ids
        case DeleteWhere():
            return ()


def resolve(
    operation: WriteOperation,
    view: ShardView,
    *,
    sequence: int,
    yield_point: YieldPoint,
    models: Sequence[ModelSpec] = (),
) -> Resolved:
    """Return what a checked `operation` comes to; its first sequence number is `sequence`.

    `models` are those whose vectors records have, if they are several.

    Raises `FailedPrecondition` for a filter that matches too many records, and `InvalidArgument`
    for an update of records that are too large together.
    """
    match operation:
        case Upsert(batch, None):
            return Resolved(UpsertEntry(sequence, batch))
        case DeleteIds(named, None):
            return Resolved(_delete(sequence, named))
        case DeleteWhere(filter):
            matches = count_rows(view, filter, yield_point=yield_point)
            if matches > DELETE_MATCHES_MAX:
                raise FailedPrecondition(
                    f"the filter matches {matches} records of one shard; one delete takes at most"
                    f" {DELETE_MATCHES_MAX}: delete in narrower slices",
                    reason="TOO_MANY_MATCHES",
                )
            return Resolved(_delete(sequence, matching_ids(view, filter, yield_point=yield_point)))
    ids = ids_of(operation)
    versions = np.maximum(live_sequences(view, ids), NO_RECORD)
    is_wanted = _is_wanted(operation.if_versions, versions)
    conflicts = tuple(
        VersionConflict(ids[row], int(versions[row])) for row in np.flatnonzero(~is_wanted).tolist()
    )
    if isinstance(operation, Update):
        everything = replace(
            EVERYTHING,
            models=tuple(model.name for model in models),
            dimensions=tuple(model.dimension for model in models),
        )
        return _resolved_update(
            operation, view, sequence, yield_point, versions, conflicts, everything
        )
    rows = np.flatnonzero(is_wanted)
    if not len(rows):
        return Resolved(None, conflicts=conflicts)
    if isinstance(operation, Upsert):
        batch = operation.batch if not conflicts else operation.batch.take(rows)
        return Resolved(UpsertEntry(sequence, batch), conflicts=conflicts)
    return Resolved(_delete(sequence, [ids[row] for row in rows.tolist()]), conflicts=conflicts)


def _is_wanted(wanted: Versions | None, versions: Versions) -> npt.NDArray[np.bool_]:
    if wanted is None:
        return np.ones(len(versions), dtype=np.bool_)
    found: npt.NDArray[np.bool_] = (wanted == ANY_VERSION) | (wanted == versions)
    return found


def _resolved_update(
    update: Update,
    view: ShardView,
    sequence: int,
    yield_point: YieldPoint,
    versions: Versions,
    conflicts: tuple[VersionConflict, ...],
    everything: Projection,
) -> Resolved:
    """Return the whole records that an update leads to: the stored ones with the parts of it."""
    ids = ids_of(update)
    is_wanted = _is_wanted(update.if_versions, versions)
    absent = np.flatnonzero(is_wanted & (versions == NO_RECORD))
    missing = tuple(ids[row] for row in absent.tolist())
    rows: Rows = np.flatnonzero(is_wanted & (versions != NO_RECORD))
    if not len(rows):
        return Resolved(None, missing, conflicts)
    patch = update.patch if len(rows) == len(ids) else update.patch.take(rows)
    try:
        records = get_records(
            view,
            tuple(ids[row] for row in rows.tolist()),
            everything,
            yield_point=yield_point,
            bytes_max=REQUEST_BYTES_MAX,
        )
    except InvalidArgument as error:
        raise InvalidArgument(
            f"ids: {len(rows)} records to update hold {error.metadata['answer_bytes']} bytes, the"
            f" limit is {REQUEST_BYTES_MAX}; update fewer a call",
            violations=error.violations,
            reason=ANSWER_TOO_LARGE,
            metadata=error.metadata,
        ) from error
    return Resolved(UpsertEntry(sequence, patch.applied_to(records)), missing, conflicts)


def _delete(sequence: int, ids: Sequence[str]) -> DeleteEntry:
    return DeleteEntry(sequence, pa.array(ids, type=pa.string()))
