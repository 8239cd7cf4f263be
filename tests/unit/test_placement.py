from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.coordinator.placement.placement import (
    PlacementNode,
    placement_nodes,
    plan_assignments,
    plan_overdue,
)
from annheal.coordinator.placement.rebalance import plan_rebalance, plan_rebalance_fully
from annheal.model.topology.shard import Assignment, NodeRegistration, NodeSettings, ShardId

A, B, C = PlacementNode("a"), PlacementNode("b"), PlacementNode("c")


def shards(collection: str, *owners: str) -> list[Assignment]:
    return [Assignment(collection, n, owner=o, epoch=1) for n, o in enumerate(owners)]


def apply(assignments: list[Assignment], plan: dict[ShardId, str]) -> list[Assignment]:
    return [replace(one, target=plan.get(one.id, one.target)) for one in assignments]


def targets(assignments: list[Assignment], nodes: list[PlacementNode]) -> dict[ShardId, str]:
    return {change.shard: change.target for change in plan_assignments(assignments, nodes)}


def test_new_shards_are_spread_evenly():
    plan = targets(shards("x", "", "", "", "", "", ""), [A, B, C])
    assert Counter(plan.values()) == {"a": 2, "b": 2, "c": 2}


def test_collections_of_one_shard_are_spread_over_nodes():
    many = [one for n in range(6) for one in shards(f"c{n}", "")]
    assert Counter(targets(many, [A, B, C]).values()) == {"a": 2, "b": 2, "c": 2}


def test_shards_with_a_live_owner_or_target_stay():
    held = shards("x", "a", "b")
    taken = [replace(held[0], owner="gone", target="c"), held[1]]
    assert targets(held, [A, B, C]) == {}
    assert targets(taken, [A, B, C]) == {}


def test_only_the_dead_nodes_shards_move_and_evenly():
    held = shards("x", "a", "b", "c", "a", "b", "c")
    plan = targets(held, [A, B])
    assert set(plan) == {ShardId("x", 2), ShardId("x", 5)}
    assert Counter(plan.values()) == {"a": 1, "b": 1}


def test_a_dead_target_is_replaced_or_given_up():
    homeless = [replace(shards("x", "gone")[0], target="dead")]
    held = [replace(shards("x", "a")[0], target="dead")]
    assert targets(homeless, [A]) == {ShardId("x", 0): "a"}
    assert targets(held, [A]) == {ShardId("x", 0): ""}


def test_draining_nodes_take_nothing_and_without_nodes_nothing_is_planned():
    fresh = shards("x", "")
    assert targets(fresh, [PlacementNode("a", draining=True), B]) == {ShardId("x", 0): "b"}
    assert targets(fresh, [PlacementNode("a", draining=True)]) == {}
    assert targets(fresh, []) == {}


def test_capacity_weighs():
    plan = targets(shards("x", *[""] * 9), [PlacementNode("big", capacity=2.0), A])
    assert Counter(plan.values()) == {"big": 6, "a": 3}


def test_ties_go_to_the_zone_with_fewest_shards_of_the_collection():
    nodes = [
        PlacementNode("a1", zone="a"),
        PlacementNode("a2", zone="a"),
        PlacementNode("b1", zone="b"),
    ]
    assert targets(shards("x", "a1", ""), nodes) == {ShardId("x", 1): "b1"}


def test_live_nodes_come_from_registrations_and_operators_settings():
    nodes = placement_nodes(
        [NodeRegistration("b", "b:1", zone="z"), NodeRegistration("a", "a:1", capacity=0.0)],
        {"b": NodeSettings("b", draining=True), "gone": NodeSettings("gone", draining=True)},
    )
    assert [node.node_id for node in nodes] == ["a", "b"]
    assert nodes[0].capacity > 0
    assert nodes[1].draining
    assert nodes[1].zone == "z"


def test_overdue_targets_are_given_up_or_replaced():
    moving = [
        replace(shards("x", "a")[0], target="b"),
        Assignment("x", 1, owner="gone", target="b", epoch=1),
        Assignment("x", 2, owner="gone", target="b", epoch=1),
    ]
    waiting = {ShardId("x", 0): 10.0, ShardId("x", 1): 10.0, ShardId("x", 2): 1.0}
    plan = plan_overdue(moving, [A, B], waiting_s=waiting, timeout_s=5.0)
    assert {change.shard.number: change.target for change in plan} == {0: "", 1: "a"}


def test_an_overdue_target_keeps_the_shard_when_nobody_else_can_take_it():
    moving = [Assignment("x", 0, owner="gone", target="b")]
    assert not plan_overdue(moving, [B], waiting_s={ShardId("x", 0): 9.0}, timeout_s=5.0)


# ------------------------------------------------------------------------------ rebalancing


def test_a_balanced_cluster_is_left_alone():
    assert plan_rebalance(shards("x", "a", "b", "c", "a"), [A, B, C]) == ()


def test_a_new_node_gets_its_share_one_shard_at_a_time():
    held = shards("x", "a", "a", "a", "b", "b", "b")
    first = plan_rebalance(held, [A, B, C])
    assert [(move.source, move.target) for move in first] == [("a", "c")]
    moves = plan_rebalance_fully(held, [A, B, C])
    assert len(moves) == 2
    assert {move.target for move in moves} == {"c"}


def test_moves_under_way_count_against_the_bounds():
    held = shards("x", "a", "a", "a", "a")
    moving = [replace(held[0], target="b"), *held[1:]]
    assert plan_rebalance(moving, [A, B]) == ()


def test_a_collection_is_evened_out_although_nodes_hold_equally_many_shards():
    held = shards("x", "a", "a", "a", "a") + shards("y", "b", "b", "b", "b")
    state = {one.id: one for one in held}
    for move in plan_rebalance_fully(held, [A, B]):
        state[move.shard] = replace(state[move.shard], owner=move.target)
    per_node = Counter((one.collection_id, one.owner) for one in state.values())
    assert set(per_node.values()) == {2}


def test_draining_nodes_are_emptied_first_and_alone_when_balancing_is_off():
    draining = PlacementNode("a", draining=True)
    held = shards("x", "a", "a", "b", "b", "b", "b")
    plan = plan_rebalance(held, [draining, B, C], balance=False)
    assert [(move.source, move.target) for move in plan] == [("a", "c")]
    moves = plan_rebalance_fully(held, [draining, B, C])
    left = {one.id: one.owner for one in held} | {move.shard: move.target for move in moves}
    assert "a" not in left.values()


def test_a_draining_node_stays_full_when_there_is_no_other():
    assert plan_rebalance(shards("x", "a"), [PlacementNode("a", draining=True)]) == ()


def test_within_the_tolerance_nothing_moves():
    held = shards("x", *["a"] * 52, *["b"] * 48)
    assert plan_rebalance(held, [A, B], tolerance=0.05) == ()
    assert plan_rebalance(held, [A, B], tolerance=0.01)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Assignment], list[PlacementNode]]:
    names = [f"n{n}" for n in range(draw(st.integers(1, 5)))]
    nodes = [
        PlacementNode(
            name,
            capacity=draw(st.sampled_from([0.5, 1.0, 2.0])),
            zone=draw(st.sampled_from(["p", "q"])),
            draining=draw(st.sampled_from([False, False, False, True])),
        )
        for name in names
    ]
    where = st.sampled_from([*names, "", "gone"])
    assignments = [
        Assignment(f"c{c}", n, owner=draw(where), target=draw(st.sampled_from(["", "", *names])))
        for c in range(draw(st.integers(1, 3)))
        for n in range(draw(st.integers(1, 6)))
    ]
    return assignments, nodes


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_plans_end_are_deterministic_and_home_every_shard(
    cluster: tuple[list[Assignment], list[PlacementNode]],
):
    assignments, nodes = cluster
    live = {node.node_id for node in nodes}
    open_nodes = {node.node_id for node in nodes if not node.draining}
    plan = plan_assignments(assignments, nodes)
    assert plan == plan_assignments(list(reversed(assignments)), list(reversed(nodes)))
    state = apply(assignments, {change.shard: change.target for change in plan})
    assert plan_assignments(state, nodes) == ()
    if open_nodes:
        assert all(one.owner in live or one.target in live for one in state)
    settled = [
        replace(one, owner=one.target or one.owner, target="")
        for one in state
        if (one.target or one.owner) in live
    ]
    moves = plan_rebalance_fully(settled, nodes)
    by_id = {one.id: one for one in settled}
    for move in moves:
        assert move.target in open_nodes
        assert by_id[move.shard].owner == move.source
        by_id[move.shard] = replace(by_id[move.shard], owner=move.target)
    assert plan_rebalance(list(by_id.values()), nodes) == ()
    if open_nodes:
        assert all(one.owner in open_nodes for one in by_id.values())


@settings(max_examples=50, deadline=None)
@given(clusters())
def test_one_shard_into_and_out_of_a_node_at_a_time(
    cluster: tuple[list[Assignment], list[PlacementNode]],
):
    assignments, nodes = cluster
    plan = plan_rebalance(assignments, nodes)
    assert max(Counter(move.source for move in plan).values(), default=0) <= 1
    assert max(Counter(move.target for move in plan).values(), default=0) <= 1
    assert all(move.source != move.target for move in plan)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_equal_nodes_differ_by_at_most_one_shard_after_rebalancing(count: int):
    nodes = [PlacementNode(f"n{n}") for n in range(3)]
    held = [one for c in range(count) for one in shards(f"c{c}", "n0", "n0", "n0", "n0")]
    owner = {one.id: one.owner for one in held}
    owner.update({move.shard: move.target for move in plan_rebalance_fully(held, nodes)})
    totals = Counter(owner.values())
    assert max(totals.values()) - min(totals.values()) <= max(1, round(0.05 * len(held)))
