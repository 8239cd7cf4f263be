"""Writes: checked, split by shard, sent to the owners, joined into one answer.

A batch that spans shards is not atomic: each shard's part is. When some parts fail the error says
which shards were written, which were not and which are unknown; repeating the whole batch is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.coordinator.data_path.router import Router
from annheal.errors import (
    AnnhealError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.filters import validate_filter
from annheal.model.collection import Collection
from annheal.model.filter import Filter
from annheal.model.limits import WRITE_ROWS_MAX
from annheal.model.records import RecordBatch, RecordPatch, Versions
from annheal.model.session import SessionToken
from annheal.model.topology.shard import ShardId
from annheal.model.validation import (
    id_array,
    validate_batch,
    validate_ids,
    validate_patch,
    validate_versions,
)
from annheal.model.write import (
    NO_RECORD,
    DeleteIds,
    DeleteWhere,
    Update,
    Upsert,
    VersionConflict,
    WriteAnswer,
    WriteOperation,
    WriteRequest,
    is_repeatable,
)
from annheal.rpc.port import ShardNode
from annheal.runtime.deadline import Deadline
from annheal.runtime.offload import Offload
from annheal.shards.routing import hash_ids, shards_of

_RETRY_AFTER_S = 0.2
OFFLOADED_ROWS_MIN = 64
"""Batches from this size on are checked and split on another thread."""


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """A write that is durable and visible on every shard. Reads with `session` see it.

    `missing` and `conflicts` name records that were not written; see `WriteAnswer`.
    """

    upserted: int
    deleted: int
    session: SessionToken
    missing: tuple[str, ...] = ()
    conflicts: tuple[VersionConflict, ...] = ()


class Writes:
    """Writes records through the router; at most `requests_max` at a time."""

    def __init__(
        self, router: Router, *, offload: Offload, requests_max: int, shard_calls_max: int
    ) -> None:
        self._router = router
        self._offload = offload
        self._requests_max = requests_max
        self._shard_calls_max = shard_calls_max
        self._requests = 0

    async def upsert(
        self,
        collection: Collection,
        batch: RecordBatch,
        *,
        if_versions: Versions | None = None,
        deadline: Deadline,
    ) -> WriteOutcome:
        """Insert or replace the records of `batch`; of records with one id the last wins.

        With `if_versions` (n,) an id must not repeat, and a record is written only while it has the
        wanted version (`NO_RECORD`: while it does not exist; `ANY_VERSION`: always).

        Raises `InvalidArgument` that names field and row, `ResourceExhausted` under back-pressure,
        `Unavailable` when nothing was written, and `UnknownOutcome` when something may have been.
        `upserted` counts the records sent, those that a later one in the batch replaced included.
        """
        if len(batch) >= OFFLOADED_ROWS_MIN:
            parts = await self._offload.run(split_upsert, collection, batch, if_versions)
        else:
            parts = split_upsert(collection, batch, if_versions)
        outcome = await self._write(collection, parts, deadline=deadline)
        return outcome if if_versions is not None else replace(outcome, upserted=len(batch))

    async def update(
        self,
        collection: Collection,
        patch: RecordPatch,
        *,
        if_versions: Versions | None = None,
        deadline: Deadline,
    ) -> WriteOutcome:
        """Replace parts of the records that exist; conditions and errors as for `upsert`."""
        if len(patch) >= OFFLOADED_ROWS_MIN:
            parts = await self._offload.run(split_update, collection, patch, if_versions)
        else:
            parts = split_update(collection, patch, if_versions)
        return await self._write(collection, parts, deadline=deadline)

    async def delete_ids(
        self,
        collection: Collection,
        ids: Sequence[str],
        *,
        if_versions: Versions | None = None,
        deadline: Deadline,
    ) -> WriteOutcome:
        """Delete records by id; `deleted` counts those that existed.

        Conditions and errors as for `upsert`.
        """
        column = id_array(ids)
        validate_ids(column, rows_max=WRITE_ROWS_MAX)
        hashes = hash_ids(column)
        keep = _distinct(hashes, column, if_versions, least=NO_RECORD + 1)
        if keep is not None:
            column = column.take(pa.array(keep, type=pa.int64()))
            hashes = hashes[keep]
        texts = [str(one) for one in column.to_pylist()]
        parts: dict[int, WriteOperation] = {
            shard: DeleteIds(
                tuple(texts if rows is None else (texts[row] for row in rows)),
                _of_rows(if_versions, rows),
            )
            for shard, rows in rows_by_shard(hashes, shard_count=collection.shard_count).items()
        }
        return await self._write(collection, parts, deadline=deadline)

    async def delete_where(
        self, collection: Collection, filter: Filter, *, deadline: Deadline
    ) -> WriteOutcome:
        """Delete every record that matches `filter`, on each shard at one moment of its own.

        A repeated try deletes what matches then; `deleted` counts what the last try deleted.
        """
        canonical = validate_filter(filter, collection.schema)
        parts: dict[int, WriteOperation] = {
            shard: DeleteWhere(canonical) for shard in range(collection.shard_count)
        }
        return await self._write(collection, parts, deadline=deadline)

    async def _write(
        self, collection: Collection, parts: Mapping[int, WriteOperation], *, deadline: Deadline
    ) -> WriteOutcome:
        if self._requests >= self._requests_max:
            raise ResourceExhausted(
                f"{self._requests} writes are under way already; the limit is {self._requests_max}",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._requests += 1
        try:
            results = await gather_bounded(
                [
                    self._one(ShardId(collection.id, shard), operation, deadline)
                    for shard, operation in parts.items()
                ],
                limit=self._shard_calls_max,
            )
        finally:
            self._requests -= 1
        answers: dict[int, WriteAnswer] = {}
        failures: dict[int, AnnhealError] = {}
        for shard, result in zip(parts, results, strict=True):
            if isinstance(result, AnnhealError):
                failures[shard] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                answers[shard] = result
        if failures:
            repeatable = all(is_repeatable(operation) for operation in parts.values())
            raise joined_failure(collection, answers, failures, repeatable=repeatable)
        return WriteOutcome(
            upserted=sum(answer.upserted for answer in answers.values()),
            deleted=sum(answer.deleted for answer in answers.values()),
            session=SessionToken(
                collection.id, {shard: answer.sequence for shard, answer in answers.items()}
            ),
            missing=tuple(one for answer in answers.values() for one in answer.missing),
            conflicts=tuple(one for answer in answers.values() for one in answer.conflicts),
        )

    async def _one(
        self, shard: ShardId, operation: WriteOperation, deadline: Deadline
    ) -> WriteAnswer:
        async def call(node: ShardNode, until: Deadline) -> WriteAnswer:
            return await node.write(
                WriteRequest(
                    collection_id=shard.collection_id,
                    shard=shard.number,
                    operation=operation,
                    timeout_s=until.remaining_s,
                )
            )

        return await self._router.call(
            shard, call, deadline=deadline, mutation=True, repeatable=is_repeatable(operation)
        )


def split_upsert(
    collection: Collection, batch: RecordBatch, if_versions: Versions | None = None
) -> dict[int, WriteOperation]:
    """Return the checked batch by shard, without the records that a later one replaces."""
    batch = validate_batch(batch, collection=collection)
    hashes = hash_ids(batch.ids)
    keep = _distinct(hashes, batch.ids, if_versions, least=NO_RECORD)
    if keep is not None:
        batch, hashes = batch.take(keep), hashes[keep]
    return {
        shard: Upsert(batch if rows is None else batch.take(rows), _of_rows(if_versions, rows))
        for shard, rows in rows_by_shard(hashes, shard_count=collection.shard_count).items()
    }


def split_update(
    collection: Collection, patch: RecordPatch, if_versions: Versions | None = None
) -> dict[int, WriteOperation]:
    """Return the checked patch by shard, without the rows that a later one replaces."""
    patch = validate_patch(patch, collection=collection)
    hashes = hash_ids(patch.ids)
    keep = _distinct(hashes, patch.ids, if_versions, least=NO_RECORD + 1)
    if keep is not None:
        patch, hashes = patch.take(keep), hashes[keep]
    return {
        shard: Update(patch if rows is None else patch.take(rows), _of_rows(if_versions, rows))
        for shard, rows in rows_by_shard(hashes, shard_count=collection.shard_count).items()
    }


def _distinct(
    hashes: npt.NDArray[np.uint64],
    ids: pa.StringArray,
    if_versions: Versions | None,
    *,
    least: int,
) -> npt.NDArray[np.int64] | None:
    """Return `last_of_each`; raises `InvalidArgument` for conditions that do not fit the ids."""
    keep = last_of_each(hashes, ids)
    if if_versions is not None:
        validate_versions(if_versions, rows=len(ids), least=least)
        if keep is not None:
            raise InvalidArgument.of(
                "ids", "an id is repeated; with if_versions name each id once a call"
            )
    return keep


def _of_rows(versions: Versions | None, rows: npt.NDArray[np.int64] | None) -> Versions | None:
    return versions if versions is None or rows is None else versions[rows]


def last_of_each(
    hashes: npt.NDArray[np.uint64], ids: pa.StringArray
) -> npt.NDArray[np.int64] | None:
    """Return the rows, ascending, that are the last with their id; None when no id repeats."""
    if len(np.unique(hashes)) == len(hashes):
        return None
    last = {record_id: row for row, record_id in enumerate(ids.to_pylist())}
    if len(last) == len(hashes):
        return None
    return np.sort(np.fromiter(last.values(), dtype=np.int64, count=len(last)))


def rows_by_shard(
    hashes: npt.NDArray[np.uint64], *, shard_count: int
) -> dict[int, npt.NDArray[np.int64] | None]:
    """Return the rows of each shard concerned, in the order given; None stands for all rows."""
    shards = shards_of(hashes, shard_count=shard_count)
    first = int(shards[0])
    if shard_count == 1 or bool((shards == first).all()):
        return {first: None}
    order = np.argsort(shards, kind="stable")
    present, starts = np.unique(shards[order], return_index=True)
    groups = np.split(order, starts[1:])
    return {int(shard): rows for shard, rows in zip(present, groups, strict=True)}


def joined_failure(
    collection: Collection,
    answers: Mapping[int, WriteAnswer],
    failures: Mapping[int, AnnhealError],
    *,
    repeatable: bool = True,
) -> AnnhealError:
    """Return the one error for a write of which some shards failed.

    What is wrong whatever the state (and not retryable) comes first. When nothing was written, the
    failure itself; otherwise `UnknownOutcome`, because part of the batch is there.
    """
    for error in failures.values():
        if not error.retryable:
            return error
    unknown = [s for s, error in failures.items() if isinstance(error, UnknownOutcome)]
    failed = [s for s in failures if s not in unknown]
    first = failures[unknown[0]] if unknown else failures[failed[0]]
    if len(failures) == 1 and not answers:
        return first
    facts = {
        "collection": collection.name,
        "written_shards": _listed(answers),
        "unknown_shards": _listed(unknown),
        "failed_shards": _listed(failed),
    }
    retry_after_s = max((e.retry_after_s or 0.0 for e in failures.values()), default=0.0) or None
    if not answers and not unknown:
        text = f"nothing was written; shards {_listed(failed)}: {first.message}"
        if isinstance(first, ResourceExhausted):
            return ResourceExhausted(text, metadata=facts, retry_after_s=retry_after_s)
        return Unavailable(text, metadata=facts, retry_after_s=retry_after_s)
    parts = [
        f"shards {_listed(shards)} {state}"
        for shards, state in (
            (list(answers), "were written"),
            (failed, "were not"),
            (unknown, "are unknown"),
        )
        if shards
    ]
    fix = (
        "repeat the whole request: writes are idempotent by id"
        if repeatable
        else "what was written has another version now: read the records before you try again"
    )
    return UnknownOutcome(
        f"{', '.join(parts)}; {fix} (first error: {first.message})",
        metadata=facts,
        retry_after_s=retry_after_s,
    )


async def gather_bounded(
    work: Sequence[Coroutine[Any, Any, WriteAnswer]], *, limit: int
) -> list[WriteAnswer | BaseException]:
    """Run `work`, at most `limit` at a time; return results and errors in the order given."""
    if len(work) == 1:
        try:
            return [await work[0]]
        except AnnhealError as error:
            return [error]
    gate = asyncio.Semaphore(limit)

    async def one(call: Coroutine[Any, Any, WriteAnswer]) -> WriteAnswer:
        async with gate:
            return await call

    return await asyncio.gather(*(one(call) for call in work), return_exceptions=True)


def _listed(shards: Sequence[int] | Mapping[int, object]) -> str:
    return ", ".join(str(shard) for shard in sorted(shards))
