"""`annheal gc`: deletes unreferenced objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from annheal.cli.output import size, table
from annheal.cli.state import State, state_of
from annheal.errors import FailedPrecondition
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.topology.cluster import GarbageKind, GarbageReport


def gc(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted, delete nothing.")
    ] = False,
) -> None:
    """Delete objects that were unreferenced for the grace period, as the leader does regularly."""
    state = state_of(context)
    try:
        found = _collect(state, dry_run=dry_run)
    except FailedPrecondition as error:
        address = error.metadata.get("address", "")
        if error.reason != "NOT_LEADER" or not address:
            raise
        state.output.note(f"asking the leader at {address}")
        found = _collect(replace(state, address=address), dry_run=dry_run)
    state.output.show(found, _render)


def _collect(state: State, *, dry_run: bool) -> GarbageReport:
    with state.client(default_s=TIMEOUT_MAX_S) as client:
        return client.collect_garbage(dry_run=dry_run)


def _render(found: GarbageReport) -> RenderableType:
    if not found.kinds:
        return "the metadata cannot be read, so nothing was collected; see the leader's log"

    def cells(kind: GarbageKind) -> tuple[object, ...]:
        return (
            kind.kind,
            kind.deleted_objects,
            size(kind.deleted_bytes),
            kind.waiting_objects,
            size(kind.waiting_bytes),
        )

    deleted = "TO DELETE" if found.dry_run else "DELETED"
    columns = ["KIND", f">{deleted}", ">SIZE", ">WAITING", ">SIZE"]
    waits = f"waiting: seen unreferenced for less than {found.grace_s:g} s by this leader"
    return Group(table(columns, map(cells, found.kinds)), waits)
