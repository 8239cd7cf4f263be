"""A compactor as a process of its own: `run_compactor` and gRPC's health service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from annheal.compactor.app import run_compactor
from annheal.compactor.settings import CompactorSettings
from annheal.index.kernels.supply import KernelSupply
from annheal.metastore.protocol import MetaStore
from annheal.objectstore.protocol import ObjectStore
from annheal.rpc.server import RpcServer
from annheal.runtime.metrics import Metrics

STOP_GRACE_S = 1.0


async def serve_compactor(
    settings: CompactorSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    stop: asyncio.Event,
    kernels: KernelSupply | None = None,
    on_ready: Callable[[str], None] | None = None,
    metrics: Metrics | None = None,
) -> None:
    """Do compaction tasks until `stop` is set, and answer health checks on `settings.listen`.

    The status is NOT_SERVING while the compactor waits for the metadata store, and SERVING once it
    has read the queue and claims tasks; then `on_ready` is called with the address. Stores
    and disks are reported to `metrics`. Raises `FailedPrecondition` when the port is taken.
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
            kernels=kernels,
            address=f"{host}:{port}",
            on_ready=ready,
            metrics=metrics,
        )
    finally:
        await server.stop(grace_s=STOP_GRACE_S)
