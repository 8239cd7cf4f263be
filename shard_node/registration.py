"""Keeps this node known as alive: its registration lives as long as its lease."""

from __future__ import annotations

import asyncio
import logging

from annheal.errors import Conflict
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import node_key
from annheal.metastore.lease_keeper import AWAY, LeaseKeeper
from annheal.metastore.protocol import LeaseExpired, MetaStore, Put
from annheal.model.topology.shard import NodeRegistration
from annheal.runtime.logging import SparingLog

REGISTER_RETRY_S = 0.5

_log = logging.getLogger(__name__)


async def run_registration(
    meta: MetaStore, registration: NodeRegistration, *, ttl_s: float, registered: asyncio.Event
) -> None:
    """Register under a lease, again after every loss, until cancelled; then the lease is revoked.

    Losing the lease does not stop reads or writes: safety lies in the log's fence, and without a
    successor this node is still the owner (DESIGN section 10, etcd down).
    """
    sparing = SparingLog(_log)
    put = encode_value(registration)
    while True:
        try:
            async with LeaseKeeper(meta, ttl_s=ttl_s) as keeper:
                key = node_key(registration.node_id)
                await meta.commit([Put(key, put, lease_id=keeper.lease.id)])
                registered.set()
                await keeper.lost.wait()
            _log.warning("node %s lost its lease; registering again", registration.node_id)
        except (*AWAY, Conflict, LeaseExpired) as error:
            sparing.warning("node %s is not registered: %s", registration.node_id, error)
            await asyncio.sleep(REGISTER_RETRY_S)
