"""What callers feel of a compaction: latency of queries with and without one, at the same load.

The roles are processes of their own, the compactor with one thread. Queries are asked and rows are
written at fixed rates; a compaction of everything is asked for, and after it a while passes
without one, again and again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from annheal import AsyncClient
from annheal.errors import AnnhealError
from annheal.model.topology.task import TaskPhase
from benchmarks.datasets.loading import COLLECTION, load
from benchmarks.harness.callers import run_at_rate
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Requirement, Row, print_report, report_console
from benchmarks.systems.servers import serve

SETTINGS = {"compaction_automatic": "false", "threads": "1"}
QUERIES_PER_S = 50.0
WRITES_PER_S = 5.0
WRITE_ROWS = 20
P99_RATIO_MAX = 2.0
WITHOUT, DURING = "without compaction", "during compaction"
COLUMNS = (
    Column("phase", "phase"),
    Column("queries", "queries"),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("max_ms", "slowest ms", 1),
    Column("ratio", "p99 ratio", 2),
    Column("writes", "writes"),
    Column("write_p50_ms", "write p50", 2),
    Column("write_p99_ms", "write p99", 2),
    Column("failed", "failed"),
    Column("seconds", "seconds", 1),
    Column("compactions", "tasks"),
)


@dataclass(slots=True)
class Phase:
    """What callers saw in all stretches of one kind."""

    query_ms: list[float] = field(default_factory=list)
    write_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    compactions: int = 0


class Load:
    """Callers at fixed rates."""

    def __init__(self, client: AsyncClient, dataset: Dataset, options: Options) -> None:
        self._client = client
        self._dataset = dataset
        self._k = options.k
        self._rng = np.random.default_rng(0)

    @asynccontextmanager
    async def into(self, phase: Phase) -> AsyncIterator[None]:
        """Ask and write for the length of the block, and add what was seen to `phase`."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def query(number: int) -> None:
            queries = self._dataset.queries
            try:
                await self._client.search(COLLECTION, queries[number % len(queries)], k=self._k)
            except AnnhealError as error:
                phase.failures.append(f"query: {error.message}")

        async def write(_: int) -> None:
            try:
                await self._write()
            except AnnhealError as error:
                phase.failures.append(f"write: {error.message}")

        async with asyncio.TaskGroup() as group:
            for call, rate, took_ms in (
                (query, QUERIES_PER_S, phase.query_ms),
                (write, WRITES_PER_S, phase.write_ms),
            ):
                group.create_task(run_at_rate(call, rate=rate, until=stop, took_ms=took_ms))
            try:
                yield
            finally:
                stop.set()
        phase.seconds += loop.time() - began_s

    async def _write(self) -> None:
        """Give some records the vectors of others."""
        data = self._dataset
        rows = self._rng.choice(data.rows, WRITE_ROWS, replace=False)
        others = self._rng.permutation(rows)
        await self._client.upsert(
            COLLECTION,
            [data.ids[row] for row in rows],
            data.vectors[others],
            attributes=data.attributes.take(others),
            payloads=data.payloads and [data.payloads[row] for row in others],
        )


async def measure(
    dataset: Dataset, options: Options, say: Callable[[str], None]
) -> tuple[Phase, Phase]:
    """Return what callers saw without and during compactions."""
    without, during = Phase(), Phase()
    async with (
        serve("roles", settings=SETTINGS) as server,
        AsyncClient(server.address, batch_searches=False) as client,
    ):
        say(f"loading {dataset.rows:,} rows")
        await load(client, dataset, compact=True)
        callers = Load(client, dataset, options)
        async with callers.into(Phase()):  # warm-up, and rows to be merged
            await asyncio.sleep(options.seconds)
        for number in range(options.repeats):
            say(f"round {number + 1} of {options.repeats}")
            async with callers.into(without):
                await asyncio.sleep(options.seconds)
            async with callers.into(during):
                tasks = await client.compact(COLLECTION, full=True)
            lost = [task for task in tasks if task.phase is not TaskPhase.PUBLISHED]
            if lost or not tasks:
                raise RuntimeError(f"no compaction, or one that came to nothing: {lost}")
            during.compactions += len(tasks)
    return without, during


def row_of(name: str, phase: Phase, *, ratio: float) -> Row:
    """Return the row of the report."""
    return {
        "phase": name,
        "queries": len(phase.query_ms),
        "p50_ms": float(np.quantile(phase.query_ms, 0.5)),
        "p99_ms": float(np.quantile(phase.query_ms, 0.99)),
        "max_ms": max(phase.query_ms),
        "ratio": ratio,
        "writes": len(phase.write_ms),
        "write_p50_ms": float(np.quantile(phase.write_ms, 0.5)),
        "write_p99_ms": float(np.quantile(phase.write_ms, 0.99)),
        "failed": len(phase.failures),
        "seconds": phase.seconds,
        "compactions": phase.compactions,
    }


def check(rows: Sequence[Row]) -> list[Requirement]:
    """Return what is required, and whether it holds."""
    ratio = next(row["ratio"] for row in rows if row["phase"] == DURING)
    failed = sum(row["failed"] for row in rows)
    return [
        Requirement(
            f"p99 during compaction <= {P99_RATIO_MAX} times that without",
            ratio <= P99_RATIO_MAX,
            f"{ratio:.2f} times",
        ),
        Requirement("no query or write failed", failed == 0, f"{failed} failed"),
    ]


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", seconds=10.0)
    console = report_console()
    dataset = load_dataset(options)
    report = Report("compaction_impact", options, dataset)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    without, during = asyncio.run(measure(dataset, options, say))
    base = float(np.quantile(without.query_ms, 0.99))
    for name, phase in ((WITHOUT, without), (DURING, during)):
        report.add(**row_of(name, phase, ratio=float(np.quantile(phase.query_ms, 0.99)) / base))
        for failure in phase.failures[:3]:
            say(f"{name}: {failure}")
    report.requirements = check(report.rows)
    print_report(report, title="Impact of compaction", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
