"""A compactor as a process of its own: the same loop, with gRPC's health service beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from annheal.compactor.app import run_compactor
from annheal.compactor.settings import CompactorSettings
from annheal.metastore.protocol import MetaStore
from annheal.objectstore.protocol import ObjectStore
from annheal.rpc.server import RpcServer

STOP_GRACE_S = 1.0


async def serve_compactor(
    settings: CompactorSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Compact until `stop` is set, and answer health checks on `settings.listen`.

    SERVING means that the queue was read and tasks are taken; a compactor that waits for the
    metadata store says NOT_SERVING. `on_ready` is then called with the address. Raises
    `FailedPrecondition` when the port is taken.
    """
    server = RpcServer({})
    port = server.listen(settings.listen)
    host = settings.listen.rpartition(":")[0]
    await server.start()

    async def ready() -> None:
        await server.set_serving(True)
        if on_ready is not None:
            on_ready(f"{host}:{port}")

    try:
        await run_compactor(
            settings,
            meta,
            objects,
            stop=stop,
            address=f"{host}:{port}",
            on_ready=ready,
        )
    finally:
        await server.stop(grace_s=STOP_GRACE_S)
