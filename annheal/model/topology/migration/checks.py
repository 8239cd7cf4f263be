"""Checks of a migration, its settings and thresholds, wherever they come in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.names import checked_name, checked_shard
from annheal.model.topology.migration.gate import GateThresholds
from annheal.model.topology.migration.state import Migration, MigrationSettings

WHO_CHARACTERS_MAX: Final = 100
WHY_CHARACTERS_MAX: Final = 500
TASKS_AT_ONCE_MAX: Final = 64
"""Of `tasks_max` of a migration."""
ROWS_PER_SECOND_MAX: Final = 1e9

_SETTINGS: Final[dict[str, tuple[float, float]]] = {
    "rows_per_second": (0.0, ROWS_PER_SECOND_MAX),
    "tasks_max": (1, TASKS_AT_ONCE_MAX),
    "canary_share": (0.0, 1.0),
    "shadow_share": (0.0, 1.0),
}
_THRESHOLDS: Final[dict[str, tuple[float, float]]] = {
    "recall_min": (0.0, 1.0),
    "overlap_min": (0.0, 1.0),
    "lacking_share_max": (0.0, 1.0),
    "latency_ratio_max": (0.0, 1e6),
    "bridge_error_max": (0.0, 1e6),
    "ndcg_gain_min": (-1.0, 1.0),
    "recall_gain_min": (-1.0, 1.0),
}


def check_settings(settings: MigrationSettings, thresholds: GateThresholds) -> None:
    """Raise `InvalidArgument` that names every value outside its range."""
    found = [*_outside(settings, _SETTINGS), *_outside(thresholds, _THRESHOLDS)]
    if found:
        text = "; ".join(f"{one.field}: {one.description}" for one in found)
        raise InvalidArgument(text, violations=found)


def check_migration(migration: Migration) -> None:
    """Raise `InvalidArgument` that names the field when a stored migration cannot be one."""
    checked_name(migration.collection_id, field="collection_id")
    for number, one in enumerate(migration.segments):
        checked_shard(one.shard, field=f"segments[{number}].shard")
        checked_name(one.segment_id, field=f"segments[{number}].segment_id")
    if not migration.from_model or migration.from_model == migration.to_model:
        raise InvalidArgument.of("to_model", "must be another model than from_model")
    check_settings(migration.settings, migration.thresholds)


def checked_order(who: str, why: str) -> tuple[str, str]:
    """Return who asks and why; raises `InvalidArgument` without a name, or for long texts."""
    if not who.strip():
        raise InvalidArgument.of("who", "is empty; say who asks for it")
    for field, text, limit in (("who", who, WHO_CHARACTERS_MAX), ("why", why, WHY_CHARACTERS_MAX)):
        if len(text) > limit:
            raise InvalidArgument.of(field, f"has more than {limit} characters")
    return who.strip(), why.strip()


def _outside(
    holder: MigrationSettings | GateThresholds, ranges: dict[str, tuple[float, float]]
) -> Iterator[FieldViolation]:
    for name, (low, high) in ranges.items():
        value = getattr(holder, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            yield FieldViolation(name, f"{value} is not between {low:g} and {high:g}")
