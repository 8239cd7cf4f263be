"""What comparing and walking costs on this machine: measured once, defaults until then."""

from __future__ import annotations

import logging
import threading
from typing import TypeAlias

from annheal.index import VectorIndex, WalkCosts, measure_costs
from annheal.model.collection import VectorStorage
from annheal.model.topology.manifest import IndexKind
from annheal.runtime.background import Offer, take_nothing

DEFAULT_DIMENSION = 384
DEFAULT_COSTS = WalkCosts(exact_row_ns=75.0, walk_row_ns=160.0, check_ns=2.0, call_ns=10_000.0)
"""Measured at `DEFAULT_DIMENSION` on a server of 2024; only their ratios decide."""
MEASURED_ROWS_MIN = 5_000
"""The rows of a smaller segment fit the processor's caches and look cheaper than they are."""
GROWTH = 4
"""A segment so many times larger than the one measured is measured anew."""

_log = logging.getLogger(__name__)


_Like: TypeAlias = tuple[int, IndexKind, VectorStorage]
"""Indexes with these in common cost the same."""


class CostBook:
    """Costs by (dimension, kind of index, storage), for any number of threads.

    The first search of a segment that is worth measuring offers the measurement as work to do in
    the background; searches meanwhile plan with what is known.
    """

    def __init__(self, *, offer: Offer = take_nothing) -> None:
        self._measured: dict[_Like, tuple[int, WalkCosts]] = {}
        self._lock = threading.Lock()
        self._offer = offer
        self._tried: set[tuple[_Like, int]] = set()

    def costs_of(self, index: VectorIndex) -> WalkCosts:
        """Return what is known by now, without waiting."""
        rows, costs = self._measured.get(_like(index), (0, DEFAULT_COSTS))
        worth_measuring = index.rows >= max(MEASURED_ROWS_MIN, GROWTH * rows)
        if worth_measuring and index.walk_ready:
            self._want(index)
        return costs

    def measure(self, index: VectorIndex) -> None:
        """Measure now, in the calling thread; waits for the kernels."""
        costs = measure_costs(index)
        if costs is None:
            return
        self._measured[_like(index)] = (index.rows, costs)
        _log.info(
            "%s index of %d dimensions, %s: %s", index.kind, index.dimension, index.storage, costs
        )

    def _want(self, index: VectorIndex) -> None:
        # A measurement that failed would fail again.
        attempt = (_like(index), index.rows)
        with self._lock:
            if attempt in self._tried:
                return
        if self._offer(lambda _: self.measure(index), name="measuring costs"):
            with self._lock:
                self._tried.add(attempt)


def _like(index: VectorIndex) -> _Like:
    return index.dimension, index.kind, index.storage
