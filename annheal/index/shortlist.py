"""8-bit codes of an index's vectors, for comparing many rows at a quarter of the memory traffic."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.compiled import kernels
from annheal.index.filtered_walk import ROW_MISSING, SCORE_MISSING
from annheal.index.live import LiveBitmap
from annheal.model.records import Float32Matrix

CODE_MAX = 127
QUERY_CODE_MAX = 32_767
ENCODE_ROWS = 8_192
"""Rows encoded at a time: 12 MiB of 384 floats."""
SLACK_SAMPLE = 256
"""Rows, and as many in the place of queries, whose products are compared with the true ones."""
SLACK_QUANTILE = 0.999
SLACK_MIN = 1.0
"""Error per unit of row scale and query length: 3.5 standard deviations of independent rounding
errors, 1 / sqrt(12) each. Data whose errors are not independent gets what is measured."""
SLACK_SHARE = 0.6
"""Of that error on either side of a product: a row is missed when its own error is beyond both,
the slack below the k-th best and the slack above itself."""
CODE_BLOCK_ROWS = 1_024
"""Rows whose codes meet all queries of a call while they are in the cache."""
COST_QUERIES, COST_K = 5, 10
COST_ROWS_FEW, COST_SHARE = 1_000, 0.5
"""Rows of the two bitmaps whose times give the costs of a call and of a row."""
COST_ROW_NS_UNMEASURED = 25.0
"""For an index too small to measure."""
BLOCK_ROWS = 256
"""Rows compared by their floats at a time."""
UPPERS_MAX = 1 << 22
"""Bounds held at a time: 32 MiB with their rows. More queries than fit take turns."""

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


class _Scratch(threading.local):
    """Memory of the calling thread."""

    def __init__(self) -> None:
        self.members = np.zeros(0, dtype=np.int32)
        self.promising = np.zeros(0, dtype=np.int32)
        self.uppers = np.zeros(0, dtype=np.float32)
        self.products = np.zeros(CODE_BLOCK_ROWS, dtype=np.int32)
        self.block = np.zeros(BLOCK_ROWS, dtype=np.int32)
        self.distances = np.zeros(BLOCK_ROWS, dtype=np.float32)


_scratch = _Scratch()


class Shortlist:
    """Codes of all rows of one index; immutable, for any number of threads.

    A row's codes are its components in units of the largest one by 127, so they are off by half a
    unit. `slack` is the error of a product that is not exceeded by 99.9 % of them, in units of the
    row's scale times the query's length: measured on rows of the index.

    Attributes:
        size_bytes: memory held.
        slack: see above.
        costs: of a search, on this machine.
    """

    def __init__(self, vectors: Float32Matrix, *, flat: Floats, l2: bool) -> None:
        """Encode `vectors` (rows, d), which may be mapped and unaligned; `flat` is the same memory.

        Waits for the kernels, to measure the costs.
        """
        rows, dimension = vectors.shape
        self._stored, self._l2 = flat, l2
        self._codes = np.empty((rows, dimension), dtype=np.int8)
        self._scales = np.empty(rows, dtype=np.float32)
        self._norms = np.empty(rows if l2 else 0, dtype=np.float32)
        for start in range(0, rows, ENCODE_ROWS):
            part = slice(start, min(start + ENCODE_ROWS, rows))
            floats = np.array(vectors[part])
            self._codes[part], self._scales[part] = _encoded(floats, CODE_MAX)
            if l2:
                self._norms[part] = np.einsum("ij,ij->i", floats, floats)
        self.size_bytes = self._codes.nbytes + self._scales.nbytes + self._norms.nbytes
        error = max(SLACK_MIN, _measured_error(vectors, self._codes, self._scales))
        self.slack = SLACK_SHARE * error
        self.costs = self._measured_costs(vectors)

    def search(
        self, queries: Float32Matrix, *, k: int, matching: LiveBitmap
    ) -> tuple[Scores, Rows]:
        """Return the best `k` rows of `matching`, which is not empty, for queries (n, d).

        As `VectorIndex.search_matching`, but for errors of codes beyond the slack.
        """
        n = len(queries)
        scores = np.full((n, k), SCORE_MISSING, dtype=np.float32)
        rows = np.full((n, k), ROW_MISSING, dtype=np.int64)
        at_once = max(1, UPPERS_MAX // matching.count)
        for start in range(0, n, at_once):
            part = slice(start, start + at_once)
            self._search_part(queries[part], matching, scores[part], rows[part])
        return scores, rows

    def _search_part(
        self, queries: Float32Matrix, matching: LiveBitmap, scores: Scores, rows: Rows
    ) -> None:
        n, dimension = queries.shape
        # Products of 8 and of up to 16 bits, as many as there are dimensions, stay within int32.
        asked, asked_scales = _encoded(queries, _query_code_max(dimension))
        slacks = (self.slack * np.sqrt(np.einsum("ij,ij->i", queries, queries))).astype(np.float32)
        scratch, bounds = _scratch, n * matching.count
        if len(scratch.members) < matching.count:
            scratch.members = np.empty(matching.count, dtype=np.int32)
        if len(scratch.uppers) < bounds:
            scratch.promising = np.empty(bounds, dtype=np.int32)
            scratch.uppers = np.empty(bounds, dtype=np.float32)
        whole = len(matching.packed) // 8 * 8
        kernels().compare_codes(
            self._codes.reshape(-1),
            self._scales,
            self._norms,
            self._stored,
            dimension,
            queries.reshape(-1),
            asked.reshape(-1),
            asked_scales,
            slacks,
            self._l2,
            matching.packed[:whole].view(np.uint64),
            matching.packed[whole:],
            scratch.members,
            scratch.promising[:bounds].reshape(n, matching.count),
            scratch.uppers[:bounds].reshape(n, matching.count),
            np.zeros(n, dtype=np.int64),
            scratch.products,
            scratch.block,
            scratch.distances,
            np.empty((n, scores.shape[1]), dtype=np.int64),
            np.zeros(n, dtype=np.int64),
            scores,
            rows,
        )

    def _measured_costs(self, vectors: Float32Matrix) -> ShortlistCosts:
        """Measure searches of few and of many rows; the fastest count: the rest is foreign load."""
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


def _query_code_max(dimension: int) -> int:
    return min(QUERY_CODE_MAX, (2**31 - 1) // (CODE_MAX * dimension))


def _encoded(
    vectors: Float32Matrix, code_max: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Return whole numbers up to `code_max` and what one of them stands for, row by row."""
    largest = np.abs(vectors).max(axis=1)
    scales = np.where(largest > 0, largest, np.float32(1)) / np.float32(code_max)
    codes = np.rint(vectors / scales[:, None]).astype(np.int16)
    return codes, scales.astype(np.float32)


def _measured_error(
    vectors: Float32Matrix, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> float:
    rng = np.random.default_rng(len(vectors))
    chosen = rng.integers(0, len(vectors), SLACK_SAMPLE)
    queries = np.array(vectors[rng.integers(0, len(vectors), SLACK_SAMPLE)])
    asked, asked_scales = _encoded(queries, _query_code_max(vectors.shape[1]))
    exact = queries.astype(np.float64) @ np.array(vectors[chosen]).astype(np.float64).T
    whole = asked.astype(np.float64) @ codes[chosen].astype(np.float64).T
    coded = whole * asked_scales[:, None] * scales[chosen]
    lengths = np.maximum(np.linalg.norm(queries, axis=1), np.finfo(np.float32).tiny)
    errors = np.abs(coded - exact) / (lengths[:, None] * scales[chosen])
    return float(np.quantile(errors, SLACK_QUANTILE))
