"""What the node adds to FAISS where there is no filter: times of both, taken in turns.

The node's segment is built by the compactor's code and asked without any parameter. FAISS is
asked in two ways: `same graph`, the segment's own graph read into memory at the node's ef, and
`equal recall`, an `IndexHNSWFlat` of its own at the ef, interpolated, at which it finds as much.
`index` is the search of Annheal's index alone, `node` all that a node does for a request: the
plan, the search, the merge and the records' ids.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.index import set_search_threads, warm_up
from annheal.model.search import SearchOptions
from annheal.shard_node.node import search_threads_for
from benchmarks.datasets.loading import build_faiss
from benchmarks.harness.accuracy import padded_scores, recall_by_score, verdict
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.pairs import paired_ratio
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.harness.timing import Queries, time_in_turns
from benchmarks.systems.node_segment import NodeSegment, build_node_segment

RATIO_MAX = 1.15
QUERIES_TIMED = 300
BATCH_QUERIES = 100
REPEATS = 7
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
REFINEMENTS = 3
"""Interpolations between the measured ef nearest to the recall that is wanted."""

COLUMNS = (
    Column("asked", "asked"),
    Column("path", "path"),
    Column("against", "against FAISS at"),
    Column("ef", "ef"),
    Column("recall", "recall", 4),
    Column("faiss_ef", "FAISS ef"),
    Column("faiss_recall", "FAISS recall", 4),
    Column("p50_ms", "p50 ms", 3),
    Column("faiss_p50_ms", "FAISS p50 ms", 3),
    Column("ratio", "ratio", 3),
    Column("ratio_low", "from", 3),
    Column("ratio_high", "to", 3),
)

Scores = npt.NDArray[np.float32]
Way = Callable[[Queries], object]


@dataclass(frozen=True, slots=True)
class Walk:
    """A FAISS index as a program uses it, set to one ef; `recall` is that of all queries."""

    index: Any
    ef: int
    recall: float

    def search(self, queries: Queries, *, k: int) -> tuple[Any, Any]:
        """Return scores and rows, (n, k)."""
        found: tuple[Any, Any] = self.index.search(queries, k)
        return found


def interpolated_ef(points: Sequence[tuple[int, float]], wanted: float) -> int:
    """Return the ef at which recall is `wanted`, between the measured (ef, recall) `points`.

    Linear between the first point that reaches it and the one before; the first or the last ef
    where all of them or none does. `points` rise in ef.
    """
    before: tuple[int, float] | None = None
    for ef, recall in points:
        if recall >= wanted:
            if before is None:
                return ef
            share = (wanted - before[1]) / (recall - before[1])
            return round(before[0] + share * (ef - before[0]))
        before = (ef, recall)
    return points[-1][0]


def walk_at(index: Any, ef: int, dataset: Dataset, truth: Scores, *, k: int) -> Walk:
    """Set FAISS to one ef, and return it with its recall."""
    index.hnsw.efSearch = ef
    walk = Walk(index, ef, 0.0)
    return Walk(index, ef, recall_by_score(walk.search(dataset.queries, k=k)[0], truth))


def walk_of_recall(index: Any, wanted: float, dataset: Dataset, truth: Scores, *, k: int) -> Walk:
    """Return FAISS at the ef whose recall comes closest to `wanted`."""
    points: dict[int, float] = {}
    for ef in (ef for ef in EFS if ef >= k):
        points[ef] = walk_at(index, ef, dataset, truth, k=k).recall
        if points[ef] >= wanted:
            break
    for _ in range(REFINEMENTS):
        between = interpolated_ef(sorted(points.items()), wanted)
        points[between] = walk_at(index, between, dataset, truth, k=k).recall
    best = min(points, key=lambda ef: abs(points[ef] - wanted))
    return walk_at(index, best, dataset, truth, k=k)


def ways_of(node: NodeSegment, walks: dict[str, Walk], *, k: int, cores: int) -> dict[str, Way]:
    """Return how the same queries are asked; every way sets its number of threads first."""
    plain, ef = SearchOptions(k=k), node.plain_ef(k)

    def by_node(queries: Queries) -> object:
        set_search_threads(search_threads_for(len(queries), threads_max=cores))
        return node.search(queries, plain)

    def by_index(queries: Queries) -> object:
        set_search_threads(search_threads_for(len(queries), threads_max=cores))
        return node.index.search(queries, k=k, ef=ef)

    def by_faiss(walk: Walk) -> Way:
        def search(queries: Queries) -> object:
            faiss.omp_set_num_threads(cores if len(queries) > 1 else 1)
            return walk.search(queries, k=k)

        return search

    return {
        "node": by_node,
        "index": by_index,
        **{against: by_faiss(walk) for against, walk in walks.items()},
    }


def compare(
    node: NodeSegment, walks: dict[str, Walk], dataset: Dataset, truth: Scores, options: Options
) -> Iterator[Row]:
    """Yield the rows of the report."""
    k = options.k
    answer = node.search(dataset.queries, SearchOptions(k=k))
    recall = recall_by_score(padded_scores(answer.counts, answer.scores, k), truth)
    ways = ways_of(node, walks, k=k, cores=len(os.sched_getaffinity(0)))
    whole_batches = max(1, len(dataset.queries) // BATCH_QUERIES) * BATCH_QUERIES
    for asked, queries, per_call in (
        ("single", dataset.queries[:QUERIES_TIMED], 1),
        ("batch", dataset.queries[:whole_batches], BATCH_QUERIES),
    ):
        took = time_in_turns(ways, queries, repeats=options.repeats, per_call=per_call)
        for path in ("index", "node"):
            for against, walk in walks.items():
                ratio = paired_ratio(took[path].took_ms, took[against].took_ms)
                yield {
                    "asked": asked,
                    "path": path,
                    "against": against,
                    "ef": node.plain_ef(k),
                    "recall": recall,
                    "faiss_ef": walk.ef,
                    "faiss_recall": walk.recall,
                    "p50_ms": took[path].p50_ms,
                    "faiss_p50_ms": took[against].p50_ms,
                    "ratio": ratio.median,
                    "ratio_low": ratio.low,
                    "ratio_high": ratio.high,
                }


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=REPEATS)
    console = report_console()
    dataset = load_dataset(options)
    truth = dataset.best_scores(options.k, rows=dataset.rows)
    report = Report("unfiltered", options, dataset)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        say(f"building one segment of {dataset.rows:,} rows")
        threads = len(os.sched_getaffinity(0))
        columns = pa.RecordBatch.from_pydict({"number": pa.array(range(dataset.rows))})
        node = build_node_segment(dataset, columns, directory=Path(folder), threads=threads)
        say("building FAISS's own index")
        own, _ = build_faiss(dataset)
        same = faiss.read_index(str(node.index_file))
        at_node = walk_at(same, node.plain_ef(options.k), dataset, truth, k=options.k)
        walks = {
            "same graph": at_node,
            "equal recall": walk_of_recall(own, at_node.recall, dataset, truth, k=options.k),
        }
        for row in compare(node, walks, dataset, truth, options):
            report.add(**row)
    print_report(report, title="Unfiltered", columns=COLUMNS, console=console)
    for row in report.rows:
        console.print(
            f"{row['asked']}, {row['path']} against FAISS at {row['against']}:"
            f" {row['ratio']:.3f} times its time, at most {RATIO_MAX}:"
            f" {verdict(row['ratio'], at_most=RATIO_MAX)}",
            highlight=False,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
