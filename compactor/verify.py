"""Reads an uploaded segment back from the store and checks it before it is published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from annheal.compactor.build.calibrate import EF_LIMIT, own_recall
from annheal.errors import DataCorruption
from annheal.model.collection import CollectionSettings
from annheal.model.topology.manifest import IndexKind, SegmentEntry
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.stop import StopSignal, YieldPoint
from annheal.segment import Segment, SegmentFiles, fetch_segment
from annheal.segment.parts.files import PartFiles, fetch_part
from annheal.segment.parts.segment import PartSegment

SAMPLE_ROWS = 100


async def verify_segment(
    objects: ObjectStore,
    *,
    collection_id: str,
    shard: int,
    entry: SegmentEntry,
    rows: int,
    settings: CollectionSettings,
    directory: Path,
) -> None:
    """Raise `DataCorruption` unless the stored segment has `rows` rows and meets the objective.

    Fetches the files into `directory` and verifies their checksums. The recall of the graph is
    measured with the same rows of the segment as at the end of the build (`own_recall`), which kept
    only a graph that met the objective: a stored graph that does not is another graph.
    """
    files = await fetch_segment(objects, collection_id, shard, entry, cache_dir=directory)
    parts = [
        await fetch_part(objects, collection_id, shard, entry.segment_id, part, cache_dir=directory)
        for part in entry.parts
    ]
    signal = StopSignal()
    try:
        await asyncio.to_thread(
            _check, files, parts, rows=rows, settings=settings, yield_point=signal.check
        )
    finally:
        signal.stop()  # a cancelled call leaves its thread behind


def _check(
    files: SegmentFiles,
    parts: Sequence[PartFiles],
    *,
    rows: int,
    settings: CollectionSettings,
    yield_point: YieldPoint,
) -> None:
    segment = Segment.open(files, files.entry)
    metadata = {"segment": segment.id}
    if segment.rows != rows:
        raise DataCorruption(
            f"segment {segment.id} has {segment.rows} rows instead of {rows}", metadata=metadata
        )
    sample = np.random.default_rng(rows).choice(rows, min(rows, SAMPLE_ROWS), replace=False)
    ids = segment.ids_at(sample)
    if len(set(ids)) != len(ids):
        raise DataCorruption(f"segment {segment.id} holds an id twice", metadata=metadata)
    _check_graph(segment, settings, yield_point)
    for part in parts:
        _check_graph(PartSegment(segment, part), settings, yield_point)


def _check_graph(segment: Segment, settings: CollectionSettings, yield_point: YieldPoint) -> None:
    if segment.kind is IndexKind.FLAT:
        return
    recall = own_recall(segment.index, k=settings.recall_k, yield_point=yield_point)
    if recall < settings.recall_objective:
        raise DataCorruption(
            f"segment {segment.id} as stored reaches recall {recall:.4f} at ef {EF_LIMIT},"
            f" not {settings.recall_objective}",
            metadata={"segment": segment.id},
        )
