"""Compactor processes that die at every step: the task is done all the same, exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from annheal.metastore.factory import open_meta_store
from annheal.metastore.keys import compactor_key
from annheal.model.topology.task import ATTEMPTS_MAX, TaskPhase
from annheal.objectstore.local import LocalObjectStore
from tests.support.compaction import Workplace, merge_task
from tests.support.etcd_server import EtcdServer
from tests.support.ports import LOOPBACK, free_ports
from tests.support.segments import sample_rows

STEPS = ("claimed", "fetched", "built", "uploaded", "verified", "reported")
DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def workplace(directory: Path, metadata_url: str) -> AsyncIterator[Workplace]:
    meta = open_meta_store(metadata_url)
    objects = LocalObjectStore(directory / "objects")
    place = Workplace(meta, objects, directory)
    await place.add_segment("a", sample_rows(40), dead=[3])
    await place.add_segment("b", sample_rows(40, first=40))
    await place.add_task(merge_task("a", "b"))
    yield place
    await objects.close()
    await meta.close()


def sqlite_url(directory: Path) -> str:
    return f"sqlite://{directory / 'meta.db'}"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workplace]:
    async with workplace(tmp_path, sqlite_url(tmp_path)) as place:
        yield place


@asynccontextmanager
async def compactor(
    place: Workplace,
    *,
    worker_id: str,
    dies_at: str = "",
    listen: str = "127.0.0.1:0",
    metadata_url: str = "",
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m annheal.compactor` with its output in a file; SIGTERM ends it."""
    arguments = {
        "metadata-url": metadata_url or sqlite_url(place.directory),
        "object-store-url": str(place.directory / "objects"),
        "scratch-dir": str(place.directory / "scratch"),
        "worker-id": worker_id,
        "lease-ttl-s": "3",  # a busy machine misses shorter ones
        "poll-interval-s": "0.1",
        "listen": listen,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    environment = {**os.environ, "ANNHEAL_FAIL_POINT": dies_at and f"compactor.{dies_at}"}
    with (place.directory / f"{worker_id}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "annheal.compactor",
            *flags,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


async def until_registered(place: Workplace, worker_id: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await place.meta.get(compactor_key(worker_id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("step", STEPS)
async def test_task_survives_the_death_of_its_worker(place: Workplace, step: str) -> None:
    async with compactor(place, worker_id="first", dies_at=step) as first:
        async with asyncio.timeout(DEADLINE_S):
            assert await first.wait() == -signal.SIGKILL
    reported = step == "reported"
    task = await place.task()
    assert task.phase is (TaskPhase.BUILT if reported else TaskPhase.PENDING)
    assert task.attempts == 1
    async with compactor(place, worker_id="second") as second:
        await until_registered(place, "second")
        task = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED, deadline_s=DEADLINE_S)
    assert second.returncode == 0
    assert task.phase is TaskPhase.BUILT, task.error
    assert (task.worker, task.attempts) == (("first", 1) if reported else ("second", 2))
    assert task.output is not None
    segment = await place.open(task.output)
    assert sorted(segment.ids.to_pylist()) == sorted(f"record-{n}" for n in range(80) if n != 3)
    assert not await place.is_claimed()


@pytest.mark.etcd
@pytest.mark.parametrize("step", ["uploaded", "reported"])
async def test_task_survives_over_etcd(tmp_path: Path, etcd_server: EtcdServer, step: str) -> None:
    url = etcd_server.url(f"compactor-{step}")
    async with workplace(tmp_path, url) as place:
        async with compactor(place, worker_id="first", dies_at=step, metadata_url=url) as first:
            async with asyncio.timeout(DEADLINE_S):
                assert await first.wait() == -signal.SIGKILL
        async with compactor(place, worker_id="second", metadata_url=url):
            await until_registered(place, "second")
            task = await place.wait_task(TaskPhase.BUILT, TaskPhase.FAILED, deadline_s=DEADLINE_S)
        assert task.phase is TaskPhase.BUILT, task.error
        assert task.worker == ("first" if step == "reported" else "second")
        assert task.output is not None
        assert (await place.open(task.output)).rows == 79
        assert not await place.is_claimed()


async def test_task_that_kills_every_worker_is_given_up(place: Workplace) -> None:
    await place.add_task(merge_task("a", "b", attempts=ATTEMPTS_MAX - 1))
    async with compactor(place, worker_id="last", dies_at="built") as last:
        async with asyncio.timeout(DEADLINE_S):
            assert await last.wait() == -signal.SIGKILL
    async with compactor(place, worker_id="next"):
        task = await place.wait_task(TaskPhase.FAILED, TaskPhase.BUILT, deadline_s=DEADLINE_S)
    assert task.phase is TaskPhase.FAILED
    assert "died" in task.error


async def test_health_says_serving_while_it_works(place: Workplace) -> None:
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    async with compactor(place, worker_id="w", listen=address) as process:
        await place.wait_task(TaskPhase.BUILT, deadline_s=DEADLINE_S)
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 0
    assert not (place.directory / "scratch" / "w").exists()
