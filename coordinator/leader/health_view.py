"""What the processes of a cluster depend on, as they find it themselves."""

from __future__ import annotations

import asyncio

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.router import Router
from annheal.errors import AnnhealError
from annheal.model.measures.part_health import ClusterHealth, PartHealth
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
        names = sorted(self._catalog.nodes())
        own = asyncio.create_task(self._stores.look(), name="probe-own-stores")
        answers = await asyncio.gather(*(self._ask(name) for name in names))
        parts: list[PartHealth] = [*await own]
        errors: dict[str, str] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, AnnhealError):
                errors[name] = answer.message
            else:
                parts += answer
        return ClusterHealth(tuple(parts), errors)

    async def _ask(self, node_id: str) -> tuple[PartHealth, ...] | AnnhealError:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._router.link(node_id).node.health()
        except TimeoutError:
            return AnnhealError(f"node {node_id!r} did not say how it is in {self._timeout_s:g} s")
        except AnnhealError as error:
            return error
