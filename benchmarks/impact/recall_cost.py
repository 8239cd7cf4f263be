"""What measuring recall costs a node that answers as fast as it can, with and without, in turns.

`off` samples and measures nothing; `on` keeps live queries at the default share, and its monitor
uses a fixed share of the process's CPU time in every turn: turns are counted in CPU seconds, and so
are queries, because other processes hardly change those. The first share is far above what the
monitor may use, so that its cost stands out of the noise; what the default interval and a budget
that is used up all the time cost is computed from it. The second share is that of the budget
itself, as a check.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow as pa

from annheal.index import warm_up
from annheal.model.measures.recall import SelectivityBand
from annheal.shard_node.recall.measuring.measure import GROUP_QUERIES
from annheal.shard_node.recall.sampling.stratum import JUDGING_QUERIES
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.pairs import PairedRatio, paired_ratio
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.systems.monitored_node import DEFAULTS, OFF, ON, MonitoredNode, Turns
from benchmarks.systems.node_segment import build_node_segment

Say = Callable[[str], None]
COST_MAX = 0.02
SHARES = (10 * DEFAULTS.recall_cpu_share, DEFAULTS.recall_cpu_share)
"""Of the process's CPU time that the monitor uses while measured; the first decides."""
REPEATS = 30
SECONDS = 0.5
PAIRS_MIN = 5

COLUMNS = (
    Column("share", "share", 2),
    Column("pairs", "pairs"),
    Column("turn_cpu_s", "turn CPU s", 2),
    Column("qps_per_cpu_s_off", "off: q/CPU s"),
    Column("qps_per_cpu_s", "on"),
    Column("ratio", "ratio", 3),
    Column("ratio_low", "from", 3),
    Column("ratio_high", "to", 3),
    Column("monitor_cpu_share", "monitor", 4),
    Column("noting_cpu_share", "noting", 4),
    Column("cost", "cost", 4),
    Column("cost_low", "from", 4),
    Column("cost_high", "to", 4),
    Column("cost_budget", "budget", 4),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A turn of `cpu_s` CPU seconds of the process, `slices` slices of the monitor's work in it."""

    cpu_s: float
    slices: int


def schedule_of(slice_cpu_s: float, *, share: float, seconds: float) -> Schedule:
    """Return turns of about `seconds`, and at least one slice, in which slices have `share`."""
    slices = max(1, round(seconds * share / slice_cpu_s))
    return Schedule(slices * slice_cpu_s / share, slices)


@dataclass(frozen=True, slots=True)
class Cost:
    """The share of the throughput that measuring costs, with its 95 % interval."""

    share: float
    low: float
    high: float


def cost_of(ratio: PairedRatio, *, noting: float, monitor: float, at: float) -> Cost:
    """Return the cost where the monitor uses a share `at` of the CPU time.

    Measured is that `ratio` of the throughput is left where it uses the share `monitor`. Its
    cost is in proportion to its work; that of noting queries, a share `noting`, is not.
    """

    def one(left: float) -> float:
        return noting + (1.0 - left - noting) * at / monitor

    return Cost(one(ratio.median), one(ratio.high), one(ratio.low))


def judged(cost: Cost) -> str:
    """Return "pass" or "fail" where the whole interval says so, else "unclear"."""
    if cost.high < COST_MAX:
        return "pass"
    return "fail" if cost.low >= COST_MAX else "unclear: --repeats narrows the interval"


async def compare(node: MonitoredNode, schedule: Schedule, *, pairs: int) -> dict[str, Turns]:
    """Return the turns of both modes; who begins changes from pair to pair."""
    node.lanes.forget()
    node.sampler.note_cpu_s = 0.0
    found = {OFF: Turns(), ON: Turns()}
    for number in range(pairs):
        for mode in (OFF, ON) if number % 2 else (ON, OFF):
            slices = schedule.slices if mode == ON else 0
            await node.turn(mode, found[mode], cpu_s=schedule.cpu_s, slices=slices)
    return found


async def measure(node: MonitoredNode, options: Options, say: Say) -> tuple[list[Row], float]:
    """Return the rows of the report, and the CPU seconds of one slice of the monitor's work."""
    rows: list[Row] = []
    running = asyncio.create_task(node.keep_measuring())
    try:
        slice_cpu_s = await node.warm_up(seconds=options.seconds)
        spent_s = 0.0
        for share in SHARES:
            schedule = schedule_of(slice_cpu_s, share=share, seconds=options.seconds)
            # As much time as the first share took, where turns are longer.
            pairs = round(spent_s / schedule.cpu_s) if spent_s else options.repeats
            pairs = min(options.repeats, max(PAIRS_MIN, pairs))
            spent_s = spent_s or pairs * schedule.cpu_s
            say(f"share {share:.2f}: {pairs} pairs of turns of {schedule.cpu_s:.2f} CPU s")
            found = await compare(node, schedule, pairs=pairs)
            rows.append(row_of(node, found, schedule, share=share, slice_cpu_s=slice_cpu_s))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        node.lanes.close()
    return rows, slice_cpu_s


def row_of(
    node: MonitoredNode,
    found: dict[str, Turns],
    schedule: Schedule,
    *,
    share: float,
    slice_cpu_s: float,
) -> Row:
    """Return the row of one share."""
    off, on = found[OFF], found[ON]
    ratio = paired_ratio(on.cpu_rates, off.cpu_rates)
    noting = node.sampler.note_cpu_s / on.cpu_s
    monitor = sum(node.lanes.slices_cpu_s) / on.cpu_s
    default = _default_core_share(slice_cpu_s) / off.cores
    budget = DEFAULTS.recall_cpu_share / off.cores
    cost = cost_of(ratio, noting=noting, monitor=monitor, at=default)
    most = cost_of(ratio, noting=noting, monitor=monitor, at=budget)
    return {
        "share": share,
        "pairs": len(on.cpu_rates),
        "turn_cpu_s": schedule.cpu_s,
        "qps_off": off.queries / off.took_s,
        "qps": on.queries / on.took_s,
        "qps_per_cpu_s_off": statistics.median(off.cpu_rates),
        "qps_per_cpu_s": statistics.median(on.cpu_rates),
        "cores": off.cores,
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "monitor_cpu_share": monitor,
        "noting_cpu_share": noting,
        "cost": cost.share,
        "cost_low": cost.low,
        "cost_high": cost.high,
        "cost_budget": most.share,
        "cost_budget_low": most.low,
        "cost_budget_high": most.high,
    }


def _default_core_share(slice_cpu_s: float) -> float:
    """Return the share of a core that one full reservoir at the default interval takes."""
    run_cpu_s = slice_cpu_s * JUDGING_QUERIES / GROUP_QUERIES
    return min(run_cpu_s / DEFAULTS.recall_interval_s, DEFAULTS.recall_cpu_share)


def sentences(rows: Sequence[Row], *, slice_cpu_s: float, scale: float) -> list[str]:
    """Return what the rows say, in words."""
    said = [
        f"{GROUP_QUERIES} queries take the monitor {1e3 * slice_cpu_s:.1f} ms: {JUDGING_QUERIES}"
        f" every {DEFAULTS.recall_interval_s:g} s, the default, are"
        f" {100 * _default_core_share(slice_cpu_s):.2f} % of a core; the node kept"
        f" {rows[0]['cores']:.2f} busy, with ef {scale:.2f} times that of the curve in both modes",
    ]
    for row in rows:
        for key, name in (("cost", "default interval"), ("cost_budget", "budget used up")):
            cost = Cost(row[key], row[f"{key}_low"], row[f"{key}_high"])
            said.append(
                f"from a share of {row['share']:.2f}: {name}: costs {100 * cost.share:.2f} % of the"
                f" throughput (95 % interval {100 * cost.low:.2f} to {100 * cost.high:.2f} %),"
                f" less than {100 * COST_MAX:g} %: {judged(cost)}"
            )
    return said


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=REPEATS, seconds=SECONDS)
    console = report_console()
    dataset = load_dataset(options)
    report = Report("recall_cost", options, dataset)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        say(f"building one segment of {dataset.rows:,} rows")
        columns = pa.RecordBatch.from_pydict({"number": pa.array(range(dataset.rows))})
        threads = len(os.sched_getaffinity(0))
        segment = build_node_segment(dataset, columns, directory=Path(folder), threads=threads)

        async def run() -> tuple[MonitoredNode, list[Row], float]:
            node = MonitoredNode(segment, dataset, options)
            return node, *await measure(node, options, say)

        node, rows, slice_cpu_s = asyncio.run(run())
    for row in rows:
        report.add(**row)
    print_report(report, title="Cost of measuring recall", columns=COLUMNS, console=console)
    scale = node.controller.scale("merged", SelectivityBand.UNFILTERED)
    for sentence in sentences(rows, slice_cpu_s=slice_cpu_s, scale=scale):
        console.print(sentence, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
