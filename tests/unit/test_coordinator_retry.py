from __future__ import annotations

import asyncio
import io
import logging

import numpy as np
import pytest

from annheal.coordinator.recall.probe import tally
from annheal.errors import (
    AnnhealError,
    Conflict,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.records import RecordSet
from annheal.model.search import SearchAnswer
from annheal.runtime.deadline import Deadline
from annheal.runtime.logging import PlainFormatter
from annheal.runtime.retry import RetryPolicy, retry
from annheal.runtime.tasks import TaskScope, run_loop

QUICK = RetryPolicy(delay_s_min=0.001, delay_s_max=0.002)


class Failing:
    """Raises the given errors one after the other, then answers."""

    def __init__(self, *errors: AnnhealError) -> None:
        self._errors = list(errors)
        self.calls = 0

    async def __call__(self, _: Deadline) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def soon(timeout_s: float = 10.0) -> Deadline:
    return Deadline.after(timeout_s)


async def test_retryable_errors_are_repeated_and_others_are_not():
    call = Failing(Unavailable("a"), Fenced("b"), Conflict("c"))
    assert await retry(call, deadline=soon(), policy=QUICK) == "done"
    assert call.calls == 4
    call = Failing(Unavailable("a"), InvalidArgument("b"))
    with pytest.raises(InvalidArgument):
        await retry(call, deadline=soon(), policy=QUICK)
    assert call.calls == 2


async def test_at_the_deadline_the_last_error_is_raised():
    call = Failing(*[Unavailable("away")] * 100_000)
    with pytest.raises(Unavailable, match="away"):
        await retry(call, deadline=soon(0.05), policy=QUICK)
    assert call.calls > 2


async def test_inv9_attempts_have_a_limit():
    call = Failing(*[Unavailable("away")] * 100)
    with pytest.raises(Unavailable):
        await retry(call, deadline=soon(), policy=RetryPolicy(delay_s_min=0.0, attempts_max=3))
    assert call.calls == 3


async def test_a_hint_that_lies_beyond_the_deadline_is_not_waited_for():
    call = Failing(Unavailable("away", retry_after_s=60.0))
    with pytest.raises(Unavailable):
        await retry(call, deadline=soon(5.0), policy=QUICK)
    assert call.calls == 1


@pytest.mark.parametrize("last", [Unavailable("away"), InvalidArgument("no")])
async def test_a_mutation_stays_unknown_once_it_was(last: AnnhealError):
    call = Failing(UnknownOutcome("lost"), *[last] * 1_000)
    with pytest.raises(UnknownOutcome):
        await retry(call, deadline=soon(0.05), policy=QUICK, mutation=True)
    call = Failing(UnknownOutcome("lost"), Unavailable("away"))
    assert await retry(call, deadline=soon(), policy=QUICK, mutation=True) == "done"


async def test_an_attempt_cut_off_by_the_deadline():
    async def hang(_: Deadline) -> str:
        await asyncio.sleep(60)
        return "never"

    with pytest.raises(DeadlineExceeded):
        await retry(hang, deadline=soon(0.02))
    with pytest.raises(UnknownOutcome):
        await retry(hang, deadline=soon(0.02), mutation=True)


def test_waits_grow_to_their_limit_and_are_cut_by_jitter():
    policy = RetryPolicy(delay_s_min=0.1, delay_s_max=1.0, factor=2.0)
    assert [policy.delay_s(n, jitter=1.0) for n in (0, 1, 2, 3, 4, 99)] == [
        0.1,
        0.2,
        0.4,
        0.8,
        1.0,
        1.0,
    ]
    assert policy.delay_s(4, jitter=0.0) == 0.5


async def test_the_first_failure_of_a_scope_ends_the_others_and_is_raised():
    scope = TaskScope("test")
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def broken() -> None:
        raise ValueError("a bug")

    scope.start(endless(), name="endless")
    await asyncio.sleep(0)
    scope.start(broken(), name="broken")
    with pytest.raises(ValueError, match="a bug"):
        await asyncio.wait_for(scope.wait(), 5)
    await asyncio.wait_for(cancelled.wait(), 5)
    await scope.stop()
    assert len(scope) == 0
    with pytest.raises(RuntimeError, match="closed"):
        scope.start(broken(), name="late")


async def test_a_loop_survives_retryable_errors_only():
    errors: list[AnnhealError] = [Unavailable("away"), InvalidArgument("a bug")]

    async def step() -> None:
        raise errors.pop(0)

    async def wait() -> None:
        await asyncio.sleep(0)

    with pytest.raises(InvalidArgument):
        await run_loop(step, name="test", wait=wait)
    assert errors == []


def test_log_lines_carry_facts_and_escape_them():
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(PlainFormatter(constants={"role": "coordinator"}))
    logger = logging.getLogger("test.lines")
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning("shard %d moved", 3, extra={"facts": {"why": 'it is "full"', "rows": 7}})
    line = output.getvalue().strip()
    assert line.endswith(
        'warning test.lines shard 3 moved role=coordinator why="it is \\"full\\"" rows=7'
    )
    assert line[:4].isdigit()


# ------------------------------------------------------------------------------- recall's maths


def answer(*queries: list[tuple[float, str]]) -> SearchAnswer:
    flat = [hit for hits in queries for hit in hits]
    return SearchAnswer(
        counts=np.array([len(hits) for hits in queries], dtype=np.int32),
        scores=np.array([score for score, _ in flat], dtype=np.float32),
        records=RecordSet(ids=[record for _, record in flat]),
    )


def test_recall_leaves_the_query_out_and_counts_what_was_missed():
    truth = answer([(1.0, "own"), (0.9, "a"), (0.8, "b")], [(1.0, "me"), (0.5, "x"), (0.4, "y")])
    found = answer([(1.0, "own"), (0.9, "a"), (0.3, "c")], [(1.0, "me"), (0.5, "x"), (0.4, "y")])
    counted = tally(found, truth, own=["own", "me"], k=2, shard_count=1)
    assert counted.expected.tolist() == [2, 2]
    assert counted.found.tolist() == [1, 2]
    assert counted.shard_expected.tolist() == [4]
    assert counted.shard_found.tolist() == [3]


def test_an_equally_near_record_is_as_good():
    truth = answer([(1.0, "own"), (0.9, "a"), (0.8, "b")])
    found = answer([(1.0, "own"), (0.9, "a"), (0.8, "tie")])
    counted = tally(found, truth, own=["own"], k=2, shard_count=1)
    assert counted.found.tolist() == [2]
    assert counted.shard_found.tolist() == [2]


def test_a_query_without_neighbours_expects_none():
    alone = answer([(1.0, "own")])
    counted = tally(alone, alone, own=["own"], k=2, shard_count=2)
    assert counted.expected.tolist() == [0]
