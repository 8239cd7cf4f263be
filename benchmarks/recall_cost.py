"""What measuring recall costs a node that answers as fast as it can: three ways, turn by turn.

`off` samples and measures nothing, `sampling` keeps live queries at the default share, `measuring`
re-runs them as well, without a pause between two runs: the budget is used up all the time, which
the default interval does not do. Queries per second of the wall clock and of the process's CPU.

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
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.index import build_hnsw
from annheal.model.collection import Collection, IndexSettings, Metric, ModelSpec
from annheal.model.manifest import Tier
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

DEFAULTS = ShardNodeSettings("bench")
MODES = ("off", "sampling", "measuring")
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
        self.held = {SHARD: owned}

    def get(self, shard: ShardId) -> _Owned | None:
        return self._owned


@dataclass(slots=True)
class Turns:
    """Answers, wall seconds and CPU seconds of every turn of one mode."""

    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)


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


def _node(owned: _Owned, offload: Offload, mode: str) -> tuple[Node, RecallMonitor]:
    held, filters = _Held(owned), FilterCache()
    monitor = RecallMonitor(
        lambda: held.held,
        sampler=RecallSampler(0.0 if mode == "off" else DEFAULTS.recall_sample_share),
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
    return node, monitor


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
    turns.rates.append(answered / (time.perf_counter() - started_s))
    turns.cpu_rates.append(answered / (time.process_time() - started_cpu_s))


async def compare(
    owned: _Owned, queries: npt.NDArray[np.float32], *, rounds: int, seconds: float
) -> dict[str, Turns]:
    """Return the turns of each mode; the modes take turns, in a new order every round."""
    found = {mode: Turns() for mode in MODES}
    offload = Offload()
    nodes = {mode: _node(owned, offload, mode) for mode in MODES}
    for number in range(rounds + 1):
        turns = {mode: Turns() for mode in MODES} if number == 0 else found  # round 0 warms up
        for place in range(len(MODES)):
            mode = MODES[(place + number) % len(MODES)]
            node, monitor = nodes[mode]
            running = None
            if mode == "measuring":
                running = asyncio.create_task(monitor.run())
            await _turn(node, queries, seconds, turns[mode])
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    for result in nodes["measuring"][1].recall():
        for shard in result.shards:
            print("measured:", shard.band.value, shard.estimate)
    offload.close()
    return found


def main() -> None:
    """Print the rates and their ratios to `off` of the same round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0)
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
