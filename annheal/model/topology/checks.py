"""Checks of ids in what arrives from outside the process, before they become parts of paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from annheal.errors import InvalidArgument
from annheal.model.limits import SHARD_COUNT_MAX
from annheal.model.names import checked_name, checked_shard
from annheal.model.topology.manifest import Manifest, SegmentEntry
from annheal.model.topology.task import CompactionTask


def check_manifest(manifest: Manifest) -> None:
    """Raise `InvalidArgument` that names the field when an id in `manifest` is none."""
    checked_name(manifest.collection_id, field="collection_id")
    checked_shard(manifest.shard)
    _check_entries(manifest.segments, field="segments")
    for number, entry in enumerate(manifest.delete_vectors):
        checked_name(entry.segment_id, field=f"delete_vectors[{number}].segment_id")


def check_task(task: CompactionTask) -> None:
    """Raise `InvalidArgument` that names the field when an id in `task` is none."""
    checked_name(task.id, field="id")
    checked_name(task.collection_id, field="collection_id")
    checked_shard(task.shard)
    for number, source in enumerate(task.sources):
        checked_name(source, field=f"sources[{number}]")
    if task.output is not None:
        _check_entries([task.output], field="output")
    if task.part is not None:
        checked_name(task.part.part_id, field="part.part_id")


def checked_shards(numbers: Sequence[int]) -> tuple[int, ...]:
    """Return `numbers`; raises `InvalidArgument` for none, too many or repeated ones."""
    if not 1 <= len(numbers) <= SHARD_COUNT_MAX:
        raise InvalidArgument.of(
            "shards", f"names {len(numbers)} shards; name 1 to {SHARD_COUNT_MAX}"
        )
    if len(set(numbers)) != len(numbers):
        raise InvalidArgument.of("shards", "names a shard twice")
    return tuple(checked_shard(number, field="shards") for number in numbers)


def _check_entries(entries: Iterable[SegmentEntry], *, field: str) -> None:
    for number, entry in enumerate(entries):
        checked_name(entry.segment_id, field=f"{field}[{number}].segment_id")
        for place, part in enumerate(entry.parts):
            checked_name(part.part_id, field=f"{field}[{number}].parts[{place}].part_id")
