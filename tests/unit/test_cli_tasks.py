from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from annheal.cli.operator_commands.tasks import BAR_CELLS, bar_of, render_bars, render_tasks
from annheal.model.topology.cluster import TaskStatus
from annheal.model.topology.task import TaskPhase, TaskReason

WAITING = TaskStatus(
    "t1", "papers", "c1", 3, TaskPhase.PENDING, TaskReason.MERGE, why="9 graphs, 8 are allowed"
)
BUILDING = replace(WAITING, task_id="t2", step="building", progress=0.5, worker="w1")
FAILED = replace(WAITING, task_id="t3", phase=TaskPhase.FAILED, error="it is [bold]poison[/]")


def text_of(renderable: object) -> list[str]:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


def row_of(lines: list[str], task_id: str) -> str:
    (row,) = [line for line in lines if line.startswith(task_id)]
    return row


def test_bars_show_who_does_what_and_how_far_it_is() -> None:
    lines = text_of(render_bars([WAITING, BUILDING, FAILED]))
    row = row_of(lines, "t2")
    assert "building" in row
    assert "w1" in row
    assert row.count("━") == BAR_CELLS // 2
    assert "waits for an attempt" in row_of(lines, "t1")
    assert "9 graphs, 8 are allowed" in row_of(lines, "t1")
    assert "it is [bold]poison[/]" in row_of(lines, "t3")
    assert lines[-1] == "2 pending, 0 built, 0 published, 1 failed, 0 cancelled"


def test_an_upload_has_a_full_bar_and_a_fetch_an_empty_one() -> None:
    for step, done in (("fetching", 0.0), ("building", 0.5), ("uploading", 1.0)):
        assert bar_of(replace(BUILDING, step=step)).completed == done
    assert isinstance(bar_of(WAITING), Text)


def test_the_table_says_why_or_what_went_wrong() -> None:
    lines = text_of(render_tasks([WAITING, FAILED]))
    assert "9 graphs, 8 are allowed" in row_of(lines, "t1")
    assert "it is [bold]poison[/]" in row_of(lines, "t3")
