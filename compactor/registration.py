"""Registers this compactor in the metadata store: operators and coordinators see that it lives."""

from __future__ import annotations

import asyncio
import logging

from annheal.errors import Conflict
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import compactor_key
from annheal.metastore.lease_keeper import AWAY, LeaseKeeper
from annheal.metastore.protocol import LeaseExpired, MetaStore, Put
from annheal.model.topology.shard import WorkerRegistration
from annheal.runtime.logging import SparingLog

REGISTER_RETRY_S = 0.5

_log = logging.getLogger(__name__)


async def run_registration(
    meta: MetaStore, registration: WorkerRegistration, *, ttl_s: float
) -> None:
    """Register under a lease of `ttl_s` seconds, and again after each loss, until cancelled.

    When cancelled, the lease is revoked and the registration ends at once.
    """
    key = compactor_key(registration.worker_id)
    sparing = SparingLog(_log)
    while True:
        try:
            async with LeaseKeeper(meta, ttl_s=ttl_s) as keeper:
                put = Put(key, encode_value(registration), lease_id=keeper.lease.id)
                await meta.commit([put])
                await keeper.lost.wait()
            _log.warning("compactor %s lost its lease; registering again", registration.worker_id)
        except (*AWAY, Conflict, LeaseExpired) as error:
            sparing.warning("compactor %s is not registered: %s", registration.worker_id, error)
            await asyncio.sleep(REGISTER_RETRY_S)
