"""At which k must a shard of several meet the objective, so that the merged answer meets it?

The rows are cut into shards by their ids, each shard is built by the compactor, and every query is
asked of all of them with the ef that the curves give for an aim: `own top k`, the objective for all
k hits of the shard itself, or `share`, for the 1 + (k - 1) / S hits that it is expected to deliver.
Then with a row of fixed values of ef.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.index import warm_up
from annheal.shard_node.search.recall_curves import choose_ef
from annheal.shards.routing import hash_ids, shards_of
from benchmarks.harness.accuracy import OBJECTIVE, TIE_TOLERANCE
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, Row, print_report, report_console
from benchmarks.systems.node_segment import NodeSegment, build_node_segment

SHARDS = (1, 4, 8)
EFS = (10, 14, 20, 28, 40, 56, 80, 113, 160)
QUERIES_WALKED = 300
"""Queries whose compared rows are counted."""

COLUMNS = (
    Column("shards", "shards"),
    Column("aim", "aim"),
    Column("ef", "ef (mean)", 1),
    Column("own", "own top k", 4),
    Column("weighted", "by rank", 4),
    Column("merged", "merged", 4),
    Column("compared", "compared rows", 0),
)

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard and the exact scores (q, k) of its own best rows."""

    node: NodeSegment
    truth: Scores

    def ef(self, k: int) -> int:
        """Return the ef for the objective at `k`."""
        curve = self.node.segment.recall_curve
        return choose_ef(curve, k=k, objective=OBJECTIVE)

    def found(self, queries: Scores, *, k: int, ef: int) -> Scores:
        """Return the scores (q, k) of what a walk finds."""
        scores, _ = self.node.index.search(queries, k=k, ef=max(ef, k))
        return scores

    def compared(self, queries: Scores, *, k: int, ef: int) -> float:
        """Return the mean number of rows that a walk compares."""
        few = queries[:QUERIES_WALKED]
        walked = self.node.index.walk_filtered(few, k=k, ef=max(ef, k), matching=None)
        return float(walked.visited.mean())


Weights = npt.NDArray[np.float64]


def rank_weights(k: int, *, shard_count: int) -> Weights:
    """Return the probability that a shard's hit of each rank belongs into the answer, (k,).

    Records are placed by a hash, so the number of the best k records that are in a shard is
    binomial, B(k, 1 / S); the hit of rank r belongs if there are at least r of them.
    They add up to k / S. With one shard all are 1.
    """
    share = 1.0 / shard_count
    if shard_count == 1:
        return np.ones(k)
    logs = [
        math.lgamma(k + 1)
        - math.lgamma(held + 1)
        - math.lgamma(k - held + 1)
        + held * math.log(share)
        + (k - held) * math.log1p(-share)
        for held in range(k + 1)
    ]
    chances = np.exp(np.array(logs))
    weights: Weights = np.cumsum(chances[::-1])[::-1][1:]
    return weights


def expected_k(k: int, *, shard_count: int) -> int:
    """Return the k at which a shard's recall is about that of its part of the answer, rounded up.

    The mean rank of the hits that belong, by the weights above, is (k / S + 2 - 1 / S) / 2. So it
    is that of the first 1 + (k - 1) / S ranks.
    """
    return math.ceil(1.0 + (k - 1) / shard_count)


def built(dataset: Dataset, count: int, directory: Path, *, k: int) -> list[Shard]:
    """Build `count` shards of the rows."""
    of_rows = shards_of(hash_ids(dataset.ids), shard_count=count)
    shards = []
    for number in range(count):
        rows = np.flatnonzero(of_rows == number)
        part = replace(
            dataset,
            ids=[dataset.ids[row] for row in rows.tolist()],
            vectors=np.ascontiguousarray(dataset.vectors[rows]),
            payloads=None,
        )
        columns = pa.RecordBatch.from_pydict({"number": pa.array(range(part.rows))})
        node = build_node_segment(
            part,
            columns,
            directory=directory / f"{count}-{number}",
            threads=len(os.sched_getaffinity(0)),
        )
        shards.append(Shard(node, part.best_scores(k, rows=part.rows)))
    return shards


def asked(shards: list[Shard], efs: list[int], queries: Scores, truth: Scores, k: int) -> Row:
    """Return recall and cost of all shards, each with its ef."""
    found = [one.found(queries, k=k, ef=ef) for one, ef in zip(shards, efs, strict=True)]
    merged = -np.sort(-np.concatenate(found, axis=1), axis=1)[:, :k]
    weights = rank_weights(k, shard_count=len(shards))
    own, weighted = [], []
    for one, scores in zip(shards, found, strict=True):
        # Whether each exact hit is among those found, by the number of equal or better scores.
        hit = np.stack(
            [
                np.count_nonzero(np.abs(scores - one.truth[:, [rank]]) <= TIE_TOLERANCE, axis=1) > 0
                for rank in range(k)
            ],
            axis=1,
        )
        own.append(hit.mean())
        weighted.append((hit * weights).sum(axis=1).mean() / weights.sum())
    good = (merged >= truth[:, [-1]] - TIE_TOLERANCE).sum(axis=1)
    return {
        "ef": float(np.mean(efs)),
        "own": float(np.mean(own)),
        "weighted": float(np.mean(weighted)),
        "merged": float(np.minimum(good, k).mean() / k),
        "compared": sum(
            one.compared(queries, k=k, ef=ef) for one, ef in zip(shards, efs, strict=True)
        ),
    }


def measure(dataset: Dataset, directory: Path, options: Options) -> Iterator[Row]:
    """Yield a row for each number of shards and each aim or ef."""
    k = options.k
    truth = dataset.best_scores(k, rows=dataset.rows)
    for count in SHARDS:
        shards = built(dataset, count, directory, k=k)
        aims = {
            "own top k": [one.ef(k) for one in shards],
            "share": [one.ef(expected_k(k, shard_count=count)) for one in shards],
            **{f"ef {ef}": [ef] * count for ef in EFS},
        }
        for aim, efs in aims.items():
            row = asked(shards, efs, dataset.queries, truth, k)
            yield {"shards": count, "aim": aim, **row}


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=1)
    console = report_console()
    dataset = load_dataset(options)
    report = Report("shards", options, dataset)
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(dataset, Path(folder), options):
            report.add(**row)
            console.print(row, highlight=False)
    print_report(report, title="Aims of shards", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
