"""What measuring recall costs a node that answers as fast as it can, with and without, in turns.

`off` samples and measures nothing; `measuring` keeps live queries at the default share and re-runs
them without a pause between two runs: the budget is used up all the time, which the default
interval does not do. Printed are queries per second and per CPU second, and, because other work on
the machine moves those more than the monitor does, the monitor's own share of the process's CPU.

    python benchmarks/recall_cost.py --base VECTORS.npy --queries QUERIES.npy
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.index import build_hnsw
from annheal.model.collection import Collection, IndexSettings, Metric, ModelSpec
from annheal.model.manifest import Tier
from annheal.model.recall import SelectivityBand
from annheal.model.search import SearchOptions, SearchRequest
from annheal.model.shard import ShardId
from annheal.segment import (
    BuildInfo,
    DeleteVector,
    Segment,
    SegmentRows,
    local_segment,
    write_segment,
)
from compactor.calibrate import measure_recall
from shard_node.ef_control import EfController
from shard_node.filter_cache import FilterCache
from shard_node.node import Node
from shard_node.offload import Offload
from shard_node.recall_monitor import MonitorSettings, RecallMonitor
from shard_node.recall_sampler import RecallSampler
from shard_node.settings import ShardNodeSettings
from shard_node.view import SegmentView, ShardView

ResultT = TypeVar("ResultT")
DEFAULTS = ShardNodeSettings("bench")
MODES = ("off", "measuring")
BATCH_QUERIES = 16
CALLERS = 4
SHARD = ShardId("c1", 0)
PROBES = 500
BUSY_INTERVAL_S = 0.01


@dataclass(slots=True)
class _Owned:
    """A shard with one segment that nothing changes."""

    collection: Collection
    view: ShardView
    id: ShardId = SHARD


class _Held:
    def __init__(self, owned: _Owned) -> None:
        self._owned = owned
        self.measured = False

    def get(self, shard: ShardId) -> _Owned | None:
        return self._owned

    def to_measure(self) -> dict[ShardId, _Owned]:
        return {SHARD: self._owned} if self.measured else {}


class _CountingOffload(Offload):
    """Adds up the CPU seconds of background work."""

    def __init__(self) -> None:
        super().__init__()
        self.background_cpu_s = 0.0
        self.slices = 0

    async def background(self, work: Callable[[], ResultT]) -> ResultT:
        def counted() -> ResultT:
            started_s = time.thread_time()
            try:
                return work()
            finally:
                self.background_cpu_s += time.thread_time() - started_s
                self.slices += 1

        return await super().background(counted)


class _CountingSampler(RecallSampler):
    """Adds up the seconds that noting queries takes."""

    note_s = 0.0

    def note(self, *args: Any) -> None:
        started_s = time.perf_counter()
        super().note(*args)
        self.note_s += time.perf_counter() - started_s


@dataclass(slots=True)
class Turns:
    """Queries per second and per CPU second of every turn of one mode, and all its CPU seconds."""

    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    queries: int = 0


def _load(path: Path) -> npt.NDArray[np.float32]:
    vectors = np.load(path).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors)


def _shard(base: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], root: Path) -> _Owned:
    model = ModelSpec("m", base.shape[1], Metric.COSINE)
    collection = Collection(id="c1", name="c", models=(model,), schema=(), shard_count=1)
    index = build_hnsw(base, metric=model.metric, settings=IndexSettings(), threads=2)
    curve = measure_recall(index, queries[:PROBES], k=10)
    rows = SegmentRows(
        ids=pa.array([str(n) for n in range(len(base))], type=pa.string()),
        sequences=np.zeros(len(base), dtype=np.int64),
        vectors=base,
        attributes=pa.RecordBatch.from_arrays([], names=[]),
        payloads=pa.nulls(len(base), pa.binary()),
    )
    entry = write_segment(
        root,
        segment_id="s1",
        tier=Tier.WARM,
        model=model,
        schema=(),
        rows=rows,
        created_at_s=0.0,
        index=index,
        build=BuildInfo(settings=IndexSettings(), generation=1, recall_curve=curve),
    )
    segment = Segment.open(local_segment(root, entry), entry)
    return _Owned(collection, ShardView((SegmentView(segment, DeleteVector.empty(len(base))),)))


def _node(owned: _Owned, offload: Offload, mode: str) -> tuple[Node, RecallMonitor, _Held]:
    held, filters = _Held(owned), FilterCache()
    monitor = RecallMonitor(
        held.to_measure,
        sampler=_CountingSampler(0.0 if mode == "off" else DEFAULTS.recall_sample_share),
        controller=EfController(),
        filters=filters,
        offload=offload,
        settings=MonitorSettings(interval_s=BUSY_INTERVAL_S, cpu_share=DEFAULTS.recall_cpu_share),
    )
    node = Node(
        held,  # type: ignore[arg-type]
        offload,
        node_id="bench",
        search_threads=2,
        filters=filters,
        monitor=monitor,
    )
    return node, monitor, held


async def _turn(node: Node, queries: npt.NDArray[np.float32], seconds: float, turns: Turns) -> None:
    answered = 0
    ends_s = time.perf_counter() + seconds
    rng = np.random.default_rng(0)

    async def ask() -> None:
        nonlocal answered
        while time.perf_counter() < ends_s:
            some = queries[rng.integers(0, len(queries), BATCH_QUERIES)]
            await node.search(SearchRequest("c1", (0,), some, SearchOptions(k=10)))
            answered += BATCH_QUERIES

    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(CALLERS)))
    cpu_s = time.process_time() - started_cpu_s
    turns.rates.append(answered / (time.perf_counter() - started_s))
    turns.cpu_rates.append(answered / cpu_s)
    turns.cpu_s += cpu_s
    turns.queries += answered


async def compare(
    owned: _Owned, queries: npt.NDArray[np.float32], *, rounds: int, seconds: float
) -> dict[str, Turns]:
    """Return the turns of each mode; who begins changes from round to round."""
    found = {mode: Turns() for mode in MODES}
    offload = _CountingOffload()
    nodes = {mode: _node(owned, offload, mode) for mode in MODES}
    _, monitor, held = nodes["measuring"]
    for mode in MODES:
        await _turn(nodes[mode][0], queries, seconds / 4, Turns())  # to warm up
    running = asyncio.create_task(monitor.run())
    assert isinstance(monitor.sampler, _CountingSampler)
    monitor.sampler.note_s = 0.0
    for number in range(rounds):
        for mode in MODES if number % 2 else reversed(MODES):
            held.measured = mode == "measuring"
            await _turn(nodes[mode][0], queries, seconds, found[mode])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    on = found["measuring"]
    print(
        f"monitor: {offload.slices} slices, {offload.background_cpu_s:.2f} CPU s of"
        f" {on.cpu_s:.2f}: {100 * offload.background_cpu_s / on.cpu_s:.2f} %;"
        f" noting {1e6 * monitor.sampler.note_s / (on.queries / BATCH_QUERIES):.1f} us a batch of"
        f" {BATCH_QUERIES}: {100 * monitor.sampler.note_s / on.cpu_s:.2f} %"
    )
    found_scale = monitor.controller.scale("s1", SelectivityBand.UNFILTERED)
    print(f"ef is {found_scale:.2f} times the curve's with monitoring")
    offload.close()
    return found


def main() -> None:
    """Print the rates and their ratios to `off` of the same round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="recall-cost-"))
    try:
        queries = _load(options.queries)
        owned = _shard(_load(options.base)[: options.rows], queries, root)
        found = asyncio.run(compare(owned, queries, rounds=options.rounds, seconds=options.seconds))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    off = found["off"]
    for mode, turns in found.items():
        wall = [a / b for a, b in zip(turns.rates, off.rates, strict=True)]
        cpu = [a / b for a, b in zip(turns.cpu_rates, off.cpu_rates, strict=True)]
        print(
            f"{mode:10} {statistics.median(turns.rates):8.0f} queries/s"
            f"  ratio {statistics.median(wall):.4f}"
            f"  {statistics.median(turns.cpu_rates):8.0f} queries/CPU-s"
            f"  ratio {statistics.median(cpu):.4f} (mean {statistics.fmean(cpu):.4f}"
            f" +- {statistics.stdev(cpu) / len(cpu) ** 0.5:.4f})"
        )


if __name__ == "__main__":
    main()
