"""What walks whose width adapts to the query save, against walks of one width for all.

The compactor's code builds one segment and measures its recall curve with held-out rows, reaches
included. One half of the queries chooses every ef, all figures are those of the other half. The
width of the fixed walks (`uniform`, FAISS) is that with which the queries of the dataset reach
0.90, 0.95 and 0.98 of recall. Adaptive walks are measured at the `same ef`, which is what a node
does; at the ef of `equal recall`; and at the ef of `equal cost`, where they compare as many rows.
Conditions: the queries of the dataset; 5 % of them replaced by negated ones, which are unlike all
rows; and negated ones only. With 100,000 x 384 it takes about six minutes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.compactor.build.recalls import best_scores, recalls_of
from annheal.index import Reach, VectorIndex, WalkResult, set_search_threads, warm_up
from annheal.segment import RecallPoint
from annheal.shard_node.search.recall_curves import choose_reach
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.harness.timing import Queries, time_in_turns
from benchmarks.systems.node_segment import build_node_segment

TARGETS = (0.90, 0.95, 0.98)
BAD_RECALL = 0.8
HARD_SHARE = 0.05
QUERIES_TIMED = 300
REPEATS = 3
EF_MAX = 512

COLUMNS = (
    Column("condition", "condition"),
    Column("target", "target", 2),
    Column("rule", "rule"),
    Column("ef", "ef"),
    Column("recall", "recall", 4),
    Column("uniform_recall", "uniform", 4),
    Column("visited_ratio", "rows compared", 3),
    Column("below", "below 0.8", 4),
    Column("uniform_below", "uniform", 4),
    Column("p50_ratio", "p50 ratio", 3),
    Column("p95_ratio", "p95 ratio", 3),
)


@dataclass(frozen=True, slots=True)
class Walked:
    """The mean recall of walks, the share of queries below `BAD_RECALL`, mean rows compared."""

    recall: float
    below: float
    visited: float


@dataclass(frozen=True, slots=True)
class Walks:
    """Walks of one index with one set of queries."""

    index: VectorIndex
    curve: tuple[RecallPoint, ...]
    queries: Queries
    truth: npt.NDArray[np.float32]
    k: int

    @classmethod
    def of(
        cls, index: VectorIndex, curve: tuple[RecallPoint, ...], queries: Queries, *, k: int
    ) -> Walks:
        """Compare `queries` exactly."""
        asked = np.ascontiguousarray(queries)
        return cls(index, curve, asked, best_scores(index, asked, k=k), k)

    def reach(self, ef: int) -> Reach:
        """Return the reach of the segment's curve; raises ValueError where it has none."""
        found = choose_reach(self.curve, k=self.k, ef=ef)
        if found is None:
            raise ValueError(f"the recall curve has no reach at ef {ef}: too few rows")
        return found

    def uniform(self, ef: int) -> Walked:
        """Return the figures of walks of width `ef`."""
        return self._figures(self.index.walk_filtered(self.queries, k=self.k, ef=ef, matching=None))

    def adaptive(self, ef: int) -> Walked:
        """Return the figures of adaptive walks at `ef`."""
        reach = self.reach(ef)
        return self._figures(self.index.walk_adaptive(self.queries, k=self.k, ef=ef, reach=reach))

    def _figures(self, walked: WalkResult) -> Walked:
        recalls = recalls_of(walked.scores, self.truth)
        visited = float(walked.visited.mean())
        return Walked(float(recalls.mean()), float((recalls < BAD_RECALL).mean()), visited)


def first_ef(reaches: Callable[[int], bool], *, low: int, high: int = EF_MAX) -> int:
    """Return the smallest ef from `low` to `high` for which `reaches` holds, else `high`.

    It must hold for all larger ones.
    """
    while low < high:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle + 1
    return low


def conditions(queries: Queries) -> dict[str, Queries]:
    """Return the queries of each condition; each half, even and odd, has its share of negated."""
    mixed = queries.copy()
    mixed[np.arange(len(queries)) % round(2 / HARD_SHARE) < 2] *= -1
    return {"plain": queries, "5 % negated": mixed, "negated": -queries}


def least_ef(walks: Walks) -> int:
    """Return the smallest ef that has a reach."""
    return min(point.ef for point in walks.curve if point.reach and point.k >= walks.k)


def uniform_efs(tune: Walks) -> dict[float, int]:
    """Return for each target the width of the fixed walks with which `tune` reaches it."""
    low, uniform = least_ef(tune), cache(tune.uniform)
    return {
        target: first_ef(partial(_is_reached, uniform, "recall", target), low=low)
        for target in TARGETS
    }


def compare(tune: Walks, test: Walks, efs: dict[float, int], *, repeats: int) -> Iterator[Row]:
    """Yield the rows of one condition; `tune` chooses ef, the figures are those of `test`."""
    low, adaptive = least_ef(tune), cache(tune.adaptive)
    for target, ef in efs.items():
        tuned, uniform = tune.uniform(ef), test.uniform(ef)
        rules = {
            "same ef": ef,
            "equal recall": first_ef(
                partial(_is_reached, adaptive, "recall", tuned.recall), low=low
            ),
            "equal cost": first_ef(
                partial(_is_reached, adaptive, "visited", tuned.visited), low=low
            ),
        }
        for rule, adaptive_ef in rules.items():
            found = test.adaptive(adaptive_ef)
            p50, p95 = time_ratios(test, ef, adaptive_ef, repeats=repeats)
            yield {
                "target": target,
                "rule": rule,
                "uniform_ef": ef,
                "ef": adaptive_ef,
                "recall": found.recall,
                "uniform_recall": uniform.recall,
                "visited_ratio": found.visited / uniform.visited,
                "below": found.below,
                "uniform_below": uniform.below,
                "p50_ratio": p50,
                "p95_ratio": p95,
            }


def _is_reached(walk: Callable[[int], Walked], figure: str, wanted: float, ef: int) -> bool:
    return bool(getattr(walk(ef), figure) >= wanted)


def time_ratios(walks: Walks, ef: int, adaptive_ef: int, *, repeats: int) -> tuple[float, float]:
    """Return p50 and p95 of adaptive walks divided by those of FAISS, for single queries."""
    index, k, reach = walks.index, walks.k, walks.reach(adaptive_ef)
    took = time_in_turns(
        {
            "uniform": lambda one: index.search(one, k=k, ef=ef),
            "adaptive": lambda one: index.walk_adaptive(one, k=k, ef=adaptive_ef, reach=reach),
        },
        walks.queries[:QUERIES_TIMED],
        repeats=repeats,
    )
    uniform, adaptive = took["uniform"], took["adaptive"]
    return adaptive.p50_ms / uniform.p50_ms, adaptive.p95_ms / uniform.p95_ms


def measure(
    index: VectorIndex, curve: tuple[RecallPoint, ...], queries: Queries, options: Options
) -> Iterator[Row]:
    """Yield the rows of all conditions."""
    set_search_threads(1)
    efs = uniform_efs(Walks.of(index, curve, queries[::2], k=options.k))
    for condition, asked in conditions(queries).items():
        tune = Walks.of(index, curve, asked[::2], k=options.k)
        test = Walks.of(index, curve, asked[1::2], k=options.k)
        for row in compare(tune, test, efs, repeats=options.repeats):
            yield {"condition": condition, **row}


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=REPEATS)
    console = report_console()
    dataset = load_dataset(options)
    report = Report("adaptive_width", options, dataset)
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"building one segment of {dataset.rows:,} rows", style="dim")
        threads = len(os.sched_getaffinity(0))
        columns = pa.RecordBatch.from_pydict({"number": pa.array(range(dataset.rows))})
        node = build_node_segment(dataset, columns, directory=Path(folder), threads=threads)
        if not any(point.reach for point in node.segment.recall_curve):
            print("the segment has no reaches: give 20,000 rows or more", file=sys.stderr)
            return 2
        for row in measure(node.index, node.segment.recall_curve, dataset.queries, options):
            report.add(**row)
    print_report(report, title="Adaptive width", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
