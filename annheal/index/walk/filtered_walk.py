"""Calls of the compiled kernels: memory of each thread, arguments, results."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.graph import HnswGraph
from annheal.index.kernels.catalog import Kernel, walk_over
from annheal.index.kernels.loaded import machine_code
from annheal.index.live import LiveBitmap
from annheal.index.quantized import Codes
from annheal.index.walk import walk_layout as layout
from annheal.model.collection import VectorStorage
from annheal.model.records import Float32Matrix

SCORE_MISSING = np.float32(-np.inf)
ROW_MISSING = -1
EF_WALK_MAX = 16_384
"""The widest pool of a walk; inserting into it is linear."""
EXACT_BLOCK_ROWS = 256
"""Rows compared with all queries of a call before the next ones: 384 KiB of 384 floats."""

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_NO_BITMAP = np.zeros(0, dtype=np.uint8)
_NO_SEEDS = np.zeros(0, dtype=np.int64)
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class WalkResult:
    """What a walk found for n queries.

    scores: (n, k) float32, best first, -inf where nothing was found; rows: (n, k) int64, -1 there.
    visited: (n,) int32, vectors compared. checked: (n,) int32, rows whose bit was tested.
    ef: (n,) int32, the beam used. status: (n,) uint8, one of `walk_layout.OK`, `STARVED`,
    `ABORTED`; results of a query that is not OK are real rows with their scores, but better rows
    may be missing.
    """

    scores: Scores
    rows: Rows
    visited: npt.NDArray[np.int32]
    checked: npt.NDArray[np.int32]
    ef: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]


class _WalkScratch(threading.local):
    """Memory of the calling thread, grown to the largest index and beam it has seen."""

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
            # A mark of zero is older than every epoch, so the epoch counter goes on.
            self.marks = np.zeros(rows, dtype=np.uint8)
        if len(self.pool) < ef:
            self.pool = np.zeros(ef, dtype=np.int64)
        if len(self.buffer) < buffered:
            self.buffer = np.zeros(buffered, dtype=np.int32)
            self.distances = np.zeros(buffered, dtype=np.float32)


_scratch = _WalkScratch()


def walk(
    graph: HnswGraph | None,
    stored: npt.NDArray[np.float32] | Codes,
    queries: Float32Matrix,
    *,
    l2: bool,
    k: int,
    ef: int,
    ef_far: int | None,
    matching: LiveBitmap | None,
    seeds: Rows | None,
    work_max: int | None,
    kept: int,
) -> WalkResult:
    """Walk `graph` over the flat `stored` vectors; see `VectorIndex.walk_filtered`.

    The result has the best `kept` rows, at least k. With codes its scores are neither exact nor
    comparable between queries.
    """
    n, rows = len(queries), 0 if graph is None else int(graph.layout[layout.ROWS])
    matches = rows if matching is None else matching.count
    scores = np.full((n, kept), SCORE_MISSING, dtype=np.float32)
    found = np.full((n, kept), ROW_MISSING, dtype=np.int64)
    counts = np.zeros((n, 3), dtype=np.int64)
    status = np.zeros(n, dtype=np.uint8)
    if graph is not None and n and matches:
        beam = _beam(ef, k=k, matches=matches)
        beam_far = beam if ef_far is None else ef_far and _beam(ef_far, k=k, matches=matches)
        work = _NO_LIMIT if work_max is None else work_max
        starts = _NO_SEEDS if seeds is None else seeds
        scratch = _scratch
        # Rows to compare: at most the new ones of a full look-through and of the last list in it,
        # or the seeds and the entry; then one list of rows to look through.
        buffered = max(3 * graph.width, len(starts) + layout.SEEDS_MAX + 1) + graph.width
        scratch.fit(rows=rows, ef=max(beam, beam_far), buffered=buffered)
        settings = [0] * layout.SETTINGS
        settings[layout.L2], settings[layout.K] = l2, k
        settings[layout.EF], settings[layout.EF_FAR] = beam, beam_far
        settings[layout.MATCHES], settings[layout.WORK_MAX] = matches, work
        settings[layout.START], settings[layout.STOP] = 0, n
        storage, elements, flat_queries = VectorStorage.FLOAT32, stored, queries.reshape(-1)
        if isinstance(stored, Codes):
            storage, elements = stored.storage, stored.stored
            flat_queries = stored.prepared(queries, l2=l2)
        machine_code(walk_over(storage))(
            graph.neighbors,
            graph.offsets,
            graph.layout,
            elements,
            flat_queries,
            _NO_BITMAP if matching is None else matching.packed,
            starts.astype(np.int32),
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


def _beam(ef: int, *, k: int, matches: int) -> int:
    """Return the beam width to walk with: it holds k, and no more than there can be."""
    return max(1, min(max(ef, k), matches, EF_WALK_MAX))


def compare_bitmap(
    stored: npt.NDArray[np.float32],
    queries: Float32Matrix,
    *,
    l2: bool,
    k: int,
    matching: LiveBitmap,
) -> tuple[Scores, Rows]:
    """Compare the queries with the rows of a bitmap; as `VectorIndex.search_matching`."""
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
    """Compare the queries with the given rows; as `VectorIndex.search_rows`."""
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
