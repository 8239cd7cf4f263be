"""A shard node with its gRPC server, from start to a graceful stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from annheal.index.kernels.supply import KernelSupply
from annheal.metastore.protocol import MetaStore
from annheal.objectstore.protocol import ObjectStore
from annheal.rpc.abilities import abilities_reported
from annheal.rpc.methods import SHARD_SERVICE
from annheal.rpc.server import RpcServer, ServerTls
from annheal.runtime.metrics import Metrics
from annheal.shard_node.app import running_node
from annheal.shard_node.node import Node
from annheal.shard_node.service import ShardServicer
from annheal.shard_node.settings import ShardNodeSettings

_log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
"""How long calls under way may take to end when the node stops."""


async def run_shard_node(
    settings: ShardNodeSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    stop: asyncio.Event,
    tls: ServerTls | None = None,
    metrics: Metrics | None = None,
    kernels: KernelSupply | None = None,
    on_ready: Callable[[int], Awaitable[None]] | None = None,
    disks: Sequence[Path] = (),
) -> None:
    """Serve on `settings.listen` until `stop` is set; then flush, hand over and stop.

    `on_ready` is called with the port once the node is registered; for `disks` see
    `running_node`. Raises `FailedPrecondition` when the address is taken, and whatever ends a
    background task that must not end.
    """
    server: RpcServer | None = None
    port = 0

    async def listen(node: Node) -> str:
        nonlocal server, port
        server = RpcServer({SHARD_SERVICE: ShardServicer(node)}, tls=tls)
        port = server.listen(settings.listen)
        await server.start()
        host = settings.listen.rpartition(":")[0]
        return settings.advertise or f"{host}:{port}"

    stopping = asyncio.create_task(stop.wait(), name="shard-node-stop")
    try:
        async with AsyncExitStack() as stack:
            node, scope = await stack.enter_async_context(
                running_node(
                    settings,
                    meta,
                    objects,
                    listen=listen,
                    metrics=metrics,
                    kernels=kernels,
                    stop=stop,
                    disks=disks,
                )
            )
            assert server is not None
            await stack.enter_async_context(abilities_reported(server, node.stores))
            if not stop.is_set():
                await server.set_serving(True)
                _log.info("shard node %s serves on port %d", settings.node_id, port)
                if on_ready is not None:
                    await on_ready(port)
            failing = asyncio.create_task(scope.wait(), name="shard-node-failure")
            try:
                await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
                if failing.done():
                    await failing
            finally:
                failing.cancel()
            await server.set_serving(False)
    finally:
        stopping.cancel()
        if server is not None:
            await server.stop(grace_s=STOP_GRACE_S)
