"""Vocabulary for tests of compactions: a shard with segments in real stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from annheal.index import VectorIndex
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import claim_key, collection_key, manifest_key, task_key
from annheal.metastore.protocol import MetaStore, Put
from annheal.model.collection import Collection, CollectionSettings, ModelSpec, Schema
from annheal.model.topology.manifest import DeleteVectorEntry, Manifest, SegmentEntry
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.objectstore.protocol import ObjectStore
from annheal.segment import (
    BuildInfo,
    DeleteVector,
    Segment,
    SegmentRows,
    checksum_of,
    encode_delete_vector,
    fetch_segment,
    upload_segment,
)
from annheal.shards.object_keys import delete_vector_key
from tests.support.segments import MODEL, SCHEMA, write_sample

COLLECTION_ID = "c1"
SHARD = 0
DEADLINE_S = 30.0


def collection(
    *,
    settings: CollectionSettings | None = None,
    model: ModelSpec = MODEL,
    schema: Schema = SCHEMA,
) -> Collection:
    return Collection(
        id=COLLECTION_ID,
        name="things",
        models=(model,),
        schema=schema,
        shard_count=1,
        settings=settings or CollectionSettings(),
    )


@dataclass(slots=True)
class Workplace:
    """One shard of one collection: what the owner of the shard would have written."""

    meta: MetaStore
    objects: ObjectStore
    directory: Path
    collection: Collection = field(default_factory=collection)
    manifest: Manifest = field(default_factory=lambda: Manifest(COLLECTION_ID, SHARD, epoch=1))

    async def add_segment(
        self,
        segment_id: str,
        rows: SegmentRows,
        *,
        dead: Iterable[int] = (),
        index: VectorIndex | None = None,
        build: BuildInfo | None = None,
    ) -> SegmentEntry:
        local = self.directory / "written" / segment_id
        entry = write_sample(
            local,
            segment_id=segment_id,
            rows=rows,
            model=self.collection.model,
            schema=self.collection.schema,
            index=index,
            build=build,
        )
        await upload_segment(self.objects, COLLECTION_ID, SHARD, local, entry)
        vectors = self.manifest.delete_vectors
        dead_rows = np.array(sorted(dead), dtype=np.int64)
        if len(dead_rows):
            body = encode_delete_vector(DeleteVector.empty(len(rows)).with_dead(dead_rows))
            key = delete_vector_key(COLLECTION_ID, SHARD, segment_id, "u1")
            await self.objects.put_if_absent(key, body)
            vectors = (
                *vectors,
                DeleteVectorEntry(segment_id, key, checksum_of(body), len(dead_rows)),
            )
        self.manifest = replace(
            self.manifest,
            version=self.manifest.version + 1,
            segments=(*self.manifest.segments, entry),
            delete_vectors=vectors,
        )
        await self.store()
        return entry

    async def store(self) -> None:
        await self.meta.commit(
            [
                Put(collection_key(self.collection.name), encode_value(self.collection)),
                Put(manifest_key(COLLECTION_ID, SHARD), encode_value(self.manifest)),
            ]
        )

    async def add_task(self, task: CompactionTask) -> None:
        await self.meta.commit([Put(task_key(task.id), encode_value(task))])

    async def task(self, task_id: str = "t1") -> CompactionTask:
        key = task_key(task_id)
        stored = await self.meta.get(key)
        assert stored is not None
        return decode_value(stored.value, CompactionTask, key=key)

    async def wait_task(
        self, *phases: TaskPhase, task_id: str = "t1", deadline_s: float = DEADLINE_S
    ) -> CompactionTask:
        async with asyncio.timeout(deadline_s):
            while (task := await self.task(task_id)).phase not in phases:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return task

    async def is_claimed(self, task_id: str = "t1") -> bool:
        return await self.meta.get(claim_key(task_id)) is not None

    async def open(self, entry: SegmentEntry) -> Segment:
        files = await fetch_segment(
            self.objects, COLLECTION_ID, SHARD, entry, cache_dir=self.directory / "read"
        )
        return Segment.open(files, entry)


def merge_task(*sources: str, task_id: str = "t1", **changes: object) -> CompactionTask:
    task = CompactionTask(
        id=task_id,
        collection_id=COLLECTION_ID,
        shard=SHARD,
        sources=sources,
        tier="warm",
        reason=TaskReason.MERGE,
        created_at_s=1.0,
    )
    return replace(task, **changes)  # type: ignore[arg-type]
