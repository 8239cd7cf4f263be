"""Calls of the kernels of walks and exact comparison: scratch memory, arguments, results."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.graph import HnswGraph
from annheal.index.kernels.catalog import Kernel, walk_over
from annheal.index.kernels.loaded import machine_code
from annheal.index.live import LiveBitmap
from annheal.index.quantized import QuantizedVectors
from annheal.index.walk import walk_layout as layout
from annheal.model.collection import VectorStorage
from annheal.model.records import Float32Matrix

SCORE_MISSING = np.float32(-np.inf)
ROW_MISSING = -1
EF_WALK_MAX = 16_384
"""The largest beam width of a walk; inserting into the beam takes time linear in it."""
RATIO_MAX = 1_000.0
"""The largest ratio of a reach."""
EXACT_BLOCK_ROWS = 256
"""Rows of a block, which is compared with all queries before the next: 384 KiB at 384 floats."""

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_NO_BITMAP = np.zeros(0, dtype=np.uint8)
_NO_SEEDS = np.zeros(0, dtype=np.int64)
_NO_SHIFTS = np.zeros(0, dtype=np.float32)
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class WalkResult:
    """The hits of a walk for n queries.

    Attributes:
        scores: (n, k) float32, best first, -inf where there is no hit.
        rows: (n, k) int64, -1 where there is no hit.
        visited: (n,) int32, rows compared.
        checked: (n,) int32, rows tested against the bitmap.
        ef: (n,) int32, the beam width used; with a reach, the rows in the beam at the end.
        status: (n,) uint8, one of `walk_layout.OK`, `STARVED`, `ABORTED`. Hits of a query that is
            not OK are matching rows with their scores, but better rows may be missing.
    """

    scores: Scores
    rows: Rows
    visited: npt.NDArray[np.int32]
    checked: npt.NDArray[np.int32]
    ef: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]


WIDTH_TIMES_MAX = 4
"""An adaptive beam has at least ef divided by this, and at most ef times this, rows."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How the width of a beam follows from the distances that its walk meets.

    A beam keeps the rows that are at most `ratio` times as far from the query as the best row of
    rank `rank`, by Euclidean distance; only rows that may be returned have a rank. Where many rows
    are about as near as the best ones, a query so gets a wide beam; where the best ones stand out,
    a narrow one. The rule is that of Al-Jazzazi et al., Distance Adaptive Beam Search for Provably
    Accurate Graph-Based Nearest Neighbor Search, 2025. Raises ValueError for a rank below 1 or a
    ratio below 1.
    """

    ratio: float
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1 or not 1.0 <= self.ratio <= RATIO_MAX:
            raise ValueError(f"a reach of {self.ratio} times the distance of rank {self.rank}")


class _WalkScratch(threading.local):
    """Scratch memory of the calling thread, as large as its largest index and beam needed."""

    def __init__(self) -> None:
        self.marks = np.zeros(0, dtype=np.uint8)
        self.pool = np.zeros(0, dtype=np.int64)
        self.buffer = np.zeros(0, dtype=np.int32)
        self.distances = np.zeros(0, dtype=np.float32)
        self.queue = np.zeros(layout.QUEUE_ROWS + layout.SEEDS_MAX, dtype=np.int32)
        self.state = np.zeros(layout.STATE_SIZE, dtype=np.int64)
        self.block = np.zeros(EXACT_BLOCK_ROWS, dtype=np.int32)
        self.block_distances = np.zeros(EXACT_BLOCK_ROWS, dtype=np.float32)

    def fit(self, *, rows: int, ef: int, buffered: int) -> None:
        if len(self.marks) < rows:
            # Zero is below every stamp, so the counter of stamps need not begin again.
            self.marks = np.zeros(rows, dtype=np.uint8)
        if len(self.pool) < ef:
            self.pool = np.zeros(ef, dtype=np.int64)
        if len(self.buffer) < buffered:
            self.buffer = np.zeros(buffered, dtype=np.int32)
            self.distances = np.zeros(buffered, dtype=np.float32)


_scratch = _WalkScratch()


def walk(
    graph: HnswGraph | None,
    stored: npt.NDArray[np.float32] | QuantizedVectors,
    queries: Float32Matrix,
    *,
    l2: bool,
    k: int,
    ef: int,
    kept: int,
    ef_far: int | None = None,
    matching: LiveBitmap | None = None,
    seeds: Rows | None = None,
    work_max: int | None = None,
    reach: Reach | None = None,
) -> WalkResult:
    """Walk `graph` over the `stored` vectors, (rows * d,) float32 or quantized.

    See `VectorIndex.walk_filtered` and `walk_adaptive`; `reach` needs unit vectors unless `l2`. The
    result has the best `kept` rows of each query, `kept` at least k. Scores with quantized vectors
    are approximate, and those of different queries cannot be compared.
    """
    n, rows = len(queries), 0 if graph is None else int(graph.layout[layout.ROWS])
    matches = rows if matching is None else matching.count
    scores, found = no_hits(n, kept)
    counts = np.zeros((n, 3), dtype=np.int64)
    status = np.zeros(n, dtype=np.uint8)
    if graph is not None and n and matches:
        beam = _beam(ef if reach is None else max(ef * WIDTH_TIMES_MAX, kept), k=k, matches=matches)
        beam_far = beam if ef_far is None else ef_far and _beam(ef_far, k=k, matches=matches)
        given_seeds, scratch = _NO_SEEDS if seeds is None else seeds, _scratch
        # Rows to compare: at most those of one expansion, which may exceed `width` by the links of
        # the last row looked through, or the seeds and the entry. Then rows to look through.
        buffered = max(3 * graph.width, len(given_seeds) + layout.SEEDS_MAX + 1) + graph.width
        scratch.fit(rows=rows, ef=max(beam, beam_far), buffered=buffered)
        settings = [0] * layout.SETTINGS
        settings[layout.L2], settings[layout.K] = l2, k
        settings[layout.EF], settings[layout.EF_FAR] = beam, beam_far
        settings[layout.MATCHES] = matches
        settings[layout.WORK_MAX] = _NO_LIMIT if work_max is None else work_max
        settings[layout.START], settings[layout.STOP] = 0, n
        if reach is not None:
            _set_reach(settings, reach, ef=ef, kept=kept)
        storage, elements, flat_queries = VectorStorage.FLOAT32, stored, queries.reshape(-1)
        if isinstance(stored, QuantizedVectors):
            storage, elements = stored.storage, stored.stored
            flat_queries = stored.prepared(queries, l2=l2)
        machine_code(walk_over(storage))(
            graph.neighbors,
            graph.offsets,
            graph.layout,
            elements,
            flat_queries,
            _NO_BITMAP if matching is None else matching.packed,
            given_seeds.astype(np.int32),
            _NO_SHIFTS if reach is None else _shifts(stored, queries, l2=l2),
            np.array(settings, dtype=np.int64),
            scratch.marks,
            scratch.pool,
            scratch.buffer,
            scratch.distances,
            scratch.queue,
            scratch.state,
            scores,
            found,
            counts,
            status,
        )
    narrow = counts.astype(np.int32)
    return WalkResult(scores, found, narrow[:, 0], narrow[:, 1], narrow[:, 2], status)


def no_hits(n: int, k: int) -> tuple[npt.NDArray[np.float32], Rows]:
    """Return scores (n, k) float32 and rows (n, k) int64 without any hit."""
    scores = np.full((n, k), SCORE_MISSING, dtype=np.float32)
    return scores, np.full((n, k), ROW_MISSING, dtype=np.int64)


def _set_reach(settings: list[int], reach: Reach, *, ef: int, kept: int) -> None:
    settings[layout.REACH] = round(reach.ratio * layout.REACH_ONE)
    settings[layout.REACH_RANK], settings[layout.KEPT] = reach.rank, kept
    settings[layout.FLOOR] = max(ef // WIDTH_TIMES_MAX, reach.rank, kept)


def _shifts(
    stored: npt.NDArray[np.float32] | QuantizedVectors, queries: Float32Matrix, *, l2: bool
) -> npt.NDArray[np.float32]:
    """Return what to add to the kernel's distances of each query, (n,) float32.

    The sums are proportional to squared Euclidean distances. Between unit vectors these are
    2 - 2 x y, and the kernel's distance is -x y.
    """
    if l2:
        return np.zeros(len(queries), dtype=np.float32)
    if isinstance(stored, QuantizedVectors) and stored.low is not None:
        # The kernel leaves out the product with `low`, a constant of the query.
        return (1.0 - queries @ stored.low).astype(np.float32)
    return np.ones(len(queries), dtype=np.float32)


def _beam(ef: int, *, k: int, matches: int) -> int:
    """Return the beam width to walk with: at least k, at most the number of matching rows."""
    return max(1, min(max(ef, k), matches, EF_WALK_MAX))


def compare_bitmap(
    stored: npt.NDArray[np.float32],
    queries: Float32Matrix,
    *,
    l2: bool,
    k: int,
    matching: LiveBitmap,
) -> tuple[Scores, Rows]:
    """Compare queries with the rows of a bitmap; see `VectorIndex.search_matching`.

    `stored`: the vectors of all rows, flat float32.
    """
    whole = len(matching.packed) // 8 * 8
    scores, found, pools, sizes = _exact_results(len(queries), k)
    machine_code(Kernel.COMPARE_BITMAP)(
        stored,
        queries.shape[1],
        queries.reshape(-1),
        l2,
        matching.packed[:whole].view(np.uint64),
        matching.packed[whole:],
        _scratch.block,
        _scratch.block_distances,
        pools,
        sizes,
        scores,
        found,
    )
    return scores, found


def compare_rows(
    stored: npt.NDArray[np.float32], queries: Float32Matrix, *, l2: bool, k: int, rows: Rows
) -> tuple[Scores, Rows]:
    """Compare queries with the given rows; see `VectorIndex.search_rows`."""
    scores, found, pools, sizes = _exact_results(len(queries), k)
    machine_code(Kernel.COMPARE_ROWS)(
        stored,
        queries.shape[1],
        queries.reshape(-1),
        l2,
        rows,
        _scratch.block,
        _scratch.block_distances,
        pools,
        sizes,
        scores,
        found,
    )
    return scores, found


def _exact_results(
    n: int, k: int
) -> tuple[Scores, Rows, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return (
        np.full((n, k), SCORE_MISSING, dtype=np.float32),
        np.full((n, k), ROW_MISSING, dtype=np.int64),
        np.empty((n, k), dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )
