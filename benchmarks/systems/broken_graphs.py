"""Breaks the graphs of a stopped embedded server: links are cut, checksums are right."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import faiss

from annheal.cli.server.embedded import META_FILE as METADATA_FILE
from annheal.cli.server.embedded import OBJECTS_DIR
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import MANIFESTS_PREFIX
from annheal.metastore.protocol import Compare, Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.topology.manifest import IndexKind, Manifest, SegmentEntry
from annheal.segment.checksum import checksum_of, checksum_of_file
from annheal.segment.meta import INDEX_FILE, META_FILE, FileEntry, decode_meta, encode_meta
from annheal.shards.object_keys import segment_prefix


async def break_graphs(data_dir: Path, *, lost_share: float) -> int:
    """Cut all links to a share of the rows of each graph; returns the number of graphs.

    The server that has `data_dir` must not run.
    """
    meta = SqliteMetaStore(data_dir / METADATA_FILE)
    broken = 0
    try:
        for item in (await meta.list(MANIFESTS_PREFIX)).items:
            manifest = decode_value(item.value, Manifest, key=item.key)
            entries: list[SegmentEntry] = []
            for entry in manifest.segments:
                if entry.index_kind is IndexKind.HNSW:
                    prefix = segment_prefix(
                        manifest.collection_id, manifest.shard, entry.segment_id
                    )
                    folder = data_dir / OBJECTS_DIR / prefix
                    entry = _break(folder, entry, lost_share=lost_share)
                    broken += 1
                entries.append(entry)
            changed = encode_value(replace(manifest, segments=tuple(entries)))
            await meta.commit(
                [Put(item.key, changed)], compares=[Compare(item.key, item.mod_revision)]
            )
    finally:
        await meta.close()
    return broken


def _break(folder: Path, entry: SegmentEntry, *, lost_share: float) -> SegmentEntry:
    from tests.support.damaged_graph import cut_links

    path = folder / INDEX_FILE
    index = faiss.read_index(os.fspath(path))
    cut_links(index, lost_share=lost_share)
    written = path.with_suffix(".written")
    faiss.write_index(index, os.fspath(written))
    written.replace(path)
    changed = FileEntry(INDEX_FILE, path.stat().st_size, checksum_of_file(path))
    described = decode_meta((folder / META_FILE).read_bytes(), segment_id=entry.segment_id)
    files = tuple(changed if one.name == INDEX_FILE else one for one in described.files)
    body = encode_meta(replace(described, files=files))
    new = folder / f"{META_FILE}.written"
    new.write_bytes(body)
    new.replace(folder / META_FILE)
    return replace(entry, meta_checksum=checksum_of(body))
