"""One collection that grows, with default settings: does recall keep its objective as ef adapts?

`auto` gives no parameter. `fixed` asks the same queries of the same collection with the ef that
`auto` chose at the first size that has a graph, as one does who tuned it then. Sizes that are
answered exactly have no ef, so they have no line `fixed`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from annheal import AsyncClient
from annheal.model.search import SegmentExplain
from benchmarks.datasets.loading import COLLECTION, grow
from benchmarks.harness.accuracy import OBJECTIVE, hits_by_score, padded_scores, verdict
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.harness.timing import Queries, await_in_turns
from benchmarks.systems.servers import Server, serve

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SIZES_FEW = (1_000, 2_500)
"""And the whole, where there are fewer than 100,000 rows; the second has a graph."""
BATCH_QUERIES = 100
QUERIES_TIMED = 200

COLUMNS = (
    Column("mode", "mode"),
    Column("rows", "rows"),
    Column("segments", "segments"),
    Column("ef", "ef"),
    Column("recall", "recall", 4),
    Column("p50_ms", "p50 ms", 3),
    Column("plan", "plan"),
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Recall of one way to ask, by query (q,), and what explain said of each segment."""

    recalls: npt.NDArray[np.float64]
    explain: tuple[SegmentExplain, ...]

    @property
    def efs(self) -> list[int]:
        """Beam widths, that of the largest segment first; 0 where no graph is walked."""
        return [part.ef for part in self.explain]

    @property
    def error(self) -> float:
        """The standard error of the mean recall."""
        return float(self.recalls.std() / np.sqrt(len(self.recalls)))


def sizes_of(rows: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Return the sizes to measure, all of them at most `rows`; raises ValueError without any."""
    if wanted is None:
        wanted = SIZES if rows >= 100_000 else (*(n for n in SIZES_FEW if n < rows), rows)
    found = tuple(size for size in wanted if size <= rows)
    if not found:
        raise ValueError(f"there are {rows} rows: none of the sizes {tuple(wanted)} fits")
    return found


def fixed_ef(efs: Sequence[int]) -> int | None:
    """Return the ef to keep from now on: the widest of the segments; None where no graph is."""
    return max(efs, default=0) or None


async def ask(
    client: AsyncClient, dataset: Dataset, truth: npt.NDArray[np.float32], *, k: int, ef: int | None
) -> Measured:
    """Ask all queries, and one of them for the plan; `truth` is the k best scores of each."""
    recalls: list[float] = []
    for start in range(0, len(dataset.queries), BATCH_QUERIES):
        part = dataset.queries[start : start + BATCH_QUERIES]
        answers = await client.search_batch(COLLECTION, part, k=k, ef=ef)
        for number, answer in enumerate(answers, start=start):
            counts = np.array([len(answer)])
            found = padded_scores(counts, answer.scores, k)
            recalls.append(hits_by_score(found, truth[number : number + 1]) / k)
    explained = await client.search(COLLECTION, dataset.queries[0], k=k, ef=ef, explain=True)
    used = sorted(explained.explain, key=lambda one: -one.rows)
    return Measured(np.array(recalls), tuple(one for one in used if one.plan != "skip"))


def row_of(mode: str, rows: int, measured: Measured, p50_ms: float) -> Row:
    """Return the row of the report; the segment list's order is that of `Measured.efs`."""
    return {
        "mode": mode,
        "rows": rows,
        "segments": len(measured.explain),
        "ef": measured.efs,
        "recall": float(measured.recalls.mean()),
        "p50_ms": p50_ms,
        "plan": [part.plan for part in measured.explain],
    }


async def measure_size(
    client: AsyncClient,
    dataset: Dataset,
    options: Options,
    *,
    rows: int,
    kept_ef: int | None,
) -> tuple[dict[str, Measured], list[Row]]:
    """Return what was measured by mode, and the rows of the report, for the first `rows` rows."""
    truth = dataset.best_scores(options.k, rows=rows)
    efs: dict[str, int | None] = {"auto": None}
    found = {"auto": await ask(client, dataset, truth, k=options.k, ef=None)}
    kept_ef = kept_ef or fixed_ef(found["auto"].efs)
    if fixed_ef(found["auto"].efs) is not None and kept_ef is not None:
        efs["fixed"] = kept_ef
        found["fixed"] = await ask(client, dataset, truth, k=options.k, ef=kept_ef)

    def way(ef: int | None) -> Callable[[Queries], Awaitable[object]]:
        return lambda query: client.search(COLLECTION, query[0], k=options.k, ef=ef)

    timed = await await_in_turns(
        {mode: way(ef) for mode, ef in efs.items()},
        dataset.queries[:QUERIES_TIMED],
        repeats=options.repeats,
    )
    return found, [row_of(mode, rows, one, timed[mode].p50_ms) for mode, one in found.items()]


def sentences(found: dict[str, Measured], rows: int) -> list[str]:
    """Return what one size shows, in words."""
    auto = found["auto"]
    if fixed_ef(auto.efs) is None:
        said = [f"{rows:,} rows: answered exactly, no segment has a graph; there is no ef"]
        if auto.recalls.mean() < 1.0:
            said.append(f"{rows:,} rows: exact answers of recall {auto.recalls.mean():.4f}: fail")
        return said
    said = []
    for mode, one in found.items():
        recall = float(one.recalls.mean())
        text = (
            f"{rows:,} rows, {mode}: ef {', '.join(map(str, one.efs))}, recall {recall:.4f}"
            f" (standard error {one.error:.4f}) against {OBJECTIVE}"
        )
        said.append(f"{text}: {verdict(recall, at_least=OBJECTIVE)}")
    return said


async def measure(
    server: Server, dataset: Dataset, options: Options, *, report: Report, say: Say
) -> list[str]:
    """Grow one collection through all sizes; returns the sentences of the summary."""
    said: list[str] = []
    kept_ef: int | None = None
    before = 0
    async with AsyncClient(server.address, batch_searches=False) as client:
        for rows in sizes_of(dataset.rows, options.sizes):
            say(f"growing to {rows:,} rows")
            await grow(client, dataset, start=before, stop=rows)
            before = rows
            found, lines = await measure_size(client, dataset, options, rows=rows, kept_ef=kept_ef)
            kept_ef = kept_ef or fixed_ef(found["auto"].efs)
            for line in lines:
                report.add(**line)
            said += sentences(found, rows)
            say(said[-1])
    return said


async def run(dataset: Dataset, options: Options, *, report: Report, say: Say) -> list[str]:
    """Measure on an embedded server of its own."""
    async with serve("embedded") as server:
        return await measure(server, dataset, options, report=report, say=say)


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "")
    console = report_console()
    dataset = load_dataset(options)
    report = Report("growth", options, dataset)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    said = asyncio.run(run(dataset, options, report=report, say=say))
    print_report(report, title="Growth", columns=COLUMNS, console=console)
    for sentence in said:
        console.print(sentence, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
