"""The first minute of a new server: no data, no compiled kernels, and all rows are sent at once.

Each system is a server of its own. "cold" has an empty kernel cache, "warm" that of this user. Rows
acknowledged in the first ten seconds, the event loop's lag by the exported metric, leases lost and
the time to stop right afterwards are compared with what is required.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from annheal import AsyncClient
from annheal.index import warm_up
from benchmarks.datasets.loading import COLLECTION
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import parse_options
from benchmarks.harness.report import (
    Column,
    Report,
    Requirement,
    Row,
    print_report,
    report_console,
)
from benchmarks.systems.servers import Server, serve
from tests.support.ports import LOOPBACK, free_port

WINDOW_S = 10.0
SETTLE_S = 5.0
"""After the last row: flushes and the first compactions begin."""
ROWS_PER_S_MIN, LAG_MAX_S, CLOSE_MAX_S = 40_000, 0.25, 3.0
COLUMNS = (
    Column("system", "kernel cache"),
    Column("rows_per_s", "acked rows/s"),
    Column("required_ratio", "x required", 2),
    Column("lag_ms_at_most", "lag ms <="),
    Column("late_wakeups", "lag > 250 ms"),
    Column("leases_lost", "leases lost"),
    Column("close_s", "close s", 1),
    Column("server_cpu_s", "server CPU s", 1),
)
_BUCKET = re.compile(r'^annheal_event_loop_lag_seconds_bucket\{le="(.+)"\} (.+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lag:
    """How late the loop woke up: bound of the highest bucket in use, wake-ups above 250 ms."""

    at_most_s: float
    late: int


def lag_of(text: str) -> Lag:
    """Return the lag from a scrape."""
    buckets = [(float(bound), float(count)) for bound, count in _BUCKET.findall(text)]
    every = buckets[-1][1]
    at_most_s = next(bound for bound, count in buckets if count == every)
    within = next(count for bound, count in buckets if bound == LAG_MAX_S)
    return Lag(at_most_s, int(every - within))


async def acknowledged_per_s(client: AsyncClient, dataset: Dataset) -> float:
    """Send all rows at once; return rows acknowledged a second, in `WINDOW_S` at most."""
    await client.create_collection(COLLECTION, dataset.dimension, metric="cosine")
    seen: list[tuple[float, int]] = []
    started_s = time.perf_counter()
    await client.upsert(
        COLLECTION,
        dataset.ids,
        dataset.vectors,
        progress=lambda done, _: seen.append((time.perf_counter() - started_s, done)),
    )
    within = [entry for entry in seen if entry[0] <= WINDOW_S] or seen[:1]
    took_s, done = within[-1]
    return done / took_s if done == dataset.rows else done / WINDOW_S


async def measure(system: str, dataset: Dataset, settings: dict[str, str]) -> Row:
    """Load into a new server, stop it, and return its row of the report."""
    port = free_port()
    settings = {**settings, "metrics_listen": f"{LOOPBACK}:{port}"}
    async with serve("embedded", settings=settings) as server:
        async with AsyncClient(server.address) as client:
            rows_per_s = await acknowledged_per_s(client, dataset)
            await asyncio.sleep(SETTLE_S)
        lag = lag_of(await asyncio.to_thread(scraped, port))
        cpu_s = server.cpu_s()
        close_s = await asyncio.to_thread(closed, server)
        lost = sum(path.read_text().count("is lost") for path in server.folder.glob("*.log"))
    return {
        "system": system,
        "rows": dataset.rows,
        "rows_per_s": rows_per_s,
        "required_ratio": rows_per_s / ROWS_PER_S_MIN,
        "lag_ms_at_most": lag.at_most_s * 1e3,
        "late_wakeups": lag.late,
        "leases_lost": lost,
        "close_s": close_s,
        "server_cpu_s": cpu_s,
    }


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


def closed(server: Server) -> float:
    started_s = time.perf_counter()
    server.stop()
    return time.perf_counter() - started_s


def requirements(rows: Sequence[Row]) -> list[Requirement]:
    """Return what is required of every system, and whether it holds."""
    worst = min(row["rows_per_s"] for row in rows)
    late = sum(row["late_wakeups"] for row in rows)
    lost = sum(row["leases_lost"] for row in rows)
    close_s = max(row["close_s"] for row in rows)
    return [
        Requirement(
            f"at least {ROWS_PER_S_MIN:,} rows a second acknowledged in the first {WINDOW_S:g} s",
            worst >= ROWS_PER_S_MIN,
            f"{worst:,.0f}",
        ),
        Requirement(f"the loop never lags more than {LAG_MAX_S:g} s", late == 0, f"{late} times"),
        Requirement("no lease is lost", lost == 0, f"{lost} lost"),
        Requirement(f"stops within {CLOSE_MAX_S:g} s", close_s <= CLOSE_MAX_S, f"{close_s:.1f} s"),
    ]


def main() -> int:
    """Run the benchmark; fails when a requirement is missed."""
    options = parse_options(description=__doc__ or "", modes=("embedded",))
    console = report_console()
    dataset = load_dataset(options)
    report = Report("first_minute", options, dataset)
    warm_up()
    with tempfile.TemporaryDirectory(prefix="annheal-bench-kernels-") as empty:
        for system, settings in (("cold", {"kernel_cache": empty}), ("warm", {})):
            console.print(f"a new server, kernel cache {system} ...")
            report.add(**asyncio.run(measure(system, dataset, settings)))
    report.requirements += requirements(report.rows)
    print_report(report, title="First minute", columns=COLUMNS, console=console)
    return 0 if all(one.holds for one in report.requirements) else 1


if __name__ == "__main__":
    sys.exit(main())
