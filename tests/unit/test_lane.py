"""Lanes: bounded, fair between tenants, and left at once by work that nobody waits for."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time

import pytest

from annheal.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from annheal.runtime.deadline import Deadline
from annheal.runtime.lane import Lane, LaneLimits
from annheal.runtime.stop import WorkStopped, YieldPoint

ONE = LaneLimits(turns=1, open_max=4)


def slices(seconds: float, yield_point: YieldPoint, on_slice=lambda: None) -> float:
    """Work for so many seconds in slices of two milliseconds."""
    ended_s = time.monotonic() + seconds
    while time.monotonic() < ended_s:
        spin_until_s = time.monotonic() + 0.002
        while time.monotonic() < spin_until_s:
            pass
        on_slice()
        yield_point()
    return seconds


class Clock:
    """Time that the work itself lets pass."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Gate:
    """Work that runs until it is opened, and says when it began."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.open = threading.Event()

    def __call__(self, yield_point: YieldPoint) -> None:
        self.began.set()
        assert self.open.wait(10.0)

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.began.wait, 10.0)


async def test_returns_and_raises_what_the_work_does() -> None:
    lane = Lane("t", ONE)

    def fail(yield_point: YieldPoint) -> None:
        raise KeyError("x")

    assert await lane.run(lambda _: 7, tenant="a") == 7
    with pytest.raises(KeyError):
        await lane.run(fail, tenant="a")
    assert (lane.state().waiting, lane.state().running) == (0, 0)
    lane.close()


async def test_no_more_than_the_limits_run_and_wait() -> None:
    lane = Lane("t", LaneLimits(1, 1, waiting_max=3, tenant_waiting_max=2))
    gate = Gate()
    running = asyncio.create_task(lane.run(gate, tenant="a"))
    await gate.has_begun()
    waiting = [asyncio.create_task(lane.run(lambda _: 1, tenant="a")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="same collection") as of_one:
        await lane.run(lambda _: 1, tenant="a")
    waiting.append(asyncio.create_task(lane.run(lambda _: 1, tenant="b")))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="3 calls wait for the t lane") as of_all:
        await lane.run(lambda _: 1, tenant="c")
    assert of_one.value.retry_after_s
    assert of_all.value.retry_after_s
    assert lane.state().refused == 2
    gate.open.set()
    assert await asyncio.gather(running, *waiting) == [None, 1, 1, 1]
    lane.close()


async def test_a_tenant_with_little_to_do_does_not_wait_for_one_with_much() -> None:
    """Both within one turn: short pieces pass a long one that does not end before them."""
    lane = Lane("t", ONE)
    enough = threading.Event()

    def work(yield_point: YieldPoint) -> None:
        while not enough.is_set():
            slices(0.002, yield_point)

    long = asyncio.create_task(lane.run(work, tenant="much"))
    for _ in range(20):
        await lane.run(lambda stop: slices(0.003, stop), tenant="little")
    assert not long.done()
    enough.set()
    await long
    lane.close()


async def test_tenants_that_both_want_all_get_half_each() -> None:
    """Whatever the number of calls: one of a, three of b, 300 slices of two milliseconds each."""
    clock = Clock()
    lane = Lane("t", ONE, clock=clock)
    gate = Gate()
    running = asyncio.create_task(lane.run(gate, tenant="gate"))
    await gate.has_begun()
    order: list[str] = []

    def ask(tenant: str) -> asyncio.Task[None]:
        def work(yield_point: YieldPoint) -> None:
            for _ in range(300):
                order.append(tenant)
                clock.now_s += 0.002
                yield_point()

        return asyncio.create_task(lane.run(work, tenant=tenant))

    tasks = [ask("a"), ask("b"), ask("b"), ask("b")]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(running, *tasks)
    both = order[: len(order) - order[::-1].index("a")]
    assert abs(both.count("a") - both.count("b")) <= 2
    lane.close()


async def test_an_idle_tenant_saves_nothing_up() -> None:
    """Who comes late gets its share from now on, and not what it left to others before."""
    clock = Clock()
    lane = Lane("t", ONE, clock=clock)
    order: list[str] = []

    def take(tenant: str, seconds: float):
        def work(yield_point: YieldPoint) -> None:
            order.append(tenant)
            clock.now_s += seconds

        return lane.run(work, tenant=tenant)

    for _ in range(10):
        await take("old", 1.0)
    gate = Gate()
    running = asyncio.create_task(lane.run(gate, tenant="gate"))
    await gate.has_begun()
    order.clear()
    later = [asyncio.create_task(take(tenant, 1.0)) for tenant in ["old", "old", "new", "new"]]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(running, *later)
    assert sorted(order[:2]) == sorted(order[2:]) == ["new", "old"]
    lane.close()


async def test_work_ends_at_its_next_yield_point_when_the_caller_leaves() -> None:
    lane = Lane("t", ONE)
    ended = threading.Event()
    raised: list[BaseException] = []

    def work(yield_point: YieldPoint) -> None:
        try:
            slices(30.0, yield_point)
        except WorkStopped as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    task = asyncio.create_task(lane.run(work, tenant="a"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 1.0)
    assert raised
    assert await lane.run(lambda _: 1, tenant="a") == 1
    lane.close()


async def test_a_deadline_ends_work_although_the_event_loop_is_late() -> None:
    lane = Lane("t", ONE)
    ran_s: list[float] = []

    def work(yield_point: YieldPoint) -> None:
        began_s = time.monotonic()
        try:
            slices(30.0, yield_point)
        finally:
            ran_s.append(time.monotonic() - began_s)

    task = asyncio.create_task(lane.run(work, tenant="a", deadline=Deadline.after(0.05)))
    await asyncio.sleep(0)
    busy_until_s = time.monotonic() + 0.3
    while time.monotonic() < busy_until_s:
        pass  # the loop does nothing else meanwhile
    with pytest.raises(DeadlineExceeded):
        await task
    assert ran_s[0] < 0.2
    lane.close()


async def test_callers_that_leave_free_their_places_in_the_queue() -> None:
    lane = Lane("t", LaneLimits(1, 1, waiting_max=2))
    gate = Gate()
    running = asyncio.create_task(lane.run(gate, tenant="a"))
    await gate.has_begun()
    ran: list[int] = []
    gone = [asyncio.create_task(lane.run(lambda _: ran.append(1), tenant="a")) for _ in range(2)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert lane.state().waiting == 0
    kept = asyncio.create_task(lane.run(lambda _: ran.append(2), tenant="a"))
    gate.open.set()
    await asyncio.gather(running, kept)
    assert ran == [2]
    lane.close()


async def test_paused_work_ends_at_once_when_its_caller_leaves() -> None:
    lane = Lane("t", ONE)
    stopped = threading.Event()

    def work(yield_point: YieldPoint) -> None:
        try:
            slices(30.0, yield_point)
        finally:
            stopped.set()

    task = asyncio.create_task(lane.run(work, tenant="a"))
    gate = Gate()  # takes the turn at the next yield_point, and keeps it
    holding = asyncio.create_task(lane.run(gate, tenant="b"))
    await gate.has_begun()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(stopped.wait, 5.0)
    gate.open.set()
    await holding
    assert lane.state().running == 0
    lane.close()


async def test_run_to_end_holds_a_cancelled_caller() -> None:
    lane = Lane("t", ONE)
    gate = Gate()
    task = asyncio.create_task(lane.run_to_end(gate, tenant="a"))
    await gate.has_begun()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    lane.close()


async def test_a_closed_lane_ends_what_it_took_and_takes_no_more() -> None:
    lane = Lane("t", ONE)
    gate = Gate()
    running = asyncio.create_task(lane.run(gate, tenant="a"))
    waiting = asyncio.create_task(lane.run(lambda _: 2, tenant="a"))
    await gate.has_begun()
    lane.close()
    with pytest.raises(Unavailable):
        await lane.run(lambda _: 3, tenant="a")
    gate.open.set()
    assert await asyncio.gather(running, waiting) == [None, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux alone")
async def test_threads_of_a_lane_give_way() -> None:
    lane = Lane("t", LaneLimits(1, 1, nice=5))
    usual = os.getpriority(os.PRIO_PROCESS, os.getpid())

    def priority(yield_point: YieldPoint) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert await lane.run(priority, tenant="a") == min(19, usual + 5)
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == usual
    lane.close()


async def test_waits_are_told() -> None:
    waits: list[float] = []
    lane = Lane("t", ONE, on_wait=waits.append)
    await lane.run(lambda _: time.sleep(0.02), tenant="a")
    gate = Gate()
    running = asyncio.create_task(lane.run(gate, tenant="a"))
    await gate.has_begun()
    later = asyncio.create_task(lane.run(lambda _: None, tenant="a"))
    await asyncio.sleep(0.03)
    gate.open.set()
    await asyncio.gather(running, later)
    assert len(waits) == 3
    assert waits[2] >= 0.03 > waits[0]
    lane.close()


async def test_slices_wait_for_the_lane_that_they_give_way_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Lane("first", ONE)
    second = Lane("second", ONE, gives_way_to=first)
    gate = Gate()
    began, done = threading.Event(), threading.Event()

    def work(yield_point: YieldPoint) -> None:
        began.set()
        yield_point()
        done.set()

    monkeypatch.setattr("annheal.runtime.lane.GIVE_WAY_S_MAX", 60.0)
    running = asyncio.create_task(first.run(gate, tenant="a"))
    await gate.has_begun()
    waits = asyncio.create_task(second.run(work, tenant="a"))
    assert await asyncio.to_thread(began.wait, 10.0)
    await asyncio.sleep(0.05)
    assert not done.is_set()
    gate.open.set()
    await asyncio.gather(running, waits)
    assert done.is_set()

    # However busy the other lane is, a slice does not wait for ever.
    monkeypatch.setattr("annheal.runtime.lane.GIVE_WAY_S_MAX", 0.001)
    gate = Gate()
    running = asyncio.create_task(first.run(gate, tenant="a"))
    await gate.has_begun()
    await second.run(work, tenant="a")
    assert not running.done()
    gate.open.set()
    await running
    first.close()
    second.close()
