"""Is the recall objective held at every k that is asked, and at what ef?

One segment is built by the compactor's code and asked by the node's own, without any parameter but
k. `fixed ratio` asks the same queries with the ef of the collection's k times k by that k, as one
does who tuned ef at one k.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow as pa

from annheal.index import warm_up
from annheal.model.search import SearchOptions
from benchmarks.harness.accuracy import OBJECTIVE, padded_scores, recall_by_score, verdict
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.harness.timing import time_in_turns
from benchmarks.systems.node_segment import NodeSegment, build_node_segment

KS = (1, 3, 10, 30, 100, 300, 1_000)
QUERIES_MAX = 500
QUERIES_TIMED = 50
REPEATS = 3

COLUMNS = (
    Column("k", "k"),
    Column("ef", "ef"),
    Column("recall", "recall", 4),
    Column("p50_ms", "p50 ms", 3),
    Column("ratio_ef", "fixed ratio: ef"),
    Column("ratio_recall", "recall", 4),
    Column("ratio_p50_ms", "p50 ms", 3),
)


def measure(node: NodeSegment, dataset: Dataset, options: Options) -> Iterator[Row]:
    """Yield a row for each k of `KS` that the data set has rows for."""
    queries = dataset.queries[:QUERIES_MAX]
    base_ef = node.plain_ef(options.k)
    truth = dataset.best_scores(max(k for k in KS if k <= dataset.rows), rows=dataset.rows)
    for k in KS:
        if k > dataset.rows:
            return
        efs = {"": None, "ratio_": max(k, math.ceil(base_ef * k / options.k))}
        asked = {name: SearchOptions(k=k, ef=ef) for name, ef in efs.items()}

        took = time_in_turns(
            {name: partial(node.search, options=wanted) for name, wanted in asked.items()},
            queries[:QUERIES_TIMED],
            repeats=options.repeats,
            per_call=1,
        )
        row: Row = {"k": k, "ef": node.plain_ef(k), "ratio_ef": efs["ratio_"]}
        for name, wanted in asked.items():
            answer = node.search(queries, wanted)
            found = padded_scores(answer.counts, answer.scores, k)
            row[f"{name}recall"] = recall_by_score(found, truth[: len(queries), :k])
            row[f"{name}p50_ms"] = took[name].p50_ms
        yield row


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=REPEATS)
    console = report_console()
    dataset = load_dataset(options)
    report = Report("every_k", options, dataset)
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"building one segment of {dataset.rows:,} rows", style="dim")
        columns = pa.RecordBatch.from_pydict({"number": pa.array(range(dataset.rows))})
        threads = len(os.sched_getaffinity(0))
        node = build_node_segment(dataset, columns, directory=Path(folder), threads=threads)
        for row in measure(node, dataset, options):
            report.add(**row)
    print_report(report, title="Every k", columns=COLUMNS, console=console)
    for row in report.rows:
        console.print(
            f"k {row['k']}: recall {row['recall']:.4f}, at least {OBJECTIVE}:"
            f" {verdict(row['recall'], at_least=OBJECTIVE)}",
            highlight=False,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
