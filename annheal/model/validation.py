"""Checks of what callers send, vectorised: each error names the field, the row and the fix.

Nothing here loops over values except to say which one is wrong. Payloads have their own module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.collection import Collection, Metric, ModelSpec, Schema
from annheal.model.limits import (
    ATTRIBUTE_FIELDS_MAX,
    ATTRIBUTE_NAME_PATTERN,
    DIMENSION_MAX,
    EF_MAX,
    GET_IDS_MAX,
    ID_BYTES_MAX,
    K_MAX,
    MODELS_EVER_MAX,
    MODELS_MAX,
    NAME_PATTERN,
    RECALL_BUDGET_MAX,
    SCAN_PAGE_ROWS_MAX,
    SEARCH_HITS_MAX,
    SEARCH_QUERIES_MAX,
    SHARD_COUNT_MAX,
    TIMEOUT_MAX_S,
    WRITE_ROWS_MAX,
)
from annheal.model.measures.recall_tags import checked_tag
from annheal.model.measures.recall_tail import OBJECTIVE_SHARE_MAX, OBJECTIVE_SHARE_MIN
from annheal.model.records import (
    Float32Matrix,
    Projection,
    RecordBatch,
    RecordPatch,
    Versions,
)
from annheal.model.search import SearchOptions
from annheal.model.suggestions import suggestion
from annheal.model.values.attribute_checks import byte_lengths, check_attributes, first
from annheal.model.values.payloads import validate_payloads
from annheal.model.write import ANY_VERSION

M_MIN, M_MAX = 2, 128
EF_CONSTRUCTION_MIN, EF_CONSTRUCTION_MAX = 4, 4_096
SEAL_ROWS_MAX, SEAL_BYTES_MAX, SEAL_AGE_S_MAX = 1_000_000, 1 << 30, 3_600.0
SEGMENT_ROWS_MIN, SEGMENT_ROWS_MAX = 1_000, 10_000_000
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 1 << 20, 5_000_000_000
"""The files of a segment are objects, and S3 takes at most 5 GiB for one."""
SEGMENT_IDLE_S_MAX = 30 * 24 * 3_600.0
UNINDEXED_ROWS_MIN, UNINDEXED_ROWS_MAX = 1_000, 10_000_000

# A vector whose squared length differs from 1 by no more than this is taken as it is, so that what
# was read back can be written again without changing a bit.
UNIT_TOLERANCE = 1e-6

_NAME = re.compile(NAME_PATTERN)
_ATTRIBUTE_NAME = re.compile(ATTRIBUTE_NAME_PATTERN)
L2_SQUARE_MAX = float(np.finfo(np.float32).max) / 4.1
"""Squared length up to which the squared distance of any two vectors is finite in float32."""


# ----------------------------------------------------------------------------------- collections


def validate_collection(collection: Collection) -> None:
    """Raise `InvalidArgument` with every violation of a collection to be created."""
    found: list[FieldViolation] = []
    if _NAME.fullmatch(collection.name) is None:
        found.append(
            FieldViolation(
                "name",
                f"{collection.name[:80]!r} must start with a letter and hold at most 64 letters,"
                " digits, '_' or '-'",
            )
        )
    found += _model_violations(collection)
    found += _schema_violations(collection.schema)
    _check_range(found, "shard_count", collection.shard_count, 1, SHARD_COUNT_MAX)
    if collection.replica_count != 1:
        found.append(
            FieldViolation("replica_count", "this version keeps one replica per shard; leave it 1")
        )
    _check_range(found, "index.m", collection.index.m, M_MIN, M_MAX)
    _check_range(
        found,
        "index.ef_construction",
        collection.index.ef_construction,
        EF_CONSTRUCTION_MIN,
        EF_CONSTRUCTION_MAX,
    )
    found += _settings_violations(collection)
    _raise_if_any(found)


def validate_settings(collection: Collection) -> None:
    """Raise `InvalidArgument` with every violation of `collection.settings`."""
    _raise_if_any(_settings_violations(collection))


def _model_violations(collection: Collection) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    models, usable = collection.models, collection.usable_models
    if not 1 <= len(usable) <= MODELS_MAX:
        found.append(
            FieldViolation(
                "models", f"{len(usable)} models; a collection has 1 to {MODELS_MAX} at a time"
            )
        )
    if len(models) > MODELS_EVER_MAX:
        found.append(
            FieldViolation(
                "models",
                f"{len(models)} models, with those that were removed; the limit is"
                f" {MODELS_EVER_MAX}. Export the collection and import it into a new one",
            )
        )
    seen: set[str] = set()
    for number, model in enumerate(models):
        name = f"models[{number}].name"
        _check_range(found, f"models[{number}].dimension", model.dimension, 1, DIMENSION_MAX)
        if not 1 <= len(model.name.encode()) <= ID_BYTES_MAX:
            found.append(FieldViolation(name, f"give it a name of 1 to {ID_BYTES_MAX} bytes"))
        if model.name in seen:
            found.append(FieldViolation(name, f"there are two models called {model.name!r}"))
        seen.add(model.name)
    names = [model.name for model in usable]
    if collection.serving and collection.serving not in names:
        found.append(
            FieldViolation(
                "serving",
                f"{collection.serving[:80]!r} is no model of the collection;"
                f" {suggestion(collection.serving, names)}",
            )
        )
    return found


def usable_model(name: str, *, collection: Collection, field: str = "model") -> ModelSpec:
    """Return the model `name`, the serving one for an empty name.

    Raises `InvalidArgument` for a model that is unknown or was removed, with those that there are.
    """
    if not name:
        return collection.model
    found = next((one for one in collection.usable_models if one.name == name), None)
    if found is None:
        there = ", ".join(
            f"{one.name!r} ({one.dimension} floats)" for one in collection.usable_models
        )
        raise InvalidArgument.of(
            field,
            f"is {name[:80]!r}, but the models of collection {collection.name!r} are {there};"
            " vectors of two models cannot be compared",
        )
    return found


def _schema_violations(schema: Schema) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    if len(schema) > ATTRIBUTE_FIELDS_MAX:
        found.append(
            FieldViolation(
                "schema", f"{len(schema)} attributes; the limit is {ATTRIBUTE_FIELDS_MAX}"
            )
        )
    seen: set[str] = set()
    for number, field in enumerate(schema):
        name = f"schema[{number}].name"
        if _ATTRIBUTE_NAME.fullmatch(field.name) is None:
            found.append(
                FieldViolation(
                    name,
                    f"{field.name[:80]!r} must start with a letter or '_' and hold at most 64"
                    " letters, digits or '_'",
                )
            )
        if field.name in seen:
            found.append(FieldViolation(name, f"{field.name!r} is declared twice"))
        seen.add(field.name)
    return found


def _settings_violations(collection: Collection) -> list[FieldViolation]:
    settings = collection.settings
    found: list[FieldViolation] = []
    if not 0.0 < settings.recall_objective <= 1.0:
        found.append(
            FieldViolation(
                "settings.recall_objective",
                f"{settings.recall_objective} must be more than 0 and at most 1, for example 0.95",
            )
        )
    _check_range(found, "settings.recall_k", settings.recall_k, 1, K_MAX)
    found += _tail_violations(settings.recall_tail_objective, settings.recall_objective_share)
    _check_range(found, "settings.recall_budget", settings.recall_budget, 0.0, RECALL_BUDGET_MAX)
    _check_range(found, "settings.seal_rows_max", settings.seal_rows_max, 1, SEAL_ROWS_MAX)
    _check_range(found, "settings.seal_bytes_max", settings.seal_bytes_max, 1, SEAL_BYTES_MAX)
    _check_range(found, "settings.seal_age_s", settings.seal_age_s, 0.01, SEAL_AGE_S_MAX)
    _check_range(found, "settings.tombstone_ratio_max", settings.tombstone_ratio_max, 0.001, 1.0)
    _check_range(
        found, "settings.tombstone_rows_min", settings.tombstone_rows_min, 1, SEGMENT_ROWS_MAX
    )
    _check_range(
        found,
        "settings.segment_rows_max",
        settings.segment_rows_max,
        SEGMENT_ROWS_MIN,
        SEGMENT_ROWS_MAX,
    )
    _check_range(
        found,
        "settings.segment_bytes_max",
        settings.segment_bytes_max,
        SEGMENT_BYTES_MIN,
        SEGMENT_BYTES_MAX,
    )
    _check_range(
        found, "settings.segment_idle_s", settings.segment_idle_s, 0.01, SEGMENT_IDLE_S_MAX
    )
    _check_range(found, "settings.walk_cost_ratio_max", settings.walk_cost_ratio_max, 1.01, 1_000.0)
    _check_range(
        found,
        "settings.unindexed_rows_max",
        settings.unindexed_rows_max,
        UNINDEXED_ROWS_MIN,
        UNINDEXED_ROWS_MAX,
    )
    return found


def _tail_violations(recall: float, share: float) -> list[FieldViolation]:
    """Return what is wrong with the objective about the tail; 0 and 0 are none."""
    found: list[FieldViolation] = []
    recall_field, share_field = "settings.recall_tail_objective", "settings.recall_objective_share"
    if not 0.0 <= recall <= 1.0:
        found.append(
            FieldViolation(
                recall_field,
                f"{recall} is no recall; it must be more than 0 and at most 1, for example 0.8, or"
                " 0 for no objective about the tail",
            )
        )
    if share and not OBJECTIVE_SHARE_MIN <= share <= OBJECTIVE_SHARE_MAX:
        found.append(
            FieldViolation(
                share_field,
                f"{share} is not between {OBJECTIVE_SHARE_MIN} and {OBJECTIVE_SHARE_MAX}, the"
                " largest share that a measurement can show, nor 0 for no objective",
            )
        )
    if not found and bool(recall) != bool(share):
        missing, given = (share_field, recall_field) if recall else (recall_field, share_field)
        example = OBJECTIVE_SHARE_MAX if recall else 0.8
        found.append(
            FieldViolation(
                missing,
                f"is 0, but {given} is {recall or share}: set {missing} too, for example"
                f" {example}, or {given} to 0",
            )
        )
    return found


def _check_range(
    found: list[FieldViolation], field: str, value: float, low: float, high: float
) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        found.append(FieldViolation(field, f"{value} is not between {low} and {high}"))


def _raise_if_any(found: Sequence[FieldViolation]) -> None:
    if found:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise InvalidArgument(text, violations=found)


# ------------------------------------------------------------------------------------------- ids


def validate_ids(
    ids: pa.StringArray | Sequence[str], *, field: str = "ids", rows_max: int = GET_IDS_MAX
) -> None:
    """Raise `InvalidArgument` unless there are 1 to `rows_max` ids of 1 to 512 bytes of UTF-8."""
    column = ids if isinstance(ids, pa.Array) else id_array(ids, field=field)
    _check_rows(len(column), field=field, rows_max=rows_max)
    if column.null_count:
        row = first(np.asarray(column.is_null()))
        raise InvalidArgument.of(f"{field}[{row}]", "is missing; every record needs an id")
    lengths = byte_lengths(column)
    wrong = (lengths < 1) | (lengths > ID_BYTES_MAX)
    if wrong.any():
        row = first(wrong)
        length = int(lengths[row])
        text = "is empty" if length == 0 else f"has {length} bytes of UTF-8"
        raise InvalidArgument.of(f"{field}[{row}]", f"{text}; an id has 1 to {ID_BYTES_MAX} bytes")


def id_array(ids: Sequence[str], *, field: str = "ids") -> pa.StringArray:
    """Return `ids` as an Arrow column; raises `InvalidArgument` for what is not valid text."""
    try:
        return pa.array(ids, type=pa.string())
    except (UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise InvalidArgument.of(field, f"ids are valid Unicode text: {error}") from error


def _check_rows(rows: int, *, field: str, rows_max: int) -> None:
    if not 1 <= rows <= rows_max:
        fix = "send at least one" if rows < 1 else f"send at most {rows_max} a call"
        raise InvalidArgument.of(field, f"{rows} given; {fix}")


# --------------------------------------------------------------------------------------- vectors


def validate_vectors(
    vectors: Float32Matrix, *, model: ModelSpec, field: str = "vectors"
) -> Float32Matrix:
    """Return `vectors` (n, d) as they are stored: C-contiguous float32, unit for cosine.

    Raises `InvalidArgument` for a wrong dimension, a value that is not finite, a zero vector under
    cosine, and a vector so long that its squared length overflows float32 under the other metrics.
    A cosine vector that already has unit length is returned bit for bit.
    """
    if vectors.ndim != 2 or vectors.shape[1] != model.dimension:
        given = vectors.shape[1] if vectors.ndim == 2 else vectors.shape
        raise InvalidArgument.of(
            field,
            f"dimension {given}, but model {model.name!r} has dimension {model.dimension};"
            " embed with that model",
        )
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
    odd = ~np.isfinite(squares)
    if model.metric is Metric.L2:
        odd |= squares > L2_SQUARE_MAX
    if odd.any():
        _check_finite(rows, odd, field=field)
        if model.metric is not Metric.COSINE:
            raise InvalidArgument.of(
                f"{field}[{first(odd)}]",
                "is so long that its squared length or distance overflows float32;"
                " scale the vectors down",
            )
    if model.metric is not Metric.COSINE:
        return rows
    return _unit(rows, squares, field=field)


def _unit(rows: Float32Matrix, squares: npt.NDArray[np.float32], *, field: str) -> Float32Matrix:
    change = ~(np.abs(squares - 1.0) <= UNIT_TOLERANCE)
    if not change.any():
        return rows
    # In float64 neither the square of 1e38 overflows nor that of 1e-38 vanishes.
    wide = rows[change].astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    if not lengths.all():
        row = int(np.flatnonzero(change)[first(lengths == 0.0)])
        raise InvalidArgument.of(
            f"{field}[{row}]",
            "is the zero vector, which has no direction for cosine to compare;"
            " leave the record out or use inner_product or l2",
        )
    unit = rows.copy() if not change.all() else np.empty_like(rows)
    unit[change] = wide / lengths[:, None]
    return unit


def _check_finite(rows: Float32Matrix, suspects: npt.NDArray[np.bool_], *, field: str) -> None:
    for row in np.flatnonzero(suspects):
        wrong = ~np.isfinite(rows[row])
        if wrong.any():
            position = first(wrong)
            raise InvalidArgument.of(
                f"{field}[{row}]",
                f"holds {rows[row, position]} at position {position}; every value must be finite",
            )


# --------------------------------------------------------------------------------------- records


def validate_batch(batch: RecordBatch, *, collection: Collection) -> RecordBatch:
    """Return `batch` ready to be written (vectors as `validate_vectors` returns them).

    Raises `InvalidArgument` that names the field and the row. Ids may repeat within the batch.
    """
    validate_ids(batch.ids, rows_max=WRITE_ROWS_MAX)
    rows = len(batch.ids)
    parts = [("vectors", len(batch.vectors)), ("payloads", len(batch.payloads))]
    if collection.schema:
        parts.append(("attributes", batch.attributes.num_rows))
    for field, length in parts:
        if length != rows:
            raise InvalidArgument.of(field, f"{length} rows for {rows} ids; send one for each id")
    vectors = validate_vectors(batch.vectors, model=collection.model)
    check_attributes(batch.attributes, schema=collection.schema)
    validate_payloads(batch.payloads)
    if vectors is batch.vectors:
        return batch
    return RecordBatch(
        ids=batch.ids, vectors=vectors, attributes=batch.attributes, payloads=batch.payloads
    )


def validate_patch(patch: RecordPatch, *, collection: Collection) -> RecordPatch:
    """Return `patch` ready to be applied; its ids may repeat.

    Raises `InvalidArgument` that names the field and the row, also where nothing is to be changed.
    """
    validate_ids(patch.ids, rows_max=WRITE_ROWS_MAX)
    rows, names = len(patch.ids), patch.attributes.schema.names
    payloads, vectors = patch.payloads, patch.vectors
    if not names and payloads is None and vectors is None:
        raise InvalidArgument.of(
            "attributes", "nothing to change; give attributes, payloads or vectors"
        )
    lengths = {
        "attributes": patch.attributes.num_rows if names else rows,
        "payloads": rows if payloads is None else len(payloads),
        "vectors": rows if vectors is None else len(vectors),
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
        return patch
    return replace(patch, vectors=validate_vectors(vectors, model=collection.model))


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


# ------------------------------------------------------------------------------------------ reads


def validate_search(queries: Float32Matrix, options: SearchOptions, *, model: ModelSpec) -> None:
    """Raise `InvalidArgument` unless the number of queries, k and ef are within their limits.

    The vectors themselves are for `validate_vectors`, the filter for `validate_filter`.
    """
    count = len(queries)
    _check_rows(count, field="queries", rows_max=SEARCH_QUERIES_MAX)
    validate_search_options(options, model=model)
    if count * options.k > SEARCH_HITS_MAX:
        raise InvalidArgument.of(
            "k",
            f"{count} queries times k = {options.k} is more than {SEARCH_HITS_MAX} hits;"
            " send fewer queries a call",
        )


def validate_search_options(options: SearchOptions, *, model: ModelSpec) -> None:
    """Raise `InvalidArgument` unless k, ef, the objective, the tag and the model are acceptable."""
    if not 1 <= options.k <= K_MAX:
        raise InvalidArgument.of("k", f"{options.k} is not between 1 and {K_MAX}")
    if options.ef is not None and not 1 <= options.ef <= EF_MAX:
        raise InvalidArgument.of("ef", f"{options.ef} is not between 1 and {EF_MAX}")
    objective = options.recall_objective
    if objective is not None and not 0.0 < objective <= 1.0:
        raise InvalidArgument.of(
            "recall_objective", f"{objective} must be greater than 0 and at most 1"
        )
    checked_tag(options.tag)
    if options.model and options.model != model.name:
        raise InvalidArgument.of(
            "model",
            f"the query is tagged with model {options.model!r}, but the collection serves"
            f" {model.name!r}; vectors of two models cannot be compared",
        )


def validate_projection(projection: Projection, *, collection: Collection) -> None:
    """Raise `InvalidArgument` for an attribute or a model that is unknown or named twice."""
    known_models = [model.name for model in collection.usable_models]
    for number, name in enumerate(projection.models):
        if name not in known_models:
            raise InvalidArgument.of(
                f"models[{number}]", f"unknown model {name!r}; {suggestion(name, known_models)}"
            )
    if len(set(projection.models)) != len(projection.models):
        raise InvalidArgument.of("models", "names a model twice; name each once")
    if projection.models and not projection.vector:
        raise InvalidArgument.of("models", "names models, but no vectors are asked for: set vector")
    if not projection.attributes:
        return
    declared = [field.name for field in collection.schema]
    known = [*declared, "attributes", "payload", "vector", "version", "all"]
    for number, name in enumerate(projection.attributes):
        if name not in declared:
            raise InvalidArgument.of(
                f"attributes[{number}]", f"unknown attribute {name!r}; {suggestion(name, known)}"
            )
    if len(set(projection.attributes)) != len(projection.attributes):
        raise InvalidArgument.of("attributes", "names an attribute twice; name each once")


def validate_page_rows(rows_max: int) -> None:
    """Raise `InvalidArgument` unless a scan page of that many rows is allowed."""
    if not 1 <= rows_max <= SCAN_PAGE_ROWS_MAX:
        raise InvalidArgument.of(
            "rows_max", f"{rows_max} is not between 1 and {SCAN_PAGE_ROWS_MAX}"
        )


def validate_timeout(timeout_s: float) -> None:
    """Raise `InvalidArgument` unless the caller's time is positive and at most ten minutes."""
    if not 0.0 < timeout_s <= TIMEOUT_MAX_S:
        raise InvalidArgument.of(
            "timeout_s", f"{timeout_s} must be more than 0 and at most {TIMEOUT_MAX_S} seconds"
        )
