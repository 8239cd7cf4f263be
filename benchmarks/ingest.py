"""How fast rows are acknowledged and indexed, beside a plain FAISS build of the same rows.

Each mode is run twice: with `flush` and `compact` after the last row, and left to itself.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from annheal import AsyncClient
from benchmarks.datasets.loading import COLLECTION, build_faiss, load
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.systems.servers import ClusterUnavailable, serve

COLUMNS = (
    Column("system", "system"),
    Column("index", "indexing"),
    Column("acknowledged_rows_per_s", "acked rows/s"),
    Column("acknowledged_s", "acked s", 1),
    Column("indexed_s", "indexed s", 1),
    Column("ratio_to_faiss", "x FAISS", 2),
    Column("segments", "segments"),
    Column("disk_bytes_per_row", "disk B/row"),
    Column("memory_peak_mib", "peak MiB"),
    Column("server_cpu_s", "server CPU s", 1),
)


async def measure(mode: str, dataset: Dataset, *, compact: bool, faiss_s: float) -> Row:
    """Load into a fresh deployment and return its row of the report."""
    async with serve(mode) as server, AsyncClient(server.address) as client:
        before_s = server.cpu_s()
        loaded = await load(client, dataset, compact=compact)
        segments = (await client.segments(COLLECTION)).segments
        return {
            "system": f"annheal {mode}",
            "index": "asked for" if compact else "left alone",
            "rows": dataset.rows,
            "acknowledged_s": loaded.acknowledged_s,
            "acknowledged_rows_per_s": dataset.rows / loaded.acknowledged_s,
            "indexed_s": loaded.indexed_s,
            "ratio_to_faiss": loaded.indexed_s / faiss_s,
            "segments": len(segments),
            "disk_bytes": server.disk_bytes(),
            "disk_bytes_per_row": server.disk_bytes() / dataset.rows,
            "memory_peak_mib": server.memory_peak_bytes() / 2**20,
            "memory_private_mib": server.memory_private_bytes() / 2**20,
            "server_cpu_s": server.cpu_s() - before_s,
        }


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", modes=("embedded",))
    console = report_console()
    dataset = load_dataset(options)
    report = Report("ingest", options, dataset)
    console.print(f"building FAISS over {dataset.rows:,} rows ...")
    _, faiss_s = build_faiss(dataset)
    report.add(
        system="faiss in process",
        index="build",
        rows=dataset.rows,
        indexed_s=faiss_s,
        ratio_to_faiss=1.0,
    )
    for mode in options.modes:
        for compact in (True, False):
            console.print(f"loading into annheal {mode} ...")
            try:
                row = asyncio.run(measure(mode, dataset, compact=compact, faiss_s=faiss_s))
            except ClusterUnavailable as error:
                console.print(f"[yellow]no cluster: {error}[/yellow]")
                break
            report.add(**row)
    print_report(report, title="Ingest", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
