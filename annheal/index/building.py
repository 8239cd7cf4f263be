"""Building indexes: flat ones, graphs, copies beside a graph, graphs over quantized vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import faiss
import numpy as np

from annheal.index.copies import append_copies
from annheal.index.quantized import RawVectors, quantize_graph
from annheal.index.vector_index import FAISS_METRIC, Rows, VectorIndex
from annheal.model.collection import IndexSettings, Metric, VectorStorage
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import IndexKind

BUILD_BATCH_ROWS = 500
"""Rows of one FAISS `add` at the default ef_construction; a build can be stopped between two."""


def build_flat(vectors: Float32Matrix, *, metric: Metric) -> VectorIndex:
    """Return an exact index over a copy of `vectors`, (n, d) float32."""
    index = faiss.IndexFlat(vectors.shape[1], FAISS_METRIC[metric])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return VectorIndex(index, metric=metric)


def build_hnsw(
    vectors: Float32Matrix,
    *,
    metric: Metric,
    settings: IndexSettings,
    threads: int,
    on_progress: Callable[[int], None] | None = None,
    probe_rows: int = 0,
    probe: Callable[[VectorIndex], None] | None = None,
) -> VectorIndex:
    """Return an HNSW index over a copy of `vectors`, (n, d) float32.

    Uses `threads` OpenMP threads; the graph does not depend on their number. `on_progress` is
    called in the calling thread with the rows added so far, and ends the build by raising. `probe`
    is called once with the index of all but the last `probe_rows` rows, so that these can serve as
    queries that are not in the graph; it must not keep the index.
    """
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.m, FAISS_METRIC[metric])
    index.hnsw.efConstruction = settings.ef_construction
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    probe_at = len(vectors) - probe_rows
    edges = sorted({*range(0, probe_at, batch_rows(settings)), probe_at, len(vectors)})
    try:
        for start, end in itertools.pairwise(edges):
            index.add(np.ascontiguousarray(vectors[start:end], dtype=np.float32))
            if end == probe_at and probe is not None:
                probe(VectorIndex(index, metric=metric))
            if on_progress is not None:
                on_progress(end)
    finally:
        faiss.omp_set_num_threads(before)
    return VectorIndex(index, metric=metric)


def batch_rows(settings: IndexSettings) -> int:
    """Return the rows of one FAISS `add`: fewer the longer the search for each row's links is."""
    by_default = IndexSettings().ef_construction
    return max(1, BUILD_BATCH_ROWS * by_default // max(by_default, settings.ef_construction))


def add_copies(
    index: VectorIndex,
    vectors: Float32Matrix,
    originals: Rows,
    *,
    yield_point: Callable[[], None] = lambda: None,
) -> VectorIndex:
    """Return `index`, a float32 HNSW index without copies, with copies added.

    `index` must not be used afterwards. Copy i has the vector `vectors[i]` (c, d) float32, equal to
    that of row `originals[i]` (c,) int64. `originals` ascend; copies of the same row should be in
    the order of their ids. `yield_point` is called between copies, and ends the work by raising.
    Raises ValueError for an index without a graph or with copies.
    """
    if not len(originals):
        return index
    if index.kind is not IndexKind.HNSW or index.graph_size != index.rows:
        raise ValueError("copies are added once, to an index with a graph")
    graph_size = index.rows
    append_copies(index._index, vectors, originals.astype(np.int32), yield_point)
    return VectorIndex(index._index, metric=index.metric, graph_size=graph_size)


def quantized(
    index: VectorIndex,
    *,
    storage: VectorStorage,
    sample: Float32Matrix | None = None,
    yield_point: Callable[[], None] = lambda: None,
) -> VectorIndex:
    """Return an index with the links of a float32 HNSW `index` over its vectors in lossy `storage`.

    Shares the float32 vectors with `index`, and copies its links. The value range of each dimension
    is taken from `sample` (n, d) float32, if given, else from the vectors of `index`.
    `yield_point` is called between batches of vectors, and ends the work by raising. Raises
    ValueError for another kind of index.
    """
    if index.kind is not IndexKind.HNSW or index.storage is not VectorStorage.FLOAT32:
        raise ValueError(f"a {index.kind} index of {index.storage} has no float32 graph")
    raw = RawVectors(index._storage, index._index)
    lossy = quantize_graph(
        index._index, storage, vectors=index.vectors, sample=sample, yield_point=yield_point
    )
    return VectorIndex(lossy, metric=index.metric, raw=raw, graph_size=index.graph_size)
