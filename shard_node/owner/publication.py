"""Changes of a shard's manifest: flushes and compactions, in turn, by compare-and-swap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from annheal.errors import (
    Conflict,
    FailedPrecondition,
    Fenced,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.topology.manifest import Manifest
from annheal.model.topology.shard import ShardId
from annheal.model.topology.task import CompactionTask
from annheal.runtime.fail_points import fail_point
from annheal.segment import DeleteVector
from annheal.shard_node.owner.checkpoint import DeleteVectorStore, Flushed, Flusher, carry_over
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.manifest_store import StoredManifest
from annheal.shard_node.owner.replay import SegmentLoader
from annheal.shard_node.rows.shard import Shard, rows_to_kill
from annheal.shard_node.rows.view import SegmentView
from annheal.shards import transitions
from annheal.shards.object_keys import wal_key

ResultT = TypeVar("ResultT")

MANIFEST_RETRY_S = 0.5
PUBLISH_WITHIN_S = 600.0
"""A manifest that could not be stored for this long is given up, and built again with new objects.

What it names was uploaded before; objects that nothing names are collected after an hour, and a
manifest must never name one that is gone (INV-5).
"""

_log = logging.getLogger(__name__)


class Publication:
    """The durable side of one owned shard.

    `mutation` guards the rows in memory; the lock of this class orders the changes of the
    manifest. The log is trimmed up to, and without, the object of the checkpoint slot: that one
    stays until the next checkpoint, so that a log never looks empty to a reader of an older
    manifest (metadata restored from a backup): it finds a gap and says so.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        epoch: int,
        stored: StoredManifest,
        shared: ShardDependencies,
        loader: SegmentLoader,
        mutation: asyncio.Lock,
        data_slots: list[int],
    ) -> None:
        self._id = ShardId(shard.collection.id, shard.number)
        self._shard = shard
        self._epoch = epoch
        self._stored = stored
        self._shared = shared
        self._loader = loader
        self._mutation = mutation
        self.data_slots = data_slots
        self._turn = asyncio.Lock()
        self._deletes = DeleteVectorStore(
            shared.objects, self._id.collection_id, self._id.number, new_id=shared.new_id
        )
        self._flusher = Flusher(
            shared.objects,
            loader,
            scratch=shared.scratch,
            lanes=shared.lanes,
            now_s=shared.now_s,
            new_id=shared.new_id,
        )

    @property
    def manifest(self) -> Manifest:
        """The manifest as last stored."""
        return self._stored.manifest

    async def flush(self, *, seal: bool) -> None:
        """Write sealed rows as hot segments, checkpoint delete vectors, trim the log.

        `seal`: the growing rows too. Each sealed segment is published by itself, so that what
        one attempt achieved is not repeated by the next.
        """
        async with self._turn:
            if seal:
                async with self._mutation:
                    self._shard.seal()
            for sealed in self._shard.sealed:
                started_s = self._shared.boottime()
                flushed = await self._flusher.flush(self._shard, sealed)
                fail_point("shard_node.flushed")
                await self._publish_checkpoint(flushed, started_s=started_s)
            await self._trim()
            fail_point("shard_node.trimmed")

    async def _publish_checkpoint(self, flushed: Flushed, *, started_s: float) -> None:
        # Taken in one moment: every delete of the log up to the checkpoint is in these views.
        views = list(self._shard.view.segments)
        _, carried = carry_over(flushed)
        if carried is not None:
            views.append(carried)
        await self._commit(
            transitions.checkpoint(
                self.manifest,
                epoch=self._epoch,
                flushed=[] if flushed.entry is None else [flushed.entry],
                delete_vectors=await self._deletes.checkpoint(views, self.manifest),
                checkpoint_slot=flushed.sealed.last_slot,
                last_sequence=flushed.sealed.last_sequence,
            ),
            started_s=started_s,
        )
        fail_point("shard_node.checkpointed")
        async with self._mutation:
            # Rows that died since are in the log behind the checkpoint, and are dead here.
            await self._change(lambda: self._shard.replace_sealed([carry_over(flushed)]))

    async def _trim(self) -> None:
        """Delete log objects before the checkpoint's; what fails is left for the next time."""
        gone = [slot for slot in self.data_slots if slot < self.manifest.checkpoint_slot]
        if not gone:
            return
        keys = [wal_key(self._id.collection_id, self._id.number, slot) for slot in gone]
        try:
            await self._shared.objects.delete(keys)
        except Unavailable as error:
            _log.warning("log objects of %s will be deleted later: %s", self._id, error)
            return
        # In place: the write path may have added slots meanwhile.
        done = set(gone)
        self.data_slots[:] = [slot for slot in self.data_slots if slot not in done]

    async def swap(self, task: CompactionTask) -> None:
        """Put a finished task's output in the place of its sources (INV-2, INV-6); idempotent."""
        async with self._turn:
            output = task.output
            held = {entry.segment_id for entry in self.manifest.segments}
            if output is not None and output.segment_id in held:
                return
            if output is None and not held & set(task.sources):
                return
            # Checks that the sources are all there before anything is loaded.
            transitions.swap_segments(
                self.manifest,
                epoch=self._epoch,
                sources=task.sources,
                output=output,
                delete_vector=None,
            )
            loaded = None if output is None else await self._loader.load_view(output, None)
            fail_point("shard_node.loaded")
            carrier = DeleteCarrier(self._shard, set(task.sources))
            loaded = await self._change(lambda: carrier.first_carry(loaded))
            vectors = [] if loaded is None else [loaded]
            started_s = self._shared.boottime()
            entries = await self._deletes.checkpoint(vectors, self.manifest)
            fail_point("shard_node.carried")
            await self._commit(
                transitions.swap_segments(
                    self.manifest,
                    epoch=self._epoch,
                    sources=task.sources,
                    output=output,
                    delete_vector=entries[0] if entries else None,
                ),
                started_s=started_s,
            )

            fail_point("shard_node.swapped")

            def replace() -> None:
                self._shard.replace_segments(carrier.sources, carrier.carry(loaded))

            async with self._mutation:
                await self._change(replace)
        fail_point("shard_node.replaced")
        await self._loader.discard(task.sources)

    async def _change(self, work: Callable[[], ResultT]) -> ResultT:
        collection_id = self._id.collection_id
        return await self._shared.lanes.change(lambda _: work(), collection_id=collection_id)

    async def _commit(self, manifest: Manifest, *, started_s: float) -> None:
        """Store `manifest`, whose new objects were not uploaded before `started_s` of the clock."""
        cause: Exception | None = None
        while self._shared.boottime() - started_s <= PUBLISH_WITHIN_S:
            try:
                self._stored = await self._publish(manifest)
                return
            except (Unavailable, UnknownOutcome) as error:
                # Should it have been stored after all, the next change finds that out (Conflict).
                _log.warning("manifest of %s cannot be stored yet: %s", self._id, error)
                cause = error
            await asyncio.sleep(MANIFEST_RETRY_S)
        raise Unavailable(
            f"the manifest of {self._id} could not be stored in {PUBLISH_WITHIN_S:g} s"
        ) from cause

    async def _publish(self, manifest: Manifest) -> StoredManifest:
        try:
            return await self._shared.manifests.publish(
                manifest, expected_revision=self._stored.revision
            )
        except Conflict:
            present = await self._shared.manifests.read(self._id)
            if present.manifest == manifest:
                return present  # an earlier attempt had been stored
            raise Fenced(
                f"the manifest of {self._id} was changed by epoch {present.manifest.epoch}"
            ) from None


class DeleteCarrier:
    """Carries deaths of the sources of a compaction over to its output, each only once."""

    def __init__(self, shard: Shard, sources: set[str]) -> None:
        self.sources = sources
        self._shard = shard
        self._seen: dict[str, DeleteVector] = {}

    def carry(self, output: SegmentView | None) -> SegmentView | None:
        """Return `output` with every row dead whose source row has died since the last call.

        Runs where changes run, so no row dies meanwhile.
        """
        for view in self._source_views():
            output = self._carry_from(view, output)
        return output

    def first_carry(self, output: SegmentView | None) -> SegmentView | None:
        """Return what `carry` does; refuse an output that lost or invented rows (INV-6).

        Raises `FailedPrecondition` unless as many rows live in the output as in its sources.
        """
        carried = self.carry(output)
        live = sum(view.live_count for view in self._source_views())
        found = 0 if carried is None else carried.live_count
        if found != live:
            raise FailedPrecondition(
                f"a compaction of {sorted(self.sources)} has {found} live rows, its sources {live}",
                reason="COMPACTION_DIFFERS",
            )
        return carried

    def _source_views(self) -> list[SegmentView]:
        return [view for view in self._shard.view.segments if view.segment.id in self.sources]

    def _carry_from(self, source: SegmentView, output: SegmentView | None) -> SegmentView | None:
        segment = source.segment
        before = self._seen.get(segment.id)
        self._seen[segment.id] = source.deletes
        if output is None or before is source.deletes:
            return output
        died = source.deletes.dead_rows()
        if before is not None:
            died = np.setdiff1d(died, before.dead_rows(), assume_unique=True)
        rows = rows_to_kill(output, segment.ids_at(died), segment.sequences[died])
        return SegmentView(output.segment, output.deletes.with_dead(rows))


RETRYABLE = (Unavailable, UnknownOutcome, Conflict, ResourceExhausted)
"""What a flush may fail with and be repeated after."""
