"""The lanes of a node: what waits is bounded, for one collection and in all (INV-9)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from annheal.errors import ResourceExhausted
from annheal.runtime.stop import YieldPoint
from annheal.shard_node.lanes import (
    COLLECTION_SHARE,
    READS_AT_ONCE,
    READS_WAITING_MAX,
    SEARCHES_WAITING_MAX,
    LaneName,
    Lanes,
    plan_lanes,
)


async def approximate(lanes: Lanes, work: Callable[[YieldPoint], None], name: str) -> None:
    await lanes.search(work, collection_id=name)


async def exact(lanes: Lanes, work: Callable[[YieldPoint], None], name: str) -> None:
    await lanes.search(work, collection_id=name, exact=True)


async def read(lanes: Lanes, work: Callable[[YieldPoint], None], name: str) -> None:
    await lanes.read(work, collection_id=name)


@pytest.mark.parametrize(
    ("lane", "ask", "running", "limit"),
    [
        (LaneName.APPROXIMATE, approximate, 1, SEARCHES_WAITING_MAX),
        (LaneName.EXACT, exact, 1, SEARCHES_WAITING_MAX),
        (LaneName.READ, read, READS_AT_ONCE, READS_WAITING_MAX),
    ],
)
async def test_inv9_what_waits_is_refused_beyond_the_limits(
    lane: LaneName,
    ask: Callable[[Lanes, Callable[[YieldPoint], None], str], Awaitable[None]],
    running: int,
    limit: int,
) -> None:
    lanes = Lanes(cores=2)
    gate = threading.Event()

    def work(yield_point: YieldPoint) -> None:
        assert gate.wait(30.0)

    def start(name: str) -> asyncio.Task[None]:
        return asyncio.ensure_future(ask(lanes, work, name))  # type: ignore[arg-type, return-value]

    share = int(COLLECTION_SHARE * limit)
    tasks = [start("a") for _ in range(running)]
    await asyncio.sleep(0)
    tasks += [start("a") for _ in range(share)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="of the same collection") as refused:
        await ask(lanes, work, "a")
    assert refused.value.retry_after_s
    tasks += [start("b") for _ in range(limit - share)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match=f"{limit} calls wait for the {lane} lane"):
        await ask(lanes, work, "c")
    state = lanes.states()[lane]
    assert (state.waiting, state.running, state.refused) == (limit, running, 2)
    gate.set()
    await asyncio.gather(*tasks)
    assert lanes.states()[lane].waiting == 0
    lanes.close()


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 16, 64])
def test_limits_follow_the_cores(cores: int) -> None:
    limits = plan_lanes(cores)
    assert set(limits) == set(LaneName)
    assert limits[LaneName.APPROXIMATE].turns == max(1, cores // 4)
    assert limits[LaneName.EXACT].nice > limits[LaneName.APPROXIMATE].nice == 0
    assert all(limit.turns <= limit.open_max for limit in limits.values())


async def test_a_piece_of_work_waits_only_for_its_own_lane() -> None:
    lanes = Lanes(cores=2)
    gate = threading.Event()

    def hold(yield_point: YieldPoint) -> None:
        assert gate.wait(30.0)

    busy = [
        asyncio.create_task(lanes.search(hold, collection_id="a")),
        asyncio.create_task(lanes.change(hold, collection_id="a")),
        *(
            asyncio.create_task(lanes.maintenance(lambda: gate.wait(30.0), collection_id="a"))
            for _ in range(4)
        ),
    ]
    await asyncio.sleep(0.05)
    assert await lanes.read(lambda _: 1, collection_id="a") == 1
    assert await lanes.search(lambda _: 2, collection_id="a", exact=True) == 2
    assert await lanes.monitor(lambda: 3) == 3
    gate.set()
    await asyncio.gather(*busy)
    lanes.close()
