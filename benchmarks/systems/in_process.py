"""Indexes of other libraries under churn, each in a process of its own so that memory can be read.

Both keep deleted rows in the graph: `FaissTombstones` hides them with a bitmap and appends what is
written; `HnswlibReplace` marks them deleted and lets new rows take their places.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.datasets.loading import FAISS_EF_CONSTRUCTION, FAISS_M

GROWTH = 1.25
"""hnswlib is told its capacity beforehand; it is raised by this factor when it is full."""

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
T = TypeVar("T")


class IndexUnderChurn(Protocol):
    """An index of numbered vectors of unit length, compared by inner product."""

    @property
    def dead(self) -> int:
        """Rows in the index that do not live."""

    def change(self, *, dead: Int64s, new: Int64s, vectors: Float32s) -> None:
        """End the rows `dead` and add `vectors` under the numbers `new`."""

    def search(
        self, queries: Float32s, *, k: int, ef: int
    ) -> tuple[Int64s, Float32s, float | None]:
        """Return numbers (q, k) (-1: none), scores, and vectors compared for one query."""

    def write(self, path: Path) -> None:
        """Write the index to a file."""


class FaissTombstones:
    """One FAISS HNSW graph that is only ever added to; a bitmap says what lives."""

    def __init__(self, dimension: int) -> None:
        self._index = faiss.IndexHNSWFlat(dimension, FAISS_M, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = FAISS_EF_CONSTRUCTION
        self._numbers = np.empty(0, dtype=np.int64)
        self._live = np.empty(0, dtype=bool)
        self._bits = np.empty(0, dtype=np.uint8)

    @property
    def dead(self) -> int:
        """Rows in the index that do not live."""
        return int((~self._live).sum())

    def change(self, *, dead: Int64s, new: Int64s, vectors: Float32s) -> None:
        """End the rows `dead` and add `vectors` under the numbers `new`."""
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        self._live[np.searchsorted(self._numbers, dead)] = False
        self._index.add(vectors)
        self._numbers = np.concatenate([self._numbers, new])  # ascending: they count up
        self._live = np.concatenate([self._live, np.ones(len(new), dtype=bool)])
        self._bits = np.packbits(self._live, bitorder="little")

    def search(
        self, queries: Float32s, *, k: int, ef: int
    ) -> tuple[Int64s, Float32s, float | None]:
        """Return numbers (q, k) (-1: none), scores, and vectors compared for one query."""
        selector = faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))
        parameters = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
        faiss.cvar.hnsw_stats.reset()
        scores, rows = self._index.search(queries, k, params=parameters)
        compared = faiss.cvar.hnsw_stats.ndis / len(queries)
        return np.where(rows >= 0, self._numbers[rows], -1), scores, compared

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, str(path))


class HnswlibReplace:
    """hnswlib with `mark_deleted`; new rows take the places of deleted ones."""

    def __init__(self, dimension: int) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", dimension)
        self._rows = self._capacity = self.dead = 0

    def change(self, *, dead: Int64s, new: Int64s, vectors: Float32s) -> None:
        """End the rows `dead` and add `vectors` under the numbers `new`."""
        for number in dead.tolist():
            self._index.mark_deleted(number)
        replaced = min(len(new), self.dead + len(dead))
        self.dead += len(dead) - replaced
        self._rows += len(new) - replaced
        if not self._capacity:
            self._capacity = self._rows
            self._index.init_index(
                self._capacity,
                M=FAISS_M,
                ef_construction=FAISS_EF_CONSTRUCTION,
                allow_replace_deleted=True,
            )
        elif self._rows > self._capacity:
            self._capacity = int(self._rows * GROWTH)
            self._index.resize_index(self._capacity)
        self._index.set_num_threads(len(os.sched_getaffinity(0)))
        self._index.add_items(vectors, new, replace_deleted=True)

    def search(
        self, queries: Float32s, *, k: int, ef: int
    ) -> tuple[Int64s, Float32s, float | None]:
        """Return numbers (q, k) (-1: none) and scores; hnswlib does not count comparisons."""
        self._index.set_ef(ef)
        numbers = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        self._index.set_num_threads(1)
        for row in range(len(queries)):
            try:
                labels, distances = self._index.knn_query(queries[row : row + 1], k=k)
            except RuntimeError:
                continue  # it found fewer than k, and then returns none
            numbers[row], scores[row] = labels[0], 1.0 - distances[0]
        return numbers, scores, None

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        self._index.save_index(str(path))


INDEXES: dict[str, type[FaissTombstones] | type[HnswlibReplace]] = {
    "faiss": FaissTombstones,
    "hnswlib": HnswlibReplace,
}


def hnswlib_is_there() -> bool:
    """Return whether hnswlib, or a package that ships it, is installed."""
    return importlib.util.find_spec("hnswlib") is not None


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident memory of the process, size of the index as a file, and dead rows in the index."""

    memory_bytes: int
    disk_bytes: int
    dead_rows: int


_held: IndexUnderChurn


def _create(kind: str, dimension: int) -> None:
    global _held
    _held = INDEXES[kind](dimension)


def _change(dead: Int64s, new: Int64s, vectors: Float32s) -> None:
    _held.change(dead=dead, new=new, vectors=vectors)


def _search(queries: Float32s, k: int, ef: int) -> tuple[Int64s, Float32s, float | None]:
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    return _held.search(queries, k=k, ef=ef)


def _time_each(queries: Float32s, k: int, ef: int) -> Float32s:
    """Return the milliseconds of every query asked by itself, in one thread."""
    faiss.omp_set_num_threads(1)
    took_ms = np.empty(len(queries), dtype=np.float32)
    for row in range(len(queries)):
        started_s = time.perf_counter()
        _held.search(queries[row : row + 1], k=k, ef=ef)
        took_ms[row] = (time.perf_counter() - started_s) * 1e3
    return took_ms


def _footprint() -> Footprint:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        _held.write(path)
        size_bytes = path.stat().st_size
    return Footprint(pages * os.sysconf("SC_PAGE_SIZE"), size_bytes, _held.dead)


class ChildIndex:
    """One of `INDEXES` in a process of its own; calls block."""

    def __init__(self, kind: str, dimension: int) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._call(_create, kind, dimension)

    def change(self, *, dead: Int64s, new: Int64s, vectors: Float32s) -> None:
        """End the rows `dead` and add `vectors` under the numbers `new`."""
        self._call(_change, dead, new, vectors)

    def search(
        self, queries: Float32s, *, k: int, ef: int
    ) -> tuple[Int64s, Float32s, float | None]:
        """Return numbers (q, k) (-1: none), scores, and vectors compared for one query."""
        return self._call(_search, queries, k, ef)

    def time_each(self, queries: Float32s, *, k: int, ef: int) -> Float32s:
        """Return the milliseconds of every query asked by itself, in one thread."""
        return self._call(_time_each, queries, k, ef)

    def footprint(self) -> Footprint:
        """Return memory, size and dead rows."""
        return self._call(_footprint)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._pool.submit(function, *arguments).result()
