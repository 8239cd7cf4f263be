"""`annheal up` and `annheal serve coordinator|shard-node|compactor`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from importlib import metadata
from typing import Any, Final

from annheal.cli.exit_codes import CONFIGURATION
from annheal.cli.server.embedded import listening, running
from annheal.cli.server.metering import innermost, kernel_supply, metered
from annheal.cli.server.roles import EmbeddedSettings
from annheal.cli.server.settings import ProcessSettings, require
from annheal.compactor.service import serve_compactor
from annheal.compactor.settings import CompactorSettings
from annheal.coordinator.app import Coordinator
from annheal.coordinator.settings import CoordinatorSettings
from annheal.errors import AnnhealError, FieldViolation, InvalidArgument
from annheal.metastore.factory import open_meta_store
from annheal.metastore.protocol import MetaStore
from annheal.model.topology.shard import NodeRegistration
from annheal.objectstore.factory import local_folders, open_object_store
from annheal.objectstore.protocol import ObjectStore
from annheal.rpc.abilities import abilities_reported
from annheal.rpc.port import ShardNode
from annheal.rpc.shard_node import RemoteShardNode
from annheal.runtime.host.allocator import return_freed_memory
from annheal.runtime.host.imports import keep_pandas_from_arrow
from annheal.runtime.logging import configure_logging
from annheal.shard_node.serving import run_shard_node
from annheal.shard_node.settings import ShardNodeSettings

GRACE_S: Final = 10.0
"""How long calls under way may take to end when a process stops."""

_log = logging.getLogger(__name__)

Role = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


def run(role: Role, *, process: ProcessSettings, constants: dict[str, str]) -> None:
    """Run `role` until SIGTERM or SIGINT, or until it fails."""
    return_freed_memory()
    keep_pandas_from_arrow()
    configure_logging(process.log_level, constants=constants)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)

        def stop_once(number: signal.Signals) -> None:
            _log.info("%s: stopping", number.name)
            stop.set()
            for other in signals:  # a second one ends the process at once
                loop.remove_signal_handler(other)

        for number in signals:
            loop.add_signal_handler(number, stop_once, number)
        await role(stop)

    asyncio.run(main())


def up(settings: EmbeddedSettings) -> None:
    """Run everything in this process."""

    async def role(stop: asyncio.Event) -> None:
        async with running(settings) as server:
            say_ready("annheal", server.address, f"data in {server.data_dir}")
            await _until(stop, server.wait())

    run(role, process=settings.process, constants={})


def serve_coordinator(process: ProcessSettings, settings: CoordinatorSettings) -> None:
    """Run a coordinator process."""

    async def role(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            meta, objects = await _stores(process, stack)
            metering = await stack.enter_async_context(metered(process))

            def connect(registration: NodeRegistration) -> ShardNode:
                node = RemoteShardNode(registration.address)
                return metering.node(node, node_id=registration.node_id)

            def make(own: CoordinatorSettings) -> Coordinator:
                return Coordinator(
                    own,
                    meta,
                    metering.objects(objects),
                    connect,
                    disconnect=_disconnect,
                    version=metadata.version("annheal"),
                )

            coordinator, server = listening(settings, make, metering)
            await server.start()  # health answers while the catalog is loaded
            stack.push_async_callback(coordinator.stop)
            # The last callback runs first: calls under way end before the coordinator does.
            stack.push_async_callback(server.stop, grace_s=GRACE_S)
            if not await _unless_stopped(stop, coordinator.start()):
                return
            metering.coordinator(coordinator)
            coordinator.stores.register(metering.metrics)
            await stack.enter_async_context(abilities_reported(server, coordinator.stores))
            await server.set_serving(True)
            say_ready("coordinator", coordinator.settings.address, settings.coordinator_id)
            await _until(stop, coordinator.wait())

    run(role, process=process, constants={"role": "coordinator", "id": settings.coordinator_id})


def serve_shard_node(process: ProcessSettings, settings: ShardNodeSettings) -> None:
    """Run a shard node process."""

    async def role(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            meta, objects = await _stores(process, stack)
            metering = await stack.enter_async_context(metered(process))

            async def ready(port: int) -> None:
                host = settings.listen.rpartition(":")[0]
                say_ready("shard node", settings.advertise or f"{host}:{port}", settings.node_id)

            await run_shard_node(
                settings,
                meta,
                metering.objects(objects),
                stop=stop,
                metrics=metering.metrics,
                kernels=kernel_supply(process, metering),
                on_ready=ready,
                disks=local_folders(process.object_store_url),
            )

    run(role, process=process, constants={"role": "shard-node", "id": settings.node_id})


def serve_compactor_role(process: ProcessSettings, settings: CompactorSettings) -> None:
    """Run a compactor process."""

    async def role(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            meta, objects = await _stores(process, stack)
            metering = await stack.enter_async_context(metered(process))
            await serve_compactor(
                settings,
                meta,
                metering.objects(objects),
                stop=stop,
                kernels=kernel_supply(process, metering),
                on_ready=lambda address: say_ready("compactor", address, settings.worker_id),
                metrics=metering.metrics,
            )

    run(role, process=process, constants={"role": "compactor", "id": settings.worker_id})


def say_ready(role: str, address: str, detail: str) -> None:
    """Print the one line that says where the process answers."""
    print(f"{role} is ready at {address} ({detail})", file=sys.stdout, flush=True)


async def _stores(process: ProcessSettings, stack: AsyncExitStack) -> tuple[MetaStore, ObjectStore]:
    require(process, "metadata_url", "object_store_url")
    with _named("--metadata-url"):
        meta = open_meta_store(process.metadata_url)
    stack.push_async_callback(meta.close)
    with _named("--object-store-url"):
        objects = open_object_store(process.object_store_url)
    stack.push_async_callback(objects.close)
    return meta, objects


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """Say in which flag a URL is wrong."""
    try:
        yield
    except InvalidArgument as error:
        text = "; ".join(one.description for one in error.violations) or error.message
        raise InvalidArgument(
            f"{flag}: {text}", violations=[FieldViolation(flag, text)], reason=CONFIGURATION
        ) from error


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Return True when `work` ended, False when `stop` was set before; then it is cancelled."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        await working
        return True
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _until(stop: asyncio.Event, failure: Coroutine[Any, Any, None]) -> None:
    """Return when `stop` is set; raise what `failure` raises."""
    failing = asyncio.create_task(failure)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            await failing
            raise AnnhealError("a part of the server ended without being asked to")
    finally:
        failing.cancel()
        stopping.cancel()
        await asyncio.gather(failing, stopping, return_exceptions=True)


async def _disconnect(node: ShardNode) -> None:
    inner = innermost(node)
    if isinstance(inner, RemoteShardNode):
        await inner.close()
