"""Moving segments to and from the object store, verified: damaged bytes are never served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from annheal.errors import DataCorruption, NotFound
from annheal.model.names import checked_name
from annheal.model.topology.manifest import DeleteVectorEntry, SegmentEntry
from annheal.segment.checksum import checksum_of, checksum_of_file
from annheal.segment.deletes import DeleteVector, decode_delete_vector
from annheal.segment.meta import META_FILE, FileEntry, SegmentMeta, decode_meta
from annheal.shards.object_keys import segment_key, shard_part

VerifiedT = TypeVar("VerifiedT")


class SegmentStore(Protocol):
    """The part of `annheal.objectstore.protocol.ObjectStore` that segments need."""

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a file; see `ObjectStore`."""
        ...

    async def get(self, key: str) -> bytes:
        """Return a whole object; see `ObjectStore`."""
        ...

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make an object readable as a local file; see `ObjectStore`."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentFiles:
    """A segment's files on this machine, verified; they may lie in different directories."""

    entry: SegmentEntry
    meta: SegmentMeta
    paths: dict[str, Path]


async def upload_segment(
    store: SegmentStore,
    collection_id: str,
    shard: int,
    directory: Path,
    entry: SegmentEntry,
    *,
    on_stored: Callable[[str], None] = lambda name: None,
) -> None:
    """Store every file of the segment that `write_segment` put into `directory`.

    `segment.json` comes last, so a prefix without it is an upload that never finished. Repeating
    the call after an error is safe. `on_stored` is called with the name of each file stored.
    """
    meta = await asyncio.to_thread(_read_meta, directory / META_FILE, entry=entry)
    for name in (*(file.name for file in meta.files), META_FILE):
        key = segment_key(collection_id, shard, entry.segment_id, name)
        await store.put_file_if_absent(key, directory / name)
        on_stored(name)


async def fetch_segment(
    store: SegmentStore,
    collection_id: str,
    shard: int,
    entry: SegmentEntry,
    *,
    cache_dir: Path,
) -> SegmentFiles:
    """Make every file of a segment local and verify sizes and checksums, in a worker thread.

    A remote store downloads to `cache_dir/<collection_id>/<shard>/<segment_id>/`; a file that is
    there already and matches is not downloaded again.

    Raises:
        NotFound: a file is not in the store: the manifest was replaced, or the store lost it.
        DataCorruption: a file does not match; names the segment, the file and both checksums.
        FailedPrecondition: a newer format.
    """
    directory = segment_directory(
        cache_dir, collection_id=collection_id, shard=shard, segment_id=entry.segment_id
    )

    async def fetch(name: str, verify: Callable[[Path], VerifiedT]) -> tuple[Path, VerifiedT]:
        key = segment_key(collection_id, shard, entry.segment_id, name)
        return await fetch_verified(store, key, directory / name, verify)

    meta_path, meta = await fetch(META_FILE, partial(_read_meta, entry=entry))
    paths = {META_FILE: meta_path}
    for file in meta.files:
        paths[file.name], _ = await fetch(
            file.name, partial(verify_file, file=file, segment_id=entry.segment_id)
        )
    return SegmentFiles(entry, meta, paths)


async def fetch_verified(
    store: SegmentStore, key: str, cached: Path, verify: Callable[[Path], VerifiedT]
) -> tuple[Path, VerifiedT]:
    """Make an object local and return its path and what `verify` returns of it.

    A remote store downloads to `cached`, unless a file that passes is there already. Raises
    `NotFound` and what `verify` raises.
    """
    with contextlib.suppress(FileNotFoundError, DataCorruption):
        return cached, await asyncio.to_thread(verify, cached)
    # A damaged copy must go, or a store that leaves existing files alone would keep it.
    await asyncio.to_thread(cached.unlink, missing_ok=True)
    path = await store.fetch(key, cached)
    try:
        return path, await asyncio.to_thread(verify, path)
    except FileNotFoundError as error:  # of a local store, deleted since it was fetched
        raise NotFound(f"object {key} is not in the store any more") from error


async def load_delete_vector(
    store: SegmentStore, entry: DeleteVectorEntry, *, rows: int
) -> DeleteVector:
    """Return the delete vector that a manifest names, of a segment of `rows` rows, verified.

    Raises `NotFound`; `DataCorruption` that names the key; `FailedPrecondition`: a newer format.
    """
    body = await store.get(entry.key)
    actual = checksum_of(body)
    if actual != entry.checksum:
        raise DataCorruption(
            f"delete vector {entry.key} is damaged: expected {entry.checksum}, found {actual}",
            metadata={"key": entry.key, "expected": entry.checksum, "actual": actual},
        )
    return decode_delete_vector(body, key=entry.key, rows=rows)


def local_segment(directory: Path, entry: SegmentEntry) -> SegmentFiles:
    """Return the verified files of a segment that lies in one directory; blocks."""
    meta = _read_meta(directory / META_FILE, entry=entry)
    paths = {META_FILE: directory / META_FILE}
    for file in meta.files:
        paths[file.name] = directory / file.name
        verify_file(paths[file.name], file=file, segment_id=entry.segment_id)
    return SegmentFiles(entry, meta, paths)


def segment_directory(cache_dir: Path, *, collection_id: str, shard: int, segment_id: str) -> Path:
    """Return where `fetch_segment` lets a remote store put a segment's files."""
    checked_name(segment_id, field="segment_id")
    return cache_dir / shard_part(collection_id, shard) / segment_id


def verify_file(path: Path, *, file: FileEntry, segment_id: str) -> None:
    """Raise `DataCorruption` unless the file at `path` is what `file` says; blocks."""
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:
        raise _corrupt(segment_id, file.name, f"{file.size_bytes} bytes", f"{size_bytes} bytes")
    actual = checksum_of_file(path)
    if actual != file.checksum:
        raise _corrupt(segment_id, file.name, file.checksum, actual)


def _read_meta(path: Path, *, entry: SegmentEntry) -> SegmentMeta:
    body = path.read_bytes()
    actual = checksum_of(body)
    if actual != entry.meta_checksum:
        raise _corrupt(entry.segment_id, META_FILE, entry.meta_checksum, actual)
    meta = decode_meta(body, segment_id=entry.segment_id)
    if meta.rows != entry.rows:
        raise _corrupt(entry.segment_id, META_FILE, f"{entry.rows} rows", f"{meta.rows} rows")
    return meta


def _corrupt(segment_id: str, file: str, expected: str, actual: str) -> DataCorruption:
    return DataCorruption(
        f"{file} of segment {segment_id} is damaged: expected {expected}, found {actual}",
        metadata={
            "segment": segment_id,
            "file": file,
            "expected": expected,
            "actual": actual,
        },
    )
