"""Deleting objects that nothing names any more.

What may be deleted, and when, is a pure function of a listing, the manifests read *after* it, the
tasks, and since when each object has been seen unnamed. An object must stay unnamed for the whole
grace period in the eyes of one leader; then no reader of an older manifest can still want it.
Objects of unknown collections are left alone unless a `dropped/` mark says that somebody meant it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.collections import DROPPED_PREFIX, forget_shards
from annheal.errors import DataCorruption
from annheal.metastore import keys
from annheal.metastore.codec import decode_value
from annheal.metastore.protocol import MetaStore
from annheal.model.collection import Collection
from annheal.model.topology.cluster import GarbageKind, GarbageReport
from annheal.model.topology.manifest import Manifest
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.runtime.fail_points import fail_point

_log = logging.getLogger(__name__)

SEGMENTS_PREFIX = "segments/"
DELETES_PREFIX = "deletes/"
WAL_PREFIX = "wal/"
RECALL_PREFIX = "recall/"
PREFIXES = (SEGMENTS_PREFIX, DELETES_PREFIX, WAL_PREFIX, RECALL_PREFIX)
_OWNERS = ("wal", "recall")
"""What owners of shards delete themselves as long as the collection exists."""
DELETE_BATCH = 1_000
UNNAMED_MAX = 1_000_000
"""Objects and segment directories that are remembered as unnamed."""
_CLOCK_SKEW_S = 300.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """What to delete now, and what to remember for the next look: name -> seen unnamed since.

    `waiting` are the objects that nothing names and whose grace period is not over.
    """

    delete: tuple[str, ...] = ()
    unnamed_since: Mapping[str, float] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()


def plan_collection(
    listing: Iterable[ObjectStat],
    manifests: Mapping[tuple[str, int], Manifest],
    tasks: Iterable[CompactionTask],
    *,
    collections: frozenset[str],
    dropped: frozenset[str],
    unnamed_since: Mapping[str, float],
    now_s: float,
    grace_s: float,
) -> Garbage:
    """Return what to delete of `listing` (keys under `PREFIXES`).

    A segment is judged as a whole by its directory. Kept are: whatever a manifest names; logs and
    recall memories of collections that exist (their owners trim them); everything of a shard
    without a manifest; every object younger than the grace period; and, while a shard has an
    unfinished task, everything written since that task was planned, for it may be the task's
    output.
    """
    protected = _protected_since(tasks)
    seen: dict[str, float] = {}
    members: dict[str, list[ObjectStat]] = {}
    for stat in listing:
        unit = _unit(stat.key)
        if unit is not None:
            members.setdefault(unit, []).append(stat)
    delete: list[str] = []
    waiting: list[str] = []
    for unit, stats in members.items():
        kind, collection_id, shard, rest = _parse(unit)
        if collection_id in collections:
            manifest = manifests.get((collection_id, shard))
            if manifest is None or kind in _OWNERS or _named(manifest, kind, unit, rest):
                continue
            newest_s = max(stat.modified_s for stat in stats)
            since_s = protected.get((collection_id, shard))
            if since_s is not None and newest_s >= since_s - _CLOCK_SKEW_S:
                continue
        elif collection_id not in dropped:
            continue
        since = unnamed_since.get(unit, now_s)
        young = any(now_s - stat.modified_s < grace_s for stat in stats)
        if now_s - since < grace_s or young:
            if len(seen) < UNNAMED_MAX:
                seen[unit] = since
            waiting.extend(stat.key for stat in stats)
            continue
        delete.extend(stat.key for stat in stats)
    return Garbage(tuple(delete), seen, tuple(waiting))


def _protected_since(tasks: Iterable[CompactionTask]) -> dict[tuple[str, int], float]:
    protected: dict[tuple[str, int], float] = {}
    for task in tasks:
        if task.phase in (TaskPhase.PENDING, TaskPhase.BUILT):
            shard = (task.collection_id, task.shard)
            protected[shard] = min(task.created_at_s, protected.get(shard, task.created_at_s))
    return protected


def _unit(key: str) -> str | None:
    """Return what is judged as a whole: a segment's directory, or the object; None: not ours."""
    parts = key.split("/")
    if len(parts) < 4 or not parts[2].isdecimal():
        return None
    if parts[0] == "segments" and len(parts) >= 5:
        return "/".join(parts[:4])
    return key if parts[0] in ("deletes", *_OWNERS) else None


def _parse(unit: str) -> tuple[str, str, int, str]:
    kind, collection_id, shard, rest = unit.split("/", 3)
    return kind, collection_id, int(shard), rest


def _named(manifest: Manifest, kind: str, unit: str, rest: str) -> bool:
    if kind == "segments":
        return any(segment.segment_id == rest for segment in manifest.segments)
    return any(entry.key == unit for entry in manifest.delete_vectors)


def report_of(
    garbage: Garbage, listing: Iterable[ObjectStat], *, dry_run: bool, grace_s: float
) -> GarbageReport:
    """Return counts and bytes by kind."""
    sizes = {stat.key: stat.size_bytes for stat in listing}
    kinds: list[GarbageKind] = []
    for prefix in PREFIXES:
        gone = [sizes[key] for key in garbage.delete if key.startswith(prefix)]
        waiting = [sizes[key] for key in garbage.waiting if key.startswith(prefix)]
        kind = prefix.removesuffix("/")
        kinds.append(GarbageKind(kind, len(gone), sum(gone), len(waiting), sum(waiting)))
    return GarbageReport(tuple(kinds), dry_run, grace_s)


class GarbageCollector:
    """Looks through the object store and deletes what `plan_collection` says; leader only."""

    def __init__(
        self,
        catalog: Catalog,
        store: MetaStore,
        objects: ObjectStore,
        *,
        grace_s: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._objects = objects
        self._grace_s = grace_s
        self._wall_clock = wall_clock
        self._unnamed_since: Mapping[str, float] = {}
        self._turn = asyncio.Lock()

    async def collect(self, *, dry_run: bool = False) -> GarbageReport:
        """Look once, and delete what is due unless `dry_run`; one look at a time.

        A report without kinds: metadata could not be decoded, so nothing was collected.
        """
        async with self._turn:
            return await self._collect(dry_run=dry_run)

    async def _collect(self, *, dry_run: bool) -> GarbageReport:
        listing: list[ObjectStat] = []
        for prefix in PREFIXES:
            async for stat in self._objects.list(prefix):
                listing.append(stat)
        marks = [stat.key async for stat in self._objects.list(DROPPED_PREFIX)]
        dropped = frozenset(key.removeprefix(DROPPED_PREFIX) for key in marks)
        # After the listing: what is named by now is kept, whenever it was uploaded.
        collections = await self._collections()
        manifests = await self._manifests()
        tasks = await self._tasks()
        if collections is None or tasks is None:
            return GarbageReport(dry_run=dry_run, grace_s=self._grace_s)
        garbage = plan_collection(
            listing,
            manifests,
            tasks,
            collections=collections,
            dropped=dropped - collections,
            unnamed_since=self._unnamed_since,
            now_s=self._wall_clock(),
            grace_s=self._grace_s,
        )
        report = report_of(garbage, listing, dry_run=dry_run, grace_s=self._grace_s)
        if dry_run:
            return report
        self._unnamed_since = garbage.unnamed_since
        await self._forget_shards(dropped - collections)
        for first in range(0, len(garbage.delete), DELETE_BATCH):
            fail_point("coordinator.collecting")
            await self._objects.delete(garbage.delete[first : first + DELETE_BATCH])
            fail_point("coordinator.collected")
        if garbage.delete:
            _log.info("%d objects that nothing names were deleted", len(garbage.delete))
        await self._forget_marks(dropped - collections, listing, garbage.delete)
        return report

    async def _forget_shards(self, dropped: frozenset[str]) -> None:
        """Delete what a drop that was cut short, or a late owner, left in the metadata store."""
        known = {stored.value.collection_id for stored in self._catalog.assignments()}
        snapshot = await self._store.list(keys.MANIFESTS_PREFIX)
        known |= {keys.parse_manifest_key(item.key)[0] for item in snapshot.items}
        for collection_id in sorted(dropped & known):
            await forget_shards(self._store, collection_id)

    async def _forget_marks(
        self, dropped: frozenset[str], listing: Sequence[ObjectStat], deleted: Sequence[str]
    ) -> None:
        """Delete the marks of dropped collections of which nothing is left."""
        gone = set(deleted)
        left = {stat.key.split("/")[1] for stat in listing if stat.key not in gone}
        done = [one for one in dropped if one not in left]
        old: list[str] = []
        async for stat in self._objects.list(DROPPED_PREFIX):
            one = stat.key.removeprefix(DROPPED_PREFIX)
            if one in done and self._wall_clock() - stat.modified_s >= self._grace_s:
                old.append(stat.key)
        if old:
            await self._objects.delete(old)

    async def _collections(self) -> frozenset[str] | None:
        """Return the ids of all collections, read from the store; None when one is unreadable."""
        snapshot = await self._store.list(keys.COLLECTIONS_PREFIX)
        try:
            return frozenset(
                decode_value(item.value, Collection, key=item.key).id for item in snapshot.items
            )
        except DataCorruption as error:
            _log.error("nothing is collected: %s", error.message)
            return None

    async def _manifests(self) -> dict[tuple[str, int], Manifest]:
        """Return the manifests by shard; a shard whose manifest is unreadable is left out."""
        manifests: dict[tuple[str, int], Manifest] = {}
        for item in (await self._store.list(keys.MANIFESTS_PREFIX)).items:
            try:
                manifest = decode_value(item.value, Manifest, key=item.key)
            except DataCorruption as error:
                _log.error("a shard is not collected: %s", error.message)
                continue
            manifests[keys.parse_manifest_key(item.key)] = manifest
        return manifests

    async def _tasks(self) -> list[CompactionTask] | None:
        snapshot = await self._store.list(keys.TASKS_PREFIX)
        try:
            return [
                decode_value(item.value, CompactionTask, key=item.key) for item in snapshot.items
            ]
        except DataCorruption as error:
            _log.error("nothing is collected: %s", error.message)
            return None
