"""A shard with everything that heals it, in one process: owner, compactors, planner, collector.

Real stores on disk, the real code of every role; only the clock is the test's, and every store
call of a role passes its `Reins`, so that the role can be killed, held or failed at any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from annheal.compactor.admission import Budget, QueuedTask, plan_claim
from annheal.compactor.settings import CompactorSettings
from annheal.compactor.worker import LEFT_IN_QUEUE_ERRORS, Worker
from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.compaction.plan import (
    CompactionSettings,
    ShardObservation,
    plan_compactions,
    plan_manual,
)
from annheal.coordinator.compaction.task_book import UNFINISHED, TaskBook
from annheal.coordinator.leader.gc import GarbageCollector
from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    Fenced,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.metastore.table import Stored
from annheal.model.collection import Collection
from annheal.model.topology.cluster import GarbageReport
from annheal.model.topology.manifest import Manifest, SegmentEntry
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStat
from annheal.runtime.host.disk import DiskWatch
from annheal.runtime.tasks import TaskScope
from annheal.segment import Segment
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.replay import LogPosition, SegmentLoader, load_manifest, replay_log
from annheal.shard_node.rows.shard import Shard
from tests.support.shards import DeadError, HookedMeta, HookedObjects, Owner, ShardWorld

GRACE_S = 3_600.0
PLAN = CompactionSettings(
    flat_segments_max=2, flat_rows_max=20, graph_rows_min=10, graphs_max=2, failed_pause_s=60.0
)
READS = ("get", "fetch", "list", "meta.get", "meta.list")
ATTEMPTS_AT_ONCE = 2
BUDGET = Budget(memory_bytes=1 << 30, disk_bytes=1 << 30)


class Clock:
    """Real time and what the test has let pass."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.passed_s


class ClockedObjects(LocalObjectStore):
    """A directory whose objects are as old as the test's clock says."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root)
        self._clock = clock

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        await super().put_if_absent(key, body)
        self._date(key)

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        await super().put_file_if_absent(key, path)
        self._date(key)

    def _date(self, key: str) -> None:
        now_s = self._clock()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._root / key, (now_s, now_s))


class Reins:
    """A hook of `shards.HookedObjects`: kills, holds or fails a role at a chosen call."""

    def __init__(self) -> None:
        self.dead = False
        self.metadata_away = False
        self.held = asyncio.Event()
        self._freed = asyncio.Event()
        self._dies_in = self._holds_in = self._fails_in = -1
        self._holds_at = ""

    def die_in(self, calls: int) -> None:
        """Die after so many more calls."""
        self._dies_in = calls

    def hold_at(self, place: int | str | None) -> None:
        """Keep a call waiting until `free`: after so many more, or the first `moment operation`."""
        self._holds_at = place if isinstance(place, str) else ""
        self._holds_in = place if isinstance(place, int) else -1

    def fail_in(self, calls: int | None) -> None:
        """Fail the call after so many more, once."""
        self._fails_in = -1 if calls is None else calls

    def free(self) -> None:
        """Let the held call go on, and hold and fail no other."""
        self.hold_at(None)
        self.fail_in(None)
        self._freed.set()

    def renew(self) -> None:
        """Be ready to hold another call."""
        self.held.clear()
        self._freed.clear()

    def kill(self) -> None:
        """Let no call have an effect any more."""
        self.dead = True
        self._freed.set()

    def die_here(self) -> None:
        """Die now: what a fail point calls."""
        self.kill()
        raise DeadError("dead at a fail point")

    async def __call__(self, moment: str, operation: str, key: str) -> None:
        what = f"{moment} {operation} {key}"
        if self._reached("_dies_in"):
            self.kill()
        if self._reached("_holds_in") or self._holds_at == f"{moment} {operation}":
            self.hold_at(None)
            self.held.set()
            await self._freed.wait()
        if self.dead:
            raise DeadError(f"dead {what}")
        if self._reached("_fails_in"):
            lost = moment == "after" and operation not in (*READS, "delete")
            raise (UnknownOutcome if lost else Unavailable)(f"{what} fails")
        if self.metadata_away and operation.startswith("meta.") and moment == "before":
            raise Unavailable("the metadata store is away")

    def _reached(self, counter: str) -> bool:
        left = int(getattr(self, counter))
        setattr(self, counter, max(left - 1, -1))
        return left == 0


class Durable:
    """What lies in the store at one moment. Objects never change, so each is read only once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bodies: dict[str, bytes] = {}
        self._keys: dict[str, float] = {}

    def look(self) -> None:
        """See what there is now."""
        self._keys = {
            entry.relative_to(self._root).as_posix(): 0.0
            for entry in sorted(self._root.rglob("*"))
            if "+tmp" not in entry.parts and entry.is_file()
        }

    async def get(self, key: str) -> bytes:
        if key not in self._keys:
            raise NotFound(f"object {key} does not exist")
        if key not in self._bodies:
            try:
                self._bodies[key] = (self._root / key).read_bytes()
            except FileNotFoundError as error:  # trimmed since the look
                raise NotFound(f"object {key} is gone") from error
        return self._bodies[key]

    async def fetch(self, key: str, destination: Path) -> Path:
        await self.get(key)
        return self._root / key

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        for key in self._keys:
            if key.startswith(prefix) and key > after:
                yield ObjectStat(key, len(self._bodies.get(key, b"")), 0.0)


class _RememberingLoader(SegmentLoader):
    """Loads a segment once, however often the shard is replayed."""

    def __init__(self, world: HealingWorld, lanes: Lanes) -> None:
        super().__init__(
            world.durable,  # type: ignore[arg-type]
            world.collection,
            0,
            cache=world.root / "replay",
            lanes=lanes,
        )
        self._known = world.segments

    async def load(self, entry: SegmentEntry) -> Segment:
        if entry.segment_id not in self._known:
            self._known[entry.segment_id] = await super().load(entry)
        return self._known[entry.segment_id]


class HealingWorld(ShardWorld):
    """The stores of one shard and everybody who works on it."""

    def __init__(self, root: Path, *, collection: Collection) -> None:
        super().__init__(root, collection=collection)
        self.clock = Clock()
        self.meta = SqliteMetaStore(root / "meta.sqlite", wall_clock=self.clock)
        self.objects = ClockedObjects(root / "objects", self.clock)
        self.compactor_dir = root / "compactor"
        self._scope = TaskScope("healing-world")
        self._catalog = Catalog(self.meta)
        self._tasks = TaskBook(self._catalog, self.meta, wall_clock=self.clock)
        self._ids = itertools.count()
        self._workers = itertools.count()
        self._lanes = Lanes()
        self.durable = Durable(root / "objects")
        self.segments: dict[str, Segment] = {}

    async def start(self) -> None:
        await self.meta.commit(
            [Put(keys.collection_key(self.collection.name), encode_value(self.collection))]
        )
        await self._catalog.start(self._scope)
        self.new_leader()

    async def close(self) -> None:
        await self._scope.stop()
        self._lanes.close()
        await super().close()

    # ------------------------------------------------------------------------------- leader

    def new_leader(self) -> None:
        """Another coordinator leads: it has never seen anything unreferenced."""
        self.garbage = GarbageCollector(
            self._catalog, self.meta, self.objects, grace_s=GRACE_S, wall_clock=self.clock
        )

    async def plan(self, owner: Owner, *, full: bool, quiet: bool) -> int:
        """Add the tasks that the planner asks for; return how many."""
        tasks = [one.value for one in await self.tasks()]
        state = owner.shard.state()

        def new_id() -> str:
            return f"t{next(self._ids)}"

        if full:
            planned = plan_manual(
                self.collection, [state], tasks, now_s=self.clock(), new_id=new_id, settings=PLAN
            )
        else:
            planned = plan_compactions(
                self.collection,
                [ShardObservation(state, 1e9 if quiet else 0.0)],
                tasks,
                now_s=self.clock(),
                settings=PLAN,
                new_id=new_id,
            )
        return await self._tasks.add(planned)

    async def publish(self, owner: Owner, task_id: str, *, reported: bool) -> None:
        """Hand a built task to `owner` as the leader does; it may die before it notes the end.

        What the leader takes for a stale task must be one: neither a lost output (INV-5) nor one
        with other rows than its sources (INV-6).
        """
        stored = await self._tasks.get(task_id)
        phase = TaskPhase.PUBLISHED
        try:
            await owner.shard.publish_compaction(stored.value)
        except (FailedPrecondition, NotFound) as error:
            if error.reason != "STALE_COMPACTION":
                raise AssertionError(f"INV-5/6: {error.reason}: {error}") from error
            phase = TaskPhase.CANCELLED
        except (Fenced, Unavailable, UnknownOutcome, DeadError):
            return
        if reported:
            await self._tasks.finish(stored, phase)

    async def collect(self) -> GarbageReport:
        return await self.garbage.collect()

    # ------------------------------------------------------------------------------ workers

    async def attempt(self, reins: Reins) -> asyncio.Task[None] | None:
        """Let a compactor begin the task that it would claim; None: there is none."""
        claims = await self.meta.list(keys.CLAIMS_PREFIX)
        claimed = {keys.parse_id(keys.CLAIMS_PREFIX, item.key) for item in claims.items}
        queued = plan_claim(
            [QueuedTask(one.value, one.mod_revision) for one in await self.tasks()],
            claimed=claimed,
            total=BUDGET,
            free=BUDGET,
            now_s=self.clock(),
        )
        if queued is None:
            return None
        worker = Worker(
            CompactorSettings(f"w{next(self._workers)}", self.compactor_dir, threads=1, nice=0),
            HookedMeta(self.meta, reins),  # type: ignore[arg-type]
            HookedObjects(self.objects, reins),  # type: ignore[arg-type]
            disks=DiskWatch([], reserve_bytes=0, process="test"),
            now_s=self.clock,
        )

        async def work() -> None:
            with contextlib.suppress(DeadError, *LEFT_IN_QUEUE_ERRORS):
                await worker.tasks.start()
                following = asyncio.create_task(worker.tasks.run())
                try:
                    await worker.work_on(queued)
                finally:
                    following.cancel()
                    await ended(following)

        return asyncio.create_task(work(), name=f"attempt at {queued.task.id}")

    # -------------------------------------------------------------------------------- state

    async def tasks(self) -> list[Stored[CompactionTask]]:
        """Return every task as stored, oldest first."""
        snapshot = await self.meta.list(keys.TASKS_PREFIX)
        found = [
            Stored(
                item.key, decode_value(item.value, CompactionTask, key=item.key), item.mod_revision
            )
            for item in snapshot.items
        ]
        return sorted(found, key=lambda one: int(one.value.id[1:]))

    async def built(self) -> list[CompactionTask]:
        return [one.value for one in await self.tasks() if one.value.phase is TaskPhase.BUILT]

    async def unfinished(self) -> list[CompactionTask]:
        return [one.value for one in await self.tasks() if one.value.phase in UNFINISHED]

    async def manifest(self) -> Manifest:
        key = keys.manifest_key(self.collection.id, 0)
        stored = await self.meta.get(key)
        assert stored is not None
        return decode_value(stored.value, Manifest, key=key)

    async def listing(self, prefix: str = "") -> list[ObjectStat]:
        return [stat async for stat in self.objects.list(prefix)]

    async def replayed(self, manifest: Manifest) -> Shard:
        """Return the shard as whoever opened it now would find it; nobody is deposed by that."""
        shard = Shard(self.collection, 0)
        loader = _RememberingLoader(self, self._lanes)
        position = LogPosition(manifest.checkpoint_slot + 1, manifest.epoch, [])
        await load_manifest(shard, manifest, loader)
        await replay_log(self.durable, shard, position, lanes=self._lanes)
        return shard

    async def settle(self, owner: Owner) -> None:
        """Bring every task to its end, as compactors and a leader that nothing disturbs do."""
        for _ in range(100):
            if not await self.unfinished():
                return
            self.clock.passed_s += 120.0  # claims of the dead end, failures have rested
            work = await self.attempt(Reins())
            if work is not None:
                await work
            for task in await self.built():
                await self.publish(owner, task.id, reported=True)
        raise AssertionError(f"tasks do not end: {await self.unfinished()}")


async def ended(work: asyncio.Task[None]) -> None:
    """Wait for the end of what a role did, which may have been cut short."""
    with contextlib.suppress(DeadError, AnnhealError, asyncio.CancelledError):
        await work
