"""Loads a shard: its manifest, segments and delete vectors, then replays the end of its log."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from annheal.errors import DataCorruption, NotFound
from annheal.model.collection import Collection
from annheal.model.topology.manifest import DeleteVectorEntry, Manifest, SegmentEntry
from annheal.objectstore.protocol import ObjectStore
from annheal.segment import DeleteVector, Segment, fetch_segment, load_delete_vector
from annheal.segment.parts.files import fetch_part
from annheal.segment.parts.segment import PartSegment
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.rows.shard import Shard
from annheal.shard_node.rows.view import SegmentView
from annheal.shards.object_keys import parse_slot, shard_part, wal_key, wal_prefix
from annheal.shards.wal import decode_wal_object, is_fence_size

ResultT = TypeVar("ResultT")

LOADS_AT_ONCE = 4
SLOTS_AT_ONCE = 16


@dataclass(slots=True)
class LogPosition:
    """How far a log was read.

    `epoch` is the highest of its objects, `data_slots` are the slots of objects that can be trimmed
    later: all but fences.
    """

    next_slot: int
    epoch: int
    data_slots: list[int]


class SegmentLoader:
    """Downloads, verifies and maps segments of one shard, at most `LOADS_AT_ONCE` at a time."""

    def __init__(
        self,
        objects: ObjectStore,
        collection: Collection,
        number: int,
        *,
        cache: Path,
        lanes: Lanes,
    ) -> None:
        self._objects = objects
        self._collection = collection
        self._number = number
        self._cache = cache
        self._lanes = lanes
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)
        self._directory = cache / shard_part(collection.id, number)

    async def load(self, entry: SegmentEntry) -> Segment:
        """Download, verify (INV-5) and map a segment with its vector parts.

        Raises `DataCorruption`, naming the file, and `NotFound` when the segment was deleted.
        """
        async with self._loading:
            files = await fetch_segment(
                self._objects, self._collection.id, self._number, entry, cache_dir=self._cache
            )
            segment = await self._opened(lambda: Segment.open(files, entry), files.paths, entry)
            return await self._with_parts(segment, entry)

    async def load_parts(self, segment: Segment, entry: SegmentEntry) -> Segment:
        """Return `segment` with the vector parts that `entry` names; raises as `load` does."""
        async with self._loading:
            return await self._with_parts(segment, entry)

    async def _with_parts(self, segment: Segment, entry: SegmentEntry) -> Segment:
        if not entry.parts and not segment.parts:
            return segment
        parts: dict[str, PartSegment] = {}
        for part in entry.parts:
            present = segment.parts.get(part.model)
            if present is not None and present.id == part.part_id:
                parts[part.model] = present
                continue
            files = await fetch_part(
                self._objects,
                self._collection.id,
                self._number,
                entry.segment_id,
                part,
                cache_dir=self._cache,
            )
            parts[part.model] = await self._opened(
                partial(PartSegment, segment, files), files.paths, entry
            )
        return segment.with_parts(entry, parts)

    async def _opened(
        self, work: Callable[[], ResultT], paths: Mapping[str, Path], entry: SegmentEntry
    ) -> ResultT:
        try:
            return await self._maintain(work)
        except (FileNotFoundError, RuntimeError) as error:  # FAISS raises RuntimeError
            if all(path.exists() for path in paths.values()):
                raise
            raise NotFound(f"segment {entry.segment_id} is not stored any more") from error

    async def load_view(
        self, entry: SegmentEntry, deletes: DeleteVectorEntry | None
    ) -> SegmentView:
        """Load a segment with its delete vector (None: no row is dead)."""
        segment = await self.load(entry)
        if deletes is None:
            return SegmentView(segment, DeleteVector.empty(segment.rows))
        return SegmentView(
            segment, await load_delete_vector(self._objects, deletes, rows=segment.rows)
        )

    async def discard(self, segment_ids: Iterable[str]) -> None:
        """Delete the cached files of segments that are no longer served.

        Reads that still use them have them mapped.
        """
        paths = [self._directory / segment_id for segment_id in segment_ids]
        await self._maintain(lambda: _remove(paths))

    async def discard_others(self, manifest: Manifest) -> None:
        """Delete the cached files of all segments of the shard that are not in `manifest`."""
        named = {entry.segment_id for entry in manifest.segments}

        def discard() -> None:
            if self._directory.is_dir():
                _remove([path for path in self._directory.iterdir() if path.name not in named])

        await self._maintain(discard)

    async def _maintain(self, work: Callable[[], ResultT]) -> ResultT:
        return await self._lanes.maintenance(work, collection_id=self._collection.id)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


async def load_manifest(shard: Shard, manifest: Manifest, loader: SegmentLoader) -> None:
    """Load the segments of `manifest` into `shard`; raises as `SegmentLoader.load` does."""
    deletes = {entry.segment_id: entry for entry in manifest.delete_vectors}
    views = await asyncio.gather(
        *(loader.load_view(e, deletes.get(e.segment_id)) for e in manifest.segments)
    )
    shard.install(
        views, last_sequence=manifest.last_sequence, checkpoint_slot=manifest.checkpoint_slot
    )


async def replay_log(
    objects: ObjectStore, shard: Shard, position: LogPosition, *, lanes: Lanes
) -> None:
    """Apply all slots from `position.next_slot` to the end of the log, and advance `position`.

    Raises `NotFound` for a slot that was trimmed while the log was read: the manifest has changed
    and must be read again. Raises `DataCorruption` for a damaged log object.
    """
    collection_id = shard.collection.id
    prefix = wal_prefix(collection_id, shard.number)
    while True:
        after = wal_key(collection_id, shard.number, position.next_slot - 1)
        after = after if position.next_slot > 0 else prefix
        listed = [parse_slot(stat.key) async for stat in objects.list(prefix, after=after)]
        slots = [slot for slot in listed if slot is not None]  # None: a foreign object
        if not slots:
            return
        if slots != list(range(position.next_slot, position.next_slot + len(slots))):
            raise NotFound(f"log of {prefix} has a gap after slot {position.next_slot - 1}")
        for start in range(0, len(slots), SLOTS_AT_ONCE):
            keys = [
                wal_key(collection_id, shard.number, s)
                for s in slots[start : start + SLOTS_AT_ONCE]
            ]
            bodies = await asyncio.gather(*(objects.get(key) for key in keys))
            for key, body in zip(keys, bodies, strict=True):
                await lanes.replay(
                    _applier(shard, position, key, body), collection_id=collection_id
                )


def _applier(shard: Shard, position: LogPosition, key: str, body: bytes) -> Callable[[], None]:
    def apply() -> None:
        found = decode_wal_object(body, key=key)
        if found.slot != position.next_slot:
            raise DataCorruption(f"log object {key} says that it is slot {found.slot}")
        shard.apply(found.entries, slot=found.slot, last_sequence=found.last_sequence)
        position.next_slot += 1
        position.epoch = max(position.epoch, found.epoch)
        if not found.is_fence:
            position.data_slots.append(found.slot)

    return apply


async def replay_slot(
    objects: ObjectStore, shard: Shard, position: LogPosition, *, lanes: Lanes
) -> None:
    """Apply the slot at `position`; raises `NotFound` if it was trimmed or never written."""
    key = wal_key(shard.collection.id, shard.number, position.next_slot)
    body = await objects.get(key)
    await lanes.replay(_applier(shard, position, key, body), collection_id=shard.collection.id)


async def list_trimmable(
    objects: ObjectStore, collection_id: str, shard: int, *, checkpoint_slot: int
) -> list[int]:
    """Return the slots up to `checkpoint_slot` that former owners did not trim, without fences.

    Fences are never deleted: the slot after an owner's last one has the fence of its successor, so
    a put of a deposed owner fails even if it comes late (docs/adr/0008). The object of the
    checkpoint slot is deleted after the next checkpoint, see `Publication`.
    """
    slots: list[int] = []
    async for stat in objects.list(wal_prefix(collection_id, shard)):
        slot = parse_slot(stat.key)
        if slot is None:
            continue
        if slot > checkpoint_slot:
            break
        if not is_fence_size(stat.size_bytes):
            slots.append(slot)
    return slots
