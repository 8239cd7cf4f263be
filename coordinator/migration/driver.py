"""The leader's part in migrations: observe the records, plan, add tasks, store what was seen."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.compaction.plan import within_budget
from annheal.coordinator.compaction.rules import CompactionSettings
from annheal.coordinator.compaction.task_book import UNFINISHED, TaskBook
from annheal.coordinator.data_path.router import Router
from annheal.coordinator.election import Leadership
from annheal.coordinator.leader.observation import observe_shards
from annheal.coordinator.migration.book import MigrationBook
from annheal.coordinator.migration.coverage import RowsOf, coverage_of
from annheal.coordinator.migration.measure import GateMeter
from annheal.coordinator.migration.plan import NOT_MEASURED, MigrationRound, plan_round
from annheal.errors import AnnhealError, Conflict
from annheal.metastore.table import Stored
from annheal.model.collection import Collection
from annheal.model.topology.migration import transitions as steps
from annheal.model.topology.migration.checks import WHY_CHARACTERS_MAX
from annheal.model.topology.migration.state import CoverageTotals, Migration, MigrationPhase
from annheal.model.topology.migration.transitions import LEADER, Event, Order
from annheal.model.topology.task import TaskPhase
from annheal.runtime.clock import Clock, NewId
from annheal.runtime.deadline import Deadline

_log = logging.getLogger(__name__)

SEEN_INTERVAL_S: Final = 5.0
"""Least seconds between two times that what was seen, and nothing else, is stored."""
MEASURE_INTERVAL_S: Final = 10.0
"""Least seconds between two attempts to measure one validation."""
MEASURE_TIMEOUT_S: Final = 60.0
"""Seconds that one attempt may take."""


class MigrationDriver:
    """Drives every migration that has not ended; `run_round` is repeated while this one leads.

    A round that is cut off anywhere leaves a state from which the next one goes on: tasks are added
    under the lock of all planners, so that no segment has two, and steps are compare-and-swaps.
    """

    def __init__(
        self,
        catalog: Catalog,
        router: Router,
        tasks: TaskBook,
        book: MigrationBook,
        meter: GateMeter,
        term: Leadership,
        *,
        rules: CompactionSettings,
        observe_timeout_s: float,
        wall_clock: Clock,
        new_id: NewId,
        rows_of: RowsOf,
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._tasks = tasks
        self._book = book
        self._meter = meter
        self._measured_s: dict[str, float] = {}
        self._rules = rules
        self._observe_timeout_s = observe_timeout_s
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._term = term
        self._rows_of = rows_of

    async def run_round(self) -> None:
        """Bring each migration that has not ended one step on.

        A validation is measured in the round: other migrations wait for up to `MEASURE_TIMEOUT_S`.
        """
        for stored in self._catalog.migrations():
            collection = self._catalog.collection_by_id(stored.value.collection_id)
            if collection is None or stored.value.ended:
                self._measured_s.pop(stored.value.collection_id, None)
                continue
            await self._drive(stored, collection)
            if stored.value.phase is MigrationPhase.VALIDATE and stored.value.measuring:
                await self._measure(stored.value, collection)

    async def _measure(self, migration: Migration, collection: Collection) -> None:
        """Measure what the gate judges, and store the report; try again later if that fails."""
        at_s = self._wall_clock()
        last_s = self._measured_s.get(collection.id, -MEASURE_INTERVAL_S)
        if migration.paused or at_s - last_s < MEASURE_INTERVAL_S:
            return
        self._measured_s[collection.id] = at_s
        deadline = Deadline.after(MEASURE_TIMEOUT_S)
        try:
            report = await self._meter.measure(collection, migration, at_s=at_s, deadline=deadline)
            await self._book.change(
                collection,
                lambda one: steps.validated(one, report, order=Order(LEADER, at_s)),
                deadline=deadline,
                term=self._term,
            )
            del self._measured_s[collection.id]
        except AnnhealError as error:
            _log.warning("migration of %s is not measured: %s", collection.name, error.message)
            failed = f"{NOT_MEASURED}: {error.message}"[:WHY_CHARACTERS_MAX]
            await self._note(collection, failed)

    async def _note(self, collection: Collection, error: str) -> None:
        stored = self._catalog.migration(collection.id)
        if stored is None or stored.value.error == error:
            return
        try:
            await self._book.change_once(
                stored, collection, lambda one: replace(one, error=error), term=self._term
            )
        except Conflict as conflict:
            _log.info("migration of %s: not noted: %s", collection.name, conflict.message)

    async def _drive(self, stored: Stored[Migration], collection: Collection) -> None:
        planned = await self._plan(stored.value, collection)
        for task_id in planned.cancel:
            task = self._catalog.task(task_id)
            if task is not None and task.value.phase in UNFINISHED:
                why = f"the migration is {stored.value.phase.value}"
                await self._tasks.finish(task, TaskPhase.CANCELLED, error=why, term=self._term)
        at_s = self._wall_clock()

        def step(_: Migration) -> Migration:
            return _after(planned, Order(LEADER, at_s))

        if _differs(stored.value, _after(planned, Order(LEADER, at_s))):
            try:
                await self._book.change_once(stored, collection, step, term=self._term)
            except Conflict as error:
                _log.info("migration of %s: planned again: %s", collection.name, error.message)

    async def _plan(self, migration: Migration, collection: Collection) -> MigrationRound:
        """Plan one round, and add its tasks."""
        async with self._tasks.planning:
            # Tasks are read before states, as compactions read them.
            tasks = [one.value for one in self._catalog.tasks()]
            observation = await observe_shards(
                self._catalog,
                self._router,
                timeout_s=self._observe_timeout_s,
                collection_id=collection.id,
            )
            coverage = coverage_of(
                collection,
                observation.states.values(),
                models=(migration.from_model, migration.to_model),
                rows_of=self._rows_of,
            )
            planned = plan_round(
                migration,
                collection,
                coverage,
                [one for one in tasks if one.collection_id == collection.id],
                now_s=self._wall_clock(),
                settings=self._rules,
                new_id=self._new_id,
            )
            allowed = within_budget(planned.tasks, tasks, settings=self._rules)
            if allowed:
                await self._tasks.add(allowed, term=self._term)
        return planned


def _after(planned: MigrationRound, order: Order) -> Migration:
    """Return the state after a round: what was seen, then the step that it takes by itself."""
    seen = planned.seen
    if planned.stop:
        return steps.stop(seen, error=planned.stop, order=order)
    match planned.advance:
        case Event.PREPARED:
            return steps.prepared(seen, order=order)
        case Event.COVERED:
            return steps.covered(seen, order=order)
        case Event.FINISHED:
            return steps.finished(seen, order=order)
        case _:
            return seen


def _differs(before: Migration, after: Migration) -> bool:
    """Return whether `after` is worth a commit: new figures alone only now and then."""
    if (before.history, before.segments, before.skipped, before.error) != (
        after.history,
        after.segments,
        after.skipped,
        after.error,
    ):
        return True
    return _is_later(before.coverage, after.coverage)


def _is_later(before: CoverageTotals | None, after: CoverageTotals | None) -> bool:
    if before is None or after is None:
        return before is not after
    if bool(before.shards_unreported) is not bool(after.shards_unreported):
        return True
    figures = replace(after, at_s=before.at_s, rows_per_s=before.rows_per_s)
    still = figures == before and not before.rows_per_s
    return not still and after.at_s - before.at_s >= SEEN_INTERVAL_S
