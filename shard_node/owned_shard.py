"""One shard that this node owns: opened behind a fence, written, flushed, compacted, released."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annheal import manifest as transitions
from annheal.errors import (
    Conflict,
    Fenced,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.collection import Collection
from annheal.model.manifest import Manifest
from annheal.model.shard import ShardId, ShardPhase
from annheal.model.task import CompactionTask
from annheal.model.write import SegmentState, ShardState, WriteAnswer, WriteOperation
from annheal.objectstore.protocol import ObjectStore
from annheal.segment import DeleteVector
from annheal.wal.codec import wal_key
from shard_node.checkpoint import DeleteVectorStore, Flushed, Flusher, carry_over
from shard_node.manifest_store import ManifestStore, StoredManifest
from shard_node.offload import Offload
from shard_node.replay import (
    LogPosition,
    SegmentLoader,
    list_trimmable,
    load_manifest,
    replay_log,
)
from shard_node.shard import Shard, rows_to_kill
from shard_node.view import SegmentView, ShardView
from shard_node.wal_writer import WalWriter
from shard_node.write_path import WritePath

CHECKPOINT_SLOTS_MAX = 512
"""Log objects that may gather before a checkpoint, whatever they hold."""
IDLE_SEAL_S = 3.0
"""Growing rows are sealed early when no write came for this long: they should get an index."""
IDLE_SEAL_ROWS_MIN = 1_000
MAINTENANCE_INTERVAL_S = 0.5
OPEN_ATTEMPTS_MAX = 20
MANIFEST_RETRY_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardDependencies:
    """What every shard of a node shares."""

    objects: ObjectStore
    manifests: ManifestStore
    offload: Offload
    node_id: str
    writer: bytes
    cache: Path
    scratch: Path
    now_s: Callable[[], float] = time.time


class OwnedShard:
    """A shard in one epoch. Create it with `open_shard`; run `run` until it ends."""

    def __init__(
        self,
        collection: Collection,
        number: int,
        *,
        shared: ShardDependencies,
        shard: Shard,
        stored: StoredManifest,
        wal: WalWriter,
        loader: SegmentLoader,
        data_slots: list[int],
    ) -> None:
        self.id = ShardId(collection.id, number)
        self.collection = collection
        self._shared = shared
        self._shard = shard
        self._stored = stored
        self._wal = wal
        self._loader = loader
        self._data_slots = data_slots
        self._mutation = asyncio.Lock()
        self._publication = asyncio.Lock()
        self._changed = asyncio.Event()
        self._last_write_s = 0.0
        self._growing_since_s: float | None = None
        self._deletes = DeleteVectorStore(shared.objects, collection.id, number)
        self._flusher = Flusher(
            shared.objects,
            loader,
            scratch=shared.scratch,
            offload=shared.offload,
            now_s=shared.now_s,
        )
        self._writes = WritePath(
            shard,
            wal,
            mutation=self._mutation,
            offload=shared.offload,
            on_applied=self._note_write,
        )

    @property
    def view(self) -> ShardView:
        """The rows as of now."""
        return self._shard.view

    @property
    def epoch(self) -> int:
        """The fencing number that this node owns the shard by."""
        return self._wal.epoch

    @property
    def deposed(self) -> bool:
        """Whether this node learnt that a newer owner took over."""
        return self._wal.deposed

    async def write(self, operation: WriteOperation, *, timeout_s: float) -> WriteAnswer:
        """Write one operation; see `WritePath.submit`."""
        return await self._writes.submit(operation, timeout_s=timeout_s)

    async def verify_owner(self) -> None:
        """Raise `Fenced` unless nobody took over up to now; before strong reads."""
        await self._wal.verify_owner()

    async def run(self) -> None:
        """Commit writes and keep the shard flushed until it is lost or cancelled."""
        async with asyncio.TaskGroup() as group:
            maintenance = group.create_task(self._maintain())
            await self._writes.run()
            maintenance.cancel()

    def close(self) -> None:
        """Refuse further writes; what is not acknowledged was not promised."""
        self._writes.close(Fenced(f"shard {self.id} was released by this node"))

    def _note_write(self) -> None:
        now_s = time.monotonic()
        self._last_write_s = now_s
        if self._growing_since_s is None:
            self._growing_since_s = now_s
        self._data_slots.append(self._shard.slot)
        if self._is_full():
            self._changed.set()

    def _is_full(self) -> bool:
        settings = self.collection.settings
        return (
            self._shard.growing_rows >= settings.seal_rows_max
            or self._shard.growing_bytes >= settings.seal_bytes_max
        )

    async def _maintain(self) -> None:
        """Seal and flush by size, age and idleness."""
        while not self.deposed:
            try:
                await asyncio.wait_for(self._changed.wait(), MAINTENANCE_INTERVAL_S)
            except TimeoutError:
                pass
            self._changed.clear()
            if not self._is_due():
                continue
            try:
                await self.flush()
            except (Unavailable, UnknownOutcome, Conflict, ResourceExhausted) as error:
                _log.warning("flush of %s will be repeated: %s", self.id, error)
                await asyncio.sleep(MANIFEST_RETRY_S)
            except Fenced:
                self._wal.deposed = True
                self.close()

    def _is_due(self) -> bool:
        if self._is_full() or self._shard.sealed:
            return True
        if len(self._data_slots) >= CHECKPOINT_SLOTS_MAX:
            return True
        if self._growing_since_s is None or not self._shard.growing_rows:
            return False
        now_s = time.monotonic()
        idle = now_s - self._last_write_s >= IDLE_SEAL_S
        return (idle and self._shard.growing_rows >= IDLE_SEAL_ROWS_MIN) or (
            now_s - self._growing_since_s >= self.collection.settings.seal_age_s
        )

    async def flush(self) -> None:
        """Seal, write hot segments, checkpoint delete vectors, publish the manifest, trim the log."""
        async with self._publication:
            async with self._mutation:
                if self._shard.slot > self._stored.manifest.checkpoint_slot:
                    self._shard.seal()
                    self._growing_since_s = None
            sealed = self._shard.sealed
            if not sealed:
                return
            flushed = [await self._flusher.flush(self._shard, one) for one in sealed]
            await self._publish_checkpoint(flushed)
            await self._trim()

    async def _publish_checkpoint(self, flushed: list[Flushed]) -> None:
        # Taken in one moment: every delete of the log up to the checkpoint is in these views.
        present = self._shard.view.segments
        carried = [carry_over(one)[1] for one in flushed]
        entries = await self._deletes.checkpoint(
            [*present, *(view for view in carried if view is not None)], self._stored.manifest
        )
        last = flushed[-1].sealed
        await self._commit_manifest(
            transitions.checkpoint(
                self._stored.manifest,
                epoch=self.epoch,
                flushed=[one.entry for one in flushed if one.entry is not None],
                delete_vectors=entries,
                checkpoint_slot=last.last_slot,
                last_sequence=last.last_sequence,
            )
        )
        async with self._mutation:
            # Rows that died since are in the log behind the checkpoint, and are dead here.
            await self._shared.offload.change(
                lambda: self._shard.replace_sealed([carry_over(one) for one in flushed])
            )

    async def _commit_manifest(self, manifest: Manifest) -> None:
        while True:
            try:
                self._stored = await self._shared.manifests.publish(
                    manifest, expected_revision=self._stored.revision
                )
                return
            except Conflict:
                present = await self._shared.manifests.read(self.id)
                if present.manifest == manifest:
                    self._stored = present
                    return
                raise Fenced(
                    f"the manifest of {self.id} was changed by epoch {present.manifest.epoch}"
                ) from None
            except (Unavailable, UnknownOutcome) as error:
                _log.warning("manifest of %s cannot be stored yet: %s", self.id, error)
                await asyncio.sleep(MANIFEST_RETRY_S)

    async def _trim(self) -> None:
        checkpoint_slot = self._stored.manifest.checkpoint_slot
        gone = [slot for slot in self._data_slots if slot <= checkpoint_slot]
        if not gone:
            return
        await self._shared.objects.delete(
            [wal_key(self.id.collection_id, self.id.number, slot) for slot in gone]
        )
        self._data_slots = [slot for slot in self._data_slots if slot > checkpoint_slot]

    async def publish_compaction(self, task: CompactionTask) -> None:
        """Swap a finished task's sources for its output (INV-2, INV-6); idempotent."""
        async with self._publication:
            manifest = self._stored.manifest
            output = task.output
            held = {entry.segment_id for entry in manifest.segments}
            if output is not None and output.segment_id in held:
                return
            if output is None and not held & set(task.sources):
                return
            sources = set(task.sources)
            # Checks that the sources are all there before anything is loaded.
            transitions.swap_segments(
                manifest, epoch=self.epoch, sources=task.sources, output=output, delete_vector=None
            )
            loaded = None if output is None else await self._loader.load_view(output, None)
            seen: dict[str, DeleteVector] = {}
            if loaded is not None:
                loaded = await self._carry_deletes(loaded, sources, seen)
            vectors = (
                []
                if loaded is None
                else await self._deletes.checkpoint([*self._shard.view.segments, loaded], manifest)
            )
            own = [v for v in vectors if output is not None and v.segment_id == output.segment_id]
            await self._commit_manifest(
                transitions.swap_segments(
                    manifest,
                    epoch=self.epoch,
                    sources=task.sources,
                    output=output,
                    delete_vector=own[0] if own else None,
                )
            )
            async with self._mutation:
                if loaded is not None:
                    loaded = await self._carry_deletes(loaded, sources, seen)
                self._shard.replace_segments(sources, loaded)

    async def _carry_deletes(
        self, output: SegmentView, sources: set[str], seen: dict[str, DeleteVector]
    ) -> SegmentView:
        """Return `output` with every row dead whose source row has died since `seen`."""

        def carry() -> SegmentView:
            carried = output
            for view in self._shard.view.segments:
                segment = view.segment
                if segment.id not in sources or seen.get(segment.id) is view.deletes:
                    continue
                before = seen.get(segment.id)
                died = view.deletes.dead_rows()
                if before is not None:
                    died = np.setdiff1d(died, before.dead_rows(), assume_unique=True)
                seen[segment.id] = view.deletes
                rows = rows_to_kill(carried, segment.ids_at(died), segment.sequences[died])
                carried = SegmentView(carried.segment, carried.deletes.with_dead(rows))
            return carried

        return await self._shared.offload.change(carry)

    def state(self) -> ShardState:
        """Describe the shard."""
        view = self.view
        return ShardState(
            collection_id=self.id.collection_id,
            shard=self.id.number,
            node_id=self._shared.node_id,
            phase=ShardPhase.SERVING.value,
            epoch=self.epoch,
            live_rows=view.live_rows,
            dead_rows=view.dead_rows,
            unindexed_rows=view.unindexed_rows,
            applied_sequence=view.sequence,
            wal_slots=self._shard.slot - self._stored.manifest.checkpoint_slot,
            memory_bytes=view.memory_bytes,
            segments=tuple(_segment_states(self.id.number, view, self.collection.model.name)),
        )


def _segment_states(number: int, view: ShardView, model: str) -> list[SegmentState]:
    states = [
        SegmentState(
            shard=number,
            segment_id=held.segment.id,
            tier=held.segment.entry.tier.value,
            model=held.segment.entry.model,
            index_kind=held.segment.kind.value,
            rows=held.segment.rows,
            dead_rows=held.deletes.dead_count,
            size_bytes=held.segment.entry.size_bytes,
            generation=held.segment.entry.generation,
            created_at_s=held.segment.entry.created_at_s,
            min_sequence=held.segment.entry.min_sequence,
            max_sequence=held.segment.entry.max_sequence,
        )
        for held in view.segments
    ]
    for position, growing in enumerate(view.growing):
        states.append(
            SegmentState(
                shard=number,
                segment_id=f"growing-{position}",
                tier="growing",
                model=model,
                index_kind="flat",
                rows=growing.rows,
                dead_rows=growing.dead_count,
                size_bytes=growing.rows * growing.vectors.shape[1] * 4,
                generation=0,
                created_at_s=0.0,
                min_sequence=int(growing.sequences[0]),
                max_sequence=int(growing.sequences[growing.rows - 1]),
            )
        )
    return states


async def open_shard(
    collection: Collection, number: int, *, assignment_epoch: int, shared: ShardDependencies
) -> OwnedShard:
    """Load the shard, replay its log, and take it over by a fence in the next log slot.

    The former owner serves until the fence; from then on it cannot acknowledge anything (INV-4).
    The manifest is taken by compare-and-swap before this returns, so a fence that was put into a
    stale place (the log was trimmed meanwhile) is never written behind. Raises `Conflict` when others
    keep winning, `DataCorruption` when stored bytes are damaged.
    """
    shard_id = ShardId(collection.id, number)
    for _ in range(OPEN_ATTEMPTS_MAX):
        stored = await shared.manifests.read(shard_id)
        shard = Shard(collection, number)
        loader = SegmentLoader(
            shared.objects, collection, number, cache=shared.cache, offload=shared.offload
        )
        position = LogPosition(stored.manifest.checkpoint_slot + 1, stored.manifest.epoch, [])
        try:
            await load_manifest(shard, stored.manifest, loader)
            await replay_log(shared.objects, shard, position, offload=shared.offload)
            wal = await _fence(shard, position, assignment_epoch, shared=shared)
            taken = await shared.manifests.publish(
                transitions.take_over(stored.manifest, epoch=wal.epoch),
                expected_revision=stored.revision,
            )
        except (Conflict, NotFound) as error:
            # The former owner published or trimmed meanwhile, or somebody else took over.
            _log.info("opening %s again: %s", shard_id, error)
            continue
        left = await list_trimmable(
            shared.objects,
            collection.id,
            number,
            checkpoint_slot=stored.manifest.checkpoint_slot,
        )
        return OwnedShard(
            collection,
            number,
            shared=shared,
            shard=shard,
            stored=taken,
            wal=wal,
            loader=loader,
            data_slots=[*left, *position.data_slots],
        )
    raise Conflict(f"shard {shard_id} could not be taken over in {OPEN_ATTEMPTS_MAX} attempts")


async def _fence(
    shard: Shard, position: LogPosition, assignment_epoch: int, *, shared: ShardDependencies
) -> WalWriter:
    """Put an empty object with a new epoch into the next free slot, replaying what comes before."""
    while True:
        epoch = max(position.epoch, assignment_epoch) + 1
        wal = WalWriter(
            shared.objects,
            ShardId(shard.collection.id, shard.number),
            epoch=epoch,
            writer=shared.writer,
            next_slot=position.next_slot,
        )
        body = wal.encode([], last_sequence=shard.sequence)
        try:
            slot = await wal.put(body)
        except Fenced:
            await replay_log(shared.objects, shard, position, offload=shared.offload)
            continue
        shard.apply((), slot=slot, last_sequence=shard.sequence)
        return wal
