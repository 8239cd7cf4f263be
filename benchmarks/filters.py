"""Recall and latency of filtered search at every selectivity, inside one node.

The collection is one segment, built as the compactor builds it, and searched as a node does,
without network. Filters are of three kinds: random rows, correlated ones (years, an ecosystem, the
prefix of a name), and far ones: the rows farthest from the queries that are asked with them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from annheal.index import warm_up
from annheal.model.search import SearchOptions
from benchmarks.datasets.filter_cases import Case, Group, cases_of, columns_of
from benchmarks.harness.accuracy import OBJECTIVE, hits_by_score, padded_scores, verdict
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import HALF, Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.harness.timing import Timings, time_in_turns
from benchmarks.systems.node_segment import NodeSegment, build_node_segment

QUERIES_MAX = 300
"""Queries whose recall is measured; exact answers to all of them take the most time."""
QUERIES_TIMED = 50
RATIO_MAX = 3.0
"""How much longer than the same queries without the filter a filtered search may take."""

COLUMNS = (
    Column("selectivity", "selectivity %", 2),
    Column("kind", "kind"),
    Column("matches", "matches"),
    Column("plan", "plan"),
    Column("recall", "recall", 3),
    Column("p50_ms", "p50 ms", 3),
    Column("p95_ms", "p95 ms", 3),
    Column("ratio_to_unfiltered", "of unfiltered", 2),
    Column("faiss_selector_recall", "FAISS recall", 3),
    Column("faiss_selector_p50_ms", "FAISS p50 ms", 3),
    Column("exact_p50_ms", "exact p50 ms", 3),
)

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Way = Callable[[npt.NDArray[np.float32]], object]


@dataclass(slots=True)
class _Sums:
    """What was found over the groups of queries of one case."""

    queries: int = 0
    recall: float = 0.0
    faiss_recall: float = 0.0
    short: int = 0


def measure_case(node: NodeSegment, case: Case, options: Options) -> Row:
    """Return the row of the report; raises AssertionError where a query got fewer hits than due."""
    sums, plans = _Sums(), Counter[str]()
    timings: dict[str, Timings] = {}
    timed_each = -(-QUERIES_TIMED // len(case.groups))
    for group in case.groups:
        asked = SearchOptions(k=options.k, filter=group.filter, explain=True)
        answer = node.search(group.queries, asked)
        [explained] = answer.explain
        plans[explained.plan] += 1
        assert explained.matches == case.matches, (explained, case)
        ef = explained.ef or node.plain_ef(options.k)
        live = node.matching(group.filter)
        index = node.index
        truth, _ = index.search(group.queries, k=options.k, live=live, exact=True)
        by_faiss, _ = index.search(group.queries, k=options.k, ef=ef, live=live)
        due = min(options.k, case.matches)
        sums.queries += len(group.queries)
        sums.short += int((answer.counts < due).sum())
        by_node = padded_scores(answer.counts, answer.scores, options.k)
        sums.recall += hits_by_score(by_node, truth) / due
        sums.faiss_recall += hits_by_score(by_faiss, truth) / due
        calls = _ways(node, group, options.k, ef=ef)
        few = group.queries[:timed_each]
        # The scan would leave the others' rows cold: it takes no turns with them.
        for names in (("filtered", "plain"), ("faiss",), ("exact",)):
            ways = {name: calls[name] for name in names}
            for name, took in time_in_turns(ways, few, repeats=options.repeats).items():
                timings[name] = timings[name] + took if name in timings else took
    assert not sums.short, f"{sums.short} queries of {case} got fewer hits than rows match"
    return {
        "selectivity": 100.0 * case.matches / node.rows,
        "kind": case.kind,
        "matches": case.matches,
        "plan": plans.most_common(1)[0][0],
        "recall": sums.recall / sums.queries,
        "p50_ms": timings["filtered"].p50_ms,
        "p95_ms": timings["filtered"].p95_ms,
        "ratio_to_unfiltered": timings["filtered"].p50_ms / timings["plain"].p50_ms,
        "faiss_selector_recall": sums.faiss_recall / sums.queries,
        "faiss_selector_p50_ms": timings["faiss"].p50_ms,
        "exact_p50_ms": timings["exact"].p50_ms,
    }


def _ways(node: NodeSegment, group: Group, k: int, *, ef: int) -> dict[str, Way]:
    filtered = SearchOptions(k=k, filter=group.filter)
    plain = SearchOptions(k=k)
    live, index = node.matching(group.filter), node.index
    return {
        "filtered": lambda query: node.search(query, filtered),
        "plain": lambda query: node.search(query, plain),
        "faiss": lambda query: index.search(query, k=k, ef=ef, live=live),
        "exact": lambda query: index.search(query, k=k, live=live, exact=True),
    }


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the worst recall and the worst ratio of a report, and whether they are kept."""
    lowest = min(rows, key=lambda row: float(row["recall"]))
    slowest = max(rows, key=lambda row: float(row["ratio_to_unfiltered"]))
    recall, ratio = float(lowest["recall"]), float(slowest["ratio_to_unfiltered"])
    missed = sum(float(row["recall"]) < OBJECTIVE for row in rows)
    slow = sum(float(row["ratio_to_unfiltered"]) > RATIO_MAX for row in rows)
    return [
        f"worst recall {recall:.4f} ({_named(lowest)}), at least {OBJECTIVE}:"
        f" {verdict(recall, at_least=OBJECTIVE)}; {missed} of {len(rows)} lines are below",
        f"worst ratio {ratio:.2f} ({_named(slowest)}), at most {RATIO_MAX:g}:"
        f" {verdict(ratio, at_most=RATIO_MAX)}; {slow} of {len(rows)} lines are above",
    ]


def _named(row: Row) -> str:
    return f"{row['kind']} {row['selectivity']:.2f} %"


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", queries_from=HALF)
    console = report_console()
    dataset = load_dataset(options)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    warm_up()
    queries = np.ascontiguousarray(dataset.queries[:QUERIES_MAX])
    columns = columns_of(dataset, queries)
    report = Report("filters", options, dataset)
    with tempfile.TemporaryDirectory() as folder:
        say(f"building one segment of {dataset.rows:,} rows")
        node = build_node_segment(
            dataset, columns, directory=Path(folder), threads=len(os.sched_getaffinity(0))
        )
        say(f"built in {node.build_s:.1f} s; {node.costs}")
        for case in cases_of(columns, queries):
            row = report.add(**measure_case(node, case, options))
            say(f"{row['selectivity']:.2f} % {row['kind']}: {row['plan']}")
    print_report(report, title="Filters", columns=COLUMNS, console=console)
    for sentence in summary(report.rows):
        console.print(sentence, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
