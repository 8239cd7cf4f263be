"""Composition root of a shard node: the only place that names concrete classes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

from annheal.index.kernels.supply import KernelSupply
from annheal.metastore.protocol import MetaStore
from annheal.model.topology.shard import NodeRegistration
from annheal.objectstore.protocol import ObjectStore
from annheal.objectstore.store_watch import StoreWatch
from annheal.recall.coverage import CoverageBook
from annheal.runtime.background import Background
from annheal.runtime.host.disk import DiskWatch
from annheal.runtime.host.folder_lock import folder_lock
from annheal.runtime.metrics import Metrics
from annheal.runtime.tasks import TaskScope
from annheal.shard_node.lanes import EXACT_NICE, Lanes
from annheal.shard_node.metrics import register_reports
from annheal.shard_node.node import Node
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.manifest_store import ManifestStore
from annheal.shard_node.ownership import Ownership
from annheal.shard_node.recall.ef_control import EfController
from annheal.shard_node.recall.keeper import RecallKeeper
from annheal.shard_node.recall.monitor import MonitorSettings, RecallMonitor
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.registration import run_registration
from annheal.shard_node.search.engine import SearchEngine
from annheal.shard_node.settings import ShardNodeSettings

WRITER_BYTES = 16
LOCKED_FIX = "stop it, or give this one a --node-id or a --data-dir of its own"

_log = logging.getLogger(__name__)


Listen = Callable[[Node], Awaitable[str]]


async def not_listening(node: Node) -> str:
    """Return the address of a node that is called in its own process only."""
    return "in-process"


@asynccontextmanager
async def running_node(
    settings: ShardNodeSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    listen: Listen,
    metrics: Metrics | None = None,
    kernels: KernelSupply | None = None,
    stop: asyncio.Event | None = None,
    disks: Sequence[Path] = (),
) -> AsyncIterator[tuple[Node, TaskScope]]:
    """Run a node in this process: yields its port and its tasks' scope (watch it for failure).

    The node holds `settings.data_dir`: raises `FailedPrecondition` that names the other process
    while that one does. `listen` is given the node before it registers and returns the address to
    register; searches and the monitor's work are counted in `metrics`, if there are any.
    `kernels` is run as a task of the node; None where another part of the process runs it. Without
    the metadata store it waits for it, and says so, until `stop` is set: then it yields a node that
    is not registered. `disks` are folders on disks that its data go to, beside `data_dir`.

    On leaving, the node flushes what it holds within `drain_timeout_s` (whatever is not flushed
    is in the log), then ends its lease, so that others take over. Raises what a task of the node
    fails with before it is registered.
    """
    with folder_lock(settings.data_dir, role=f"shard node {settings.node_id}", fix=LOCKED_FIX):
        async with _running(
            settings,
            meta,
            objects,
            listen=listen,
            metrics=metrics,
            kernels=kernels,
            stop=stop or asyncio.Event(),
            shared_disks=disks,
        ) as running:
            yield running


@asynccontextmanager
async def _running(
    settings: ShardNodeSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    listen: Listen,
    metrics: Metrics | None,
    kernels: KernelSupply | None,
    stop: asyncio.Event,
    shared_disks: Sequence[Path],
) -> AsyncIterator[tuple[Node, TaskScope]]:
    metrics = metrics or Metrics()
    scope = TaskScope(f"shard node {settings.node_id}")
    stores = StoreWatch(settings.node_id, meta, objects, scope=scope)
    meta, objects = stores.meta, stores.objects
    stores.register(metrics)
    lanes = Lanes(cores=settings.search_threads, on_wait=metrics.observe_lane_wait)
    background = Background(lanes.prepare, on_failure=metrics.count_background_failure)
    engine = SearchEngine(cores=lanes.cores, exact_nice=EXACT_NICE, offer=background.offer)
    disks = DiskWatch(
        [settings.data_dir, *shared_disks],
        reserve_bytes=settings.disk_reserve_bytes,
        process=settings.node_id,
    )
    shared = _dependencies(settings, meta, objects, lanes=lanes, disks=disks)
    ownership = Ownership(
        meta, shared, node_id=settings.node_id, opening_max=settings.shards_opening_max
    )
    register_reports(
        metrics,
        engine=engine,
        lanes=lanes,
        disks=disks,
        collections=lambda: ownership.collection_names,
    )
    monitor = _monitor(settings, ownership, engine, shared, metrics)
    node = Node(
        ownership,
        lanes,
        node_id=settings.node_id,
        engine=engine,
        monitor=monitor,
        stores=stores,
        disks=disks,
        metrics=metrics,
    )
    registration = _registration(settings, await listen(node))
    registered = asyncio.Event()
    scope.start(ownership.run(), name="ownership")
    scope.start(monitor.run(), name="recall")
    scope.start(background.run(), name="background")
    if kernels is not None:
        scope.start(kernels.run(), name="kernels")
    scope.start(
        run_registration(meta, registration, ttl_s=settings.lease_ttl_s, registered=registered),
        name="registration",
    )
    try:
        await _wait_registered(registered, scope, stop=stop)
        yield node, scope
        await _flush(node, ownership, monitor, timeout_s=settings.drain_timeout_s)
    finally:
        await scope.stop()
        lanes.close()
        engine.close()


def _registration(settings: ShardNodeSettings, address: str) -> NodeRegistration:
    return NodeRegistration(
        node_id=settings.node_id,
        address=address,
        zone=settings.zone,
        capacity=settings.capacity,
        started_at_s=time.time(),
        version=metadata.version("annheal"),
    )


def _dependencies(
    settings: ShardNodeSettings,
    meta: MetaStore,
    objects: ObjectStore,
    *,
    lanes: Lanes,
    disks: DiskWatch,
) -> ShardDependencies:
    """Return what the node's shards share, with an empty folder for scratch files."""
    scratch = settings.data_dir / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    return ShardDependencies(
        objects=objects,
        manifests=ManifestStore(meta),
        lanes=lanes,
        node_id=settings.node_id,
        writer=secrets.token_bytes(WRITER_BYTES),
        cache=settings.data_dir / "segments",
        scratch=scratch,
        disks=disks,
    )


def _monitor(
    settings: ShardNodeSettings,
    ownership: Ownership,
    engine: SearchEngine,
    shared: ShardDependencies,
    metrics: Metrics,
) -> RecallMonitor:
    sampler = RecallSampler(
        settings.recall_sample_share, interval_s=settings.recall_interval_s, now_s=shared.now_s
    )
    controller, coverage = EfController(), CoverageBook()
    return RecallMonitor(
        lambda: ownership.held,
        sampler=sampler,
        controller=controller,
        filters=engine.filters,
        costs=engine.costs,
        code_maker=engine.code_maker,
        lanes=shared.lanes,
        keeper=RecallKeeper(
            shared.objects,
            sampler=sampler,
            controller=controller,
            coverage=coverage,
            keep_queries=settings.recall_keep_queries,
            clock=time.monotonic,
            now_s=shared.now_s,
        ),
        coverage=coverage,
        on_cost=metrics.monitor_cpu_seconds.add,
        settings=MonitorSettings(
            interval_s=settings.recall_interval_s,
            changed_share=settings.recall_changed_share,
            cpu_share=settings.recall_cpu_share,
        ),
    )


async def _wait_registered(
    registered: asyncio.Event, scope: TaskScope, *, stop: asyncio.Event
) -> None:
    """Return once registered or asked to stop; raise the error of a task that fails before."""
    failure = asyncio.create_task(scope.wait())
    success = asyncio.create_task(registered.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([failure, success, stopping], return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            failure.result()
    finally:
        for task in (failure, success, stopping):
            task.cancel()
        await asyncio.gather(failure, success, stopping, return_exceptions=True)


async def _flush(
    node: Node, ownership: Ownership, monitor: RecallMonitor, *, timeout_s: float
) -> None:
    """Flush before a graceful end, so that the next owner has less to replay and to learn."""
    try:
        async with asyncio.timeout(timeout_s):
            await node.flush_all(list(ownership.held))
            await monitor.save_leaving()
    except TimeoutError:
        _log.warning("not everything was flushed in %g s; the log has it", timeout_s)
