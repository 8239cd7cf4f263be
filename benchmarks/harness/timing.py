"""Timing several ways to answer the same queries, taking turns so that noise meets all of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TURN_CALLS = 10
"""Calls in a row of one way: each way has its own data in the processor's caches."""


Queries = npt.NDArray[np.float32]


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
    calls: Mapping[str, Callable[[Queries], object]],
    queries: Queries,
    *,
    repeats: int,
    per_call: int = 1,
) -> dict[str, Timings]:
    """Call every way with all queries, `per_call` at once; of `repeats` times of the same call
    the fastest counts.

    Whatever else runs on the machine can only add time. Who begins changes with every repetition:
    the later ones may find in the caches what the first one read.
    """
    parts = _parts(queries, per_call)
    fastest = {name: np.full(len(parts), np.inf) for name in calls}
    for name, number in _turns(tuple(calls), len(parts), repeats):
        started_s = time.perf_counter()
        calls[name](parts[number])
        took_ms = (time.perf_counter() - started_s) * 1_000
        fastest[name][number] = min(fastest[name][number], took_ms)
    return {name: Timings(tuple(took.tolist())) for name, took in fastest.items()}


async def await_in_turns(
    calls: Mapping[str, Callable[[Queries], Awaitable[object]]], queries: Queries, *, repeats: int
) -> dict[str, Timings]:
    """Await every way with every query by itself; else as `time_in_turns`."""
    parts = _parts(queries, 1)
    fastest = {name: np.full(len(parts), np.inf) for name in calls}
    for name, number in _turns(tuple(calls), len(parts), repeats):
        started_s = time.perf_counter()
        await calls[name](parts[number])
        took_ms = (time.perf_counter() - started_s) * 1_000
        fastest[name][number] = min(fastest[name][number], took_ms)
    return {name: Timings(tuple(took.tolist())) for name, took in fastest.items()}


def _parts(queries: Queries, per_call: int) -> list[Queries]:
    return [queries[start : start + per_call] for start in range(0, len(queries), per_call)]


def _turns(names: tuple[str, ...], parts: int, repeats: int) -> Iterator[tuple[str, int]]:
    """Yield who is to answer which part: `TURN_CALLS` of one way, then as many of the next."""
    for repeat in range(repeats):
        for start in range(0, parts, TURN_CALLS):
            for name in names if repeat % 2 == 0 else reversed(names):
                for number in range(start, min(start + TURN_CALLS, parts)):
                    yield name, number
