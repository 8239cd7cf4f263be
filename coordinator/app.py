"""The composition root: one coordinator from its settings and the things it is given."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from functools import partial

from annheal.coordinator.admin import Admin
from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.collections import Collections
from annheal.coordinator.compaction.task_book import TaskBook
from annheal.coordinator.data_path.batcher import SearchBatcher
from annheal.coordinator.data_path.dual import DualSearch
from annheal.coordinator.data_path.fanout import Fanout
from annheal.coordinator.data_path.reads import Reads
from annheal.coordinator.data_path.router import Connect, Disconnect, Router, keep_connected
from annheal.coordinator.data_path.texts import Texts
from annheal.coordinator.data_path.writes import Writes
from annheal.coordinator.election import Election
from annheal.coordinator.leader.control import Control, ControlParts
from annheal.coordinator.leader.gc import GarbageCollector
from annheal.coordinator.leader.health_view import HealthView
from annheal.coordinator.migration.book import MigrationBook
from annheal.coordinator.migration.bridges import Bridges
from annheal.coordinator.migration.coverage import model_rows
from annheal.coordinator.migration.driver import MigrationDriver
from annheal.coordinator.migration.estimate import Estimator
from annheal.coordinator.migration.jobs import Migrations
from annheal.coordinator.migration.measure import GateMeter
from annheal.coordinator.placement.topology import Topology
from annheal.coordinator.recall.merged_audit import MergedAuditor
from annheal.coordinator.recall.probe import RecallMeter
from annheal.coordinator.recall.view import RecallView
from annheal.coordinator.recall.worst import WorstQueries
from annheal.coordinator.settings import CoordinatorSettings
from annheal.embedding.host import EmbedderHost
from annheal.metastore.protocol import MetaStore
from annheal.model.topology.migration.state import Migration
from annheal.model.topology.shard import WorkerRegistration, WorkerRole
from annheal.objectstore.protocol import ObjectStore
from annheal.objectstore.store_watch import StoreWatch
from annheal.runtime.clock import Clock, NewId, monotonic_s, wall_s
from annheal.runtime.offload import Offload
from annheal.runtime.tasks import TaskScope

_log = logging.getLogger(__name__)

_LEARNING_NICE = 10
_OFFLOAD_THREADS = 2


def _new_id() -> str:
    return uuid.uuid4().hex


class Coordinator:
    """Routes requests, and leads when elected.

    The API in process: `collections`, `texts` (embeds), `writes`, `reads`, `search`, `recall`
    (measures now), `recall_view` (what the nodes measure all the time), `health` (of what the
    processes depend on), `migrations` and `admin`. The gRPC services (`coordinator.service`) only
    translate to it.

    Args:
        settings: see `CoordinatorSettings`.
        meta: the metadata store; the caller closes it after `stop`.
        objects: the object store; the caller closes it after `stop`.
        connect: returns the port to a node.
        disconnect: closes such a port; not needed for nodes in the same process.
        version: of the software, for operators.
        new_id: ids of collections and tasks; never the same twice.
        wall_clock: seconds since the epoch.
        needs_space: whether the objects' disk is nearly full; those of dropped collections then go
            without waiting.
    """

    def __init__(
        self,
        settings: CoordinatorSettings,
        meta: MetaStore,
        objects: ObjectStore,
        connect: Connect,
        *,
        disconnect: Disconnect = keep_connected,
        version: str = "",
        new_id: Callable[[], str] = _new_id,
        wall_clock: Clock = wall_s,
        needs_space: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self._scope = TaskScope(f"coordinator {settings.coordinator_id}")
        self._offload = Offload(threads=_OFFLOAD_THREADS, name="coordinator")
        # Learning takes seconds, for which no write waits.
        self._learning = Offload(threads=1, name="bridges", nice=_LEARNING_NICE)
        self.stores = StoreWatch(settings.coordinator_id, meta, objects, scope=self._scope)
        meta, objects = self.stores.meta, self.stores.objects
        self.catalog = Catalog(meta)
        self.router = self._make_router(connect, disconnect)
        self.texts = self._make_texts()
        self.collections = Collections(
            self.catalog,
            meta,
            objects,
            new_id=new_id,
            wall_clock=wall_clock,
            texts=self.texts,
        )
        self.writes = Writes(
            self.router,
            offload=self._offload,
            requests_max=settings.write_requests_max,
            shard_calls_max=settings.shard_calls_max,
        )
        self.reads = Reads(
            self.router,
            requests_max=settings.reads_max,
            shard_calls_max=settings.shard_calls_max,
        )
        self.search = Fanout(self.router, partial_patience_s=settings.partial_patience_s)
        bridges = Bridges(self.reads, offload=self._learning, scope=self._scope, clock=monotonic_s)
        self.dual = DualSearch(self.search, bridges, self._migration_of, offload=self._offload)
        self.recall = RecallMeter(self.reads, self.search)
        self.recall_view = RecallView(
            self.catalog, self.router, timeout_s=settings.observe_timeout_s, now_s=wall_clock
        )
        self.worst_queries = WorstQueries(
            self.catalog, self.router, self.search, timeout_s=settings.observe_timeout_s
        )
        self.health = HealthView(
            self.stores,
            self.catalog,
            self.router,
            self.texts,
            timeout_s=settings.observe_timeout_s,
        )
        self._migration_book = MigrationBook(self.catalog, meta)
        self.migrations = self._make_migrations(wall_clock)
        parts = self._make_parts(
            meta, self._make_garbage(meta, objects, wall_clock, needs_space), new_id, wall_clock
        )
        self.admin = self._make_admin(parts, version)
        self._control = Control(parts, settings=settings)
        self._election = self._make_election(meta, version, wall_clock())

    def _migration_of(self, collection_id: str) -> Migration | None:
        stored = self.catalog.migration(collection_id)
        return None if stored is None else stored.value

    def _make_parts(
        self, meta: MetaStore, garbage: GarbageCollector, new_id: NewId, wall_clock: Clock
    ) -> ControlParts:
        settings = self.settings
        tasks = TaskBook(self.catalog, meta, wall_clock=wall_clock)
        return ControlParts(
            catalog=self.catalog,
            store=meta,
            router=self.router,
            topology=Topology(self.catalog, meta, tolerance=settings.rebalance_tolerance),
            tasks=tasks,
            garbage=garbage,
            new_id=new_id,
            wall_clock=wall_clock,
            migrations=partial(
                MigrationDriver,
                self.catalog,
                self.router,
                tasks,
                self._migration_book,
                GateMeter(self.reads, self.search, clock=monotonic_s),
                rules=settings.compaction,
                observe_timeout_s=settings.observe_timeout_s,
                wall_clock=wall_clock,
                new_id=new_id,
                rows_of=model_rows,
            ),
        )

    def _make_migrations(self, wall_clock: Clock) -> Migrations:
        estimator = Estimator(
            self.catalog,
            self.router,
            self.reads,
            self.texts,
            offload=self._offload,
            observe_timeout_s=self.settings.observe_timeout_s,
            clock=monotonic_s,
            rows_of=model_rows,
        )
        return Migrations(
            self.catalog,
            self._migration_book,
            estimator,
            wall_clock=wall_clock,
        )

    def _make_router(self, connect: Connect, disconnect: Disconnect) -> Router:
        batch = partial(
            SearchBatcher,
            scope=self._scope,
            queries_max=self.settings.search_batch_queries_max,
            waiting_max=self.settings.search_queries_waiting_max,
            calls_max=self.settings.search_calls_per_node,
        )
        return Router(self.catalog, connect, scope=self._scope, batch=batch, disconnect=disconnect)

    def _make_texts(self) -> Texts:
        settings = self.settings
        host = EmbedderHost(settings.embedder_dir, settings.embedder_urls)
        return Texts(
            host,
            offload=self._offload,
            texts_max=settings.embedder_texts_max,
            process=settings.coordinator_id,
        )

    def _make_garbage(
        self,
        meta: MetaStore,
        objects: ObjectStore,
        wall_clock: Clock,
        needs_space: Callable[[], bool],
    ) -> GarbageCollector:
        return GarbageCollector(
            self.catalog,
            meta,
            objects,
            grace_s=self.settings.collection_grace_s,
            wall_clock=wall_clock,
            needs_space=needs_space,
        )

    def _make_admin(self, parts: ControlParts, version: str) -> Admin:
        return Admin(
            parts,
            merged_audits=MergedAuditor(
                self.catalog,
                self.router,
                self.search,
                self.recall_view,
                timeout_s=self.settings.observe_timeout_s,
            ),
            scope=self._scope,
            settings=self.settings,
            version=version,
            leading=lambda: self.leading,
        )

    def _make_election(self, meta: MetaStore, version: str, started_at_s: float) -> Election:
        registration = WorkerRegistration(
            worker_id=self.settings.coordinator_id,
            role=WorkerRole.COORDINATOR,
            address=self.settings.address,
            started_at_s=started_at_s,
            version=version,
        )
        return Election(
            meta,
            registration,
            lease_ttl_s=self.settings.lease_ttl_s,
            retry_s=self.settings.store_retry_s,
        )

    @property
    def leading(self) -> bool:
        """Whether this coordinator leads at this moment."""
        return self._election.leading

    async def start(self) -> None:
        """Load the catalog, as soon as the store answers, then serve and campaign."""
        await self.catalog.start(self._scope)
        await self._election.start(self._scope)
        self._scope.start(self._election.run(self._control.lead), name="election")

    async def wait(self) -> None:
        """Wait until something fails that cannot be repeated, and raise it."""
        await self._scope.wait()

    async def stop(self) -> None:
        """Give the lease back and stop; calls under way fail. Repeated calls do nothing."""
        await self._scope.stop()
        await self.router.close()
        await self.texts.close()
        await self._offload.close()
        await self._learning.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until `stop` is set, and stop; raises what `wait` raises."""
        await self.start()
        failed = asyncio.create_task(self.wait(), name="coordinator-failure")
        stopping = asyncio.create_task(stop.wait(), name="coordinator-stop")
        try:
            await asyncio.wait({failed, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not failed.done():
                failed.cancel()
            await asyncio.wait({failed, stopping})
            await self.stop()
        if not failed.cancelled():
            await failed
