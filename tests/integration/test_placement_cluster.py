"""Shards move, nodes and leaders die, etcd goes away: clients notice little and lose nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from annheal import AsyncClient
from annheal.errors import InvalidArgument, NotFound
from annheal.model.topology.cluster import ShardStatus
from tests.support.cluster import FAST_CLUSTER, Cluster
from tests.support.etcd_server import EtcdServer
from tests.support.processes import ProcessGroup, wait_until_async
from tests.support.records_oracle import (
    ATTRIBUTES,
    DIMENSION,
    RecordsOracle,
    Workload,
    check_records,
)
from tests.support.s3_server import S3Server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.etcd,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

SHARDS = 6
MOVE_TIMEOUT_S = 60.0
AWAY_S = 3 * float(FAST_CLUSTER["lease_ttl_s"])
SETTINGS = {"seal_rows_max": 200, "seal_age_s": 1.0, "tombstone_rows_min": 20}


@dataclass(frozen=True, slots=True)
class System:
    """Two coordinators, three nodes, one compactor, on an etcd that the tests may stop."""

    cluster: Cluster
    etcd: EtcdServer

    @property
    def addresses(self) -> list[str]:
        return list(self.cluster.coordinators.values())


@pytest.fixture(scope="module")
def system(s3_server: S3Server) -> Iterator[System]:
    with EtcdServer() as etcd, ProcessGroup() as group:
        cluster = Cluster(
            group,
            metadata_url=etcd.url("placement-test"),
            object_store_url=s3_server.url(prefix="placement-test"),
            environment=s3_server.environment(),
            settings={"rebalance_automatic": "false"},
        )
        for number in range(2):
            cluster.add_coordinator(f"coordinator-{number}")
        for number in range(3):
            cluster.add_node(f"node-{number}")
        cluster.add_compactor("compactor-0")
        yield System(cluster.start(), etcd)


@pytest.fixture
async def client(system: System) -> AsyncIterator[AsyncClient]:
    for name in (*system.cluster.coordinators, *system.cluster.nodes):
        if not system.cluster[name].running:
            system.cluster[name].start()
    async with AsyncClient(system.addresses[0]) as client:
        for node in system.cluster.nodes:
            await client.undrain(node)
        yield client


@asynccontextmanager
async def busy_collection(
    client: AsyncClient, name: str, *, seed: int
) -> AsyncIterator[tuple[Workload, RecordsOracle]]:
    """A collection under reads and writes; checked wholly and dropped at the end."""
    await client.create_collection(
        name, DIMENSION, attributes=ATTRIBUTES, shard_count=SHARDS, settings=SETTINGS
    )
    oracle = RecordsOracle()
    async with Workload(client, name, oracle, seed=seed, writers=3) as workload:
        await workload.wait_progress(20)
        yield workload, oracle
        await workload.wait_progress(20)
    assert await check_records(client, name, oracle) > 0
    await client.drop_collection(name)


async def owners(client: AsyncClient, collection: str) -> Counter[str]:
    shards = await client.shards(collection)
    return Counter(shard.owner for shard in shards)


async def wait_shards(
    client: AsyncClient, collection: str, *, without: str = "", what: str
) -> list[ShardStatus]:
    """Return the shards once all are served, none is on its way, and `without` has none."""
    found: list[ShardStatus] = []

    async def settled() -> bool:
        found[:] = await client.shards(collection)
        return all(
            one.phase == "serving" and not one.target and one.owner != without for one in found
        )

    await wait_until_async(settled, timeout_s=MOVE_TIMEOUT_S, what=what)
    return found


async def test_move_hands_a_shard_over_while_clients_work(client: AsyncClient) -> None:
    async with busy_collection(client, "moved", seed=1) as (workload, _):
        before = {shard.shard: shard for shard in await client.shards("moved")}
        target = next(n for n in ("node-0", "node-1", "node-2") if n != before[3].owner)
        move = await client.move_shard("moved", 3, target)
        assert (move.source, move.target) == (before[3].owner, target)
        after = {s.shard: s for s in await wait_shards(client, "moved", what="move")}
        assert after[3].owner == target
        assert after[3].epoch > before[3].epoch
        untouched = [number for number in before if number != 3]
        assert {n: after[n].owner for n in untouched} == {n: before[n].owner for n in untouched}
        await workload.wait_progress(20)
        assert workload.failures == []


async def test_drain_empties_a_node_and_rebalance_fills_it_again(client: AsyncClient) -> None:
    async with busy_collection(client, "drained", seed=2) as (workload, _):
        assert (await owners(client, "drained"))["node-1"] == 2
        moves = await client.drain("node-1")
        assert {move.source for move in moves} == {"node-1"}
        await wait_shards(client, "drained", without="node-1", what="drain")
        nodes = {one.registration.node_id: one for one in await client.nodes()}
        assert nodes["node-1"].draining
        assert nodes["node-1"].shards == 0
        assert sorted((await owners(client, "drained")).values()) == [3, 3]
        assert not await client.rebalance(dry_run=True), "a drained node gets nothing"

        await client.undrain("node-1")
        planned = await client.rebalance(dry_run=True)
        assert len(planned) == 2
        assert {move.target for move in planned} == {"node-1"}
        assert (await owners(client, "drained"))["node-1"] == 0, "a dry run moves nothing"
        ordered = await client.rebalance()
        assert {(m.shard, m.target) for m in ordered} == {(m.shard, m.target) for m in planned}

        async def even() -> bool:
            return set((await owners(client, "drained")).values()) == {2}

        await wait_until_async(even, timeout_s=MOVE_TIMEOUT_S, what="rebalance")
        await workload.wait_progress(20)
        assert workload.failures == []


async def test_orders_that_make_no_sense_are_refused(client: AsyncClient) -> None:
    await client.create_collection("refused", 4, shard_count=2)
    with pytest.raises(NotFound, match="node-9"):
        await client.move_shard("refused", 0, "node-9")
    with pytest.raises((NotFound, InvalidArgument), match="shard"):
        await client.move_shard("refused", 2, "node-0")
    with pytest.raises(NotFound, match="refusal"):
        await client.move_shard("refusal", 0, "node-0")
    with pytest.raises(NotFound, match="node-9"):
        await client.drain("node-9")
    await client.drop_collection("refused")


async def test_a_killed_node_is_replaced_and_returns(system: System, client: AsyncClient) -> None:
    async with busy_collection(client, "killed", seed=4) as (workload, _):
        lost = [s.shard for s in await client.shards("killed") if s.owner == "node-2"]
        assert lost
        system.cluster["node-2"].kill()
        shards = await wait_shards(client, "killed", without="node-2", what="takeover")
        assert {shard.owner for shard in shards} == {"node-0", "node-1"}
        await workload.wait_progress(20)
        assert workload.failures == [], "a client's own time is longer than a takeover"

        system.cluster["node-2"].start()

        async def back() -> bool:
            return "node-2" in {one.registration.node_id for one in await client.nodes()}

        await wait_until_async(back, timeout_s=MOVE_TIMEOUT_S, what="node-2 registers")
        await client.rebalance()

        async def even() -> bool:
            return set((await owners(client, "killed")).values()) == {2}

        await wait_until_async(even, timeout_s=MOVE_TIMEOUT_S, what="node-2 has shards again")


async def test_another_coordinator_leads_when_the_leader_is_killed(
    system: System, client: AsyncClient
) -> None:
    leader = (await client.status()).leader
    survivor = next(name for name in system.cluster.coordinators if name != leader)
    async with AsyncClient(system.cluster.coordinators[survivor]) as other:
        async with busy_collection(other, "led", seed=5) as (workload, _):
            system.cluster[leader].kill()

            async def leads() -> bool:
                return (await other.status()).leader == survivor

            await wait_until_async(leads, timeout_s=MOVE_TIMEOUT_S, what=f"{survivor} leads")
            # What only a leader does is done: a dead node's shards are given to others.
            system.cluster["node-0"].kill()
            await wait_shards(other, "led", without="node-0", what="takeover by the new leader")
            await workload.wait_progress(20)
            assert workload.failures == []
        system.cluster[leader].start()
        system.cluster["node-0"].start()


async def test_reads_and_writes_go_on_while_etcd_is_away(
    system: System, client: AsyncClient
) -> None:
    """INV-8: without etcd only changes of topology stop."""
    async with busy_collection(client, "orphaned", seed=6) as (workload, _):
        pids = {name: system.cluster[name].pid for name in system.cluster.nodes}
        before = {shard.shard: shard.owner for shard in await client.shards("orphaned")}
        system.etcd.kill()
        try:
            searches = workload.searches
            # Far longer than a lease, which nobody can renew meanwhile.
            end_s = time.monotonic() + AWAY_S
            while time.monotonic() < end_s:
                await workload.wait_progress(10)
            assert workload.searches > searches
            assert await client.count("orphaned") >= 0
            assert workload.failures == []
        finally:
            system.etcd.restart()
        await workload.wait_progress(30)

        async def registered() -> bool:
            return len(await client.nodes()) == len(system.cluster.nodes)

        await wait_until_async(registered, timeout_s=MOVE_TIMEOUT_S, what="nodes register again")
        await wait_shards(client, "orphaned", what="all shards are served")
        assert {name: system.cluster[name].pid for name in pids} == pids, "nobody was restarted"
        assert set(before.values()) <= set(system.cluster.nodes)
        # Topology can be changed again.
        await client.create_collection("after-etcd", 4, shard_count=3)
        await client.drop_collection("after-etcd")


async def test_a_rolling_restart_costs_no_client_an_error(
    system: System, client: AsyncClient
) -> None:
    """SIGTERM ends every role with 0, and nobody but the leader's lease notices."""
    second = next(n for n, a in system.cluster.coordinators.items() if a != client.address)
    async with busy_collection(client, "rolled", seed=7) as (workload, oracle):
        for name in (second, *system.cluster.nodes, *system.cluster.compactors):
            code = await asyncio.to_thread(system.cluster[name].terminate)
            assert code == 0, system.cluster[name].log_tail()
            await asyncio.to_thread(system.cluster[name].start)
            await wait_shards(client, "rolled", what=f"all is served after {name} came back")
            await workload.wait_progress(5)
        assert workload.failures == []
        assert oracle.unknown == 0
