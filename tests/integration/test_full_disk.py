"""A full disk: the server starts, serves, deletes and drops; new rows wait until there is room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
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
from tests.support.full_disk import FaultyDisk, RealDisk, real_disk
from tests.support.processes import ProcessGroup, wait_until

DISK_BYTES = 64 << 20
RESERVE_BYTES = 8 << 20
DIMENSION = 64
BIG_ROWS = 40_000
SMALL_ROWS = 100


@pytest.fixture(params=["mounted", "faults"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealDisk | FaultyDisk]:
    """A real disk where mounting is allowed; and faults in the server's process, everywhere."""
    faults = tmp_path / "faults"
    faults.mkdir()
    if request.param == "faults":
        yield FaultyDisk(faults, size_bytes=DISK_BYTES)
        return
    with real_disk(tmp_path / "disk", size_bytes=DISK_BYTES) as mounted:
        yield mounted or FaultyDisk(faults, size_bytes=DISK_BYTES)


def rows(count: int) -> tuple[list[str], np.ndarray]:
    vectors = np.random.default_rng(3).normal(size=(count, DIMENSION)).astype(np.float32)
    return [f"r{number}" for number in range(count)], vectors


def health(address: str) -> tuple[int, dict[str, Any]]:
    found = CliRunner().invoke(app, hoist(["health", "--address", address, "-o", "json"]))
    findings = json.loads(found.stdout)["cluster"]
    return found.exit_code, {one["question"]: one for one in findings}


def test_a_full_disk_can_be_emptied_after_a_restart(disk: RealDisk | FaultyDisk) -> None:
    data_dir = disk.folder / "data"
    with ProcessGroup() as group:
        server = EmbeddedServer(
            group,
            data_dir=data_dir,
            settings={"disk_reserve_bytes": str(RESERVE_BYTES), "lease_ttl_s": "3"},
            module=disk.module,
            environment=disk.environment,
        ).start()
        wait_until((data_dir / BALLAST_FILE).exists, timeout_s=10, what="the ballast")
        ids, vectors = rows(BIG_ROWS)
        with Client(server.address) as client:
            for name, count in (("big", BIG_ROWS), ("small", SMALL_ROWS)):
                client.create_collection(name, DIMENSION)
                client.upsert(name, ids[:count], vectors[:count])
                client.flush(name)
        server.kill()
        disk.fill()

        server.start()
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
                lambda: (
                    health(server.address)[1]["is there room on the disks?"]["health"] == "good"
                ),
                timeout_s=10,
                what="room on the disks",
            )
            disk.empty()
            wait_until((data_dir / BALLAST_FILE).exists, timeout_s=10, what="the ballast again")
        assert "Traceback" not in server.process.log()


def test_a_disk_that_fills_while_the_server_runs(disk: RealDisk | FaultyDisk) -> None:
    data_dir = disk.folder / "data"
    with ProcessGroup() as group:
        server = EmbeddedServer(
            group,
            data_dir=data_dir,
            settings={"disk_reserve_bytes": str(RESERVE_BYTES), "lease_ttl_s": "3"},
            module=disk.module,
            environment=disk.environment,
        ).start()
        wait_until((data_dir / BALLAST_FILE).exists, timeout_s=10, what="the ballast")
        ids, vectors = rows(SMALL_ROWS)
        with Client(server.address) as client:
            client.create_collection("small", DIMENSION)
            client.upsert("small", ids, vectors)
            disk.fill()
            wait_until(
                lambda: not (data_dir / BALLAST_FILE).exists(), timeout_s=10, what="it is given up"
            )
            with pytest.raises(ResourceExhausted):
                client.upsert("small", ids, vectors, timeout_s=2)
            client.delete("small", ids=ids[:10])
            assert client.count("small") == SMALL_ROWS - 10
            disk.empty()
            client.upsert("small", ids, vectors, timeout_s=30)
            assert client.count("small") == SMALL_ROWS
        assert server.process.running
