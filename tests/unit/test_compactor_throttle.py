from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from annheal.compactor.throttle import (
    STORE_PAUSE_FIRST_S,
    STORE_PAUSE_MAX_S,
    STORE_WAIT_MAX_S,
    TRANSFERS_MAX,
    BuildSlots,
    ThrottledStore,
)
from annheal.errors import NotFound, Unavailable
from annheal.objectstore.local import LocalObjectStore
from annheal.runtime.lane import lower_thread_priority


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(round(delay_s, 6))
        self.now_s += delay_s

    def __call__(self) -> float:
        return self.now_s


class Moody(LocalObjectStore):
    """Refuses as often as it is told to, and counts the calls under way."""

    refusals = 0
    under_way = most = 0
    retry_after_s: float | None = None

    async def get(self, key: str) -> bytes:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            if self.refusals:
                self.refusals -= 1
                raise Unavailable("busy", retry_after_s=self.retry_after_s)
            return await super().get(key)
        finally:
            self.under_way -= 1


def throttled(store: LocalObjectStore, clock: Clock, *, bytes_per_s: int = 0) -> ThrottledStore:
    return ThrottledStore(store, bytes_per_s=bytes_per_s, sleep=clock.sleep, clock=clock)


async def test_transfers_keep_to_their_rate(tmp_path: Path) -> None:
    clock = Clock()
    store = throttled(LocalObjectStore(tmp_path), clock, bytes_per_s=1_000)
    await store.put_if_absent("a/b/c/1", b"x" * 500)
    assert clock.slept == []
    assert await store.get("a/b/c/1") == b"x" * 500
    await store.get("a/b/c/1")
    assert clock.slept == [0.5, 0.5]


async def test_without_a_rate_nothing_waits(tmp_path: Path) -> None:
    clock = Clock()
    store = throttled(LocalObjectStore(tmp_path), clock)
    for number in range(5):
        await store.put_if_absent(f"a/b/c/{number}", b"x" * 500)
    assert clock.slept == []


async def test_a_busy_store_is_left_alone_longer_and_longer(tmp_path: Path) -> None:
    clock, moody = Clock(), Moody(tmp_path)
    await moody.put_if_absent("a/b/c/1", b"x")
    store = throttled(moody, clock)
    moody.refusals = 3
    assert await store.get("a/b/c/1") == b"x"
    assert clock.slept == [STORE_PAUSE_FIRST_S, 2 * STORE_PAUSE_FIRST_S, 4 * STORE_PAUSE_FIRST_S]
    moody.refusals, moody.retry_after_s = 1, 7.0
    clock.slept.clear()
    await store.get("a/b/c/1")
    assert clock.slept == [7.0], "what the store asks for, and the pause starts anew"


async def test_a_store_that_stays_away_is_given_up(tmp_path: Path) -> None:
    clock, moody = Clock(), Moody(tmp_path)
    moody.refusals = 10_000
    began_s = clock()
    with pytest.raises(Unavailable):
        await throttled(moody, clock).get("a/b/c/1")
    assert STORE_WAIT_MAX_S <= clock() - began_s <= STORE_WAIT_MAX_S + STORE_PAUSE_MAX_S


async def test_an_answer_is_no_reason_to_wait(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(NotFound):
        await throttled(LocalObjectStore(tmp_path), clock).get("a/b/c/none")
    assert clock.slept == []


async def test_few_transfers_run_at_once(tmp_path: Path) -> None:
    moody = Moody(tmp_path)
    await moody.put_if_absent("a/b/c/1", b"x")
    store = ThrottledStore(moody)
    await asyncio.gather(*(store.get("a/b/c/1") for _ in range(20)))
    assert moody.most == TRANSFERS_MAX


async def test_builds_share_the_threads_and_wait_for_their_turn() -> None:
    slots = BuildSlots(3)
    assert slots.threads_each == 3
    shares: list[int] = []
    leave = asyncio.Event()

    async def build() -> None:
        async with slots.slot():
            shares.append(slots.threads_each)
            await leave.wait()

    builds = [asyncio.create_task(build()) for _ in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert shares == [3, 1, 1], "two builds wait"
    leave.set()
    await asyncio.gather(*builds)
    assert len(shares) == 5
    assert slots.threads_each == 3


def test_builds_give_way_to_other_threads() -> None:
    found: list[int] = []

    def build() -> None:
        lower_thread_priority(7)
        inner = threading.Thread(
            target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        inner.start()
        inner.join()

    mine = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert found == [min(19, mine + 7)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
