"""Checks of collections: each error names the field and the fix."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.collection import Collection, Schema
from annheal.model.limits import (
    ATTRIBUTE_FIELDS_MAX,
    ATTRIBUTE_NAME_PATTERN,
    DIMENSION_MAX,
    ID_BYTES_MAX,
    K_MAX,
    MODELS_EVER_MAX,
    MODELS_MAX,
    NAME_PATTERN,
    RECALL_BUDGET_MAX,
    SHARD_COUNT_MAX,
)
from annheal.model.measures.recall_tail import OBJECTIVE_SHARE_MAX, OBJECTIVE_SHARE_MIN
from annheal.model.suggestions import suggestion

M_MIN, M_MAX = 2, 128
EF_CONSTRUCTION_MIN, EF_CONSTRUCTION_MAX = 4, 4_096
SEAL_ROWS_MAX, SEAL_BYTES_MAX, SEAL_AGE_S_MAX = 1_000_000, 1 << 30, 3_600.0
SEGMENT_ROWS_MIN, SEGMENT_ROWS_MAX = 1_000, 10_000_000
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 1 << 20, 5_000_000_000
"""The files of a segment are objects, and S3 takes at most 5 GiB for one."""
SEGMENT_IDLE_S_MAX = 30 * 24 * 3_600.0
UNINDEXED_ROWS_MIN, UNINDEXED_ROWS_MAX = 1_000, 10_000_000

_NAME = re.compile(NAME_PATTERN)
_ATTRIBUTE_NAME = re.compile(ATTRIBUTE_NAME_PATTERN)


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
