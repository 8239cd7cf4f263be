"""`annheal health`: the questions of an operator, answered from live data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from annheal.cli.exit_codes import ExitCode
from annheal.cli.operator_commands.health_checks import (
    Finding,
    Health,
    Observed,
    examine,
    examine_cluster,
    worst_of,
)
from annheal.cli.operator_commands.part_checks import examine_parts
from annheal.cli.output import table
from annheal.cli.state import state_of
from annheal.client import Client
from annheal.errors import DeadlineExceeded, Unavailable, Unimplemented, UnknownOutcome
from annheal.rpc.status import CANNOT_CONNECT
from annheal.runtime.clock import wall_s

TASKS_MAX = 1_000
"""The newest tasks of a collection that are looked at."""
_STYLES = {
    Health.GOOD: "green",
    Health.UNKNOWN: "dim",
    Health.WATCH: "yellow",
    Health.BAD: "bold red",
}


def health(
    context: typer.Context,
    collection: Annotated[
        str, typer.Argument(metavar="[COLLECTION]", help="This collection only.")
    ] = "",
) -> None:
    """Check processes, stores, disks and indexes, and say what to do about faults.

    Exits with 13 when something is bad, for scripts.
    """
    state = state_of(context)
    with state.client() as client:
        found = examine_all(client, collection)
    names = [name for name in found if name]
    state.output.show(
        {
            "health": worst_of([one for findings in found.values() for one in findings]),
            "cluster": msgspec.to_builtins(found[""]),
            "collections": {name: msgspec.to_builtins(found[name]) for name in names},
        },
        lambda _: render(found),
    )
    if worst_of([one for findings in found.values() for one in findings]) is Health.BAD:
        raise typer.Exit(ExitCode.UNHEALTHY)


def examine_all(client: Client, collection: str) -> dict[str, tuple[Finding, ...]]:
    """Return the findings on the cluster (name "") and on one collection, or on each.

    One part that cannot be asked is a finding and hides none of the others.
    """
    found = {
        "": (
            *_asked("do all processes run?", lambda: examine_cluster(client.status())),
            *_asked("can it write and read?", lambda: _examine_parts(client)),
        )
    }
    names = [collection] if collection else [one.name for one in client.list_collections()]
    for name in names:
        found[name] = _asked(
            "is the collection in order?", partial(_examine_collection, client, name)
        )
    return found


def _examine_collection(client: Client, name: str) -> tuple[Finding, ...]:
    return examine(observe(client, name))


def _examine_parts(client: Client) -> tuple[Finding, ...]:
    try:
        return examine_parts(client.health(), now_s=wall_s())
    except Unimplemented:
        return (
            Finding(
                "can it write and read?", Health.UNKNOWN, "this server is too old to report it"
            ),
        )


def _asked(question: str, look: Callable[[], tuple[Finding, ...]]) -> tuple[Finding, ...]:
    try:
        return look()
    except (Unavailable, DeadlineExceeded, UnknownOutcome) as error:
        if error.reason == CANNOT_CONNECT:
            raise
        return (Finding(question, Health.BAD, f"cannot be asked: {error.message}"),)


def observe(client: Client, name: str) -> Observed:
    """Return what the cluster says of one collection."""
    segments = client.segments(name)
    return Observed(
        collection=client.get_collection(name),
        shards=tuple(client.shards(name)),
        segments=tuple(segments.segments),
        missing_shards=tuple(segments.missing_shards),
        tasks=tuple(client.tasks(name, limit=TASKS_MAX)),
        recall=client.recall(name),
    )


def render(found: Mapping[str, Sequence[Finding]]) -> RenderableType:
    """Return a table for the cluster (name "") and one for each collection, then what to do."""
    parts: list[RenderableType] = []
    for name, findings in found.items():
        if parts:
            parts.append("")
        rows = (
            (Text(one.health.value, style=_STYLES[one.health]), one.question, Text(one.answer))
            for one in findings
        )
        parts.append(table(["HEALTH", "QUESTION", "ANSWER"], rows, title=name or "cluster"))
        parts += [
            Text(f"  {one.question} {one.advice}", style=_STYLES[one.health])
            for one in findings
            if one.advice
        ]
    return Group(*parts)
