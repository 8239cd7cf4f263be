"""Queries per second and latency at the same recall, beside FAISS in process on the same cores.

The callers live in one client process; the servers are processes of their own. Three ways to ask:
`unary` sends every query in a call of its own, `sdk` lets the SDK gather what its callers ask at
the same time, and `batch` puts 100 queries into every call.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
import numpy.typing as npt

from annheal import AsyncClient
from benchmarks.datasets.loading import COLLECTION, build_faiss, load, recall
from benchmarks.harness.callers import (
    WARM_UP_S,
    AsyncCall,
    Round,
    figures_of,
    run_tasks,
    run_threads,
)
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.systems.servers import ClusterUnavailable, serve

BATCH_QUERIES = 100
STYLES = ("unary", "sdk", "batch")
RECALL_TOLERANCE = 0.001
FAISS_EFS = (10, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)

COLUMNS = (
    Column("system", "system"),
    Column("style", "asked"),
    Column("callers", "callers"),
    Column("qps", "queries/s"),
    Column("p50_ms", "p50 ms", 2),
    Column("p95_ms", "p95 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("recall", "recall", 3),
    Column("ratio_to_faiss", "of FAISS", 2),
)

Key = tuple[str, int]


@dataclass(slots=True)
class Measured:
    """The rounds of one system by (style, callers), and the recall of its answers."""

    system: str
    recall: float
    rounds: dict[Key, list[Round]] = field(default_factory=dict)

    def add(self, key: Key, one: Round) -> None:
        """Keep a round."""
        self.rounds.setdefault(key, []).append(one)


def keys_of(options: Options) -> Iterator[Key]:
    """Yield every style with every number of callers."""
    for style in STYLES:
        for callers in options.callers:
            yield style, callers


async def measure_server(
    mode: str, dataset: Dataset, options: Options, truth: npt.NDArray[np.int64], say: Say
) -> Measured:
    """Load the data into a fresh deployment and measure it."""
    async with serve(mode) as server:
        async with AsyncClient(server.address) as client:
            say(f"annheal {mode}: loading {dataset.rows:,} rows")
            await load(client, dataset, compact=True)
            found = await _answers(client, dataset, options.k)
        measured = Measured(f"annheal {mode}", recall(found, truth, dataset.ids))
        async with (
            AsyncClient(server.address, batch_searches=False) as single,
            AsyncClient(server.address) as gathering,
        ):
            calls = _server_calls(single, gathering, dataset, options.k)
            for key in keys_of(options):
                await run_tasks(calls[key[0]], callers=key[1], seconds=WARM_UP_S)
            for number in range(options.repeats):
                say(f"annheal {mode}: round {number + 1} of {options.repeats}")
                for key in keys_of(options):
                    style, callers = key
                    one = await run_tasks(calls[style], callers=callers, seconds=options.seconds)
                    measured.add(key, one)
        return measured


def _server_calls(
    single: AsyncClient, gathering: AsyncClient, dataset: Dataset, k: int
) -> dict[str, AsyncCall]:
    queries, batches = dataset.queries, _batches(dataset.queries)

    async def unary(number: int) -> None:
        await single.search(COLLECTION, queries[number % len(queries)], k=k)

    async def sdk(number: int) -> None:
        await gathering.search(COLLECTION, queries[number % len(queries)], k=k)

    async def batch(number: int) -> None:
        await single.search_batch(COLLECTION, batches[number % len(batches)], k=k)

    return {"unary": unary, "sdk": sdk, "batch": batch}


async def _answers(client: AsyncClient, dataset: Dataset, k: int) -> list[list[str]]:
    found: list[list[str]] = []
    for start in range(0, len(dataset.queries), BATCH_QUERIES):
        part = dataset.queries[start : start + BATCH_QUERIES]
        found.extend((await client.search_batch(COLLECTION, part, k=k)).ids)
    return found


def measure_faiss(
    index: Any,
    dataset: Dataset,
    options: Options,
    truth: npt.NDArray[np.int64],
    wanted: float,
    say: Say,
) -> Measured:
    """Measure FAISS at the smallest ef whose recall is that of the servers.

    Single queries run in a thread each and use one core each; batches use all cores.
    """
    cores = len(os.sched_getaffinity(0))
    index.hnsw.efSearch, reached = _matching_ef(index, dataset, truth, wanted, options.k)
    measured = Measured(f"faiss ef {index.hnsw.efSearch}", reached)
    queries, batches = dataset.queries, _batches(dataset.queries)

    def single(number: int) -> None:
        row = number % len(queries)
        index.search(queries[row : row + 1], options.k)

    def batch(number: int) -> None:
        index.search(batches[number % len(batches)], options.k)

    styles: dict[str, tuple[Callable[[int], None], int]] = {
        "unary": (single, 1),
        "batch": (batch, cores),
    }
    for number in range(options.repeats):
        say(f"faiss: round {number + 1} of {options.repeats}")
        for style, (call, threads) in styles.items():
            for callers in options.callers:
                one = run_threads(
                    call,
                    callers=callers,
                    seconds=options.seconds,
                    prepare=lambda threads=threads: faiss.omp_set_num_threads(threads),  # type: ignore[misc]
                )
                measured.add((style, callers), one)
    return measured


def _matching_ef(
    index: Any, dataset: Dataset, truth: npt.NDArray[np.int64], wanted: float, k: int
) -> tuple[int, float]:
    reached = 0.0
    ef = FAISS_EFS[-1]
    for ef in FAISS_EFS:
        index.hnsw.efSearch = ef
        rows = index.search(dataset.queries, k)[1]
        same = (rows[:, :, None] == truth[:, None, :]).any(axis=2).sum()
        reached = float(same) / truth.size
        if reached >= wanted - RECALL_TOLERANCE:
            break
    return ef, reached


def _batches(queries: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Return the queries by hundreds, the first ones again where there are fewer."""
    count = max(1, len(queries) // BATCH_QUERIES)
    wrapped = np.resize(queries, (count * BATCH_QUERIES, queries.shape[1]))
    return [np.ascontiguousarray(part) for part in np.split(wrapped, count)]


def rows_of(measured: Measured, *, faiss_rounds: Measured) -> Iterator[Row]:
    """Yield the rows of the report; SDK-gathered calls are compared with FAISS's single ones."""
    for (style, callers), rounds in measured.rounds.items():
        per_call = BATCH_QUERIES if style == "batch" else 1
        figures = figures_of(rounds)
        base_key = ("batch" if style == "batch" else "unary", callers)
        base = figures_of(faiss_rounds.rounds[base_key])
        yield {
            "system": measured.system,
            "style": style,
            "callers": callers,
            "qps": figures.calls_per_s * per_call,
            "qps_min": figures.calls_per_s_min * per_call,
            "qps_max": figures.calls_per_s_max * per_call,
            "p50_ms": figures.p50_ms,
            "p95_ms": figures.p95_ms,
            "p99_ms": figures.p99_ms,
            "recall": measured.recall,
            "ratio_to_faiss": figures.calls_per_s / base.calls_per_s,
        }


Say = Callable[[str], None]


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "")
    console = report_console()
    dataset = load_dataset(options)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    truth = dataset.truth(options.k)
    servers: list[Measured] = []
    for mode in options.modes:
        try:
            servers.append(asyncio.run(measure_server(mode, dataset, options, truth, say)))
        except ClusterUnavailable as error:
            console.print(f"[yellow]no cluster: {error}[/yellow]")
    say("faiss: building")
    index, _ = build_faiss(dataset)
    wanted = max((one.recall for one in servers), default=0.95)
    baseline = measure_faiss(index, dataset, options, truth, wanted, say)
    report = Report("search", options, dataset)
    for measured in (baseline, *servers):
        for row in rows_of(measured, faiss_rounds=baseline):
            report.add(**row)
    print_report(report, title="Search", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
