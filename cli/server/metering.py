"""What a server process needs to be scraped: its metrics, and what is counted where."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from annheal.cli.server.settings import ProcessSettings
from annheal.coordinator.app import Coordinator
from annheal.coordinator.data_path.metered_node import MeteredNode
from annheal.coordinator.metrics import CoordinatorMetrics
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.supply import KernelSupply, SupplyPhase, SupplyState
from annheal.objectstore.metered import MeteredObjectStore
from annheal.objectstore.own import OwnObjects
from annheal.objectstore.protocol import ObjectStore
from annheal.rpc.port import ShardNode
from annheal.runtime.clock import wall_s
from annheal.runtime.metrics import Family, FamilyKind, Metrics
from annheal.runtime.metrics_endpoint import metrics_endpoint


@dataclass(frozen=True, slots=True)
class Metering:
    """The metrics of a process that is scraped at `address`; nothing is counted without one."""

    address: str = ""
    metrics: Metrics = field(default_factory=Metrics)

    def objects(self, store: ObjectStore) -> ObjectStore:
        """Return `store`, counted, without what is not Annheal's."""
        counted = MeteredObjectStore(store, self.metrics) if self.address else store
        return OwnObjects(counted, self.metrics)

    def node(self, node: ShardNode, *, node_id: str) -> ShardNode:
        """Return `node`, counted."""
        return MeteredNode(node, self.metrics, node_id=node_id) if self.address else node

    def coordinator(self, coordinator: Coordinator) -> None:
        """Report what `coordinator` knows; call it once it has started."""
        catalog = coordinator.catalog
        self.metrics.watch_label("collection", lambda: [one.name for one in catalog.collections()])
        self.metrics.watch_label("node", catalog.nodes)
        if self.address:
            reports = CoordinatorMetrics(coordinator, self.metrics)
            reports.register(self.metrics, now_s=wall_s)


def kernel_supply(process: ProcessSettings, metering: Metering) -> KernelSupply:
    """Return what brings the kernels into this process, reported to whoever scrapes it."""
    supply = KernelSupply(process.kernel_cache)
    if metering.address:

        async def report() -> Iterable[Family]:
            return kernel_families(supply.state)

        metering.metrics.add_report(report)
    return supply


def kernel_families(state: SupplyState) -> list[Family]:
    """Return how far the kernels of a process are, as metrics."""
    loaded = Family(
        "annheal_kernel_loaded", "Whether a compiled kernel can be used, by its name.", ("kernel",)
    )
    for kernel in Kernel:
        loaded.add(float(kernel in state.loaded), kernel.value)
    failures = Family(
        "annheal_kernel_failures",
        "Attempts to compile or load kernels that failed.",
        kind=FamilyKind.COUNTER,
    )
    failures.add(state.failures)
    given_up = Family(
        "annheal_kernels_given_up", "1: missing kernels are not tried again in this process."
    )
    given_up.add(float(state.phase is SupplyPhase.FAILED))
    return [loaded, failures, given_up]


@asynccontextmanager
async def metered(process: ProcessSettings) -> AsyncIterator[Metering]:
    """Serve the metrics of this process, if its settings say where."""
    if not process.metrics_listen:
        yield Metering()
        return
    metrics = Metrics()
    async with metrics_endpoint(metrics, process.metrics_listen) as address:
        yield Metering(address, metrics)


def innermost(node: ShardNode) -> ShardNode:
    """Return the node below what counts its calls."""
    return node.inner if isinstance(node, MeteredNode) else node
