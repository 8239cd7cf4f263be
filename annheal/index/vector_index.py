"""One class over the FAISS indexes that Annheal uses; no FAISS type leaves this package.

What this package avoids in FAISS:

- `IndexIDMap` rewrites the caller's search parameters during a search. Here rows have numbers;
  segments map them to ids.
- `bounded_queue=False` ignores the selector without an error.
- `add` to a mapped index aborts the process. An index is built once and then only read.
- The number of OpenMP threads is a setting of the calling thread: `set_search_threads` must be
  called in every thread that searches.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from annheal.errors import DataCorruption
from annheal.index.codes.row_codes import size_bytes_max
from annheal.index.codes.shortlist import Shortlist
from annheal.index.copies import Copies, copies_of
from annheal.index.graph import HnswGraph, graph_of, stored_vectors
from annheal.index.hits.scoring import score_errors, scores_of
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.loaded import can_walk, is_loaded
from annheal.index.live import LiveBitmap
from annheal.index.quantized import (
    QuantizedVectors,
    RawVectors,
    compare_by_rows,
    map_raw,
    quantized_vectors,
    rerank,
    reranked_rows,
)
from annheal.index.walk import filtered_walk
from annheal.index.walk.filtered_walk import SCORE_MISSING, Reach, WalkResult, no_hits
from annheal.model.collection import Metric, VectorStorage
from annheal.model.records import Float32Matrix
from annheal.model.topology.manifest import IndexKind

EF_DEFAULT = 64

# From GATHER_QUERIES_MIN queries on rows are copied to one array and compared there, if they fit.
# Measured at 384 dimensions, one thread, k 10. One query: reading the rows in place takes
# 4 / 109 / 1,351 us for 100 / 2,000 / 20,000 rows, gathering them first 9 / 208 / 4,459 us, a scan
# of 50,000 rows with a selector 76 / 183 / 2,011 us. 32 queries: in place 0.15 / 2.5 / 39 ms for
# 200 / 2,000 / 20,000 rows, gathered 0.11 / 1.5 / 39 ms.
# Copies of more than GATHER_BYTES_MAX do not fit the caches.
GATHER_QUERIES_MIN = 8
GATHER_BYTES_MAX = 16 << 20

PRODUCT_VALUES_MIN: int = faiss.cvar.distance_compute_blas_threshold
"""FAISS compares all rows by matrix products if the queries have this number of values or more, 334
queries of 384."""

FAISS_METRIC = {
    Metric.COSINE: faiss.METRIC_INNER_PRODUCT,
    Metric.INNER_PRODUCT: faiss.METRIC_INNER_PRODUCT,
    Metric.L2: faiss.METRIC_L2,
}

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def set_search_threads(threads: int) -> None:
    """Let FAISS use `threads` OpenMP threads in calls made by the calling thread."""
    faiss.omp_set_num_threads(threads)


class VectorIndex:
    """Immutable vectors with an exact (flat) or an HNSW index; rows are numbered from zero.

    Higher scores are better: inner products, or negated squared distances for `Metric.L2`. Scores
    of a search have float32 rounding that depends on the kind of search; `scores` computes those
    that clients get. Vectors and queries of a cosine index must have unit length. Any number of
    threads may search at the same time; FAISS calls and kernels release the GIL. Walks of a lossy
    index compare quantized vectors, and then the best rows again with float32 vectors; exact
    comparison does not read quantized vectors.

    An HNSW index may have copies, which are not in its graph (`annheal.index.copies`), so walks do
    not return them. Pass `graph_rows` of the rows that may be returned to every search, and its
    hits to `with_copies`.

    Attributes:
        rows: number of vectors.
        graph_size: rows in the graph, those before the copies; all rows of a flat index.
        dimension: floats per vector.
        metric: how vectors are compared.
        kind: flat or HNSW.
        storage: how the vectors are stored that a walk compares.
    """

    __slots__ = (
        "__weakref__",
        "_copies",
        "_flat",
        "_graph",
        "_index",
        "_quantized",
        "_shortlist",
        "_storage",
        "_view",
        "dimension",
        "graph_size",
        "kind",
        "metric",
        "rows",
        "storage",
    )

    def __init__(
        self,
        index: Any,
        *,
        metric: Metric,
        raw: RawVectors | None = None,
        graph_size: int | None = None,
    ) -> None:
        """Wrap a FAISS index; for `annheal.index` alone.

        `raw`: the float32 vectors of a lossy index. `graph_size`: the number of rows before the
        copies, None without any. Raises ValueError for bad copies.
        """
        self._index = index
        self._quantized: QuantizedVectors | None = None
        self.kind = IndexKind.FLAT if isinstance(index, faiss.IndexFlat) else IndexKind.HNSW
        if raw is not None:
            self._quantized = quantized_vectors(index)
            self._storage: Any = raw.index
        elif self.kind is IndexKind.HNSW:
            self._storage = faiss.downcast_index(index.storage)
        else:
            self._storage = index
        self.storage = VectorStorage.FLOAT32 if self._quantized is None else self._quantized.storage
        self.rows: int = index.ntotal
        self.dimension: int = index.d
        self.metric = metric
        self._view = stored_vectors(self._storage, owner=index if raw is None else raw)
        self._flat = self._view.reshape(-1)
        self._shortlist: Shortlist | None = None
        self._graph: HnswGraph | None = None
        self._copies: Copies | None = None
        self.graph_size: int = self.rows if graph_size is None else graph_size
        if self.kind is IndexKind.HNSW and self.rows:
            self._graph = graph_of(index, rows=self.graph_size)
            if self.graph_size != self.rows:
                self._copies = copies_of(self._graph, first=self.graph_size, rows=self.rows)

    @property
    def walk_ready(self) -> bool:
        """Whether all kernels that searches of this index use are loaded."""
        return can_walk(self.storage)

    @property
    def vectors(self) -> Float32Matrix:
        """The stored vectors, (rows, dimension) float32, read-only and without a copy.

        In a mapped index they may be unaligned, so that numpy copies them before arithmetic: select
        rows by `reconstruct`, or use the searches of this class.
        """
        return self._view

    def reconstruct(self, rows: Rows) -> Float32Matrix:
        """Return a copy of the given rows, (len(rows), dimension) float32, aligned."""
        return np.ascontiguousarray(self._view[rows])

    def graph_rows(self, live: LiveBitmap | None) -> LiveBitmap | None:
        """Return the rows of the graph that are in `live` (None: all rows) or have a copy there.

        Returns `live` for an index without copies.
        """
        return live if self._copies is None else self._copies.graph_rows(live)

    def with_copies(self, rows: Rows, scores: Scores, *, k: int, live: LiveBitmap | None) -> Rows:
        """Return found `rows` (n, m) int64 with those copies that may be among the best `k`.

        `scores` (n, m) are those of the rows. The result (n, m') has only rows in `live` (None: all
        rows), is padded with -1, and is not in the order of scores. Without copies it is `rows`.
        """
        return rows if self._copies is None else self._copies.add_to(rows, scores, k=k, live=live)

    def originals(self, rows: Rows) -> Rows:
        """Return for each of `rows` (n,) the row of the graph with its vector, (n,) int64."""
        if self._copies is None:
            return rows
        inside = np.minimum(rows, self.graph_size - 1)
        copies = self._copies.originals[np.maximum(rows - self.graph_size, 0)]
        return np.where(rows < self.graph_size, inside, copies)

    def scores(self, queries: Float32Matrix, rows: Rows) -> Scores:
        """Return the scores (n, m) of each query (n, d) with its `rows` (n, m); see `scores_of`.

        The scores that a search returns may differ from them by rounding.
        """
        return scores_of(self._view, queries, rows, metric=self.metric)

    def score_errors(
        self, queries: Float32Matrix, scores: Scores, *, exact: bool
    ) -> npt.NDArray[np.float64] | float:
        """Return the largest rounding error of a search near `scores` (n,), one for each query.

        `exact`: the search compared all rows. See `annheal.index.hits.scoring.score_errors`.
        """
        products = exact and queries.size >= PRODUCT_VALUES_MIN
        return score_errors(queries, scores, metric=self.metric, from_products=products)

    def search(
        self,
        queries: Float32Matrix,
        *,
        k: int,
        ef: int = EF_DEFAULT,
        live: LiveBitmap | None = None,
        exact: bool = False,
    ) -> tuple[Scores, Rows]:
        """Return the best `k` rows of each query: scores (n, k) float32 and rows (n, k) int64.

        `queries`: (n, dimension) float32, C-contiguous. Only rows in `live` (None: all rows) are
        returned. Fewer than `k` hits are padded with -inf and -1. `exact` compares every live row.
        Otherwise an HNSW index is walked with beam width max(`ef`, `k`); other rows than live ones
        take places in the beam, so there may be fewer hits than live rows. Raises ValueError for
        queries, `k` or `live` that do not fit.
        """
        self._check_queries(queries, k)
        self._check_bitmap(live)
        n = queries.shape[0]
        found = min(k, self.rows if live is None else live.count)
        if n == 0 or found == 0:
            return no_hits(n, k)
        if n == 1 and live is None and not exact and self._kernel_is_faster:
            walked = self.walk_filtered(queries, k=k, ef=ef, matching=None)
            return walked.scores, walked.rows
        if exact or self.kind is IndexKind.FLAT:
            index: Any = self._storage
            parameters: Any = faiss.SearchParameters() if live is not None else None
        else:
            index = self._index
            parameters = faiss.SearchParametersHNSW()
            parameters.efSearch = max(ef, found)
        if live is not None:
            parameters.sel = live.selector
        lossy = self._quantized is not None and index is self._index
        returned = reranked_rows(found, ef=parameters.efSearch) if lossy else found
        scores = np.empty((n, returned), dtype=np.float32)
        rows = np.empty((n, returned), dtype=np.int64)
        # search_c is the C++ method: its Python wrapper takes longer than a search of a small
        # segment. The arrays above are referenced until it returns.
        index.search_c(
            n,
            faiss.swig_ptr(queries),
            returned,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(rows),
            parameters,
        )
        if lossy:
            return self._reranked(queries, rows, found=found, k=k)
        return self._finish(scores, rows, k)

    def scan(
        self,
        queries: Float32Matrix,
        *,
        k: int,
        row_range: range,
        live: LiveBitmap | None = None,
    ) -> tuple[Scores, Rows]:
        """Return what `search` with `exact` does, for the consecutive rows of `row_range` only.

        A long comparison can so be done in slices. `row_range` has step 1 and starts at a multiple
        of 8. Raises ValueError for another one, and where `search` does.
        """
        self._check_queries(queries, k)
        self._check_bitmap(live)
        start, stop = row_range.start, row_range.stop
        if row_range.step != 1 or start % 8 or not 0 <= start <= stop <= self.rows:
            raise ValueError(f"{row_range} of {self.rows} rows")
        n, found = len(queries), min(k, stop - start)
        if n == 0 or found == 0:
            return no_hits(n, k)
        selector = None
        if live is not None:
            chosen = np.ascontiguousarray(live.packed[start // 8 : (stop + 7) // 8])
            selector = faiss.IDSelectorBitmap(chosen)
        scores = np.empty((n, found), dtype=np.float32)
        rows = np.empty((n, found), dtype=np.int64)
        sizes = (self.dimension, n, stop - start, found)
        compared = faiss.swig_ptr(queries), faiss.swig_ptr(self._view[start:stop])
        results = faiss.swig_ptr(scores), faiss.swig_ptr(rows)
        if self._is_l2:
            faiss.knn_L2sqr(*compared, *sizes, *results, None, selector)
        else:
            faiss.knn_inner_product(*compared, *sizes, *results, selector)
        rows[rows >= 0] += start
        return self._finish(scores, rows, k)

    def search_rows(self, queries: Float32Matrix, *, rows: Rows, k: int) -> tuple[Scores, Rows]:
        """Compare the queries exactly with the given rows; returns what `search` does.

        `rows`: (m,) int64, without repeats. Costs m comparisons a query. Raises ValueError for a
        row that does not exist, and where `search` does.
        """
        self._check_queries(queries, k)
        n, m = queries.shape[0], rows.shape[0]
        found = min(k, m)
        if n == 0 or found == 0:
            return no_hits(n, k)
        if m and (int(rows.min()) < 0 or int(rows.max()) >= self.rows):
            raise ValueError(f"row numbers outside [0, {self.rows})")
        wanted = np.ascontiguousarray(rows, dtype=np.int64)
        if is_loaded(Kernel.COMPARE_ROWS):
            return filtered_walk.compare_rows(self._flat, queries, l2=self._is_l2, k=k, rows=wanted)
        gathered_bytes = m * self.dimension * 4
        if n >= GATHER_QUERIES_MIN and gathered_bytes <= GATHER_BYTES_MAX:
            return self._search_gathered(queries, rows, found=found, k=k)
        scores = np.empty((n, found), dtype=np.float32)
        found_rows = np.empty((n, found), dtype=np.int64)
        one_subset_for_all_queries = 0
        compare_by_rows(self.metric)(
            faiss.swig_ptr(queries),
            self._storage.get_xb(),
            faiss.swig_ptr(wanted),
            self.dimension,
            n,
            self.rows,
            m,
            found,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(found_rows),
            one_subset_for_all_queries,
        )
        return self._finish(scores, found_rows, k)

    def search_matching(
        self, queries: Float32Matrix, *, matching: LiveBitmap, k: int
    ) -> tuple[Scores, Rows]:
        """Compare the queries exactly with the rows of a bitmap; returns what `search` does.

        Costs `matching.count` comparisons a query, and reading the bitmap once. FAISS compares them
        until the kernel is loaded. Raises ValueError where `search` does.
        """
        self._check_queries(queries, k)
        self._check_bitmap(matching)
        if len(queries) == 0 or matching.count == 0:
            return no_hits(len(queries), k)
        if not is_loaded(Kernel.COMPARE_BITMAP):
            return self.search_rows(queries, rows=matching.members(), k=k)
        return filtered_walk.compare_bitmap(
            self._flat, queries, l2=self._is_l2, k=k, matching=matching
        )

    @property
    def shortlist(self) -> Shortlist | None:
        """The codes; None until `make_shortlist` has returned."""
        return self._shortlist

    @property
    def shortlist_bytes(self) -> int:
        """Bytes of memory of the codes; before they are made, the most that they may take."""
        if self._shortlist is not None:
            return self._shortlist.size_bytes
        return size_bytes_max(self.rows, self.dimension, l2=self._is_l2)

    def make_shortlist(self, yield_point: Callable[[], None] = lambda: None) -> Shortlist:
        """Make the codes that `search_shortlisted` reads, unless they exist.

        They take a quarter of the memory of the vectors, and 0.7 s for 100,000 x 384. The kernels
        must be loaded. `yield_point` is called every few milliseconds and ends the work by raising.
        """
        if self._shortlist is None:
            self._shortlist = Shortlist(
                self._view, flat=self._flat, l2=self._is_l2, yield_point=yield_point
            )
        return self._shortlist

    def search_shortlisted(
        self, queries: Float32Matrix, *, matching: LiveBitmap, k: int
    ) -> tuple[Scores, Rows]:
        """Return what `search_matching` does, reading only the codes of most rows.

        Scores are exact. A row is missed if the errors of its codes exceed the slack that
        `codes.row_codes` measures: five of 10,000 best rows under filters far from the queries
        (ADR 18). Without codes this is `search_matching`.
        """
        if self._shortlist is None:
            return self.search_matching(queries, matching=matching, k=k)
        self._check_queries(queries, k)
        self._check_bitmap(matching)
        if len(queries) == 0 or matching.count == 0:
            return no_hits(len(queries), k)
        return self._shortlist.search(queries, k=k, matching=matching)

    def walk_filtered(
        self,
        queries: Float32Matrix,
        *,
        k: int,
        ef: int,
        matching: LiveBitmap | None,
        ef_far: int | None = None,
        seeds: Rows | None = None,
        work_max: int | None = None,
    ) -> WalkResult:
        """Walk the graph and return only rows of `matching` (None: all rows).

        The kernels must be loaded (`walk_ready`). With status OK there are fewer than `k` hits only
        if fewer rows match.

        Args:
            queries: (n, dimension) float32, C-contiguous.
            k: hits wanted for each query.
            ef: beam width: matching rows kept while walking; `k` if that is more.
            matching: the rows that may be returned.
            ef_far: beam width of a far query, one around which rows match less than half as often
                as elsewhere. None: `ef`. 0: such a query is ABORTED at once.
            seeds: (s,) int64, matching rows to begin at. None: 32 from all over the index.
            work_max: a query that compared more rows is ABORTED; 32 tests of a bit count as one.

        Raises ValueError for an index without a graph, for seeds that do not match, and where
        `search` does.
        """
        self._check_queries(queries, k)
        self._check_bitmap(matching)
        if self.kind is not IndexKind.HNSW:
            raise ValueError("a flat index has no graph to walk")
        if seeds is not None and len(seeds) and not 0 <= seeds.min() <= seeds.max() < self.rows:
            raise ValueError(f"seeds outside [0, {self.rows})")
        if seeds is not None and matching is not None and not matching.contains(seeds).all():
            raise ValueError("seeds that are not in the bitmap")
        return self._walked(
            queries,
            k=k,
            ef=ef,
            rerank_ef=max(ef, ef_far or 0),
            ef_far=ef_far,
            matching=matching,
            seeds=seeds,
            work_max=work_max,
        )

    @property
    def can_adapt(self) -> bool:
        """Whether `walk_adaptive` can be called: kernels are loaded, distances Euclidean."""
        euclidean = self.metric is not Metric.INNER_PRODUCT
        return self.kind is IndexKind.HNSW and euclidean and self.walk_ready

    def walk_adaptive(
        self,
        queries: Float32Matrix,
        *,
        k: int,
        ef: int,
        reach: Reach,
        live: LiveBitmap | None = None,
    ) -> WalkResult:
        """Walk the whole graph with a beam of its own width for every query; see `Reach`.

        The width is between a quarter of `ef` and four times `ef`. Returns only rows in `live`
        (None: all rows), at least k if the walk meets them. Other rows are compared, and take
        places in the beam. Raises ValueError where `can_adapt` is false, and where `search` does.
        """
        self._check_queries(queries, k)
        self._check_bitmap(live)
        if not self.can_adapt:
            raise ValueError(f"walks of this {self.kind} index by {self.metric} do not adapt")
        return self._walked(queries, k=k, ef=ef, rerank_ef=ef, reach=reach, matching=live)

    def _walked(
        self, queries: Float32Matrix, *, k: int, rerank_ef: int, **settings: Any
    ) -> WalkResult:
        """Walk by the kernel, and compare the best rows again if vectors are quantized."""
        stored: Any = self._flat if self._quantized is None else self._quantized
        kept = k if self._quantized is None else reranked_rows(k, ef=rerank_ef)
        walked = filtered_walk.walk(
            self._graph, stored, queries, l2=self._is_l2, k=k, kept=kept, **settings
        )
        if self._quantized is None:
            return walked
        scores, rows = self._reranked(queries, walked.rows, found=k, k=k)
        return dataclasses.replace(walked, scores=scores, rows=rows)

    def write(self, path: Path) -> None:
        """Write the index to the file that `load_mapped` takes as `path`."""
        faiss.write_index(self._index, os.fspath(path))

    def write_raw(self, path: Path) -> None:
        """Write the float32 vectors of a lossy index, which `load_mapped` takes as `raw`."""
        faiss.write_index(self._storage, os.fspath(path))

    def _reranked(
        self, queries: Float32Matrix, rows: Rows, *, found: int, k: int
    ) -> tuple[Scores, Rows]:
        if not len(queries):
            return no_hits(0, k)
        best = rerank(self._storage, queries, rows, k=found, metric=self.metric)
        return self._finish(*best, k)

    def _search_gathered(
        self, queries: Float32Matrix, rows: Rows, *, found: int, k: int
    ) -> tuple[Scores, Rows]:
        chosen = self.reconstruct(rows)
        scores, positions = faiss.knn(queries, chosen, found, metric=FAISS_METRIC[self.metric])
        return self._finish(scores, rows[positions], k)

    def _finish(self, scores: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
        """Return scores from FAISS's distances, with `k` columns and -inf where a row is -1."""
        if self.metric is Metric.L2:
            np.negative(scores, out=scores)
        if rows[:, -1].min() < 0:
            scores[rows < 0] = SCORE_MISSING
        found = scores.shape[1]
        if found == k:
            return scores, rows
        wide_scores, wide_rows = no_hits(scores.shape[0], k)
        wide_scores[:, :found] = scores
        wide_rows[:, :found] = rows
        return wide_scores, wide_rows

    @property
    def _kernel_is_faster(self) -> bool:
        """Whether the kernel is faster than FAISS at a walk of one query without a filter.

        It decodes `int8` once for the query: 172 against 193 us at 384 dimensions. FAISS divides
        several queries among threads.
        """
        return self.storage is VectorStorage.INT8 and self.walk_ready

    @property
    def _is_l2(self) -> bool:
        return self.metric is Metric.L2

    def _check_bitmap(self, bitmap: LiveBitmap | None) -> None:
        if bitmap is not None and bitmap.rows != self.rows:
            raise ValueError(f"a bitmap of {bitmap.rows} rows for an index of {self.rows}")

    def _check_queries(self, queries: Float32Matrix, k: int) -> None:
        valid = (
            queries.ndim == 2
            and queries.shape[1] == self.dimension
            and queries.dtype == np.float32
            and queries.flags.c_contiguous
        )
        if not valid:
            raise ValueError(
                f"queries {queries.dtype} {queries.shape} are not contiguous float32"
                f" (n, {self.dimension})"
            )
        if k < 1:
            raise ValueError(f"k is {k}")


def load_mapped(
    path: Path, *, metric: Metric, raw: Path | None = None, graph_size: int | None = None
) -> VectorIndex:
    """Map a file of `VectorIndex.write`, and `raw`, one of `write_raw`, for a lossy index.

    Vectors are read from the page cache; HNSW levels and offsets, 12 bytes a row, are copied to
    memory. `metric` is compared with the file, in which cosine and inner product are the same.
    `graph_size`: the number of rows before the copies, None without any. Raises `DataCorruption` if
    a file is not such an index, or if the two do not belong together.
    """
    try:
        index = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise DataCorruption(
            f"{path} cannot be read as an index: {error}", metadata={"file": str(path)}
        ) from error
    expected = faiss.IndexFlat | faiss.IndexHNSWFlat if raw is None else faiss.IndexHNSWSQ
    if not isinstance(index, expected):
        raise DataCorruption(
            f"{path} holds a {type(index).__name__}, not a flat or HNSW index",
            metadata={"file": str(path)},
        )
    if index.metric_type != FAISS_METRIC[metric]:
        raise DataCorruption(
            f"{path} was not built for metric {metric.value}", metadata={"file": str(path)}
        )
    try:
        if raw is None:
            return VectorIndex(index, metric=metric, graph_size=graph_size)
        vectors = map_raw(raw)
        if (vectors.index.ntotal, vectors.index.d) != (index.ntotal, index.d):
            raise ValueError(f"{vectors.index.ntotal} x {vectors.index.d} floats")
        return VectorIndex(index, metric=metric, raw=vectors, graph_size=graph_size)
    except (RuntimeError, ValueError) as error:
        what = f"{path}" if raw is None else f"{raw} as the vectors of {path}"
        raise DataCorruption(
            f"{what} cannot be read: {error}", metadata={"file": str(raw or path)}
        ) from error
