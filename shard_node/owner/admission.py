"""Validation of writes by the owner, before the log: a bad write must not break a shard."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from annheal.errors import InvalidArgument
from annheal.filters import validate_filter
from annheal.model.collection import Collection
from annheal.model.records import RecordBatch, arrow_schema
from annheal.model.validation import id_array, validate_ids, validate_vectors
from annheal.model.write import DeleteIds, DeleteWhere, Upsert, WriteOperation


def checked(operation: WriteOperation, *, collection: Collection) -> WriteOperation:
    """Return `operation` as it is logged; raises `InvalidArgument`.

    Repeats those checks of the coordinator that the log, growing rows and segments rely on: shapes,
    types, finite vectors, of unit length for cosine, one row an id (INV-3), a filter that fits the
    schema. Payloads are not parsed again.
    """
    match operation:
        case Upsert(batch):
            return Upsert(_checked_batch(batch, collection=collection))
        case DeleteIds(ids):
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
    if pc.count_distinct(batch.ids).as_py() != rows:
        raise InvalidArgument.of("ids", "an id is repeated; send only the last row of each id")
    vectors = validate_vectors(batch.vectors, model=collection.model)
    if vectors is batch.vectors:
        return batch
    return RecordBatch(batch.ids, np.ascontiguousarray(vectors), batch.attributes, batch.payloads)
