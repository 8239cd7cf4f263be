"""The operations of operators: status, compaction, garbage collection, placement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from annheal.coordinator.collections import check_shard
from annheal.coordinator.compaction.plan import (
    ShardObservation,
    plan_compactions,
    plan_manual,
    plan_named,
)
from annheal.coordinator.compaction.task_book import UNFINISHED
from annheal.coordinator.leader.control import ControlParts
from annheal.coordinator.leader.observation import Observation, observe_shards
from annheal.coordinator.recall.merged_audit import MergedAuditor
from annheal.coordinator.settings import CoordinatorSettings
from annheal.errors import AnnhealError, FailedPrecondition, InvalidArgument, Unavailable
from annheal.metastore import keys
from annheal.metastore.codec import decode_value
from annheal.metastore.table import readable
from annheal.model.collection import Collection
from annheal.model.measures.recall_audit import BandAudit, checked_audit_queries
from annheal.model.topology.cluster import (
    ClusterStatus,
    CollectionStatus,
    CompactionOrder,
    GarbageReport,
    NodeStatus,
    ShardMove,
    ShardStatus,
    TaskStatus,
)
from annheal.model.topology.manifest import Tier
from annheal.model.topology.shard import ShardId, ShardPhase, WorkerRegistration
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.rpc.port import ShardNode
from annheal.runtime.deadline import Deadline
from annheal.runtime.tasks import TaskScope

_log = logging.getLogger(__name__)

_FLUSHES_MAX = 8
_ROUND_WAIT_S = 1.0
_REBALANCE_S_MAX = 3_600.0
_LONG_QUIET_S = 1e9
METADATA_AWAY = "the metadata store is away, so who leads and works is not known"


class Admin:
    """The operations of `annheal status`, `nodes`, `shards`, `segments`, `compact` and so on."""

    def __init__(
        self,
        parts: ControlParts,
        *,
        merged_audits: MergedAuditor,
        scope: TaskScope,
        settings: CoordinatorSettings,
        version: str,
        leading: Callable[[], bool],
    ) -> None:
        self._parts = parts
        self._merged_audits = merged_audits
        self._scope = scope
        self._settings = settings
        self._version = version
        self._leading = leading
        self._rebalancing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------ seeing

    async def status(self) -> ClusterStatus:
        """Return a summary of the cluster; nodes that do not answer are warnings, not errors."""
        parts = self._parts
        observation = await self._observe()
        collections = parts.catalog.collections()
        tasks = [stored.value for stored in parts.catalog.tasks()]
        leader, workers, away = await self._registered()
        failed = sum(task.phase is TaskPhase.FAILED for task in tasks)
        nodes = self._nodes(observation)
        return ClusterStatus(
            version=self._version,
            leader=leader,
            nodes=nodes,
            workers=workers,
            collections=len(collections),
            shards=sum(collection.shard_count for collection in collections),
            totals=_totals(observation.states.values()),
            tasks_pending=sum(task.phase in UNFINISHED for task in tasks),
            tasks_failed=failed,
            warnings=tuple(
                [*away, *self._warnings(observation, nodes, failed, led=bool(leader or away))]
            ),
        )

    async def nodes(self) -> tuple[NodeStatus, ...]:
        """Return the live shard nodes, by id."""
        return self._nodes(await self._observe())

    async def shards(self, collection: str = "") -> tuple[ShardStatus, ...]:
        """Return the shards by collection and number; of all collections if it is empty."""
        catalog = self._parts.catalog
        chosen = [await catalog.collection(collection)] if collection else catalog.collections()
        observation = await self._observe(chosen[0].id if collection else "")
        found: list[ShardStatus] = []
        for one in chosen:
            for _, stored in sorted(catalog.assignments_of(one.id).items()):
                assignment = stored.value
                state = observation.state(assignment.id)
                error = observation.errors.get(assignment.owner, "") if state is None else ""
                if assignment.owner and catalog.node(assignment.owner) is None:
                    error = f"node {assignment.owner!r} is not alive"
                found.append(ShardStatus.of(assignment, state, collection=one.name, error=error))
        return tuple(found)

    async def segments(
        self, collection: str, *, shard: int | None = None
    ) -> tuple[tuple[SegmentState, ...], tuple[int, ...]]:
        """Return the segments by shard and age, and the shards whose owners did not answer."""
        found = await self._parts.catalog.collection(collection)
        if shard is not None:
            check_shard(found, shard)
        observation = await self._observe(found.id)
        numbers = range(found.shard_count) if shard is None else (shard,)
        segments: list[SegmentState] = []
        missing: list[int] = []
        for number in numbers:
            state = observation.state(ShardId(found.id, number))
            if state is None:
                missing.append(number)
                continue
            segments += sorted(state.segments, key=lambda one: (one.created_at_s, one.segment_id))
        return tuple(segments), tuple(missing)

    async def collection_status(self, collection: Collection) -> CollectionStatus:
        """Return the rows, segments and bytes of a collection, of the shards that answer."""
        observation = await self._observe(collection.id)
        return _totals(
            state
            for shard, state in observation.states.items()
            if shard.collection_id == collection.id
        )

    # ------------------------------------------------------------------------------- tasks

    async def tasks(
        self, *, collection: str = "", phase: TaskPhase | None = None
    ) -> tuple[TaskStatus, ...]:
        """Return the tasks, newest first, of one collection, or of all if it is empty."""
        wanted = (await self._parts.catalog.collection(collection)).id if collection else ""
        try:
            claims = await self._parts.tasks.claims()
        except Unavailable:  # who works on what is the least that can be left out
            claims = {}
        return tuple(
            TaskStatus.of(
                stored.value,
                collection=self._name(stored.value.collection_id),
                claim=claims.get(stored.value.id),
            )
            for stored in self._parts.tasks.all()
            if (not wanted or stored.value.collection_id == wanted)
            and (phase is None or stored.value.phase is phase)
        )

    async def task(self, task_id: str) -> TaskStatus:
        """Return one task; raises `NotFound`."""
        return await self._status_of((await self._parts.tasks.get(task_id)).value)

    async def cancel_task(self, task_id: str, *, deadline: Deadline) -> TaskStatus:
        """Cancel a task; raises what `TaskBook.cancel` raises."""
        return await self._status_of(await self._parts.tasks.cancel(task_id, deadline=deadline))

    async def flush(self, collection: str, *, deadline: Deadline) -> None:
        """Seal and flush every shard; returns when it is done."""
        found = await self._parts.catalog.collection(collection)
        await self._flush(found, range(found.shard_count), deadline=deadline)

    async def audit_recall(
        self, collection: str, shard: int | None, *, queries_max: int, deadline: Deadline
    ) -> tuple[BandAudit, ...]:
        """Audit the estimates of one shard; None: those of answers over all shards.

        Raises `InvalidArgument` for a shard that is not there.
        """
        checked_audit_queries(queries_max)
        found = await self._parts.catalog.collection(collection)
        if shard is None:
            audit = self._merged_audits.audit
            return await audit(found, queries_max=queries_max, deadline=deadline)

        async def call(node: ShardNode, left: Deadline) -> tuple[BandAudit, ...]:
            return await node.audit_recall(
                found.id, shard, queries_max=queries_max, timeout_s=left.remaining_s
            )

        return await self._parts.router.call(check_shard(found, shard), call, deadline=deadline)

    async def retry_task(self, task_id: str, *, deadline: Deadline) -> TaskStatus:
        """Put a failed task back into the queue; raises what `TaskBook.release` raises."""
        tasks = self._parts.tasks
        async with tasks.planning:
            return await self._status_of(await tasks.release(task_id, deadline=deadline))

    async def compact(
        self, collection: str, order: CompactionOrder, *, deadline: Deadline
    ) -> tuple[str, ...]:
        """Flush, then plan compactions; return the ids of new tasks and of unfinished ones.

        Without names, tier or `full` the rules decide, as if nothing had been written for long.
        Raises `InvalidArgument` for a shard and `NotFound` for a segment that does not exist, and
        `FailedPrecondition` when shards do not answer.
        """
        parts = self._parts
        found, numbers = await self._ordered(collection, order)
        await self._flush(found, numbers, deadline=deadline)
        async with parts.tasks.planning:
            planned, tasks = await self._plan(found, numbers, order)
            await parts.tasks.add(planned)
        wanted = set(order.segment_ids)
        under_way = [
            one.id
            for one in tasks
            if one.phase in UNFINISHED and (not wanted or wanted & set(one.sources))
        ]
        return tuple([task.id for task in planned] + under_way)

    async def plan_compaction(
        self, collection: str, order: CompactionOrder
    ) -> tuple[TaskStatus, ...]:
        """Return the tasks that `compact` would add for the present segments; changes nothing."""
        found, numbers = await self._ordered(collection, order)
        planned, _ = await self._plan(found, numbers, order)
        return tuple(TaskStatus.of(one, collection=found.name) for one in planned)

    async def _ordered(
        self, collection: str, order: CompactionOrder
    ) -> tuple[Collection, Sequence[int]]:
        """Return the collection and the shard numbers of an order; raises for a wrong order."""
        if order.segment_ids and (order.tier is not None or order.full):
            raise InvalidArgument.of("segment_ids", "names segments: leave tier and full out")
        if order.tier is Tier.GROWING:
            raise InvalidArgument.of("tier", "growing rows are in memory; flush them first")
        found = await self._parts.catalog.collection(collection)
        if order.shard is not None:
            check_shard(found, order.shard)
        return found, range(found.shard_count) if order.shard is None else (order.shard,)

    async def _plan(
        self, found: Collection, numbers: Sequence[int], order: CompactionOrder
    ) -> tuple[tuple[CompactionTask, ...], list[CompactionTask]]:
        """Return new tasks, and the known tasks of the shards."""
        parts = self._parts
        tasks = [one.value for one in parts.catalog.tasks()]
        mine = [one for one in tasks if one.collection_id == found.id and one.shard in numbers]
        observation = await self._observe(found.id)
        states = [
            state
            for number in numbers
            if (state := observation.state(ShardId(found.id, number))) is not None
        ]
        if len(states) < len(numbers):
            raise FailedPrecondition(
                f"only {len(states)} of {len(numbers)} shards answer; see `annheal shards`",
                reason="SHARDS_NOT_SERVED",
            )
        now_s, rules = parts.wall_clock(), self._settings.compaction
        if order.segment_ids:
            names = frozenset(order.segment_ids)
            planned = plan_named(
                found,
                states,
                mine,
                segment_ids=names,
                now_s=now_s,
                new_id=parts.new_id,
                settings=rules,
            )
        elif order.full or order.tier is not None:
            planned = plan_manual(
                found,
                states,
                mine,
                now_s=now_s,
                new_id=parts.new_id,
                settings=rules,
                tier=order.tier,
            )
        else:
            planned = plan_compactions(
                found,
                [ShardObservation(state, _LONG_QUIET_S) for state in states],
                mine,
                now_s=now_s,
                settings=rules,
                new_id=parts.new_id,
            )
        return planned, mine

    # ---------------------------------------------------------------------------- topology

    async def rebalance(self, *, dry_run: bool = False) -> tuple[ShardMove, ...]:
        """Return the moves that even out the cluster; unless `dry_run`, they are being made.

        They are made in rounds, in the background, one shard into and out of a node at a time.
        """
        moves = tuple(self._parts.topology.plan_rebalance())
        idle = self._rebalancing is None or self._rebalancing.done()
        if moves and not dry_run and idle:
            self._rebalancing = self._scope.start(self._rebalance(), name="rebalance")
        return moves

    async def collect_garbage(self, *, dry_run: bool = False) -> GarbageReport:
        """Run one round of garbage collection; delete nothing if `dry_run`.

        Raises `FailedPrecondition` (NOT_LEADER) on a coordinator that does not lead: it does not
        know for how long an object has been unreferenced.
        """
        if not self._leading():
            leader = await self._parts.store.get(keys.LEADER_KEY)
            address = "" if leader is None else _worker(leader.value, keys.LEADER_KEY).address
            raise FailedPrecondition(
                f"only the leader collects garbage; it is at {address or 'no known address'}",
                reason="NOT_LEADER",
                metadata={"address": address},
            )
        return await self._parts.garbage.collect(dry_run=dry_run)

    async def drain(self, node_id: str, *, deadline: Deadline) -> tuple[ShardMove, ...]:
        """Give the node no more shards and move away those it has; return those moves."""
        return tuple(await self._parts.topology.drain(node_id, draining=True, deadline=deadline))

    async def undrain(self, node_id: str, *, deadline: Deadline) -> None:
        """End the drain of a node."""
        await self._parts.topology.drain(node_id, draining=False, deadline=deadline)

    async def move(
        self, collection: str, *, shard: int, node_id: str, deadline: Deadline
    ) -> ShardMove:
        """Order the move of one shard; it is done when the shard's owner is `node_id`."""
        found = await self._parts.catalog.collection(collection)
        return await self._parts.topology.move(found, shard, node_id, deadline=deadline)

    # ----------------------------------------------------------------------------- private

    async def _observe(self, collection_id: str = "") -> Observation:
        return await observe_shards(
            self._parts.catalog,
            self._parts.router,
            timeout_s=self._settings.observe_timeout_s,
            collection_id=collection_id,
        )

    async def _flush(
        self, collection: Collection, shards: Iterable[int], *, deadline: Deadline
    ) -> None:
        gate = asyncio.Semaphore(_FLUSHES_MAX)

        async def flush(number: int) -> None:
            async def call(node: ShardNode, _: Deadline) -> None:
                await node.flush(collection.id, number)

            async with gate:
                shard = ShardId(collection.id, number)
                await self._parts.router.call(shard, call, deadline=deadline)

        try:
            async with asyncio.TaskGroup() as group:
                for number in shards:
                    group.create_task(flush(number))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _rebalance(self) -> None:
        """Make moves round by round until the cluster is balanced."""
        topology, catalog = self._parts.topology, self._parts.catalog
        deadline = Deadline.after(_REBALANCE_S_MAX)
        while not deadline.passed:
            version = catalog.version
            try:
                await topology.rebalance_round(term=None)
            except AnnhealError as error:
                if not error.retryable:
                    raise
                _log.warning("rebalancing waits: %s", error.message)
            if topology.balanced():
                return
            await catalog.wait_change(version, timeout_s=_ROUND_WAIT_S)
        _log.warning("rebalancing was given up after %.0f s", _REBALANCE_S_MAX)

    async def _status_of(self, task: CompactionTask) -> TaskStatus:
        claims = await self._parts.tasks.claims()
        name = self._name(task.collection_id)
        return TaskStatus.of(task, collection=name, claim=claims.get(task.id))

    def _name(self, collection_id: str) -> str:
        collection = self._parts.catalog.collection_by_id(collection_id)
        return collection.name if collection is not None else ""

    async def _registered(self) -> tuple[str, tuple[WorkerRegistration, ...], list[str]]:
        """Return the leader, the workers, and a warning when the metadata store cannot be asked."""
        try:
            leader = await self._parts.store.get(keys.LEADER_KEY)
            workers = await self._workers()
        except Unavailable as error:
            own = self._settings.coordinator_id if self._leading() else ""
            return own, (), [f"{METADATA_AWAY}: {error.message}"]
        name = "" if leader is None else _worker(leader.value, keys.LEADER_KEY).worker_id
        return name, workers, []

    async def _workers(self) -> tuple[WorkerRegistration, ...]:
        found: list[WorkerRegistration] = []
        for prefix in (keys.COORDINATORS_PREFIX, keys.COMPACTORS_PREFIX):
            snapshot = await self._parts.store.list(prefix)
            found += [one.value for one in readable(snapshot.items, WorkerRegistration)]
        return tuple(found)

    def _nodes(self, observation: Observation) -> tuple[NodeStatus, ...]:
        catalog = self._parts.catalog
        settings = catalog.node_settings()
        owned: dict[str, int] = {}
        for assignment in self._parts.topology.assignments():
            owned[assignment.owner] = owned.get(assignment.owner, 0) + 1
        nodes = []
        for node_id, registration in sorted(catalog.nodes().items()):
            states = [
                state
                for state in observation.states.values()
                if state.node_id == node_id and state.phase == ShardPhase.SERVING
            ]
            nodes.append(
                NodeStatus(
                    registration=registration,
                    draining=node_id in settings and settings[node_id].draining,
                    shards=owned.get(node_id, 0),
                    shards_serving=len(states),
                    live_rows=sum(state.live_rows for state in states),
                    memory_bytes=sum(
                        state.memory_bytes for state in observation.by_node.get(node_id, ())
                    ),
                    error=observation.errors.get(node_id, ""),
                )
            )
        return tuple(nodes)

    def _warnings(
        self, observation: Observation, nodes: Iterable[NodeStatus], failed: int, *, led: bool
    ) -> list[str]:
        warnings: list[str] = []
        nodes = list(nodes)
        if not nodes:
            warnings.append("no shard node is alive")
        if not led:
            warnings.append("no coordinator leads: shards are not placed, nothing is compacted")
        warnings += [f"node {node_id}: {error}" for node_id, error in observation.errors.items()]
        for collection in self._parts.catalog.collections():
            away = [
                number
                for number in range(collection.shard_count)
                if not _serving(observation.state(ShardId(collection.id, number)))
            ]
            if away:
                state = observation.state(ShardId(collection.id, away[0]))
                why = f": {state.error}" if state is not None and state.error else ""
                warnings.append(
                    f"collection {collection.name}: {len(away)} of {collection.shard_count}"
                    f" shards are not served (the first: {away[0]}{why})"
                )
        if failed:
            warnings.append(f"{failed} tasks failed; see `annheal tasks --phase failed`")
        return warnings


def _serving(state: ShardState | None) -> bool:
    return state is not None and state.phase == ShardPhase.SERVING


def _worker(value: bytes, key: str) -> WorkerRegistration:
    return decode_value(value, WorkerRegistration, key=key)


def _totals(states: Iterable[ShardState]) -> CollectionStatus:
    serving = [state for state in states if state.phase == ShardPhase.SERVING]
    return CollectionStatus(
        shards_serving=len(serving),
        live_rows=sum(state.live_rows for state in serving),
        dead_rows=sum(state.dead_rows for state in serving),
        unindexed_rows=sum(state.unindexed_rows for state in serving),
        segments=sum(len(state.segments) for state in serving),
        size_bytes=sum(segment.size_bytes for state in serving for segment in state.segments),
    )
