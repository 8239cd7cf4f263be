"""The leader's control loops: placement, compactions, migrations, and what is to be deleted.

Each round of a loop observes the catalog (or asks the owners of shards), plans with a pure
function, and writes by compare-and-swap. Every write names the leader's term, so the store rejects
the writes of a leader that was deposed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.compaction.plan import ShardObservation, plan_compactions, within_budget
from annheal.coordinator.compaction.publication_plan import plan_publications
from annheal.coordinator.compaction.task_book import TaskBook
from annheal.coordinator.data_path.router import Router, reroutable
from annheal.coordinator.election import Leadership
from annheal.coordinator.leader.gc import GarbageCollector
from annheal.coordinator.leader.observation import Observation, WriteWatch, observe_shards
from annheal.coordinator.placement.topology import Topology
from annheal.coordinator.settings import CoordinatorSettings
from annheal.errors import AnnhealError, DeadlineExceeded, FailedPrecondition, NotFound
from annheal.metastore.protocol import Compare, Delete, MetaStore, Operation
from annheal.metastore.table import Stored
from annheal.model.collection import Collection
from annheal.model.topology.shard import Assignment, ShardId, ShardPhase
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.rpc.port import ShardNode
from annheal.runtime.clock import Clock, NewId, monotonic_s
from annheal.runtime.deadline import Deadline
from annheal.runtime.fail_points import fail_point
from annheal.runtime.tasks import run_loop

_log = logging.getLogger(__name__)

_PAUSE_S = 0.02  # at least this long between two rounds, however often the catalog changes
_DELETES_STEP = 40  # assignments of one commit


class Rounds(Protocol):
    """What is done again and again while this coordinator leads."""

    async def run_round(self) -> None:
        """Do one round; an error that is not retryable ends the term."""
        ...


@dataclass(frozen=True, slots=True)
class ControlParts:
    """What the loops read and write; `migrations` returns the driver of migrations for one term."""

    catalog: Catalog
    store: MetaStore
    router: Router
    topology: Topology
    tasks: TaskBook
    garbage: GarbageCollector
    new_id: NewId
    wall_clock: Clock
    migrations: Callable[[Leadership], Rounds]
    clock: Clock = monotonic_s


class Control:
    """Runs the control loops while this coordinator leads, one term after another."""

    def __init__(self, parts: ControlParts, *, settings: CoordinatorSettings) -> None:
        self._parts = parts
        self._settings = settings

    async def lead(self, term: Leadership) -> None:
        """Run all loops of a term until cancelled; one not retryable error ends them all."""
        settings, parts = self._settings, self._parts
        run_round: Callable[[], Awaitable[object]]
        try:
            async with asyncio.TaskGroup() as group:
                node_rows: dict[str, int] = {}
                publication = _Publication(parts, settings, term, group, node_rows)
                for name, run_round in (
                    ("placement", _Placement(parts, settings, term).run_round),
                    ("publication", publication.run_round),
                ):
                    paced = _OnChange(parts.catalog, run_round, settings.control_interval_s)
                    group.create_task(run_loop(paced.step, name=name, wait=paced.wait), name=name)
                for name, run_round, interval_s in (
                    (
                        "compaction",
                        _Compaction(parts, settings, term, node_rows).run_round,
                        settings.compaction_interval_s,
                    ),
                    (
                        "migrations",
                        parts.migrations(term).run_round,
                        settings.compaction_interval_s,
                    ),
                    (
                        "cleanup",
                        _Cleanup(parts, settings, term).run_round,
                        settings.control_interval_s,
                    ),
                    ("garbage", parts.garbage.collect, settings.collection_interval_s),
                ):
                    loop = run_loop(run_round, name=name, wait=_every(interval_s))
                    group.create_task(loop, name=name)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors


class _OnChange:
    """Paces a loop: the next round starts when the catalog has changed, or after `interval_s`."""

    def __init__(
        self, catalog: Catalog, run_round: Callable[[], Awaitable[object]], interval_s: float
    ) -> None:
        self._catalog = catalog
        self._run_round = run_round
        self._interval_s = interval_s
        self._seen_version = -1

    async def step(self) -> None:
        self._seen_version = self._catalog.version
        await self._run_round()

    async def wait(self) -> None:
        await asyncio.sleep(_PAUSE_S)
        await self._catalog.wait_change(self._seen_version, timeout_s=self._interval_s)


def _every(interval_s: float) -> Callable[[], Awaitable[object]]:
    async def wait() -> None:
        await asyncio.sleep(interval_s)

    return wait


class _Placement:
    """Gives shards without an owner a target, drains nodes, and rebalances after a node has joined.

    A rebalance goes on, round after round, until no move is needed and none is under way.
    """

    def __init__(
        self, parts: ControlParts, settings: CoordinatorSettings, term: Leadership
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._term = term
        self._usable: frozenset[str] | None = None
        self._uneven = False
        self._targets: dict[ShardId, tuple[str, float]] = {}

    async def run_round(self) -> None:
        topology = self._parts.topology
        self._parts.router.forget_gone()
        await topology.place(self._term)
        await self._replace_overdue()
        usable = frozenset(node.node_id for node in topology.nodes() if not node.draining)
        if self._usable is not None and usable - self._usable:
            self._uneven = self._settings.rebalance_automatic
        self._usable = usable
        await topology.rebalance_round(term=self._term, balance=self._uneven)
        if self._uneven and topology.balanced():
            self._uneven = False

    async def _replace_overdue(self) -> None:
        now = self._parts.clock()
        targets: dict[ShardId, tuple[str, float]] = {}
        for assignment in self._parts.topology.assignments():
            if assignment.target:
                known = self._targets.get(assignment.id)
                same = known is not None and known[0] == assignment.target
                targets[assignment.id] = (
                    known if known is not None and same else (assignment.target, now)
                )
        self._targets = targets
        await self._parts.topology.replace_overdue(
            {shard: now - since for shard, (_, since) in targets.items()},
            timeout_s=self._settings.takeover_timeout_s,
            term=self._term,
        )


class _Publication:
    """Asks the owners of shards to publish built tasks, a few at a time (`plan_publications`)."""

    def __init__(
        self,
        parts: ControlParts,
        settings: CoordinatorSettings,
        term: Leadership,
        group: asyncio.TaskGroup,
        node_rows: Mapping[str, int],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._term = term
        self._group = group
        self._node_rows = node_rows
        self._under_way: dict[str, CompactionTask] = {}

    async def run_round(self) -> None:
        catalog = self._parts.catalog
        built = {
            stored.value.id: stored
            for stored in catalog.tasks()
            if stored.value.phase is TaskPhase.BUILT and stored.value.id not in self._under_way
        }
        if not built:
            return
        for task in plan_publications(
            [stored.value for stored in built.values()],
            self._under_way.values(),
            owners={one.value.id: one.value.owner for one in catalog.assignments()},
            node_rows=self._node_rows,
            publishes_max=self._settings.publishes_max,
            reload_share_max=self._settings.compaction.reload_share_max,
        ):
            self._under_way[task.id] = task
            self._group.create_task(self._publish(built[task.id]), name=f"publish-{task.id}")

    async def _publish(self, stored: Stored[CompactionTask]) -> None:
        task = stored.value

        async def call(node: ShardNode, _: Deadline) -> None:
            await node.publish_compaction(task)

        phase, failure = TaskPhase.PUBLISHED, ""
        fail_point("coordinator.proposing")
        try:
            await self._parts.router.call(
                ShardId(task.collection_id, task.shard),
                call,
                deadline=Deadline.after(self._settings.publish_timeout_s),
                mutation=True,
            )
        except (FailedPrecondition, NotFound) as error:
            phase, failure = TaskPhase.CANCELLED, error.message
        except AnnhealError as error:
            if error.retryable or reroutable(error) or isinstance(error, DeadlineExceeded):
                _log.warning("task %s is not published yet: %s", task.id, error.message)
                await asyncio.sleep(self._settings.store_retry_s)
                self._under_way.pop(task.id, None)
                return
            phase, failure = TaskPhase.FAILED, error.message
        fail_point("coordinator.proposed")
        try:
            await self._parts.tasks.finish(stored, phase, error=failure, term=self._term)
            fail_point("coordinator.finished")
        except AnnhealError as error:
            if not error.retryable:
                raise
            _log.warning("task %s: its phase is not stored yet: %s", task.id, error.message)
        finally:
            self._under_way.pop(task.id, None)


class _Compaction:
    """Plans compactions from the shard states that owners report, and cancels stale tasks.

    Each round writes the live rows of every node that answered into `node_rows`.
    """

    def __init__(
        self,
        parts: ControlParts,
        settings: CoordinatorSettings,
        term: Leadership,
        node_rows: dict[str, int],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._term = term
        self._node_rows = node_rows
        self._writes = WriteWatch()

    async def run_round(self) -> None:
        tasks, observation = await self._plan()
        for stored in tasks:
            reason = self._stale_reason(stored.value, observation)
            if reason:
                await self._parts.tasks.finish(
                    stored, TaskPhase.CANCELLED, error=reason, term=self._term
                )

    async def _plan(self) -> tuple[tuple[Stored[CompactionTask], ...], Observation]:
        """Add the tasks that the rules plan; return the tasks and the states from before."""
        parts, rules = self._parts, self._settings.compaction
        async with parts.tasks.planning:
            # Tasks are read before states: the sources of a task that is published between the two
            # reads are still in it, so no new task gets them.
            tasks = parts.catalog.tasks()
            observation = await observe_shards(
                parts.catalog, parts.router, timeout_s=self._settings.observe_timeout_s
            )
            for node, states in observation.by_node.items():
                self._node_rows[node] = sum(state.live_rows for state in states)
            quiet_s = self._writes.quiet_s(
                observation.states,
                present={one.value.id for one in parts.catalog.assignments()},
                now_s=parts.clock(),
            )
            planned: list[CompactionTask] = []
            for collection in parts.catalog.collections():
                if not (rules.automatic and collection.settings.compaction_automatic):
                    continue
                planned += plan_compactions(
                    collection,
                    _shards_of(collection, observation, quiet_s),
                    [one.value for one in tasks if one.value.collection_id == collection.id],
                    now_s=parts.wall_clock(),
                    settings=rules,
                    new_id=parts.new_id,
                )
            allowed = within_budget(planned, [one.value for one in tasks], settings=rules)
            if allowed:
                await parts.tasks.add(allowed, term=self._term)
        return tasks, observation

    def _stale_reason(self, task: CompactionTask, observation: Observation) -> str:
        """Return why a pending task can never be done; "" when it can, or when it is not known."""
        if task.phase is not TaskPhase.PENDING:
            return ""
        catalog = self._parts.catalog
        if catalog.collection_by_id(task.collection_id) is None:
            return "the collection was dropped" if catalog.collections_readable() else ""
        state = observation.state(ShardId(task.collection_id, task.shard))
        if state is None or state.phase != ShardPhase.SERVING:
            return ""
        present = {segment.segment_id for segment in state.segments}
        gone = [source for source in task.sources if source not in present]
        return f"source {gone[0]} is gone" if gone else ""


class _Cleanup:
    """Deletes finished tasks after `task_retention_s`, and orphaned assignments.

    An assignment is orphaned when its collection does not exist. `orphan_grace_s` after it was
    first seen so, it is deleted, provided that no assignment of the collection ever had an owner.
    """

    def __init__(
        self, parts: ControlParts, settings: CoordinatorSettings, term: Leadership
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._term = term
        self._orphans: dict[str, float] = {}

    async def run_round(self) -> None:
        await self._parts.tasks.forget_finished(
            retention_s=self._settings.task_retention_s, term=self._term
        )
        await self._delete_orphans()

    async def _delete_orphans(self) -> None:
        catalog = self._parts.catalog
        if not catalog.collections_readable():
            return
        known = {collection.id for collection in catalog.collections()}
        orphans: dict[str, list[Stored[Assignment]]] = {}
        for stored in catalog.assignments():
            if stored.value.collection_id not in known:
                orphans.setdefault(stored.value.collection_id, []).append(stored)
        now = self._parts.clock()
        self._orphans = {one: self._orphans.get(one, now) for one in orphans}
        for collection_id, assignments in orphans.items():
            # A shard that had an owner may have data: only a `dropped/` marker deletes it (`gc`).
            unused = all(not one.value.owner and not one.value.epoch for one in assignments)
            overdue = now - self._orphans[collection_id] >= self._settings.orphan_grace_s
            if unused and overdue:
                await self._delete(assignments)

    async def _delete(self, assignments: list[Stored[Assignment]]) -> None:
        for first in range(0, len(assignments), _DELETES_STEP):
            part = assignments[first : first + _DELETES_STEP]
            operations: list[Operation] = [Delete(one.key) for one in part]
            compares = [Compare(one.key, one.mod_revision) for one in part]
            await self._parts.store.commit(operations, compares=[*compares, self._term.guard()])
        _log.info("deleted %d assignments without a collection", len(assignments))


def _shards_of(
    collection: Collection, observation: Observation, quiet_s: dict[ShardId, float]
) -> list[ShardObservation]:
    """Return the shards of a collection whose owners answered."""
    shards = []
    for number in range(collection.shard_count):
        shard = ShardId(collection.id, number)
        state = observation.state(shard)
        if state is not None:
            shards.append(ShardObservation(state, quiet_s.get(shard, 0.0)))
    return shards
