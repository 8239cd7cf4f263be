"""What operators ask of migrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.migration.book import MigrationBook
from annheal.coordinator.migration.estimate import SAMPLE_MAX, Estimator
from annheal.errors import InvalidArgument, NotFound, Unimplemented
from annheal.model.collection import Collection, ModelSpec
from annheal.model.topology.migration import transitions as steps
from annheal.model.topology.migration.checks import checked_order
from annheal.model.topology.migration.gate import GateThresholds
from annheal.model.topology.migration.state import Migration, MigrationSettings
from annheal.model.topology.migration.transitions import Event, Order
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus
from annheal.runtime.clock import Clock
from annheal.runtime.deadline import Deadline

NewSettings: TypeAlias = Callable[[MigrationSettings], MigrationSettings]
NewThresholds: TypeAlias = Callable[[GateThresholds], GateThresholds]

_SIMPLE: Final[Mapping[Event, Callable[..., Migration]]] = {
    Event.PAUSE: steps.pause,
    Event.RESUME: steps.resume,
    Event.VALIDATE: steps.validate,
    Event.COMMIT: steps.commit,
    Event.ROLLBACK: steps.rollback,
    Event.ABORT: steps.abort,
    Event.PURGE: steps.purge,
}


class Migrations:
    """The operations of `annheal migrate`. Every method raises `Unavailable` without the store."""

    def __init__(
        self,
        catalog: Catalog,
        book: MigrationBook,
        estimator: Estimator,
        *,
        wall_clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._book = book
        self._estimator = estimator
        self._wall_clock = wall_clock

    async def plan(
        self, name: str, to_model: str, *, sample_size: int, deadline: Deadline
    ) -> MigrationEstimate:
        """Estimate a migration; raises `NotFound` for a collection or model that is not there."""
        if not 1 <= sample_size <= SAMPLE_MAX:
            raise InvalidArgument.of("sample_size", f"{sample_size} is not in 1 to {SAMPLE_MAX}")
        collection = await self._catalog.collection(name)
        model = _other_model(collection, to_model)
        return await self._estimator.estimate(
            collection, model, sample_size=sample_size, deadline=deadline
        )

    async def start(
        self,
        name: str,
        to_model: str,
        *,
        settings: NewSettings,
        thresholds: NewThresholds,
        who: str,
        why: str,
        deadline: Deadline,
    ) -> MigrationStatus:
        """Start a migration, or return the one to the same model that has not ended.

        `settings` and `thresholds` change the defaults; the least recall is the collection's
        objective unless they say otherwise.

        Raises:
            NotFound: no such collection or model.
            FailedPrecondition: another migration has not ended.
            Unimplemented: a share of the queries for one model alone.
        """
        order = self._order(who, why)
        chosen = settings(MigrationSettings())
        _check_shares(chosen)

        def step(present: Migration | None, collection: Collection) -> Migration:
            model = _other_model(collection, to_model, present)
            objective = GateThresholds(recall_min=collection.settings.recall_objective)
            return steps.start(
                present,
                collection_id=collection.id,
                from_model=_from_model(collection, present),
                to_model=model.name,
                settings=chosen,
                thresholds=thresholds(objective),
                order=order,
            )

        collection, migration = await self._book.start(name, step, deadline=deadline)
        return MigrationStatus.of(migration, collection=collection.name)

    async def get(self, name: str) -> MigrationStatus:
        """Return a collection's migration; raises `NotFound` without one."""
        collection = await self._catalog.collection(name)
        stored = await self._book.get(collection)
        return MigrationStatus.of(stored.value, collection=collection.name)

    def all(self) -> tuple[MigrationStatus, ...]:
        """Return the present or last migrations of all collections, by name."""
        found = []
        for collection in self._catalog.collections():
            stored = self._catalog.migration(collection.id)
            if stored is not None:
                found.append(MigrationStatus.of(stored.value, collection=collection.name))
        return tuple(found)

    async def update(
        self,
        name: str,
        *,
        settings: NewSettings,
        thresholds: NewThresholds,
        who: str,
        why: str,
        deadline: Deadline,
    ) -> MigrationStatus:
        """Change settings and thresholds of a migration that has not ended."""
        order = self._order(who, why)

        def step(migration: Migration) -> Migration:
            chosen = settings(migration.settings)
            _check_shares(chosen)
            return steps.update(
                migration,
                settings=chosen,
                thresholds=thresholds(migration.thresholds),
                order=order,
            )

        return await self._change(name, step, deadline)

    async def order(
        self,
        name: str,
        event: Event,
        *,
        who: str,
        why: str,
        force: bool = False,
        deadline: Deadline,
    ) -> MigrationStatus:
        """Take the step `event`, one of pause, resume, validate, commit, rollback, abort, purge.

        Raises what the step raises: `FailedPrecondition` in a phase that does not allow it, and for
        a commit below the thresholds unless `force`.
        """
        order = self._order(who, why)
        arguments = {"force": force} if event is Event.COMMIT else {}
        take = _SIMPLE[event]
        return await self._change(name, lambda one: take(one, order=order, **arguments), deadline)

    async def _change(
        self, name: str, step: Callable[[Migration], Migration], deadline: Deadline
    ) -> MigrationStatus:
        collection = await self._catalog.collection(name)
        migration = await self._book.change(collection, step, deadline=deadline)
        return MigrationStatus.of(migration, collection=collection.name)

    def _order(self, who: str, why: str) -> Order:
        who, why = checked_order(who, why)
        if who == steps.LEADER:
            raise InvalidArgument.of("who", f"{who!r} names the cluster itself; say who you are")
        return Order(who, self._wall_clock(), why)


def _check_shares(settings: MigrationSettings) -> None:
    if settings.canary_share or settings.shadow_share:
        raise Unimplemented(
            "canary_share and shadow_share: this version does not divide queries between models"
            " yet; leave them at 0",
            reason="NO_SHARES",
        )


def _from_model(collection: Collection, present: Migration | None) -> str:
    """Return the model that a migration leads away from: that of an open one, else what serves."""
    open_one = present is not None and not present.ended
    return present.from_model if present is not None and open_one else collection.model.name


def _other_model(collection: Collection, name: str, present: Migration | None = None) -> ModelSpec:
    """Return the model to migrate to; raises `NotFound` with those that there are."""
    usable = collection.usable_models
    found = next((one for one in usable if one.name == name), None)
    if found is None:
        names = ", ".join(repr(one.name) for one in usable)
        raise NotFound(
            f"collection {collection.name!r} has no model {name[:80]!r}; it has {names};"
            " `annheal models add` adds one",
            reason="MODEL_NOT_FOUND",
            metadata={"collection": collection.name, "model": name[:80]},
        )
    if name == _from_model(collection, present):
        raise InvalidArgument.of("to_model", f"{name!r} is the model that it leads away from")
    return found
