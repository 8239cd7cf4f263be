"""Which shards to move so that nodes are evenly loaded and draining nodes become empty. Pure.

The plan descends on one convex measure of imbalance, the sum over nodes of squared shard counts
over capacity, taken over all shards and once more (weighted) for each collection. Every move lowers
it, so repeated plans end and never send a shard to and fro.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from annheal.coordinator.placement.placement import NodeLoad, PlacementNode, choose_node, node_loads
from annheal.model.topology.shard import Assignment, ShardId

TOLERANCE = 0.05
"""Share by which a node may exceed its fair share before shards leave it."""
MOVES_MAX = 64
"""Moves of one plan."""
_LEAST_GAIN = 1e-9
# More than 1, so that a move which evens out a collection is worth a total that is off by one until
# the next move evens that out.
_COLLECTION_WEIGHT = 1.5


@dataclass(frozen=True, slots=True)
class Move:
    """Let `target` take over from `source`; the source serves until the target does."""

    shard: ShardId
    source: str
    target: str
    reason: str


def plan_rebalance(
    assignments: Sequence[Assignment],
    nodes: Sequence[PlacementNode],
    *,
    tolerance: float = TOLERANCE,
    moves_max: int = MOVES_MAX,
    balance: bool = True,
) -> tuple[Move, ...]:
    """Return the moves that may start now: at most one into and one out of each node at a time.

    Moves in progress (a live target beside a live owner) count against those bounds. Draining nodes
    are emptied first; with `balance` false nothing else is planned. Equal inputs give equal plans.
    """
    loads = node_loads(assignments, nodes)
    receiving, giving = _moves_in_progress(assignments, loads)
    movable = _movable(assignments, loads)
    moves: list[Move] = []
    while len(moves) < moves_max:
        move = _next_drain(movable, loads, receiving=receiving, giving=giving)
        if move is None and balance:
            move = _next_balance(
                movable, loads, receiving=receiving, giving=giving, tolerance=tolerance
            )
        if move is None:
            break
        moves.append(move)
        receiving.add(move.target)
        giving.add(move.source)
        _apply(move, movable, loads)
    return tuple(moves)


def plan_rebalance_fully(
    assignments: Sequence[Assignment],
    nodes: Sequence[PlacementNode],
    *,
    tolerance: float = TOLERANCE,
    moves_max: int = 10_000,
) -> tuple[Move, ...]:
    """Return every move that repeated rounds would make, for a dry run."""
    state = {assignment.id: assignment for assignment in assignments}
    moves: list[Move] = []
    while len(moves) < moves_max:
        plan = plan_rebalance(list(state.values()), nodes, tolerance=tolerance)
        if not plan:
            break
        moves.extend(plan)
        for move in plan:
            state[move.shard] = replace(state[move.shard], owner=move.target, target="")
    return tuple(moves)


def _moves_in_progress(
    assignments: Sequence[Assignment], loads: Mapping[str, NodeLoad]
) -> tuple[set[str], set[str]]:
    receiving: set[str] = set()
    giving: set[str] = set()
    for assignment in assignments:
        moving = assignment.target in loads and assignment.target != assignment.owner
        if moving and assignment.owner in loads:
            receiving.add(assignment.target)
            giving.add(assignment.owner)
    return receiving, giving


def _movable(
    assignments: Sequence[Assignment], loads: Mapping[str, NodeLoad]
) -> dict[str, dict[str, list[int]]]:
    """Return node -> collection -> numbers (descending) of its shards that have no target."""
    movable: dict[str, dict[str, list[int]]] = {}
    for assignment in sorted(assignments, key=lambda one: one.id, reverse=True):
        if assignment.owner in loads and not assignment.target:
            by_collection = movable.setdefault(assignment.owner, {})
            by_collection.setdefault(assignment.collection_id, []).append(assignment.shard)
    return movable


def _next_drain(
    movable: Mapping[str, Mapping[str, list[int]]],
    loads: Mapping[str, NodeLoad],
    *,
    receiving: set[str],
    giving: set[str],
) -> Move | None:
    free = {name: load for name, load in loads.items() if name not in receiving}
    for source in sorted(movable):
        if not loads[source].node.draining or source in giving:
            continue
        for collection_id, numbers in sorted(movable[source].items()):
            target = choose_node(collection_id, free) if numbers else None
            if target is not None:
                shard = ShardId(collection_id, numbers[-1])
                return Move(shard, source, target, f"{source} is draining")
    return None


def _next_balance(
    movable: Mapping[str, Mapping[str, list[int]]],
    loads: Mapping[str, NodeLoad],
    *,
    receiving: set[str],
    giving: set[str],
    tolerance: float,
) -> Move | None:
    """Return the move that lowers the imbalance most, if one leaves a node that is too full."""
    targets = [
        load
        for name, load in sorted(loads.items())
        if name not in receiving and not load.node.draining
    ]
    capacity = sum(load.node.capacity for load in loads.values() if not load.node.draining)
    totals: Counter[str] = Counter()
    for load in loads.values():
        totals.update(load.by_collection)
    best: tuple[float, Move] | None = None
    for source in sorted(movable):
        load = loads[source]
        if source in giving or load.node.draining:
            continue
        share = load.node.capacity / capacity
        crowded = _over(load.total, totals.total() * share, tolerance)
        for collection_id, numbers in sorted(movable[source].items()):
            held = load.by_collection[collection_id]
            if not numbers or not (
                crowded or _over(held, totals[collection_id] * share, tolerance)
            ):
                continue
            for target in targets:
                gain = _gain(collection_id, load, target)
                if gain > _LEAST_GAIN and (best is None or gain > best[0] + _LEAST_GAIN):
                    shard = ShardId(collection_id, numbers[-1])
                    reason = (
                        f"{source} holds {load.total} shards, {target.node.node_id} {target.total}"
                    )
                    best = (gain, Move(shard, source, target.node.node_id, reason))
    return best[1] if best is not None else None


def _over(count: int, fair: float, tolerance: float) -> bool:
    return count > fair * (1.0 + tolerance)


def _gain(collection_id: str, source: NodeLoad, target: NodeLoad) -> float:
    """Return by how much the imbalance falls when one shard goes from source to target."""
    if source is target:
        return 0.0
    held, there = source.by_collection[collection_id], target.by_collection[collection_id]
    given = (2 * source.total - 1) + _COLLECTION_WEIGHT * (2 * held - 1)
    taken = (2 * target.total + 1) + _COLLECTION_WEIGHT * (2 * there + 1)
    return given / source.node.capacity - taken / target.node.capacity


def _apply(
    move: Move, movable: Mapping[str, Mapping[str, list[int]]], loads: Mapping[str, NodeLoad]
) -> None:
    collection_id = move.shard.collection_id
    movable[move.source][collection_id].remove(move.shard.number)
    for name, change in ((move.source, -1), (move.target, 1)):
        loads[name].total += change
        loads[name].by_collection[collection_id] += change
