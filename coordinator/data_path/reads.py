"""Reads by id, counts and scans: spread over shards, joined, bounded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from annheal.coordinator.data_path.router import Router, check_sequences
from annheal.coordinator.data_path.writes import rows_by_shard
from annheal.errors import (
    AnnhealError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from annheal.filters import validate_filter
from annheal.model.collection import Collection, ModelSpec
from annheal.model.filter import Filter
from annheal.model.limits import GET_IDS_MAX
from annheal.model.records import (
    EVERYTHING,
    Float32Matrix,
    Projection,
    RecordSet,
    lacking,
    take_records,
)
from annheal.model.search import Consistency
from annheal.model.topology.shard import ShardId
from annheal.model.validation import (
    id_array,
    validate_ids,
    validate_page_rows,
    validate_projection,
)
from annheal.model.values.answer_size import IDS_FIX, check_answer_size, records_bytes
from annheal.model.write import CountRequest, GetRequest, ScanPage, ScanRequest
from annheal.rpc.port import ShardNode
from annheal.runtime.deadline import Deadline
from annheal.shards.routing import hash_ids

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.1
_NO_SEQUENCES: Mapping[int, int] = {}
_HASH_MAX = (1 << 64) - 1

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class RecordPage:
    """A page of a scan; `cursor` continues it and is empty after the last page."""

    records: RecordSet
    cursor: str


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    collection_id: str
    shard: int
    after_hash: int
    after_id: str


class Reads:
    """Reads records through the router; at most `requests_max` at a time."""

    def __init__(self, router: Router, *, requests_max: int, shard_calls_max: int) -> None:
        self._router = router
        self._requests_max = requests_max
        self._shard_calls_max = shard_calls_max
        self._requests = 0

    async def get(
        self,
        collection: Collection,
        ids: Sequence[str],
        *,
        deadline: Deadline,
        projection: Projection = EVERYTHING,
        consistency: Consistency = Consistency.EVENTUAL,
        min_sequences: Mapping[int, int] = _NO_SEQUENCES,
    ) -> RecordSet:
        """Return the records that exist, in the order of `ids`, each once however often named.

        Raises `InvalidArgument` with reason ANSWER_TOO_LARGE when they are too many bytes for one
        answer.
        """
        column = id_array(ids)
        validate_ids(column, rows_max=GET_IDS_MAX)
        validate_projection(projection, collection=collection)
        projection = _with_models(projection, collection=collection)
        check_sequences(collection, min_sequences)
        wanted = list(dict.fromkeys(ids))
        groups = rows_by_shard(hash_ids(wanted), shard_count=collection.shard_count)

        def read(shard: int, ids: tuple[str, ...]) -> Coroutine[Any, Any, RecordSet]:
            async def call(node: ShardNode, _: Deadline) -> RecordSet:
                return await node.get(
                    GetRequest(
                        collection_id=collection.id,
                        shard=shard,
                        ids=ids,
                        projection=projection,
                        consistency=consistency,
                        min_sequence=min_sequences.get(shard, 0),
                    )
                )

            return self._router.call(ShardId(collection.id, shard), call, deadline=deadline)

        parts = await self._all(
            [
                read(shard, tuple(wanted if rows is None else (wanted[row] for row in rows)))
                for shard, rows in groups.items()
            ]
        )
        total = sum(map(records_bytes, parts))
        check_answer_size(total, field="ids", fix=IDS_FIX)
        return _in_order(parts, wanted)

    async def vectors(
        self,
        collection: Collection,
        ids: Sequence[str],
        *,
        model: ModelSpec,
        deadline: Deadline,
        consistency: Consistency = Consistency.EVENTUAL,
        min_sequences: Mapping[int, int] = _NO_SEQUENCES,
    ) -> Float32Matrix:
        """Return the stored vectors of `ids` (n, d), row by row, as queries for a search by id.

        Raises `NotFound` that names the first id that does not exist or has none of `model`.
        """
        found = await self.get(
            collection,
            ids,
            deadline=deadline,
            projection=Projection(attributes=(), vector=True, models=(model.name,)),
            consistency=consistency,
            min_sequences=min_sequences,
        )
        rows = {record_id: row for row, record_id in enumerate(found.ids)}
        for record_id in ids:
            if record_id not in rows:
                raise NotFound(
                    f"collection {collection.name!r} has no record {record_id!r}",
                    reason="RECORD_NOT_FOUND",
                    metadata={"collection": collection.name, "id": record_id},
                )
        assert found.vectors is not None
        queries = np.ascontiguousarray(found.vectors[[rows[record_id] for record_id in ids]])
        absent = lacking(queries)
        if absent.any():
            record_id = ids[int(absent.argmax())]
            raise NotFound(
                f"record {record_id!r} of collection {collection.name!r} has no vector of model"
                f" {model.name!r}",
                reason="VECTOR_NOT_FOUND",
                metadata={"collection": collection.name, "id": record_id, "model": model.name},
            )
        return queries

    async def wait_for_model(
        self, collection: Collection, model: str, *, deadline: Deadline
    ) -> bool:
        """Return once the owners of all shards know `model`; False if some do not in time.

        Nodes hear of a new model from the metadata store, moments after the coordinator did.
        """

        def ask(shard: int) -> Coroutine[Any, Any, RecordSet]:
            request = GetRequest(
                collection_id=collection.id,
                shard=shard,
                ids=(),
                projection=Projection(vector=True, models=(model,)),
            )

            async def call(node: ShardNode, _: Deadline) -> RecordSet:
                try:
                    return await node.get(request)
                except InvalidArgument as error:
                    raise Unavailable(f"shard {shard}: {error.message}") from error

            return self._router.call(ShardId(collection.id, shard), call, deadline=deadline)

        try:
            await self._all([ask(shard) for shard in range(collection.shard_count)])
        except AnnhealError as error:
            _log.warning("some nodes may not know model %s yet: %s", model, error.message)
            return False
        return True

    async def count(
        self,
        collection: Collection,
        *,
        deadline: Deadline,
        filter: Filter | None = None,
        consistency: Consistency = Consistency.EVENTUAL,
        min_sequences: Mapping[int, int] = _NO_SEQUENCES,
    ) -> int:
        """Return how many records match `filter` (all when None), each shard at its own moment."""
        canonical = None if filter is None else validate_filter(filter, collection.schema)
        check_sequences(collection, min_sequences)

        def read(shard: int) -> Coroutine[Any, Any, int]:
            async def call(node: ShardNode, _: Deadline) -> int:
                return await node.count(
                    CountRequest(
                        collection_id=collection.id,
                        shard=shard,
                        filter=canonical,
                        consistency=consistency,
                        min_sequence=min_sequences.get(shard, 0),
                    )
                )

            return self._router.call(ShardId(collection.id, shard), call, deadline=deadline)

        return sum(await self._all([read(shard) for shard in range(collection.shard_count)]))

    async def scan(
        self,
        collection: Collection,
        *,
        rows_max: int,
        deadline: Deadline,
        cursor: str = "",
        filter: Filter | None = None,
        projection: Projection = EVERYTHING,
    ) -> RecordPage:
        """Return the next page; shard by shard, in each by (hash of the id, id).

        A page ends where its shard ends and where its records are large, so it may be short. An
        empty page is only the last one, unless a node looked at many rows that a filter refused.
        """
        validate_page_rows(rows_max)
        validate_projection(projection, collection=collection)
        projection = _with_models(projection, collection=collection)
        canonical = None if filter is None else validate_filter(filter, collection.schema)
        at = decode_cursor(cursor, collection=collection)
        while True:
            page = await self.scan_shard(
                collection,
                ScanRequest(
                    collection_id=collection.id,
                    shard=at.shard,
                    rows_max=rows_max,
                    after_hash=at.after_hash,
                    after_id=at.after_id,
                    filter=canonical,
                    projection=projection,
                ),
                deadline=deadline,
            )
            if not page.finished:
                if len(page.records) or (page.last_hash, page.last_id) == (
                    at.after_hash,
                    at.after_id,
                ):
                    following = _Cursor(collection.id, at.shard, page.last_hash, page.last_id)
                    return RecordPage(page.records, encode_cursor(following))
                at = _Cursor(collection.id, at.shard, page.last_hash, page.last_id)
                continue
            last = at.shard + 1 >= collection.shard_count
            at = _Cursor(collection.id, at.shard + 1, -1, "")
            if last or len(page.records):
                return RecordPage(page.records, "" if last else encode_cursor(at))

    async def scan_shard(
        self, collection: Collection, request: ScanRequest, *, deadline: Deadline
    ) -> ScanPage:
        """Return one page of one shard; `request` was checked before."""

        async def call(node: ShardNode, _: Deadline) -> ScanPage:
            return await node.scan(request)

        shard = ShardId(collection.id, request.shard)
        (page,) = await self._all([self._router.call(shard, call, deadline=deadline)])
        return page

    async def _all(self, work: Sequence[Coroutine[Any, Any, ValueT]]) -> list[ValueT]:
        """Return all results; the first error cancels the rest."""
        if self._requests >= self._requests_max:
            for call in work:
                call.close()
            raise ResourceExhausted(
                f"{self._requests} reads are under way already; the limit is {self._requests_max}",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._requests += 1
        try:
            if len(work) == 1:
                return [await work[0]]
            return await _gather(work, limit=self._shard_calls_max)
        finally:
            self._requests -= 1


def _with_models(projection: Projection, *, collection: Collection) -> Projection:
    """Return `projection` with the models named: a node may not know yet which one serves.

    Nothing is named where there is one model.
    """
    if not projection.vector:
        return projection
    if len(collection.models) == 1:
        return replace(projection, models=())
    return replace(projection, models=projection.models or (collection.model.name,))


async def _gather(work: Sequence[Coroutine[Any, Any, ValueT]], *, limit: int) -> list[ValueT]:
    gate = asyncio.Semaphore(limit)

    async def one(call: Coroutine[Any, Any, ValueT]) -> ValueT:
        async with gate:
            return await call

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for call in work:
            call.close()  # those that had not begun
    return [task.result() for task in tasks]


def encode_cursor(cursor: _Cursor) -> str:
    """Return the cursor as the opaque text that clients send back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def decode_cursor(text: str, *, collection: Collection) -> _Cursor:
    """Return the position that `text` names (empty: the start); raises `InvalidArgument`."""
    if not text:
        return _Cursor(collection.id, 0, -1, "")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(raw, type=_Cursor)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise InvalidArgument.of("cursor", "is not one that a scan returned") from error
    if cursor.collection_id != collection.id:
        raise InvalidArgument.of(
            "cursor", f"belongs to another collection than {collection.name!r}; scan anew"
        )
    if not (0 <= cursor.shard < collection.shard_count and -1 <= cursor.after_hash <= _HASH_MAX):
        raise InvalidArgument.of("cursor", "is not one that a scan returned")
    return cursor


def _in_order(parts: Sequence[RecordSet], wanted: Sequence[str]) -> RecordSet:
    ids = [record_id for part in parts for record_id in part.ids]
    rows = {record_id: row for row, record_id in enumerate(ids)}
    order = [rows[record_id] for record_id in wanted if record_id in rows]
    if len(parts) == 1 and order == list(range(len(ids))):
        return parts[0]
    return take_records(parts, np.array(order, dtype=np.int64))
