"""Costs of comparing and walking on this machine: measured once, defaults until then."""

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
"""Measured at `DEFAULT_DIMENSION` on a server of 2024; plans depend on their ratios only."""
MEASURED_ROWS_MIN = 5_000
"""The rows of a smaller segment fit the processor's caches, which makes comparing them cheaper."""
GROWTH = 4
"""A segment at least this many times as large as the one measured is measured again."""

_log = logging.getLogger(__name__)


_CostKey: TypeAlias = tuple[int, IndexKind, VectorStorage]
"""Dimension, kind and storage. Indexes that agree in them share their costs."""


class MeasuredCosts:
    """Costs by (dimension, kind of index, storage); safe for any number of threads.

    The first search of an index that should be measured offers the measurement as background work;
    until it is done, searches are planned with earlier or default costs.
    """

    def __init__(self, *, offer: Offer = take_nothing) -> None:
        self._measured: dict[_CostKey, tuple[int, WalkCosts]] = {}
        self._lock = threading.Lock()
        self._offer = offer
        self._tried: set[tuple[_CostKey, int]] = set()

    def costs_of(self, index: VectorIndex) -> WalkCosts:
        """Return the latest costs, without waiting for a measurement."""
        rows, costs = self._measured.get(_cost_key(index), (0, DEFAULT_COSTS))
        worth_measuring = index.rows >= max(MEASURED_ROWS_MIN, GROWTH * rows)
        if worth_measuring and index.walk_ready:
            self._offer_measurement(index)
        return costs

    def measure(self, index: VectorIndex) -> None:
        """Measure `index` in the calling thread. Its kernels must be loaded."""
        costs = measure_costs(index)
        if costs is None:
            return
        self._measured[_cost_key(index)] = (index.rows, costs)
        _log.info(
            "%s index of %d dimensions, %s: %s", index.kind, index.dimension, index.storage, costs
        )

    def _offer_measurement(self, index: VectorIndex) -> None:
        # Each is tried once: a measurement that failed would fail again.
        attempt = (_cost_key(index), index.rows)
        with self._lock:
            if attempt in self._tried:
                return
        if self._offer(lambda _: self.measure(index), name="measuring costs"):
            with self._lock:
                self._tried.add(attempt)


def _cost_key(index: VectorIndex) -> _CostKey:
    return index.dimension, index.kind, index.storage
