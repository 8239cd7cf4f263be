"""`annheal tasks [list|show|cancel|retry]`: compaction tasks, waiting, running and ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from annheal.cli.output import cell, facts, moment, size, table
from annheal.cli.state import State, state_of
from annheal.cli.watching import every
from annheal.errors import AnnhealError
from annheal.model.topology.cluster import TaskStatus
from annheal.model.topology.task import TaskPhase

INTERVAL_MIN_S = 0.1
BAR_CELLS = 20
STEPS = ("claimed", "fetching", "waiting", "building", "uploading", "verifying", "reporting")
"""The steps of an attempt, in order; building takes nearly all of the time."""
_STYLES = {
    TaskPhase.PUBLISHED: "green",
    TaskPhase.FAILED: "bold red",
    TaskPhase.CANCELLED: "dim",
}


class ListByDefault(TyperGroup):
    """A group whose command `list` may be left out: `tasks papers` is `tasks list papers`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` where no command of the group is named."""
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ListByDefault,
    help="List compaction tasks (`tasks [COLLECTION]`), cancel them, and retry failed ones.",
)

Look = Callable[[], Sequence[TaskStatus]]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task.")]


@app.command("list")
def list_(
    context: typer.Context,
    collection: Annotated[
        str, typer.Argument(metavar="[COLLECTION]", help="This collection only.")
    ] = "",
    phase: Annotated[
        TaskPhase | None, typer.Option("--phase", help="Tasks of this phase only.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="At most this many, the newest first.")
    ] = 50,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update until Ctrl-C, with progress bars.")
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=INTERVAL_MIN_S, help="Seconds between two updates.")
    ] = 1.0,
) -> None:
    """List tasks, the newest first. `list` may be left out."""
    state = state_of(context)
    with state.client(endless=watch) as client:

        def look() -> list[TaskStatus]:
            return client.tasks(collection, phase=phase, limit=limit)

        if watch:
            _watch(state, look, interval_s=interval)
        else:
            state.output.show(look(), render_tasks)


@app.command()
def show(context: typer.Context, task_id: TaskId) -> None:
    """Describe one task."""
    state = state_of(context)
    with state.client() as client:
        state.output.show(client.task(task_id), _render_task)


@app.command()
def cancel(context: typer.Context, task_id: TaskId) -> None:
    """Cancel a task that is not published; its compactor stops working on it."""
    state = state_of(context)
    with state.client() as client:
        task = client.cancel_task(task_id)
    state.output.show(task, lambda t: f"task {t.task_id} is {t.phase}")


@app.command()
def retry(context: typer.Context, task_id: TaskId) -> None:
    """Put a failed task back into the queue, with five new attempts."""
    state = state_of(context)
    with state.client() as client:
        task = client.retry_task(task_id)
    state.output.show(task, lambda t: f"task {t.task_id} is {t.phase} again")


def render_tasks(found: Sequence[TaskStatus]) -> RenderableType:
    """Return tasks as a table."""

    def cells(t: TaskStatus) -> tuple[object, ...]:
        return (
            t.task_id,
            f"{t.collection or t.collection_id}/{t.shard}",
            t.reason,
            t.phase,
            t.step or None,
            f"{t.progress:.0%}" if t.progress else None,
            len(t.sources),
            t.rows_in or None,
            t.rows_out or None,
            t.worker or None,
            t.attempts,
            moment(t.created_at_s),
            t.error or t.why or None,
        )

    columns = [
        "TASK", "SHARD", "REASON", "PHASE", "STEP", ">DONE", ">SOURCES", ">ROWS IN", ">ROWS OUT",
        "WORKER", ">ATTEMPTS", "CREATED", "WHY",
    ]  # fmt: skip
    return table(columns, map(cells, found))


def render_bars(found: Sequence[TaskStatus]) -> RenderableType:
    """Return the tasks: a progress bar for each claimed one, and those that wait or have ended."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("TASK", "SHARD", "REASON", "STEP", "", "WORKER", "WHY"):
        grid.add_column(name, no_wrap=name != "WHY")
    for task in found:
        grid.add_row(
            cell(task.task_id),
            cell(f"{task.collection or task.collection_id}/{task.shard}"),
            cell(task.reason),
            Text(task.step or task.phase.value, style=_STYLES.get(task.phase, "")),
            bar_of(task),
            cell(task.worker or None),
            cell(task.error or task.why or None),
        )
    counts = [f"{sum(one.phase is phase for one in found)} {phase.value}" for phase in TaskPhase]
    return Group(grid, Text(", ".join(counts), style="dim"))


def bar_of(task: TaskStatus) -> ProgressBar | Text:
    """Return the progress bar of a claimed task, a text for others."""
    if task.phase is TaskPhase.PENDING and task.step:
        done = task.progress if task.step == "building" else 0.0
        if task.step in STEPS[STEPS.index("building") + 1 :]:
            done = 1.0
        return ProgressBar(total=1.0, completed=done, width=BAR_CELLS)
    return Text("waits for an attempt" if task.phase is TaskPhase.PENDING else "")


def _render_task(task: TaskStatus) -> RenderableType:
    output = f"{task.output_segment_id}, {task.tier}" if task.output_segment_id else None
    memory, disk = size(task.estimated_bytes), size(task.estimated_disk_bytes)
    return facts(
        [
            ("task", task.task_id),
            ("collection", f"{task.collection or task.collection_id}, shard {task.shard}"),
            ("reason", task.reason),
            ("why", Text(task.why)),
            ("phase", task.phase),
            ("step", f"{task.step} {task.progress:.0%}" if task.step else None),
            ("priority", task.priority),
            ("attempts", task.attempts),
            ("worker", task.worker or None),
            ("sources", Text(", ".join(task.sources))),
            ("output", output),
            ("rows in, out", f"{task.rows_in:,}, {task.rows_out:,}" if task.rows_in else None),
            ("needs", f"{memory} of memory, {disk} of disk"),
            ("created", moment(task.created_at_s)),
            ("ended", moment(task.finished_at_s)),
            ("error", Text(task.error) if task.error else None),
        ]
    )


def _watch(state: State, look: Look, *, interval_s: float) -> None:
    """Show the tasks until Ctrl-C: bars on a terminal, else a JSON document or table each time."""
    output = state.output
    try:
        if output.is_json or not output.console.is_terminal:
            for _ in every(interval_s):
                output.show(look(), render_bars)
        first = render_bars(look())  # errors of the first look end it
        with Live(first, console=output.console, auto_refresh=False) as live:
            for turn in every(interval_s):
                if turn:
                    live.update(_again(look), refresh=True)
    except KeyboardInterrupt:
        return  # how a watch ends


def _again(look: Look) -> RenderableType:
    """Return what to show; an error that passes is shown in its place."""
    try:
        return render_bars(look())
    except AnnhealError as error:
        if not error.retryable:
            raise
        return Text(f"no answer: {error.message}; trying again", style="yellow")
