"""Checks of records to write: each error names the field, the row and the fix."""

from __future__ import annotations

from dataclasses import replace

from annheal.errors import InvalidArgument
from annheal.model.collection import Collection
from annheal.model.limits import (
    WRITE_ROWS_MAX,
)
from annheal.model.records import (
    ModelVectors,
    RecordBatch,
    RecordPatch,
    Versions,
)
from annheal.model.suggestions import suggestion
from annheal.model.validation.attributes import check_attributes, first
from annheal.model.validation.ids import validate_ids
from annheal.model.validation.vectors import (
    check_some_vector,
    may_lack,
    usable_model,
    validate_model_vectors,
    validate_vectors,
)
from annheal.model.values.payloads import validate_payloads
from annheal.model.write import ANY_VERSION


def validate_batch(batch: RecordBatch, *, collection: Collection) -> RecordBatch:
    """Return `batch` ready to be written (vectors as `validate_vectors` returns them).

    Raises `InvalidArgument` that names the field and the row. Ids may repeat within the batch.
    """
    validate_ids(batch.ids, rows_max=WRITE_ROWS_MAX)
    rows = len(batch.ids)
    parts = [("vectors", len(batch.vectors)), ("payloads", len(batch.payloads))]
    parts += [(f"vectors[{one.model!r}]", len(one.vectors)) for one in batch.further]
    if collection.schema:
        parts.append(("attributes", batch.attributes.num_rows))
    for field, length in parts:
        if length != rows:
            raise InvalidArgument.of(field, f"{length} rows for {rows} ids; send one for each id")
    check_attributes(batch.attributes, schema=collection.schema)
    validate_payloads(batch.payloads)
    if batch.further:
        given = (ModelVectors(batch.model, batch.vectors), *batch.further)
        own, *further = validate_model_vectors(given, collection=collection)
        check_some_vector((own, *further), collection=collection)
        return replace(batch, vectors=own.vectors, model=own.model, further=tuple(further))
    name = batch.model or collection.models[0].name
    model = usable_model(name, collection=collection, field="vectors.model")
    vectors = validate_vectors(batch.vectors, model=model)
    return batch if vectors is batch.vectors else replace(batch, vectors=vectors)


def validate_patch(patch: RecordPatch, *, collection: Collection) -> RecordPatch:
    """Return `patch` ready to be applied; its ids may repeat.

    Raises `InvalidArgument` that names the field and the row, also where nothing is to be changed.
    """
    validate_ids(patch.ids, rows_max=WRITE_ROWS_MAX)
    rows, names = len(patch.ids), patch.attributes.schema.names
    payloads, vectors = patch.payloads, patch.vectors
    if not names and payloads is None and vectors is None and not patch.further:
        raise InvalidArgument.of(
            "attributes", "nothing to change; give attributes, payloads or vectors"
        )
    lengths = {
        "attributes": patch.attributes.num_rows if names else rows,
        "payloads": rows if payloads is None else len(payloads),
        "vectors": rows if vectors is None else len(vectors),
        **{f"vectors[{one.model!r}]": len(one.vectors) for one in patch.further},
    }
    for field, length in lengths.items():
        if length != rows:
            raise InvalidArgument.of(field, f"{length} rows for {rows} ids; send one for each id")
    declared = [field.name for field in collection.schema]
    for name in names:
        if name not in declared:
            raise InvalidArgument.of(
                f"attributes.{name}", f"unknown attribute; {suggestion(name, declared)}"
            )
    check_attributes(
        patch.attributes, schema=tuple(one for one in collection.schema if one.name in names)
    )
    if payloads is not None:
        validate_payloads(payloads)
    if vectors is None:
        return replace(patch, further=validate_model_vectors(patch.further, collection=collection))
    own = ModelVectors(patch.model, vectors)
    if not patch.further and not (len(collection.models) > 1 and may_lack(own)):
        name = patch.model or collection.models[0].name
        model = usable_model(name, collection=collection, field="vectors.model")
        return replace(patch, vectors=validate_vectors(vectors, model=model))
    own, *further = validate_model_vectors((own, *patch.further), collection=collection)
    return replace(patch, vectors=own.vectors, model=own.model, further=tuple(further))


def validate_versions(versions: Versions, *, rows: int, least: int) -> None:
    """Raise `InvalidArgument` unless each of `rows` records has a wanted version, or none.

    The smallest is `least`: 0, for a record that does not exist, makes no sense to all operations.
    """
    if versions.shape != (rows,):
        raise InvalidArgument.of(
            "if_versions", f"{len(versions)} given for {rows} ids; give one for each"
        )
    wrong = (versions < least) & (versions != ANY_VERSION)
    if wrong.any():
        row = first(wrong)
        fix = f"a version is at least {least}, as reads return it; leave it out for no condition"
        if least:
            fix += "; a record that does not exist cannot be changed"
        raise InvalidArgument.of(f"if_versions[{row}]", f"{versions[row]}: {fix}")
