"""Recall, latency and memory of every vector storage, inside one node.

One segment for each storage, built as the compactor builds it and searched as a node does, without
network. The storages take turns, so their times can be compared.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from annheal.index import warm_up
from annheal.model.collection import VectorStorage
from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.segment import Segment, local_segment
from annheal.segment.meta import INDEX_FILE, VECTORS_FILE
from benchmarks.datasets.filter_cases import RANDOM, canonical, columns_of
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Column, Report, print_report, report_console
from benchmarks.harness.timing import time_in_turns
from benchmarks.systems.node_segment import NodeSegment, build_node_segment

QUERIES_MAX = 1_000
QUERIES_TIMED = 100
K_TOUCHED = 10
SHARES = (1.0, 0.2, 0.05, 0.01)
"""Shares of matching rows, random ones."""

COLUMNS = (
    Column("matches_percent", "matches %", 0),
    Column("storage", "storage"),
    Column("plan", "plan"),
    Column("ef", "ef"),
    Column("recall", "recall", 4),
    Column("p50_ms", "p50 ms", 3),
    Column("ratio_to_float32", "of float32", 2),
    Column("index_bytes_per_row", "index B/row", 0),
    Column("raw_bytes_per_row", "raw B/row", 0),
    Column("resident_bytes_per_row", "resident B/row", 0),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A segment of one storage, and where its files are."""

    node: NodeSegment
    directory: Path
    resident_bytes_per_row: float = 0.0

    def bytes_per_row(self, name: str) -> float:
        """Return the size of one of its files by its rows; 0 without that file."""
        path = self.directory / name
        return path.stat().st_size / self.node.rows if path.exists() else 0.0

    def resident_per_row(self, queries: npt.NDArray[np.float32]) -> float:
        """Return what searching needs in memory by rows.

        The index as a whole (a walk may touch any of it), and of the float32 vectors behind codes
        the pages that `queries` have touched, with none of them in memory before.
        """
        if not (self.directory / VECTORS_FILE).exists():
            return self.bytes_per_row(INDEX_FILE)
        with tempfile.TemporaryDirectory() as folder:
            # A copy, because what is mapped stays in memory.
            directory = shutil.copytree(self.directory, Path(folder) / "copy")
            files = local_segment(directory, self.node.segment.entry)
            raw = directory / VECTORS_FILE
            _forget(raw)
            segment = Segment.open(files, self.node.segment.entry)
            before = _resident_bytes(raw)
            segment.index.search(queries, k=K_TOUCHED, ef=self.node.plain_ef(K_TOUCHED))
            touched = _resident_bytes(raw) - before
        return self.bytes_per_row(INDEX_FILE) + touched / self.node.rows


def build_all(dataset: Dataset, queries: npt.NDArray[np.float32], folder: Path) -> list[Stored]:
    """Build one segment for each storage."""
    columns = columns_of(dataset, queries)
    threads = len(os.sched_getaffinity(0))
    found = []
    for storage in VectorStorage:
        directory = folder / storage.value
        node = build_node_segment(
            dataset, columns, directory=directory, threads=threads, storage=storage
        )
        assert node.segment.storage is storage, f"{storage} fell short of the objective"
        built = Stored(node, directory / "merged")
        resident = built.resident_per_row(queries)
        found.append(replace(built, resident_bytes_per_row=resident))
    return found


def measure_share(
    report: Report, stored: list[Stored], queries: npt.NDArray[np.float32], share: float
) -> None:
    """Add a row for each storage, with a filter that `share` of the rows match."""
    rows = stored[0].node.rows
    matches = max(1, round(share * rows))
    k, repeats = report.options.k, report.options.repeats
    filter = _filter(stored[0].node, matches) if share < 1.0 else None
    asked = SearchOptions(k=k, filter=filter)
    calls = {one.node.segment.storage.value: _call(one.node, asked) for one in stored}
    took = time_in_turns(calls, queries[:QUERIES_TIMED], repeats=repeats)
    base = took[VectorStorage.FLOAT32.value].p50_ms
    for one in stored:
        storage = one.node.segment.storage.value
        answer = one.node.search(queries, SearchOptions(k=k, filter=filter, explain=True))
        truth, _ = one.node.index.search(queries, k=k, live=one.node.matching(filter), exact=True)
        report.add(
            storage=storage,
            matches_percent=100 * share,
            plan=answer.explain[0].plan,
            ef=answer.explain[0].ef,
            recall=_recall(answer, truth, k=k),
            p50_ms=took[storage].p50_ms,
            p95_ms=took[storage].p95_ms,
            ratio_to_float32=took[storage].p50_ms / base,
            index_bytes_per_row=one.bytes_per_row(INDEX_FILE),
            raw_bytes_per_row=one.bytes_per_row(VECTORS_FILE),
            resident_bytes_per_row=one.resident_bytes_per_row,
        )


def _call(node: NodeSegment, asked: SearchOptions) -> partial[SearchAnswer]:
    return partial(node.search, options=asked)


def _filter(node: NodeSegment, matches: int) -> Filter:
    columns = node.segment.attributes
    return canonical(Comparison(RANDOM, ComparisonOp.LT, matches), columns)


def _recall(answer: SearchAnswer, truth: npt.NDArray[np.float32], *, k: int) -> float:
    """Return recall by score, which must be the exact one for that."""
    found = np.full((len(answer.counts), k), -np.inf, dtype=np.float32)
    found[np.arange(k) < answer.counts[:, None]] = answer.scores
    return float((found >= truth[:, -1:] - 1e-6).sum(axis=1).clip(max=k).mean() / k)


def _forget(path: Path) -> None:
    """Drop a file that nobody maps from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache (mincore(2))."""
    size, page = path.stat().st_size, mmap.PAGESIZE
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    pages = (ctypes.c_ubyte * -(-size // page))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    failed = ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(address), ctypes.c_size_t(size), pages
    )
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(np.frombuffer(bytes(pages), dtype=np.uint8) & 1)) * page


def main() -> int:
    """Run the benchmark."""
    options: Options = parse_options(description=__doc__ or "")
    console = report_console()
    dataset = load_dataset(options)
    warm_up()
    queries = np.ascontiguousarray(dataset.queries[:QUERIES_MAX])
    report = Report("storage", options, dataset)
    with tempfile.TemporaryDirectory() as folder:
        stored = build_all(dataset, queries, Path(folder))
        for share in SHARES:
            measure_share(report, stored, queries, share)
    print_report(report, title="Storage", columns=COLUMNS, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
