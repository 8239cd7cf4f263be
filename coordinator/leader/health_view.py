"""What the processes of a cluster depend on, as they find it themselves."""

from __future__ import annotations

import asyncio

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import ask_nodes
from annheal.coordinator.data_path.router import Router
from annheal.model.measures.part_health import ClusterHealth
from annheal.objectstore.store_watch import StoreWatch


class HealthView:
    """Probes the coordinator's own stores and asks every node to probe its parts."""

    def __init__(
        self, stores: StoreWatch, catalog: Catalog, router: Router, *, timeout_s: float
    ) -> None:
        self._stores = stores
        self._catalog = catalog
        self._router = router
        self._timeout_s = timeout_s

    async def look(self) -> ClusterHealth:
        """Return every part; nodes that do not answer are in `errors`."""
        own = asyncio.create_task(self._stores.look(), name="probe-own-stores")
        asked = await ask_nodes(
            self._router,
            self._catalog.nodes(),
            lambda node: node.health(),
            timeout_s=self._timeout_s,
            what="say how it is",
        )
        parts = [*await own, *(part for found in asked.answers.values() for part in found)]
        return ClusterHealth(tuple(parts), asked.errors)
