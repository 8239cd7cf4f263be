"""Fetches a task's sources: the segments and delete vectors of the present manifest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from annheal.errors import FailedPrecondition
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import COLLECTIONS_PREFIX, manifest_key
from annheal.metastore.protocol import MetaStore
from annheal.metastore.table import readable
from annheal.model.collection import Collection, ModelSpec
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import Manifest, SegmentEntry
from annheal.model.topology.task import CompactionTask
from annheal.objectstore.protocol import ObjectStore
from annheal.recall import load_memory
from annheal.segment import DeleteVector, Segment, fetch_segment, load_delete_vector
from annheal.segment.parts.files import fetch_part
from annheal.segment.parts.segment import PartSegment


class StaleTask(FailedPrecondition):
    """The task's collection or a source no longer exists: the task can never be done."""

    reason = "STALE_COMPACTION"


@dataclass(frozen=True, slots=True)
class Source:
    """A segment to rewrite, with its delete vector."""

    segment: Segment
    deletes: DeleteVector


async def load_collection(meta: MetaStore, collection_id: str) -> Collection:
    """Return the collection; raises `StaleTask` when it was dropped."""
    for stored in readable((await meta.list(COLLECTIONS_PREFIX)).items, Collection):
        if stored.value.id == collection_id:
            return stored.value
    raise StaleTask(f"collection {collection_id} is gone")


async def fetch_sources(
    meta: MetaStore, objects: ObjectStore, task: CompactionTask, *, directory: Path
) -> list[Source]:
    """Return the sources in the task's order; files are fetched into `directory` and mapped.

    Segments and delete vectors are those of one version of the manifest, in which an id has one
    live row. Raises `StaleTask` when a source is no longer in the manifest, `DataCorruption` when a
    checksum does not match.
    """
    manifest = await _load_manifest(meta, task)
    segments = {entry.segment_id: entry for entry in manifest.segments}
    deletes = {entry.segment_id: entry for entry in manifest.delete_vectors}
    gone = [source for source in task.sources if source not in segments]
    if gone:
        raise StaleTask(f"segments {gone} are no longer part of the shard")
    sources: list[Source] = []
    for segment_id in task.sources:
        entry = segments[segment_id]
        files = await fetch_segment(
            objects, task.collection_id, task.shard, entry, cache_dir=directory
        )
        segment = await asyncio.to_thread(Segment.open, files, entry)
        segment = await _with_parts(objects, task, segment, entry, directory)
        dead = DeleteVector.empty(segment.rows)
        if segment_id in deletes:
            dead = await load_delete_vector(objects, deletes[segment_id], rows=segment.rows)
        sources.append(Source(segment, dead))
    return sources


async def _with_parts(
    objects: ObjectStore,
    task: CompactionTask,
    segment: Segment,
    entry: SegmentEntry,
    directory: Path,
) -> Segment:
    parts: dict[str, PartSegment] = {}
    for part in entry.parts:
        files = await fetch_part(
            objects, task.collection_id, task.shard, segment.id, part, cache_dir=directory
        )
        parts[part.model] = await asyncio.to_thread(PartSegment, segment, files)
    return segment.with_parts(entry, parts) if parts else segment


async def fetch_logged_queries(
    objects: ObjectStore, task: CompactionTask, *, model: ModelSpec
) -> Float32Matrix | None:
    """Return the logged queries of the shard, (n, d), if they are vectors of `model`; else None."""
    memory = await load_memory(objects, task.collection_id, task.shard)
    if memory is None or memory.model != model.name or not len(memory.vectors):
        return None
    return memory.vectors if memory.vectors.shape[1] == model.dimension else None


async def _load_manifest(meta: MetaStore, task: CompactionTask) -> Manifest:
    key = manifest_key(task.collection_id, task.shard)
    stored = await meta.get(key)
    if stored is None:
        raise StaleTask(f"shard {task.collection_id}/{task.shard:05d} has no manifest")
    return decode_value(stored.value, Manifest, key=key)
