from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from annheal.errors import AlreadyExists, DataCorruption, FailedPrecondition, NotFound
from annheal.model.topology.manifest import DeleteVectorEntry, SegmentEntry
from annheal.objectstore.local import LocalObjectStore
from annheal.segment import (
    DeleteVector,
    Segment,
    checksum_of,
    encode_delete_vector,
    fetch_segment,
    load_delete_vector,
    local_segment,
    upload_segment,
)
from annheal.segment.meta import DATA_FILES, FORMAT_VERSION, META_FILE, decode_meta, encode_meta
from annheal.shards.object_keys import delete_vector_key, segment_key, segment_prefix
from tests.support.segments import open_local, sample_rows, write_sample

ALL_FILES = (*DATA_FILES, META_FILE)


class DownloadingStore:
    """A remote store in small: `fetch` copies to the destination and counts."""

    def __init__(self, inner: LocalObjectStore) -> None:
        self.inner = inner
        self.fetched: list[str] = []

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        await self.inner.put_file_if_absent(key, path)

    async def get(self, key: str) -> bytes:
        return await self.inner.get(key)

    async def fetch(self, key: str, destination: Path) -> Path:
        self.fetched.append(key.rpartition("/")[2])
        stored = await self.inner.fetch(key, destination)
        await asyncio.to_thread(destination.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.copy, stored, destination)
        return destination


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    opened = LocalObjectStore(tmp_path / "objects")
    yield opened
    await opened.close()


def positions_to_flip(size_bytes: int) -> list[int]:
    sampled = np.random.default_rng(size_bytes).integers(0, size_bytes, 25).tolist()
    return sorted({0, 1, size_bytes // 2, size_bytes - 1, *sampled})


def flip(path: Path, position: int) -> None:
    body = bytearray(path.read_bytes())
    body[position] ^= 0x04
    path.unlink()
    path.write_bytes(body)


@pytest.mark.parametrize("name", ALL_FILES)
def test_any_flipped_byte_is_found_and_named(tmp_path: Path, name: str) -> None:
    entry = write_sample(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    for position in positions_to_flip(len(good)):
        flip(path, position)
        with pytest.raises(DataCorruption, match=name) as caught:
            local_segment(tmp_path, entry)
        assert caught.value.metadata["segment"] == "seg-1"
        assert caught.value.metadata["file"] == name
        assert caught.value.metadata["expected"] != caught.value.metadata["actual"]
        path.write_bytes(good)
    local_segment(tmp_path, entry)


@pytest.mark.parametrize("name", ALL_FILES)
def test_cut_and_grown_files_are_found(tmp_path: Path, name: str) -> None:
    entry = write_sample(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    for damaged in (b"", good[:-1], good + b"\x00"):
        path.write_bytes(damaged)
        with pytest.raises(DataCorruption, match=name):
            local_segment(tmp_path, entry)


async def test_upload_and_fetch_from_a_local_store_copies_nothing(
    tmp_path: Path, store: LocalObjectStore
) -> None:
    entry = write_sample(tmp_path / "new")
    await upload_segment(store, "c1", 3, tmp_path / "new", entry)
    keys = [stat.key async for stat in store.list(segment_prefix("c1", 3, "seg-1"))]
    assert keys == sorted(segment_key("c1", 3, "seg-1", name) for name in ALL_FILES)
    files = await fetch_segment(store, "c1", 3, entry, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    segment = Segment.open(files, entry)
    assert segment.ids_at(np.array([0, 19])) == ["record-0", "record-19"]


async def test_upload_may_be_repeated_but_not_replaced(
    tmp_path: Path, store: LocalObjectStore
) -> None:
    entry = write_sample(tmp_path / "new")
    for _ in range(2):
        await upload_segment(store, "c1", 0, tmp_path / "new", entry)
    other = write_sample(tmp_path / "other", rows=sample_rows(4))
    with pytest.raises(AlreadyExists):
        await upload_segment(store, "c1", 0, tmp_path / "other", other)


async def test_unfinished_upload_has_no_meta(tmp_path: Path, store: LocalObjectStore) -> None:
    entry = write_sample(tmp_path / "new")

    class Failing(DownloadingStore):
        async def put_file_if_absent(self, key: str, path: Path) -> None:
            if len(self.fetched) == len(DATA_FILES) - 1:
                raise ConnectionError
            self.fetched.append(key)
            await self.inner.put_file_if_absent(key, path)

    with pytest.raises(ConnectionError):
        await upload_segment(Failing(store), "c1", 0, tmp_path / "new", entry)
    with pytest.raises(NotFound):
        await fetch_segment(store, "c1", 0, entry, cache_dir=tmp_path / "cache")


async def test_cached_files_are_verified_and_fetched_again_when_damaged(
    tmp_path: Path, store: LocalObjectStore
) -> None:
    entry = write_sample(tmp_path / "new")
    remote = DownloadingStore(store)
    await upload_segment(remote, "c1", 0, tmp_path / "new", entry)
    cache = tmp_path / "cache"
    files = await fetch_segment(remote, "c1", 0, entry, cache_dir=cache)
    assert sorted(remote.fetched) == sorted(ALL_FILES)
    remote.fetched.clear()
    await fetch_segment(remote, "c1", 0, entry, cache_dir=cache)
    assert remote.fetched == []
    for name in ALL_FILES:
        flip(files.paths[name], 5)
        repaired = await fetch_segment(remote, "c1", 0, entry, cache_dir=cache)
        assert remote.fetched == [name]
        remote.fetched.clear()
        assert Segment.open(repaired, entry).rows == 20


@pytest.mark.parametrize("name", ALL_FILES)
async def test_damaged_object_is_never_served(
    tmp_path: Path, store: LocalObjectStore, name: str
) -> None:
    entry = write_sample(tmp_path / "new")
    await upload_segment(store, "c1", 0, tmp_path / "new", entry)
    path = await store.fetch(segment_key("c1", 0, "seg-1", name), tmp_path / "unused")
    flip(path, 3)
    with pytest.raises(DataCorruption, match=name):
        await fetch_segment(store, "c1", 0, entry, cache_dir=tmp_path / "cache")


async def test_delete_vectors_are_verified(store: LocalObjectStore) -> None:
    body = encode_delete_vector(DeleteVector.empty(9).with_dead(np.array([2, 8])))
    key = delete_vector_key("c1", 2, "seg-1", "u1")
    await store.put_if_absent(key, body)
    entry = DeleteVectorEntry("seg-1", key, checksum_of(body), 2)
    vector = await load_delete_vector(store, entry, rows=9)
    assert vector.dead_rows().tolist() == [2, 8]
    with pytest.raises(DataCorruption, match="deletes/c1/00002/seg-1/u1"):
        await load_delete_vector(store, replace(entry, checksum="0" * 32), rows=9)


def rewrite_meta(directory: Path, entry: SegmentEntry, body: bytes) -> SegmentEntry:
    """Return an entry to which the changed `segment.json` is the right one."""
    (directory / META_FILE).write_bytes(body)
    return replace(entry, meta_checksum=checksum_of(body))


def test_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    entry = write_sample(tmp_path)
    content = msgspec.json.decode((tmp_path / META_FILE).read_bytes())
    content["format_version"] = FORMAT_VERSION + 1
    del content["files"]  # a newer format may look quite different
    newer = rewrite_meta(tmp_path, entry, msgspec.json.encode(content))
    with pytest.raises(FailedPrecondition, match="upgrade"):
        local_segment(tmp_path, newer)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"nonsense", b'{"format_version": 1}'])
def test_meta_that_is_none_is_corruption(tmp_path: Path, body: bytes) -> None:
    entry = rewrite_meta(tmp_path, write_sample(tmp_path), body)
    with pytest.raises(DataCorruption, match=META_FILE):
        local_segment(tmp_path, entry)


@pytest.mark.parametrize("name", ["../../etc/passwd", "extra.bin"])
def test_meta_cannot_name_other_files(tmp_path: Path, name: str) -> None:
    entry = write_sample(tmp_path)
    meta = decode_meta((tmp_path / META_FILE).read_bytes(), segment_id="seg-1")
    odd = replace(meta, files=(replace(meta.files[0], name=name), *meta.files[1:]))
    with pytest.raises(DataCorruption, match="other files"):
        local_segment(tmp_path, rewrite_meta(tmp_path, entry, encode_meta(odd)))


@pytest.mark.parametrize("name", [n for n in DATA_FILES])
def test_file_of_another_segment_is_found_though_its_checksum_holds(
    tmp_path: Path, name: str
) -> None:
    entry = write_sample(tmp_path / "a")
    write_sample(tmp_path / "b", rows=sample_rows(7))
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    mine = decode_meta((tmp_path / "a" / META_FILE).read_bytes(), segment_id="seg-1")
    other = decode_meta((tmp_path / "b" / META_FILE).read_bytes(), segment_id="seg-1")
    others = {file.name: file for file in other.files}
    mixed = replace(mine, files=tuple(others[name] if f.name == name else f for f in mine.files))
    entry = rewrite_meta(tmp_path / "a", entry, encode_meta(mixed))
    with pytest.raises(DataCorruption):
        open_local(tmp_path / "a", entry)
