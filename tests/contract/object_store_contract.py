"""The contract of `ObjectStore`, as tests to be run over every implementation."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from annheal.errors import AlreadyExists, InvalidArgument, NotFound
from annheal.objectstore.protocol import ObjectStore

REPOSITORY = Path(__file__).parents[2]
WRITERS = 8
ROUNDS = 3
# One more than a page of S3's listings.
PAGE_KEYS = 1_001
# Above the size from which S3ObjectStore uploads in parts, and no multiple of any part.
BIG_BYTES = (20 << 20) + 12_345

# In key order; "-" and "." sort before "/", unlike in the order of bare directory names.
ORDERED_KEYS = ("B", "a-b/x", "a.c", "a/x", "a/x-y", "a/y/z", "a0", "a_", "b/c/d")

BAD_KEYS = (
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "a b",
    "a\n",
    "a\0b",
    "ä",
    "a+b",
    "a\\b",
    "k" * 256,
    "/".join(["k" * 200] * 3),
)


async def keys_of(store: ObjectStore, prefix: str = "", *, after: str = "") -> list[str]:
    """Return the keys of a whole listing."""
    return [stat.key async for stat in store.list(prefix, after=after)]


async def put_race(store: ObjectStore, key: str, body: bytes) -> bool:
    """Return whether this writer won the key."""
    try:
        await store.put_if_absent(key, body)
    except AlreadyExists:
        return False
    return True


def start_python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Python on `code` in the repository; its output is for the test to read."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)


def race_body(writer: int, number: int) -> bytes:
    """Return what `race_in_process` writes."""
    return f"writer {writer} round {number}".encode() * 1_000


def race_in_process(root: Path, writer: int, rounds: int, barrier: object, wins: object) -> None:
    """Race other processes for `race/0..`; puts `(round, writer)` of each win into `wins`."""
    from annheal.objectstore.local import LocalObjectStore

    async def race() -> None:
        store = LocalObjectStore(root)
        for number in range(rounds):
            body = race_body(writer, number)
            await asyncio.to_thread(barrier.wait)  # type: ignore[attr-defined]
            if await put_race(store, f"race/{number}", body):
                wins.put((number, writer))  # type: ignore[attr-defined]
        await store.close()

    asyncio.run(race())


class ObjectStoreContract:
    """Subclasses give the fixture `store`, an empty store that the fixture closes."""

    async def test_reads_what_was_written(self, store: ObjectStore, tmp_path: Path) -> None:
        body = random.Random(1).randbytes(100_000)
        await store.put_if_absent("a/b/object.bin", body)
        assert await store.get("a/b/object.bin") == body
        path = await store.fetch("a/b/object.bin", tmp_path / "new" / "copy.bin")
        assert path.read_bytes() == body
        [stat] = [stat async for stat in store.list("a/b/object.bin")]
        assert (stat.key, stat.size_bytes) == ("a/b/object.bin", len(body))

    async def test_takes_empty_and_memoryview_bodies(self, store: ObjectStore) -> None:
        await store.put_if_absent("empty", b"")
        assert await store.get("empty") == b""
        await store.put_if_absent("view", memoryview(bytearray(b"0123456789"))[2:5])
        assert await store.get("view") == b"234"

    async def test_fetches_an_empty_object(self, store: ObjectStore, tmp_path: Path) -> None:
        await store.put_if_absent("empty", b"")
        assert (await store.fetch("empty", tmp_path / "empty")).read_bytes() == b""

    async def test_modified_is_the_time_of_the_put(self, store: ObjectStore) -> None:
        before_s = time.time()
        await store.put_if_absent("old/a", b"a")
        [stat] = [stat async for stat in store.list("old/")]
        # Whole seconds on S3, and coarse clock ticks on local file systems.
        assert before_s - 2 < stat.modified_s < time.time() + 2

    async def test_refuses_to_overwrite(self, store: ObjectStore) -> None:
        await store.put_if_absent("once", b"first")
        with pytest.raises(AlreadyExists):
            await store.put_if_absent("once", b"other")
        with pytest.raises(AlreadyExists):
            await store.put_if_absent("once", b"first and more")
        assert await store.get("once") == b"first"

    async def test_identical_retry_is_own(self, store: ObjectStore, tmp_path: Path) -> None:
        await store.put_if_absent("once", b"mine")
        await store.put_if_absent("once", b"mine")
        source = tmp_path / "source"
        source.write_bytes(b"mine")
        await store.put_file_if_absent("once", source)
        source.write_bytes(b"else")
        with pytest.raises(AlreadyExists):
            await store.put_file_if_absent("once", source)
        assert await keys_of(store) == ["once"]

    async def test_exactly_one_of_racing_writers_wins(self, store: ObjectStore) -> None:
        for number in range(ROUNDS):
            key = f"race/{number}"
            bodies = [f"writer {writer} round {number}".encode() for writer in range(WRITERS)]
            won = await asyncio.gather(*(put_race(store, key, body) for body in bodies))
            assert won.count(True) == 1
            assert await store.get(key) == bodies[won.index(True)]

    async def test_puts_and_deletes_of_neighbours_do_not_disturb(self, store: ObjectStore) -> None:
        async def churn(name: str) -> None:
            for number in range(20):
                await store.put_if_absent(f"churn/dir/{name}", f"{number}".encode())
                assert await store.get(f"churn/dir/{name}") == f"{number}".encode()
                await store.delete([f"churn/dir/{name}"])

        await asyncio.gather(*(churn(f"object-{index}") for index in range(4)))
        assert await keys_of(store) == []

    async def test_missing_objects_are_not_found(self, store: ObjectStore, tmp_path: Path) -> None:
        await store.put_if_absent("dir/object", b"x")
        for key in ("missing", "dir/missing", "dir"):
            with pytest.raises(NotFound):
                await store.get(key)
            with pytest.raises(NotFound):
                await store.fetch(key, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    async def test_lists_in_key_order(self, store: ObjectStore) -> None:
        for key in random.Random(2).sample(ORDERED_KEYS, len(ORDERED_KEYS)):
            await store.put_if_absent(key, b"x")
        assert sorted(ORDERED_KEYS) == list(ORDERED_KEYS)
        assert await keys_of(store) == list(ORDERED_KEYS)
        for prefix in ("a", "a/", "a/x", "a-", "a-b", "b/c", "B", "nothing", "a/y/z/", "a/y/z"):
            expected = [key for key in ORDERED_KEYS if key.startswith(prefix)]
            assert await keys_of(store, prefix) == expected, prefix

    async def test_lists_what_comes_after(self, store: ObjectStore) -> None:
        for key in ORDERED_KEYS:
            await store.put_if_absent(key, b"x")
        for after in (*ORDERED_KEYS, "a", "a/", "a/x-", "a/y", "a1", "z", "A"):
            expected = [key for key in ORDERED_KEYS if key > after]
            assert await keys_of(store, after=after) == expected, after
            expected = [key for key in expected if key.startswith("a/")]
            assert await keys_of(store, "a/", after=after) == expected, after

    async def test_lists_more_than_a_page(self, store: ObjectStore) -> None:
        keys = [f"page/{number:020d}" for number in range(PAGE_KEYS)]
        gate = asyncio.Semaphore(32)

        async def put(key: str) -> None:
            async with gate:
                await store.put_if_absent(key, key.encode())

        await asyncio.gather(*map(put, keys))
        assert await keys_of(store, "page/") == keys
        assert await keys_of(store, "page/", after=keys[-3]) == keys[-2:]
        await store.delete(keys)
        assert await keys_of(store) == []

    async def test_delete_of_a_missing_key_is_no_error(self, store: ObjectStore) -> None:
        await store.put_if_absent("dir/a", b"a")
        await store.put_if_absent("dir/b", b"b")
        await store.delete(["missing", "dir/a", "dir/a", "dir/missing", "dir/b/c"])
        await store.delete([])
        assert await keys_of(store) == ["dir/b"]
        await store.put_if_absent("dir/a", b"again")
        assert await store.get("dir/a") == b"again"

    async def test_delete_of_a_directory_deletes_nothing(self, store: ObjectStore) -> None:
        await store.put_if_absent("dir/a", b"a")
        await store.delete(["dir"])
        assert await store.get("dir/a") == b"a"

    async def test_mapped_file_outlives_its_object(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        body = os.urandom(3 << 20)
        await store.put_if_absent("mapped", body)
        path = await store.fetch("mapped", tmp_path / "mapped")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        await store.delete(["mapped"])
        with pytest.raises(NotFound):
            await store.get("mapped")
        assert mapped[:] == body
        mapped.close()

    async def test_big_file_goes_both_ways(self, store: ObjectStore, tmp_path: Path) -> None:
        body = random.Random(3).randbytes(BIG_BYTES)
        source = tmp_path / "source"
        source.write_bytes(body)
        await store.put_file_if_absent("big/object", source)
        await store.put_file_if_absent("big/object", source)
        fetched = await store.fetch("big/object", tmp_path / "fetched")
        assert fetched.read_bytes() == body
        with source.open("r+b") as file:
            file.seek(BIG_BYTES - 1)
            file.write(bytes([body[-1] ^ 1]))
        # The source is the caller's: changing it must not change the object.
        assert await store.get("big/object") == body
        with pytest.raises(AlreadyExists):
            await store.put_file_if_absent("big/object", source)
        assert await store.get("big/object") == body
        assert await keys_of(store) == ["big/object"]

    async def test_upload_of_a_missing_file_is_refused(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidArgument):
            await store.put_file_if_absent("object", tmp_path / "missing")
        assert await keys_of(store) == []

    @pytest.mark.parametrize("key", BAD_KEYS)
    async def test_bad_keys_are_refused(self, store: ObjectStore, tmp_path: Path, key: str) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x")
        with pytest.raises(InvalidArgument):
            await store.put_if_absent(key, b"x")
        with pytest.raises(InvalidArgument):
            await store.put_file_if_absent(key, source)
        with pytest.raises(InvalidArgument):
            await store.get(key)
        with pytest.raises(InvalidArgument):
            await store.fetch(key, tmp_path / "copy")
        with pytest.raises(InvalidArgument):
            await store.delete([key])

    @pytest.mark.parametrize("prefix", ["/", "/a", "a//", "../", "a/../b", "a b", "a+"])
    async def test_bad_prefixes_are_refused(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(InvalidArgument):
            await keys_of(store, prefix)

    async def test_longest_key_is_taken(self, store: ObjectStore) -> None:
        key = "/".join(["k" * 255, "l" * 255])
        assert len(key) == 511
        await store.put_if_absent(key, b"x")
        assert await keys_of(store) == [key]
