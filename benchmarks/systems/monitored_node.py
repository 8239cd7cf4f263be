"""A node that answers as fast as it can, with and without a monitor of its recall beside it."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from annheal.model.collection import Collection
from annheal.model.search import SearchOptions, SearchRequest
from annheal.model.topology.shard import ShardId
from annheal.runtime.background import take_nothing
from annheal.runtime.host.disk import DiskWatch
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.node import QUERIES_PER_THREAD, Node
from annheal.shard_node.recall.ef_control import EfController
from annheal.shard_node.recall.monitor import MonitorSettings, RecallMonitor
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.stratum import JUDGING_QUERIES
from annheal.shard_node.rows.view import ShardView
from annheal.shard_node.search.engine import SearchEngine
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.settings import ShardNodeSettings
from benchmarks.harness.dataset import Dataset
from benchmarks.harness.options import Options
from benchmarks.systems.node_segment import NodeSegment

ResultT = TypeVar("ResultT")
DEFAULTS = ShardNodeSettings("bench")
OFF, ON = "off", "on"
CALLERS = 4
WARM_UP_CPU_S = 15.0
"""At most, until the reservoir is full."""
CALIBRATION_SLICES = 8
TAGS = ("usual", "rare")
RARE_SHARE = 0.05
"""Of the calls; every query has one of the tags, so that noting costs what it can cost."""
PAUSE_S = 0.001
"""Between two measurements, so that one without queries does not keep the event loop."""


@dataclass(frozen=True, slots=True)
class _Owned:
    """A shard with one segment that nothing changes."""

    collection: Collection
    serving_view: ShardView
    id: ShardId
    epoch: int = 1


class _Held:
    def __init__(self, owned: _Owned) -> None:
        self._owned = owned

    def get(self, shard: ShardId) -> _Owned:
        return self._owned

    def all(self) -> Mapping[ShardId, _Owned]:
        return {self._owned.id: self._owned}


class GatedLanes(Lanes):
    """Lets as many slices of the monitor's work begin as were allowed, and notes their CPU seconds.

    It takes the place of the monitor's rests, which would go on in the turns without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slices_cpu_s: list[float] = []
        self._permits = asyncio.Semaphore(0)
        self._wanted = 0
        self._ended = asyncio.Condition()

    def allow(self, slices: int) -> None:
        """Let so many more slices begin."""
        self._wanted += slices
        for _ in range(slices):
            self._permits.release()

    def forget(self) -> None:
        """Forget the slices that have ended; call it when all have."""
        self._wanted = 0
        self.slices_cpu_s.clear()

    async def finish(self) -> None:
        """Return when all slices that were allowed have ended."""
        async with self._ended:
            await self._ended.wait_for(lambda: len(self.slices_cpu_s) >= self._wanted)

    async def monitor(self, work: Callable[[], ResultT], *, collection_id: str = "") -> ResultT:
        """Run a slice when its turn comes."""
        await self._permits.acquire()

        def counted() -> tuple[ResultT, float]:
            started_s = time.thread_time()
            return work(), time.thread_time() - started_s

        result, cpu_s = await super().monitor(counted, collection_id=collection_id)
        async with self._ended:
            self.slices_cpu_s.append(cpu_s)
            self._ended.notify_all()
        return result


class _CountingSampler(RecallSampler):
    """Adds up the CPU seconds that noting queries takes."""

    note_cpu_s = 0.0

    def note(self, *args: Any) -> None:
        started_s = time.thread_time()
        super().note(*args)
        self.note_cpu_s += time.thread_time() - started_s


@dataclass(slots=True)
class Turns:
    """Queries by CPU second of every turn of one mode, and all its queries and seconds."""

    cpu_rates: list[float] = field(default_factory=list)
    queries: int = 0
    cpu_s: float = 0.0
    took_s: float = 0.0

    @property
    def cores(self) -> float:
        """The cores that the process kept busy; at least one, where others took them away."""
        return max(1.0, self.cpu_s / self.took_s)


class MonitoredNode:
    """Two nodes over the same segment; one of them measures recall. Both use the same ef."""

    def __init__(self, segment: NodeSegment, dataset: Dataset, options: Options) -> None:
        self.lanes = GatedLanes()
        self.controller = EfController()
        self.sampler = _CountingSampler(DEFAULTS.recall_sample_share)
        self._shard = ShardId(segment.collection.id, 0)
        self._owned = _Owned(segment.collection, segment.view, self._shard)
        self._queries = dataset.queries
        self._k = options.k
        self._cores = len(os.sched_getaffinity(0))
        self.monitor = self._monitor(self.sampler)
        self._nodes = {
            OFF: self._node(self._monitor(RecallSampler(0.0))),
            ON: self._node(self.monitor),
        }

    def _monitor(self, sampler: RecallSampler) -> RecallMonitor:
        return RecallMonitor(
            _Held(self._owned).all,
            sampler=sampler,
            controller=self.controller,
            filters=FilterCache(),
            lanes=self.lanes,
            settings=MonitorSettings(cpu_share=1.0),
        )

    def _node(self, monitor: RecallMonitor) -> Node:
        return Node(
            _Held(self._owned),  # type: ignore[arg-type]
            self.lanes,
            node_id="bench",
            engine=SearchEngine(cores=self._cores, exact_nice=0, offer=take_nothing),
            monitor=monitor,
            stores=None,  # type: ignore[arg-type]  # only health checks ask for them
            disks=DiskWatch([], reserve_bytes=0, process="bench"),
        )

    async def turn(self, mode: str, turns: Turns, *, cpu_s: float, slices: int) -> None:
        """Ask until the process has used `cpu_s`, and until the monitor's slices have ended."""
        answered = 0
        rng = np.random.default_rng(0)
        batch = QUERIES_PER_THREAD * self._cores
        self.lanes.allow(slices)
        started_s, started_cpu_s = time.perf_counter(), time.process_time()

        async def ask() -> None:
            nonlocal answered
            while time.process_time() - started_cpu_s < cpu_s:
                some = self._queries[rng.integers(0, len(self._queries), batch)]
                tag = TAGS[int(rng.random() < RARE_SHARE)]
                request = SearchRequest(
                    self._shard.collection_id, (0,), some, SearchOptions(k=self._k, tag=tag)
                )
                await self._nodes[mode].search(request)
                answered += batch

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
        await self.lanes.finish()
        used_cpu_s = time.process_time() - started_cpu_s
        turns.cpu_rates.append(answered / used_cpu_s)
        turns.queries += answered
        turns.cpu_s += used_cpu_s
        turns.took_s += time.perf_counter() - started_s

    async def keep_measuring(self) -> None:
        """Measure again and again, whether it is due or not, as fast as slices are allowed."""
        while True:
            await asyncio.sleep(PAUSE_S)
            await self.monitor.measure(self._shard)

    async def warm_up(self, *, seconds: float) -> float:
        """Fill the reservoir and return the CPU seconds of one slice of work."""
        await self.turn(OFF, Turns(), cpu_s=seconds, slices=0)
        used = Turns()
        while used.cpu_s < WARM_UP_CPU_S:
            await self.turn(ON, used, cpu_s=seconds, slices=0)
            if len(self.sampler.sample(self._shard.collection_id)) >= JUDGING_QUERIES:
                break
        await self.turn(ON, Turns(), cpu_s=seconds, slices=CALIBRATION_SLICES)
        return statistics.median(self.lanes.slices_cpu_s)
