"""How many bytes compaction writes for each byte that comes in, loading in batches of any size.

Rows come in random order, in batches of 1 to 5,000 rows in random order; once as fast as they are
acknowledged, and once spread over a while, which makes many small segments to merge. Bytes are
counted where they go to the object store: by the shard node (log and flushed segments) and by the
compactor, processes of their own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from annheal import AsyncClient
from benchmarks.datasets.loading import COLLECTION, wait_at_rest
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import parse_options
from benchmarks.harness.report import Column, Report, Requirement, Row, print_report, report_console
from benchmarks.systems.servers import COMPACTOR, SHARD_NODE, serve

BATCH_ROWS_MAX = 5_000
AMPLIFICATION_MAX = 6.0
MEGABYTE = 1e6
COLUMNS = (
    Column("pace", "pace"),
    Column("rows", "rows"),
    Column("batches", "batches"),
    Column("ingested_mb", "ingested MB", 1),
    Column("log_mb", "log MB", 1),
    Column("flushed_mb", "flushed MB", 1),
    Column("compacted_mb", "compacted MB", 1),
    Column("write_amplification", "amplified", 2),
    Column("compactions", "tasks"),
    Column("segments", "segments"),
    Column("seconds", "seconds", 1),
)


def batch_sizes(rows: int, *, seed: int = 0) -> list[int]:
    """Return sizes of 1 to `BATCH_ROWS_MAX` that add up to `rows`; every magnitude is as likely."""
    rng = np.random.default_rng(seed)
    sizes: list[int] = []
    left = rows
    while left:
        size = min(left, int(np.exp(rng.uniform(0.0, np.log(BATCH_ROWS_MAX + 1)))))
        sizes.append(size)
        left -= size
    return sizes


def ingested_bytes(dataset: Dataset) -> int:
    """Return the bytes of the rows as a client gives them."""
    ids = sum(len(id.encode()) for id in dataset.ids)
    payloads = sum(map(len, dataset.payloads or ()))
    return ids + dataset.vectors.nbytes + dataset.attributes.nbytes + payloads


async def measure(dataset: Dataset, *, seconds: float, seed: int = 0) -> Row:
    """Load into a fresh deployment and return its row; `seconds` 0: as fast as it goes."""
    sizes = batch_sizes(dataset.rows, seed=seed)
    order = np.random.default_rng(seed).permutation(dataset.rows)
    async with serve("roles", metrics=True) as server, AsyncClient(server.address) as client:
        await client.create_collection(
            COLLECTION, dataset.dimension, metric="cosine", attributes=dataset.schema
        )
        loop = asyncio.get_running_loop()
        began_s, start = loop.time(), 0
        for size in sizes:
            await asyncio.sleep(began_s + seconds * start / dataset.rows - loop.time())
            rows = order[start : start + size]
            await client.upsert(
                COLLECTION,
                [dataset.ids[row] for row in rows],
                dataset.vectors[rows],
                attributes=dataset.attributes.take(rows),
                payloads=dataset.payloads and [dataset.payloads[row] for row in rows],
            )
            start += size
        await wait_at_rest(client)
        took_s = loop.time() - began_s
        node = await server.stored_bytes(SHARD_NODE)
        compacted = (await server.stored_bytes(COMPACTOR)).get("segments", 0.0)
        ingested = ingested_bytes(dataset)
        return {
            "pace": f"over {seconds:g} s" if seconds else "at once",
            "rows": dataset.rows,
            "batches": len(sizes),
            "ingested_mb": ingested / MEGABYTE,
            "log_mb": node["wal"] / MEGABYTE,
            "flushed_mb": node["segments"] / MEGABYTE,
            "compacted_mb": compacted / MEGABYTE,
            "write_amplification": compacted / ingested,
            "compactions": len(await client.tasks(COLLECTION)),
            "segments": len((await client.segments(COLLECTION)).segments),
            "seconds": took_s,
        }


def check(rows: Sequence[Row]) -> list[Requirement]:
    """Return what is required, and whether it holds."""
    return [
        Requirement(
            f"write amplification <= {AMPLIFICATION_MAX:g}, {row['pace']}",
            row["write_amplification"] <= AMPLIFICATION_MAX,
            f"{row['write_amplification']:.2f}",
        )
        for row in rows
    ]


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", seconds=60.0)
    console = report_console()
    dataset = load_dataset(options)
    report = Report("write_amplification", options, dataset)
    for seconds in (0.0, options.seconds):
        console.print("loading ...", style="dim")
        report.add(**asyncio.run(measure(dataset, seconds=seconds)))
    report.requirements = check(report.rows)
    print_report(report, title="Write amplification", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
