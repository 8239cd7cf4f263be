"""Validation of writes by the owner, before the log: a bad write must not break a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from annheal.errors import InvalidArgument
from annheal.filters import validate_filter
from annheal.model.collection import Collection, ModelSpec
from annheal.model.limits import WRITE_ROWS_MAX
from annheal.model.records import (
    ModelVectors,
    RecordBatch,
    RecordPatch,
    Versions,
    arrow_schema,
    lacking,
)
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
    if len(collection.models) > 1 or batch.further:
        return _checked_models(batch, collection=collection)
    vectors = validate_vectors(
        batch.vectors, model=_model_of(batch.model, collection=collection, field="vectors")
    )
    if vectors is batch.vectors and not batch.model:
        return batch
    return replace(batch, vectors=np.ascontiguousarray(vectors), model="")


def _checked_models(batch: RecordBatch, *, collection: Collection) -> RecordBatch:
    """Return the batch with every model named; each record has a vector of at least one."""
    first, *further = _checked_vectors(
        (ModelVectors(batch.model, batch.vectors), *batch.further),
        rows=len(batch),
        collection=collection,
    )
    without = lacking(first.vectors)
    for one in further:
        without = without & lacking(one.vectors)
    if without.any():
        row = int(np.flatnonzero(without)[0])
        names = ", ".join(repr(model.name) for model in collection.usable_models)
        raise InvalidArgument.of(
            f"vectors[{row}]", f"there is none; send a vector of at least one of {names}"
        )
    return replace(batch, vectors=first.vectors, model=first.model, further=tuple(further))


def _checked_vectors(
    given: Sequence[ModelVectors], *, rows: int, collection: Collection
) -> list[ModelVectors]:
    """Return valid vectors whose models are named; rows of NaN stay.

    A model may be removed between a coordinator's look at the collection and now: its vectors are
    left out if there are others, because the records do not need them any more.
    """
    found: list[ModelVectors] = []
    kept = [
        one for one in given if (one.model or collection.models[0].name) not in collection.removed
    ]
    for one in kept or given:
        model = _model_of(one.model, collection=collection, field="vectors")
        if len(one.vectors) != rows:
            raise InvalidArgument.of(
                "vectors", f"{len(one.vectors)} of model {model.name!r} for {rows} ids"
            )
        if model.name in (before.model for before in found):
            raise InvalidArgument.of("vectors", f"are given twice for model {model.name!r}")
        absent = lacking(one.vectors) if one.vectors.size else np.zeros(0, dtype=np.bool_)
        vectors = one.vectors
        if not absent.any():
            vectors = validate_vectors(vectors, model=model)
        elif not absent.all():
            present = np.flatnonzero(~absent)
            valid = validate_vectors(np.ascontiguousarray(vectors[present]), model=model)
            vectors = vectors.copy()
            vectors[present] = valid
        elif vectors.shape[1] != model.dimension:
            vectors = validate_vectors(vectors, model=model)  # refuses the dimension
        found.append(ModelVectors(model.name, np.ascontiguousarray(vectors)))
    return found


def _model_of(name: str, *, collection: Collection, field: str) -> ModelSpec:
    """Return the model `name`, empty for the first; raises `InvalidArgument` naming those known."""
    model = collection.model_named(name) if name else collection.models[0]
    if model is None or model.name in collection.removed:
        names = ", ".join(repr(one.name) for one in collection.usable_models)
        raise InvalidArgument.of(
            f"{field}.model",
            f"is {name!r}; the models of collection {collection.name!r} are {names}",
        )
    return model


def _checked_patch(patch: RecordPatch, *, collection: Collection) -> RecordPatch:
    if patch.vectors is None or len(collection.models) == 1:
        if patch.vectors is not None:
            _model_of(patch.model, collection=collection, field="vectors")
        patch = replace(validate_patch(patch, collection=collection), model="")
    else:
        first, *further = _checked_vectors(
            (ModelVectors(patch.model, patch.vectors), *patch.further),
            rows=len(patch),
            collection=collection,
        )
        if patch.attributes.num_columns or patch.payloads is not None:
            validate_patch(replace(patch, vectors=None, further=()), collection=collection)
        else:
            validate_ids(patch.ids, rows_max=WRITE_ROWS_MAX)
        patch = replace(patch, vectors=first.vectors, model=first.model, further=tuple(further))
    _check_distinct(patch.ids)
    return patch


def _check_distinct(ids: pa.StringArray) -> None:
    if pc.count_distinct(ids).as_py() != len(ids):
        raise InvalidArgument.of("ids", "an id is repeated; send only the last row of each id")


def _check_versions(versions: Versions | None, *, rows: int, least: int) -> None:
    if versions is not None:
        validate_versions(versions, rows=rows, least=least)
