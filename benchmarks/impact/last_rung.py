"""What the last rung costs and finds, where no graph can meet the objective.

One segment's graph is searched with ef 64 and with the largest ef that the controller sets, then
the same rows by codes and exactly: first for queries that the graph is made for, then for inner
product with a dimension of 200 times the spread of the others that queries know nothing of. Single
queries, one thread, times are medians.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt

from annheal.index import LiveBitmap, VectorIndex, build_hnsw, set_search_threads, warm_up
from annheal.model.collection import IndexSettings
from annheal.shard_node.search.ef_scale import EF_CONTROL_MAX
from benchmarks.datasets.planted import PLAIN, Planted, plant
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console

USUAL_EF = 64
QUERIES = 200
COLUMNS = (
    Column("data", "data"),
    Column("method", "method"),
    Column("recall", "recall", 3),
    Column("query_ms", "ms a query", 3),
    Column("cost_ratio", "times the usual", 1),
)

Hits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Method = Callable[[npt.NDArray[np.float32]], Hits]


def methods(index: VectorIndex, *, k: int) -> dict[str, Method]:
    """Return the ways to answer a query (1, d), the usual one first and exact comparison last."""
    every = LiveBitmap.from_mask(np.ones(index.rows, dtype=np.bool_))
    return {
        f"graph, ef {USUAL_EF}": lambda query: index.search(query, k=k, ef=USUAL_EF),
        f"graph, ef {EF_CONTROL_MAX}": lambda query: index.search(query, k=k, ef=EF_CONTROL_MAX),
        "codes": lambda query: index.search_shortlisted(query, k=k, matching=every),
        "exact": lambda query: index.search(query, k=k, exact=True),
    }


def measure(data: str, planted: Planted, *, k: int) -> list[Row]:
    """Return recall and time of each method."""
    index = build_hnsw(planted.vectors, metric=planted.metric, settings=IndexSettings(), threads=2)
    index.make_shortlist()
    queries = np.ascontiguousarray(planted.pools[PLAIN][:QUERIES])
    _, truth = index.search(queries, k=k, exact=True)
    rows: list[Row] = []
    for name, search in methods(index, k=k).items():
        took_s, hits = [], 0
        for query, best in zip(queries, truth, strict=True):
            began_s = time.perf_counter()
            _, found = search(query[None, :])
            took_s.append(time.perf_counter() - began_s)
            hits += len(np.intersect1d(found[0], best))
        rows.append(
            {
                "data": data,
                "method": name,
                "recall": hits / truth.size,
                "query_ms": 1e3 * float(np.median(took_s)),
            }
        )
    for row in rows:
        row["cost_ratio"] = row["query_ms"] / rows[0]["query_ms"]
    return rows


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "")
    dataset = load_dataset(options)
    warm_up()
    set_search_threads(1)
    rows = [
        row
        for data in ("plain", "blind")
        for row in measure(data, plant(data, dataset), k=options.k)
    ]
    report = Report("last_rung", options, dataset, rows)
    console = report_console()
    print_report(report, title="The last rung", columns=COLUMNS, console=console)
    if options.json is not None:
        console.print(f"written to {report.write()}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
