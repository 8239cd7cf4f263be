"""Lossy storage of the vectors of a graph: FAISS's scalar quantizers, and exact re-ranking.

A graph is always built over float32 vectors. For lossy storage its links are kept and its vectors
are quantized, so all storages have the same graph. The best rows of a walk over quantized vectors
are compared again with the float32 vectors, which a segment keeps in a file of their own.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
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
"""How many of the best rows of a walk are compared again: the largest of `RERANK_TIMES` times k,
`RERANK_MORE` more than k, and `RERANK_SHARE` of ef. On 100,000 x 384 with k 10 and int8, 12 rows
gave the recall of all 64 in the beam. As the number grows with ef, a larger ef also raises recall
where quantization loses more."""
FP16_MAX = 65_504.0
QUANTIZED_AT_ONCE = 50_000
"""Vectors that FAISS quantizes in one call, which takes about 0.1 s at 384 floats."""

_QUANTIZERS = {
    VectorStorage.FP16: faiss.ScalarQuantizer.QT_fp16,
    VectorStorage.INT8: faiss.ScalarQuantizer.QT_8bit,
}
_STORAGES = {quantizer: storage for storage, quantizer in _QUANTIZERS.items()}
_TYPES = {VectorStorage.FP16: "<u2", VectorStorage.INT8: "<u1"}
_STEPS = 255.0
"""FAISS decodes byte b of dimension j as low[j] + (b + 0.5) / 255 * range[j]."""


@dataclass(frozen=True, slots=True)
class QuantizedVectors:
    """Views of the quantized vectors of a graph, for the walk kernel.

    Attributes:
        storage: FP16 or INT8.
        stored: (rows * d,), row after row: uint16 with the bits of float16 numbers, or uint8.
        low: (d,) float32; a byte b of `int8` stands for low + step * b. None for `fp16`.
        step: (d,) float32, None for `fp16`.
    """

    storage: VectorStorage
    stored: npt.NDArray[Any]
    low: npt.NDArray[np.float32] | None
    step: npt.NDArray[np.float32] | None

    def prepared(self, queries: Float32Matrix, *, l2: bool) -> npt.NDArray[np.float32]:
        """Return the queries (n, d) as the walk kernel takes them, flat float32.

        For `int8`, decoding is done here once for each query, instead of for each row. For inner
        products a query is multiplied by `step`; a constant is left out that does not change the
        order of rows. For L2 `low` is subtracted from it, and `step` follows the last query.
        """
        if self.low is None or self.step is None:
            return queries.reshape(-1)
        if not l2:
            return (queries * self.step).reshape(-1)
        return np.concatenate([(queries - self.low).reshape(-1), self.step])


@dataclass(frozen=True, slots=True)
class RawVectors:
    """The float32 vectors of a lossy index: a flat FAISS index, and the owner of its memory."""

    index: Any
    owner: Any


def can_store(vectors: Float32Matrix, storage: VectorStorage) -> bool:
    """Return whether `storage` has a finite value for each of `vectors` (n, d), n at least 1."""
    if storage is not VectorStorage.FP16:
        return True
    return float(vectors.max()) <= FP16_MAX and float(vectors.min()) >= -FP16_MAX


def quantize_graph(
    index: Any,
    storage: VectorStorage,
    *,
    vectors: Float32Matrix,
    sample: Float32Matrix | None,
    yield_point: Callable[[], None],
) -> Any:
    """Return an `IndexHNSWSQ` with the links and the quantized `vectors` of an `IndexHNSWFlat`.

    The value range of each dimension is that of `sample` (n, d), by default of the vectors.
    """
    flat = faiss.downcast_index(index.storage)
    lossy = faiss.IndexHNSWSQ(index.d, _QUANTIZERS[storage], 2, index.metric_type)
    rows = flat.ntotal
    # train_c and add_c are the bare C++ calls; vectors of a mapped index may be unaligned.
    if sample is None:
        lossy.storage.train_c(rows, flat.get_xb())
    else:
        lossy.storage.train(sample)
    for start in range(0, rows, QUANTIZED_AT_ONCE):
        yield_point()
        some = vectors[start : start + QUANTIZED_AT_ONCE]
        lossy.storage.add_c(len(some), faiss.swig_ptr(some))
    lossy.hnsw = index.hnsw
    lossy.ntotal = rows
    lossy.is_trained = True
    return lossy


def quantized_vectors(index: Any) -> QuantizedVectors:
    """Return views of the quantized vectors of an `IndexHNSWSQ`, which they keep alive.

    Raises ValueError for a quantizer that Annheal does not write.
    """
    codes = faiss.downcast_index(index.storage)
    storage = _STORAGES.get(codes.sq.qtype)
    if storage is None:
        raise ValueError(f"unknown scalar quantizer {codes.sq.qtype}")
    memory = ForeignMemory(
        int(codes.codes.data()),
        shape=(codes.ntotal * index.d,),
        typestr=_TYPES[storage],
        owner=index,
    )
    stored = np.asarray(memory) if codes.ntotal else np.empty(0, dtype=_TYPES[storage])
    if storage is VectorStorage.FP16:
        return QuantizedVectors(storage, stored, None, None)
    trained = faiss.vector_to_array(codes.sq.trained)
    step = trained[index.d :] / np.float32(_STEPS)
    return QuantizedVectors(storage, stored, trained[: index.d] + step / 2, step)


def reranked_rows(k: int, *, ef: int) -> int:
    """Return how many rows of a walk with `ef` are compared again."""
    candidates = max(RERANK_TIMES * k, k + RERANK_MORE, RERANK_SHARE * ef)
    return min(max(ef, k), math.ceil(candidates))


def rerank(
    raw: Any,
    queries: Float32Matrix,
    rows: npt.NDArray[np.int64],
    *,
    k: int,
    metric: Metric,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Compare each query (n, d) with its own `rows` (n, m) int64 of `raw`, a flat FAISS index.

    Rows of -1 are left out. Returns FAISS's distances (n, k) float32 and rows (n, k) int64, best
    first, with rows of -1 where there are fewer than k.
    """
    n, candidates = rows.shape
    distances = np.empty((n, k), dtype=np.float32)
    found = np.empty((n, k), dtype=np.int64)
    candidates_of_each_query = np.ascontiguousarray(rows)
    compare_by_rows(metric)(
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


def compare_by_rows(metric: Metric) -> Any:
    """Return FAISS's function that compares queries with rows given by their numbers."""
    return faiss.knn_L2sqr_by_idx if metric is Metric.L2 else faiss.knn_inner_products_by_idx


def map_raw(path: Path) -> RawVectors:
    """Map the file of a flat FAISS index without read-ahead.

    Reads of it are few and scattered; read-ahead would fill memory with rows beside them. Raises
    RuntimeError or ValueError if the file is not such an index.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    content = np.frombuffer(mapped, dtype=np.uint8)
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)
    index = faiss.read_index(reader)
    if not isinstance(index, faiss.IndexFlat):
        raise ValueError(f"it holds a {type(index).__name__}, not a flat index")
    # FAISS does not keep the map alive.
    return RawVectors(index, (index, content))
