"""Lossy storage of the vectors in a graph: FAISS's scalar quantizers, and exact re-ranking.

A graph is always built over float32 vectors; its links are then laid over the codes. So it is the
same graph for every storage, and a walk over it loses only what the codes cannot tell apart. Those
few rows are compared again with the float32 vectors, which a segment keeps beside the graph.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from annheal.index.graph import ForeignMemory
from annheal.model.collection import Metric, VectorStorage
from annheal.model.records import Float32Matrix

RERANK_TIMES, RERANK_MORE, RERANK_SHARE = 1.5, 8, 0.25
"""How many of the best rows of a walk are compared again: so many times k, so many more than k, or
this share of the beam, whichever is most. On 100,000 x 384 and k 10, 12 rows of int8 gave the
recall of all 64 of the beam. Where codes tell less, a wider beam compares more again, so ef can
still be chosen to meet an objective."""
FP16_MAX = 65_504.0

_QUANTIZERS = {
    VectorStorage.FP16: faiss.ScalarQuantizer.QT_fp16,
    VectorStorage.INT8: faiss.ScalarQuantizer.QT_8bit,
}
_STORAGES = {quantizer: storage for storage, quantizer in _QUANTIZERS.items()}
_TYPES = {VectorStorage.FP16: "<u2", VectorStorage.INT8: "<u1"}
_STEPS = 255.0
"""FAISS decodes byte b of dimension j as low[j] + (b + 0.5) / 255 * range[j]."""


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of a graph in place, for the walk kernel.

    stored: flat, one element per row and dimension: uint16 with the bits of halves, or uint8.
    low, step: (d,) float32, what `int8` decodes with: low + step * byte; None for `fp16`.
    """

    storage: VectorStorage
    stored: npt.NDArray[Any]
    low: npt.NDArray[np.float32] | None
    step: npt.NDArray[np.float32] | None

    def prepared(self, queries: Float32Matrix, *, l2: bool) -> npt.NDArray[np.float32]:
        """Return the queries as the kernel compares them with codes, flat.

        For bytes the work of decoding is done here, once for each query instead of once for each
        row. Inner products lose a constant, which no order depends on. For L2 the steps
        follow behind the last query.
        """
        if self.low is None or self.step is None:
            return queries.reshape(-1)
        if not l2:
            return (queries * self.step).reshape(-1)
        return np.concatenate([(queries - self.low).reshape(-1), self.step])


@dataclass(frozen=True, slots=True)
class RawVectors:
    """The float32 vectors behind lossy codes: a flat FAISS index, and what owns its memory."""

    index: Any
    owner: Any


def can_store(vectors: Float32Matrix, storage: VectorStorage) -> bool:
    """Return whether every value of `vectors` (n, d), at least one, has a finite code."""
    if storage is not VectorStorage.FP16:
        return True
    return float(vectors.max()) <= FP16_MAX and float(vectors.min()) >= -FP16_MAX


def quantize_graph(index: Any, storage: VectorStorage, *, sample: Float32Matrix | None) -> Any:
    """Return a FAISS index with the links of an `IndexHNSWFlat` over codes of its vectors.

    The range of each dimension is that of `sample` (n, d), by default of the vectors themselves.
    """
    flat = faiss.downcast_index(index.storage)
    lossy = faiss.IndexHNSWSQ(index.d, _QUANTIZERS[storage], 2, index.metric_type)
    rows = flat.ntotal
    # train_c and add_c are the bare C++ calls; vectors of a mapped index may be unaligned.
    if sample is None:
        lossy.storage.train_c(rows, flat.get_xb())
    else:
        lossy.storage.train(sample)
    lossy.storage.add_c(rows, flat.get_xb())
    lossy.hnsw = index.hnsw
    lossy.ntotal = rows
    lossy.is_trained = True
    return lossy


def codes_of(index: Any) -> Codes:
    """Return the codes of an `IndexHNSWSQ` without a copy; they keep it alive.

    Raises ValueError for a quantizer that Annheal does not write.
    """
    held = faiss.downcast_index(index.storage)
    storage = _STORAGES.get(held.sq.qtype)
    if storage is None:
        raise ValueError(f"unknown scalar quantizer {held.sq.qtype}")
    memory = ForeignMemory(
        int(held.codes.data()),
        shape=(held.ntotal * index.d,),
        typestr=_TYPES[storage],
        owner=index,
    )
    stored = np.asarray(memory) if held.ntotal else np.empty(0, dtype=_TYPES[storage])
    if storage is VectorStorage.FP16:
        return Codes(storage, stored, None, None)
    trained = faiss.vector_to_array(held.sq.trained)
    step = trained[index.d :] / np.float32(_STEPS)
    return Codes(storage, stored, trained[: index.d] + step / 2, step)


def reranked_rows(k: int, *, ef: int) -> int:
    """Return how many rows of a walk with beam `ef` are compared again."""
    wanted = max(RERANK_TIMES * k, k + RERANK_MORE, RERANK_SHARE * ef)
    return min(max(ef, k), math.ceil(wanted))


def rerank(
    raw: Any,
    queries: Float32Matrix,
    rows: npt.NDArray[np.int64],
    *,
    k: int,
    metric: Metric,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Compare each query with its own `rows` (n, m), padded with -1, over a flat FAISS index.

    Returns FAISS's distances (n, k) and the rows, best first; -1 where there are fewer than k.
    """
    n, candidates = rows.shape
    distances = np.empty((n, k), dtype=np.float32)
    found = np.empty((n, k), dtype=np.int64)
    candidates_of_each_query = np.ascontiguousarray(rows)
    by_rows = faiss.knn_L2sqr_by_idx if metric is Metric.L2 else faiss.knn_inner_products_by_idx
    by_rows(
        faiss.swig_ptr(queries),
        raw.get_xb(),
        faiss.swig_ptr(candidates_of_each_query),
        raw.d,
        n,
        raw.ntotal,
        candidates,
        k,
        faiss.swig_ptr(distances),
        faiss.swig_ptr(found),
        candidates,
    )
    return distances, found


def map_raw(path: Path) -> RawVectors:
    """Open a flat FAISS index by a map of our own, that reads no more than what is touched.

    Few scattered rows are read of it: the usual read-ahead would fill memory with their neighbours.
    Raises RuntimeError or ValueError when it is no index.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    content = np.frombuffer(mapped, dtype=np.uint8)
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)
    index = faiss.read_index(reader)
    if not isinstance(index, faiss.IndexFlat):
        raise ValueError(f"it holds a {type(index).__name__}, not a flat index")
    # The index refers to the map without holding it.
    return RawVectors(index, (index, content))
