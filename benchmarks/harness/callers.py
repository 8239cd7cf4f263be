"""Concurrent callers that each wait for an answer before they ask again."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP_S = 0.3

AsyncCall = Callable[[int], Awaitable[object]]
BlockingCall = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Round:
    """What all callers together did in one round; times of single calls in milliseconds."""

    calls_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over rounds, with the slowest and the fastest round beside them."""

    calls_per_s: float
    calls_per_s_min: float
    calls_per_s_max: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def figures_of(rounds: Sequence[Round]) -> Figures:
    """Return the medians."""
    rates = [one.calls_per_s for one in rounds]
    return Figures(
        calls_per_s=statistics.median(rates),
        calls_per_s_min=min(rates),
        calls_per_s_max=max(rates),
        p50_ms=statistics.median(one.p50_ms for one in rounds),
        p95_ms=statistics.median(one.p95_ms for one in rounds),
        p99_ms=statistics.median(one.p99_ms for one in rounds),
    )


async def run_tasks(call: AsyncCall, *, callers: int, seconds: float) -> Round:
    """Let `callers` tasks call `call(number)` in turn for `seconds`."""
    times: list[float] = []
    numbers = itertools.count()
    started_s = time.perf_counter()
    end_s = started_s + seconds

    async def caller() -> None:
        while (before_s := time.perf_counter()) < end_s:
            await call(next(numbers))
            times.append(time.perf_counter() - before_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return _round(times, time.perf_counter() - started_s)


async def run_at_rate(
    call: AsyncCall, *, rate: float, until: asyncio.Event, took_ms: list[float]
) -> None:
    """Call `call(number)` `rate` times a second until told to stop, whatever is still under way.

    Milliseconds are counted from when a call was due, so that nobody's wait is left out.
    """
    began_s = time.perf_counter()

    async def one(number: int, due_s: float) -> None:
        await call(number)
        took_ms.append((time.perf_counter() - due_s) * 1e3)

    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            due_s = began_s + number / rate
            await asyncio.sleep(due_s - time.perf_counter())
            if until.is_set():
                return
            group.create_task(one(number, due_s))


def run_threads(
    call: BlockingCall, *, callers: int, seconds: float, prepare: Callable[[], None]
) -> Round:
    """Let `callers` threads, each after `prepare()`, call `call(number)` for `seconds`."""
    times: list[float] = []
    numbers = itertools.count()
    started_s = time.perf_counter()
    end_s = started_s + seconds

    def caller() -> None:
        prepare()
        while (before_s := time.perf_counter()) < end_s:
            call(next(numbers))
            times.append(time.perf_counter() - before_s)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _round(times, time.perf_counter() - started_s)


def _round(times: list[float], took_s: float) -> Round:
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(times, [50, 95, 99]))
    return Round(len(times) / took_s, p50, p95, p99)
