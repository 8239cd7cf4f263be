"""Builds an HNSW graph that extends the graph of another index, its base.

The links of the base are carried over without its dead rows, then new rows are added. FAISS can
neither remove rows from an HNSW index nor start with given links. But its arrays can be written
directly: `levels` (the number of levels of each row, at least 1), `offsets` (where the links of
each row begin; a row has 2 M places on level 0 and M on each higher one), `neighbors` (row numbers;
the first -1 ends a list), the entry point and the highest level. FAISS's `add` extends such a graph
like one of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from annheal.index.building import batch_rows
from annheal.index.carry import merge_layout as layout
from annheal.index.graph import HnswGraph
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.loaded import machine_code
from annheal.index.vector_index import VectorIndex
from annheal.index.walk.walk_layout import ENTRY, WIDTHS
from annheal.model.collection import IndexSettings, Metric
from annheal.model.records import Float32Matrix

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

STACK_ROWS = 4_096
"""Dead rows on the stack of one row's repair; more are ignored."""
SLICE_ROWS = 500
"""Rows whose links are carried over in one slice, 0.35 s if many are dead; a merge can be stopped
between two slices."""
EXACT_LINKS_MAX = 256
"""Stranded rows without a reachable neighbour that are compared with all rows to find one."""
NEAREST_ROWS = 16
"""Nearest rows of such a row that are tried for a link to it."""


@dataclass(frozen=True, slots=True)
class CarriedLinks:
    """Counts of the base's links, all levels together, and of rows cut off on level 0.

    Attributes:
        kept: links between live rows.
        lost: links from live rows to dead ones.
        made: links that replace lost ones.
        stranded: rows to which no path led after the links were carried over.
        unreachable: stranded rows that could not be linked either.
    """

    kept: int
    lost: int
    made: int
    stranded: int
    unreachable: int


@dataclass(slots=True)
class _GraphArrays:
    """The arrays of a graph for FAISS (see above); `width` places for links on level 0."""

    levels: Int32s
    offsets: Int64s
    neighbors: Int32s
    width: int
    entry: int

    def links(self, row: int) -> Int32s:
        """Return a writable view of the places for links of `row` on level 0, (width,) int32."""
        start = int(self.offsets[row])
        return self.neighbors[start : start + self.width]


def is_base(index: VectorIndex) -> bool:
    """Return whether `index` has a graph that can be extended.

    Its storage does not matter: links are chosen by the float32 vectors given to `merge_hnsw`.
    """
    return index._graph is not None


def merge_hnsw(
    base: VectorIndex,
    kept: Int64s,
    vectors: Float32Matrix,
    *,
    settings: IndexSettings,
    threads: int,
    repair: bool = True,
    on_progress: Callable[[int], None] | None = None,
    on_carried: Callable[[CarriedLinks], None] | None = None,
    probe_rows: int = 0,
    probe: Callable[[VectorIndex], None] | None = None,
) -> VectorIndex:
    """Return an HNSW index over a copy of `vectors`, (n, d) float32, that extends `base`'s graph.

    `kept` (m,) int64 are the rows of `base` that stay in the graph, each once. Their vectors are
    the first m of `vectors`, in this order; the other rows are added. `settings` must have the
    base's m. Without `repair` links to dead rows are dropped and not replaced. The graph does not
    depend on `threads`. `on_carried` is called with the counts of links. `threads`, `on_progress`,
    `probe_rows` and `probe` are as in `build_hnsw`; the last `probe_rows` rows must not be among
    the kept ones.

    Raises ValueError for a base that `is_base` refuses, or that does not fit the other arguments;
    `KernelNotLoaded` before `MERGE_KERNELS` are loaded.
    """
    source = base._graph
    if source is None or not is_base(base):
        raise ValueError("the base has no graph")
    probe_at = len(vectors) - probe_rows
    if not 0 < len(kept) <= probe_at or source.width != 2 * settings.m:
        raise ValueError(
            f"a base with {source.width} links and {len(kept)} rows to keep for {len(vectors)}"
            f" vectors, {probe_rows} of them probes, and M {settings.m}"
        )
    arrays, counts = _carry(
        base, kept, vectors, repair=repair, threads=threads, on_progress=on_progress
    )
    stranded, unreachable = _reconnect(
        arrays, vectors[: len(kept)], l2=base.metric is Metric.L2, on_progress=on_progress
    )
    if on_carried is not None:
        live, lost, made = counts
        on_carried(CarriedLinks(live, lost, made, stranded, unreachable))
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.m, base._index.metric_type)
    index.hnsw.efConstruction = settings.ef_construction
    _assemble(index, arrays, vectors[: len(kept)])
    # FAISS starts each index with the same seed, so without a new one every merge would draw the
    # same levels for its new rows.
    index.hnsw.rng = faiss.RandomGenerator((len(vectors) << 8) + len(kept) & 0x7FFFFFFF)
    edges = sorted(
        {len(kept), *range(len(kept), probe_at, batch_rows(settings)), probe_at, len(vectors)}
    )
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        if probe_at == len(kept) and probe is not None:
            probe(VectorIndex(index, metric=base.metric))
        for start, end in itertools.pairwise(edges):
            index.add(np.ascontiguousarray(vectors[start:end], dtype=np.float32))
            if end == probe_at and probe is not None:
                probe(VectorIndex(index, metric=base.metric))
            if on_progress is not None:
                on_progress(end)
    finally:
        faiss.omp_set_num_threads(before)
    return VectorIndex(index, metric=base.metric)


def unreachable_rows(index: VectorIndex) -> Int64s:
    """Return the rows of an HNSW index to which no path leads on level 0, ascending; int64.

    Raises ValueError for an index without a graph.
    """
    graph = index._graph
    if graph is None:
        raise ValueError("a flat index has no graph")
    entry = int(graph.layout[ENTRY])
    parents = np.full(index.rows, -1, dtype=np.int32)
    stack = np.empty_like(parents)
    machine_code(Kernel.MARK_REACHED)(
        graph.neighbors, graph.offsets, graph.width, entry, entry, parents, stack
    )
    return np.flatnonzero(parents[: index.graph_size] < 0)


def _carry(
    base: VectorIndex,
    kept: Int64s,
    vectors: Float32Matrix,
    *,
    repair: bool,
    threads: int,
    on_progress: Callable[[int], None] | None,
) -> tuple[_GraphArrays, list[int]]:
    """Return the graph of the kept rows, and how many links were kept, lost and made."""
    source = base._graph
    assert source is not None
    levels = faiss.vector_to_array(base._index.hnsw.levels)
    new_of_old = np.full(len(levels), -1, dtype=np.int32)
    new_of_old[kept] = np.arange(len(kept), dtype=np.int32)
    new_levels = np.ascontiguousarray(levels[kept])
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(source.layout[WIDTHS:][new_levels], out=offsets[1:])
    arrays = _GraphArrays(
        levels=new_levels,
        offsets=offsets,
        neighbors=np.full(int(offsets[-1]), -1, dtype=np.int32),
        width=source.width,
        entry=int(np.argmax(new_levels)),
    )
    settings = np.zeros(layout.SETTINGS, dtype=np.int64)
    settings[layout.DIMENSION], settings[layout.REPAIR] = vectors.shape[1], repair
    settings[layout.L2] = base.metric is Metric.L2
    rows = (new_of_old, kept, vectors.reshape(-1))
    edges = np.array([*range(0, len(kept), SLICE_ROWS), len(kept)])
    counts = np.zeros(3, dtype=np.int64)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="carry-links")
    try:
        futures = [
            pool.submit(_carry_slice, source, arrays, rows, settings, start=start, stop=stop)
            for start, stop in itertools.pairwise(edges.tolist())
        ]
        for stop, future in zip(edges[1:].tolist(), futures, strict=True):
            counts += future.result()
            if on_progress is not None:
                on_progress(stop)
    finally:
        pool.shutdown(cancel_futures=True)
    return arrays, counts.tolist()


def _carry_slice(
    source: HnswGraph,
    arrays: _GraphArrays,
    rows: tuple[Int32s, Int64s, npt.NDArray[np.float32]],
    settings: Int64s,
    *,
    start: int,
    stop: int,
) -> Int64s:
    """Write the links of rows `start` to `stop` (exclusive) of the new graph; return the counts.

    `rows`: new number of each old row (-1: dead), old number of each kept row, all vectors, flat.
    """
    new_of_old, kept, flat = rows
    own = settings.copy()
    own[layout.START], own[layout.STOP] = start, stop
    counts = np.zeros(3, dtype=np.int64)
    machine_code(Kernel.CARRY_LINKS)(
        source.neighbors,
        source.offsets,
        source.layout[WIDTHS:],
        new_of_old,
        kept,
        arrays.levels,
        flat,
        own,
        np.zeros(len(new_of_old), dtype=np.uint32),
        np.empty(STACK_ROWS, dtype=np.int32),
        np.empty(layout.POOL_ROWS, dtype=np.int32),
        np.empty(layout.POOL_ROWS, dtype=np.float32),
        np.empty(layout.POOL_ROWS, dtype=np.int64),
        np.empty(layout.POOL_ROWS, dtype=np.int64),
        arrays.offsets,
        arrays.neighbors,
        counts,
    )
    return counts


def _reconnect(
    arrays: _GraphArrays,
    vectors: Float32Matrix,
    *,
    l2: bool,
    on_progress: Callable[[int], None] | None,
) -> tuple[int, int]:
    """Link stranded rows; return how many there were and how many are still unreachable.

    A stranded row gets a link from a reachable one of its own neighbours, else from one of its
    nearest reachable rows. The link goes into a free place, or replaces a link that is not in the
    spanning tree of the search from the entry point: so no other row is cut off.
    """
    kernel = machine_code(Kernel.MARK_REACHED)
    parents = np.full(len(arrays.levels), -1, dtype=np.int32)
    stack = np.empty_like(parents)
    kernel(
        arrays.neighbors, arrays.offsets, arrays.width, arrays.entry, arrays.entry, parents, stack
    )
    stranded = np.flatnonzero(parents < 0).tolist()
    compared, unreachable = 0, 0
    for row in stranded:
        if parents[row] >= 0:
            continue  # reachable by now, through a stranded row linked before it
        if on_progress is not None:
            on_progress(len(vectors))
        own = arrays.links(row)
        source = _link_from(
            [v for v in own[own >= 0].tolist() if parents[v] >= 0], row, arrays, parents
        )
        if source < 0 and compared < EXACT_LINKS_MAX:
            compared += 1
            source = _link_from(_nearest(vectors, row, parents >= 0, l2=l2), row, arrays, parents)
        if source < 0:
            unreachable += 1
            continue
        kernel(arrays.neighbors, arrays.offsets, arrays.width, row, source, parents, stack)
    return len(stranded), unreachable


def _nearest(
    vectors: Float32Matrix, row: int, reached: npt.NDArray[np.bool_], *, l2: bool
) -> list[int]:
    """Return up to `NEAREST_ROWS` reachable rows that are nearest to `row`, nearest first."""
    similar = vectors @ vectors[row]
    if l2:
        similar = 2 * similar - np.einsum("ij,ij->i", vectors, vectors)
    similar[~reached] = -np.inf
    best = np.argsort(-similar)[:NEAREST_ROWS].tolist()
    return [row for row in best if reached[row]]


def _link_from(sources: list[int], row: int, arrays: _GraphArrays, parents: Int32s) -> int:
    """Add a link to `row` to one of the rows `sources`; return it, -1 when none has a place.

    `parents` is the spanning tree: the row from which each row was first reached.
    """
    for source in sources:
        places = arrays.links(source)
        if places[-1] < 0:
            places[np.argmax(places < 0)] = row
            return source
    for source in sources:
        places = arrays.links(source)
        spare = np.flatnonzero(parents[places] != source)
        if len(spare):
            places[spare[-1]] = row
            return source
    return -1


def _assemble(index: Any, arrays: _GraphArrays, vectors: Float32Matrix) -> None:
    """Write the graph and its vectors into an empty FAISS index."""
    hnsw = index.hnsw
    faiss.copy_array_to_vector(arrays.levels, hnsw.levels)
    faiss.copy_array_to_vector(arrays.offsets.astype(np.uint64), hnsw.offsets)
    faiss.copy_array_to_vector(arrays.neighbors, hnsw.neighbors)
    hnsw.entry_point = arrays.entry
    hnsw.max_level = int(arrays.levels[arrays.entry]) - 1
    index.storage.add(np.ascontiguousarray(vectors))
    index.ntotal = len(vectors)
