"""The service of records."""

from __future__ import annotations

import time

from annheal.coordinator.app import Coordinator
from annheal.model.collection import Collection
from annheal.model.search import Consistency
from annheal.model.session import SessionToken
from annheal.rpc.server import Context, deadline_of
from annheal.runtime.metrics import Metrics
from annheal.v1 import records_pb2
from annheal.wire import records as wire_records
from annheal.wire.session import encode_session


class RecordServicer:
    """`annheal.v1.RecordService`."""

    def __init__(self, coordinator: Coordinator, metrics: Metrics) -> None:
        self._coordinator = coordinator
        self._metrics = metrics

    async def Upsert(
        self, request: records_pb2.UpsertRequest, context: Context
    ) -> records_pb2.UpsertResponse:
        """Insert or replace records."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        deadline = deadline_of(context)
        batch = wire_records.decode_upsert(request, collection=collection)
        batch = await self._coordinator.texts.records(collection, batch, deadline=deadline)
        outcome = await self._coordinator.writes.upsert(collection, batch, deadline=deadline)
        self._wrote(collection, "upsert", outcome.upserted, began_s)
        session = encode_session(outcome.session)
        return records_pb2.UpsertResponse(upserted=outcome.upserted, session=session)

    async def Update(
        self, request: records_pb2.UpdateRequest, context: Context
    ) -> records_pb2.UpdateResponse:
        """Replace parts of records."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        patch, if_versions = wire_records.decode_update(request, collection=collection)
        outcome = await self._coordinator.writes.update(
            collection, patch, if_versions=if_versions, deadline=deadline_of(context)
        )
        self._wrote(collection, "update", outcome.upserted, began_s)
        return records_pb2.UpdateResponse(
            updated=outcome.upserted,
            session=encode_session(outcome.session),
            missing=outcome.missing,
            conflicts=wire_records.encode_conflicts(outcome.conflicts),
        )

    async def UpsertIf(
        self, request: records_pb2.UpsertIfRequest, context: Context
    ) -> records_pb2.UpsertIfResponse:
        """Insert or replace the records that have the wanted versions."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.upsert.collection)
        deadline = deadline_of(context)
        batch = wire_records.decode_upsert(request.upsert, collection=collection)
        outcome = await self._coordinator.writes.upsert(
            collection,
            await self._coordinator.texts.records(collection, batch, deadline=deadline),
            if_versions=wire_records.decode_versions(request.if_versions),
            deadline=deadline,
        )
        self._wrote(collection, "upsert", outcome.upserted, began_s)
        return records_pb2.UpsertIfResponse(
            upserted=outcome.upserted,
            session=encode_session(outcome.session),
            conflicts=wire_records.encode_conflicts(outcome.conflicts),
        )

    async def DeleteIf(
        self, request: records_pb2.DeleteIfRequest, context: Context
    ) -> records_pb2.DeleteIfResponse:
        """Delete the records that have the wanted versions."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        outcome = await self._coordinator.writes.delete_ids(
            collection,
            list(request.ids),
            if_versions=wire_records.decode_versions(request.if_versions),
            deadline=deadline_of(context),
        )
        self._wrote(collection, "delete", outcome.deleted, began_s)
        return records_pb2.DeleteIfResponse(
            deleted=outcome.deleted,
            session=encode_session(outcome.session),
            conflicts=wire_records.encode_conflicts(outcome.conflicts),
        )

    async def DeleteByIds(
        self, request: records_pb2.DeleteByIdsRequest, context: Context
    ) -> records_pb2.DeleteByIdsResponse:
        """Delete by id."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        outcome = await self._coordinator.writes.delete_ids(
            collection, list(request.ids), deadline=deadline_of(context)
        )
        self._wrote(collection, "delete", outcome.deleted, began_s)
        session = encode_session(outcome.session)
        return records_pb2.DeleteByIdsResponse(deleted=outcome.deleted, session=session)

    async def DeleteByFilter(
        self, request: records_pb2.DeleteByFilterRequest, context: Context
    ) -> records_pb2.DeleteByFilterResponse:
        """Delete what matches."""
        began_s = time.perf_counter()
        collection = await self._coordinator.collections.get(request.collection)
        outcome = await self._coordinator.writes.delete_where(
            collection, wire_records.decode_delete_where(request), deadline=deadline_of(context)
        )
        self._wrote(collection, "delete_where", outcome.deleted, began_s)
        session = encode_session(outcome.session)
        return records_pb2.DeleteByFilterResponse(deleted=outcome.deleted, session=session)

    async def Get(
        self, request: records_pb2.GetRequest, context: Context
    ) -> records_pb2.GetResponse:
        """Read by id."""
        collection = await self._coordinator.collections.get(request.collection)
        read = wire_records.decode_get(request, collection_id=collection.id)
        found = await self._coordinator.reads.get(
            collection,
            read.ids,
            deadline=deadline_of(context),
            projection=read.projection,
            consistency=read.consistency,
            min_sequences=read.min_sequences,
        )
        session = None
        if read.consistency is not Consistency.EVENTUAL and read.min_sequences:
            session = SessionToken(collection.id, read.min_sequences)
        return wire_records.encode_get_response(found, model=collection.model.name, session=session)

    async def Count(
        self, request: records_pb2.CountRequest, context: Context
    ) -> records_pb2.CountResponse:
        """Count what matches."""
        collection = await self._coordinator.collections.get(request.collection)
        read = wire_records.decode_count(request, collection_id=collection.id)
        count = await self._coordinator.reads.count(
            collection,
            deadline=deadline_of(context),
            filter=read.filter,
            consistency=read.consistency,
            min_sequences=read.min_sequences,
        )
        return records_pb2.CountResponse(count=count)

    async def Scan(
        self, request: records_pb2.ScanRequest, context: Context
    ) -> records_pb2.ScanResponse:
        """Read one page."""
        collection = await self._coordinator.collections.get(request.collection)
        scan = wire_records.decode_scan(request)
        page = await self._coordinator.reads.scan(
            collection,
            rows_max=scan.rows_max,
            deadline=deadline_of(context),
            cursor=scan.cursor,
            filter=scan.filter,
            projection=scan.projection,
        )
        return wire_records.encode_scan_response(
            page.records, model=collection.model.name, next_cursor=page.cursor
        )

    def _wrote(self, collection: Collection, operation: str, rows: int, began_s: float) -> None:
        self._metrics.observe_write(
            collection.name, operation, rows=rows, duration_s=time.perf_counter() - began_s
        )
