"""The one way to repeat a call: bounded, with jitter, within the caller's deadline.

Exactly one layer of a call chain retries. What it repeats must be safe to repeat: reads, record
writes (idempotent by id), and compare-and-swaps that are read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from annheal.errors import AnnhealError, DeadlineExceeded, UnknownOutcome
from annheal.runtime.clock import jitter
from annheal.runtime.deadline import Deadline

ValueT = TypeVar("ValueT")
WaitForChange = Callable[[float], Awaitable[object]]
"""Waits at most that many seconds, less when something changed that makes a new try worthwhile."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waits grow from `delay_s_min` by `factor` to `delay_s_max`, each cut by at most a half."""

    delay_s_min: float = 0.01
    delay_s_max: float = 1.0
    factor: float = 2.0
    attempts_max: int = 200

    def delay_s(self, attempt: int, *, jitter: float) -> float:
        """Return the wait after failed attempt `attempt` (0 the first); `jitter` in [0, 1)."""
        exponent = min(attempt, 64)
        whole_s = min(self.delay_s_max, self.delay_s_min * self.factor**exponent)
        return whole_s * (0.5 + jitter / 2)


DEFAULT_POLICY = RetryPolicy()


def is_retryable(error: AnnhealError) -> bool:
    """Return what the error says of itself."""
    return error.retryable


async def retry(
    attempt: Callable[[Deadline], Awaitable[ValueT]],
    *,
    deadline: Deadline,
    policy: RetryPolicy = DEFAULT_POLICY,
    retryable: Callable[[AnnhealError], bool] = is_retryable,
    mutation: bool = False,
    wait: WaitForChange = asyncio.sleep,
) -> ValueT:
    """Return the first answer of `attempt`, repeated while it fails with a retryable error.

    An error's `retry_after_s` lengthens the wait. At the deadline the last error is raised, or
    `DeadlineExceeded` when none came. For a `mutation` an attempt whose end is not known (cut off
    by the deadline, or `UnknownOutcome`) makes the whole outcome unknown unless a later attempt
    succeeds: then `UnknownOutcome` is raised, even when the last attempt alone changed nothing.
    """
    unknown: UnknownOutcome | None = None
    last: AnnhealError | None = None
    for number in range(policy.attempts_max):
        try:
            async with asyncio.timeout(deadline.remaining_s):
                return await attempt(deadline)
        except TimeoutError as error:
            if not deadline.passed:
                raise  # not ours: a bug in the callee, which must raise its own kinds
            raise _at_deadline(last, mutation=mutation) from error
        except AnnhealError as error:
            if isinstance(error, UnknownOutcome):
                unknown = error
            if not retryable(error):
                if mutation and unknown is not None:
                    raise unknown from error
                raise
            last = error
        delay_s = policy.delay_s(number, jitter=jitter())
        delay_s = max(delay_s, last.retry_after_s or 0.0)
        if delay_s >= deadline.remaining_s:
            break
        await wait(delay_s)
    assert last is not None
    if mutation and unknown is not None:
        raise unknown
    raise last


def _at_deadline(last: AnnhealError | None, *, mutation: bool) -> AnnhealError:
    because = f"; the attempt before it failed: {last.message}" if last is not None else ""
    if mutation:
        return UnknownOutcome(f"the deadline passed before the write was answered{because}")
    return DeadlineExceeded(f"the deadline passed before the answer came{because}")
