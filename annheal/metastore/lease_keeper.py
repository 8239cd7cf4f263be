"""A lease that is kept alive, and that knows by its own clock until when it surely holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType

from annheal.errors import ResourceExhausted, Unavailable, UnknownOutcome
from annheal.metastore.protocol import Lease, LeaseExpired, MetaStore
from annheal.runtime.clock import Clock, monotonic_s

_log = logging.getLogger(__name__)

# The lease is renewed this often in its time, and tried again faster when that fails.
_RENEWALS_PER_TTL = 3
_RETRIES_PER_TTL = 20
AWAY = (Unavailable, UnknownOutcome, ResourceExhausted)
"""Errors of a metadata store that pass: it cannot be reached, or has no room at present."""


class LeaseKeeper:
    """Grants a lease, renews it, and says when it is lost.

    The lease counts as held until `valid_until`: the moment at which the last renewal that
    succeeded was *sent*, plus the lease's time. The store counts from a later moment, so the store
    never ends the lease while its holder still believes in it; it may well keep it for longer (etcd
    starts the full time again when its leader changes). After a loss nothing is renewed until
    `regrant` is called; the keys under the lost lease must be written again with the new one.

    ::

        async with LeaseKeeper(store, ttl_s=10) as keeper:
            await store.commit([Put(node_key(node_id), value, lease_id=keeper.lease.id)])
            await keeper.lost.wait()

    Args:
        store: where leases are granted.
        ttl_s: the time asked for; the store may grant more.
        clock: a monotonic clock in seconds that runs as fast as the event loop's timers.
        on_loss: called once for every loss, on the event loop, before `lost` is set.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        ttl_s: float,
        clock: Clock = monotonic_s,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock
        self._on_loss = on_loss
        self._lease: Lease | None = None
        self._valid_until = float("-inf")
        self._renewing: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()

    @property
    def lease(self) -> Lease:
        """The lease held; raises `LeaseExpired` when there is none or it is lost."""
        if self._lease is None or not self.is_valid():
            raise LeaseExpired("no lease is held")
        return self._lease

    @property
    def valid_until(self) -> float:
        """When the lease surely ends unless renewed, by `clock`; minus infinity when lost."""
        return self._valid_until

    def is_valid(self) -> bool:
        """Whether the lease surely holds at this moment."""
        return self._clock() < self._valid_until

    async def __aenter__(self) -> LeaseKeeper:
        """Grant the lease and keep it; raises what `grant_lease` raises."""
        await self.regrant()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop and revoke the lease, so that nobody has to wait for its end."""
        await self._stop_renewing()
        lease, self._lease = self._lease, None
        self._valid_until = float("-inf")
        if lease is None:
            return
        try:
            await self._store.revoke_lease(lease)
        except AWAY as failure:
            _log.warning("lease %d was not revoked and will run out: %s", lease.id, failure)

    async def regrant(self) -> Lease:
        """Grant a new lease, in place of the present one if there is any, and keep it.

        When it raises what `grant_lease` raises, no lease is held.
        """
        await self._stop_renewing()
        self._lease, self._valid_until = None, float("-inf")
        self.lost.set()
        sent_at = self._clock()
        self._lease = await self._store.grant_lease(self._ttl_s)
        self._valid_until = sent_at + self._lease.ttl_s
        self.lost.clear()
        self._renewing = asyncio.create_task(self._keep(self._lease), name="lease-keeper")
        return self._lease

    async def _stop_renewing(self) -> None:
        task, self._renewing = self._renewing, None
        if task is None:
            return
        task.cancel()
        # Not `await task`: its CancelledError could not be told from one of the calling task, which
        # often is being cancelled already, and still has a lease to revoke.
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _keep(self, lease: Lease) -> None:
        """Renew until the lease is lost; a failure of any other kind is a loss as well."""
        try:
            pause_s = lease.ttl_s / _RENEWALS_PER_TTL
            while True:
                await asyncio.sleep(min(pause_s, max(0.0, self._valid_until - self._clock())))
                renewed = await self._renew(lease)
                if not renewed and not self.is_valid():
                    break
                pause_s = lease.ttl_s / (_RENEWALS_PER_TTL if renewed else _RETRIES_PER_TTL)
        except LeaseExpired as error:
            _log.warning("the lease is lost: %s", error)
            self._lose()
        except Exception:  # not a cancellation: the holder gives the lease back by itself then
            self._lose()
            raise
        else:
            _log.warning("lease %d is lost: it could not be renewed in time", lease.id)
            self._lose()

    async def _renew(self, lease: Lease) -> bool:
        sent_at = self._clock()
        try:
            async with asyncio.timeout(self._valid_until - sent_at):
                await self._store.renew_lease(lease)
        except TimeoutError:
            return False
        except AWAY as error:
            _log.info("lease %d was not renewed yet: %s", lease.id, error)
            return False
        self._valid_until = sent_at + lease.ttl_s
        return True

    def _lose(self) -> None:
        self._valid_until = float("-inf")
        if self._on_loss is not None:
            self._on_loss()
        self.lost.set()
