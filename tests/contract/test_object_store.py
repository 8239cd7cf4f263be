"""The contract over every object store, and what each of them promises beyond it."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from annheal.errors import (
    AlreadyExists,
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.objectstore.factory import open_object_store
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.objectstore.s3 import S3ObjectStore, S3Settings
from annheal.objectstore.wrappers import (
    CountingObjectStore,
    Fault,
    FaultKind,
    FaultyObjectStore,
    NoFaults,
    Operation,
    RandomFaults,
    ScriptedFaults,
)
from tests.contract.object_store_contract import (
    BIG_BYTES,
    ObjectStoreContract,
    keys_of,
    race_body,
    race_in_process,
)
from tests.support.s3_server import S3Server

REPOSITORY = Path(__file__).parents[2]
Result = TypeVar("Result")

# ------------------------------------------------------------------------------ the contract


class TestLocalObjectStore(ObjectStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = LocalObjectStore(tmp_path / "objects")
        yield store
        await store.close()


@pytest.mark.s3
class TestS3ObjectStore(ObjectStoreContract):
    @pytest.fixture
    async def store(self, s3_server: S3Server) -> AsyncIterator[ObjectStore]:
        store = open_object_store(s3_server.url(prefix=f"contract/{uuid.uuid4().hex}"))
        yield store
        await store.close()


class TestFaultyObjectStoreWithoutFaults(ObjectStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = FaultyObjectStore(LocalObjectStore(tmp_path / "objects"), NoFaults())
        yield CountingObjectStore(store)
        await store.close()


class TestFaultyObjectStoreWithFaults(ObjectStoreContract):
    """A caller that repeats retryable errors sees the contract hold."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        plan = RandomFaults(
            random.Random(7), unavailable_rate=0.15, lost_answer_rate=0.15, latency_s_max=0.001
        )
        store = FaultyObjectStore(LocalObjectStore(tmp_path / "objects"), plan)
        yield RepeatingObjectStore(store)
        await store.close()


class RepeatingObjectStore:
    """Repeats each call until it gives an answer that is not retryable."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        await self._repeat(lambda: self._inner.put_if_absent(key, body))

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        await self._repeat(lambda: self._inner.put_file_if_absent(key, path))

    async def get(self, key: str) -> bytes:
        return await self._repeat(lambda: self._inner.get(key))

    async def fetch(self, key: str, destination: Path) -> Path:
        return await self._repeat(lambda: self._inner.fetch(key, destination))

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        while True:
            try:
                async for stat in self._inner.list(prefix, after=after):
                    yield stat
                    after = stat.key
                return
            except Unavailable:
                continue

    async def delete(self, keys: Sequence[str]) -> None:
        await self._repeat(lambda: self._inner.delete(keys))

    async def close(self) -> None:
        await self._inner.close()

    async def _repeat(self, call: Callable[[], Awaitable[Result]]) -> Result:
        for _ in range(50):
            try:
                return await call()
            except (Unavailable, UnknownOutcome):
                continue
        raise AssertionError("50 faults in a row")


# ------------------------------------------------------------------------------ local


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "objects"


@pytest.fixture
async def local(root: Path) -> AsyncIterator[LocalObjectStore]:
    store = LocalObjectStore(root)
    yield store
    await store.close()


def temporary_files(root: Path) -> list[Path]:
    return [path for path in (root / "+tmp").rglob("*") if path.is_file()]


async def test_exactly_one_of_racing_processes_wins(root: Path) -> None:
    writers, rounds = 3, 40
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(writers), context.SimpleQueue()
    processes = [
        context.Process(target=race_in_process, args=(root, writer, rounds, barrier, wins))
        for writer in range(writers)
    ]
    for process in processes:
        process.start()
    try:
        won: dict[int, int] = {}
        for process in processes:
            await asyncio.to_thread(process.join, 60)
            assert process.exitcode == 0
        while not wins.empty():
            number, writer = wins.get()
            assert number not in won, "two winners"
            won[number] = writer
    finally:
        for process in processes:
            process.kill()
            process.join()
        wins.close()
    store = LocalObjectStore(root)
    assert len(won) == rounds
    for number, writer in won.items():
        assert await store.get(f"race/{number}") == race_body(writer, number)
    assert temporary_files(root) == []
    await store.close()


class Trace:
    """The order of the system calls that make a put durable."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        self._record_descriptor(patch, "fsync")
        self._record_descriptor(patch, "fdatasync")
        link = os.link

        def traced_link(source: Path, name: str, *, dst_dir_fd: int) -> None:
            link(source, name, dst_dir_fd=dst_dir_fd)
            self.calls.append(("link", f"{os.readlink(f'/proc/self/fd/{dst_dir_fd}')}/{name}"))

        patch.setattr(os, "link", traced_link)

    def _record_descriptor(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(os, name)

        def traced(descriptor: int) -> None:
            real(descriptor)
            self.calls.append((name, os.readlink(f"/proc/self/fd/{descriptor}")))

        patch.setattr(os, name, traced)


async def test_put_is_flushed_before_it_is_named_and_its_directories_after(
    local: LocalObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(monkeypatch)
    await local.put_if_absent("a/b/object", b"body")
    names = [call for call, _ in trace.calls]
    assert names == ["fdatasync", "fsync", "fsync", "link", "fsync"]
    assert trace.calls[0][1].startswith(f"{root}/+tmp/")
    assert trace.calls[1:] == [
        ("fsync", f"{root}"),
        ("fsync", f"{root}/a"),
        ("link", f"{root}/a/b/object"),
        ("fsync", f"{root}/a/b"),
    ]
    trace.calls.clear()
    # The way to the directory is known to be durable by now, and is not paid for again.
    await local.put_if_absent("a/b/other", b"body")
    assert [call for call, _ in trace.calls] == ["fdatasync", "link", "fsync"]
    trace.calls.clear()
    # A directory that was removed and made again is another directory.
    await local.delete(["a/b/object", "a/b/other"])
    assert not (root / "a").exists()
    await local.put_if_absent("a/b/third", b"body")
    assert trace.calls[1:] == [
        ("fsync", f"{root}"),
        ("fsync", f"{root}/a"),
        ("link", f"{root}/a/b/third"),
        ("fsync", f"{root}/a/b"),
    ]


async def test_directory_removed_by_a_stranger_is_made_again_durably(
    local: LocalObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.put_if_absent("a/b/object", b"body")
    other = LocalObjectStore(root)
    await other.delete(["a/b/object"])
    await other.close()
    assert not (root / "a").exists()
    trace = Trace(monkeypatch)
    await local.put_if_absent("a/b/object", b"body")
    assert ("fsync", f"{root}") in trace.calls
    assert ("fsync", f"{root}/a") in trace.calls
    assert await local.get("a/b/object") == b"body"


async def test_file_is_flushed_too(
    local: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"body")
    trace = Trace(monkeypatch)
    await local.put_file_if_absent("object", source)
    assert [call for call, _ in trace.calls] == ["fdatasync", "link", "fsync"]


async def test_own_retry_flushes_the_directory_again(
    local: LocalObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt may have died between naming the object and flushing its directory."""
    await local.put_if_absent("a/object", b"body")
    trace = Trace(monkeypatch)
    await local.put_if_absent("a/object", b"body")
    assert trace.calls[-1] == ("fsync", f"{root}/a")


async def test_failed_flush_of_the_directory_is_an_unknown_outcome(
    local: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.put_if_absent("a/first", b"body")

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(UnknownOutcome):
            await local.put_if_absent("a/object", b"body")
    await local.put_if_absent("a/object", b"body")


async def test_failed_flush_of_the_body_leaves_nothing(
    local: LocalObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(Unavailable):
            await local.put_if_absent("object", b"body")
    assert temporary_files(root) == []
    assert await keys_of(local) == []


async def test_fetch_returns_the_stores_own_read_only_file(
    local: LocalObjectStore, root: Path, tmp_path: Path
) -> None:
    await local.put_if_absent("a/object", b"body")
    destination = tmp_path / "copy"
    path = await local.fetch("a/object", destination)
    assert path == root / "a" / "object"
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_nlink == 1
    assert not destination.exists()


async def test_keys_inside_one_another_are_refused(local: LocalObjectStore) -> None:
    await local.put_if_absent("a/b", b"body")
    with pytest.raises(InvalidArgument):
        await local.put_if_absent("a/b/c", b"body")
    with pytest.raises(InvalidArgument):
        await local.put_if_absent("a", b"body")
    assert await keys_of(local) == ["a/b"]


async def test_strangers_files_and_temporary_files_are_not_listed(
    local: LocalObjectStore, root: Path
) -> None:
    (root / "lost+found").mkdir()
    (root / "with space").write_bytes(b"x")
    (root / "+tmp" / "rest").write_bytes(b"x")
    await local.put_if_absent("object", b"body")
    assert await keys_of(local) == ["object"]


KILLED_WRITER = """
import asyncio, os, sys, time
from pathlib import Path
from annheal.objectstore.local import LocalObjectStore

def stop_before_link(*args, **kwargs):
    print("written", flush=True)
    time.sleep(60)

os.link = stop_before_link
asyncio.run(LocalObjectStore(Path(sys.argv[1])).put_if_absent("a/object", b"half" * 1000))
"""


def start_python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)


async def test_writer_killed_before_naming_leaves_no_object(
    local: LocalObjectStore, root: Path
) -> None:
    with start_python(KILLED_WRITER, str(root)) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        assert len(temporary_files(root)) == 1
        # A store that opens now must not take the living writer's file for garbage.
        await LocalObjectStore(root).close()
        assert len(temporary_files(root)) == 1
        writer.send_signal(signal.SIGKILL)
    with pytest.raises(NotFound):
        await local.get("a/object")
    assert await keys_of(local) == []
    await LocalObjectStore(root).close()
    assert temporary_files(root) == []
    # The folder of the store that is open is still there.
    await local.put_if_absent("a/object", b"whole")
    assert await local.get("a/object") == b"whole"


FULL_WRITER = """
import asyncio, resource, sys
from pathlib import Path
from annheal.errors import ResourceExhausted
from annheal.objectstore.local import LocalObjectStore

async def main():
    store = LocalObjectStore(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        await store.put_if_absent("big", bytes(2 << 20))
    except ResourceExhausted as error:
        print(error.reason, flush=True)
    await store.put_if_absent("small", b"body")
    await store.close()

asyncio.run(main())
"""


async def test_file_size_limit_is_resource_exhausted(local: LocalObjectStore, root: Path) -> None:
    with start_python(FULL_WRITER, str(root)) as writer:
        output, _ = writer.communicate(timeout=60)
    assert (writer.returncode, output) == (0, b"STORAGE_FULL\n")
    assert await keys_of(local) == ["small"]
    assert temporary_files(root) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1 MiB; needs the right to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount file systems; the file size limit is tested above")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_full_disk_is_resource_exhausted_and_loses_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    store = LocalObjectStore(small_disk / "objects")
    await store.put_if_absent("kept", b"k" * 300_000)
    source = tmp_path / "source"
    source.write_bytes(bytes(1 << 20))
    with pytest.raises(ResourceExhausted, match="no space left"):
        await store.put_if_absent("big", bytes(1 << 20))
    with pytest.raises(ResourceExhausted) as caught:
        await store.put_file_if_absent("big", source)
    assert caught.value.retryable
    assert caught.value.retry_after_s is not None
    assert temporary_files(small_disk / "objects") == []
    assert await store.get("kept") == b"k" * 300_000
    await store.put_if_absent("fits", b"f" * 300_000)
    assert await keys_of(store) == ["fits", "kept"]
    await store.close()


async def test_closed_store_leaves_no_temporary_folder(root: Path) -> None:
    store = LocalObjectStore(root)
    await store.put_if_absent("object", b"body")
    await store.close()
    assert list((root / "+tmp").iterdir()) == []


async def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(AnnhealError):
        LocalObjectStore(tmp_path / "file")


# ------------------------------------------------------------------------------ S3


class CuttingProxy:
    """Passes TCP connections on to a server, and can lose the answers to the next PUTs."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers_to_lose = 0
        self.lost = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        lose = False

        async def requests() -> None:
            nonlocal lose
            while chunk := await reader.read(1 << 16):
                if chunk.startswith(b"PUT ") and self.answers_to_lose > 0:
                    self.answers_to_lose -= 1
                    lose = True
                server_writer.write(chunk)
                await server_writer.drain()

        async def answers() -> None:
            while chunk := await server_reader.read(1 << 16):
                if lose:
                    # The server has answered, so the effect is there; the client sees a cut.
                    self.lost += 1
                    return
                writer.write(chunk)
                await writer.drain()

        sides = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()
            self._tasks.discard(task)


def s3_settings(server: S3Server, endpoint: str | None = None) -> S3Settings:
    return S3Settings(
        bucket="annheal",
        prefix=f"extra/{uuid.uuid4().hex}",
        endpoint=endpoint or server.endpoint,
        region="us-east-1",
        allow_http=True,
    )


@pytest.fixture
async def s3(s3_server: S3Server) -> AsyncIterator[S3ObjectStore]:
    store = S3ObjectStore(s3_settings(s3_server))
    yield store
    await store.close()


@pytest.mark.s3
async def test_lost_answer_of_a_put_is_settled_by_reading_back(s3_server: S3Server) -> None:
    port = int(s3_server.endpoint.rpartition(":")[2])
    async with CuttingProxy(port) as proxy:
        store = S3ObjectStore(s3_settings(s3_server, proxy.endpoint))
        proxy.answers_to_lose = 1
        await store.put_if_absent("mine", b"mine")
        assert proxy.lost == 1
        assert await store.get("mine") == b"mine"
        proxy.answers_to_lose = 1
        with pytest.raises(AlreadyExists):
            await store.put_if_absent("mine", b"other")
        assert proxy.lost == 2
        assert await store.get("mine") == b"mine"
        await store.close()


@pytest.mark.s3
async def test_big_file_leaves_no_upload_behind(s3: S3ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(BIG_BYTES))
    await s3.put_file_if_absent("big", source)
    assert await s3.remove_stale_uploads(older_than_s=0, now_s=4e9) == 0
    assert await keys_of(s3) == ["big"]


@pytest.mark.s3
async def test_stale_uploads_are_removed_and_never_listed(s3_server: S3Server) -> None:
    settings = s3_settings(s3_server)
    store = S3ObjectStore(settings)
    # What a process leaves that dies between the upload and the copy.
    inside = S3ObjectStore(
        S3Settings(
            bucket=settings.bucket,
            prefix=f"{settings.prefix}/+staging",
            endpoint=settings.endpoint,
            region=settings.region,
            allow_http=True,
        )
    )
    await inside.put_if_absent("dead", b"half")
    await store.put_if_absent("object", b"body")
    assert await keys_of(store) == ["object"]
    [stat] = [stat async for stat in inside.list("")]
    # An upload that may still be alive stays.
    assert await store.remove_stale_uploads(older_than_s=60, now_s=stat.modified_s + 59) == 0
    assert await store.remove_stale_uploads(older_than_s=60, now_s=stat.modified_s + 61) == 1
    assert await keys_of(inside) == []
    assert await store.get("object") == b"body"
    await inside.close()
    await store.close()


@pytest.mark.s3
async def test_fetch_leaves_no_partial_file_when_the_object_is_missing(
    s3: S3ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await s3.fetch("missing", tmp_path / "copy")
    assert os.listdir(tmp_path) == []


@pytest.mark.s3
async def test_wrong_credentials_are_a_failed_precondition(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = S3ObjectStore(s3_settings(s3_server))
    with pytest.raises(FailedPrecondition):
        await store.put_if_absent("object", b"body")
    with pytest.raises(FailedPrecondition):
        await store.get("object")
    await store.close()


@pytest.mark.s3
async def test_server_killed_and_restarted_keeps_what_was_acknowledged() -> None:
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        store = open_object_store(server.url())
        keys = [f"kept/{number:04d}" for number in range(50)]
        for key in keys:
            await store.put_if_absent(key, key.encode())
        server.kill()
        with pytest.raises(UnknownOutcome):
            await store.put_if_absent("later", b"body")
        with pytest.raises(Unavailable):
            await store.get(keys[0])
        await asyncio.to_thread(server.restart)
        assert await keys_of(store, "kept/") == keys
        assert [await store.get(key) for key in keys] == [key.encode() for key in keys]
        await store.put_if_absent("later", b"body")
        await store.close()


ENDING_PROCESS = """
import asyncio, sys
from annheal.objectstore.factory import open_object_store

async def main():
    store = open_object_store(sys.argv[1])
    for number in range(20):
        try:
            await store.put_if_absent("same", f"{number}".encode() * 50_000)
        except Exception as error:
            assert number > 0, error

asyncio.run(main())
"""


@pytest.mark.s3
async def test_process_may_end_without_closing(s3_server: S3Server) -> None:
    """obstore's asynchronous calls made one of twenty such processes abort."""
    for _ in range(5):
        url = s3_server.url(prefix=uuid.uuid4().hex)
        with start_python(ENDING_PROCESS, url) as process:
            assert await asyncio.to_thread(process.wait, 60) == 0


# ------------------------------------------------------------------------------ factory


async def test_urls_of_directories(tmp_path: Path) -> None:
    for url in (
        str(tmp_path / "a b"),
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a%20b",
    ):
        store = open_object_store(url)
        assert isinstance(store, LocalObjectStore)
        await store.put_if_absent("object", b"body")
        await store.close()
    assert (tmp_path / "a b" / "object").read_bytes() == b"body"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file://",
        "file://host/path",
        "file:///path?x=1",
        "gs://bucket",
        "http://127.0.0.1/bucket",
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket",
        "s3://bucket/a//b",
        "s3://bucket/..",
        "s3://bucket?unknown=1",
        "s3://bucket?region=",
        "s3://bucket?region=a&region=b",
        "s3://bucket?allow_http=yes",
        "s3://bucket?endpoint=http%3A%2F%2F127.0.0.1%3A1",
        "s3://bucket?endpoint=ftp%3A%2F%2F127.0.0.1&allow_http=true",
        "s3://bucket?endpoint=https%3A%2F%2Fkey%3Asecret%40host",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        open_object_store(url)
    assert "key:secret" not in str(caught.value)


# ------------------------------------------------------------------------------ wrappers


async def test_scripted_faults_happen_in_order(local: LocalObjectStore) -> None:
    script = [Fault(FaultKind.UNAVAILABLE), Fault(FaultKind.LOST_ANSWER)]
    store = FaultyObjectStore(local, ScriptedFaults(script, operations=[Operation.PUT]))
    with pytest.raises(Unavailable):
        await store.put_if_absent("object", b"body")
    assert await keys_of(store) == []
    with pytest.raises(UnknownOutcome):
        await store.put_if_absent("object", b"body")
    assert await store.get("object") == b"body"
    await store.put_if_absent("object", b"body")


async def test_random_faults_reach_every_operation(local: LocalObjectStore, tmp_path: Path) -> None:
    await local.put_if_absent("object", b"body")
    source = tmp_path / "source"
    source.write_bytes(b"body")
    store = FaultyObjectStore(local, RandomFaults(random.Random(1), lost_answer_rate=1.0))
    for put in (store.put_if_absent("new", b"x"), store.put_file_if_absent("file", source)):
        with pytest.raises(UnknownOutcome):
            await put
    calls: list[Awaitable[object]] = [
        store.get("object"),
        store.fetch("object", tmp_path / "copy"),
        keys_of(store),
        store.delete(["object"]),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call
    assert await keys_of(local) == ["file", "new"]


async def test_counts_calls_failures_and_bytes(local: LocalObjectStore, tmp_path: Path) -> None:
    store = CountingObjectStore(local)
    await store.put_if_absent("object", b"12345")
    with pytest.raises(AlreadyExists):
        await store.put_if_absent("object", b"1")
    await store.get("object")
    await store.fetch("object", tmp_path / "copy")
    await keys_of(store)
    await store.delete(["object"])
    with pytest.raises(NotFound):
        await store.get("object")
    counted = {
        operation: (count.calls, count.failures, count.size_bytes)
        for operation, count in store.counts.items()
    }
    assert counted == {
        Operation.PUT: (2, 1, 5),
        Operation.PUT_FILE: (0, 0, 0),
        Operation.GET: (2, 1, 5),
        Operation.FETCH: (1, 0, 5),
        Operation.LIST: (1, 0, 0),
        Operation.DELETE: (1, 0, 0),
    }
