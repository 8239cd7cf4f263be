"""A prefix of the metadata store, kept up to date in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from types import MappingProxyType

from annheal.errors import DeadlineExceeded, Unavailable
from annheal.metastore.protocol import Change, KeyValue, MetaStore, Snapshot, WatchCompacted
from annheal.runtime.logging import SparingLog

_log = logging.getLogger(__name__)

RETRY_S = 0.5


class Mirror:
    """The keys under one prefix as of `revision`: listed once, then followed by a watch.

    `run` follows for ever and belongs in a task group::

        await mirror.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(mirror.run())

    While the store is away the mirror keeps its last state. When changes were compacted before
    they arrived, it lists again; so a reader may miss states in between, never the last one.
    """

    def __init__(self, store: MetaStore, prefix: str, *, retry_s: float = RETRY_S) -> None:
        self._store = store
        self._prefix = prefix
        self._retry_s = retry_s
        self._items: dict[str, KeyValue] = {}
        self._view = MappingProxyType(self._items)
        self._revision: int | None = None
        self._version = 0
        self._changed = asyncio.Event()
        self._sparing = SparingLog(_log)

    @property
    def items(self) -> Mapping[str, KeyValue]:
        """The keys and values: a live, read-only view that changes only between awaits."""
        return self._view

    @property
    def revision(self) -> int:
        """The revision of the last change taken over; 0 before `start`."""
        return self._revision or 0

    @property
    def started(self) -> bool:
        """Whether the first list has arrived."""
        return self._revision is not None

    @property
    def version(self) -> int:
        """A counter that grows by one with every batch of changes taken over."""
        return self._version

    async def start(self) -> None:
        """Load the present state, once; raises `Unavailable` when the store is away."""
        if self._revision is None:
            self._replace(await self._store.list(self._prefix))

    async def start_patiently(self) -> None:
        """As `start`, but wait while the store is away, and say so."""
        while True:
            try:
                await self.start()
            except Unavailable as error:
                self._sparing.warning(
                    "waiting for the metadata store to list %r: %s", self._prefix, error
                )
                await asyncio.sleep(self._retry_s)
            else:
                return

    async def run(self) -> None:
        """Follow the store until cancelled; starts the mirror when that was not done."""
        while True:
            try:
                await self.start()
                await self._follow()
            except WatchCompacted:
                _log.info("changes under %r were compacted; listing again", self._prefix)
                await self._relist()
            except Unavailable as error:
                self._sparing.warning(
                    "the mirror of %r waits for the metadata store: %s", self._prefix, error
                )
                await asyncio.sleep(self._retry_s)

    async def wait_change(self, after_version: int) -> int:
        """Return the version as soon as it is greater than `after_version`."""
        while self._version <= after_version:
            await self._changed.wait()
        return self._version

    async def wait_for(
        self, predicate: Callable[[Mapping[str, KeyValue]], bool], *, timeout_s: float
    ) -> None:
        """Return when `predicate(items)` holds; raises `DeadlineExceeded` after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self._view):
                    await self.wait_change(self._version)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the keys under {self._prefix!r} did not become as wanted in {timeout_s} s"
            ) from error

    async def _follow(self) -> None:
        changes = self._store.watch(self._prefix, after_revision=self.revision)
        async with aclosing(changes):
            async for batch in changes:
                self._apply(batch)

    async def _relist(self) -> None:
        while True:
            try:
                self._replace(await self._store.list(self._prefix))
            except Unavailable as error:
                self._sparing.warning(
                    "the mirror of %r waits for the metadata store: %s", self._prefix, error
                )
                await asyncio.sleep(self._retry_s)
            else:
                return

    def _replace(self, snapshot: Snapshot) -> None:
        self._items.clear()
        self._items.update((item.key, item) for item in snapshot.items)
        self._revision = snapshot.revision
        self._notify()

    def _apply(self, batch: Iterable[Change]) -> None:
        for change in batch:
            if change.value is None:
                self._items.pop(change.key, None)
            else:
                self._items[change.key] = KeyValue(
                    key=change.key,
                    value=change.value,
                    mod_revision=change.mod_revision,
                    lease_id=change.lease_id,
                )
            self._revision = change.mod_revision
        self._notify()

    def _notify(self) -> None:
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
