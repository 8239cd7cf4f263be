"""Flushes: sealed rows are written as hot segments, delete vectors as objects."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import DataCorruption, NotFound, Unavailable
from annheal.index import build_flat
from annheal.model.records import lacking
from annheal.model.topology.manifest import (
    DeleteVectorEntry,
    Manifest,
    SegmentEntry,
    Tier,
    VectorPartEntry,
)
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import Clock, NewId
from annheal.segment import (
    SegmentRows,
    checksum_of,
    encode_delete_vector,
    write_segment,
)
from annheal.segment.parts.files import upload_whole
from annheal.segment.parts.write import write_part
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.replay import SegmentLoader
from annheal.shard_node.rows.growing import GrowingSegment, GrowingView, take_rows
from annheal.shard_node.rows.shard import Shard
from annheal.shard_node.rows.view import SegmentView
from annheal.shards.object_keys import delete_vector_key


@dataclass(frozen=True, slots=True)
class Flushed:
    """Sealed rows and the hot segment written from them.

    `kept` (n,) int64 are the rows that were live, which are those of the segment, in order. `view`
    and `entry` are None if no row was live.
    """

    sealed: GrowingSegment
    kept: npt.NDArray[np.int64]
    view: SegmentView | None
    entry: SegmentEntry | None


class Flusher:
    """Writes sealed rows of one shard to the object store as hot segments."""

    def __init__(
        self,
        objects: ObjectStore,
        loader: SegmentLoader,
        *,
        scratch: Path,
        lanes: Lanes,
        now_s: Clock,
        new_id: NewId,
    ) -> None:
        self._objects = objects
        self._loader = loader
        self._scratch = scratch
        self._lanes = lanes
        self._now_s = now_s
        self._new_id = new_id

    async def flush(self, shard: Shard, sealed: GrowingSegment) -> Flushed:
        """Write the live rows of `sealed` as a hot segment, upload it, and map it.

        Raises `Unavailable` when the scratch directory cannot be written, on a full disk for
        example, or the segment cannot be read back. The rows stay in memory and in the log, so the
        flush can be repeated.
        """
        rows = sealed.view()
        kept = np.flatnonzero(rows.live_mask()).astype(np.int64)
        if not len(kept):
            return Flushed(sealed, kept, None, None)
        directory = self._scratch / f"flush-{self._new_id()}"
        segment_id = self._new_id()
        try:
            entry = await self._lanes.maintenance(
                lambda: _write(shard, rows, kept, directory, segment_id, self._now_s()),
                collection_id=shard.collection.id,
            )
            await upload_whole(self._objects, shard.collection.id, shard.number, directory, entry)
        except (OSError, RuntimeError) as error:  # FAISS reports a full disk as RuntimeError
            raise Unavailable(f"a segment could not be written to {directory}: {error}") from error
        finally:
            await self._lanes.maintenance(
                lambda: shutil.rmtree(directory, ignore_errors=True),
                collection_id=shard.collection.id,
            )
        try:
            view = await self._loader.load_view(entry, None)
        except (DataCorruption, NotFound) as error:
            # Damaged in the store, or already deleted as garbage: a repeated flush uploads it anew.
            raise Unavailable(f"a flushed segment could not be read back: {error}") from error
        return Flushed(sealed, kept, view, entry)


def _write(
    shard: Shard,
    rows: GrowingView,
    kept: npt.NDArray[np.int64],
    directory: Path,
    segment_id: str,
    now_s: float,
) -> SegmentEntry:
    """Write a segment of the collection's first model, with a part for each other one."""
    index = pa.array(kept, type=pa.int64())
    own, *others = shard.collection.usable_models
    entry = write_segment(
        directory,
        segment_id=segment_id,
        tier=Tier.HOT,
        model=own,
        schema=shard.collection.schema,
        rows=SegmentRows(
            ids=pa.array([rows.ids[row] for row in kept.tolist()], type=pa.string()),
            sequences=rows.sequences[kept],
            vectors=rows.vectors_of(own.name, kept, dimension=own.dimension),
            attributes=take_rows(rows.attributes(), index),
            payloads=rows.payloads().take(index),
        ),
        created_at_s=now_s,
    )
    parts: list[VectorPartEntry] = []
    for model in others:
        vectors = rows.vectors_of(model.name, kept, dimension=model.dimension)
        present = np.flatnonzero(~lacking(vectors))
        if len(present):
            part_id = f"{segment_id}-{len(parts)}"
            parts.append(
                write_part(
                    directory / part_id,
                    segment_id=segment_id,
                    part_id=part_id,
                    model=model,
                    index=build_flat(np.ascontiguousarray(vectors[present]), metric=model.metric),
                    rows=present,
                    segment_rows=len(kept),
                    created_at_s=now_s,
                )
            )
    return replace(entry, parts=tuple(parts))


def with_new_dead_rows(flushed: Flushed) -> tuple[GrowingSegment, SegmentView | None]:
    """Return the sealed rows and their segment, with all rows dead that are dead by now."""
    view = flushed.view
    if view is None:
        return flushed.sealed, None
    dead = flushed.sealed.view().dead
    if dead is not None:
        died = np.flatnonzero(dead[flushed.kept])
        view = SegmentView(view.segment, view.deletes.with_dead(died))
    return flushed.sealed, view


class DeleteVectorStore:
    """Writes delete vectors as objects, except those that the present manifest already names.

    An object of an earlier attempt is never used again: no manifest names it, so it may have been
    deleted meanwhile as unreferenced (INV-5).
    """

    def __init__(
        self, objects: ObjectStore, collection_id: str, shard: int, *, new_id: NewId
    ) -> None:
        self._objects = objects
        self._new_id = new_id
        self._collection_id = collection_id
        self._shard = shard

    async def checkpoint(
        self, views: Sequence[SegmentView], present: Manifest
    ) -> list[DeleteVectorEntry]:
        """Write the delete vectors of the views that have dead rows; return their entries."""
        known = {entry.segment_id: entry for entry in present.delete_vectors}
        return [
            await self._entry(view, known.get(view.segment.id))
            for view in views
            if view.deletes.dead_count
        ]

    async def _entry(self, view: SegmentView, known: DeleteVectorEntry | None) -> DeleteVectorEntry:
        if known is not None and known.dead_rows == view.deletes.dead_count:
            return known  # rows never become live again, so equal counts mean equal vectors
        body = encode_delete_vector(view.deletes)
        segment_id = view.segment.id
        key = delete_vector_key(self._collection_id, self._shard, segment_id, unique=self._new_id())
        await self._objects.put_if_absent(key, body)
        return DeleteVectorEntry(segment_id, key, checksum_of(body), view.deletes.dead_count)
