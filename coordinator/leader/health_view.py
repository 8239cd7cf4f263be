"""What the processes of a cluster depend on, as they find it themselves."""

from __future__ import annotations

import asyncio

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import ask_nodes
from annheal.coordinator.data_path.router import Router
from annheal.coordinator.data_path.texts import Texts
from annheal.errors import Unavailable
from annheal.metastore.keys import COMPACTORS_PREFIX
from annheal.metastore.table import readable
from annheal.model.measures.part_health import ClusterHealth, PartHealth
from annheal.model.topology.shard import WorkerRegistration
from annheal.objectstore.store_watch import StoreWatch


class HealthView:
    """Probes the coordinator's own stores and embedders, and asks every node to probe its parts.

    A compactor is not called: it registers the state of its parts with itself.
    """

    def __init__(
        self,
        stores: StoreWatch,
        catalog: Catalog,
        router: Router,
        texts: Texts,
        *,
        timeout_s: float,
    ) -> None:
        self._texts = texts
        self._stores = stores
        self._catalog = catalog
        self._router = router
        self._timeout_s = timeout_s

    async def look(self) -> ClusterHealth:
        """Return every part; nodes that do not answer are in `errors`."""
        own = asyncio.create_task(self._stores.look(), name="probe-own-stores")
        embedders = asyncio.create_task(
            self._texts.look(self._catalog.collections(), timeout_s=self._timeout_s),
            name="probe-embedders",
        )
        asked = await ask_nodes(
            self._router,
            self._catalog.nodes(),
            lambda node: node.health(),
            timeout_s=self._timeout_s,
            what="report its health",
        )
        compactors = await self._of_compactors()
        of_nodes = (part for found in asked.answers.values() for part in found)
        return ClusterHealth((*await own, *of_nodes, *compactors, *await embedders), asked.errors)

    async def _of_compactors(self) -> list[PartHealth]:
        """Return the parts that compactors have registered; none without the metadata store.

        Its own part says then that it is away: what is known of the others is still worth telling.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                snapshot = await self._stores.meta.list(COMPACTORS_PREFIX)
        except (Unavailable, TimeoutError):
            return []
        found = readable(snapshot.items, WorkerRegistration)
        return [part for one in found for part in one.value.parts]
