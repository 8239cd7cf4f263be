from __future__ import annotations

from dataclasses import replace

import pytest

from annheal.coordinator.compaction.plan import CompactionSettings, within_budget
from annheal.errors import InvalidArgument
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

RULES = CompactionSettings(tasks_max=4, tasks_bytes_max=100)


def task(
    name: str, size_bytes: int, *, priority: int = 0, phase: TaskPhase = TaskPhase.PENDING
) -> CompactionTask:
    return CompactionTask(
        name,
        "c",
        0,
        (name,),
        "warm",
        TaskReason.MERGE,
        phase=phase,
        priority=priority,
        estimated_bytes=size_bytes,
    )


def allowed(planned: list[CompactionTask], *known: CompactionTask) -> list[str]:
    return [one.id for one in within_budget(planned, known, settings=RULES)]


def test_the_most_urgent_tasks_get_the_budget_then_the_smallest() -> None:
    planned = [task("a", 40), task("b", 30), task("c", 50, priority=7), task("d", 20)]
    assert allowed(planned) == ["c", "d", "b"]


def test_unfinished_tasks_use_the_budget_up_and_ended_ones_do_not() -> None:
    assert allowed([task("a", 60)], task("x", 50)) == []
    assert allowed([task("a", 60)], task("x", 50, phase=TaskPhase.BUILT)) == []
    for ended in (TaskPhase.PUBLISHED, TaskPhase.FAILED, TaskPhase.CANCELLED):
        assert allowed([task("a", 60)], task("x", 50, phase=ended)) == ["a"]


def test_a_task_above_the_budget_runs_alone() -> None:
    assert allowed([task("a", 1_000), task("b", 1)]) == ["b"]
    assert allowed([task("a", 1_000)]) == ["a"]
    assert allowed([task("a", 1_000)], task("x", 1)) == []


def test_no_more_than_so_many_tasks() -> None:
    assert allowed([task(f"t{n}", 1) for n in range(9)], task("x", 1)) == ["t0", "t1", "t2"]


@pytest.mark.parametrize("name", ["flat_segments_max", "quiet_s", "tasks_max", "reload_share_max"])
def test_settings_that_cannot_work_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        replace(RULES, **{name: 0})
    with pytest.raises(InvalidArgument, match="reload_share_max"):
        replace(RULES, reload_share_max=1.5)
