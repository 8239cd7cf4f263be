"""`annheal health`: the questions of an operator, answered from live data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from annheal.cli.output import table
from annheal.cli.state import state_of
from annheal.client import Client

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
    collection: Annotated[str, typer.Argument(metavar="[COLLECTION]", help="Only its.")] = "",
) -> None:
    """Say how healthy the cluster and its indexes are, question by question.

    Exits with 13 when something is bad, so that a script can ask.
    """
    state = state_of(context)
    with state.client() as client:
        names = [collection] if collection else [c.name for c in client.list_collections()]
        found = {"": examine_cluster(client.status())}
        found |= {name: examine(observe(client, name)) for name in names}
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
