"""The public services: they translate between messages and the coordinator, nothing else."""

from __future__ import annotations

from annheal.coordinator.app import Coordinator
from annheal.coordinator.service.admin import AdminServicer
from annheal.coordinator.service.collections import CollectionServicer
from annheal.coordinator.service.migrations import MigrationServicer
from annheal.coordinator.service.records import RecordServicer
from annheal.coordinator.service.search import SearchServicer
from annheal.rpc.methods import (
    ADMIN_SERVICE,
    COLLECTION_SERVICE,
    MIGRATION_SERVICE,
    RECORD_SERVICE,
    SEARCH_SERVICE,
)
from annheal.runtime.metrics import Metrics


def services(coordinator: Coordinator, *, metrics: Metrics | None = None) -> dict[str, object]:
    """Return the servicers by full service name, for `annheal.rpc.server.RpcServer`.

    Searches and writes are counted in `metrics`, if there are any.
    """
    counted = metrics or Metrics()
    return {
        COLLECTION_SERVICE: CollectionServicer(coordinator),
        RECORD_SERVICE: RecordServicer(coordinator, counted),
        SEARCH_SERVICE: SearchServicer(coordinator, counted),
        ADMIN_SERVICE: AdminServicer(coordinator),
        MIGRATION_SERVICE: MigrationServicer(coordinator.migrations),
    }


__all__ = ["services"]
