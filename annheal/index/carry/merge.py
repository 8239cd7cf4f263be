"""Building a graph on one that exists: carried over without its dead rows, new rows added to it.

FAISS can neither remove rows from an HNSW index nor start one from links that exist, but its arrays
can be assembled by hand: `levels` (of a row, counted from 1), `offsets` (of the first link of a
row, which has 2 M places on level 0 and M on each other), `neighbors` (-1 where there is none, the
first of which ends a list), the entry point and the highest level. `add` then goes on as if it
had made them itself.
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

from annheal.index.carry import merge_layout as layout
from annheal.index.carry.merge_compiled import merge_kernels
from annheal.index.graph import HnswGraph
from annheal.index.vector_index import BUILD_BATCH_ROWS, VectorIndex
from annheal.index.walk.walk_layout import ENTRY, WIDTHS
from annheal.model.collection import IndexSettings, Metric
from annheal.model.records import Float32Matrix

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

STACK_ROWS = 4_096
"""Dead rows that wait to be looked through for one row; more are left out."""
SLICES_PER_THREAD = 8
"""Parts of the rows for each thread, so that none waits long for the others."""
EXACT_LINKS_MAX = 256
"""Unreachable rows without a neighbour to link them, and that are compared with all rows."""
NEAREST_ROWS = 16
"""Rows of which one is to link such a row."""


@dataclass(frozen=True, slots=True)
class CarriedLinks:
    """What became of the links of the base: kept, lost with dead rows, made in their place.

    `stranded`: rows that no path led to any more, and that were given a link; `unreachable`: those
    of them that still are.
    """

    kept: int
    lost: int
    made: int
    stranded: int
    unreachable: int


@dataclass(slots=True)
class _Arrays:
    """A graph on its way into FAISS; `width` is the number of links on level 0."""

    levels: Int32s
    offsets: Int64s
    neighbors: Int32s
    width: int
    entry: int

    def links(self, row: int) -> Int32s:
        """Return the places for links of a row on level 0, to be read and written."""
        start = int(self.offsets[row])
        return self.neighbors[start : start + self.width]


def is_base(index: VectorIndex) -> bool:
    """Return whether a graph can be built on that of `index`: it has one.

    Links are chosen by full vectors whatever a walk reads, so the storage does not matter.
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
    """Return an HNSW index over a copy of `vectors`, (n, d) float32, built on the graph of `base`.

    `kept` (m,) int64 are the rows of `base` that live on, each once; they are the first m rows of
    `vectors`, in this order, and the others are added to their graph. `settings` must have the m
    of the base. Without `repair` links to dead rows are dropped and not replaced. The graph does
    not depend on `threads`. `on_carried` is told what became of the links; the rest is as in
    `build_hnsw`, and the last `probe_rows` rows must be new. Waits for the kernels.
    Raises ValueError for a base that `is_base` refuses, or that does not fit the other arguments.
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
    arrays, counts = _carry(base, kept, vectors, repair=repair, threads=threads, tell=on_progress)
    stranded, unreachable = _reconnect(arrays, vectors[: len(kept)], l2=base.metric is Metric.L2)
    if on_carried is not None:
        live, lost, made = counts
        on_carried(CarriedLinks(live, lost, made, stranded, unreachable))
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.m, base._index.metric_type)
    index.hnsw.efConstruction = settings.ef_construction
    _assemble(index, arrays, vectors[: len(kept)])
    # The seed is not stored with an index: every merge would draw the levels of the one before.
    index.hnsw.rng = faiss.RandomGenerator((len(vectors) << 8) + len(kept) & 0x7FFFFFFF)
    stops = sorted(
        {len(kept), *range(len(kept), probe_at, BUILD_BATCH_ROWS), probe_at, len(vectors)}
    )
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        if probe_at == len(kept) and probe is not None:
            probe(VectorIndex(index, metric=base.metric))
        for start, end in itertools.pairwise(stops):
            index.add(np.ascontiguousarray(vectors[start:end], dtype=np.float32))
            if end == probe_at and probe is not None:
                probe(VectorIndex(index, metric=base.metric))
            if on_progress is not None:
                on_progress(end)
    finally:
        faiss.omp_set_num_threads(before)
    return VectorIndex(index, metric=base.metric)


def unreachable_rows(index: VectorIndex) -> Int64s:
    """Return the rows of an HNSW index to which no path leads on level 0, ascending."""
    graph = index._graph
    if graph is None:
        raise ValueError("a flat index has no graph")
    entry = int(graph.layout[ENTRY])
    parents = np.full(index.rows, -1, dtype=np.int32)
    stack = np.empty_like(parents)
    merge_kernels().mark_reached(
        graph.neighbors, graph.offsets, graph.width, entry, entry, parents, stack
    )
    return np.flatnonzero(parents < 0)


def _carry(
    base: VectorIndex,
    kept: Int64s,
    vectors: Float32Matrix,
    *,
    repair: bool,
    threads: int,
    tell: Callable[[int], None] | None,
) -> tuple[_Arrays, list[int]]:
    """Return the arrays of the kept rows, and how many links were kept, lost and made."""
    source = base._graph
    assert source is not None
    levels = faiss.vector_to_array(base._index.hnsw.levels)
    new_of_old = np.full(len(levels), -1, dtype=np.int32)
    new_of_old[kept] = np.arange(len(kept), dtype=np.int32)
    new_levels = np.ascontiguousarray(levels[kept])
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(source.layout[WIDTHS:][new_levels], out=offsets[1:])
    arrays = _Arrays(
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
    edges = np.linspace(0, len(kept), threads * SLICES_PER_THREAD + 1).astype(np.int64)
    counts = np.zeros(3, dtype=np.int64)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="carry-links")
    try:
        slices = [
            pool.submit(_carry_slice, source, arrays, rows, settings, start=start, stop=stop)
            for start, stop in itertools.pairwise(edges.tolist())
        ]
        for stop, one in zip(edges[1:].tolist(), slices, strict=True):
            counts += one.result()
            if tell is not None:
                tell(stop)
    finally:
        pool.shutdown(cancel_futures=True)
    return arrays, counts.tolist()


def _carry_slice(
    source: HnswGraph,
    arrays: _Arrays,
    rows: tuple[Int32s, Int64s, npt.NDArray[np.float32]],
    settings: Int64s,
    *,
    start: int,
    stop: int,
) -> Int64s:
    """Write the links of the new rows from `start` to `stop` (exclusive); return the counts."""
    new_of_old, kept, flat = rows
    own = settings.copy()
    own[layout.START], own[layout.STOP] = start, stop
    counts = np.zeros(3, dtype=np.int64)
    merge_kernels().carry_links(
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


def _reconnect(arrays: _Arrays, vectors: Float32Matrix, *, l2: bool) -> tuple[int, int]:
    """Give rows that cannot be reached a link; return how many there were and how many are left.

    The link goes into a free place of the nearest neighbour that can be reached, or takes the
    place of a link by which nobody was reached first.
    """
    kernel = merge_kernels().mark_reached
    parents = np.full(len(arrays.levels), -1, dtype=np.int32)
    stack = np.empty_like(parents)
    kernel(
        arrays.neighbors, arrays.offsets, arrays.width, arrays.entry, arrays.entry, parents, stack
    )
    stranded = np.flatnonzero(parents < 0).tolist()
    compared, left = 0, 0
    for row in stranded:
        if parents[row] >= 0:
            continue  # through a row before it
        own = arrays.links(row)
        source = _link_from(
            [v for v in own[own >= 0].tolist() if parents[v] >= 0], row, arrays, parents
        )
        if source < 0 and compared < EXACT_LINKS_MAX:
            compared += 1
            source = _link_from(_nearest(vectors, row, parents >= 0, l2=l2), row, arrays, parents)
        if source < 0:
            left += 1
            continue
        kernel(arrays.neighbors, arrays.offsets, arrays.width, row, source, parents, stack)
    return len(stranded), left


def _nearest(
    vectors: Float32Matrix, row: int, reached: npt.NDArray[np.bool_], *, l2: bool
) -> list[int]:
    """Return the nearest rows to `row` that can be reached, nearest first."""
    similar = vectors @ vectors[row]
    if l2:
        similar = 2 * similar - np.einsum("ij,ij->i", vectors, vectors)
    similar[~reached] = -np.inf
    best = np.argsort(-similar)[:NEAREST_ROWS].tolist()
    return [row for row in best if reached[row]]


def _link_from(sources: list[int], row: int, arrays: _Arrays, parents: Int32s) -> int:
    """Add a link to `row` to one of `sources`; return which, -1 when none has a place for it."""
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


def _assemble(index: Any, arrays: _Arrays, vectors: Float32Matrix) -> None:
    """Put the graph and its vectors into an empty FAISS index."""
    hnsw = index.hnsw
    faiss.copy_array_to_vector(arrays.levels, hnsw.levels)
    faiss.copy_array_to_vector(arrays.offsets.astype(np.uint64), hnsw.offsets)
    faiss.copy_array_to_vector(arrays.neighbors, hnsw.neighbors)
    hnsw.entry_point = arrays.entry
    hnsw.max_level = int(arrays.levels[arrays.entry]) - 1
    index.storage.add(np.ascontiguousarray(vectors))
    index.ntotal = len(vectors)
