"""Creating, changing and dropping collections."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.texts import Texts
from annheal.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.limits import COMMIT_OPERATIONS_MAX
from annheal.metastore.protocol import Compare, Delete, MetaStore, Operation, Put
from annheal.model.collection import Collection, ModelSpec
from annheal.model.suggestions import suggestion
from annheal.model.texts.spec import TextModel
from annheal.model.topology.shard import Assignment, ShardId
from annheal.model.validation import validate_collection, validate_settings
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import RetryPolicy, retry
from annheal.shards.object_keys import dropped_key

_log = logging.getLogger(__name__)

_UPDATE_POLICY = RetryPolicy(attempts_max=20)
_UNSERVED_NAMED_MAX = 8
_PLACE = re.compile(r"^models\[\d+\]")


class Collections:
    """The collections of the cluster. Every method raises `Unavailable` without the store."""

    def __init__(
        self,
        catalog: Catalog,
        store: MetaStore,
        objects: ObjectStore,
        *,
        new_id: Callable[[], str],
        wall_clock: Callable[[], float],
        texts: Texts,
    ) -> None:
        self._texts = texts
        self._catalog = catalog
        self._store = store
        self._objects = objects
        self._new_id = new_id
        self._wall_clock = wall_clock

    def all(self) -> tuple[Collection, ...]:
        """Return all collections, by name."""
        return self._catalog.collections()

    async def get(self, name: str) -> Collection:
        """Return one collection; raises `NotFound` that names similar ones."""
        return await self._catalog.collection(name)

    async def create(self, spec: Collection, *, deadline: Deadline) -> Collection:
        """Create the collection that `spec` describes (its id, time and revision are given here).

        Returns once every shard has an owner. Raises `InvalidArgument`, `AlreadyExists`, and
        `Unavailable` when shards are not served at the deadline: the collection exists then, and
        they will be as soon as a node can.
        """
        validate_collection(spec)
        await self._texts.check(spec)
        if self._catalog.collection_or_none(spec.name) is not None:
            raise _exists(spec.name)
        collection = replace(spec, id=self._new_id(), created_at_s=self._wall_clock(), revision=0)
        revision = await self._commit_new(collection)
        stored = replace(collection, revision=revision)
        await self.wait_served(stored, deadline=deadline)
        _log.info("collection %s created with %d shards", stored.name, stored.shard_count)
        return stored

    async def wait_served(self, collection: Collection, *, deadline: Deadline) -> None:
        """Return once every shard has a live owner; raises `Unavailable` at the deadline."""
        while True:
            version = self._catalog.version
            known = self._catalog.collection_by_id(collection.id) is not None
            unserved = self.unserved(collection)
            if known and not unserved:
                return
            if deadline.passed:
                raise self._not_served(collection, unserved)
            await self._catalog.wait_change(version, timeout_s=deadline.remaining_s)

    def unserved(self, collection: Collection) -> list[int]:
        """Return the shards of the collection that no live node owns."""
        assignments = self._catalog.assignments_of(collection.id)
        nodes = self._catalog.nodes()
        return [
            shard
            for shard in range(collection.shard_count)
            if shard not in assignments or assignments[shard].value.owner not in nodes
        ]

    async def update(
        self,
        name: str,
        change: Callable[[Collection], Collection],
        *,
        if_revision: int | None = None,
        deadline: Deadline,
    ) -> Collection:
        """Apply `change` (of what may be changed while it lives) to the collection; return it.

        `change` may be called again when another change came between. Raises `Conflict` when
        the collection is not at `if_revision`.
        """

        async def attempt(_: Deadline) -> Collection:
            key = keys.collection_key(name)
            stored = await self._store.get(key)
            if stored is None:
                return await self._catalog.collection(name)  # raises NotFound with similar names
            if if_revision is not None and stored.mod_revision != if_revision:
                raise Conflict(
                    f"collection {name!r} is at revision {stored.mod_revision}, not {if_revision};"
                    " read it again"
                )
            present = decode_value(stored.value, Collection, key=key)
            wanted = change(replace(present, revision=stored.mod_revision))
            wanted = replace(present.with_changes_of(wanted), revision=0)
            validate_settings(wanted)
            validate_collection(wanted)
            if wanted.text_models != present.text_models:
                await self._texts.check(wanted)
            if wanted == present:
                return replace(present, revision=stored.mod_revision)
            revision = await self._store.commit(
                [Put(key, encode_value(wanted))], compares=[Compare(key, stored.mod_revision)]
            )
            timeout_s = deadline.remaining_s
            await self._catalog.wait_revision(
                revision, of=keys.COLLECTIONS_PREFIX, timeout_s=timeout_s
            )
            return replace(wanted, revision=revision)

        return await retry(
            attempt,
            deadline=deadline,
            policy=_UPDATE_POLICY,
            mutation=True,
            retryable=lambda error: (
                error.retryable and not (if_revision is not None and isinstance(error, Conflict))
            ),
        )

    async def add_model(
        self, name: str, model: ModelSpec, text_model: TextModel | None, *, deadline: Deadline
    ) -> Collection:
        """Add a model to the collection, and how texts become its vectors; return the collection.

        If it is there already, nothing changes. Raises `AlreadyExists` when the one that is there
        differs, or was removed: its vectors may still be stored, and a name means one model.
        """

        def change(present: Collection) -> Collection:
            known = present.model_named(model.name)
            if known is None:
                return replace(
                    present,
                    models=(*present.models, model),
                    text_models=(*present.text_models, *([text_model] if text_model else [])),
                )
            if model.name in present.removed:
                raise AlreadyExists(
                    f"collection {name!r} had a model {model.name!r}, which was removed; give the"
                    " new one another name",
                    metadata={"collection": name, "model": model.name},
                )
            differences = _model_differences(
                known, present.text_model(model.name), model, text_model
            )
            if differences:
                raise AlreadyExists(
                    f"collection {name!r} has another model {model.name!r}:"
                    f" {'; '.join(differences)}. Give the new one another name",
                    metadata={"collection": name, "model": model.name},
                )
            return present

        try:
            changed = await self.update(name, change, deadline=deadline)
        except InvalidArgument as error:
            raise _about_new_model(error) from error
        _log.info("collection %s has model %s", name, model.name)
        return changed

    async def remove_model(self, name: str, model: str, *, deadline: Deadline) -> Collection:
        """Remove a model from the collection; return the collection.

        Its vectors cannot be read or searched any more. One that was removed stays so. Raises
        `NotFound` for a model that never was, and `FailedPrecondition` for the serving one and for
        those of a migration that has not ended.
        """

        def change(present: Collection) -> Collection:
            if model in present.removed:
                return present
            names = [one.name for one in present.usable_models]
            if model not in names:
                raise NotFound(
                    f"collection {name!r} has no model {model[:80]!r}; {suggestion(model, names)}",
                    metadata={"collection": name, "model": model},
                )
            if len(names) == 1:
                raise FailedPrecondition(
                    f"{model!r} is the only model of collection {name!r}; drop the collection, or"
                    " add another model and let it serve first",
                    reason="ONLY_MODEL",
                )
            if model == present.model.name:
                raise FailedPrecondition(
                    f"model {model!r} serves the searches of collection {name!r}; let another one"
                    " serve first",
                    reason="MODEL_SERVES",
                )
            migration = self._catalog.migration(present.id)
            if migration is not None and migration.value.needs(model):
                raise FailedPrecondition(
                    f"a migration of collection {name!r} from {migration.value.from_model!r} to"
                    f" {migration.value.to_model!r} has not ended; abort or purge it first",
                    reason="MODEL_MIGRATES",
                )
            return replace(
                present,
                serving=present.model.name,
                removed=(*present.removed, model),
                text_models=tuple(one for one in present.text_models if one.model != model),
            )

        changed = await self.update(name, change, deadline=deadline)
        _log.info("model %s of collection %s removed", model, name)
        return changed

    async def drop(self, name: str, *, deadline: Deadline) -> None:
        """Drop the collection: it is gone when this returns; its objects are deleted later."""
        collection = await self._catalog.collection(name)
        await self._mark_dropped(collection.id)
        key = keys.collection_key(name)

        async def attempt(_: Deadline) -> int | None:
            stored = await self._store.get(key)
            if stored is None or decode_value(stored.value, Collection, key=key).id != (
                collection.id
            ):
                return None
            return await self._store.commit(
                [Delete(key)], compares=[Compare(key, stored.mod_revision)]
            )

        revision = await retry(attempt, deadline=deadline, mutation=True)
        await forget_shards(self._store, collection.id)
        if revision is not None:
            timeout_s = deadline.remaining_s
            await self._catalog.wait_revision(
                revision, of=keys.COLLECTIONS_PREFIX, timeout_s=timeout_s
            )
        _log.info("collection %s dropped", name)

    async def _mark_dropped(self, collection_id: str) -> None:
        try:
            await self._objects.put_if_absent(dropped_key(collection_id), b"dropped\n")
        except AlreadyExists:
            _log.debug("%s was marked before", collection_id)

    async def _commit_new(self, collection: Collection) -> int:
        """Store the collection and its empty assignments; the collection's key comes last.

        One commit where they fit; assignments without a collection mean nothing to anybody, and
        the leader clears them away.
        """
        key = keys.collection_key(collection.name)
        assignments: list[Operation] = [
            Put(
                keys.shard_key(collection.id, shard),
                encode_value(Assignment(collection_id=collection.id, shard=shard)),
            )
            for shard in range(collection.shard_count)
        ]
        batches = _batches([*assignments, Put(key, encode_value(collection))])
        for batch in batches[:-1]:
            await self._store.commit(batch)
        try:
            return await self._store.commit(batches[-1], compares=[Compare(key, 0)])
        except Conflict as error:
            raise _exists(collection.name) from error
        except UnknownOutcome:
            stored = await self._store.get(key)
            if stored is None:
                raise
            if decode_value(stored.value, Collection, key=key).id != collection.id:
                raise _exists(collection.name) from None
            return stored.mod_revision

    def _not_served(self, collection: Collection, unserved: Sequence[int]) -> Unavailable:
        nodes = self._catalog.nodes()
        settings = self._catalog.node_settings()
        usable = [one for one in nodes if one not in settings or not settings[one].draining]
        named = ", ".join(str(shard) for shard in unserved[:_UNSERVED_NAMED_MAX])
        more = len(unserved) - _UNSERVED_NAMED_MAX
        named += f" and {more} more" if more > 0 else ""
        if not nodes:
            why = "no shard node is registered; start one"
        elif not usable:
            why = "every shard node is draining; undrain or start one"
        else:
            why = self._why(collection, unserved)
        return Unavailable(
            f"collection {collection.name!r} exists, but shards {named} are not served yet: {why}",
            reason="SHARDS_NOT_SERVED",
            metadata={"collection": collection.name, "shards": named},
            retry_after_s=1.0,
        )

    def _why(self, collection: Collection, unserved: Sequence[int]) -> str:
        nodes = self._catalog.nodes()
        targets: set[str] = set()
        for shard in unserved:
            stored = self._catalog.assignment(ShardId(collection.id, shard))
            if stored is not None and stored.value.target in nodes:
                targets.add(stored.value.target)
        if targets:
            return f"{', '.join(sorted(targets))} has not opened them yet; see its log"
        return "no leading coordinator has placed them yet"


async def forget_shards(store: MetaStore, collection_id: str) -> None:
    """Delete what a dropped collection left in the metadata store; repeat to finish."""
    for prefix in (
        keys.collection_shards_prefix(collection_id),
        keys.collection_manifests_prefix(collection_id),
        keys.collection_collected_prefix(collection_id),
    ):
        snapshot = await store.list(prefix)
        for batch in _batches([Delete(item.key) for item in snapshot.items]):
            await store.commit(batch)
    await store.commit([Delete(keys.migration_key(collection_id))])


def _model_differences(
    known: ModelSpec, known_text: TextModel | None, model: ModelSpec, text_model: TextModel | None
) -> list[str]:
    """Return how a model that is there differs from a new one of its name."""
    there, new = _described(known, known_text), _described(model, text_model)
    return [
        f"its {name} is {there[name]}, not {new[name]}"
        for name in there
        if name in new and there[name] != new[name]
    ]


def _described(model: ModelSpec, text_model: TextModel | None) -> dict[str, object]:
    """Return everything about a model by name; options of its embedder only if it has one."""
    found: dict[str, object] = dataclasses.asdict(model)
    if text_model is None:
        return found | {"embedder.kind": "none"}
    options = dataclasses.asdict(text_model.embedder)
    return found | {f"embedder.{k}": v for k, v in options.items()} | {"source": text_model.source}


def _about_new_model(error: InvalidArgument) -> InvalidArgument:
    """Return `error` with the fields of the model that is added called `model`."""
    violations = [
        FieldViolation(_PLACE.sub("model", one.field), one.description) for one in error.violations
    ]
    if not violations:
        return error
    text = "; ".join(f"{one.field}: {one.description}" for one in violations)
    return InvalidArgument(
        text, violations=violations, reason=error.reason, metadata=error.metadata
    )


def _batches(operations: Sequence[Operation]) -> list[list[Operation]]:
    step = COMMIT_OPERATIONS_MAX
    return [list(operations[i : i + step]) for i in range(0, len(operations), step)]


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"collection {name!r} exists already", metadata={"collection": name})


def check_shard(collection: Collection, shard: int, *, field: str = "shard") -> ShardId:
    """Return the shard's identity; raises `InvalidArgument` when there is no such shard."""
    if not 0 <= shard < collection.shard_count:
        raise InvalidArgument.of(
            field,
            f"{shard} is not a shard of {collection.name!r}, which has {collection.shard_count}",
        )
    return ShardId(collection.id, shard)
