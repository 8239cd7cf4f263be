"""Migrations in the metadata store; every step is a compare-and-swap of what was read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.election import Leadership
from annheal.coordinator.migration.plan import doomed_model
from annheal.errors import Conflict, NotFound
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.protocol import Compare, MetaStore, Operation, Put
from annheal.metastore.table import Stored
from annheal.model.collection import Collection
from annheal.model.topology.migration.state import Migration, MigrationPhase
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import RetryPolicy, retry

_log = logging.getLogger(__name__)

_POLICY: Final = RetryPolicy(attempts_max=20)
_CATALOG_WAIT_S: Final = 2.0

Step: TypeAlias = Callable[[Migration], Migration]
StartStep: TypeAlias = Callable[[Migration | None, Collection], Migration]


class MigrationBook:
    """Reads and changes migrations.

    A step that changes which model serves, or takes a model out of the collection, stores the
    collection in the same commit, so no reader of the store sees the two disagree.
    """

    def __init__(self, catalog: Catalog, store: MetaStore) -> None:
        self._catalog = catalog
        self._store = store

    async def get(self, collection: Collection) -> Stored[Migration]:
        """Return a collection's migration, read from the store; raises `NotFound` without one."""
        found = await self._read(collection.id)
        if found is None:
            raise _not_found(collection)
        return found

    async def start(
        self, name: str, step: StartStep, *, deadline: Deadline
    ) -> tuple[Collection, Migration]:
        """Store what `step` makes of the present migration (None: there is none).

        The commit fails, and `step` is called again, when the collection or the migration has
        changed since they were read.
        """

        async def attempt(_: Deadline) -> tuple[Collection, Migration]:
            collection = await self._collection(name)
            present = await self._read(collection.value.id)
            before = None if present is None else present.value
            after = step(before, collection.value)
            if after != before:
                key = keys.migration_key(after.collection_id)
                revision = 0 if present is None else present.mod_revision
                # The collection is written as it is: when its models change at the same moment, one
                # of the two commits fails.
                same = Put(collection.key, encode_value(collection.value))
                await self._commit(
                    [Put(key, encode_value(after)), same],
                    [Compare(key, revision), Compare(collection.key, collection.mod_revision)],
                )
                _log_step(collection.value, after)
            return collection.value, after

        return await retry(attempt, deadline=deadline, policy=_POLICY, mutation=True)

    async def change(
        self,
        collection: Collection,
        step: Step,
        *,
        deadline: Deadline,
        term: Leadership | None = None,
    ) -> Migration:
        """Store what `step` makes of the migration; return it.

        `step` may be called again when another step came between. Raises what `step` raises, and
        `NotFound` when there is no migration.
        """

        async def attempt(_: Deadline) -> Migration:
            return await self.change_once(await self.get(collection), collection, step, term=term)

        return await retry(attempt, deadline=deadline, policy=_POLICY, mutation=True)

    async def change_once(
        self,
        stored: Stored[Migration],
        collection: Collection,
        step: Step,
        *,
        term: Leadership | None = None,
    ) -> Migration:
        """Store what `step` makes of `stored`; raises `Conflict` when that has changed.

        With a `term`, raises `Conflict` when it is over.
        """
        after = step(stored.value)
        if after == stored.value:
            return after
        operations: list[Operation] = [Put(stored.key, encode_value(after))]
        compares = [Compare(stored.key, stored.mod_revision)]
        if term is not None:
            compares.append(term.guard())
        present = await self._collection(collection.name)
        if present.value.id != collection.id:
            raise _not_found(collection)
        migrated = _migrated(present.value, after)
        if migrated != present.value:
            operations.append(Put(present.key, encode_value(replace(migrated, revision=0))))
            compares.append(Compare(present.key, present.mod_revision))
        await self._commit(operations, compares)
        if after.history != stored.value.history:
            _log_step(collection, after)
        return after

    async def _commit(self, operations: list[Operation], compares: list[Compare]) -> None:
        """Commit, and wait until the catalog shows it, so that the next read sees the step."""
        revision = await self._store.commit(operations, compares=compares)
        for prefix in (keys.MIGRATIONS_PREFIX, keys.COLLECTIONS_PREFIX):
            if any(one.key.startswith(prefix) for one in operations):
                await self._catalog.wait_revision(revision, of=prefix, timeout_s=_CATALOG_WAIT_S)

    async def _read(self, collection_id: str) -> Stored[Migration] | None:
        key = keys.migration_key(collection_id)
        stored = await self._store.get(key)
        if stored is None:
            return None
        return Stored(key, decode_value(stored.value, Migration, key=key), stored.mod_revision)

    async def _collection(self, name: str) -> Stored[Collection]:
        key = keys.collection_key(name)
        stored = await self._store.get(key)
        if stored is None:
            await self._catalog.collection(name)  # raises NotFound with similar names
            raise Conflict(f"collection {name!r} is being dropped")
        return Stored(key, decode_value(stored.value, Collection, key=key), stored.mod_revision)


def _migrated(collection: Collection, migration: Migration) -> Collection:
    """Return the collection as it is in the phase of its migration.

    A model whose vectors are being deleted is removed, so that nothing writes any more of them.
    When an abort has ended, nothing is left of the new model, and its name is free again.
    """
    changed = collection
    if collection.model.name != migration.serving:
        changed = replace(changed, serving=migration.serving)
    doomed = doomed_model(migration)
    if doomed and doomed not in changed.removed:
        changed = replace(
            changed,
            removed=(*changed.removed, doomed),
            text_models=tuple(one for one in changed.text_models if one.model != doomed),
        )
    if migration.phase is MigrationPhase.ABORTED and migration.to_model in changed.removed:
        changed = replace(
            changed,
            models=tuple(one for one in changed.models if one.name != migration.to_model),
            removed=tuple(name for name in changed.removed if name != migration.to_model),
        )
    return changed


def _log_step(collection: Collection, migration: Migration) -> None:
    step = migration.history[-1]
    _log.info(
        "migration of %s to %s: %s by %s, phase %s%s%s",
        collection.name,
        migration.to_model,
        step.event,
        step.who,
        step.phase.value,
        ", forced" if step.forced else "",
        f": {step.why}" if step.why else "",
    )


def _not_found(collection: Collection) -> NotFound:
    return NotFound(
        f"collection {collection.name!r} has no migration; `annheal migrate start` begins one",
        reason="MIGRATION_NOT_FOUND",
        metadata={"collection": collection.name},
    )
