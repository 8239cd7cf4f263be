"""Which coordinator leads: whoever holds the key `leader` with a lease that has not ended.

A leader stops by its own clock before the store can give the key to another (`LeaseKeeper`), and
whatever it commits names the revision of its own leader key, so a leader that was deposed without
noticing changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from annheal.errors import Conflict, UnknownOutcome
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import LEADER_KEY, coordinator_key
from annheal.metastore.lease_keeper import AWAY, LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import Compare, LeaseExpired, MetaStore, Put
from annheal.model.topology.shard import WorkerRegistration
from annheal.runtime.clock import Jitter, jitter
from annheal.runtime.logging import SparingLog
from annheal.runtime.tasks import TaskScope

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leadership:
    """A term of leading: `revision` is that of the leader key, which nobody else can have."""

    revision: int

    def guard(self) -> Compare:
        """Return the compare by which a commit fails once this term is over."""
        return Compare(LEADER_KEY, self.revision)


Lead = Callable[[Leadership], Awaitable[None]]


class Election:
    """Registers one coordinator and campaigns for it, for as long as `run` runs."""

    def __init__(
        self,
        store: MetaStore,
        registration: WorkerRegistration,
        *,
        lease_ttl_s: float,
        retry_s: float,
        jitter: Jitter = jitter,
    ) -> None:
        self._store = store
        self._registration = registration
        self._lease_ttl_s = lease_ttl_s
        self._retry_s = retry_s
        self._jitter = jitter
        self._mirror = Mirror(store, LEADER_KEY)
        self._leadership: Leadership | None = None
        self._sparing = SparingLog(_log)

    @property
    def leading(self) -> bool:
        """Whether this coordinator leads at this moment."""
        return self._leadership is not None

    async def start(self, scope: TaskScope) -> None:
        """Load who leads now and follow it with a task of `scope`."""
        await self._mirror.start_patiently()
        scope.start(self._mirror.run(), name="leader-mirror")

    async def run(self, lead: Lead) -> None:
        """Be registered, and run `lead` whenever this coordinator leads; ends only by cancellation.

        `lead` is cancelled when the term ends. When it fails with a retryable error (the store is
        away, a commit came too late) the term goes on with a new call; any other error is raised,
        after the lease was given back so that another coordinator takes over at once.
        """
        while True:
            try:
                async with LeaseKeeper(self._store, ttl_s=self._lease_ttl_s) as keeper:
                    await self._store.commit(
                        [
                            Put(
                                coordinator_key(self._registration.worker_id),
                                encode_value(self._registration),
                                lease_id=keeper.lease.id,
                            )
                        ]
                    )
                    await self._campaign(keeper, lead)
            except (*AWAY, LeaseExpired) as error:
                self._sparing.warning("not registered: %s; trying again", error.message)
            await asyncio.sleep(self._retry_s * (0.5 + self._jitter() / 2))

    async def _campaign(self, keeper: LeaseKeeper, lead: Lead) -> None:
        """Campaign and lead until the lease is lost."""
        value = encode_value(self._registration)
        while not keeper.lost.is_set():
            seen = self._mirror.version
            lease_id = keeper.lease.id
            try:
                revision = await self._store.commit(
                    [Put(LEADER_KEY, value, lease_id=lease_id)], compares=[Compare(LEADER_KEY, 0)]
                )
            except Conflict:
                await _first_of(keeper.lost.wait(), self._wait_vacant(seen))
                continue
            except UnknownOutcome:
                stored = await self._store.get(LEADER_KEY)
                if stored is None or stored.lease_id != lease_id:
                    continue
                revision = stored.mod_revision
            await self._lead(Leadership(revision), keeper, lead)

    async def _wait_vacant(self, seen: int) -> None:
        """Return when nobody leads as far as the mirror knows; it may be behind the store."""
        if self._mirror.version == seen and LEADER_KEY not in self._mirror.items:
            await _bounded(self._mirror.wait_change(seen), timeout_s=self._retry_s)
        while LEADER_KEY in self._mirror.items:
            await self._mirror.wait_change(self._mirror.version)

    async def _lead(self, term: Leadership, keeper: LeaseKeeper, lead: Lead) -> None:
        _log.info("%s leads (term %d)", self._registration.worker_id, term.revision)
        self._leadership = term
        try:
            while not keeper.lost.is_set() and not self._superseded(term):
                await _first_of(
                    keeper.lost.wait(), self._wait_superseded(term), self._lead_once(term, lead)
                )
        finally:
            self._leadership = None
            _log.info("%s no longer leads", self._registration.worker_id)

    async def _lead_once(self, term: Leadership, lead: Lead) -> None:
        try:
            await lead(term)
        except (*AWAY, Conflict) as error:
            _log.warning("leading was interrupted: %s; going on", error.message)
        await asyncio.sleep(self._retry_s)

    def _superseded(self, term: Leadership) -> bool:
        """Return whether the store shows the leader key after this term without it."""
        item = self._mirror.items.get(LEADER_KEY)
        if item is None:
            return self._mirror.revision > term.revision
        return item.mod_revision > term.revision

    async def _wait_superseded(self, term: Leadership) -> None:
        while not self._superseded(term):
            await self._mirror.wait_change(self._mirror.version)


async def _first_of(*work: Coroutine[Any, Any, object]) -> None:
    """Return (or raise) with the first that ends; the others are cancelled and awaited."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _bounded(work: Awaitable[object], *, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await work
    except TimeoutError:
        return
