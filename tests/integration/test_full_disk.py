"""A full disk: the server starts, serves, deletes and drops; new rows wait until there is room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.errors import ResourceExhausted
from annheal.runtime.host.disk import BALLAST_FILE
from tests.support.cluster import EmbeddedServer
from tests.support.full_disk import FaultyDisk, RealDisk, may_mount, real_disk
from tests.support.processes import ProcessGroup, wait_until

DISK_BYTES = 64 << 20
RESERVE_BYTES = 8 << 20
DIMENSION = 64
BIG_ROWS = 40_000
SMALL_ROWS = 100


@pytest.fixture(scope="module", params=["mounted", "faults"] if may_mount() else ["faults"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealDisk | FaultyDisk]:
    """A real disk where mounting is allowed; and faults in the server's process, everywhere."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "faults":
        yield FaultyDisk(folder, size_bytes=DISK_BYTES)
        return
    with real_disk(folder, size_bytes=DISK_BYTES) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def server(disk: RealDisk | FaultyDisk) -> Iterator[EmbeddedServer]:
    """One server on the disk, for all tests of this file; each leaves the disk empty."""
    with ProcessGroup() as group:
        server = EmbeddedServer(
            group,
            data_dir=disk.folder / "data",
            settings={"disk_reserve_bytes": str(RESERVE_BYTES), "lease_ttl_s": "3"},
            module=disk.module,
            environment=disk.environment,
        ).start()
        wait_ballast(server)
        yield server


def wait_ballast(server: EmbeddedServer, *, there: bool = True) -> None:
    """Wait until the server has its ballast, or has given it up."""
    ballast = server.data_dir / BALLAST_FILE
    what = "the ballast" if there else "it is given up"
    wait_until(lambda: ballast.exists() is there, timeout_s=10, what=what)


def rows(count: int) -> tuple[list[str], np.ndarray]:
    vectors = np.random.default_rng(3).normal(size=(count, DIMENSION)).astype(np.float32)
    return [f"r{number}" for number in range(count)], vectors


def health(address: str) -> tuple[int, dict[str, Any]]:
    found = CliRunner().invoke(app, hoist(["health", "--address", address, "-o", "json"]))
    findings = json.loads(found.stdout)["cluster"]
    return found.exit_code, {one["question"]: one for one in findings}


def test_a_disk_that_fills_while_the_server_runs(
    disk: RealDisk | FaultyDisk, server: EmbeddedServer
) -> None:
    ids, vectors = rows(SMALL_ROWS)
    with Client(server.address) as client:
        client.create_collection("filling", DIMENSION)
        client.upsert("filling", ids, vectors)
        disk.fill()
        wait_ballast(server, there=False)
        with pytest.raises(ResourceExhausted):
            client.upsert("filling", ids, vectors, timeout_s=2)
        client.delete("filling", ids=ids[:10])
        assert client.count("filling") == SMALL_ROWS - 10
        disk.empty()
        client.upsert("filling", ids, vectors, timeout_s=30)
        assert client.count("filling") == SMALL_ROWS
    assert server.process.running
    wait_ballast(server)


def test_a_full_disk_can_be_emptied_after_a_restart(
    disk: RealDisk | FaultyDisk, server: EmbeddedServer
) -> None:
    ids, vectors = rows(BIG_ROWS)
    with Client(server.address) as client:
        for name, count in (("big", BIG_ROWS), ("small", SMALL_ROWS)):
            client.create_collection(name, DIMENSION)
            client.upsert(name, ids[:count], vectors[:count])
            client.flush(name)
    server.kill()
    disk.fill()

    server.start()
    data_dir = server.data_dir
    with Client(server.address) as client:
        assert client.search("small", vector=vectors[7], k=1).ids == ["r7"]
        with pytest.raises(ResourceExhausted, match="free space") as caught:
            client.upsert("small", ids[:1], vectors[:1], timeout_s=2)
        assert str(data_dir) in caught.value.message
        assert "disk_reserve_bytes" in caught.value.message
        client.delete("small", ids=["r1"])
        assert client.count("small") == SMALL_ROWS - 1
        code, found = health(server.address)
        assert code == ExitCode.UNHEALTHY
        assert found["is there room on the disks?"]["health"] == "bad"
        assert str(data_dir) in found["is there room on the disks?"]["answer"]

        client.drop_collection("big")
        report = client.collect_garbage()
        assert sum(kind.deleted_bytes for kind in report.kinds) > RESERVE_BYTES
        if isinstance(disk, FaultyDisk):
            disk.fill(left_bytes=2 * RESERVE_BYTES)  # faults do not see what was deleted
        client.upsert("small", ids[:1], vectors[:1], timeout_s=30)
        # The compactor registers that its disk has room, a moment later.
        wait_until(
            lambda: health(server.address)[1]["is there room on the disks?"]["health"] == "good",
            timeout_s=10,
            what="room on the disks",
        )
        disk.empty()
        wait_ballast(server)
    assert "Traceback" not in server.process.log()
