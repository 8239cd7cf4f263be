"""`annheal migrate`: plan, start, watch and steer the change of a collection's embedding model."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from annheal.cli.exports.client_backfill import export_texts, import_vectors
from annheal.cli.output import facts, moment, share, size, table
from annheal.cli.state import State, state_of
from annheal.cli.user_commands.assignments import parse_settings
from annheal.cli.user_commands.collections import confirm
from annheal.cli.watching import every
from annheal.client.migration_calls import SAMPLE_DEFAULT
from annheal.errors import AnnhealError
from annheal.model.topology.migration.gate import GateFinding
from annheal.model.topology.migration.state import Migration, Transition
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus

INTERVAL_MIN_S = 0.1
BAR_CELLS = 40
HISTORY_SHOWN = 8
SKIPPED_SHOWN = 10
_HOUR_S, _DAY_S = 3_600, 86_400


app = typer.Typer(
    no_args_is_help=True,
    help="Change the embedding model of a collection: plan, start, watch, commit, roll back.",
)

app.command("export")(export_texts)
app.command("import")(import_vectors)

CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")]
Who = Annotated[
    str, typer.Option("--who", help="Who asks for it; by default the user that runs this.")
]
Why = Annotated[str, typer.Option("--why", help="Why; kept in the migration's history.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ToModel = Annotated[str, typer.Option("--to", help="The model that shall serve.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting or threshold; may be repeated."),
]


@app.command()
def plan(
    context: typer.Context,
    collection: CollectionName,
    to: ToModel,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Records to read.")] = (
        SAMPLE_DEFAULT
    ),
) -> None:
    """Estimate a migration: records, text, time, disk and memory. Changes nothing."""
    state = state_of(context)
    with state.client() as client:
        state.output.show(client.plan_migration(collection, to, sample_size=sample), render_plan)


@app.command()
def start(
    context: typer.Context,
    collection: CollectionName,
    to: ToModel,
    settings: Settings = None,
    who: Who = "",
    why: Why = "",
) -> None:
    """Start a migration, or show the one to the same model that has not ended."""
    state = state_of(context)
    with state.client() as client:
        found = client.start_migration(
            collection, to, settings=assigned(settings or ()), who=who or user(), why=why
        )
    state.output.show(found, _render_step)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the present or last migration of every collection."""
    state = state_of(context)
    with state.client() as client:
        state.output.show(client.migrations(), render_list)


@app.command()
def status(context: typer.Context, collection: CollectionName) -> None:
    """Show a migration: phase, progress, what records lack, the gate, who did what."""
    state = state_of(context)
    with state.client() as client:
        state.output.show(client.migration(collection), render_status)


@app.command()
def watch(
    context: typer.Context,
    collection: CollectionName,
    interval: Annotated[
        float, typer.Option("--interval", min=INTERVAL_MIN_S, help="Seconds between two updates.")
    ] = 1.0,
) -> None:
    """Follow a migration until it has ended, or until Ctrl-C."""
    _watch(state_of(context), collection, interval_s=interval)


@app.command("set")
def set_(
    context: typer.Context,
    collection: CollectionName,
    settings: Annotated[
        list[str],
        typer.Argument(metavar="NAME=VALUE...", help="Settings and thresholds to change."),
    ],
    who: Who = "",
    why: Why = "",
) -> None:
    """Change settings and thresholds while it runs, such as `rows_per_second=200`."""
    state = state_of(context)
    with state.client() as client:
        found = client.update_migration(collection, assigned(settings), who=who or user(), why=why)
    state.output.show(found, _render_step)


@app.command()
def commit(
    context: typer.Context,
    collection: CollectionName,
    force: Annotated[
        bool, typer.Option("--force", help="Although the gate refuses; needs --why.")
    ] = False,
    who: Who = "",
    why: Why = "",
    yes: Yes = False,
) -> None:
    """Let the new model serve. Refused with the numbers below the thresholds."""
    state = state_of(context)
    if not yes:
        confirm(f"Let the new model of {collection} answer its searches?")
    with state.client() as client:
        found = client.commit_migration(collection, who=who or user(), why=why, force=force)
    state.output.show(found, _render_step)


@app.command()
def pause(
    context: typer.Context,
    collection: CollectionName,
    who: Who = "",
    why: Why = "",
) -> None:
    """Hold the leader's work up: no new tasks, no step of its own. Searches do not change."""
    state = state_of(context)
    with state.client() as client:
        found = client.pause_migration(collection, who=who or user(), why=why)
    state.output.show(found, _render_step)


@app.command()
def resume(
    context: typer.Context,
    collection: CollectionName,
    who: Who = "",
    why: Why = "",
) -> None:
    """Let the leader go on."""
    state = state_of(context)
    with state.client() as client:
        found = client.resume_migration(collection, who=who or user(), why=why)
    state.output.show(found, _render_step)


@app.command()
def validate(
    context: typer.Context,
    collection: CollectionName,
    who: Who = "",
    why: Why = "",
) -> None:
    """Ask for a new measurement of the new model, for the gate."""
    state = state_of(context)
    with state.client() as client:
        found = client.validate_migration(collection, who=who or user(), why=why)
    state.output.show(found, _render_step)


@app.command()
def rollback(
    context: typer.Context,
    collection: CollectionName,
    who: Who = "",
    why: Why = "",
) -> None:
    """Let the old model serve again, at once."""
    state = state_of(context)
    with state.client() as client:
        found = client.rollback_migration(collection, who=who or user(), why=why)
    state.output.show(found, _render_step)


@app.command()
def abort(
    context: typer.Context,
    collection: CollectionName,
    who: Who = "",
    why: Why = "",
    yes: Yes = False,
) -> None:
    """Go back to the old model and delete the vectors of the new one."""
    state = state_of(context)
    if not yes:
        confirm(f"Abort the migration of {collection}, and delete the vectors of the new model?")
    with state.client() as client:
        found = client.abort_migration(collection, who=who or user(), why=why)
    state.output.show(found, _render_step)


@app.command()
def purge(
    context: typer.Context,
    collection: CollectionName,
    who: Who = "",
    why: Why = "",
    yes: Yes = False,
) -> None:
    """Delete the vectors of the old model: there is no way back."""
    state = state_of(context)
    if not yes:
        confirm(f"Delete the vectors of the old model of {collection}? There is no way back.")
    with state.client() as client:
        found = client.purge_migration(collection, who=who or user(), why=why)
    state.output.show(found, _render_step)


def user() -> str:
    """Return the name of the user that runs this process, "" where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def assigned(texts: Iterable[str]) -> dict[str, Any]:
    """Return `name=value` texts; `5%` is 0.05."""
    return {name: _share(value) for name, value in parse_settings(texts).items()}


def _share(value: Any) -> Any:
    if isinstance(value, str) and value.endswith("%"):
        try:
            return float(value[:-1]) / 100
        except ValueError:
            return value
    return value


# ----------------------------------------------------------------------------------- rendering


def render_plan(found: MigrationEstimate) -> RenderableType:
    """Return an estimate as facts."""
    without = share(found.sampled_without_text, found.sampled)
    reasons = ", ".join(f"{one.rows:,} {one.reason}" for one in found.reasons)
    lines = [
        facts(
            [
                ("collection", found.collection),
                ("model", f"{found.from_model} -> {found.to_model}"),
                ("records", f"{found.rows:,}, {found.rows_lacking:,} without a new vector"),
                ("sample", f"{found.sampled:,} records" if found.sampled else None),
                ("without text", f"{without} of the sample: {reasons}" if reasons else None),
                ("embedder", found.embedder or None),
                ("text", _text_of(found)),
                ("rate", f"{found.rows_per_s:,.0f} records/s" if found.rows_per_s else None),
                ("time", duration(found.duration_s) if found.duration_s else None),
                ("disk", size(found.disk_bytes)),
                ("memory", size(found.memory_bytes)),
            ]
        )
    ]
    return Group(*lines, *(Text(f"! {one}", style="yellow") for one in found.warnings))


def _text_of(found: MigrationEstimate) -> str | None:
    if not found.characters:
        return None
    return f"{found.characters:,} characters, about {found.tokens:,} tokens"


def render_list(found: Sequence[MigrationStatus]) -> RenderableType:
    """Return migrations as a table."""

    def cells(one: MigrationStatus) -> tuple[object, ...]:
        seen = one.migration.coverage
        return (
            one.collection,
            one.migration.from_model,
            one.migration.to_model,
            phase_of(one.migration),
            share(one.rows_done, seen.rows) if seen is not None else None,
            moment(one.migration.started_at_s),
            one.migration.error or None,
        )

    columns = ["COLLECTION", "FROM", "TO", "PHASE", ">DONE", "STARTED", "ERROR"]
    return table(columns, map(cells, found))


def render_status(found: MigrationStatus) -> RenderableType:
    """Return everything about a migration."""
    of = found.migration
    parts: list[RenderableType] = [
        facts(
            [
                ("collection", found.collection),
                ("model", f"{of.from_model} -> {of.to_model}; {of.serving} serves"),
                ("phase", phase_of(of)),
                *_progress(found),
                ("skipped", _skipped(found)),
                ("error", Text(of.error, style="red") if of.error else None),
                ("possible now", ", ".join(found.possible) or None),
            ]
        )
    ]
    if of.coverage is not None:
        parts.append(bar_of(found))
    if of.skipped:
        rows = [(one.id, one.shard, one.model, one.reason) for one in of.skipped[:SKIPPED_SHOWN]]
        parts.append(table(["RECORD", ">SHARD", "MODEL", "REASON"], rows, title="Skipped, such as"))
    parts.append(
        table(
            ["FIGURE", ">FOUND", "NEEDED", "PASSED"],
            map(_finding, found.findings),
            title=f"Gate, validation {of.report.number if of.report else 0}",
        )
    )
    parts.append(
        table(
            ["WHEN", "STEP", "PHASE", "WHO", "WHY"],
            map(_step, of.history[-HISTORY_SHOWN:]),
            title="History",
        )
    )
    return Group(*parts)


def _progress(found: MigrationStatus) -> list[tuple[str, object]]:
    seen = found.migration.coverage
    if seen is None:
        return [("records", "not counted yet")]
    pace = f"{seen.rows_per_s:,.1f} records/s" if seen.rows_per_s else None
    eta = None if not found.eta_s else duration(found.eta_s)
    away = seen.shards_unreported
    return [
        ("records", f"{found.rows_done:,} of {seen.rows:,} have a new vector"),
        ("without the old", seen.rows_lacking_old or None),
        ("segments left", f"{seen.segments_left:,} of {seen.segments:,}"),
        ("pace", pace),
        ("time left", eta),
        ("seen", moment(seen.at_s)),
        ("not seen", f"{away:,} shards did not report" if away else None),
    ]


def _skipped(found: MigrationStatus) -> str | None:
    reasons = [f"{one.rows:,} {one.reason}" for one in found.skipped_by_reason]
    return ", ".join(reasons) or None


def _finding(one: GateFinding) -> tuple[object, ...]:
    need = f"{'at least' if one.at_least else 'at most'} {one.threshold:.4g}"
    passed = Text("yes", style="green") if one.passed else Text("no", style="bold red")
    return one.name, "not measured" if one.value is None else one.value, need, passed


def _step(one: Transition) -> tuple[object, ...]:
    event = f"{one.event}, forced" if one.forced else one.event
    return moment(one.at_s), event, one.phase, one.who, one.why or None


def bar_of(found: MigrationStatus) -> RenderableType:
    """Return how many of the records have a vector of the new model, as a bar."""
    seen = found.migration.coverage
    rows = seen.rows if seen is not None else 0
    return ProgressBar(total=max(1, rows), completed=found.rows_done, width=BAR_CELLS)


def phase_of(of: Migration) -> str:
    """Return the phase, and whether it is paused."""
    return f"{of.phase.value}, paused" if of.paused else of.phase.value


def duration(seconds: float) -> str:
    """Return a time for people: 42 s, 5 min, 3.2 h, 2.5 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _DAY_S:.1f} days"


def _render_step(found: MigrationStatus) -> RenderableType:
    of = found.migration
    return (
        f"migration of {found.collection} to {of.to_model} is in phase {phase_of(of)};"
        f" {of.serving} serves"
    )


def _watch(state: State, collection: str, *, interval_s: float) -> None:
    """Show the migration again and again; on a terminal in place, else one document each time."""
    output = state.output
    try:
        with state.client(endless=True) as client:
            found = client.migration(collection)  # errors of the first look end it
            if output.is_json or not output.console.is_terminal:
                for turn in every(interval_s):
                    found = client.migration(collection) if turn else found
                    output.show(found, render_status)
                    if found.migration.ended:
                        return
            with Live(render_status(found), console=output.console, auto_refresh=False) as live:
                for turn in every(interval_s):
                    if found.migration.ended:
                        return
                    if turn:
                        try:
                            found = client.migration(collection)
                            live.update(render_status(found), refresh=True)
                        except AnnhealError as error:
                            if not error.retryable:
                                raise
                            text = f"no answer: {error.message}; trying again"
                            live.update(Text(text, style="yellow"), refresh=True)
    except KeyboardInterrupt:
        return  # how a watch ends
