"""Changing who serves what: targets, drains, moves. Used by the leader's loop and by operators.

Any coordinator may write a target, because a target is a compare-and-swap of the assignment as it
was seen; the node named then takes over by epoch, and the old owner serves until it does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.collections import check_shard
from annheal.coordinator.election import Leadership
from annheal.coordinator.placement.placement import (
    PlacementNode,
    TargetChange,
    placement_nodes,
    plan_assignments,
    plan_overdue,
)
from annheal.coordinator.placement.rebalance import Move, plan_rebalance, plan_rebalance_fully
from annheal.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.limits import COMMIT_OPERATIONS_MAX
from annheal.metastore.protocol import Compare, MetaStore, Operation, Put
from annheal.metastore.table import Stored
from annheal.model.collection import Collection
from annheal.model.topology.cluster import ShardMove
from annheal.model.topology.shard import Assignment, NodeSettings, ShardId
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import RetryPolicy, retry

_log = logging.getLogger(__name__)

_POLICY = RetryPolicy(attempts_max=20)
_TARGETS_STEP = COMMIT_OPERATIONS_MAX - 1  # one compare guards the leader's term


class Topology:
    """Reads placement from the catalog and writes targets and drain flags to the store."""

    def __init__(self, catalog: Catalog, store: MetaStore, *, tolerance: float) -> None:
        self._catalog = catalog
        self._store = store
        self._tolerance = tolerance

    def nodes(self) -> tuple[PlacementNode, ...]:
        """Return the live nodes as placement sees them."""
        return placement_nodes(self._catalog.nodes().values(), self._catalog.node_settings())

    def assignments(self) -> list[Assignment]:
        """Return the assignments of the collections that exist."""
        known = {collection.id for collection in self._catalog.collections()}
        return [
            stored.value
            for stored in self._catalog.assignments()
            if stored.value.collection_id in known
        ]

    async def place(self, term: Leadership) -> int:
        """Give shards that nobody serves a target; return how many were changed."""
        return await self._apply(plan_assignments(self.assignments(), self.nodes()), term=term)

    async def replace_overdue(
        self, waiting_s: Mapping[ShardId, float], *, timeout_s: float, term: Leadership
    ) -> int:
        """Take shards from targets that have not opened them in time; see `plan_overdue`."""
        plan = plan_overdue(
            self.assignments(), self.nodes(), waiting_s=waiting_s, timeout_s=timeout_s
        )
        return await self._apply(plan, term=term)

    async def _apply(self, changes: Sequence[TargetChange], *, term: Leadership) -> int:
        """Write the changes, many in one commit; when one was overtaken, each on its own."""
        changed = 0
        for first in range(0, len(changes), _TARGETS_STEP):
            part = changes[first : first + _TARGETS_STEP]
            if len(part) > 1 and await self._set_targets(part, term=term):
                done = list(part)
            else:
                done = [
                    one
                    for one in part
                    if await self.set_target(one.assignment, one.target, term=term)
                ]
            for one in done:
                _log.info("shard %s -> %s: %s", one.shard, one.target or "nobody", one.reason)
            changed += len(done)
        return changed

    async def _set_targets(self, changes: Sequence[TargetChange], *, term: Leadership) -> bool:
        operations: list[Operation] = []
        compares = [term.guard()]
        for change in changes:
            stored = self._catalog.assignment(change.shard)
            if stored is None or stored.value != change.assignment:
                return False
            wanted = replace(change.assignment, target=change.target)
            operations.append(Put(stored.key, encode_value(wanted)))
            compares.append(Compare(stored.key, stored.mod_revision))
        try:
            revision = await self._store.commit(operations, compares=compares)
        except Conflict:
            return False
        await self._catalog.wait_revision(revision, of=keys.SHARDS_PREFIX, timeout_s=1.0)
        return True

    async def rebalance_round(self, *, term: Leadership | None, balance: bool = True) -> list[Move]:
        """Start the moves that may start now, and return them; none left means balanced."""
        assignments = {assignment.id: assignment for assignment in self.assignments()}
        plan = plan_rebalance(
            list(assignments.values()), self.nodes(), tolerance=self._tolerance, balance=balance
        )
        started: list[Move] = []
        for move in plan:
            if await self.set_target(assignments[move.shard], move.target, term=term):
                _log.info(
                    "move %s: %s -> %s: %s", move.shard, move.source, move.target, move.reason
                )
                started.append(move)
        return started

    def plan_rebalance(self) -> list[ShardMove]:
        """Return every move that would even out the cluster, without making any."""
        return self.named(
            plan_rebalance_fully(self.assignments(), self.nodes(), tolerance=self._tolerance)
        )

    def balanced(self) -> bool:
        """Whether no move is needed and none is under way."""
        nodes = self.nodes()
        live = {node.node_id for node in nodes}
        assignments = self.assignments()
        moving = any(one.target in live and one.target != one.owner for one in assignments)
        return not moving and not plan_rebalance(assignments, nodes, tolerance=self._tolerance)

    def named(self, moves: Sequence[Move]) -> list[ShardMove]:
        """Return moves as operators see them, with the collection's name."""
        names = {collection.id: collection.name for collection in self._catalog.collections()}
        return [
            ShardMove(
                collection=names.get(move.shard.collection_id, ""),
                shard=move.shard.number,
                source=move.source,
                target=move.target,
            )
            for move in moves
        ]

    async def set_target(
        self, seen: Assignment, target: str, *, term: Leadership | None = None
    ) -> bool:
        """Write `target` into the assignment if it is still as `seen`; return whether it was."""
        stored = self._catalog.assignment(seen.id)
        if stored is None or stored.value != seen:
            return False
        compares = [Compare(stored.key, stored.mod_revision)]
        if term is not None:
            compares.append(term.guard())
        try:
            revision = await self._store.commit(
                [Put(stored.key, encode_value(replace(seen, target=target)))], compares=compares
            )
        except Conflict:
            return False  # the owner, or another coordinator, was faster: plan again
        await self._catalog.wait_revision(revision, of=keys.SHARDS_PREFIX, timeout_s=1.0)
        return True

    async def move(
        self, collection: Collection, shard: int, node_id: str, *, deadline: Deadline
    ) -> ShardMove:
        """Order the move of one shard; raises `NotFound` or `FailedPrecondition` for a bad node.

        The move is done when the assignment's owner is `node_id`.
        """
        where = check_shard(collection, shard)
        self._check_target(node_id)

        async def attempt(_: Deadline) -> ShardMove:
            stored = await self._read(where)
            seen = stored.value
            if seen.owner == node_id and not seen.target:
                raise FailedPrecondition(
                    f"{node_id} owns shard {shard} of {collection.name!r} already",
                    reason="ALREADY_THERE",
                )
            target = "" if seen.owner == node_id else node_id
            await self._store.commit(
                [Put(stored.key, encode_value(replace(seen, target=target)))],
                compares=[Compare(stored.key, stored.mod_revision)],
            )
            return ShardMove(collection.name, shard, seen.owner, node_id)

        return await retry(attempt, deadline=deadline, policy=_POLICY, mutation=True)

    async def drain(self, node_id: str, *, draining: bool, deadline: Deadline) -> list[ShardMove]:
        """Set or clear a drain flag; return the moves that empty the node, which the leader makes.

        Raises `NotFound` when the node neither lives nor has settings.
        """
        known = node_id in self._catalog.nodes() or node_id in self._catalog.node_settings()
        if not known:
            raise self._no_node(node_id)
        owned = [one.id for one in self.assignments() if one.owner == node_id]

        async def attempt(_: Deadline) -> int:
            return await self._store.commit(
                [
                    Put(
                        keys.node_settings_key(node_id),
                        encode_value(NodeSettings(node_id, draining)),
                    )
                ]
            )

        revision = await retry(attempt, deadline=deadline, policy=_POLICY, mutation=True)
        timeout_s = deadline.remaining_s
        await self._catalog.wait_revision(
            revision, of=keys.NODE_SETTINGS_PREFIX, timeout_s=timeout_s
        )
        if not draining:
            return []
        return self.named(self._departures(node_id, owned))

    def _departures(self, node_id: str, owned: Sequence[ShardId]) -> list[Move]:
        """Return where the shards that the node owned go, those included that have left already."""
        present = self.assignments()
        plan = plan_rebalance_fully(present, self.nodes(), tolerance=self._tolerance)
        # The leader may have begun as soon as it saw the flag.
        targets = {one.id: one.target or one.owner for one in present}
        targets |= {move.shard: move.target for move in plan if move.source == node_id}
        return [
            Move(shard, node_id, target, f"{node_id} is drained")
            for shard in owned
            if (target := targets.get(shard, "")) not in ("", node_id)
        ]

    def _check_target(self, node_id: str) -> None:
        if not node_id:
            raise InvalidArgument.of("node_id", "is empty; name the node that is to own the shard")
        if node_id not in self._catalog.nodes():
            raise self._no_node(node_id)
        settings = self._catalog.node_settings().get(node_id)
        if settings is not None and settings.draining:
            raise FailedPrecondition(
                f"node {node_id!r} is draining; undrain it or choose another",
                reason="NODE_DRAINING",
            )

    def _no_node(self, node_id: str) -> NotFound:
        alive = ", ".join(sorted(self._catalog.nodes())) or "none"
        return NotFound(
            f"there is no live shard node {node_id[:80]!r}; alive: {alive}",
            reason="NODE_NOT_FOUND",
            metadata={"node_id": node_id[:80]},
        )

    async def _read(self, shard: ShardId) -> Stored[Assignment]:
        key = keys.shard_key(shard.collection_id, shard.number)
        stored = await self._store.get(key)
        if stored is None:
            raise NotFound(f"shard {shard} does not exist (any more)", reason="SHARD_NOT_FOUND")
        return Stored(key, decode_value(stored.value, Assignment, key=key), stored.mod_revision)
