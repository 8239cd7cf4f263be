"""Embedded mode: one coordinator, one shard node and one compactor in one process.

The same services as in a cluster, over SQLite and a directory. The coordinator holds the shard node
as an object where a cluster has a connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Final

from annheal.cli.server.datadir import published_address
from annheal.cli.server.metering import Metering, kernel_supply, metered
from annheal.cli.server.opening import wait_open
from annheal.cli.server.roles import (
    EmbeddedSettings,
    embedded_settings,
    settings_source,
    split_address,
)
from annheal.compactor.app import run_compactor
from annheal.coordinator.app import Coordinator
from annheal.coordinator.service import services
from annheal.coordinator.settings import CoordinatorSettings
from annheal.errors import FailedPrecondition
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.topology.shard import NodeRegistration
from annheal.objectstore.local import LocalObjectStore
from annheal.rpc.abilities import abilities_reported
from annheal.rpc.port import ShardNode
from annheal.rpc.server import RpcServer
from annheal.runtime.host.disk import Ballast
from annheal.runtime.host.folder_lock import folder_lock
from annheal.runtime.tasks import TaskScope
from annheal.shard_node.app import not_listening, running_node

META_FILE: Final = "meta.sqlite"
OBJECTS_DIR: Final = "objects"
GRACE_S: Final = 5.0
"""How long calls under way may take to end when the server stops."""
PORT_ATTEMPTS_MAX: Final = 20
LOCKED_FIX: Final = "stop it, or give another --data-dir"


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server that answers at `address`; `wait` raises what ends it.

    `metrics_address` is where it is scraped, empty: nowhere.
    """

    address: str
    data_dir: Path
    _scope: TaskScope
    metrics_address: str = ""

    async def wait(self) -> None:
        """Wait until a role fails, and raise its error; returns only by that or by cancellation."""
        await self._scope.wait()


@asynccontextmanager
async def embedded_server(
    data_dir: Path,
    *,
    listen: str = "127.0.0.1:0",
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedServer]:
    """Run a server in this process, for as long as the context lasts.

    `settings` are keys and texts as for `--set`; environment and configuration file are left
    alone. Raises `FailedPrecondition` when the directory or the port is taken.
    """
    flags = {**(settings or {}), "data_dir": str(data_dir), "listen": listen}
    async with running(embedded_settings(settings_source(flags, environ={}))) as server:
        yield server


@asynccontextmanager
async def running(settings: EmbeddedSettings) -> AsyncIterator[EmbeddedServer]:
    """Run a server by its settings; on leaving, calls under way end and what grows is flushed."""
    data_dir = settings.process.data_dir.absolute()
    async with AsyncExitStack() as stack:
        stack.enter_context(folder_lock(data_dir, role="annheal up", fix=LOCKED_FIX))
        ballast = Ballast(data_dir, reserve_bytes=settings.shard_node.disk_reserve_bytes)
        await asyncio.to_thread(ballast.balance)  # a full disk: nothing can start without room
        meta = SqliteMetaStore(data_dir / META_FILE)
        stack.push_async_callback(meta.close)
        # The lock says that nobody else lives: what the last process leased is free at once.
        await meta.expire_all_leases()
        metering = await stack.enter_async_context(metered(settings.process))
        objects_dir = data_dir / OBJECTS_DIR
        objects = metering.objects(LocalObjectStore(objects_dir))
        stack.push_async_callback(objects.close)
        scope = TaskScope("annheal")
        stack.push_async_callback(scope.stop)
        # One supply for the node and the compactor: machine code belongs to the process.
        scope.start(kernel_supply(settings.process, metering).run(), name="kernels")
        scope.start(ballast.run(), name="ballast")

        node, node_scope = await stack.enter_async_context(
            running_node(
                settings.shard_node,
                meta,
                objects,
                listen=not_listening,
                metrics=metering.metrics,
                disks=[objects_dir],
            )
        )
        scope.start(node_scope.wait(), name="shard-node")

        port = metering.node(node, node_id=settings.shard_node.node_id)

        def connect(_: NodeRegistration) -> ShardNode:
            return port

        def coordinator_at(own: CoordinatorSettings) -> Coordinator:
            return Coordinator(
                own,
                meta,
                objects,
                connect,
                version=metadata.version("annheal"),
                needs_space=lambda: node.needs_space,
            )

        coordinator, server = listening(settings.coordinator, coordinator_at, metering)
        await coordinator.start()
        stack.push_async_callback(coordinator.stop)
        metering.coordinator(coordinator)
        scope.start(coordinator.wait(), name="coordinator")

        stop_compactor = asyncio.Event()
        compactor = scope.start(
            run_compactor(settings.compactor, meta, objects, stop=stop_compactor),
            name="compactor",
        )
        stack.push_async_callback(_stop_compactor, stop_compactor, compactor)

        await server.start()  # health answers while shards are opened
        stack.push_async_callback(server.stop, grace_s=GRACE_S)
        await stack.enter_async_context(abilities_reported(server, node.stores))
        await wait_open(meta, port, scope)
        await server.set_serving(True)
        address = coordinator.settings.address
        stack.enter_context(published_address(data_dir, address))
        yield EmbeddedServer(address, data_dir, scope, metering.address)


def listening(
    settings: CoordinatorSettings,
    make: Callable[[CoordinatorSettings], Coordinator],
    metering: Metering,
) -> tuple[Coordinator, RpcServer]:
    """Return a coordinator and its server, bound to `settings.listen`.

    The coordinator registers its address, so port 0 is replaced by a free port before it is made.
    Raises `FailedPrecondition` when the port is taken.
    """
    host, port = split_address(settings.listen)
    for _ in range(PORT_ATTEMPTS_MAX):
        chosen = port or _free_port(host)
        coordinator = make(replace(settings, listen=f"{host}:{chosen}"))
        server = RpcServer(services(coordinator, metrics=metering.metrics))
        try:
            server.listen(coordinator.settings.listen)
        except FailedPrecondition:
            if port:
                raise
            continue  # somebody took it since it was found free
        return coordinator, server
    raise FailedPrecondition(f"found no free port on {host}", reason="CANNOT_LISTEN")


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


async def _stop_compactor(stop: asyncio.Event, compactor: asyncio.Task[None]) -> None:
    stop.set()
    await asyncio.wait([compactor])
