"""`annheal status|nodes|shards|rebalance|drain|undrain|move`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from annheal.cli.output import facts, moment, share, size, table
from annheal.cli.state import state_of
from annheal.errors import InvalidArgument
from annheal.model.topology.cluster import ClusterStatus, NodeStatus, ShardMove, ShardStatus

Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's id; see `annheal nodes`.")]


def status(context: typer.Context) -> None:
    """Summarise the cluster, with warnings."""
    state = state_of(context)
    with state.client() as client:
        found = client.status()
    state.output.show(found, _render_status)


def nodes(context: typer.Context) -> None:
    """List shard nodes that are alive."""
    state = state_of(context)
    with state.client() as client:
        found = client.nodes()
    state.output.show(found, _render_nodes)


def shards(
    context: typer.Context,
    collection: Annotated[
        str, typer.Argument(metavar="[COLLECTION]", help="This collection only.")
    ] = "",
) -> None:
    """List shards with their owners."""
    state = state_of(context)
    with state.client() as client:
        found = client.shards(collection)
    state.output.show(found, _render_shards)


def rebalance(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the moves, order none.")] = False,
) -> None:
    """Even out shards over the nodes. Returns before they have moved; see `shards`."""
    state = state_of(context)
    with state.client() as client:
        moves = client.rebalance(dry_run=dry_run)
    state.output.show(moves, lambda m: _render_moves(m, none="the shards lie evenly"))


def drain(context: typer.Context, node: Node) -> None:
    """Move all shards away from a node and place none on it."""
    state = state_of(context)
    with state.client() as client:
        moves = client.drain(node)
    state.output.show(moves, lambda m: _render_moves(m, none=f"{node} has no shards to move"))


def undrain(context: typer.Context, node: Node) -> None:
    """Allow shards on a drained node again."""
    state = state_of(context)
    with state.client() as client:
        client.undrain(node)
    state.output.show({"undrained": node}, lambda _: f"{node} may have shards again")


def move(
    context: typer.Context,
    shard: Annotated[str, typer.Argument(metavar="COLLECTION/SHARD", help="Such as papers/3.")],
    node: Node,
) -> None:
    """Move one shard to a node. Returns before it has moved; see `shards`."""
    state = state_of(context)
    collection, _, number = shard.rpartition("/")
    if not collection or not number.isdecimal():
        raise InvalidArgument.of("COLLECTION/SHARD", f"{shard!r} is not of this form")
    with state.client() as client:
        ordered = client.move_shard(collection, int(number), node)
    state.output.show(ordered, lambda m: _render_moves([m], none=""))


def _render_status(found: ClusterStatus) -> RenderableType:
    totals = found.totals
    rows = totals.live_rows + totals.dead_rows
    lines = facts(
        [
            ("version", found.version),
            ("leader", found.leader or None),
            ("collections", found.collections),
            ("shards", f"{totals.shards_serving:,} of {found.shards:,} serving"),
            ("records", totals.live_rows),
            ("dead rows", f"{totals.dead_rows:,} ({share(totals.dead_rows, rows) or '0 %'})"),
            ("rows without graph", totals.unindexed_rows),
            ("segments", f"{totals.segments:,} ({size(totals.size_bytes)})"),
            ("tasks", f"{found.tasks_pending:,} open, {found.tasks_failed:,} failed"),
        ]
    )
    workers = table(
        ["PROCESS", "ROLE", "ADDRESS", "STARTED", "VERSION"],
        (
            (w.worker_id, w.role, w.address or None, moment(w.started_at_s), w.version)
            for w in found.workers
        ),
    )
    parts: list[RenderableType] = [lines, "", _render_nodes(found.nodes), "", workers]
    if found.warnings:
        parts += ["", *(f"warning: {warning}" for warning in found.warnings)]
    return Group(*parts)


def _render_nodes(found: Sequence[NodeStatus]) -> RenderableType:
    def cells(n: NodeStatus) -> tuple[object, ...]:
        r = n.registration
        return (
            r.node_id,
            r.address,
            r.zone or None,
            r.capacity,
            f"{n.shards_serving} of {n.shards}",
            n.live_rows,
            size(n.memory_bytes),
            n.draining,
            moment(r.started_at_s),
            n.error or None,
        )

    columns = [
        "NODE", "ADDRESS", "ZONE", ">CAPACITY", ">SHARDS SERVING", ">RECORDS", ">MEMORY", "DRAINS",
        "STARTED", "ERROR",
    ]  # fmt: skip
    return table(columns, map(cells, found))


def _render_shards(found: Sequence[ShardStatus]) -> RenderableType:
    def cells(s: ShardStatus) -> tuple[object, ...]:
        return (
            f"{s.collection}/{s.shard}",
            s.owner or None,
            s.epoch,
            s.phase or None,
            s.target or None,
            s.live_rows,
            s.dead_rows,
            s.unindexed_rows,
            s.segments,
            s.wal_slots,
            size(s.memory_bytes),
            s.error or None,
        )

    columns = [
        "SHARD", "OWNER", ">EPOCH", "PHASE", "MOVES TO", ">RECORDS", ">DEAD", ">NO GRAPH",
        ">SEGMENTS", ">WAL", ">MEMORY", "ERROR",
    ]  # fmt: skip
    return table(columns, map(cells, found))


def _render_moves(moves: Sequence[ShardMove], *, none: str) -> RenderableType:
    if not moves:
        return none
    return table(
        ["SHARD", "FROM", "TO"],
        ((f"{m.collection}/{m.shard}", m.source or None, m.target) for m in moves),
    )
