"""Reading back what was uploaded: a segment is proposed only when the stored bytes answer well."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from annheal.compactor.build.calibrate import EF_LIMIT, own_recall
from annheal.errors import DataCorruption
from annheal.model.collection import CollectionSettings
from annheal.model.topology.manifest import IndexKind, SegmentEntry
from annheal.objectstore.protocol import ObjectStore
from annheal.segment import Segment, SegmentFiles, fetch_segment

SAMPLE_ROWS = 100


async def verify_segment(
    objects: ObjectStore,
    *,
    collection_id: str,
    shard: int,
    entry: SegmentEntry,
    rows: int,
    goal: CollectionSettings,
    directory: Path,
) -> None:
    """Raise `DataCorruption` unless the stored segment has `rows` rows and meets the objective.

    Every checksum is verified again, from the store. A build keeps only graphs that find their own
    rows, and asks with the same ones: what does not find them here is not what was built.
    """
    files = await fetch_segment(objects, collection_id, shard, entry, cache_dir=directory)
    await asyncio.to_thread(_check, files, rows=rows, goal=goal)


def _check(files: SegmentFiles, *, rows: int, goal: CollectionSettings) -> None:
    segment = Segment.open(files, files.entry)
    facts = {"segment": segment.id}
    if segment.rows != rows:
        raise DataCorruption(
            f"segment {segment.id} has {segment.rows} rows instead of {rows}", metadata=facts
        )
    sample = np.random.default_rng(rows).choice(rows, min(rows, SAMPLE_ROWS), replace=False)
    ids = segment.ids_at(sample)
    if len(set(ids)) != len(ids):
        raise DataCorruption(f"segment {segment.id} holds an id twice", metadata=facts)
    if segment.kind is IndexKind.FLAT:
        return
    recall = own_recall(segment.index, k=goal.recall_k)
    if recall < goal.recall_objective:
        raise DataCorruption(
            f"segment {segment.id} as stored reaches recall {recall:.4f} at ef {EF_LIMIT},"
            f" not {goal.recall_objective}",
            metadata=facts,
        )
