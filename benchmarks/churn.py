"""An index under a month of churn: Annheal that heals, Annheal that does not, and two libraries.

Every cycle deletes a tenth of the records that live and upserts as many, half of them under new
ids, while queries are asked. Then every system is measured at rest: recall against exact answers,
latency, vectors compared, memory and disk. In the end the records that live are loaded into a
fresh server for comparison, and what Annheal must hold is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
from rich.console import Console

from benchmarks.datasets.population import Change, Churn, Population, Truth
from benchmarks.harness.churn_figures import (
    FAISS,
    FRESH,
    HEALING,
    HEALING_OFF,
    HNSWLIB,
    REFERENCE,
    SYSTEMS,
    check,
    draw,
)
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.search import FAISS_EFS, RECALL_TOLERANCE
from benchmarks.systems.churned_server import (
    LATENCY_QUERIES_MAX,
    MEGABYTE,
    ChurnedServer,
    Foreground,
    churned_server,
)
from benchmarks.systems.in_process import ChildIndex, hnswlib_is_there

QUERIES_MAX = 1_000
COLUMNS = (
    Column("system", "system"),
    Column("cycle", "cycle"),
    Column("live_rows", "live rows"),
    Column("dead_rows", "dead rows"),
    Column("recall", "recall", 4),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("p99_ratio", "of cycle 0", 2),
    Column("visited", "compared"),
    Column("ghosts", "ghosts"),
    Column("segments", "segments"),
    Column("memory_mb", "memory MB"),
    Column("disk_mb", "disk MB"),
)


@dataclass(frozen=True, slots=True)
class ChurnOptions:
    """What is particular to this benchmark; `svg` is where the picture goes."""

    cycles: int
    systems: tuple[str, ...]
    churn: Churn
    cycle_seconds: float
    svg: Path | None


@dataclass(slots=True)
class IndexUnderChurn:
    """One of the libraries; `ef` is chosen in cycle 0 and stays."""

    name: str
    index: ChildIndex
    ef: int = 0

    async def load(self, population: Population, vectors: npt.NDArray[np.float32]) -> None:
        """Add the first records."""
        rows = np.arange(population.first_rows)
        none = np.empty(0, dtype=np.int64)
        await asyncio.to_thread(self.index.change, dead=none, new=rows, vectors=vectors[rows])

    async def apply(self, change: Change, whole: Dataset) -> None:
        """Do what a cycle does."""
        await asyncio.to_thread(
            self.index.change,
            dead=change.dead_versions,
            new=change.new_versions,
            vectors=whole.vectors[change.upserted_rows],
        )

    async def measure(
        self,
        population: Population,
        truth: Truth,
        queries: npt.NDArray[np.float32],
        *,
        rounds: int,
        wanted: float,
    ) -> Row:
        """Return a row of the report; the first one chooses the ef that reaches `wanted`."""
        return await asyncio.to_thread(self._measure, population, truth, queries, rounds, wanted)

    def _measure(
        self,
        population: Population,
        truth: Truth,
        queries: npt.NDArray[np.float32],
        rounds: int,
        wanted: float,
    ) -> Row:
        k = truth.k
        ef, judged = self.ef, None
        visited: float | None = None
        for ef in (self.ef,) if self.ef else FAISS_EFS:
            numbers, scores, visited = self.index.search(queries, k=k, ef=ef)
            ids = [
                # An id whose record was replaced lives, but this is not its record.
                [population.id_of(n) if population.lives(n) else f"dead {n}" for n in row if n >= 0]
                for row in numbers.tolist()
            ]
            kept = [row[: len(names)] for row, names in zip(scores, ids, strict=True)]
            judged = population.judge(queries, ids, kept, truth)
            if judged.recall >= wanted - RECALL_TOLERANCE:
                break
        assert judged is not None
        self.ef = ef
        some = queries[:LATENCY_QUERIES_MAX]
        took_ms = [self.index.time_each(some, k=k, ef=self.ef) for _ in range(rounds)]
        middle = np.median(np.array(took_ms), axis=0)
        footprint = self.index.footprint()
        return {
            "live_rows": population.live_rows,
            "dead_rows": footprint.dead_rows,
            "recall": judged.recall,
            "p50_ms": float(np.quantile(middle, 0.5)),
            "p99_ms": float(np.quantile(middle, 0.99)),
            "visited": visited,
            "ghosts": judged.ghosts,
            "memory_mb": footprint.memory_bytes / MEGABYTE,
            "disk_mb": footprint.disk_bytes / MEGABYTE,
            "segments": 1,
        }


class Run:
    """All systems, going through the same cycles side by side."""

    def __init__(
        self,
        dataset: Dataset,
        options: Options,
        own: ChurnOptions,
        report: Report,
        say: Callable[[str], None],
    ) -> None:
        self._dataset = dataset
        self._options = options
        self._own = own
        self._report = report
        self._say = say
        self._population = Population(dataset)
        self._queries = dataset.queries[:QUERIES_MAX]
        self._servers: list[ChurnedServer] = []
        self._reference: ChurnedServer | None = None
        self._indexes: list[IndexUnderChurn] = []

    async def run(self) -> None:
        """Run every cycle, then the fresh build."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            await self._measure(0)
            for cycle in range(1, self._own.cycles + 1):
                await self._cycle(cycle)
        if self._servers:
            self._say("loading what lives into a fresh server")
            await self._fresh()

    async def _start(self, stack: AsyncExitStack) -> None:
        own, population, k = self._own, self._population, self._options.k
        for name in own.systems:
            if name in (HEALING, HEALING_OFF):
                server = churned_server(name, healing=name == HEALING, k=k)
                self._servers.append(await stack.enter_async_context(server))
            else:
                kind = "faiss" if name == FAISS else "hnswlib"
                index = ChildIndex(kind, self._dataset.dimension)
                stack.callback(index.close)
                self._indexes.append(IndexUnderChurn(name, index))
        first = population.subset(*population.records())
        if HEALING in own.systems:
            server = churned_server(REFERENCE, healing=True, k=k)
            self._reference = await stack.enter_async_context(server)
        for system in (*self._servers, *filter(None, [self._reference])):
            self._say(f"loading {population.live_rows:,} rows into {system.name}")
            await system.load(first)
        for library in self._indexes:
            self._say(f"building {library.name}")
            await library.load(population, self._dataset.vectors)

    async def _cycle(self, cycle: int) -> None:
        change = self._population.change(self._own.churn)
        self._say(
            f"cycle {cycle} of {self._own.cycles}: {len(change.deleted_ids):,} deletes,"
            f" {len(change.upserted_ids):,} upserts"
        )
        async with asyncio.TaskGroup() as group:
            for system in self._servers:
                group.create_task(
                    system.apply(change, self._dataset, seconds=self._own.cycle_seconds)
                )
        for library in self._indexes:
            await library.apply(change, self._dataset)
        await self._measure(cycle)

    async def _measure(self, cycle: int) -> None:
        population, queries = self._population, self._queries
        rounds = self._options.repeats
        truth = await asyncio.to_thread(population.truth, queries, self._options.k)
        wanted = 0.95
        for system in self._servers:
            reference = self._reference if system.name == HEALING else None
            row = await system.measure(
                population, truth, queries, rounds=rounds, reference=reference
            )
            wanted = max(wanted, row["recall"]) if system.name == HEALING else wanted
            if row["live_rows"] != population.live_rows:
                raise RuntimeError(
                    f"{system.name} holds {row['live_rows']} of {population.live_rows} records"
                )
            self._add(system.name, cycle, row, system.foreground)
        for library in self._indexes:
            row = await library.measure(population, truth, queries, rounds=rounds, wanted=wanted)
            self._add(library.name, cycle, row)

    async def _fresh(self) -> None:
        population, queries = self._population, self._queries
        truth = await asyncio.to_thread(population.truth, queries, self._options.k)
        async with churned_server(FRESH, healing=True, k=self._options.k) as system:
            await system.load(population.subset(*population.records()))
            row = await system.measure(population, truth, queries, rounds=self._options.repeats)
            self._add(FRESH, self._own.cycles, row)

    def _add(self, system: str, cycle: int, row: Row, seen: Foreground | None = None) -> None:
        seen = seen or Foreground()
        ghosts = row.pop("ghosts") + seen.ghosts
        row.setdefault("p99_ratio", None)
        order = ("live_rows", "dead_rows", "recall", "p50_ms", "p99_ms", "p99_ratio", "visited")
        head = {key: row.pop(key) for key in order}
        tail = {key: row.pop(key) for key in ("memory_mb", "disk_mb")}
        added = self._report.add(
            system=system,
            cycle=cycle,
            **head,
            ghosts=ghosts,
            **tail,
            **row,
            failures=len(seen.failures),
        )
        for failure in seen.failures[:3]:
            self._say(f"  {system}: {failure}")
        self._say(
            f"  {system}: recall {added['recall']:.4f}, p99 {added['p99_ms']:.2f} ms,"
            f" {added['memory_mb']:.0f} MB memory, {added['disk_mb']:.0f} MB disk,"
            f" {added['segments']} segments, {added['dead_rows']:,} dead rows"
        )


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, ChurnOptions]:
    """Return the shared options and those of this benchmark."""
    parser = argparse.ArgumentParser(
        prog="churn.py", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("--cycles", type=int, default=5, metavar="N", help="cycles of churn (5)")
    add("--systems", default=",".join(SYSTEMS), help=f"of {', '.join(SYSTEMS)}; all of them")
    add("--deletes", type=float, default=0.1, metavar="X", help="share deleted by a cycle (0.1)")
    add("--upserts", type=float, default=0.1, metavar="X", help="share upserted by a cycle (0.1)")
    add("--cycle-seconds", type=float, default=5.0, metavar="S", help="writes of one cycle (5)")
    add("--svg", type=Path, metavar="FILE", help="draw the figures")
    given, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        print(f"{parser.format_help().strip()}\n", flush=True)
    options = parse_options(rest, description=__doc__ or "", modes=("embedded",))
    words = [word.strip() for word in given.systems.split(",")]
    unknown = [word for word in words if word not in SYSTEMS]
    if unknown:
        parser.error(f"--systems: {unknown[0]!r} is none of {', '.join(SYSTEMS)}")
    if given.cycles < 0 or not 0 <= given.deletes + given.upserts < 1 or given.cycle_seconds < 0:
        parser.error("--cycles, --deletes, --upserts, --cycle-seconds: out of range")
    churn = Churn(given.deletes, given.upserts)
    systems = tuple(name for word, name in SYSTEMS.items() if word in words)
    return options, ChurnOptions(given.cycles, systems, churn, given.cycle_seconds, given.svg)


def _available(own: ChurnOptions, console: Console) -> ChurnOptions:
    if HNSWLIB not in own.systems or hnswlib_is_there():
        return own
    console.print("[yellow]no hnswlib: it is not installed[/yellow]")
    return replace(own, systems=tuple(name for name in own.systems if name != HNSWLIB))


def main() -> int:
    """Run the benchmark."""
    options, own = parse()
    console = report_console()
    own = _available(own, console)
    dataset = load_dataset(options)
    report = Report("churn", options, dataset)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    asyncio.run(Run(dataset, options, own, report, say).run())
    report.requirements = check(report.rows)
    print_report(report, title="Churn", columns=COLUMNS, console=console)
    if own.svg is not None:
        own.svg.parent.mkdir(parents=True, exist_ok=True)
        own.svg.write_text(draw(report.rows))
        console.print(f"drawn to {own.svg}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
