"""Work in the background: one piece at a time, and a failure is seen."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from annheal.runtime.background import Background
from annheal.runtime.lane import Lane, LaneLimits, Work
from annheal.runtime.stop import YieldPoint, no_yield_point


async def in_thread(work: Work[None]) -> None:
    await asyncio.to_thread(work, no_yield_point)


async def settle(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_one_piece_at_a_time_and_failures_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed: list[str] = []
    done: list[int] = []
    background = Background(in_thread, on_failure=failed.append)
    assert not background.offer(lambda _: done.append(0), name="too early")
    running = asyncio.create_task(background.run())
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    gate = asyncio.Event()

    def wait(yield_point: YieldPoint) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(10.0)
        done.append(1)

    assert await asyncio.to_thread(background.offer, wait, name="first")
    assert not background.offer(lambda _: done.append(2), name="meanwhile")
    gate.set()
    await settle(lambda: done == [1])

    def fail(yield_point: YieldPoint) -> None:
        raise MemoryError("codes")

    await settle(lambda: background.offer(fail, name="codes"))
    with caplog.at_level(logging.ERROR):
        await settle(lambda: failed == ["codes"])
    assert "codes" in caplog.text
    await settle(lambda: background.offer(lambda _: done.append(3), name="later"))
    await settle(lambda: done == [1, 3])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not background.offer(lambda _: done.append(4), name="too late")


async def test_work_under_way_ends_when_the_background_does() -> None:
    """A process that stops does not wait for codes that nobody will use."""
    lane = Lane("t", LaneLimits(1, 1))

    async def in_lane(work: Work[None]) -> None:
        await lane.run(work, tenant="")

    background = Background(in_lane)
    running = asyncio.create_task(background.run())
    await asyncio.sleep(0)
    began, ended = threading.Event(), threading.Event()

    def work(yield_point: YieldPoint) -> None:
        began.set()
        try:
            while True:
                yield_point()
        finally:
            ended.set()

    assert background.offer(work, name="codes")
    assert await asyncio.to_thread(began.wait, 10.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await asyncio.to_thread(ended.wait, 10.0)
    lane.close()
