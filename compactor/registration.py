"""Registers this compactor in the metadata store: operators and coordinators see that it lives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from annheal.errors import Conflict
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import compactor_key
from annheal.metastore.lease_keeper import AWAY, LeaseKeeper
from annheal.metastore.protocol import LeaseExpired, MetaStore, Put
from annheal.model.measures.part_health import PartHealth
from annheal.model.topology.shard import WorkerRegistration
from annheal.runtime.logging import SparingLog

REGISTER_RETRY_S = 0.5
LOOK_INTERVAL_S = 1.0
"""Seconds between two looks at the parts."""

_log = logging.getLogger(__name__)


async def run_registration(
    meta: MetaStore,
    registration: WorkerRegistration,
    *,
    ttl_s: float,
    parts: Callable[[], tuple[PartHealth, ...]],
) -> None:
    """Register under a lease of `ttl_s` seconds, and again after each loss, until cancelled.

    The registration has the state of `parts`, the stores and disks that the compactor depends on,
    and is written again soon after a part begins to fail or works again. When cancelled, the lease
    is revoked and the registration ends at once.
    """
    key = compactor_key(registration.worker_id)
    sparing = SparingLog(_log)
    while True:
        try:
            async with LeaseKeeper(meta, ttl_s=ttl_s) as keeper:
                shown: tuple[object, ...] | None = None
                while not keeper.lost.is_set():
                    found = parts()
                    if _essence(found) != shown:
                        value = encode_value(replace(registration, parts=found))
                        await meta.commit([Put(key, value, lease_id=keeper.lease.id)])
                        shown = _essence(found)
                    with contextlib.suppress(TimeoutError):
                        # Not wait_for: before Python 3.12 it can swallow a cancellation.
                        async with asyncio.timeout(LOOK_INTERVAL_S):
                            await keeper.lost.wait()
            _log.warning("compactor %s lost its lease; registering again", registration.worker_id)
        except (*AWAY, Conflict, LeaseExpired) as error:
            sparing.warning("compactor %s is not registered: %s", registration.worker_id, error)
            await asyncio.sleep(REGISTER_RETRY_S)


def _essence(parts: tuple[PartHealth, ...]) -> tuple[object, ...]:
    """Return what is worth another write: errors differ in times and sizes at every look."""
    return tuple((one.kind, one.place, one.failing_since_s, one.note) for one in parts)
