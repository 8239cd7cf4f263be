"""Timing several ways to answer the same queries, taking turns so that noise meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TURN_QUERIES = 10
"""Queries in a row of one way: each way has its own data in the processor's caches."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of single calls."""

    took_ms: tuple[float, ...]

    def __add__(self, other: Timings) -> Timings:
        return Timings(self.took_ms + other.took_ms)

    @property
    def p50_ms(self) -> float:
        """The median."""
        return float(np.median(self.took_ms))

    @property
    def p95_ms(self) -> float:
        """What one call in twenty exceeds."""
        return float(np.quantile(self.took_ms, 0.95))


def time_in_turns(
    calls: Mapping[str, Callable[[npt.NDArray[np.float32]], object]],
    queries: npt.NDArray[np.float32],
    *,
    repeats: int,
) -> dict[str, Timings]:
    """Call every way with every query by itself; the fastest of `repeats` calls of one counts.

    Whatever else runs on the machine can only add time.
    """
    fastest = {name: np.full(len(queries), np.inf) for name in calls}
    for _ in range(repeats):
        for start in range(0, len(queries), TURN_QUERIES):
            for name, call in calls.items():
                for number in range(start, min(start + TURN_QUERIES, len(queries))):
                    query = queries[number : number + 1]
                    started_s = time.perf_counter()
                    call(query)
                    took_ms = (time.perf_counter() - started_s) * 1_000
                    fastest[name][number] = min(fastest[name][number], took_ms)
    return {name: Timings(tuple(took.tolist())) for name, took in fastest.items()}
