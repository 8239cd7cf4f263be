"""What the cluster consists of, as this coordinator sees it: mirrors of the metadata store.

Reading is free of I/O. A mirror may be a moment behind; what decides is compare-and-swap in the
store and the fencing of owners, so a stale view costs a repeated call and never a wrong result.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from annheal.errors import NotFound
from annheal.metastore import keys
from annheal.metastore.codec import decode_value
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import MetaStore
from annheal.metastore.table import Stored, Table
from annheal.model.collection import Collection
from annheal.model.topology.migration.state import Migration
from annheal.model.topology.shard import Assignment, NodeRegistration, NodeSettings, ShardId
from annheal.model.topology.task import CompactionTask
from annheal.runtime.tasks import TaskScope

_CLOSE_NAMES_MAX = 3


class Catalog:
    """Collections, assignments, nodes, tasks and migrations, kept up to date by watches.

    `start` loads everything and follows the store with tasks of `scope` until that is stopped.
    """

    def __init__(self, store: MetaStore) -> None:
        self._store = store
        self._collections = Table(Mirror(store, keys.COLLECTIONS_PREFIX), Collection)
        self._shards = Table(Mirror(store, keys.SHARDS_PREFIX), Assignment)
        self._nodes = Table(Mirror(store, keys.NODES_PREFIX), NodeRegistration)
        self._node_settings = Table(Mirror(store, keys.NODE_SETTINGS_PREFIX), NodeSettings)
        self._tasks = Table(Mirror(store, keys.TASKS_PREFIX), CompactionTask)
        self._migrations = Table(Mirror(store, keys.MIGRATIONS_PREFIX), Migration)
        self._version = 0
        self._changed = asyncio.Event()
        self._by_name: tuple[object, dict[str, Collection]] = (None, {})
        self._by_collection: tuple[object, dict[str, dict[int, Stored[Assignment]]]] = (None, {})

    async def start(self, scope: TaskScope) -> None:
        """Load the present state, as soon as the store answers, and follow it from now on."""
        tables = self._tables()
        await asyncio.gather(*(table.mirror.start_patiently() for table in tables))
        for table in tables:
            scope.start(table.mirror.run(), name="mirror")
            scope.start(self._follow(table.mirror), name="catalog")

    # --------------------------------------------------------------------------- changes

    @property
    def version(self) -> int:
        """A counter that grows with every change of anything in the catalog."""
        return self._version

    async def wait_change(self, after_version: int, *, timeout_s: float) -> bool:
        """Return True once `version` is greater than `after_version`; False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._version <= after_version:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def wait_revision(self, revision: int, *, of: str, timeout_s: float) -> bool:
        """Return True once the prefix `of` shows what was committed at `revision` under it."""
        table = dict(self._prefixed())[of]
        try:
            async with asyncio.timeout(timeout_s):
                while table.mirror.revision < revision:
                    await table.mirror.wait_change(table.mirror.version)
        except TimeoutError:
            return False
        return True

    # ----------------------------------------------------------------------- collections

    def collections(self) -> tuple[Collection, ...]:
        """Return all collections, by name."""
        return tuple(self._named().values())

    def collections_readable(self) -> bool:
        """Whether every stored collection could be decoded: only then is a missing one dropped."""
        return len(self._collections.entries) == len(self._collections.mirror.items)

    def collection_or_none(self, name: str) -> Collection | None:
        """Return the collection called `name` as far as the mirror knows."""
        return self._named().get(name)

    def collection_by_id(self, collection_id: str) -> Collection | None:
        """Return the collection with that id, or None when it was dropped."""
        for collection in self._named().values():
            if collection.id == collection_id:
                return collection
        return None

    async def collection(self, name: str) -> Collection:
        """Return the collection called `name`; raises `NotFound` that names similar ones.

        A name that the mirror does not know is looked up in the store, so a collection can be used
        through every coordinator as soon as one has created it.
        """
        known = self._named().get(name)
        if known is not None:
            return known
        if name and "/" not in name:
            key = keys.collection_key(name)
            stored = await self._store.get(key)
            if stored is not None:
                found = decode_value(stored.value, Collection, key=key)
                return replace(found, revision=stored.mod_revision)
        raise self._not_found(name)

    def _not_found(self, name: str) -> NotFound:
        names = list(self._named())
        close = difflib.get_close_matches(name, names, n=_CLOSE_NAMES_MAX, cutoff=0.5)
        hint = ""
        if close:
            hint = f"; did you mean {', '.join(repr(one) for one in close)}?"
        elif not names:
            hint = "; there are no collections yet"
        return NotFound(
            f"there is no collection {name[:80]!r}{hint}",
            reason="COLLECTION_NOT_FOUND",
            metadata={"collection": name[:80]},
        )

    def _named(self) -> dict[str, Collection]:
        entries = self._collections.entries
        if self._by_name[0] is not entries:
            named = {
                stored.value.name: replace(stored.value, revision=stored.mod_revision)
                for stored in entries.values()
            }
            self._by_name = (entries, named)
        return self._by_name[1]

    # ------------------------------------------------------------------ shards and nodes

    def assignments(self) -> tuple[Stored[Assignment], ...]:
        """Return every assignment, by shard, those of dropped collections included."""
        return tuple(self._shards.entries.values())

    def assignments_of(self, collection_id: str) -> Mapping[int, Stored[Assignment]]:
        """Return the assignments of one collection, by shard number."""
        entries = self._shards.entries
        if self._by_collection[0] is not entries:
            grouped: dict[str, dict[int, Stored[Assignment]]] = {}
            for stored in entries.values():
                group = grouped.setdefault(stored.value.collection_id, {})
                group[stored.value.shard] = stored
            self._by_collection = (entries, grouped)
        return self._by_collection[1].get(collection_id, {})

    def assignment(self, shard: ShardId) -> Stored[Assignment] | None:
        """Return the assignment of one shard."""
        return self.assignments_of(shard.collection_id).get(shard.number)

    def nodes(self) -> dict[str, NodeRegistration]:
        """Return the live shard nodes, by id."""
        return {stored.value.node_id: stored.value for stored in self._nodes.entries.values()}

    def node(self, node_id: str) -> NodeRegistration | None:
        """Return the registration of a live node."""
        stored = self._nodes.entries.get(f"{keys.NODES_PREFIX}{node_id}")
        return stored.value if stored is not None else None

    def node_settings(self) -> dict[str, NodeSettings]:
        """Return what operators decided about nodes, by id; the nodes need not be alive."""
        entries = self._node_settings.entries.values()
        return {stored.value.node_id: stored.value for stored in entries}

    # ----------------------------------------------------------------------------- tasks

    def tasks(self) -> tuple[Stored[CompactionTask], ...]:
        """Return every task, finished ones too until their retention ends."""
        return tuple(self._tasks.entries.values())

    def task(self, task_id: str) -> Stored[CompactionTask] | None:
        """Return one task."""
        return self._tasks.entries.get(f"{keys.TASKS_PREFIX}{task_id}")

    # ------------------------------------------------------------------------ migrations

    def migrations(self) -> tuple[Stored[Migration], ...]:
        """Return the present or last migration of every collection that had one."""
        return tuple(self._migrations.entries.values())

    def migration(self, collection_id: str) -> Stored[Migration] | None:
        """Return the present or last migration of one collection."""
        return self._migrations.entries.get(keys.migration_key(collection_id))

    # --------------------------------------------------------------------------- private

    def _tables(self) -> tuple[Table[Any], ...]:
        return tuple(table for _, table in self._prefixed())

    def _prefixed(self) -> Iterator[tuple[str, Table[Any]]]:
        yield keys.COLLECTIONS_PREFIX, self._collections
        yield keys.SHARDS_PREFIX, self._shards
        yield keys.NODES_PREFIX, self._nodes
        yield keys.NODE_SETTINGS_PREFIX, self._node_settings
        yield keys.TASKS_PREFIX, self._tasks
        yield keys.MIGRATIONS_PREFIX, self._migrations

    async def _follow(self, mirror: Mirror) -> None:
        version = mirror.version
        while True:
            version = await mirror.wait_change(version)
            self._version += 1
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
