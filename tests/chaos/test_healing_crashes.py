"""SIGKILL of compactor, owner and leader at every named step of a compaction, one by one and all.

Afterwards nothing acknowledged is lost, nothing is doubled, and once garbage was collected no
object is left that nothing names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from annheal import AsyncClient
from annheal.errors import FailedPrecondition
from annheal.metastore import keys
from annheal.metastore.codec import decode_value
from annheal.metastore.factory import open_meta_store
from annheal.metastore.protocol import MetaStore
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.topology.manifest import Manifest
from annheal.model.topology.task import TaskPhase
from annheal.objectstore.factory import open_object_store
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.fail_points import BACKFILL_POINTS, ENV_FAIL_POINT, FAIL_POINTS
from tests.support.chaos import ACKNOWLEDGED_MIN, chosen
from tests.support.cluster import (
    EAGER_SETTINGS,
    SMALL_SEGMENTS,
    Cluster,
    EmbeddedServer,
    compact_fully,
)
from tests.support.etcd_server import EtcdServer
from tests.support.model_checker import check_manifest, check_no_orphans
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import ProcessFailed, ProcessGroup, ServerProcess, wait_until_async
from tests.support.records_oracle import (
    ATTRIBUTES,
    DIMENSION,
    RecordsOracle,
    Workload,
    check_records,
)
from tests.support.s3_server import S3Server

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

COLLECTION = "healing"
SHARDS = 2
# Only a failure waits so long.
DEATH_TIMEOUT_S = 240.0
"""A node gets to a publication only after the compactor has died at all of its own steps: on a busy
machine that took 120 s."""
QUIET_TIMEOUT_S = 120.0
SETTINGS = {**EAGER_SETTINGS, "collection_interval_s": "0.5"}


COLLECTING = ("coordinator.collecting", "coordinator.collected")


def points_of(*services: str) -> tuple[str, ...]:
    """Return the fail points of these services; of those reached for each file, also the second.

    Those of the collection and of backfills are left out.
    """
    left_out = (*COLLECTING, *BACKFILL_POINTS)
    chosen = [
        name for name in FAIL_POINTS if name.split(".")[0] in services and name not in left_out
    ]
    return tuple(
        point
        for name in chosen
        for point in ((name, f"{name}:2") if name.endswith(".uploading") else (name,))
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """What outlives every process."""

    meta: MetaStore
    objects: ObjectStore

    async def manifests(self) -> list[Manifest]:
        snapshot = await self.meta.list(keys.MANIFESTS_PREFIX)
        return [decode_value(item.value, Manifest, key=item.key) for item in snapshot.items]

    async def check(self) -> None:
        """INV-5: everything that is named is there and whole; what is not named is gone."""
        manifests = await self.manifests()
        assert len(manifests) == SHARDS
        for manifest in manifests:
            await check_manifest(self.objects, manifest)
            place = f"{manifest.collection_id}/{manifest.shard:05d}/"
            listing = [
                stat
                for kind in ("segments/", "vectors/", "deletes/")
                async for stat in self.objects.list(f"{kind}{place}")
            ]
            check_no_orphans(listing, manifest)


@asynccontextmanager
async def writers(
    client: AsyncClient, seed: int, *, collecting: ServerProcess
) -> AsyncIterator[Workload]:
    """Write and search all the time; at the end everything is checked, and at rest.

    What is written while a shard has tasks is not collected, so the process that is to die while
    `collecting` dies after the writers have ended.
    """
    oracle = RecordsOracle()
    await client.create_collection(
        COLLECTION,
        DIMENSION,
        attributes=ATTRIBUTES,
        shard_count=SHARDS,
        settings=SMALL_SEGMENTS,
    )
    async with Workload(client, COLLECTION, oracle, seed=seed) as workload:
        yield workload
        missing = max(20, ACKNOWLEDGED_MIN - oracle.acknowledged)
        await workload.wait_progress(missing, timeout_s=DEATH_TIMEOUT_S)
    assert oracle.acknowledged >= ACKNOWLEDGED_MIN
    await check_records(client, COLLECTION, oracle)
    await compact_fully(client, COLLECTION)
    await die_at_each(COLLECTING, collecting)
    await wait_quiet(client)
    await check_records(client, COLLECTION, oracle)


async def wait_quiet(client: AsyncClient) -> None:
    """Return when no task is under way and nothing is left to collect."""

    async def quiet() -> bool:
        tasks = await client.tasks(COLLECTION)
        if any(task.phase in (TaskPhase.PENDING, TaskPhase.BUILT) for task in tasks):
            return False
        try:
            garbage = await client.collect_garbage()
        except FailedPrecondition:  # the leader has been killed, and does not lead again yet
            return False
        found = sum(kind.deleted_objects + kind.waiting_objects for kind in garbage.kinds)
        return bool(garbage.kinds) and not found

    await wait_until_async(quiet, timeout_s=QUIET_TIMEOUT_S, what="no garbage is left")


async def die_at_each(points: Sequence[str], process: ServerProcess) -> None:
    """Start `process` so that it dies at each of `points` in turn, and at last as it should be."""
    process.kill()
    for point in points:
        process.start(wait=False, extra_environment={ENV_FAIL_POINT: point})
        try:
            code = await asyncio.to_thread(process.wait_end, timeout_s=DEATH_TIMEOUT_S)
        except ProcessFailed as error:
            raise AssertionError(f"{process.name} never reached {point!r}") from error
        assert code == -9, f"{point}: {process.name} ended with {code}:\n{process.log_tail()}"
        last = process.log_tail().rstrip().splitlines()[-1]
        assert f"the fail point {point.split(':')[0]}" in last, last
    await asyncio.to_thread(process.start)


async def test_all_roles_die_at_once(chaos_seed: int) -> None:
    """`annheal up` holds the roles in one process: its death is that of all of them."""
    with ProcessGroup() as group:
        server = EmbeddedServer(
            group, settings=SETTINGS, listen=f"{LOOPBACK}:{free_port()}"
        ).start()
        async with (
            AsyncClient(server.address) as client,
            writers(client, chaos_seed, collecting=server.process) as workload,
        ):
            await workload.wait_progress(5)
            points = points_of("compactor", "shard_node", "coordinator")
            await die_at_each(chosen(points, seed=chaos_seed), server.process)
        assert await asyncio.to_thread(server.process.terminate) == 0
        stores = Stores(
            SqliteMetaStore(server.data_dir / "meta.sqlite"), LocalObjectStore(server.objects)
        )
        await stores.check()
        await stores.meta.close()
        await stores.objects.close()


@pytest.mark.cluster
@pytest.mark.etcd
@pytest.mark.s3
async def test_each_role_dies_at_every_step_of_its_own(
    etcd_server: EtcdServer,
    s3_server: S3Server,
    chaos_seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Leader, owner and compactor of a cluster die one after another at the same time.

    Each has a list of its own and does not wait for the others, so the deaths also fall together.
    """
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    urls = etcd_server.url("healing-crashes"), s3_server.url(prefix="healing-crashes")
    with ProcessGroup() as group:
        cluster = Cluster(
            group,
            metadata_url=urls[0],
            object_store_url=urls[1],
            environment=s3_server.environment(),
            settings=SETTINGS,
        )
        members = [
            cluster.add_coordinator("coordinator-0"),
            cluster.add_node("node-0"),
            cluster.add_compactor("compactor-0"),
        ]
        await asyncio.to_thread(cluster.start)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(cluster.address))
            stores = Stores(open_meta_store(urls[0]), open_object_store(urls[1]))
            stack.push_async_callback(stores.meta.close)
            stack.push_async_callback(stores.objects.close)
            async with writers(client, chaos_seed, collecting=members[0]) as workload:
                await workload.wait_progress(5)
                async with asyncio.TaskGroup() as deaths:
                    for service, member in zip(
                        ("coordinator", "shard_node", "compactor"), members, strict=True
                    ):
                        deaths.create_task(die_at_each(points_of(service), member))
            await stores.check()
