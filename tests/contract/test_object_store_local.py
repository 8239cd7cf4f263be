"""What the local object store promises beyond the contract: durability, and full disks."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from annheal.errors import (
    AnnhealError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.objectstore.local import LocalObjectStore
from tests.contract.object_store_contract import (
    keys_of,
    race_body,
    race_in_process,
    start_python,
)


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
    local: LocalObjectStore, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "lost+found").mkdir()
    (root / "with space").write_bytes(b"x")
    (root / "+tmp" / "rest").write_bytes(b"x")
    await local.put_if_absent("object", b"body")
    assert await keys_of(local) == ["object"]
    assert await keys_of(local) == ["object"]
    (said,) = caplog.messages
    assert "with space" in said


KILLED_WRITER = """
import asyncio, os, signal, sys
from pathlib import Path
from annheal.objectstore.local import LocalObjectStore

def stop_before_link(*args, **kwargs):
    print("written", flush=True)
    signal.pause()

os.link = stop_before_link
asyncio.run(LocalObjectStore(Path(sys.argv[1])).put_if_absent("a/object", b"half" * 1000))
"""


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
