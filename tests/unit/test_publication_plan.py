from __future__ import annotations

from collections.abc import Sequence

from annheal.coordinator.compaction.publication_plan import plan_publications
from annheal.model.topology.shard import ShardId
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

OWNERS = {ShardId("c", number): node for number, node in enumerate("aabb")}


def task(name: str, shard: int, rows: int, *, priority: int = 0) -> CompactionTask:
    return CompactionTask(
        name,
        "c",
        shard,
        ("s",),
        "warm",
        TaskReason.MERGE,
        phase=TaskPhase.BUILT,
        priority=priority,
        rows_out=rows,
    )


def planned(
    built: Sequence[CompactionTask],
    under_way: Sequence[CompactionTask] = (),
    *,
    publishes_max: int = 4,
) -> list[str]:
    found = plan_publications(
        built,
        under_way,
        owners=OWNERS,
        node_rows={"a": 1_000, "b": 1_000},
        publishes_max=publishes_max,
        reload_share_max=0.25,
    )
    return [one.id for one in found]


def test_a_node_replaces_a_quarter_of_its_rows_at_once() -> None:
    assert planned([task("1", 0, 150), task("2", 1, 100)]) == ["1", "2"]
    assert planned([task("1", 0, 150), task("2", 1, 101)]) == ["1"]
    assert planned([task("2", 1, 101)], [task("1", 0, 150)]) == []


def test_one_segment_may_always_be_replaced_however_large() -> None:
    assert planned([task("1", 0, 900), task("2", 1, 1)]) == ["1"]
    assert planned([task("1", 9, 900), task("2", 9, 900)]) == ["1", "2"], "nobody owns shard 9"


def test_nodes_do_not_wait_for_one_another() -> None:
    assert planned([task("1", 0, 900), task("2", 2, 900), task("3", 1, 5)]) == ["1", "2"]


def test_the_most_urgent_go_first_and_the_number_is_limited() -> None:
    built = [task("1", 0, 200), task("2", 1, 200, priority=7), task("3", 2, 1), task("4", 3, 1)]
    assert planned(built) == ["2", "3", "4"]
    assert planned(built, publishes_max=2) == ["2", "3"]
    assert planned(built, [task("0", 9, 1)], publishes_max=1) == []
