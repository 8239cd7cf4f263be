"""`annheal segments|flush|compact`: shows the segments, writes and rewrites them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from annheal.cli.operator_commands.tasks import render_bars, render_tasks
from annheal.cli.output import PlainConsole, counted, moment, share, size, table
from annheal.cli.state import state_of
from annheal.cli.user_commands.records import Collection
from annheal.client import SegmentList
from annheal.errors import FailedPrecondition
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.measures.recall import RECALL_UNKNOWN
from annheal.model.topology.cluster import TaskStatus
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import TaskPhase


class RewriteTier(StrEnum):
    """Tiers that can be compacted; growing rows are in memory."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


Shard = Annotated[int | None, typer.Option("--shard", min=0, help="One shard only.")]


def segments(context: typer.Context, collection: Collection, shard: Shard = None) -> None:
    """List the segments of a collection, with their dead rows."""
    state = state_of(context)
    with state.client() as client:
        found = client.segments(collection, shard=shard)
    state.output.show(found, _render_segments)
    if found.missing_shards:
        missing = ", ".join(map(str, found.missing_shards))
        state.output.note(f"shards {missing} did not answer")


def flush(context: typer.Context, collection: Collection) -> None:
    """Write what is in memory into segments, and trim the write-ahead log."""
    state = state_of(context)
    with state.client(default_s=TIMEOUT_MAX_S) as client:
        client.flush(collection)
    state.output.show({"flushed": collection}, lambda _: f"flushed {collection}")


def compact(
    context: typer.Context,
    collection: Collection,
    shard: Shard = None,
    segment: Annotated[
        list[str] | None,
        typer.Option(
            "--segment", metavar="ID", help="Rewrite this segment, whatever the rules say."
        ),
    ] = None,
    tier: Annotated[
        RewriteTier | None, typer.Option("--tier", help="Rewrite the segments of this tier.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Rewrite all segments, not only what the rules choose.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the tasks and their reasons, add none.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the tasks.")] = True,
) -> None:
    """Rewrite segments without their dead rows. Queries and writes go on."""
    state = state_of(context)
    errors = PlainConsole(stderr=True)
    quiet = state.output.is_json or not errors.is_terminal
    with (
        state.client(patient=True, default_s=TIMEOUT_MAX_S) as client,
        Live(console=errors, auto_refresh=False, transient=True) as live,
    ):

        def progress(tasks: Sequence[TaskStatus]) -> None:
            if not quiet:
                live.update(render_bars(tasks), refresh=True)

        tasks = client.compact(
            collection,
            shard=shard,
            segments=segment or (),
            tier=None if tier is None else tier.value,
            full=full,
            dry_run=dry_run,
            wait=wait,
            progress=progress,
        )
    if dry_run:
        state.output.show(tasks, lambda t: _render_plan(t) if t else "nothing to compact")
        return
    state.output.show(tasks, lambda t: render_tasks(t) if t else "nothing to compact")
    failed = [task for task in tasks if task.phase is TaskPhase.FAILED]
    if failed:
        raise FailedPrecondition(
            f"{len(failed)} of {len(tasks)} tasks failed: {failed[0].error}",
            reason="COMPACTION_FAILED",
        )


def _render_segments(found: SegmentList) -> RenderableType:
    def cells(s: SegmentState) -> tuple[object, ...]:
        return (
            s.shard,
            s.segment_id,
            s.tier,
            s.index_kind,
            s.rows,
            s.dead_rows,
            share(s.dead_rows, s.rows),
            size(s.size_bytes),
            s.generation,
            None if s.recall == RECALL_UNKNOWN else f"{s.recall:.4f}",
            s.ef or None,
            "stuck" if s.stuck else "rebuild" if s.rebuild else None,
            moment(s.created_at_s),
        )

    columns = [
        ">SHARD", "SEGMENT", "TIER", "INDEX", ">ROWS", ">DEAD", ">SHARE", ">SIZE", ">GENERATION",
        ">RECALL", ">EF", "STATE", "CREATED",
    ]  # fmt: skip
    rows = sum(s.rows for s in found.segments)
    dead = sum(s.dead_rows for s in found.segments)
    total = (
        f"{counted(len(found.segments), 'segment')}, {counted(rows, 'row')}, {dead:,} dead "
        f"({share(dead, rows) or '0 %'})"
    )
    return Group(table(columns, map(cells, found.segments)), total)


def _render_plan(planned: Sequence[TaskStatus]) -> RenderableType:
    def cells(t: TaskStatus) -> tuple[object, ...]:
        return (
            t.shard,
            t.reason,
            Text(t.why),
            len(t.sources),
            ", ".join(t.sources),
            t.tier,
            size(t.estimated_bytes),
            size(t.estimated_disk_bytes),
        )

    columns = [
        ">SHARD", "REASON", "WHY", ">SOURCES", "SEGMENTS", "TIER", ">MEMORY", ">DISK",
    ]  # fmt: skip
    return Group(table(columns, map(cells, planned)), "nothing was changed")
