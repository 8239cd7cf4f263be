"""Between coordinator and shard node: requests and answers of the port `ShardNode`.

Scores stay as they are inside (higher = better); rows travel as Arrow IPC streams.
"""

from __future__ import annotations

from typing import Protocol, assert_never

import numpy as np

from annheal.errors import InvalidArgument
from annheal.model.limits import (
    DIMENSION_MAX,
    GET_IDS_MAX,
    SCAN_PAGE_ROWS_MAX,
    WRITE_ROWS_MAX,
)
from annheal.model.measures.recall_audit import checked_audit_queries
from annheal.model.measures.shard_queries import Numbers
from annheal.model.names import checked_name, checked_shard
from annheal.model.records import IDS_ONLY, Projection, RecordSet
from annheal.model.search import Consistency, SearchAnswer, SearchOptions, SearchRequest
from annheal.model.topology.checks import check_task, checked_shards
from annheal.model.topology.cluster import TaskStatus
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier, VectorPartEntry
from annheal.model.topology.shard import ShardId
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask
from annheal.model.write import (
    CountRequest,
    DeleteIds,
    DeleteWhere,
    GetRequest,
    ScanPage,
    ScanRequest,
    Update,
    Upsert,
    WriteAnswer,
    WriteOperation,
    WriteRequest,
)
from annheal.v1 import internal_pb2 as pb
from annheal.wire.admin import decode_segment, decode_task, encode_segment, encode_task
from annheal.wire.arrow_ipc import (
    decode_batch,
    decode_columns,
    decode_patch,
    encode_batch,
    encode_columns,
    encode_patch,
)
from annheal.wire.columns import decode_projection, encode_projection
from annheal.wire.enums import CONSISTENCY, INDEX_KIND, SHARD_PHASE, TIER
from annheal.wire.filters import decode_filter, encode_filter
from annheal.wire.records import decode_conflicts, encode_conflicts
from annheal.wire.search import decode_explain, encode_explain
from annheal.wire.timestamps import decode_seconds, encode_seconds


class _OfCollection(Protocol):
    """A message about one collection."""

    @property
    def collection_id(self) -> str: ...


_FLOAT32 = np.dtype("<f4")
_UINT64 = np.dtype("<u8")
_NOTHING_SEEN = -1
"""`after_hash` and `last_hash` where no record was seen; hashes are unsigned."""


# ---------------------------------------------------------------------------------------- search


def encode_shard_search(request: SearchRequest) -> pb.SearchShardsRequest:
    """Return a search; `timeout_s` travels as the deadline of the call."""
    options = request.options
    queries = np.ascontiguousarray(request.queries, dtype=_FLOAT32)
    message = pb.SearchShardsRequest(
        collection_id=request.collection_id,
        shards=request.shards,
        dimension=queries.shape[1],
        queries=queries.tobytes(),
        k=options.k,
        exact=options.exact,
        ef=options.ef,
        recall_objective=options.recall_objective,
        explain=options.explain,
        model=options.model,
        tag=options.tag,
        fallback=options.fallback,
        fallback_k=options.fallback_k,
        consistency=CONSISTENCY.encode(request.consistency),
        min_sequences=request.min_sequences,
    )
    if options.filter is not None:
        message.filter.CopyFrom(encode_filter(options.filter))
    if not options.projection.ids_only:
        message.projection.CopyFrom(encode_projection(options.projection))
    if request.numbers is not None:
        message.query_numbers = request.numbers.astype(_UINT64, copy=False).tobytes()
    return message


def decode_shard_search(message: pb.SearchShardsRequest, *, timeout_s: float) -> SearchRequest:
    """Return a search; its queries (n, d) are read-only and share the message's memory."""
    dimension = message.dimension
    packed = message.queries
    shards = checked_shards(message.shards)
    # With a fallback there are the vectors of two models.
    limit = 2 * DIMENSION_MAX if message.fallback else DIMENSION_MAX
    if not 1 <= dimension <= limit or len(packed) % (4 * dimension):
        raise InvalidArgument.of(
            "queries", f"has {len(packed)} bytes, no whole number of vectors of {dimension} floats"
        )
    return SearchRequest(
        collection_id=_collection_id(message),
        shards=shards,
        queries=np.frombuffer(packed, dtype=_FLOAT32).reshape(-1, dimension),
        options=SearchOptions(
            k=message.k,
            filter=decode_filter(message.filter) if message.HasField("filter") else None,
            exact=message.exact,
            ef=message.ef if message.HasField("ef") else None,
            recall_objective=(
                message.recall_objective if message.HasField("recall_objective") else None
            ),
            projection=_projection(message),
            explain=message.explain,
            model=message.model,
            tag=message.tag,
            fallback=message.fallback,
            fallback_k=message.fallback_k,
        ),
        consistency=CONSISTENCY.decode(message.consistency, field="consistency"),
        min_sequences={
            shard: message.min_sequences[shard]
            for shard in shards
            if shard in message.min_sequences
        },
        timeout_s=timeout_s,
        numbers=_numbers(message.query_numbers),
    )


def _numbers(packed: bytes) -> Numbers | None:
    if len(packed) % _UINT64.itemsize:
        raise InvalidArgument.of(
            "query_numbers", f"has {len(packed)} bytes, no whole number of 8-byte integers"
        )
    return np.frombuffer(packed, dtype=_UINT64) if packed else None


def encode_shard_answer(answer: SearchAnswer) -> pb.SearchShardsResponse:
    """Return the hits of some shards."""
    message = pb.SearchShardsResponse(
        counts=answer.counts.tolist(),
        scores=answer.scores.astype(_FLOAT32, copy=False).tobytes(),
        ids=answer.records.ids,
        columns=encode_columns(answer.records),
        sequences=answer.sequences,
        below_objective=answer.below_objective,
    )
    if answer.explain:
        message.explain.extend(encode_explain(entry) for entry in answer.explain)
    if answer.missing_shards:
        message.missing_shards.extend(shard.number for shard in answer.missing_shards)
    if answer.by_fallback is not None:
        message.by_fallback = answer.by_fallback.tobytes()
    return message


def decode_shard_answer(message: pb.SearchShardsResponse, *, collection_id: str) -> SearchAnswer:
    """Return the hits of some shards of the collection asked."""
    hits = len(message.ids)
    if sum(message.counts) != hits or len(message.scores) != hits * _FLOAT32.itemsize:
        raise InvalidArgument.of("counts", f"counts, scores and {hits} ids differ in number")
    if message.HasField("by_fallback") and len(message.by_fallback) != hits:
        raise InvalidArgument.of("by_fallback", f"is not one byte for each of {hits} ids")
    return SearchAnswer(
        counts=np.array(message.counts, dtype=np.int32),
        scores=np.frombuffer(message.scores, dtype=_FLOAT32),
        by_fallback=(
            np.frombuffer(message.by_fallback, dtype=np.uint8) != 0
            if message.HasField("by_fallback")
            else None
        ),
        records=decode_columns(message.columns, ids=list(message.ids)),
        explain=tuple(decode_explain(entry) for entry in message.explain),
        sequences=dict(message.sequences),
        missing_shards=tuple(ShardId(collection_id, number) for number in message.missing_shards),
        below_objective=message.below_objective,
    )


# ---------------------------------------------------------------------------------------- writes


def encode_shard_write(request: WriteRequest) -> pb.WriteShardRequest:
    """Return a write; `timeout_s` travels as the deadline of the call."""
    message = pb.WriteShardRequest(collection_id=request.collection_id, shard=request.shard)
    operation = request.operation
    match operation:
        case Upsert(batch, None):
            message.upsert = encode_batch(batch)
        case DeleteIds(ids, None):
            message.delete_ids.CopyFrom(pb.DeleteIds(ids=ids))
        case Upsert() | Update() | DeleteIds():
            message.rows.CopyFrom(_encode_row_write(operation))
        case DeleteWhere(tree):
            message.delete_where.CopyFrom(encode_filter(tree))
        case _:
            assert_never(operation)
    return message


def _encode_row_write(operation: Upsert | Update | DeleteIds) -> pb.RowWrite:
    versions = operation.if_versions
    message = pb.RowWrite(if_versions=() if versions is None else versions.tolist())
    match operation:
        case Upsert(batch):
            message.upsert = encode_batch(batch)
        case Update(patch):
            message.update = encode_patch(patch)
        case DeleteIds(ids):
            message.delete_ids.CopyFrom(pb.DeleteIds(ids=ids))
    return message


def _decode_row_write(message: pb.RowWrite) -> WriteOperation:
    versions = np.array(message.if_versions, dtype=np.int64) if message.if_versions else None
    match message.WhichOneof("operation"):
        case "upsert":
            batch = decode_batch(message.upsert)
            _check_count(len(batch), field="upsert", most=WRITE_ROWS_MAX)
            return Upsert(batch, versions)
        case "update":
            patch = decode_patch(message.update)
            _check_count(len(patch), field="update", most=WRITE_ROWS_MAX)
            return Update(patch, versions)
        case "delete_ids":
            _check_count(len(message.delete_ids.ids), field="delete_ids", most=WRITE_ROWS_MAX)
            return DeleteIds(tuple(message.delete_ids.ids), versions)
        case _:
            raise InvalidArgument.of("rows.operation", "is none that this node knows")


def decode_shard_write(message: pb.WriteShardRequest, *, timeout_s: float) -> WriteRequest:
    """Return a write."""
    operation: WriteOperation
    match message.WhichOneof("operation"):
        case "upsert":
            operation = Upsert(decode_batch(message.upsert))
            _check_count(len(operation.batch), field="upsert", most=WRITE_ROWS_MAX)
        case "delete_ids":
            _check_count(len(message.delete_ids.ids), field="delete_ids", most=WRITE_ROWS_MAX)
            operation = DeleteIds(tuple(message.delete_ids.ids))
        case "delete_where":
            operation = DeleteWhere(decode_filter(message.delete_where, field="delete_where"))
        case "rows":
            operation = _decode_row_write(message.rows)
        case _:
            raise InvalidArgument.of("operation", "is none that this node knows")
    return WriteRequest(
        collection_id=_collection_id(message),
        shard=checked_shard(message.shard),
        operation=operation,
        timeout_s=timeout_s,
    )


def encode_write_answer(answer: WriteAnswer) -> pb.WriteShardResponse:
    """Return the acknowledgement of a write."""
    return pb.WriteShardResponse(
        sequence=answer.sequence,
        upserted=answer.upserted,
        deleted=answer.deleted,
        missing=answer.missing,
        conflicts=encode_conflicts(answer.conflicts),
    )


def decode_write_answer(message: pb.WriteShardResponse) -> WriteAnswer:
    """Return the acknowledgement of a write."""
    return WriteAnswer(
        sequence=message.sequence,
        upserted=message.upserted,
        deleted=message.deleted,
        missing=tuple(message.missing),
        conflicts=decode_conflicts(message.conflicts),
    )


# ----------------------------------------------------------------------------------------- reads


def encode_shard_get(request: GetRequest) -> pb.GetFromShardRequest:
    """Return a read by id."""
    return pb.GetFromShardRequest(
        collection_id=request.collection_id,
        shard=request.shard,
        ids=request.ids,
        projection=encode_projection(request.projection),
        consistency=CONSISTENCY.encode(request.consistency),
        min_sequence=request.min_sequence,
    )


def decode_shard_get(message: pb.GetFromShardRequest) -> GetRequest:
    """Return a read by id."""
    _check_count(len(message.ids), field="ids", most=GET_IDS_MAX)
    return GetRequest(
        collection_id=_collection_id(message),
        shard=checked_shard(message.shard),
        ids=tuple(message.ids),
        projection=_projection(message),
        consistency=_consistency(message),
        min_sequence=message.min_sequence,
    )


def encode_found(records: RecordSet) -> pb.GetFromShardResponse:
    """Return the records found."""
    return pb.GetFromShardResponse(ids=records.ids, columns=encode_columns(records))


def decode_found(message: pb.GetFromShardResponse) -> RecordSet:
    """Return the records found."""
    return decode_columns(message.columns, ids=list(message.ids))


def encode_shard_count(request: CountRequest) -> pb.CountShardRequest:
    """Return a count."""
    return pb.CountShardRequest(
        collection_id=request.collection_id,
        shard=request.shard,
        filter=None if request.filter is None else encode_filter(request.filter),
        consistency=CONSISTENCY.encode(request.consistency),
        min_sequence=request.min_sequence,
    )


def decode_shard_count(message: pb.CountShardRequest) -> CountRequest:
    """Return a count."""
    return CountRequest(
        collection_id=_collection_id(message),
        shard=checked_shard(message.shard),
        filter=decode_filter(message.filter) if message.HasField("filter") else None,
        consistency=_consistency(message),
        min_sequence=message.min_sequence,
    )


def encode_shard_scan(request: ScanRequest) -> pb.ScanShardRequest:
    """Return the request for one page of a shard."""
    return pb.ScanShardRequest(
        collection_id=request.collection_id,
        shard=request.shard,
        rows_max=request.rows_max,
        after_hash=None if request.after_hash == _NOTHING_SEEN else request.after_hash,
        after_id=request.after_id,
        filter=None if request.filter is None else encode_filter(request.filter),
        projection=encode_projection(request.projection),
    )


def decode_shard_scan(message: pb.ScanShardRequest) -> ScanRequest:
    """Return the request for one page of a shard."""
    if message.rows_max < 1:
        raise InvalidArgument.of("rows_max", "is 0; ask for one record at least")
    _check_count(message.rows_max, field="rows_max", most=SCAN_PAGE_ROWS_MAX)
    return ScanRequest(
        collection_id=_collection_id(message),
        shard=checked_shard(message.shard),
        rows_max=message.rows_max,
        after_hash=message.after_hash if message.HasField("after_hash") else _NOTHING_SEEN,
        after_id=message.after_id,
        filter=decode_filter(message.filter) if message.HasField("filter") else None,
        projection=_projection(message),
    )


def encode_scan_page(page: ScanPage) -> pb.ScanShardResponse:
    """Return one page of a shard."""
    return pb.ScanShardResponse(
        ids=page.records.ids,
        columns=encode_columns(page.records),
        last_hash=None if page.last_hash == _NOTHING_SEEN else page.last_hash,
        last_id=page.last_id,
        finished=page.finished,
    )


def decode_scan_page(message: pb.ScanShardResponse) -> ScanPage:
    """Return one page of a shard."""
    return ScanPage(
        records=decode_columns(message.columns, ids=list(message.ids)),
        last_hash=message.last_hash if message.HasField("last_hash") else _NOTHING_SEEN,
        last_id=message.last_id,
        finished=message.finished,
    )


def _projection(
    message: pb.SearchShardsRequest | pb.GetFromShardRequest | pb.ScanShardRequest,
) -> Projection:
    return decode_projection(message.projection) if message.HasField("projection") else IDS_ONLY


def _consistency(message: pb.GetFromShardRequest | pb.CountShardRequest) -> Consistency:
    return CONSISTENCY.decode(message.consistency, field="consistency")


# --------------------------------------------------------------------------- states, compactions


def encode_shard_state(state: ShardState) -> pb.ShardState:
    """Return one shard as its node serves it."""
    return pb.ShardState(
        collection_id=state.collection_id,
        shard=state.shard,
        node_id=state.node_id,
        phase=SHARD_PHASE.encode(state.phase),
        epoch=state.epoch,
        live_rows=state.live_rows,
        dead_rows=state.dead_rows,
        unindexed_rows=state.unindexed_rows,
        applied_sequence=state.applied_sequence,
        wal_slots=state.wal_slots,
        memory_bytes=state.memory_bytes,
        error=state.error,
        segments=[encode_segment(segment) for segment in state.segments],
    )


def decode_shard_state(message: pb.ShardState) -> ShardState:
    """Return one shard as its node serves it."""
    return ShardState(
        collection_id=message.collection_id,
        shard=message.shard,
        node_id=message.node_id,
        phase=SHARD_PHASE.decode_text(message.phase),
        epoch=message.epoch,
        live_rows=message.live_rows,
        dead_rows=message.dead_rows,
        unindexed_rows=message.unindexed_rows,
        applied_sequence=message.applied_sequence,
        wal_slots=message.wal_slots,
        memory_bytes=message.memory_bytes,
        error=message.error,
        segments=tuple(decode_segment(segment) for segment in message.segments),
    )


def encode_publish(task: CompactionTask) -> pb.PublishCompactionRequest:
    """Return a built compaction, to be published."""
    output = task.output
    entry = None
    if output is not None:
        entry = pb.SegmentEntry(
            segment=encode_segment(
                SegmentState(
                    shard=task.shard,
                    segment_id=output.segment_id,
                    tier=output.tier,
                    model=output.model,
                    index_kind=output.index_kind,
                    rows=output.rows,
                    dead_rows=0,
                    size_bytes=output.size_bytes,
                    generation=output.generation,
                    created_at_s=output.created_at_s,
                    min_sequence=output.min_sequence,
                    max_sequence=output.max_sequence,
                )
            ),
            meta_checksum=output.meta_checksum,
            lacking=output.lacking,
            parts=[_encode_part(part) for part in output.parts],
        )
    part = None if task.part is None else _encode_part(task.part)
    return pb.PublishCompactionRequest(
        task=encode_task(TaskStatus.of(task)), output=entry, part=part
    )


def decode_publish(message: pb.PublishCompactionRequest) -> CompactionTask:
    """Return a built compaction, to be published."""
    status = decode_task(message.task)
    task = CompactionTask(
        id=status.task_id,
        collection_id=status.collection_id,
        shard=status.shard,
        sources=status.sources,
        tier=status.tier,
        reason=status.reason,
        phase=status.phase,
        priority=status.priority,
        estimated_bytes=status.estimated_bytes,
        created_at_s=status.created_at_s,
        finished_at_s=status.finished_at_s,
        attempts=status.attempts,
        worker=status.worker,
        error=status.error,
        output=_decode_entry(message.output) if message.HasField("output") else None,
        rows_in=status.rows_in,
        rows_out=status.rows_out,
        model=status.model,
        part=_decode_part(message.part) if message.HasField("part") else None,
    )
    check_task(task)
    return task


def decode_flush(message: pb.FlushShardRequest) -> ShardId:
    """Return the shard to flush."""
    return ShardId(_collection_id(message), checked_shard(message.shard))


def decode_audit(message: pb.AuditShardRequest) -> tuple[ShardId, int]:
    """Return the shard to audit, and the most queries; raises `InvalidArgument`."""
    shard = ShardId(_collection_id(message), checked_shard(message.shard))
    return shard, checked_audit_queries(message.queries_max)


def decode_collection_id(message: pb.ListShardStatesRequest | pb.ReportRecallRequest) -> str:
    """Return the collection asked for; empty for all."""
    return _collection_id(message) if message.collection_id else ""


def decode_one_collection_id(message: pb.ListSampledQueriesRequest) -> str:
    """Return the collection asked for; raises `InvalidArgument` without one."""
    return _collection_id(message)


def _collection_id(message: _OfCollection) -> str:
    return checked_name(message.collection_id, field="collection_id")


def _check_count(count: int, *, field: str, most: int) -> None:
    if count > most:
        raise InvalidArgument.of(field, f"{count}; at most {most} are allowed")


def _decode_entry(message: pb.SegmentEntry) -> SegmentEntry:
    segment = message.segment
    return SegmentEntry(
        segment_id=segment.segment_id,
        tier=Tier(TIER.decode(segment.tier, field="output.segment.tier")),
        model=segment.model,
        index_kind=IndexKind(
            INDEX_KIND.decode(segment.index_kind, field="output.segment.index_kind")
        ),
        rows=segment.rows,
        size_bytes=segment.size_bytes,
        meta_checksum=message.meta_checksum,
        min_sequence=segment.min_sequence,
        max_sequence=segment.max_sequence,
        generation=segment.generation,
        created_at_s=decode_segment(segment).created_at_s,
        lacking=message.lacking,
        parts=tuple(_decode_part(part) for part in message.parts),
    )


def _encode_part(part: VectorPartEntry) -> pb.VectorPart:
    return pb.VectorPart(
        part_id=part.part_id,
        model=part.model,
        index_kind=INDEX_KIND.encode(part.index_kind),
        rows=part.rows,
        size_bytes=part.size_bytes,
        meta_checksum=part.meta_checksum,
        created_at=encode_seconds(part.created_at_s),
        skipped=part.skipped,
    )


def _decode_part(message: pb.VectorPart) -> VectorPartEntry:
    return VectorPartEntry(
        part_id=message.part_id,
        model=message.model,
        index_kind=IndexKind(INDEX_KIND.decode(message.index_kind, field="part.index_kind")),
        rows=message.rows,
        size_bytes=message.size_bytes,
        meta_checksum=message.meta_checksum,
        created_at_s=decode_seconds(message.created_at),
        skipped=message.skipped,
    )
