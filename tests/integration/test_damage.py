"""Flipped bytes, a full disk, a second server, wrong settings: refused and never served."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from annheal import AsyncClient
from annheal.errors import AnnhealError, InvalidArgument, ResourceExhausted
from tests.support.cluster import EmbeddedServer
from tests.support.processes import ProcessGroup, wait_until_async

DIMENSION = 16
SHARDS = 8
ROWS = 900
# Nothing is flushed but by order, so that the log keeps a tail.
NO_FLUSH = {"seal_age_s": 3_600.0}
REOPEN_TIMEOUT_S = 30.0
DISK_BYTES = 48 << 20


def vectors_of(start: int, stop: int) -> np.ndarray:
    rng = np.random.default_rng(start)
    return rng.standard_normal((stop - start, DIMENSION)).astype(np.float32)


def ids_of(start: int, stop: int) -> list[str]:
    return [f"r{number:05d}" for number in range(start, stop)]


def flip(path: Path) -> None:
    """Invert one bit in the middle of the file, in place."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


async def fill(client: AsyncClient, collection: str) -> None:
    """Leave flushed segments, a checkpointed delete vector and a log tail in every shard."""
    await client.create_collection(collection, DIMENSION, shard_count=SHARDS, settings=NO_FLUSH)
    await client.upsert(collection, ids_of(0, ROWS), vectors_of(0, ROWS))
    await client.flush(collection)
    await client.delete(collection, ids_of(0, 150))
    await client.flush(collection)
    await client.upsert(collection, ids_of(ROWS, ROWS + 150), vectors_of(ROWS, ROWS + 150))


def choose_victims(server: EmbeddedServer, collection_id: str) -> dict[int, Path]:
    """Return one file for each shard: every file of a segment, a delete vector, a log object."""
    segments = server.objects / "segments" / collection_id
    names = sorted(path.name for path in next(segments.glob("00000/*")).iterdir())
    assert {"segment.json", "index.faiss", "rows.arrow"} <= set(names)
    victims = {
        shard: next(segments.glob(f"{shard:05d}/*/{name}")) for shard, name in enumerate(names)
    }
    shard = len(names)
    victims[shard] = next((server.objects / "deletes" / collection_id).glob(f"{shard:05d}/*/*.bin"))
    shard += 1
    logs = (server.objects / "wal" / collection_id / f"{shard:05d}").iterdir()
    victims[shard] = max(logs, key=lambda path: path.stat().st_size)
    assert len(victims) == SHARDS, "there is a shard for every kind of file"
    return victims


async def test_one_flipped_bit_in_any_file_is_named_and_never_served() -> None:
    with ProcessGroup() as group:
        server = EmbeddedServer(group).start()
        async with AsyncClient(server.address) as client:
            await fill(client, "damaged")
            await fill(client, "sound")
            collection = await client.get_collection("damaged")
        server.kill()
        victims = choose_victims(server, collection.id)
        for path in victims.values():
            flip(path)
        server.start()
        async with AsyncClient(server.address) as client:

            async def all_failed() -> bool:
                return all(one.phase == "failed" for one in await client.shards("damaged"))

            await wait_until_async(all_failed, timeout_s=REOPEN_TIMEOUT_S, what="damage is found")
            for shard in await client.shards("damaged"):
                path = victims[shard.shard]
                assert "DATA_CORRUPTION" in shard.error
                assert path.name in shard.error, f"{path} is not named in {shard.error}"
                assert path.name in server.process.log()
            with pytest.raises(AnnhealError, match="shard"):
                await client.search("damaged", vectors_of(0, 1)[0], timeout_s=2)
            with pytest.raises(AnnhealError, match="shard"):
                await client.get("damaged", ids_of(200, 300), timeout_s=2)
            assert await client.count("sound") == ROWS
            hits = await client.search("sound", vectors_of(ROWS, ROWS + 150)[7], k=1)
            assert hits.ids == [f"r{ROWS + 7:05d}"]

            for path in victims.values():
                flip(path)

            async def all_serve() -> bool:
                return all(one.phase == "serving" for one in await client.shards("damaged"))

            await wait_until_async(all_serve, timeout_s=REOPEN_TIMEOUT_S, what="repair is seen")
            assert await client.count("damaged") == ROWS
            assert not await client.get("damaged", ids_of(0, 150))
            hits = await client.search("damaged", vectors_of(ROWS, ROWS + 150)[7], k=1)
            assert hits.ids == [f"r{ROWS + 7:05d}"]


async def test_one_damaged_shard_leaves_the_others_to_partial_searches() -> None:
    with ProcessGroup() as group:
        server = EmbeddedServer(group).start()
        async with AsyncClient(server.address) as client:
            await fill(client, "partly")
            collection = await client.get_collection("partly")
        server.kill()
        flip(choose_victims(server, collection.id)[0])
        server.start()
        async with AsyncClient(server.address) as client:

            async def settled() -> bool:
                phases = [one.phase for one in await client.shards("partly")]
                return phases == ["failed", *["serving"] * (SHARDS - 1)]

            await wait_until_async(settled, timeout_s=REOPEN_TIMEOUT_S, what="others are served")
            result = await client.search(
                "partly", vectors_of(0, 1)[0], k=ROWS, allow_partial=True, exact=True
            )
            assert result.missing_shards == (0,)
            assert ROWS / 2 < len(result) < ROWS


@dataclass(slots=True)
class SmallDisk:
    """A disk that can be filled and freed: a tmpfs, or else a limit on the size of files."""

    folder: Path
    mounted: bool

    def fill(self, pid: int) -> None:
        if not self.mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
            return
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def free(self, pid: int) -> None:
        if not self.mounted:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
            return
        (self.folder / "filler").unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = (
        os.geteuid() == 0
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        yield SmallDisk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, ProcessGroup() as group:
        server = EmbeddedServer(group, data_dir=disk.folder / "data").start()
        async with AsyncClient(server.address) as client:
            await client.create_collection("full", DIMENSION, shard_count=2, settings=NO_FLUSH)
            await client.upsert("full", ids_of(0, 500), vectors_of(0, 500))
            pid = server.process.pid
            disk.fill(pid)
            with pytest.raises(ResourceExhausted, match=r"(?i)space|full"):
                await client.upsert("full", ids_of(500, 600), vectors_of(500, 600), timeout_s=3)
            # What is there is served, and nothing of what was refused.
            assert await client.count("full") == 500
            assert (await client.search("full", vectors_of(0, 500)[3], k=1)).ids == ["r00003"]
            assert not await client.get("full", ids_of(500, 600))
            disk.free(pid)
            await client.upsert("full", ids_of(600, 700), vectors_of(600, 700), timeout_s=30)
            assert server.process.pid == pid, "the server lives on"
            assert await client.count("full") == 600
        server.kill()
        server.start()
        async with AsyncClient(server.address) as client:
            assert await client.count("full") == 600
            assert not await client.get("full", ids_of(500, 600))


async def test_a_second_server_on_the_same_data_is_refused(embedded_server: EmbeddedServer) -> None:
    with ProcessGroup() as group:
        second = EmbeddedServer(group, name="second", data_dir=embedded_server.data_dir)
        address = embedded_server.address
        second.process.start(wait=False)
        code = await asyncio.to_thread(second.process.wait_end)
        assert code == 7, second.process.log()
        assert str(embedded_server.data_dir) in second.process.log()
        assert "Traceback" not in second.process.log()
        assert embedded_server.address == address, "the address of the first is left alone"
    async with AsyncClient(embedded_server.address) as client:
        await client.list_collections()


@pytest.mark.parametrize("way", ["flag", "environment", "file", "file table"])
def test_an_unknown_setting_is_refused_with_the_right_one(way: str) -> None:
    with ProcessGroup() as group:
        arguments = ["up", "--data-dir", str(group.folder / "data"), "--listen", "127.0.0.1:0"]
        environment: dict[str, str] = {}
        config = group.folder / "annheal.toml"
        if way == "flag":
            arguments += ["--set", "control_intervall_s=3"]
        elif way == "environment":
            environment["ANNHEAL_CONTROL_INTERVALL_S"] = "3"
        else:
            table = "[coordinator]\n" if way == "file table" else ""
            config.write_text(f"{table}control_intervall_s = 3\n")
            arguments += ["--config", str(config)]
        process = group.add("misconfigured", arguments, environment=environment)
        process.start(wait=False)
        assert process.wait_end() == 2, process.log()
        assert "control_interval_s" in process.log().replace(
            "CONTROL_INTERVAL_S", "control_interval_s"
        )
        assert "did you mean" in process.log()
        assert "Traceback" not in process.log()


def test_a_setting_that_cannot_work_is_refused() -> None:
    with ProcessGroup() as group:
        arguments = ["up", "--data-dir", str(group.folder / "data"), "--listen", "127.0.0.1:0"]
        process = group.add("misconfigured", [*arguments, "--set", "lease_ttl_s=-1"])
        process.start(wait=False)
        assert process.wait_end() == 2, process.log()
        assert "lease_ttl_s" in process.log()


async def test_a_malformed_expression_is_refused_by_the_client(
    embedded_server: EmbeddedServer,
) -> None:
    async with AsyncClient(embedded_server.address) as client:
        await client.create_collection("malformed", 4, attributes={"year": "int64"})
        for expression in ("year >>= 3", "year = ", "(year = 3", "year in ()", "year = 'x", ""):
            with pytest.raises(InvalidArgument) as caught:
                await client.search("malformed", [1.0, 0, 0, 0], filter=expression)
            assert caught.value.violations
        for expression, words in (("yaer = 3", "year"), ("year = 'new'", "int64")):
            with pytest.raises(InvalidArgument, match=words):
                await client.count("malformed", filter=expression)
        assert await client.count("malformed", filter="year >= 3") == 0
        await client.drop_collection("malformed")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["count", "no-such-collection"], 3, "no-such-collection"),
        (["count", "cli-bad", "--filter", "year >>= 3"], 4, "year >>= 3"),
        (["count", "cli-bad", "--filter", "yaer = 3"], 4, "year"),
        (["search", "cli-bad", "--id", "x", "-k", "0"], 4, "k"),
        (["count"], 2, "COLLECTION"),
    ],
)
def test_the_command_line_tells_what_is_wrong(
    embedded_server: EmbeddedServer, arguments: list[str], code: int, words: str
) -> None:
    with ProcessGroup() as group:
        environment = {"ANNHEAL_ADDRESS": embedded_server.address, "TERM": "dumb"}
        create = group.add(
            "create",
            ["collection", "create", "cli-bad", "--dimension", "4", "--attribute", "year:int64"],
            environment=environment,
        )
        create.start(wait=False)
        assert create.wait_end() in (0, 6), create.log()
        process = group.add("command", arguments, environment=environment)
        process.start(wait=False)
        assert process.wait_end() == code, process.log()
        assert words in process.log()
        assert "Traceback" not in process.log()
