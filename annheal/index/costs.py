"""The cost of comparisons and walks on this machine, measured with the rows of an index."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from annheal.index.live import LiveBitmap
from annheal.index.vector_index import VectorIndex
from annheal.model.topology.manifest import IndexKind

SAMPLE_ROWS = 4_096
SAMPLE_QUERIES = 16
SAMPLE_EF = 64
SAMPLE_SHARE = 0.02
"""Share of matching rows in the measured filtered walk: few comparisons, many tests of bits."""
REPEATS = 3
CHECK_NS_MIN = 0.2
ROWS_MIN = 64
"""Below this number of rows the cost of the call hides all others."""


@dataclass(frozen=True, slots=True)
class WalkCosts:
    """Costs in nanoseconds of one thread.

    Attributes:
        exact_row_ns: comparing one scattered row in `search_matching` or `search_rows`.
        walk_row_ns: comparing one row in a walk (`WalkResult.visited`), its share of all other work
            included; 0 for a flat index.
        check_ns: testing in a walk whether one row matches (`WalkResult.checked`); 0 for a flat
            index.
        call_ns: calling a kernel.
    """

    exact_row_ns: float
    walk_row_ns: float
    check_ns: float
    call_ns: float

    def exact_ns(self, matching_rows: int) -> float:
        """Return the cost of comparing a query with `matching_rows` rows."""
        return self.call_ns + self.exact_row_ns * matching_rows

    def walk_ns(self, *, visited: float, checked: float) -> float:
        """Return the cost of a walk that compares `visited` rows and tests `checked` rows."""
        return self.call_ns + self.walk_row_ns * visited + self.check_ns * checked


def measure_costs(index: VectorIndex) -> WalkCosts | None:
    """Return the costs of `index`; None if it has fewer than `ROWS_MIN` rows.

    Takes about 10 ms. The kernels must be loaded (`VectorIndex.walk_ready`). Each time is the least
    of `REPEATS`: other work on the machine only adds to it.
    """
    if index.rows < ROWS_MIN:
        return None
    rng = np.random.default_rng(index.rows)
    queries = index.reconstruct(rng.integers(0, index.rows, SAMPLE_QUERIES))
    sample = np.linspace(0, index.rows - 1, min(index.rows, SAMPLE_ROWS)).astype(np.int64)
    one_row = sample[:1]
    call_ns = _fastest_ns(lambda: index.search_rows(queries[:1], rows=one_row, k=1))
    exact_ns = _fastest_ns(lambda: index.search_rows(queries[:1], rows=sample, k=10))
    exact_row_ns = max(exact_ns - call_ns, 1.0) / len(sample)
    if index.kind is IndexKind.FLAT:
        return WalkCosts(exact_row_ns, 0.0, 0.0, call_ns)
    walked = index.walk_filtered(queries, k=10, ef=SAMPLE_EF, matching=None)
    walk_ns = _fastest_ns(lambda: index.walk_filtered(queries, k=10, ef=SAMPLE_EF, matching=None))
    walk_row_ns = walk_ns / int(walked.visited.sum())
    matching = LiveBitmap.from_mask(rng.random(index.rows) < SAMPLE_SHARE)
    filtered = index.walk_filtered(queries, k=10, ef=SAMPLE_EF, matching=matching)
    filtered_ns = _fastest_ns(
        lambda: index.walk_filtered(queries, k=10, ef=SAMPLE_EF, matching=matching)
    )
    checking_ns = filtered_ns - walk_row_ns * int(filtered.visited.sum())
    checks = max(1, int(filtered.checked.sum()))
    return WalkCosts(exact_row_ns, walk_row_ns, max(CHECK_NS_MIN, checking_ns / checks), call_ns)


def _fastest_ns(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter_ns()
        run()
        best = min(best, time.perf_counter_ns() - started)
    return best
