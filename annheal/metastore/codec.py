"""Metadata values as JSON of the frozen dataclasses of `annheal.model`."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from annheal.errors import DataCorruption, InvalidArgument
from annheal.metastore import keys
from annheal.model.collection import Collection
from annheal.model.names import checked_name
from annheal.model.topology.checks import check_manifest, check_task
from annheal.model.topology.manifest import CollectedObjects, Manifest
from annheal.model.topology.migration.checks import check_migration
from annheal.model.topology.migration.state import Migration
from annheal.model.topology.shard import Assignment, NodeRegistration, NodeSettings
from annheal.model.topology.task import CompactionTask, TaskClaim

ValueT = TypeVar("ValueT")

# msgspec 0.22 crashes when threads describe a dataclass to it at the same time for the first time.
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_describing = threading.Lock()


def encode_value(value: object) -> bytes:
    """Return `value` (a dataclass of `annheal.model`) as JSON; equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def decode_value(stored: bytes, as_type: type[ValueT], *, key: str) -> ValueT:
    """Return the value stored under `key`.

    Fields that `as_type` does not know are ignored, so that an older process can read what a newer
    one wrote. Raises `DataCorruption`, which names the key, when the bytes are not such a value,
    when an id in it is none (ids become parts of paths), and when it belongs under another key (a
    copy that somebody made must not count as a second shard or task).
    """
    try:
        value = _decoder(as_type).decode(stored)
        _check(value, key)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidArgument) as error:
        raise DataCorruption(
            f"metadata key {key!r} does not hold a {as_type.__name__}: {error}",
            metadata={"key": key},
        ) from error
    return value


def _check(value: object, key: str) -> None:
    """Raise `InvalidArgument` when `value` does not belong under `key` or holds a bad id."""
    match value:
        case Collection():
            own = keys.collection_key(value.name)
            checked_name(value.id, field="id")
        case Assignment():
            own = keys.shard_key(value.collection_id, value.shard)
            checked_name(value.collection_id, field="collection_id")
        case Manifest():
            own = keys.manifest_key(value.collection_id, value.shard)
            check_manifest(value)
        case CollectedObjects():
            own = keys.collected_key(value.collection_id, value.shard)
        case CompactionTask():
            own = keys.task_key(value.id)
            check_task(value)
        case TaskClaim():
            own = keys.claim_key(value.task_id)
        case Migration():
            own = keys.migration_key(value.collection_id)
            check_migration(value)
        case NodeRegistration():
            own = keys.node_key(value.node_id)
        case NodeSettings():
            own = keys.node_settings_key(value.node_id)
        case _:
            return
    if own != key:
        raise InvalidArgument.of("key", f"what it holds belongs under {own!r}")


def _decoder(kind: type[ValueT]) -> msgspec.json.Decoder[ValueT]:
    found = _decoders.get(kind)
    if found is None:
        with _describing:
            found = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return found
