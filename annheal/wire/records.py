"""Records: upserts in columns or rows, deletes, reads by id, counts, scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType, Collection, Schema
from annheal.model.filter import Filter
from annheal.model.limits import SCAN_PAGE_ROWS_MAX
from annheal.model.records import (
    ARROW_TYPES,
    EVERYTHING,
    Float32Matrix,
    ModelVectors,
    Projection,
    RecordBatch,
    RecordPatch,
    RecordSet,
    Versions,
)
from annheal.model.search import Consistency
from annheal.model.session import SessionToken
from annheal.model.validation import check_some_vector, may_lack
from annheal.model.write import TextRecords, VersionConflict
from annheal.v1 import columns_pb2, records_pb2
from annheal.wire.columns import (
    decode_attributes,
    decode_model_vectors,
    decode_payloads,
    decode_projection,
    decode_record_set,
    decode_some_attributes,
    decode_vector,
    encode_all_payloads,
    encode_attribute,
    encode_payloads,
    encode_projection,
    encode_record_set,
    encode_vectors,
)
from annheal.wire.enums import CONSISTENCY
from annheal.wire.filters import decode_filter, encode_filter
from annheal.wire.session import (
    decode_freshness,
    decode_session,
    encode_optional_session,
)
from annheal.wire.timestamps import decode_us

SCAN_PAGE_ROWS_DEFAULT = 1_000
"""Records of a page when the client lets the server choose."""


ConditionalResponse = (
    records_pb2.UpdateResponse | records_pb2.UpsertIfResponse | records_pb2.DeleteIfResponse
)
WriteResponse: TypeAlias = (
    records_pb2.UpsertResponse
    | records_pb2.DeleteByIdsResponse
    | records_pb2.DeleteByFilterResponse
    | ConditionalResponse
)


@dataclass(frozen=True, slots=True)
class Written:
    """What a write has come to: records written or deleted, and those that were not."""

    count: int
    session: SessionToken
    missing: tuple[str, ...] = ()
    conflicts: tuple[VersionConflict, ...] = ()


@dataclass(frozen=True, slots=True)
class GivenVectors:
    """Vectors (n, d) of one model to write; rows that are `absent` (n,) have none."""

    model: str
    vectors: npt.NDArray[np.floating[Any]]
    absent: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class PublicGet:
    """A Get of one collection, before it is split by shard."""

    ids: tuple[str, ...]
    projection: Projection
    consistency: Consistency
    min_sequences: dict[int, int]


@dataclass(frozen=True, slots=True)
class PublicCount:
    """A Count of one collection."""

    filter: Filter | None
    consistency: Consistency
    min_sequences: dict[int, int]


@dataclass(frozen=True, slots=True)
class PublicScan:
    """One page of a Scan; `cursor` is whatever the coordinator gave out, empty at the start."""

    filter: Filter | None
    projection: Projection
    rows_max: int
    cursor: str


# --------------------------------------------------------------------------------------- upserts


def encode_upsert(
    collection: str,
    *,
    ids: Sequence[str],
    vectors: npt.NDArray[np.floating[Any]] | None = None,
    texts: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    payloads: pa.BinaryArray | None = None,
    model: str = "",
    further: Sequence[GivenVectors] = (),
) -> records_pb2.UpsertRequest:
    """Return an upsert of `n` records: vectors (n, d), Arrow arrays by attribute name, payloads.

    `vectors` are of `model`, `further` of others. Without any the server embeds `texts`, or without
    these the source of the model.
    """
    columns = columns_pb2.RecordColumns(
        ids=ids,
        vectors=_encode_given(vectors, model, further),
        attributes=[encode_attribute(name, column) for name, column in (attributes or {}).items()],
        payloads=() if payloads is None else encode_payloads(payloads),
    )
    return records_pb2.UpsertRequest(collection=collection, columns=columns, texts=texts or ())


def _encode_given(
    vectors: npt.NDArray[np.floating[Any]] | None, model: str, further: Sequence[GivenVectors]
) -> list[columns_pb2.Vectors]:
    own = () if vectors is None else (GivenVectors(model, vectors),)
    return [
        encode_vectors(one.vectors, model=one.model, absent=one.absent) for one in (*own, *further)
    ]


def decode_upsert(
    request: records_pb2.UpsertRequest, *, collection: Collection
) -> RecordBatch | TextRecords:
    """Return the records of an upsert, for `annheal.model.validation.validate_batch` to check.

    Records without vectors, where none of them has one, come as `TextRecords`.

    Raises `InvalidArgument` for what does not fit together or into the collection.
    """
    if request.HasField("columns"):
        if request.records:
            raise InvalidArgument.of("columns", "is set together with records; set one of the two")
        return _decode_columns(request.columns, request.texts, collection=collection)
    if request.texts:
        raise InvalidArgument.of("texts", "belongs to columns; give each of the records its text")
    if not request.records:
        raise InvalidArgument.of("records", "is empty, and so is columns; send some records")
    return _decode_rows(request.records, collection=collection)


def _decode_columns(
    columns: columns_pb2.RecordColumns, texts: Sequence[str], *, collection: Collection
) -> RecordBatch | TextRecords:
    ids = pa.array(list(columns.ids), type=pa.string())
    rows = len(ids)
    if columns.vectors and texts:
        raise InvalidArgument.of("texts", "is set together with vectors; set one of the two")
    if texts and len(texts) != rows:
        raise InvalidArgument.of("texts", f"has {len(texts)} texts, but there are {rows} ids")
    records = TextRecords(
        ids=ids,
        texts=tuple(texts) or None,
        attributes=decode_attributes(
            columns.attributes, schema=collection.schema, rows=rows, field="columns.attributes"
        ),
        payloads=decode_payloads(columns.payloads, rows=rows, field="columns.payloads"),
    )
    if not columns.vectors:
        return records
    given = decode_model_vectors(
        columns.vectors, collection=collection, rows=rows, field="columns.vectors"
    )
    return _with_vectors(records, given, collection=collection)


def _with_vectors(
    records: TextRecords, given: Sequence[ModelVectors], *, collection: Collection
) -> RecordBatch:
    """Return the records with their vectors; each must have one of at least one model."""
    own, *further = given
    if any(map(may_lack, given)):
        check_some_vector(given, collection=collection, place=records.place_of_vectors)
    return replace(records.with_vectors(own.vectors), model=own.model, further=tuple(further))


def encode_update(
    collection: str,
    *,
    ids: Sequence[str],
    vectors: npt.NDArray[np.floating[Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    payloads: pa.BinaryArray | None = None,
    model: str = "",
    further: Sequence[GivenVectors] = (),
    if_versions: Versions | None = None,
) -> records_pb2.UpdateRequest:
    """Return an update of `n` records by the columns that are given; see `encode_upsert`."""
    columns = columns_pb2.RecordColumns(
        ids=ids,
        vectors=_encode_given(vectors, model, further),
        attributes=[encode_attribute(name, column) for name, column in (attributes or {}).items()],
        payloads=() if payloads is None else encode_all_payloads(payloads),
    )
    return records_pb2.UpdateRequest(
        collection=collection, columns=columns, if_versions=_encode_versions(if_versions)
    )


def decode_update(
    request: records_pb2.UpdateRequest, *, collection: Collection
) -> tuple[RecordPatch, Versions | None]:
    """Return the parts to replace, for `validate_patch` to check, and the wanted versions."""
    columns, where = request.columns, "columns"
    ids = pa.array(list(columns.ids), type=pa.string())
    given = decode_model_vectors(
        columns.vectors, collection=collection, rows=len(ids), field=f"{where}.vectors"
    )
    patch = RecordPatch(
        ids=ids,
        attributes=decode_some_attributes(
            columns.attributes,
            schema=collection.schema,
            rows=len(ids),
            field=f"{where}.attributes",
        ),
        payloads=decode_payloads(columns.payloads, rows=len(ids), field=f"{where}.payloads")
        if columns.payloads
        else None,
        vectors=given[0].vectors if given else None,
        model=given[0].model if given else "",
        further=tuple(given[1:]),
    )
    return patch, decode_versions(request.if_versions)


def encode_upsert_if(
    upsert: records_pb2.UpsertRequest, *, if_versions: Versions
) -> records_pb2.UpsertIfRequest:
    """Return an upsert on condition."""
    return records_pb2.UpsertIfRequest(upsert=upsert, if_versions=if_versions.tolist())


def encode_delete_if(
    collection: str, *, ids: Sequence[str], if_versions: Versions
) -> records_pb2.DeleteIfRequest:
    """Return a delete on condition."""
    return records_pb2.DeleteIfRequest(
        collection=collection, ids=ids, if_versions=if_versions.tolist()
    )


def _encode_versions(versions: Versions | None) -> list[int]:
    return [] if versions is None else versions.tolist()


def decode_versions(versions: Sequence[int]) -> Versions | None:
    """Return the wanted versions (n,) int64; None without any."""
    return np.array(versions, dtype=np.int64) if versions else None


def encode_conflicts(
    conflicts: Sequence[VersionConflict],
) -> list[records_pb2.VersionConflict]:
    """Return the records that were not written as messages."""
    return [records_pb2.VersionConflict(id=one.id, version=one.version) for one in conflicts]


def decode_conflicts(
    messages: Sequence[records_pb2.VersionConflict],
) -> tuple[VersionConflict, ...]:
    """Return the records that were not written."""
    return tuple(VersionConflict(one.id, one.version) for one in messages)


def _decode_rows(
    records: Sequence[records_pb2.Record], *, collection: Collection
) -> RecordBatch | TextRecords:
    rows = len(records)
    values: dict[str, list[Any]] = {field.name: [None] * rows for field in collection.schema}
    for row, record in enumerate(records):
        for name, value in record.attributes.items():
            where = f"records[{row}].attributes"
            if name not in values:
                raise InvalidArgument.of(
                    where,
                    f"{name[:80]!r} is not an attribute of the collection; it has {list(values)}",
                )
            field = next(f for f in collection.schema if f.name == name)
            values[name][row] = _decode_value(value, kind=field.type, field=f"{where}[{name}]")
    texts = tuple(record.text for record in records)
    found = TextRecords(
        ids=pa.array([record.id for record in records], type=pa.string()),
        texts=texts if any(texts) else None,
        attributes=_attribute_batch(values, schema=collection.schema),
        payloads=pa.array([record.payload or None for record in records], type=pa.binary()),
        by_row=True,
    )
    given = _row_vectors(records, collection=collection)
    return _with_vectors(found, given, collection=collection) if given else found


def _row_vectors(
    records: Sequence[records_pb2.Record], *, collection: Collection
) -> list[ModelVectors]:
    """Return the vectors of each model, NaN where a record has none; none at all: nothing."""
    found: dict[str, Float32Matrix] = {}
    for row, record in enumerate(records):
        where = f"records[{row}].vectors"
        if record.vectors and record.text:
            raise InvalidArgument.of(
                f"records[{row}].text", "is set together with a vector; set one of the two"
            )
        for number, message in enumerate(record.vectors):
            place = f"{where}[{number}]"
            model, vector = decode_vector(message, collection=collection, field=place)
            if model.name not in found:
                found[model.name] = np.full((len(records), model.dimension), np.nan, np.float32)
            matrix = found[model.name]
            if not np.isnan(matrix[row, 0]):
                raise InvalidArgument.of(place, f"is another vector of model {model.name!r}")
            if np.isnan(vector[0]):
                raise InvalidArgument.of(
                    place, "holds nan at position 0; every value must be finite"
                )
            matrix[row] = vector
    return [
        ModelVectors(collection.tag_of(one), found[one.name])
        for one in collection.models
        if one.name in found
    ]


def _attribute_batch(values: Mapping[str, list[Any]], *, schema: Schema) -> pa.RecordBatch:
    columns: list[Any] = [pa.array(values[f.name], type=ARROW_TYPES[f.type]) for f in schema]
    return pa.RecordBatch.from_arrays(columns, names=[f.name for f in schema])


_VALUE_KINDS = {
    "keyword": AttributeType.KEYWORD,
    "keyword_list": AttributeType.KEYWORD_LIST,
    "int64_value": AttributeType.INT64,
    "float64_value": AttributeType.FLOAT64,
    "bool_value": AttributeType.BOOL,
    "timestamp_value": AttributeType.TIMESTAMP,
}


def _decode_value(message: records_pb2.AttributeValue, *, kind: AttributeType, field: str) -> Any:
    given = message.WhichOneof("value")
    if given is None:
        return None
    if _VALUE_KINDS[given] is not kind:
        wanted = next(name for name, known in _VALUE_KINDS.items() if known is kind)
        raise InvalidArgument.of(
            field, f"holds {given}, but the attribute is a {kind.value}: set {wanted}"
        )
    if given == "keyword_list":
        return list(message.keyword_list.values)
    if given == "timestamp_value":
        return decode_us(message.timestamp_value, field=field)
    return getattr(message, given)


# --------------------------------------------------------------------------- answers and deletes


def encode_delete_ids(collection: str, *, ids: Sequence[str]) -> records_pb2.DeleteByIdsRequest:
    """Return a delete by id."""
    return records_pb2.DeleteByIdsRequest(collection=collection, ids=ids)


def encode_delete_where(collection: str, *, filter: Filter) -> records_pb2.DeleteByFilterRequest:
    """Return a delete by filter."""
    return records_pb2.DeleteByFilterRequest(collection=collection, filter=encode_filter(filter))


def decode_delete_where(request: records_pb2.DeleteByFilterRequest) -> Filter:
    """Return the filter; raises `InvalidArgument` when there is none."""
    if not request.HasField("filter"):
        raise InvalidArgument.of("filter", "is not set; to delete everything, drop the collection")
    return decode_filter(request.filter)


def decode_write_response(response: WriteResponse) -> Written:
    """Return what a write has come to."""
    match response:
        case records_pb2.UpsertResponse() | records_pb2.UpsertIfResponse():
            count = response.upserted
        case records_pb2.UpdateResponse():
            count = response.updated
        case _:
            count = response.deleted
    return Written(
        count,
        decode_session(response.session),
        tuple(response.missing) if isinstance(response, records_pb2.UpdateResponse) else (),
        decode_conflicts(response.conflicts) if isinstance(response, ConditionalResponse) else (),
    )


# ----------------------------------------------------------------------------------------- reads


def encode_get(
    collection: str,
    *,
    ids: Sequence[str],
    projection: Projection = EVERYTHING,
    consistency: Consistency | None = None,
    session: SessionToken | None = None,
) -> records_pb2.GetRequest:
    """Return a read by id; no `consistency` lets the session token decide."""
    return records_pb2.GetRequest(
        collection=collection,
        ids=ids,
        projection=encode_projection(projection),
        consistency=CONSISTENCY.encode(consistency or ""),
        session=encode_optional_session(session),
    )


def decode_get(request: records_pb2.GetRequest, *, collection_id: str) -> PublicGet:
    """Return the read; no projection means everything."""
    consistency, min_sequences = decode_freshness(request, collection_id=collection_id)
    return PublicGet(
        ids=tuple(request.ids),
        projection=_projection(request),
        consistency=consistency,
        min_sequences=min_sequences,
    )


def encode_get_response(
    records: RecordSet, *, model: str, session: SessionToken | None = None
) -> records_pb2.GetResponse:
    """Return what was found; `session` for session and strong reads."""
    return records_pb2.GetResponse(
        records=encode_record_set(records, model=model), session=encode_optional_session(session)
    )


def decode_get_response(
    response: records_pb2.GetResponse, *, projection: Projection
) -> tuple[RecordSet, SessionToken | None]:
    """Return the records found, and the session token if the read was a session or strong one."""
    session = decode_session(response.session) if response.HasField("session") else None
    return decode_record_set(response.records, projection=projection), session


def encode_count(
    collection: str,
    *,
    filter: Filter | None = None,
    consistency: Consistency | None = None,
    session: SessionToken | None = None,
) -> records_pb2.CountRequest:
    """Return a count."""
    return records_pb2.CountRequest(
        collection=collection,
        filter=None if filter is None else encode_filter(filter),
        consistency=CONSISTENCY.encode(consistency or ""),
        session=encode_optional_session(session),
    )


def decode_count(request: records_pb2.CountRequest, *, collection_id: str) -> PublicCount:
    """Return the count."""
    consistency, min_sequences = decode_freshness(request, collection_id=collection_id)
    return PublicCount(
        filter=_filter(request), consistency=consistency, min_sequences=min_sequences
    )


def encode_scan(
    collection: str,
    *,
    filter: Filter | None = None,
    projection: Projection = EVERYTHING,
    page_size: int = 0,
    cursor: str = "",
) -> records_pb2.ScanRequest:
    """Return the request for one page."""
    return records_pb2.ScanRequest(
        collection=collection,
        filter=None if filter is None else encode_filter(filter),
        projection=encode_projection(projection),
        page_size=page_size,
        cursor=cursor,
    )


def decode_scan(request: records_pb2.ScanRequest) -> PublicScan:
    """Return the scan; raises `InvalidArgument` for a page that is too large."""
    if request.page_size > SCAN_PAGE_ROWS_MAX:
        raise InvalidArgument.of(
            "page_size", f"{request.page_size} is not between 0 and {SCAN_PAGE_ROWS_MAX}"
        )
    return PublicScan(
        filter=_filter(request),
        projection=_projection(request),
        rows_max=request.page_size or SCAN_PAGE_ROWS_DEFAULT,
        cursor=request.cursor,
    )


def encode_scan_response(
    records: RecordSet, *, model: str, next_cursor: str
) -> records_pb2.ScanResponse:
    """Return one page; `next_cursor` is empty on the last."""
    return records_pb2.ScanResponse(
        records=encode_record_set(records, model=model), next_cursor=next_cursor
    )


def decode_scan_response(
    response: records_pb2.ScanResponse, *, projection: Projection
) -> tuple[RecordSet, str]:
    """Return the page and the next cursor, empty on the last page."""
    return decode_record_set(response.records, projection=projection), response.next_cursor


def _projection(request: records_pb2.GetRequest | records_pb2.ScanRequest) -> Projection:
    if not request.HasField("projection"):
        return EVERYTHING
    return decode_projection(request.projection)


def _filter(request: records_pb2.CountRequest | records_pb2.ScanRequest) -> Filter | None:
    return decode_filter(request.filter) if request.HasField("filter") else None
