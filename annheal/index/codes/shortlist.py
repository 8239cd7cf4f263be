"""8-bit codes of an index's vectors, for comparing many rows at a quarter of the memory traffic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.codes.code_layout import GROUPS, ROWS_PADDING
from annheal.index.codes.row_codes import HIGH_SLACK_MAX, OUTLIER_SHARE_MAX, RowCodes
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.code_arrays import Candidates, MatchingRows
from annheal.index.kernels.loaded import machine_code
from annheal.index.live import LiveBitmap
from annheal.index.walk.filtered_walk import ROW_MISSING, SCORE_MISSING, compare_bitmap
from annheal.model.records import Float32Matrix

CANDIDATES_MAX = 2_048
"""Rows of which all planes but the first are read at a time."""
PROBES, PROBES_RECALL_MIN = 32, 0.99
"""Queries of rows and of mixtures of two. Codes that miss more of them are not cut into planes."""
COST_QUERIES, COST_K = 5, 10
COST_ROWS_FEW, COST_SHARE = 1_000, 0.5
"""Rows of the two bitmaps whose times give the costs of a call and of a row."""
COST_ROW_NS_UNMEASURED = 25.0
"""For an index too small to measure."""
BLOCK_ROWS = 256
"""Rows compared by their vectors at a time."""

Floats = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShortlistCosts:
    """Nanoseconds of one thread: a call, and every row of the bitmap."""

    call_ns: float
    row_ns: float

    def shortlist_ns(self, matching_rows: int) -> float:
        """Return the cost of finding the best of so many rows."""
        return self.call_ns + self.row_ns * matching_rows


class _ShortlistScratch(threading.local):
    """Memory of the calling thread, grown to the largest bitmap it has seen."""

    def __init__(self) -> None:
        self.fit(0)
        rows, products = np.zeros((2, CANDIDATES_MAX + ROWS_PADDING), dtype=np.int32)
        values, squares = np.zeros((2, CANDIDATES_MAX), dtype=np.float64)
        thresholds = np.zeros(GROUPS, dtype=np.int32)
        self.candidates = Candidates(rows, products, values, squares, thresholds)
        self.block = np.zeros(BLOCK_ROWS, dtype=np.int32)
        self.distances = np.zeros(BLOCK_ROWS, dtype=np.float32)

    def fit(self, rows: int) -> None:
        """Make room for a bitmap of so many rows."""
        self.bitmap_rows = rows
        members, products = np.zeros((2, rows + ROWS_PADDING), dtype=np.int32)
        self.matching = MatchingRows(
            rows=members,
            products=products,
            shortlisted=np.zeros(rows + CANDIDATES_MAX, dtype=np.int32),
            upper_bounds=np.zeros(rows + CANDIDATES_MAX, dtype=np.float32),
        )


_scratch = _ShortlistScratch()


class Shortlist:
    """Codes of all rows of one index; immutable, for any number of threads.

    Attributes:
        codes: of all rows.
        size_bytes: memory held.
        costs: of a search, on this machine.
    """

    def __init__(
        self,
        vectors: Float32Matrix,
        *,
        flat: Floats,
        l2: bool,
        yield_point: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode `vectors` (rows, d), which may be mapped and unaligned; `flat` is the same memory.

        Only once the kernels are loaded: it measures what searches cost.
        """
        self._stored, self._l2 = flat, l2
        self.codes = RowCodes(vectors, l2=l2, yield_point=yield_point)
        if self.codes.cut and not self._planes_hold(vectors):
            self.codes = RowCodes(vectors, l2=l2, cut=False, yield_point=yield_point)
        self.size_bytes = self.codes.size_bytes
        self.costs = self._measured_costs(vectors)

    def search(
        self, queries: Float32Matrix, *, k: int, matching: LiveBitmap
    ) -> tuple[Scores, Rows]:
        """Return the best `k` rows of `matching`, which is not empty, for queries (n, d).

        As `VectorIndex.search_matching`, but for errors of codes beyond the slack.
        """
        n, scratch = len(queries), _scratch
        if scratch.bitmap_rows < matching.count:
            scratch.fit(matching.count)
        scores = np.full((n, k), SCORE_MISSING, dtype=np.float32)
        rows = np.full((n, k), ROW_MISSING, dtype=np.int64)
        whole = len(matching.packed) // 8 * 8
        machine_code(Kernel.COMPARE_CODES)(
            *self.codes.arrays,
            self._stored,
            queries.shape[1],
            *self.codes.coded(queries),
            self._l2,
            matching.packed[:whole].view(np.uint64),
            matching.packed[whole:],
            *scratch.matching,
            *scratch.candidates,
            scratch.block,
            scratch.distances,
            np.empty((n, k), dtype=np.int64),
            np.zeros(n, dtype=np.int64),
            scores,
            rows,
        )
        return scores, rows

    def _planes_hold(self, vectors: Float32Matrix) -> bool:
        """Return whether codes in planes find what vectors find, for rows and mixtures of them."""
        codes = self.codes
        if codes.outlier_share > OUTLIER_SHARE_MAX or codes.high_slack > HIGH_SLACK_MAX:
            return False
        rows = len(vectors)
        chosen = np.random.default_rng(rows).integers(0, rows, (2, PROBES))
        queries = np.array(vectors[chosen[0]])
        queries[: PROBES // 2] += np.array(vectors[chosen[1, : PROBES // 2]])
        every = LiveBitmap.from_mask(np.ones(rows, dtype=np.bool_))
        _, truth = compare_bitmap(self._stored, queries, l2=self._l2, k=COST_K, matching=every)
        _, found = self.search(queries, k=COST_K, matching=every)
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(truth, found, strict=True))
        return hits >= PROBES_RECALL_MIN * truth.size

    def _measured_costs(self, vectors: Float32Matrix) -> ShortlistCosts:
        """Measure searches of few and of many rows.

        Of each the fastest time counts: the others may have run beside other work.
        """
        rows = len(vectors)
        rng = np.random.default_rng(rows)
        queries = np.array(vectors[rng.integers(0, rows, COST_QUERIES)])
        few = LiveBitmap.from_rows(rng.integers(0, rows, COST_ROWS_FEW), rows=rows)
        many = LiveBitmap.from_mask(rng.random(rows) < COST_SHARE)
        if many.count <= few.count:
            return ShortlistCosts(0.0, COST_ROW_NS_UNMEASURED)
        fastest = []
        for matching in (few, many):
            took_ns = []
            for query in queries:
                started_ns = time.perf_counter_ns()
                self.search(query[None, :], k=COST_K, matching=matching)
                took_ns.append(time.perf_counter_ns() - started_ns)
            fastest.append(float(min(took_ns)))
        row_ns = max(fastest[1] - fastest[0], 1.0) / (many.count - few.count)
        return ShortlistCosts(max(0.0, fastest[0] - row_ns * few.count), row_ns)
