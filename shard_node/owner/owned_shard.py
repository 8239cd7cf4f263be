"""One shard that this node owns: writes, flushes, publications, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from annheal.errors import AnnhealError, Fenced
from annheal.model.collection import Collection
from annheal.model.measures.part_health import PartHealth
from annheal.model.topology.shard import ShardId
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask
from annheal.model.write import WriteAnswer, WriteOperation
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.manifest_store import StoredManifest
from annheal.shard_node.owner.publication import MANIFEST_RETRY_S, RETRYABLE, Publication
from annheal.shard_node.owner.replay import SegmentLoader
from annheal.shard_node.owner.shard_state import describe
from annheal.shard_node.owner.wal_writer import WalWriter
from annheal.shard_node.owner.write_path import WritePath
from annheal.shard_node.rows.shard import Shard
from annheal.shard_node.rows.view import ShardView

CHECKPOINT_SLOTS_MAX = 512
"""Log objects since the last checkpoint after which growing rows are sealed."""
IDLE_SEAL_S = 3.0
"""After this long without a write growing rows are sealed, so that they soon get a graph."""
IDLE_SEAL_ROWS_MIN = 1_000
MAINTENANCE_INTERVAL_S = 0.5
FLUSH_RETRY_MAX_S = 30.0

_log = logging.getLogger(__name__)


class OwnedShard:
    """A shard in one epoch of this owner. `opening.open_shard` makes it; its task is `run`."""

    def __init__(
        self,
        shard: Shard,
        *,
        shared: ShardDependencies,
        stored: StoredManifest,
        wal: WalWriter,
        loader: SegmentLoader,
        data_slots: list[int],
    ) -> None:
        self.id = ShardId(shard.collection.id, shard.number)
        self._shared = shared
        self._shard = shard
        self._wal = wal
        self._changed = asyncio.Event()
        self._last_write_s = shared.clock()
        # Replayed rows are flushed after the same time as rows written now.
        self._growing_since_s = self._last_write_s if shard.growing_rows else None
        self._publishing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._released = False
        mutation = asyncio.Lock()
        self._publication = Publication(
            shard,
            epoch=wal.epoch,
            stored=stored,
            shared=shared,
            loader=loader,
            mutation=mutation,
            data_slots=data_slots,
        )
        self._writes = WritePath(
            shard,
            wal,
            mutation=mutation,
            lanes=shared.lanes,
            disks=shared.disks,
            on_applied=self._note_write,
        )

    @property
    def collection(self) -> Collection:
        """The collection, with its present settings."""
        return self._shard.collection

    def change_settings(self, collection: Collection) -> None:
        """Use the changed settings of `collection` from the next search and write on."""
        present = self._shard.collection
        changed = present.with_changes_of(collection)
        if changed != present:
            self._shard.collection = changed
            self._changed.set()  # with a shorter `seal_age_s` a flush may be due

    @property
    def view(self) -> ShardView:
        """The present rows; raises `Fenced` after `release`."""
        if self._released:
            raise Fenced(f"shard {self.id} was released by this node")
        return self._shard.view

    @property
    def serving_view(self) -> ShardView:
        """The present rows as searched by the model that serves; raises as `view` does."""
        return self.view.of_model(self.collection.model.name)

    @property
    def epoch(self) -> int:
        """The epoch in which this node owns the shard."""
        return self._wal.epoch

    @property
    def log(self) -> PartHealth:
        """Whether the shard's log can be written."""
        return self._wal.log.health

    @property
    def deposed(self) -> bool:
        """Whether a newer owner is known to have taken over."""
        return self._wal.deposed

    async def write(self, operation: WriteOperation, *, timeout_s: float) -> WriteAnswer:
        """Write one operation; see `WritePath.submit`."""
        return await self._writes.submit(operation, timeout_s=timeout_s)

    async def verify_owner(self) -> None:
        """Raise `Fenced` if a newer owner took over before this call; for strong reads."""
        try:
            await self._wal.verify_owner()
        except Fenced:
            self.close()
            raise

    async def flush(self) -> None:
        """Write all growing rows as hot segments, checkpoint delete vectors, trim the log."""
        await self._publish(self._publication.flush(seal=True))

    async def publish_compaction(self, task: CompactionTask) -> None:
        """Replace the sources of a finished task by its output; see `Publication.swap`."""
        await self._publish(self._publication.swap(task))

    async def publish_part(self, task: CompactionTask) -> None:
        """Give a segment the vector part of a finished backfill; see `Publication.add_part`."""
        await self._publish(self._publication.add_part(task))

    async def run(self) -> None:
        """Commit writes and flush rows until the shard is lost, closed or cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                maintenance = group.create_task(self._maintain())
                await self._writes.run()
                maintenance.cancel()
        finally:
            self.close()
            while self._publishing:
                for task in self._publishing:
                    task.cancel()
                await asyncio.wait(self._publishing)

    def close(self) -> None:
        """Refuse further writes and end `run`. Writes that wait are not acknowledged."""
        self._closed = True
        self._writes.close(Fenced(f"shard {self.id} was released by this node"))

    def release(self) -> None:
        """Drop the rows, after `run` has ended.

        Tracebacks of cancelled tasks refer to this object until the next garbage collection. Mapped
        files that are deleted must not take disk space until then.
        """
        self._released = True
        self._shard.release()

    def state(self) -> ShardState:
        """Return the state that the node reports of the shard."""
        return describe(
            self.id,
            self.view,
            node_id=self._shared.node_id,
            collection=self.collection,
            epoch=self.epoch,
            wal_slots=self._shard.slot - self._publication.manifest.checkpoint_slot,
        )

    async def _publish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a change of the manifest to its end, even if the caller is cancelled.

        After half a change, stored but not made in memory, the shard would have to be opened again.
        """
        if self._closed:
            work.close()
            raise Fenced(f"shard {self.id} is closed on this node")
        task = asyncio.create_task(work, name=f"publish {self.id}")
        self._publishing.add(task)
        task.add_done_callback(self._published)
        try:
            await asyncio.wait([task])
        finally:
            if not task.done():
                _log.info("a change of %s continues without its caller", self.id)
        if task.cancelled():
            raise Fenced(f"shard {self.id} was released by this node")
        task.result()

    def _published(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Fenced):
            _log.warning("shard %s is lost: %s", self.id, error)
            self._wal.deposed = True
            self.close()
        elif error is not None and not isinstance(error, AnnhealError):
            # A bug, perhaps after the manifest was changed and before the rows were: open it again.
            _log.error("shard %s broke", self.id, exc_info=error)
            self.close()

    def _note_write(self) -> None:
        now_s = self._shared.clock()
        self._last_write_s = now_s
        if self._growing_since_s is None:
            self._growing_since_s = now_s
        self._publication.data_slots.append(self._shard.slot)
        if self._shard.sealed:
            self._changed.set()

    async def _maintain(self) -> None:
        """Seal and flush growing rows by their size, their age, and when no writes come."""
        failures = 0
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it can swallow a cancellation.
                async with asyncio.timeout(MAINTENANCE_INTERVAL_S):
                    await self._changed.wait()
            self._changed.clear()
            seal = self._should_seal()
            if not seal and not self._shard.sealed:
                continue
            if seal:
                self._growing_since_s = None
            try:
                await self._publish(self._publication.flush(seal=seal))
                failures = 0
            except RETRYABLE as error:
                _log.warning("flush of %s will be repeated: %s", self.id, error)
                await asyncio.sleep(min(FLUSH_RETRY_MAX_S, MANIFEST_RETRY_S * 2**failures))
                failures = min(failures + 1, 16)
            except Fenced:
                return

    def _should_seal(self) -> bool:
        behind = self._shard.slot - self._publication.manifest.checkpoint_slot
        if behind >= CHECKPOINT_SLOTS_MAX and not self._shard.sealed:
            return True
        if self._growing_since_s is None or not self._shard.growing_rows:
            return False
        now_s = self._shared.clock()
        idle = now_s - self._last_write_s >= IDLE_SEAL_S
        return (idle and self._shard.growing_rows >= IDLE_SEAL_ROWS_MIN) or (
            now_s - self._growing_since_s >= self.collection.settings.seal_age_s
        )
