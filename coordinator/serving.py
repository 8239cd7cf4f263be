"""A coordinator with its gRPC server, from start to a graceful stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib import metadata

from annheal.metastore.protocol import MetaStore
from annheal.objectstore.protocol import ObjectStore
from annheal.rpc.server import RpcServer, ServerTls
from coordinator.app import Coordinator
from coordinator.router import Connect, Disconnect, keep_connected
from coordinator.service import services
from coordinator.settings import CoordinatorSettings

_log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
"""How long calls under way may take to end when the coordinator stops."""


async def run_coordinator(
    settings: CoordinatorSettings,
    meta: MetaStore,
    objects: ObjectStore,
    connect: Connect,
    *,
    stop: asyncio.Event,
    disconnect: Disconnect = keep_connected,
    tls: ServerTls | None = None,
    on_ready: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """Serve on `settings.listen` until `stop` is set; then end calls under way and stop.

    `on_ready` is called with the port once the coordinator can answer. Raises `Unavailable` when
    the metadata store cannot be read at the start, `FailedPrecondition` when the address is
    taken, and whatever ends a background task that must not end.
    """
    coordinator = Coordinator(
        settings,
        meta,
        objects,
        connect,
        disconnect=disconnect,
        version=metadata.version("annheal"),
    )
    server = RpcServer(services(coordinator), tls=tls)
    port = server.listen(settings.listen)
    await server.start()
    stopping = asyncio.create_task(stop.wait(), name="coordinator-stop")
    failing: asyncio.Task[None] | None = None
    try:
        await coordinator.start()
        failing = asyncio.create_task(coordinator.wait(), name="coordinator-failure")
        await server.set_serving(True)
        _log.info("coordinator %s serves on port %d", settings.coordinator_id, port)
        if on_ready is not None:
            await on_ready(port)
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            await failing
    finally:
        stopping.cancel()
        if failing is not None:
            failing.cancel()
        await server.stop(grace_s=STOP_GRACE_S)
        await coordinator.stop()
