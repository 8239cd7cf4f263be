"""Changes of a shard's manifest by flushes and compactions, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
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
from annheal.shard_node.owner.checkpoint import (
    DeleteVectorStore,
    Flushed,
    Flusher,
    with_new_dead_rows,
)
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.manifest_store import Collected, StoredManifest
from annheal.shard_node.owner.replay import SegmentLoader
from annheal.shard_node.rows.shard import Shard, rows_to_kill
from annheal.shard_node.rows.view import SegmentView
from annheal.shards import transitions
from annheal.shards.object_keys import part_prefix, segment_prefix, wal_key

ResultT = TypeVar("ResultT")

MANIFEST_RETRY_S = 0.5
OBJECT_COLLECTED = "OBJECT_COLLECTED"
PUBLISH_WITHIN_S = 600.0
"""A manifest that could not be stored for this long is dropped; its change is begun again, with new
objects.

A leader of version 0.1 deletes unreferenced objects, after an hour, without `CollectedObjects`.
"""

_log = logging.getLogger(__name__)


class Publication:
    """Changes the manifest of one owned shard, and trims its log.

    The lock `mutation` guards the rows in memory; a lock of this class orders changes of the
    manifest. Log objects before the checkpoint slot are deleted, that of the slot itself after the
    next checkpoint. So a log is never empty for a reader of an older manifest (metadata restored
    from a backup): it finds a gap and fails.
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
        # As last read. Revision 0: none yet; if that is wrong, the first commit fails and reads it.
        self._collected = Collected()
        self._manifest_lock = asyncio.Lock()
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

        `seal`: the growing rows are sealed first. Each hot segment is published alone, so that a
        repeated flush writes only those that are missing. Raises `Conflict`, after which a flush
        can be repeated, when garbage collection deleted an object before the manifest referenced
        it.
        """
        async with self._manifest_lock:
            if seal:
                async with self._mutation:
                    self._shard.seal()
            for sealed in self._shard.sealed:
                started_s = self._shared.boottime()
                flushed = await self._flusher.flush(self._shard, sealed)
                fail_point("shard_node.flushed")
                try:
                    await self._publish_checkpoint(flushed, started_s=started_s)
                except FailedPrecondition as error:
                    if error.reason != OBJECT_COLLECTED:
                        raise
                    raise Conflict(error.message, reason=OBJECT_COLLECTED) from error
            await self._trim()
            fail_point("shard_node.trimmed")

    async def _publish_checkpoint(self, flushed: Flushed, *, started_s: float) -> None:
        # All taken now, when every delete up to the checkpoint has been applied.
        views = list(self._shard.view.segments)
        _, view = with_new_dead_rows(flushed)
        if view is not None:
            views.append(view)
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
            # Deletes since then are in the log after the checkpoint; here their rows die too.
            await self._change(lambda: self._shard.replace_sealed([with_new_dead_rows(flushed)]))

    async def _trim(self) -> None:
        """Delete log objects before the checkpoint slot; the next flush repeats a failed delete."""
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
        """Replace the sources of a finished task by its output (INV-2, INV-6); idempotent.

        Raises `FailedPrecondition` when the sources are not all there, or when output and sources
        differ in their number of live rows.
        """
        async with self._manifest_lock:
            output = task.output
            present = {entry.segment_id for entry in self.manifest.segments}
            if output is not None and output.segment_id in present:
                return
            if output is None and not present & set(task.sources):
                return
            # Raises if a source is missing, before anything is loaded.
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
                by_compactor=True,
            )

            fail_point("shard_node.swapped")

            def replace() -> None:
                self._shard.replace_segments(carrier.sources, carrier.carry(loaded))

            async with self._mutation:
                await self._change(replace)
        fail_point("shard_node.replaced")
        await self._loader.discard(task.sources)

    async def add_part(self, task: CompactionTask) -> None:
        """Give a segment the vector part of a finished backfill; idempotent.

        A part of the same model is replaced. Raises `FailedPrecondition` when the segment is not
        there any more.
        """
        async with self._manifest_lock:
            part, (segment_id, *_) = task.part, task.sources
            if part is None:
                return
            entry = next((e for e in self.manifest.segments if e.segment_id == segment_id), None)
            if entry is not None and part in entry.parts:
                return
            changed = transitions.add_part(
                self.manifest, epoch=self._epoch, segment_id=segment_id, part=part
            )
            entry = next(e for e in changed.segments if e.segment_id == segment_id)
            held = next(v for v in self._shard.view.segments if v.segment.id == segment_id)
            segment = await self._loader.load_parts(held.segment, entry)
            fail_point("shard_node.part_loaded")
            started_s = self._shared.boottime()
            await self._commit(changed, started_s=started_s, by_compactor=True)
            fail_point("shard_node.part_stored")
            async with self._mutation:
                await self._change(lambda: self._shard.replace_part(segment))

    async def _change(self, work: Callable[[], ResultT]) -> ResultT:
        collection_id = self._id.collection_id
        return await self._shared.lanes.change(lambda _: work(), collection_id=collection_id)

    async def _commit(
        self, manifest: Manifest, *, started_s: float, by_compactor: bool = False
    ) -> None:
        """Store `manifest`, whose new objects were uploaded after `started_s` of `boottime`.

        `by_compactor`: one was uploaded before, by a compactor. Raises `FailedPrecondition`, reason
        OBJECT_COLLECTED, when garbage collection deletes one of the new objects.
        """
        cause: Exception | None = None
        if by_compactor:
            await self._check_not_collected(manifest)
        while self._shared.boottime() - started_s <= PUBLISH_WITHIN_S:
            try:
                self._stored = await self._publish(manifest)
                return
            except (Unavailable, UnknownOutcome) as error:
                # If it was stored nevertheless, the next attempt ends with a Conflict and reads it.
                _log.warning("manifest of %s cannot be stored yet: %s", self._id, error)
                cause = error
            await asyncio.sleep(MANIFEST_RETRY_S)
        raise Unavailable(
            f"the manifest of {self._id} could not be stored in {PUBLISH_WITHIN_S:g} s"
        ) from cause

    async def _publish(self, manifest: Manifest) -> StoredManifest:
        manifests = self._shared.manifests
        while True:
            try:
                return await manifests.publish(
                    manifest,
                    expected_revision=self._stored.revision,
                    collected_revision=self._collected.revision,
                )
            except Conflict:
                present = await manifests.read(self._id)
            if present.manifest == manifest:
                return present  # stored by an earlier attempt with an unknown outcome
            if present.revision != self._stored.revision:
                raise Fenced(
                    f"the manifest of {self._id} was changed by epoch {present.manifest.epoch}"
                )
            # The garbage collector has stored what it deletes: perhaps an object of `manifest`.
            self._collected = await manifests.collected(self._id)
            await self._check_not_collected(manifest)

    async def _check_not_collected(self, manifest: Manifest) -> None:
        """Raise `FailedPrecondition` if garbage collection deletes a new object of `manifest`.

        If it was deleted in an earlier round, `self._collected` may not have it any more, but then
        the object does not exist.
        """
        known = set(self._units_of(self.manifest))
        units = [unit for unit in self._units_of(manifest) if unit not in known]
        referenced = {entry.key for entry in self.manifest.delete_vectors}
        units += [one.key for one in manifest.delete_vectors if one.key not in referenced]
        for unit in units:
            if unit in self._collected.units or not await self._exists(unit):
                raise FailedPrecondition(
                    f"{unit} was deleted as garbage before the manifest of {self._id} was stored",
                    reason=OBJECT_COLLECTED,
                    metadata={"object": unit},
                )

    def _units_of(self, manifest: Manifest) -> Iterator[str]:
        """Return the prefixes of the segments and vector parts that `manifest` names."""
        shard = (self._id.collection_id, self._id.number)
        for entry in manifest.segments:
            yield segment_prefix(*shard, entry.segment_id)
            for part in entry.parts:
                yield part_prefix(*shard, entry.segment_id, part.part_id)

    async def _exists(self, unit: str) -> bool:
        async for _ in self._shared.objects.list(unit):
            return True
        return False


class DeleteCarrier:
    """Marks rows of a compaction's output dead whose source rows died, each source row once."""

    def __init__(self, shard: Shard, sources: set[str]) -> None:
        self.sources = sources
        self._shard = shard
        self._seen: dict[str, DeleteVector] = {}

    def carry(self, output: SegmentView | None) -> SegmentView | None:
        """Return `output` with every row dead whose source row died since the last call.

        Runs in the lane of changes, so no row dies meanwhile.
        """
        for view in self._source_views():
            output = self._carry_from(view, output)
        return output

    def first_carry(self, output: SegmentView | None) -> SegmentView | None:
        """Return the result of `carry`, after checking the number of live rows (INV-6).

        Raises `FailedPrecondition` unless the output has as many live rows as its sources.
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
"""Errors after which a flush is repeated."""
