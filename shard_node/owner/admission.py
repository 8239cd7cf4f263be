"""Validation of writes by the owner, before the log: a bad write must not break a shard."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from annheal.errors import InvalidArgument
from annheal.filters import validate_filter
from annheal.model.collection import Collection
from annheal.model.records import RecordBatch, RecordPatch, Versions, arrow_schema
from annheal.model.validation import (
    id_array,
    validate_ids,
    validate_patch,
    validate_vectors,
    validate_versions,
)
from annheal.model.write import (
    NO_RECORD,
    DeleteIds,
    DeleteWhere,
    Update,
    Upsert,
    WriteOperation,
)


def checked(operation: WriteOperation, *, collection: Collection) -> WriteOperation:
    """Return `operation` as it is logged; raises `InvalidArgument`.

    Repeats those checks of the coordinator that the log, growing rows and segments rely on: shapes,
    types, finite vectors, of unit length for cosine, one row an id (INV-3), a filter that fits the
    schema. Payloads are not parsed again.
    """
    match operation:
        case Upsert(batch, if_versions):
            _check_versions(if_versions, rows=len(batch), least=NO_RECORD)
            return Upsert(_checked_batch(batch, collection=collection), if_versions)
        case Update(patch, if_versions):
            _check_versions(if_versions, rows=len(patch), least=NO_RECORD + 1)
            return Update(_checked_patch(patch, collection=collection), if_versions)
        case DeleteIds(ids, if_versions):
            _check_versions(if_versions, rows=len(ids), least=NO_RECORD + 1)
            if ids:
                validate_ids(id_array(ids), rows_max=len(ids))
            return operation
        case DeleteWhere(filter):
            return DeleteWhere(validate_filter(filter, collection.schema))


def _checked_batch(batch: RecordBatch, *, collection: Collection) -> RecordBatch:
    rows = len(batch)
    if rows:
        validate_ids(batch.ids, rows_max=rows)
    wanted = arrow_schema(collection.schema)
    lengths = {"vectors": len(batch.vectors), "payloads": len(batch.payloads)}
    if len(wanted):
        lengths["attributes"] = batch.attributes.num_rows
    for name, length in lengths.items():
        if length != rows:
            raise InvalidArgument.of(name, f"{length} rows for {rows} ids")
    given = batch.attributes.schema
    if given.names != wanted.names or given.types != wanted.types:
        raise InvalidArgument.of("attributes", f"columns {given}, but the schema has {wanted}")
    _check_distinct(batch.ids)
    vectors = validate_vectors(batch.vectors, model=collection.model)
    if vectors is batch.vectors:
        return batch
    return RecordBatch(batch.ids, np.ascontiguousarray(vectors), batch.attributes, batch.payloads)


def _checked_patch(patch: RecordPatch, *, collection: Collection) -> RecordPatch:
    patch = validate_patch(patch, collection=collection)
    _check_distinct(patch.ids)
    return patch


def _check_distinct(ids: pa.StringArray) -> None:
    if pc.count_distinct(ids).as_py() != len(ids):
        raise InvalidArgument.of("ids", "an id is repeated; send only the last row of each id")


def _check_versions(versions: Versions | None, *, rows: int, least: int) -> None:
    if versions is not None:
        validate_versions(versions, rows=rows, least=least)
