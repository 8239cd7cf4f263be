"""Incremental merges beside rebuilds: one segment over many generations of new and deleted rows.

Every generation deletes a share of the rows at random, adds another share, and lets the
compactor merge the segment with the new rows, as it does in a cluster: what it builds is
gated, and the next generation goes on with it. Beside it, in turns on the same machine, the
same rows are rebuilt. Both are asked with queries that are in neither.

    python benchmarks/merge.py --base VECTORS.npy --queries QUERIES.npy --generations 20
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.compactor.build import build
from annheal.compactor.build.build import BuildOrder, build_segment
from annheal.compactor.build.calibrate import measure_recall, own_recall
from annheal.compactor.fetch import Source
from annheal.index import VectorIndex, warm_up
from annheal.model.collection import Collection, CollectionSettings, Metric, ModelSpec
from annheal.model.topology.manifest import SegmentEntry, Tier
from annheal.segment import DeleteVector, Segment, SegmentRows, local_segment, write_segment
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, print_report, report_console

EF_FIXED = 64
OBJECTIVE = 0.95
SEED = 7
COLUMNS = (
    Column("generation", "gen"),
    Column("rows", "rows"),
    Column("kind", "kind"),
    Column("merge_s", "merge s", 2),
    Column("rebuild_s", "full s", 2),
    Column("ratio", "ratio", 2),
    Column("graph_ratio", "graph only", 2),
    Column("recall", "recall", 4),
    Column("rebuilt_recall", "full recall", 4),
    Column("ef", "ef", 0),
    Column("rebuilt_ef", "full ef", 0),
)


@dataclass(frozen=True, slots=True)
class Churn:
    """What happens in every generation. `deleted` and `added` are shares of the rows."""

    generations: int
    deleted: float
    added: float
    rebuild_every: int
    threads: int


@dataclass(frozen=True, slots=True)
class _Made:
    """A segment, and the seconds that it took: all of it, and its graph without measuring it."""

    segment: Segment
    total_s: float
    graph_s: float


class _GraphTimer:
    """Adds up the seconds of the graph builds that the compactor asks for, without the probe."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("build_hnsw", "merge_hnsw"):
            setattr(build, name, self._timed(getattr(build, name)))

    def _timed(self, make: Callable[..., VectorIndex]) -> Callable[..., VectorIndex]:
        def timed(*args: Any, probe: Callable[[VectorIndex], None], **options: Any) -> VectorIndex:
            probing_s = 0.0

            def timed_probe(part: VectorIndex) -> None:
                nonlocal probing_s
                started_s = time.perf_counter()
                probe(part)
                probing_s += time.perf_counter() - started_s

            started_s = time.perf_counter()
            index = make(*args, probe=timed_probe, **options)
            self.seconds += time.perf_counter() - started_s - probing_s
            return index

        return timed


class Generations:
    """One segment and the rows outside it, from generation to generation."""

    def __init__(self, dataset: Dataset, churn: Churn, directory: Path) -> None:
        self._vectors = dataset.vectors
        self._queries = dataset.queries
        self._churn = churn
        self._directory = directory
        self._rng = np.random.default_rng(SEED)
        self._timer = _GraphTimer()
        model = ModelSpec("bench", dataset.dimension, Metric.COSINE)
        self._collection = Collection(
            id="c1",
            name="bench",
            models=(model,),
            schema=(),
            shard_count=1,
            settings=CollectionSettings(recall_objective=OBJECTIVE),
        )
        everything = self._rng.permutation(dataset.rows)
        first = int(dataset.rows / (1 + churn.added))
        self._spare = everything[first:]
        self._segment = self._made(
            "g0", [self._flat("r0", everything[:first])], rebuild=True
        ).segment

    def run(self, number: int, k: int) -> dict[str, Any]:
        """Let one generation pass; return its figures."""
        before = self._segment
        deleted = self._rng.permutation(before.rows)[: int(before.rows * self._churn.deleted)]
        added = self._spare[: int(before.rows * self._churn.added)]
        gone = np.array([int(name) for name in before.ids_at(deleted)], dtype=np.int64)
        self._spare = self._rng.permutation(np.concatenate([self._spare[len(added) :], gone]))
        dead = DeleteVector.empty(before.rows).with_dead(deleted.astype(np.int64))
        sources = [Source(before, dead), self._flat(f"r{number}", added)]
        merged = self._made(f"g{number}", sources, rebuild=False)
        history = merged.segment.meta.build.graph
        row: dict[str, Any] = {
            "generation": number,
            "rows": merged.segment.rows,
            "deleted": len(deleted),
            "added": len(added),
            "kind": history.kind.value,
            "merges": history.merges,
            "merge_s": merged.total_s,
            "merge_graph_s": merged.graph_s,
            **self._figures(merged.segment, k, ""),
        }
        if number % self._churn.rebuild_every == 0 or number == 1:
            rebuilt = self._made("rebuilt", sources, rebuild=True)
            row |= {
                "rebuild_s": rebuilt.total_s,
                "rebuild_graph_s": rebuilt.graph_s,
                "ratio": merged.total_s / rebuilt.total_s,
                "graph_ratio": merged.graph_s / rebuilt.graph_s,
                **self._figures(rebuilt.segment, k, "rebuilt_"),
            }
        shutil.rmtree(self._directory / before.id)
        shutil.rmtree(self._directory / f"r{number}")
        self._segment = merged.segment
        return row

    def _figures(self, segment: Segment, k: int, prefix: str) -> dict[str, Any]:
        curve = [p for p in measure_recall(segment.index, self._queries, k=k) if p.k == k]
        met = [point for point in curve if point.recall >= OBJECTIVE]
        fixed = next((point for point in curve if point.ef == EF_FIXED), curve[-1])
        return {
            f"{prefix}recall": fixed.recall,
            f"{prefix}visited": fixed.visited,
            f"{prefix}ef": met[0].ef if met else None,
            f"{prefix}own_recall": own_recall(segment.index, k=k, ef=EF_FIXED),
        }

    def _made(self, name: str, sources: Sequence[Source], *, rebuild: bool) -> _Made:
        order = BuildOrder(
            segment_id=name,
            tier=Tier.WARM,
            collection=self._collection,
            threads=self._churn.threads,
            created_at_s=0.0,
            on_progress=lambda share: None,
            rebuild=rebuild,
        )
        before_s, started_s = self._timer.seconds, time.perf_counter()
        entry = build_segment(sources, order, directory=self._directory / name)
        total_s = time.perf_counter() - started_s
        assert entry is not None
        return _Made(self._opened(entry), total_s, self._timer.seconds - before_s)

    def _flat(self, name: str, rows: npt.NDArray[np.int64]) -> Source:
        entry = write_segment(
            self._directory / name,
            segment_id=name,
            tier=Tier.HOT,
            model=self._collection.model,
            schema=(),
            rows=SegmentRows(
                ids=pa.array([str(row) for row in rows], type=pa.string()),
                sequences=rows.astype(np.int64),
                vectors=self._vectors[rows],
                attributes=pa.RecordBatch.from_arrays([], names=[]),
                payloads=pa.nulls(len(rows), pa.binary()),
            ),
            created_at_s=0.0,
        )
        return Source(self._opened(entry), DeleteVector.empty(len(rows)))

    def _opened(self, entry: SegmentEntry) -> Segment:
        return Segment.open(local_segment(self._directory / entry.segment_id, entry), entry)


def measure(report: Report, churn: Churn, say: Callable[[str], None]) -> None:
    """Add a row for every generation to `report`."""
    directory = Path(tempfile.mkdtemp(prefix="bench-merge-"))
    try:
        generations = Generations(report.dataset, churn, directory)
        for number in range(1, churn.generations + 1):
            row = report.add(**generations.run(number, report.options.k))
            say(
                f"generation {number} of {churn.generations}: {row['kind']},"
                f" {row['merge_s']:.1f} s, recall {row['recall']:.4f}"
            )
            report.write()  # what is known so far, should the rest be interrupted
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Churn]:
    """Return the options that all benchmarks share, and those of this one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--deleted", type=float, default=0.05)
    parser.add_argument("--added", type=float, default=0.05)
    parser.add_argument("--rebuild-every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    own, rest = parser.parse_known_args(arguments)
    if own.generations < 1 or own.rebuild_every < 1 or own.threads < 1:
        parser.error("--generations, --rebuild-every and --threads are 1 or more")
    if not (0 <= own.deleted < 1 and 0 <= own.added <= 1):
        parser.error("--deleted and --added are shares of the rows")
    description = (
        f"{__doc__.splitlines()[0]} Also takes --generations N, --deleted SHARE, --added SHARE,"
        " --rebuild-every N (generations), --threads N."
    )
    return parse_options(rest, description=description), Churn(**vars(own))


def main() -> None:
    """Print a row for every generation."""
    options, churn = parse()
    report = Report("merge", options, load_dataset(options))
    console = report_console()
    warm_up()
    measure(report, churn, lambda text: console.print(text, style="dim", highlight=False))
    print_report(
        report,
        title=f"merges of {churn.deleted:.0%} deleted and {churn.added:.0%} new rows",
        columns=COLUMNS,
        console=console,
    )


if __name__ == "__main__":
    main()
