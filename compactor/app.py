"""Composition root of a compactor: the only place that names concrete classes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from importlib import metadata

from annheal.compactor.registration import run_registration
from annheal.compactor.scratch import locked_folder
from annheal.compactor.settings import CompactorSettings
from annheal.compactor.worker import Worker
from annheal.index.kernels.supply import KernelSupply
from annheal.metastore.protocol import MetaStore
from annheal.model.topology.shard import WorkerRegistration, WorkerRole
from annheal.objectstore.protocol import ObjectStore
from annheal.objectstore.store_watch import StoreWatch
from annheal.runtime.host.disk import NEW_TASKS, DiskWatch
from annheal.runtime.metrics import Family, Metrics
from annheal.runtime.tasks import TaskScope

_log = logging.getLogger(__name__)


async def run_compactor(
    settings: CompactorSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    stop: asyncio.Event,
    kernels: KernelSupply | None = None,
    address: str = "",
    on_ready: Callable[[], Awaitable[None]] | None = None,
    metrics: Metrics | None = None,
) -> None:
    """Do compaction tasks until `stop` is set; then put the running tasks back into the queue.

    `annheal up` runs it in one process with a node and a coordinator. `address` is the address of
    the health service, "" if there is none. `on_ready` is called when the queue has been read.
    `kernels` is run as a task of the compactor; None if another part of the process runs it. Its
    stores and disks are reported to `metrics`; None if a node in this process reports them. An
    error that ends a background task, such as a bug, is raised. Raises `FailedPrecondition` while
    another process has locked this worker's folder.
    """
    with ExitStack() as stack:
        folder = locked_folder(settings.worker_dir)
        await asyncio.to_thread(stack.enter_context, folder)
        await _run(
            settings,
            meta,
            objects,
            stop=stop,
            kernels=kernels,
            address=address,
            on_ready=on_ready,
            metrics=metrics,
        )


async def _run(
    settings: CompactorSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    stop: asyncio.Event,
    kernels: KernelSupply | None,
    address: str,
    on_ready: Callable[[], Awaitable[None]] | None,
    metrics: Metrics | None,
) -> None:
    scope = TaskScope(f"compactor {settings.worker_id}")
    stores = StoreWatch(settings.worker_id, meta, objects, scope=scope)
    disks = DiskWatch(
        [settings.worker_dir],
        reserve_bytes=settings.disk_reserve_bytes,
        process=settings.worker_id,
        refused=NEW_TASKS,
    )
    if metrics is not None:
        _report(metrics, stores, disks)
    registration = WorkerRegistration(
        worker_id=settings.worker_id,
        role=WorkerRole.COMPACTOR,
        address=address,
        started_at_s=time.time(),
        version=metadata.version("annheal"),
    )
    worker = Worker(settings, stores.meta, stores.objects, disks=disks)
    scope.start(worker.tasks.run(), name="tasks")
    scope.start(worker.claims.run(), name="claims")
    scope.start(
        run_registration(
            meta,
            registration,
            ttl_s=settings.lease_ttl_s,
            parts=lambda: (*stores.parts, *disks.health()),
        ),
        name="registration",
    )
    if kernels is not None:
        scope.start(kernels.run(), name="kernels")
    scope.start(worker.run(), name="worker")
    if on_ready is not None:
        scope.start(_tell_ready(worker, on_ready), name="ready")
    stopping = asyncio.create_task(stop.wait())
    failing = asyncio.create_task(scope.wait())
    try:
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            await failing
    finally:
        stopping.cancel()
        failing.cancel()
        await scope.stop()


def _report(metrics: Metrics, stores: StoreWatch, disks: DiskWatch) -> None:
    """Report stores and disks whenever somebody scrapes; call inside the event loop."""
    stores.register(metrics)

    async def report() -> Iterable[Family]:
        return disks.families()

    metrics.add_report(report)


async def _tell_ready(worker: Worker, on_ready: Callable[[], Awaitable[None]]) -> None:
    await worker.tasks.wait_change(0)
    await worker.claims.wait_change(0)
    await on_ready()
