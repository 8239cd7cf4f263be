"""The lanes of a node: one for each kind of work that must not run on the event loop.

A lane's threads do nothing else, so a write never waits for a search, a search never waits for a
shard that is opened, and approximate searches do not wait for exact ones. Collections share each
lane fairly (`annheal.runtime.lane`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import TypeVar

from annheal.runtime.deadline import Deadline
from annheal.runtime.lane import Lane, LaneLimits, LaneState, Work

ResultT = TypeVar("ResultT")

SEARCHES_WAITING_MAX = 256
"""Batches of queries that may wait in each of the two search lanes."""
READS_WAITING_MAX = 1_024
COLLECTION_SHARE = 0.5
"""Of each of these queues, one collection may fill so much."""
CORES_PER_SEARCH = 4
"""One search at a time for so many cores: a batch of queries uses several by itself."""
SEARCHES_OPEN_MAX = 4
"""Searches begun for each that may run, in a search lane: the others sleep between two slices."""
READS_AT_ONCE = 2
MAINTENANCE_AT_ONCE = 2
EXACT_NICE = 10
"""Exact searches take what the rest leaves of the cores, as builds of a compactor do."""


class LaneName(StrEnum):
    """Kinds of work.

    APPROXIMATE and EXACT searches; READ: by id, counts, pages of scans; CHANGE: short changes of a
    served shard's rows; MAINTENANCE: opening shards, replaying their logs, writing and loading
    segments; MONITOR: measuring recall and costs, making codes.
    """

    APPROXIMATE = "approximate"
    EXACT = "exact"
    READ = "read"
    CHANGE = "change"
    MAINTENANCE = "maintenance"
    MONITOR = "monitor"


def plan_lanes(cores: int) -> dict[LaneName, LaneLimits]:
    """Return the limits of every lane on a machine of `cores`.

    CHANGE, MAINTENANCE and MONITOR have no limit of what waits, because a refusal half-way would
    cost a shard: each shard asks for one change and one maintenance at a time (`LOADS_AT_ONCE`
    loads while it is opened), the monitor for one measurement.
    """
    searches = max(1, cores // CORES_PER_SEARCH)
    changes = max(1, cores // 2)

    def search(*, nice: int) -> LaneLimits:
        return LaneLimits(
            searches,
            SEARCHES_OPEN_MAX * searches,
            SEARCHES_WAITING_MAX,
            int(COLLECTION_SHARE * SEARCHES_WAITING_MAX),
            nice,
        )

    return {
        LaneName.APPROXIMATE: search(nice=0),
        LaneName.EXACT: search(nice=EXACT_NICE),
        LaneName.READ: LaneLimits(
            READS_AT_ONCE,
            2 * READS_AT_ONCE,
            READS_WAITING_MAX,
            int(COLLECTION_SHARE * READS_WAITING_MAX),
        ),
        LaneName.CHANGE: LaneLimits(changes, 2 * changes),
        LaneName.MAINTENANCE: LaneLimits(MAINTENANCE_AT_ONCE, MAINTENANCE_AT_ONCE),
        LaneName.MONITOR: LaneLimits(1, 1),
    }


def _unseen(lane: str, waited_s: float) -> None:
    """Note nothing."""


class Lanes:
    """Runs work of every kind; used on the event loop.

    `cores` is the number of cores that the node may use (0: all); `on_wait` is told the lane and
    the seconds that each piece of work waited there, from any thread.
    """

    def __init__(self, *, cores: int = 0, on_wait: Callable[[str, float], None] = _unseen) -> None:
        self.cores = cores or os.cpu_count() or 1
        self._lanes: dict[LaneName, Lane] = {}
        for name, limits in plan_lanes(self.cores).items():
            first = self._lanes[LaneName.APPROXIMATE] if name is LaneName.EXACT else None
            self._lanes[name] = Lane(
                name.value, limits, gives_way_to=first, on_wait=partial(on_wait, name.value)
            )

    async def search(
        self,
        work: Work[ResultT],
        *,
        collection_id: str,
        exact: bool = False,
        deadline: Deadline | None = None,
    ) -> ResultT:
        """Run a search; it ends at its next yield point when the caller goes, or at `deadline`."""
        lane = self._lanes[LaneName.EXACT if exact else LaneName.APPROXIMATE]
        return await lane.run(work, tenant=collection_id, deadline=deadline)

    async def read(self, work: Work[ResultT], *, collection_id: str) -> ResultT:
        """Run a read that is no search; it ends at its next yield point when the caller goes."""
        return await self._lanes[LaneName.READ].run(work, tenant=collection_id)

    async def change(self, work: Work[ResultT], *, collection_id: str) -> ResultT:
        """Run a short change of a served shard's rows.

        A cancelled caller holds on until the work has ended: it keeps the lock under which the
        rows may be changed.
        """
        return await self._lanes[LaneName.CHANGE].run_to_end(work, tenant=collection_id)

    async def maintenance(self, work: Callable[[], ResultT], *, collection_id: str) -> ResultT:
        """Run something long for a shard: load, replay or write rows that no search sees yet."""
        lane = self._lanes[LaneName.MAINTENANCE]
        return await lane.run(lambda _: work(), tenant=collection_id)

    async def replay(self, work: Callable[[], ResultT], *, collection_id: str) -> ResultT:
        """Apply a log object to a shard that is being opened; as `change` for a cancelled caller.

        In the lane of maintenance: opening a shard takes nothing from the writes of others.
        """
        lane = self._lanes[LaneName.MAINTENANCE]
        return await lane.run_to_end(lambda _: work(), tenant=collection_id)

    async def monitor(self, work: Callable[[], ResultT], *, collection_id: str = "") -> ResultT:
        """Run a measurement of recall."""
        return await self._lanes[LaneName.MONITOR].run(lambda _: work(), tenant=collection_id)

    async def prepare(self, work: Work[None]) -> None:
        """Run something that later searches profit from; it ends when the caller goes."""
        await self._lanes[LaneName.MONITOR].run(work, tenant="")

    def states(self) -> Mapping[LaneName, LaneState]:
        """Return how every lane is doing."""
        return {name: lane.state() for name, lane in self._lanes.items()}

    def close(self) -> None:
        """Take no further work and end the threads; what was taken is finished."""
        for lane in self._lanes.values():
            lane.close()
