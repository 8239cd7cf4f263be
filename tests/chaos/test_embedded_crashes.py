"""`annheal up` is killed again and again under writes; INV-1, INV-2 and INV-3 hold afterwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from annheal import AsyncClient
from tests.support.chaos import ACKNOWLEDGED_MIN, chosen
from tests.support.cluster import (
    EAGER_SETTINGS,
    SMALL_SEGMENTS,
    EmbeddedServer,
    compact_fully,
)
from tests.support.counters import counting
from tests.support.crash_points import ENV_CRASH_AT
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import ProcessFailed, ProcessGroup
from tests.support.records_oracle import (
    ATTRIBUTES,
    DIMENSION,
    RecordsOracle,
    Workload,
    check_records,
)

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

COLLECTION = "chaos"
# Only a failure waits so long; a machine that is very busy needs some of it.
CRASH_TIMEOUT_S = 90.0

CRASH_POINTS = (
    "objects put_if_absent before wal/ 6",
    "objects put_if_absent after wal/ 6",
    "objects put_file_if_absent before segments/ 2",
    "objects put_file_if_absent after segments/ 2",
    "meta commit before manifests/ 3",
    "meta commit after manifests/ 3",
    "objects put_if_absent before deletes/ 2",
    "objects put_if_absent after deletes/ 2",
    "objects delete before wal/ 2",
    "objects delete after wal/ 2",
    "meta commit before claims/ 1",
    "meta commit after claims/ 1",
    "meta commit before tasks/ 2",
    "meta commit after tasks/ 2",
    "meta commit after shards/ 1",
)


@dataclass(frozen=True, slots=True)
class Kill:
    """When to kill: after so many acknowledged writes, and then some time."""

    writes: int
    delay_s: float


def plan_kills(rng: random.Random, count: int) -> list[Kill]:
    return [Kill(rng.randint(1, 60), rng.uniform(0.0, 0.3)) for _ in range(count)]


@asynccontextmanager
async def chaotic_server(
    group: ProcessGroup, seed: int
) -> AsyncIterator[tuple[EmbeddedServer, AsyncClient, RecordsOracle, Workload]]:
    """A server on a port that it keeps, with writers at work; wholly checked at the end."""
    server = EmbeddedServer(
        group,
        settings=EAGER_SETTINGS,
        listen=f"{LOOPBACK}:{free_port()}",
        module="tests.support.crash_points",
    ).start()
    oracle = RecordsOracle()
    async with AsyncClient(server.address) as client:
        await client.create_collection(
            COLLECTION,
            DIMENSION,
            attributes=ATTRIBUTES,
            shard_count=3,
            settings=SMALL_SEGMENTS,
        )
        async with (
            counting(client),
            Workload(client, COLLECTION, oracle, seed=seed) as workload,
        ):
            yield server, client, oracle, workload
            await workload.wait_progress(max(20, ACKNOWLEDGED_MIN - oracle.acknowledged))
        assert oracle.acknowledged >= ACKNOWLEDGED_MIN
        await check_records(client, COLLECTION, oracle)
        # The same after everything was rewritten, and after an orderly restart.
        await compact_fully(client, COLLECTION)
        await check_records(client, COLLECTION, oracle)
        assert await asyncio.to_thread(server.process.terminate) == 0
        await asyncio.to_thread(server.start)
        await check_records(client, COLLECTION, oracle)


async def test_nothing_acknowledged_is_lost_when_killed_at_random_moments(
    chaos_seed: int, kills: int
) -> None:
    with ProcessGroup() as group:
        async with chaotic_server(group, chaos_seed) as (server, _, _, workload):
            for kill in plan_kills(random.Random(chaos_seed), kills):
                await workload.wait_progress(kill.writes)
                await asyncio.sleep(kill.delay_s)  # the random moment
                server.kill()
                await asyncio.to_thread(server.start)


async def test_nothing_acknowledged_is_lost_when_killed_at_its_effects(chaos_seed: int) -> None:
    """The server dies right before or right after durable changes of every kind."""
    with ProcessGroup() as group:
        async with chaotic_server(group, chaos_seed) as (server, _, _, workload):
            await workload.wait_progress(5)
            server.kill()
            for point in chosen(CRASH_POINTS, seed=chaos_seed):
                server.process.start(wait=False, extra_environment={ENV_CRASH_AT: point})
                try:
                    code = await asyncio.to_thread(
                        server.process.wait_end, timeout_s=CRASH_TIMEOUT_S
                    )
                except ProcessFailed as error:
                    raise AssertionError(f"{point!r} was never reached") from error
                assert code == -9, f"{point}: ended with {code}:\n{server.process.log_tail()}"
            await asyncio.to_thread(server.start)
