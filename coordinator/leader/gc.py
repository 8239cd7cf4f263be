"""Garbage collection: deletes objects that no manifest references.

`plan_garbage`, a pure function, decides from a listing, the manifests and tasks read *after* it,
and the time at which this leader first saw each object unreferenced. An object is deleted once the
same leader has seen it unreferenced for the whole grace period: a reader of an older manifest has
finished by then. Before it deletes objects of a shard, the collector stores their names in the
metadata store, in a transaction that fails if the manifest has changed (`CollectedObjects`): an
owner that has uploaded objects and not stored its manifest yet finds them there, and makes new ones
(INV-5, ADR 35). Objects of a collection that does not exist are deleted only if a `dropped/` marker
says that the collection was dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as AnyOf
from dataclasses import dataclass, field, replace

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.collections import forget_shards
from annheal.errors import Conflict, DataCorruption, InvalidArgument
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.protocol import Compare, MetaStore, Put
from annheal.metastore.table import Stored
from annheal.model.collection import Collection
from annheal.model.topology.cluster import GarbageKind, GarbageReport
from annheal.model.topology.manifest import CollectedObjects, Manifest
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.runtime.fail_points import fail_point
from annheal.shards.object_keys import ObjectKey, ObjectKind, parse_key, part_prefix, segment_prefix

_log = logging.getLogger(__name__)

_KINDS = (
    ObjectKind.SEGMENT,
    ObjectKind.VECTORS,
    ObjectKind.DELETES,
    ObjectKind.WAL,
    ObjectKind.RECALL,
)
_OWNER_KINDS = (ObjectKind.WAL, ObjectKind.RECALL)
"""Kinds of objects that the owner of a shard deletes itself as long as the collection exists."""
DELETE_BATCH = 1_000
"""Objects of one delete call."""
UNREFERENCED_MAX = 1_000_000
"""Units (objects, directories of segments and parts) that are remembered as unreferenced."""
COLLECTED_MAX = 1_000
"""Units of one shard in `CollectedObjects`; what exceeds it is deleted in a later round."""
_CLOCK_SKEW_S = 300.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """What one round found.

    Attributes:
        delete: keys of the objects to delete now.
        unreferenced_since: for the next round: seconds since the epoch at which each unit (see
            `_unit_of`) was first seen unreferenced.
        waiting: keys of the unreferenced objects whose grace period is not over.
    """

    delete: tuple[str, ...] = ()
    unreferenced_since: Mapping[str, float] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()


def plan_garbage(
    listing: Iterable[ObjectStat],
    manifests: Mapping[tuple[str, int], Manifest],
    tasks: Iterable[CompactionTask],
    *,
    collections: frozenset[str],
    dropped: frozenset[str],
    unreferenced_since: Mapping[str, float],
    now_s: float,
    grace_s: float,
    needs_space: bool = False,
) -> Garbage:
    """Return the garbage in `listing`; foreign keys are passed over.

    `collections` are the ids of those that exist, `dropped` of those with a marker; times are
    seconds since the epoch. The directory of a segment or vector part is deleted or kept as a
    whole. Kept are: what a manifest references; logs and recall memories of existing collections
    (the owners trim them); all objects of a shard without a manifest; objects younger than the
    grace period; and, while a shard has an unfinished task, objects written since the task was
    planned (less `_CLOCK_SKEW_S`), because they may be its output. If the disk `needs_space`, the
    objects of dropped collections go without a grace period: no manifest references them, and no
    reader waits for them.
    """
    oldest_task_s = _oldest_task_s(tasks)
    remembered: dict[str, float] = {}
    members: dict[str, list[tuple[ObjectKey, ObjectStat]]] = {}
    for stat in listing:
        key = parse_key(stat.key)
        if key is not None:
            members.setdefault(_unit_of(key), []).append((key, stat))
    delete: list[str] = []
    waiting: list[str] = []
    for unit, found in members.items():
        key, stats = found[0][0], [stat for _, stat in found]
        if key.collection_id in collections:
            manifest = manifests.get((key.collection_id, key.shard))
            if manifest is None or key.kind in _OWNER_KINDS or _is_referenced(manifest, key):
                continue
            newest_s = max(stat.modified_s for stat in stats)
            planned_s = oldest_task_s.get((key.collection_id, key.shard))
            if planned_s is not None and newest_s >= planned_s - _CLOCK_SKEW_S:
                continue
        elif key.collection_id not in dropped:
            continue
        elif needs_space:
            delete.extend(stat.key for stat in stats)
            continue
        since_s = unreferenced_since.get(unit, now_s)
        young = any(now_s - stat.modified_s < grace_s for stat in stats)
        if now_s - since_s < grace_s or young:
            if len(remembered) < UNREFERENCED_MAX:
                remembered[unit] = since_s
            waiting.extend(stat.key for stat in stats)
            continue
        delete.extend(stat.key for stat in stats)
    return Garbage(tuple(delete), remembered, tuple(waiting))


def _oldest_task_s(tasks: Iterable[CompactionTask]) -> dict[tuple[str, int], float]:
    """Return when the oldest unfinished task of each shard was planned."""
    oldest: dict[tuple[str, int], float] = {}
    for task in tasks:
        if task.phase in (TaskPhase.PENDING, TaskPhase.BUILT):
            shard = (task.collection_id, task.shard)
            oldest[shard] = min(task.created_at_s, oldest.get(shard, task.created_at_s))
    return oldest


def _unit_of(key: ObjectKey) -> str:
    """Return what is deleted or kept as a whole: a directory, or the object itself.

    Segments and vector parts have directories.
    """
    if key.kind is ObjectKind.SEGMENT:
        return segment_prefix(key.collection_id, key.shard, key.segment_id)
    if key.kind is ObjectKind.VECTORS:
        return part_prefix(key.collection_id, key.shard, key.segment_id, key.part_id)
    return key.key


def _is_referenced(manifest: Manifest, key: ObjectKey) -> bool:
    if key.kind is ObjectKind.SEGMENT:
        return any(segment.segment_id == key.segment_id for segment in manifest.segments)
    if key.kind is ObjectKind.VECTORS:
        return any(
            segment.segment_id == key.segment_id and part.part_id == key.part_id
            for segment in manifest.segments
            for part in segment.parts
        )
    return any(entry.key == key.key for entry in manifest.delete_vectors)


def report_of(
    garbage: Garbage, listing: Iterable[ObjectStat], *, dry_run: bool, grace_s: float
) -> GarbageReport:
    """Return the numbers and bytes of deleted and of waiting objects by kind."""
    sizes = {stat.key: stat.size_bytes for stat in listing}
    kinds: list[GarbageKind] = []
    for kind in _KINDS:
        gone = [sizes[key] for key in garbage.delete if key.startswith(kind.prefix)]
        waiting = [sizes[key] for key in garbage.waiting if key.startswith(kind.prefix)]
        kinds.append(GarbageKind(kind.value, len(gone), sum(gone), len(waiting), sum(waiting)))
    return GarbageReport(tuple(kinds), dry_run, grace_s)


class GarbageCollector:
    """Lists the object store and deletes what `plan_garbage` returns; only the leader runs it."""

    def __init__(
        self,
        catalog: Catalog,
        store: MetaStore,
        objects: ObjectStore,
        *,
        grace_s: float,
        wall_clock: Callable[[], float],
        needs_space: Callable[[], bool] = lambda: False,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._objects = objects
        self._grace_s = grace_s
        self._needs_space = needs_space
        self._wall_clock = wall_clock
        self._unreferenced_since: Mapping[str, float] = {}
        self._one_round = asyncio.Lock()

    async def collect(self, *, dry_run: bool = False) -> GarbageReport:
        """Run one round: delete the garbage, or only report it if `dry_run`.

        Calls wait for one another. The report has no kinds when a collection or a task could not
        be decoded; then nothing was deleted.
        """
        async with self._one_round:
            return await self._collect(dry_run=dry_run)

    async def _collect(self, *, dry_run: bool) -> GarbageReport:
        listing: list[ObjectStat] = []
        for kind in _KINDS:
            async for stat in self._objects.list(kind.prefix):
                listing.append(stat)
        dropped = frozenset(key.collection_id for key, _ in await self._markers())
        # Read after the listing: an object that was uploaded and referenced meanwhile is kept.
        collections = await self._collections()
        manifests = await self._manifests()
        tasks = await self._tasks()
        if collections is None or tasks is None:
            return GarbageReport(dry_run=dry_run, grace_s=self._grace_s)
        garbage = plan_garbage(
            listing,
            {shard: stored.value for shard, stored in manifests.items()},
            tasks,
            collections=collections,
            dropped=dropped - collections,
            unreferenced_since=self._unreferenced_since,
            now_s=self._wall_clock(),
            grace_s=self._grace_s,
            needs_space=self._needs_space(),
        )
        if dry_run:
            return report_of(garbage, listing, dry_run=dry_run, grace_s=self._grace_s)
        garbage = await self._announced(garbage, listing, manifests)
        report = report_of(garbage, listing, dry_run=dry_run, grace_s=self._grace_s)
        self._unreferenced_since = garbage.unreferenced_since
        await self._delete_shards(dropped - collections)
        for first in range(0, len(garbage.delete), DELETE_BATCH):
            fail_point("coordinator.collecting")
            await self._objects.delete(garbage.delete[first : first + DELETE_BATCH])
            fail_point("coordinator.collected")
        if garbage.delete:
            _log.info("deleted %d unreferenced objects", len(garbage.delete))
        await self._delete_markers(dropped - collections, listing, garbage.delete)
        return report

    async def _announced(
        self,
        garbage: Garbage,
        listing: Iterable[ObjectStat],
        manifests: Mapping[tuple[str, int], Stored[Manifest]],
    ) -> Garbage:
        """Return `garbage`, less what must not be deleted in this round.

        Deleted are objects of dropped collections, and those that `CollectedObjects` has: no
        manifest can reference them any more.
        """
        parsed = [parse_key(stat.key) for stat in listing]
        listed = {_unit_of(key) for key in parsed if key is not None}
        by_shard: dict[tuple[str, int], dict[str, list[str]]] = {}
        delete: list[str] = []
        for name in garbage.delete:
            key = parse_key(name)
            assert key is not None, name
            shard = (key.collection_id, key.shard)
            if shard in manifests:
                by_shard.setdefault(shard, {}).setdefault(_unit_of(key), []).append(name)
            else:
                delete.append(name)
        waiting, since = list(garbage.waiting), dict(garbage.unreferenced_since)
        for shard, units in by_shard.items():
            announced = await self._announce(shard, manifests[shard], units, listed)
            for unit, names in units.items():
                if unit in announced:
                    delete += names
                else:
                    waiting += names
                    since[unit] = self._unreferenced_since.get(unit, self._wall_clock())
        return replace(
            garbage, delete=tuple(delete), waiting=tuple(waiting), unreferenced_since=since
        )

    async def _announce(
        self,
        shard: tuple[str, int],
        manifest: Stored[Manifest],
        units: Iterable[str],
        listed: AnyOf[str],
    ) -> AnyOf[str]:
        """Store that `units` are collected; return those of the shard that are.

        Fewer than all are stored beyond `COLLECTED_MAX`, and none if the manifest has changed.
        """
        key = keys.collected_key(*shard)
        item = await self._store.get(key)
        before = () if item is None else decode_value(item.value, CollectedObjects, key=key).units
        kept = [unit for unit in before if unit in listed]
        new = [unit for unit in units if unit not in set(kept)][: COLLECTED_MAX - len(kept)]
        if not new:
            return kept
        try:
            await self._store.commit(
                [Put(key, encode_value(CollectedObjects(*shard, units=(*kept, *new))))],
                compares=[
                    Compare(manifest.key, manifest.mod_revision),
                    Compare(key, 0 if item is None else item.mod_revision),
                ],
            )
        except Conflict:
            _log.info("garbage of shard %s/%05d waits: its manifest has changed", *shard)
            return kept
        return {*kept, *new}

    async def _delete_shards(self, dropped: frozenset[str]) -> None:
        """Delete what an interrupted drop, or a late owner, left in the metadata store."""
        known = {stored.value.collection_id for stored in self._catalog.assignments()}
        snapshot = await self._store.list(keys.MANIFESTS_PREFIX)
        shards = map(_shard_of_manifest, (item.key for item in snapshot.items))
        known |= {shard[0] for shard in shards if shard is not None}
        for collection_id in sorted(dropped & known):
            await forget_shards(self._store, collection_id)

    async def _delete_markers(
        self, dropped: frozenset[str], listing: Sequence[ObjectStat], deleted: Sequence[str]
    ) -> None:
        """Delete the markers of dropped collections that have no objects left."""
        gone = set(deleted)
        present = [parse_key(stat.key) for stat in listing if stat.key not in gone]
        left = {key.collection_id for key in present if key is not None}
        now_s = self._wall_clock()
        old = [
            stat.key
            for key, stat in await self._markers()
            if key.collection_id in dropped - left and now_s - stat.modified_s >= self._grace_s
        ]
        if old:
            await self._objects.delete(old)

    async def _markers(self) -> list[tuple[ObjectKey, ObjectStat]]:
        """Return the markers of dropped collections."""
        listed = [stat async for stat in self._objects.list(ObjectKind.DROPPED.prefix)]
        parsed = [(parse_key(stat.key), stat) for stat in listed]
        return [(key, stat) for key, stat in parsed if key is not None]

    async def _collections(self) -> frozenset[str] | None:
        """Return the ids of all collections, read from the store; None when one is unreadable."""
        snapshot = await self._store.list(keys.COLLECTIONS_PREFIX)
        try:
            return frozenset(
                decode_value(item.value, Collection, key=item.key).id for item in snapshot.items
            )
        except DataCorruption as error:
            _log.error("no garbage is collected: %s", error.message)
            return None

    async def _manifests(self) -> dict[tuple[str, int], Stored[Manifest]]:
        """Return the manifests by shard; a shard whose manifest is unreadable is left out."""
        manifests: dict[tuple[str, int], Stored[Manifest]] = {}
        for item in (await self._store.list(keys.MANIFESTS_PREFIX)).items:
            shard = _shard_of_manifest(item.key)
            if shard is None:
                continue
            try:
                manifest = decode_value(item.value, Manifest, key=item.key)
            except DataCorruption as error:
                _log.error("no garbage of one shard is collected: %s", error.message)
                continue
            manifests[shard] = Stored(item.key, manifest, item.mod_revision)
        return manifests

    async def _tasks(self) -> list[CompactionTask] | None:
        snapshot = await self._store.list(keys.TASKS_PREFIX)
        try:
            return [
                decode_value(item.value, CompactionTask, key=item.key) for item in snapshot.items
            ]
        except DataCorruption as error:
            _log.error("no garbage is collected: %s", error.message)
            return None


def _shard_of_manifest(key: str) -> tuple[str, int] | None:
    """Return the (collection id, shard) of a `manifests/` key; None, and a line, when foreign."""
    try:
        return keys.parse_manifest_key(key)
    except InvalidArgument as error:
        _log.warning("passed over in the metadata store: %s", error.message)
        return None
