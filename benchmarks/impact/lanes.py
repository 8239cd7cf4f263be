"""Does an exact search hold the others up, and does a search that nobody waits for end?

Two collections on one server. One client sends `exact` searches of the first in a loop, another one
approximate searches of the second. Phases alternate, with and without the first client, so that
what else the machine does meets both; the p99 of the second client in each phase with exact
searches is divided by that of the phase before. Then long exact searches are left by their caller,
by a deadline and by cancellation, and the server's CPU time is watched until it is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from annheal import AsyncClient
from annheal.errors import AnnhealError
from benchmarks.datasets.loading import INDEX_TIMEOUT_S
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.pairs import paired_ratio
from benchmarks.harness.report import (
    Column,
    Report,
    Requirement,
    Row,
    print_report,
    report_console,
)
from benchmarks.systems.servers import Server, serve

EXACT, APPROXIMATE = "scanned", "walked"
WALKED_ROWS_MAX = 20_000
REPEATS, SECONDS = 10, 5.0
RATIO_MAX = 1.5
IDLE_AFTER_MAX_MS = 50.0
LEFT_QUERIES = 1_000
"""Queries of the search that is left: seconds of work."""
LEFT_AFTER_S = 0.3
LOOK_S = 0.005
LOOKS_S = 1.0
BUSY_SHARE = 0.5
"""A look counts as busy when the server used more than this share of a core since the last one."""
UNTOUCHED_S = 600.0

COLUMNS = (
    Column("case", "case"),
    Column("searches", "searches"),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("ratio", "p99 ratio", 3),
    Column("ratio_low", "from", 3),
    Column("ratio_high", "to", 3),
    Column("exact_per_s", "exact/s", 1),
    Column("used_ms", "CPU ms before", 1),
    Column("idle_ms", "idle after ms", 1),
    Column("idle_ms_max", "at most", 1),
)


@dataclass(slots=True)
class Phases:
    """Milliseconds of every approximate search, by phase, and exact searches a second."""

    took_ms: list[list[float]] = field(default_factory=list)
    exact_per_s: list[float] = field(default_factory=list)

    def p99_ms(self) -> list[float]:
        """Return the 99th percentile of each phase."""
        return [float(np.quantile(phase, 0.99)) for phase in self.took_ms]

    def row(self, case: str) -> Row:
        """Return the row of the report."""
        every = np.concatenate(self.took_ms)
        return {
            "case": case,
            "searches": len(every),
            "p50_ms": float(np.quantile(every, 0.5)),
            "p99_ms": statistics.median(self.p99_ms()),
            "exact_per_s": statistics.median(self.exact_per_s),
        }


@dataclass(frozen=True, slots=True)
class Left:
    """How long the server was busy after a search was left, and its CPU time before, in ms."""

    busy_ms: float
    used_ms: float


class TwoClients:
    """A client of exact and one of approximate searches of two collections."""

    def __init__(self, server: Server, dataset: Dataset, *, k: int) -> None:
        self._server = server
        self._dataset = dataset
        self._k = k
        self._exact = AsyncClient(server.address, batch_searches=False)
        self._approximate = AsyncClient(server.address, batch_searches=False)

    async def load(self) -> None:
        """Fill both collections; only the one that is walked gets a graph."""
        rows = self._dataset.rows
        for name, count in ((EXACT, rows), (APPROXIMATE, min(rows, WALKED_ROWS_MAX))):
            await self._exact.create_collection(name, self._dataset.dimension, metric="cosine")
            await self._exact.upsert(
                name,
                self._dataset.ids[:count],
                self._dataset.vectors[:count],
                timeout_s=INDEX_TIMEOUT_S,
            )
            await self._exact.flush(name, timeout_s=INDEX_TIMEOUT_S)
        await self._exact.compact(APPROXIMATE, timeout_s=INDEX_TIMEOUT_S)

    async def close(self) -> None:
        """Close both clients."""
        await self._exact.close()
        await self._approximate.close()

    async def phase(self, phases: Phases, *, seconds: float, exact: bool) -> None:
        """Ask the second client's queries for so long, beside the first client's if `exact`."""
        asked = 0

        async def ask_exactly() -> None:
            nonlocal asked
            while True:
                query = self._query(asked)
                await self._exact.search(EXACT, query, k=self._k, exact=True)
                asked += 1

        beside = asyncio.create_task(ask_exactly()) if exact else None
        took_ms: list[float] = []
        ends_s = time.perf_counter() + seconds
        try:
            while (began_s := time.perf_counter()) < ends_s:
                query = self._query(len(took_ms))
                await self._approximate.search(APPROXIMATE, query, k=self._k)
                took_ms.append((time.perf_counter() - began_s) * 1e3)
        finally:
            if beside is not None:
                beside.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await beside
        phases.took_ms.append(took_ms)
        phases.exact_per_s.append(asked / seconds)

    async def leave(self, *, cancel: bool) -> Left:
        """Leave a long exact search; see how long the server stays busy after that."""
        queries = np.resize(self._dataset.queries, (LEFT_QUERIES, self._dataset.dimension))
        timeout_s = UNTOUCHED_S if cancel else LEFT_AFTER_S
        began_s, began_used_s = time.perf_counter(), self._server.thread_cpu_s()
        search = asyncio.create_task(
            self._exact.search_batch(EXACT, queries, k=self._k, exact=True, timeout_s=timeout_s)
        )
        await asyncio.sleep(LEFT_AFTER_S - (time.perf_counter() - began_s))
        if cancel:
            search.cancel()
        left_s = time.perf_counter()
        last_busy_s, looked_s, used_s = left_s, left_s, self._server.thread_cpu_s()
        before_s = used_s - began_used_s
        while looked_s - left_s < LOOKS_S:
            await asyncio.sleep(LOOK_S)
            now_s, now_used_s = time.perf_counter(), self._server.thread_cpu_s()
            if now_used_s - used_s > BUSY_SHARE * (now_s - looked_s):
                last_busy_s = now_s
            looked_s, used_s = now_s, now_used_s
        with contextlib.suppress(asyncio.CancelledError, AnnhealError):
            await search
        return Left((last_busy_s - left_s) * 1e3, before_s * 1e3)

    def _query(self, number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        query: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
        query = self._dataset.queries[number % len(self._dataset.queries)]
        return query


async def measure(dataset: Dataset, options: Options, report: Report) -> None:
    """Fill the report."""
    settings = {"compaction_automatic": "false"}
    async with serve("embedded", settings=settings) as server:
        clients = TwoClients(server, dataset, k=options.k)
        try:
            await clients.load()
            alone, beside = Phases(), Phases()
            for phases in (alone, beside):  # not counted: first searches map files and compile
                await clients.phase(Phases(), seconds=1.0, exact=phases is beside)
            for _ in range(options.repeats):
                await clients.phase(alone, seconds=options.seconds, exact=False)
                await clients.phase(beside, seconds=options.seconds, exact=True)
            ratio = paired_ratio(beside.p99_ms(), alone.p99_ms())
            report.add(**alone.row("alone"))
            report.add(
                **beside.row("beside exact"),
                ratio=ratio.median,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
            )
            report.requirements.append(
                Requirement(
                    f"p99 beside exact searches at most {RATIO_MAX:g} times that alone",
                    ratio.median <= RATIO_MAX,
                    f"{ratio.median:.2f} (95 % interval {ratio.low:.2f} to {ratio.high:.2f})",
                )
            )
            for cancel in (False, True):
                left = [await clients.leave(cancel=cancel) for _ in range(options.repeats)]
                idle_ms = [one.busy_ms for one in left]
                used_ms = statistics.median(one.used_ms for one in left)
                name = "cancelled" if cancel else "past its deadline"
                median_ms = statistics.median(idle_ms)
                report.add(case=name, idle_ms=median_ms, idle_ms_max=max(idle_ms), used_ms=used_ms)
                report.requirements.append(
                    Requirement(
                        f"a search {name} is off the CPU within {IDLE_AFTER_MAX_MS:g} ms",
                        median_ms <= IDLE_AFTER_MAX_MS and used_ms > 0.0,
                        f"{median_ms:.0f} ms (at most {max(idle_ms):.0f})",
                    )
                )
        finally:
            await clients.close()


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=REPEATS, seconds=SECONDS)
    dataset = load_dataset(options)
    report = Report("lanes", options, dataset)
    asyncio.run(measure(dataset, options, report))
    print_report(
        report, title="Exact beside approximate", columns=COLUMNS, console=report_console()
    )
    return 0 if all(requirement.holds for requirement in report.requirements) else 1


if __name__ == "__main__":
    sys.exit(main())
