"""Which node takes a shard that nobody serves. Pure: state in, decisions out.

A shard needs a target when its owner is not a live node, or was never chosen, and no live node is
already taking it over. Shards with a live owner stay where they are: moving those is
`annheal.coordinator.placement.rebalance`'s business, so a plan here moves nothing that works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from annheal.model.topology.shard import Assignment, NodeRegistration, NodeSettings, ShardId


@dataclass(frozen=True, slots=True)
class PlacementNode:
    """A live node as placement sees it; `capacity` is relative to the other nodes'."""

    node_id: str
    zone: str = ""
    capacity: float = 1.0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class TargetChange:
    """Write `target` into the assignment as it was seen (`assignment`); empty ends a take-over."""

    assignment: Assignment
    target: str
    reason: str

    @property
    def shard(self) -> ShardId:
        """The shard concerned."""
        return self.assignment.id


@dataclass(slots=True)
class NodeLoad:
    """Shards on one node, counting those it is about to take and not those it is about to give."""

    node: PlacementNode
    total: int = 0
    by_collection: Counter[str] = field(default_factory=Counter)


def placement_nodes(
    registrations: Iterable[NodeRegistration], settings: Mapping[str, NodeSettings]
) -> tuple[PlacementNode, ...]:
    """Return the live nodes, in order of their ids."""
    return tuple(
        PlacementNode(
            node_id=registration.node_id,
            zone=registration.zone,
            capacity=max(registration.capacity, 1e-9),
            draining=registration.node_id in settings and settings[registration.node_id].draining,
        )
        for registration in sorted(registrations, key=lambda one: one.node_id)
    )


def holder_of(assignment: Assignment, live: Mapping[str, object]) -> str:
    """Return the live node that has the shard or is taking it over; empty when there is none."""
    if assignment.target in live:
        return assignment.target
    return assignment.owner if assignment.owner in live else ""


def node_loads(
    assignments: Iterable[Assignment], nodes: Iterable[PlacementNode]
) -> dict[str, NodeLoad]:
    """Return the load of every live node, by id."""
    loads = {node.node_id: NodeLoad(node) for node in nodes}
    for assignment in assignments:
        holder = holder_of(assignment, loads)
        if holder:
            loads[holder].total += 1
            loads[holder].by_collection[assignment.collection_id] += 1
    return loads


def plan_assignments(
    assignments: Sequence[Assignment], nodes: Sequence[PlacementNode]
) -> tuple[TargetChange, ...]:
    """Return the targets to set, in shard order; equal inputs give equal plans.

    Each homeless shard goes to the node that, relative to its capacity, would then hold the fewest
    shards of the collection; ties go to the fewest shards of all, then to the zone with the fewest
    of the collection, then to the smallest id. Draining nodes take nothing. A target that died is
    replaced, or dropped when the owner still lives. Shards that cannot be placed are left out.
    """
    loads = node_loads(assignments, nodes)
    changes: list[TargetChange] = []
    for assignment in sorted(assignments, key=lambda one: one.id):
        if assignment.target in loads:
            continue
        if assignment.owner in loads:
            if assignment.target:
                reason = f"target {assignment.target} is gone; {assignment.owner} keeps the shard"
                changes.append(TargetChange(assignment, "", reason))
            continue
        target = choose_node(assignment.collection_id, loads)
        if target is None:
            continue
        loads[target].total += 1
        loads[target].by_collection[assignment.collection_id] += 1
        gone = assignment.target or assignment.owner
        reason = f"{gone} is gone" if gone else "new shard"
        changes.append(TargetChange(assignment, target, reason))
    return tuple(changes)


def plan_overdue(
    assignments: Sequence[Assignment],
    nodes: Sequence[PlacementNode],
    *,
    waiting_s: Mapping[ShardId, float],
    timeout_s: float,
) -> tuple[TargetChange, ...]:
    """Return what to do about targets that have not taken over for `timeout_s`.

    `waiting_s` says for how long each shard's present target is known. A living owner keeps its
    shard; a shard without one goes to another node, if there is another that may take it.
    """
    loads = node_loads(assignments, nodes)
    changes: list[TargetChange] = []
    for assignment in sorted(assignments, key=lambda one: one.id):
        overdue = waiting_s.get(assignment.id, 0.0) >= timeout_s
        if not overdue or assignment.target not in loads or assignment.target == assignment.owner:
            continue
        reason = f"{assignment.target} did not take over in {timeout_s:.0f} s"
        if assignment.owner in loads:
            changes.append(TargetChange(assignment, "", reason))
            continue
        others = {name: load for name, load in loads.items() if name != assignment.target}
        target = choose_node(assignment.collection_id, others)
        if target is not None:
            loads[target].total += 1
            loads[target].by_collection[assignment.collection_id] += 1
            changes.append(TargetChange(assignment, target, reason))
    return tuple(changes)


def choose_node(collection_id: str, loads: Mapping[str, NodeLoad]) -> str | None:
    """Return the node that should take one more shard of the collection; None: no node may."""
    zones: Counter[str] = Counter()
    for load in loads.values():
        zones[load.node.zone] += load.by_collection[collection_id]

    def cost(load: NodeLoad) -> tuple[float, float, int, str]:
        node = load.node
        return (
            (load.by_collection[collection_id] + 1) / node.capacity,
            (load.total + 1) / node.capacity,
            zones[node.zone],
            node.node_id,
        )

    candidates = [load for load in loads.values() if not load.node.draining]
    return min(candidates, key=cost).node.node_id if candidates else None
