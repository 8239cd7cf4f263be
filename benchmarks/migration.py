"""Answers while a collection changes its embedding model: every way to join two models' lists.

A share of the records has new vectors and is searched by the new model, the others by the old one,
both exactly. The two lists are joined in every way that a bridge knows, mixing scores as they are
among them, and compared with what the new model finds over all records. No server takes part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annheal.embedding.bridge.bridge import Bridge
from annheal.embedding.bridge.choosing import choose_each
from annheal.embedding.bridge.judging import top
from annheal.embedding.bridge.pairs import Pairs
from annheal.embedding.bridge.ways import QueryKind
from annheal.model.collection import Metric
from benchmarks.harness.dataset import Dataset
from benchmarks.harness.options import SAMPLE_BASE, SAMPLE_QUERIES, parse_options
from benchmarks.harness.report import Column, Report, Requirement, print_report, report_console

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
PROJECTED_DIMENSION = 96
SEED = 20_261
CANDIDATES = 100
WORSE_MAX = 0.01
CHOSEN, IDEAL = "chosen", "ideal"

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

COLUMNS = (
    Column("data", "data"),
    Column("migrated_share", "migrated", 2),
    Column("query", "query"),
    Column("join", "join"),
    Column("recall_vs_new_truth", "recall", 3),
    Column("recall_vs_ideal_join", "of ideal", 3),
    Column("overlap_old", "overlap old", 3),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
)


@dataclass(frozen=True, slots=True)
class Models:
    """The vectors of the same records and queries by two models, all of unit length, float32."""

    name: str
    old: Floats
    new: Floats
    old_queries: Floats
    new_queries: Floats

    def projected(self, dimension: int) -> Models:
        """Return the same with the new vectors projected at random to `dimension` floats."""
        shape = (self.new.shape[1], dimension)
        axes = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
        return Models(
            f"{self.name}, new in {dimension}",
            self.old,
            _unit(self.new @ axes),
            self.old_queries,
            _unit(self.new_queries @ axes),
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """One share of migrated records: `new` and `old` are the rows searched by each model."""

    share: float
    new: Rows
    old: Rows


@dataclass(frozen=True, slots=True)
class Answers:
    """Rows found for each query, (q, k); what an ideal join would find; milliseconds of joining."""

    rows: Rows
    ideal: float
    took_ms: Floats


def sample_models() -> Models:
    """Return the 10,000 packages by both models, and every second query.

    The others were used to choose constants.
    """
    base, queries = pq.read_table(SAMPLE_BASE), pq.read_table(SAMPLE_QUERIES)
    old, new = (_column(base, name) for name in ("minilm_l6", "paraphrase_l3"))
    old_queries, new_queries = (
        _column(queries, name)[1::2] for name in ("minilm_l6", "paraphrase_l3")
    )
    return Models("packages", old, new, old_queries, new_queries)


def measure(report: Report, models: Models, *, kinds: Sequence[QueryKind]) -> None:
    """Add the rows of every share, kind of query and way to join."""
    k = report.options.k
    new_truth = top(models.new_queries @ models.new.T, k)
    old_truth = top(models.old_queries @ models.old.T, k)
    order = np.random.default_rng(SEED).permutation(len(models.old))
    for share in SHARES:
        count = round(share * len(order))
        stage = Stage(share, order[:count], order[count:])
        for join, bridge in _bridges(models, stage, k=k):
            for kind in kinds:
                found = answer(models, stage, bridge, kind, k=k)
                recall = overlap(found.rows, new_truth)
                report.add(
                    data=models.name,
                    migrated_share=share,
                    query=kind.value,
                    join=join if join != CHOSEN else f"{CHOSEN}: {bridge.ways[kind].join}",
                    recall_vs_new_truth=recall,
                    recall_vs_ideal_join=recall / found.ideal if found.ideal else 1.0,
                    ideal_recall=found.ideal,
                    overlap_old=overlap(found.rows, old_truth),
                    p50_ms=float(np.median(found.took_ms)),
                    p99_ms=float(np.quantile(found.took_ms, 0.99)),
                )


def _bridges(models: Models, stage: Stage, *, k: int) -> Iterator[tuple[str, Bridge]]:
    """Yield the bridge of each single way, and the one that `choose` returns."""
    pairs = Pairs.of(
        models.old[stage.new],
        models.new[stage.new],
        old_metric=Metric.COSINE,
        new_metric=Metric.COSINE,
    )
    chosen, single = choose_each(pairs, share=stage.share, k=k, seed=SEED)
    for join, bridge in single.items():
        yield join.value, bridge
    yield CHOSEN, chosen


def answer(models: Models, stage: Stage, bridge: Bridge, kind: QueryKind, *, k: int) -> Answers:
    """Answer every query over all records."""
    found = np.full((len(models.old_queries), k), -1, dtype=np.int64)
    took, reached = [], []
    truth = top(models.new_queries @ models.new.T, k)
    for number, (old, new) in enumerate(zip(models.old_queries, models.new_queries, strict=True)):
        started_s = time.perf_counter()
        query = bridge.query(
            old=None if kind is QueryKind.NEW else old,
            new=None if kind is QueryKind.OLD else new,
        )
        planned_s = time.perf_counter() - started_s
        new_rows, new_scores = _search(models.new, stage.new, query.search_new)
        old_rows, old_scores = _search(models.old, stage.old, query.search_old)
        vectors = models.old[old_rows] if query.needs_vectors else None
        started_s = time.perf_counter()
        places, _ = query.join(new_scores, old_scores, k=k, old_vectors=vectors)
        took.append((time.perf_counter() - started_s + planned_s) * 1_000)
        rows = np.concatenate([new_rows, old_rows])
        found[number, : len(places)] = rows[places]
        reached.append(len(np.intersect1d(rows, truth[number])) / k)
    return Answers(found, float(np.mean(reached)), np.array(took, dtype=np.float32))


def _search(vectors: Floats, rows: Rows, query: Floats | None) -> tuple[Rows, Floats]:
    """Return the best rows of a half and their scores, none without a query."""
    if query is None or not len(rows):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    scores = vectors[rows] @ query
    best = top(scores[None], CANDIDATES)[0]
    return rows[best], scores[best]


def overlap(found: Rows, truth: Rows) -> float:
    """Return the mean share of `truth` (q, k) that is in `found` (q, k)."""
    shared = [
        len(np.intersect1d(one, other)) for one, other in zip(found.tolist(), truth, strict=True)
    ]
    return float(np.mean(shared) / truth.shape[1])


def chosen_is_best(report: Report) -> list[Requirement]:
    """Return one requirement for each kind of query: the chosen way is nowhere much worse."""
    drops: dict[str, list[tuple[float, str]]] = {}
    groups: dict[tuple[str, float, str], dict[str, float]] = {}
    for row in report.rows:
        group = groups.setdefault((row["data"], row["migrated_share"], row["query"]), {})
        group[row["join"].split(":")[0]] = row["recall_vs_new_truth"]
    for (name, share, kind), recalls in groups.items():
        drop = max(recalls.values()) - recalls[CHOSEN]
        drops.setdefault(kind, []).append((drop, f"{name} at {share:.2f}"))
    return [
        Requirement(
            f"query with {kind}: chosen within {WORSE_MAX} of the best",
            worst[0] <= WORSE_MAX + 1e-9,
            f"worst {worst[0]:.4f}, {worst[1]}",
        )
        for kind, found in drops.items()
        for worst in (max(found),)
    ]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Models]:
    """Return the options and the vectors that they name."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--base", type=Path, metavar="OLD.npy", help="vectors of the old model, (n, d)")
    add("--new", type=Path, metavar="NEW.npy", help="those of the new model, in the same order")
    add("--queries-old", type=Path, metavar="Q.npy", help="queries by the old model, (q, d)")
    add("--queries-new", type=Path, metavar="Q.npy", help="the same queries by the new model")
    add("--limit", type=int, metavar="N", help="use the first N rows and queries only")
    add("--k", type=int, default=10, metavar="K", help="neighbours of each query")
    add("--json", type=Path, metavar="OUT", help="write the figures here, or into this folder")
    given = parser.parse_args(arguments)
    files = (given.base, given.new, given.queries_old, given.queries_new)
    if any(files) and not all(files):
        parser.error("give --base, --new, --queries-old and --queries-new, or none of them")
    if all(files):
        models = Models(given.base.name, *(_unit(np.load(path)) for path in files))
    else:
        models = sample_models()
    if given.limit is not None:
        kept = slice(None, given.limit)
        models = Models(
            models.name,
            models.old[kept],
            models.new[kept],
            models.old_queries[kept],
            models.new_queries[kept],
        )
    if len(models.old) != len(models.new) or len(models.old_queries) != len(models.new_queries):
        parser.error("both models need the same rows and the same queries")
    return given, models


def _report(given: argparse.Namespace, models: Models) -> Report:
    options = parse_options(
        ["--k", str(given.k)] + (["--json", str(given.json)] * bool(given.json))
    )
    ids = [f"row:{row:08d}" for row in range(len(models.new))]
    dataset = Dataset(models.name, ids, models.new, models.new_queries, pa.table({}), {}, None)
    return Report("migration", options, dataset)


def _column(table: pa.Table, name: str) -> Floats:
    column: Any = table.column(name).combine_chunks()
    return _unit(np.asarray(column.flatten()).reshape(len(table), -1))


def _unit(vectors: npt.NDArray[np.floating]) -> Floats:
    floats = np.ascontiguousarray(vectors, dtype=np.float32)
    unit: Floats = floats / np.linalg.norm(floats, axis=1, keepdims=True)
    return unit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given, models = parse(arguments)
    report = _report(given, models)
    measure(report, models, kinds=tuple(QueryKind))
    if given.base is None:
        measure(report, models.projected(PROJECTED_DIMENSION), kinds=(QueryKind.BOTH,))
    report.requirements = chosen_is_best(report)
    print_report(report, title="Model migration", columns=COLUMNS, console=report_console())
    return 0 if all(one.holds for one in report.requirements) else 1


if __name__ == "__main__":
    sys.exit(main())
