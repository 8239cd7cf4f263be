"""Owner nodes and compactors of a cluster are killed under writes; nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from annheal import AsyncClient
from annheal.model.topology.task import ATTEMPTS_MAX
from tests.support.chaos import ACKNOWLEDGED_MIN, chosen
from tests.support.cluster import EAGER_SETTINGS, SMALL_SEGMENTS, Cluster, compact_fully
from tests.support.counters import COLLECTION as COUNTER_COLLECTION
from tests.support.counters import counting
from tests.support.crash_points import ENV_CRASH_AT
from tests.support.etcd_server import EtcdServer
from tests.support.processes import (
    ProcessFailed,
    ProcessGroup,
    ServerProcess,
    wait_until_async,
)
from tests.support.records_oracle import (
    ATTRIBUTES,
    DIMENSION,
    RecordsOracle,
    Workload,
    check_records,
)
from tests.support.s3_server import S3Server

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.cluster,
    pytest.mark.etcd,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

COLLECTION = "chaos"
SHARDS = 4
TASKS_OF_WORKER_MAX = 2 * (SHARDS + 1)
"""Tasks that a compactor has at a time, at most: a merge and a worn segment of each shard, those of
the counter's collection too."""
CRASH_MODULE = "tests.support.crash_points"
# Only a failure waits so long; a machine that is very busy needs some of it.
CRASH_TIMEOUT_S = 90.0
TAKEOVER_TIMEOUT_S = 90.0

NODE_CRASH_POINTS = (
    "objects put_if_absent before wal/ 4",
    "objects put_if_absent after wal/ 4",
    "objects put_file_if_absent after segments/ 2",
    "objects put_if_absent after deletes/ 1",
    "meta commit before manifests/ 4",
    "meta commit after manifests/ 4",
    "objects delete after wal/ 1",
)
COMPACTOR_CRASH_POINTS = (
    "meta commit after claims/ 1",
    "objects put_file_if_absent before segments/ 1",
    "objects put_file_if_absent after segments/ 2",
    "meta commit before tasks/ 1",
    "meta commit after tasks/ 1",
)


@dataclass(slots=True)
class WorkerDeaths:
    """How often this test has ended a compactor."""

    count: int = 0

    @property
    def failed_tasks_max(self) -> int:
        """Tasks that may be quarantined for it: each takes `ATTEMPTS_MAX` deaths of its workers."""
        return self.count * TASKS_OF_WORKER_MAX // ATTEMPTS_MAX


@dataclass(frozen=True, slots=True)
class Kill:
    """Whom to kill, when, and whether others must take over before it comes back."""

    victim: str
    writes: int
    delay_s: float
    stays_away: bool


def plan_kills(
    rng: random.Random, count: int, *, nodes: list[str], workers: list[str]
) -> list[Kill]:
    """Return a schedule: nodes twice as often as compactors."""
    return [
        Kill(
            victim=rng.choice(nodes if number % 3 else workers),
            writes=rng.randint(1, 40),
            delay_s=rng.uniform(0.0, 0.3),
            stays_away=rng.random() < 0.3,
        )
        for number in range(count)
    ]


@asynccontextmanager
async def chaotic_cluster(
    group: ProcessGroup, etcd: EtcdServer, s3: S3Server, *, name: str, seed: int
) -> AsyncIterator[tuple[Cluster, AsyncClient, Workload, WorkerDeaths]]:
    """One coordinator, two nodes, two compactors, and writers; wholly checked at the end."""
    cluster = Cluster(
        group,
        metadata_url=etcd.url(name),
        object_store_url=s3.url(prefix=name),
        environment=s3.environment(),
        settings=EAGER_SETTINGS,
    )
    cluster.add_coordinator("coordinator-0")
    for number in range(2):
        cluster.add_node(f"node-{number}", module=CRASH_MODULE)
        cluster.add_compactor(f"compactor-{number}", module=CRASH_MODULE)
    await asyncio.to_thread(cluster.start)
    oracle, deaths = RecordsOracle(), WorkerDeaths()
    async with AsyncClient(cluster.address) as client:
        await client.create_collection(
            COLLECTION,
            DIMENSION,
            attributes=ATTRIBUTES,
            shard_count=SHARDS,
            settings=SMALL_SEGMENTS,
        )
        async with (
            counting(client),
            Workload(client, COLLECTION, oracle, seed=seed) as workload,
        ):
            yield cluster, client, workload, deaths
            await workload.wait_progress(max(20, ACKNOWLEDGED_MIN - oracle.acknowledged))
        assert oracle.acknowledged >= ACKNOWLEDGED_MIN
        await check_records(client, COLLECTION, oracle)
        # What dead compactors had claimed is done by others.
        await compact_fully(client, COLLECTION)
        # A task whose workers this test killed too often is quarantined, as documented; the full
        # compaction above has rewritten its sources all the same. Nothing else may fail.
        failed = await client.tasks(COLLECTION, phase="failed")
        assert all("workers died during" in task.error for task in failed), failed
        assert all(task.attempts >= ATTEMPTS_MAX for task in failed), failed
        assert len(failed) <= deaths.failed_tasks_max, (deaths, failed)
        await check_records(client, COLLECTION, oracle)
        await client.drop_collection(COLLECTION)
        await client.drop_collection(COUNTER_COLLECTION)


async def wait_takeover(client: AsyncClient, victim: str) -> None:
    async def taken() -> bool:
        shards = await client.shards(COLLECTION)
        return all(one.owner != victim and one.phase == "serving" for one in shards)

    await wait_until_async(taken, timeout_s=TAKEOVER_TIMEOUT_S, what=f"shards of {victim}")


async def test_nothing_acknowledged_is_lost_when_members_are_killed_at_random_moments(
    etcd_server: EtcdServer, s3_server: S3Server, chaos_seed: int, kills: int
) -> None:
    with ProcessGroup() as group:
        async with chaotic_cluster(
            group, etcd_server, s3_server, name="chaos-random", seed=chaos_seed
        ) as (cluster, client, workload, deaths):
            schedule = plan_kills(
                random.Random(chaos_seed),
                kills,
                nodes=list(cluster.nodes),
                workers=cluster.compactors,
            )
            for kill in schedule:
                await workload.wait_progress(kill.writes)
                await asyncio.sleep(kill.delay_s)  # the random moment
                cluster[kill.victim].kill()
                deaths.count += kill.victim in cluster.compactors
                if kill.stays_away and kill.victim in cluster.nodes:
                    await wait_takeover(client, kill.victim)
                # Not waited for: the next kill may find it loading, or kill both nodes at once.
                cluster[kill.victim].start(wait=False)


async def test_nothing_acknowledged_is_lost_when_members_die_at_their_effects(
    etcd_server: EtcdServer, s3_server: S3Server, chaos_seed: int
) -> None:
    """A node or compactor dies right before or after durable changes of every kind."""
    with ProcessGroup() as group:
        async with chaotic_cluster(
            group, etcd_server, s3_server, name="chaos-effects", seed=chaos_seed
        ) as (cluster, _, workload, deaths):
            await workload.wait_progress(5)
            # The leader gives the node shards again by itself.
            await die_at_each(chosen(NODE_CRASH_POINTS, seed=chaos_seed), cluster["node-1"])
            # Alone, so that the crash point is reached by the one that dies.
            cluster["compactor-0"].kill()
            points = chosen(COMPACTOR_CRASH_POINTS, seed=chaos_seed)
            await die_at_each(points, cluster["compactor-1"])
            deaths.count += 2 + len(points)  # both were killed first
            await asyncio.to_thread(cluster["compactor-0"].start)


async def die_at_each(points: Sequence[str], process: ServerProcess) -> None:
    process.kill()
    for point in points:
        process.start(wait=False, extra_environment={ENV_CRASH_AT: point})
        try:
            code = await asyncio.to_thread(process.wait_end, timeout_s=CRASH_TIMEOUT_S)
        except ProcessFailed as error:
            raise AssertionError(f"{process.name} never reached {point!r}") from error
        assert code == -9, f"{point}: {process.name} ended with {code}:\n{process.log_tail()}"
    await asyncio.to_thread(process.start)
