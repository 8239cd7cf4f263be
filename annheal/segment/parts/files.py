"""Moving vector parts, and segments with their parts, to and from the object store, verified."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from annheal.errors import DataCorruption
from annheal.model.topology.manifest import SegmentEntry, VectorPartEntry
from annheal.segment.checksum import checksum_of
from annheal.segment.files import (
    SegmentStore,
    fetch_verified,
    segment_directory,
    upload_segment,
    verify_file,
)
from annheal.segment.parts.meta import PART_META_FILE, PartMeta, decode_part_meta
from annheal.shards.object_keys import part_key


@dataclass(frozen=True, slots=True)
class PartFiles:
    """A vector part's files on this machine, verified."""

    entry: VectorPartEntry
    meta: PartMeta
    paths: dict[str, Path]


async def upload_part(
    store: SegmentStore,
    collection_id: str,
    shard: int,
    segment_id: str,
    directory: Path,
    entry: VectorPartEntry,
    *,
    on_stored: Callable[[str], None] = lambda name: None,
) -> None:
    """Store every file that `write_part` put into `directory`; `part.json` comes last.

    Repeating the call after an error is safe. `on_stored` is called with the name of each file.
    """
    meta = await asyncio.to_thread(
        _read_meta, directory / PART_META_FILE, segment_id=segment_id, entry=entry
    )
    for name in (*(file.name for file in meta.files), PART_META_FILE):
        key = part_key(collection_id, shard, segment_id, entry.part_id, name)
        await store.put_file_if_absent(key, directory / name)
        on_stored(name)


async def upload_whole(
    store: SegmentStore,
    collection_id: str,
    shard: int,
    directory: Path,
    entry: SegmentEntry,
    *,
    on_stored: Callable[[str], None] = lambda name: None,
) -> None:
    """Store a segment in `directory` with its parts, each in a folder there named by its id."""
    for part in entry.parts:
        await upload_part(
            store,
            collection_id,
            shard,
            entry.segment_id,
            directory / part.part_id,
            part,
            on_stored=on_stored,
        )
    await upload_segment(store, collection_id, shard, directory, entry, on_stored=on_stored)


async def fetch_part(
    store: SegmentStore,
    collection_id: str,
    shard: int,
    segment_id: str,
    entry: VectorPartEntry,
    *,
    cache_dir: Path,
) -> PartFiles:
    """Make every file of a part of a segment local and verify it; raises as `fetch_segment` does.

    A remote store downloads to `<directory of the segment>/<part_id>/`.
    """
    of_segment = segment_directory(
        cache_dir, collection_id=collection_id, shard=shard, segment_id=segment_id
    )
    directory = of_segment / entry.part_id
    key = partial(part_key, collection_id, shard, segment_id, entry.part_id)
    meta_path, meta = await fetch_verified(
        store,
        key(PART_META_FILE),
        directory / PART_META_FILE,
        partial(_read_meta, segment_id=segment_id, entry=entry),
    )
    paths = {PART_META_FILE: meta_path}
    for file in meta.files:
        paths[file.name], _ = await fetch_verified(
            store,
            key(file.name),
            directory / file.name,
            partial(verify_file, file=file, segment_id=segment_id),
        )
    return PartFiles(entry, meta, paths)


def local_part(directory: Path, segment_id: str, entry: VectorPartEntry) -> PartFiles:
    """Return the verified files of a part that lies in one directory; blocks."""
    meta = _read_meta(directory / PART_META_FILE, segment_id=segment_id, entry=entry)
    paths = {PART_META_FILE: directory / PART_META_FILE}
    for file in meta.files:
        paths[file.name] = directory / file.name
        verify_file(paths[file.name], file=file, segment_id=segment_id)
    return PartFiles(entry, meta, paths)


def _read_meta(path: Path, *, segment_id: str, entry: VectorPartEntry) -> PartMeta:
    body = path.read_bytes()
    actual = checksum_of(body)
    facts = {"segment": segment_id, "part": entry.part_id, "file": PART_META_FILE}
    if actual != entry.meta_checksum:
        raise DataCorruption(
            f"{PART_META_FILE} of vector part {entry.part_id} of segment {segment_id} is damaged:"
            f" expected {entry.meta_checksum}, found {actual}",
            metadata={**facts, "expected": entry.meta_checksum, "actual": actual},
        )
    meta = decode_part_meta(body, segment_id=segment_id, part_id=entry.part_id)
    if (meta.rows, meta.model.name) != (entry.rows, entry.model):
        raise DataCorruption(
            f"vector part {entry.part_id} of segment {segment_id} has {meta.rows} vectors of"
            f" {meta.model.name!r}, the manifest says {entry.rows} of {entry.model!r}",
            metadata=facts,
        )
    return meta
