"""The two stores that a process depends on: watched all the time, probed when somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Final

from annheal.errors import AlreadyExists, AnnhealError, NotFound
from annheal.metastore.protocol import MetaStore
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.objectstore.own import OwnObjects
from annheal.objectstore.protocol import ObjectStore
from annheal.objectstore.watched import WatchedMetaStore, WatchedObjectStore
from annheal.runtime.clock import Clock, monotonic_s, wall_s
from annheal.runtime.metrics import Family, Metrics
from annheal.runtime.part_tracker import PartTracker
from annheal.runtime.tasks import TaskScope
from annheal.shards.object_keys import health_key

PROBE_ANSWER_S: Final = 3.0
"""A store that has not answered a probe for so long counts as failing."""
PROBE_FRESH_S: Final = 2.0
"""A probe that ended less than this ago is not repeated, however many ask."""
_META_KEY: Final = "health"
_BODY: Final = b"annheal health probe\n"


class StoreWatch:
    """`meta` and `objects`, to be used in place of the stores that were given.

    Every call through them is noted. `look` also probes: it reads a key of the metadata store, and
    writes, reads and deletes one small object. A probe that hangs is waited for `PROBE_ANSWER_S`
    and not started again until it has ended, so that it holds one request of a store at most.

    Args:
        process: the name under which this process reports.
        meta: the metadata store.
        objects: the object store.
        scope: owns the probes under way.
        clock: seconds that never go back.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        process: str,
        meta: MetaStore,
        objects: ObjectStore,
        *,
        scope: TaskScope,
        clock: Clock = monotonic_s,
        wall_clock: Clock = wall_s,
    ) -> None:
        self._metadata = PartTracker(PartKind.METADATA, process=process, wall_clock=wall_clock)
        self._reads = PartTracker(PartKind.OBJECT_READS, process=process, wall_clock=wall_clock)
        self._writes = PartTracker(PartKind.OBJECT_WRITES, process=process, wall_clock=wall_clock)
        self._store = objects
        self.meta: MetaStore = WatchedMetaStore(meta, tracker=self._metadata)
        self.objects: ObjectStore = WatchedObjectStore(
            objects, reads=self._reads, writes=self._writes
        )
        self._key = health_key(process)
        self._probes = tuple(
            _Probe(ask, tracker, scope, name=str(tracker.health.kind), clocks=(clock, wall_clock))
            for ask, tracker in (
                (self._ask_metadata, self._metadata),
                (self._write, self._writes),
                (self._read, self._reads),
            )
        )

    @property
    def parts(self) -> tuple[PartHealth, ...]:
        """What the calls so far say; costs nothing."""
        foreign = self._store.foreign if isinstance(self._store, OwnObjects) else ""
        reads = replace(self._reads.health, note=foreign)
        return self._metadata.health, self._writes.health, reads

    @property
    def writable(self) -> bool:
        """Whether the object store takes writes, as far as is known."""
        return self._writes.health.works

    @property
    def readable(self) -> bool:
        """Whether the object store answers reads, as far as is known."""
        return self._reads.health.works

    async def look(self) -> tuple[PartHealth, ...]:
        """Probe every store, side by side, for at most `PROBE_ANSWER_S`; return what is known."""
        await asyncio.gather(*(probe.look() for probe in self._probes))
        return self.parts

    def register(self, metrics: Metrics) -> None:
        """Report the stores whenever somebody scrapes; call inside the event loop."""

        async def report() -> Iterable[Family]:
            return self.families()

        metrics.add_report(report)

    def families(self) -> list[Family]:
        """Return since when which store fails, in seconds since the epoch, 0 while it works."""
        objects = Family(
            "annheal_object_store_failing_since_seconds",
            "Unix time since which calls to the object store fail; 0 while they succeed.",
            ("operation",),
        )
        objects.add(self._writes.health.failing_since_s, "write")
        objects.add(self._reads.health.failing_since_s, "read")
        metadata = Family(
            "annheal_metadata_store_failing_since_seconds",
            "Unix time since which the metadata store is away; 0 while it answers.",
        )
        metadata.add(self._metadata.health.failing_since_s)
        return [objects, metadata]

    async def _ask_metadata(self) -> None:
        await self.meta.get(_META_KEY)

    async def _write(self) -> None:
        await self.objects.delete([self._key])  # of a probe that did not come to its end
        await self.objects.put_if_absent(self._key, _BODY)
        await self.objects.delete([self._key])

    async def _read(self) -> None:
        await self.objects.get(self._key)


class _Probe:
    """One question to one store; at most one is under way."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        tracker: PartTracker,
        scope: TaskScope,
        *,
        name: str,
        clocks: tuple[Clock, Clock],
    ) -> None:
        self._clock, self._wall_clock = clocks
        self._ask = ask
        self._tracker = tracker
        self._scope = scope
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._ended_s = float("-inf")

    async def look(self) -> None:
        """Ask, or wait for who asks already; note a failure when no answer comes in time."""
        if self._task is None or self._task.done():
            if self._clock() - self._ended_s < PROBE_FRESH_S or self._scope.closed:
                return
            self._began_s = self._wall_clock()
            self._task = self._scope.start(self._run(), name=f"probe-{self._name}")
        await asyncio.wait({self._task}, timeout=PROBE_ANSWER_S)
        # What a call failed with says more than that this one was not answered.
        if not self._task.done() and self._tracker.health.works:
            waited_s = self._wall_clock() - self._began_s
            self._tracker.failed(f"no answer for {waited_s:.1f} s", since_s=self._began_s)

    async def _run(self) -> None:
        try:
            await self._ask()
        except (AlreadyExists, NotFound):
            pass  # an answer
        except AnnhealError as error:
            self._tracker.failed(error)
        self._ended_s = self._clock()
