"""Vocabulary for tests of owned shards: real stores, owners that can die or be held at any call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.collection import (
    AttributeField,
    AttributeType,
    Collection,
    CollectionSettings,
    Metric,
    ModelSpec,
    Schema,
)
from annheal.model.records import ARROW_TYPES, RecordBatch, RecordPatch, Versions, arrow_schema
from annheal.model.write import (
    DeleteIds,
    DeleteWhere,
    Update,
    Upsert,
    WriteAnswer,
    WriteOperation,
)
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.clock import Clock, boottime_s
from annheal.runtime.host.disk import DiskWatch
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.manifest_store import ManifestStore
from annheal.shard_node.owner.opening import open_shard
from annheal.shard_node.owner.owned_shard import OwnedShard

DIMENSION = 4
COLOURS = ("red", "green", "blue")
SCHEMA: Schema = (
    AttributeField("colour", AttributeType.KEYWORD),
    AttributeField("size", AttributeType.INT64),
)
WRITE_TIMEOUT_S = 20.0

Hook = Callable[[str, str, str], Awaitable[None]]
"""Called with the moment (before, after), the operation and the key of every call of a store."""


def shard_collection(
    *, metric: Metric = Metric.L2, schema: Schema = SCHEMA, **settings: Any
) -> Collection:
    # No flush by itself: the tests say when.
    quiet = {"seal_age_s": 3_600.0, **settings}
    return Collection(
        id="c1",
        name="things",
        models=(ModelSpec("m", DIMENSION, metric),),
        schema=schema,
        shard_count=1,
        settings=CollectionSettings(**quiet),
    )


@functools.lru_cache(maxsize=10_000)
def vector_of(record_id: str, version: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng([*record_id.encode(), version])
    vector = rng.standard_normal(DIMENSION).astype(np.float32)
    vector.flags.writeable = False
    return vector


def record_batch(
    ids: Sequence[str], *, version: int = 0, vectors: npt.NDArray[np.float32] | None = None
) -> RecordBatch:
    """Return rows that are functions of id and version: a stale part is found wherever it is."""
    if vectors is None:
        vectors = np.array([vector_of(i, version) for i in ids], dtype=np.float32)
    columns: list[pa.Array[Any]] = [
        pa.array([colour_of(i, version) for i in ids], type=ARROW_TYPES[SCHEMA[0].type]),
        pa.array([size_of(i, version) for i in ids], type=ARROW_TYPES[SCHEMA[1].type]),
    ]
    return RecordBatch(
        ids=pa.array(ids, type=pa.string()),
        vectors=vectors.reshape(len(ids), DIMENSION),
        attributes=pa.RecordBatch.from_arrays(columns, schema=arrow_schema(SCHEMA)),
        payloads=pa.array([payload_of(i, version) for i in ids], type=pa.binary()),
    )


def record_patch(ids: Sequence[str], *, version: int) -> RecordPatch:
    """Return a patch that replaces every part of the records."""
    batch = record_batch(ids, version=version)
    return RecordPatch(batch.ids, batch.attributes, batch.payloads, batch.vectors)


def colour_of(record_id: str, version: int) -> str:
    return COLOURS[(sum(record_id.encode()) + version) % len(COLOURS)]


def size_of(record_id: str, version: int) -> int | None:
    size = (sum(record_id.encode()) * 7 + version * 3) % 10
    return None if size == 9 else size


def payload_of(record_id: str, version: int) -> bytes:
    return b'{"v": %d}' % version


async def _no_hook(moment: str, operation: str, key: str) -> None:
    return None


class HookedObjects:
    """An object store that calls a hook before and after every call."""

    def __init__(self, inner: ObjectStore, hook: Hook) -> None:
        self._inner = inner
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(first: Any, *args: Any) -> Any:
            key = first if isinstance(first, str) else " ".join(first)
            await self._hook("before", name, key)
            answer = await method(first, *args)
            await self._hook("after", name, key)
            return answer

        return call

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Any]:
        await self._hook("before", "list", prefix)
        async for stat in self._inner.list(prefix, after=after):
            yield stat


class HookedMeta:
    """A metadata store with a hook; watches are not hooked."""

    def __init__(self, inner: Any, hook: Hook) -> None:
        self._inner = inner
        self._hook = hook

    async def get(self, key: str) -> Any:
        await self._hook("before", "meta.get", key)
        return await self._inner.get(key)

    async def commit(self, operations: Any, *, compares: Any = ()) -> Any:
        await self._hook("before", "meta.commit", operations[0].key)
        revision = await self._inner.commit(operations, compares=compares)
        await self._hook("after", "meta.commit", operations[0].key)
        return revision

    def watch(self, prefix: str, *, after_revision: int) -> Any:
        return self._inner.watch(prefix, after_revision=after_revision)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any) -> Any:
            await self._hook("before", f"meta.{name}", "")
            return await method(*args)

        return call


class DeadError(Exception):
    """The process that made this call is dead; nothing it does has an effect."""


class Mortal:
    """A hook that kills: `steps` calls after `arm` nothing has an effect any more."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._dies_at: int | None = None
        self._died = False

    def arm(self, steps: int | None) -> None:
        """Forget the calls so far; die after `steps` more (None: never)."""
        self.calls.clear()
        self._dies_at = steps
        self._died = False

    @property
    def died(self) -> bool:
        """Whether a call was made after its death."""
        return self._died

    async def __call__(self, moment: str, operation: str, key: str) -> None:
        if self._dies_at is not None and len(self.calls) >= self._dies_at:
            self._died = True
            raise DeadError(f"dead {moment} {operation} {key}")
        self.calls.append(f"{moment} {operation} {key}")


class Gate:
    """A hook that holds the call number `holds_at` until `release` is called.

    Calls for the files of segments are not counted, but for the last of each: nothing that
    another owner does can tell them apart.
    """

    def __init__(self, holds_at: int) -> None:
        self.holds_at = holds_at
        self._open = asyncio.Event()
        self.held = asyncio.Event()
        self.calls: list[str] = []

    async def __call__(self, moment: str, operation: str, key: str) -> None:
        if key.startswith("segments/") and not key.endswith("segment.json"):
            return
        self.calls.append(f"{moment} {operation} {key}")
        if len(self.calls) - 1 == self.holds_at:
            self.held.set()
            await self._open.wait()

    def release(self) -> None:
        self._open.set()


class Owner:
    """An opened shard and the task that runs it."""

    def __init__(self, shard: OwnedShard, lanes: Lanes) -> None:
        self.shard = shard
        self.task = asyncio.create_task(shard.run())
        self._lanes = lanes

    async def upsert(self, *ids: str, version: int = 0) -> WriteAnswer:
        return await self.write(Upsert(record_batch(ids, version=version)))

    async def update(
        self, *ids: str, version: int, if_versions: Versions | None = None
    ) -> WriteAnswer:
        return await self.write(Update(record_patch(ids, version=version), if_versions))

    async def delete(self, *ids: str) -> WriteAnswer:
        return await self.write(DeleteIds(ids))

    async def delete_where(self, filter: Any) -> WriteAnswer:
        return await self.write(DeleteWhere(filter))

    async def write(
        self, operation: WriteOperation, *, timeout_s: float = WRITE_TIMEOUT_S
    ) -> WriteAnswer:
        return await self.shard.write(operation, timeout_s=timeout_s)

    async def stop(self) -> None:
        """End the tasks, as the end of the process would; nothing is flushed."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await self.task
        self._lanes.close()


class ShardWorld:
    """The stores of one collection, and owners over them that share nothing else."""

    def __init__(self, root: Path, *, collection: Collection | None = None) -> None:
        self.root = root
        self.collection = collection or shard_collection()
        self.meta = SqliteMetaStore(root / "meta.sqlite")
        self.objects = LocalObjectStore(root / "objects")
        self.owners: list[Owner] = []
        self.cache = root / "cache"

    async def open(
        self,
        *,
        hook: Hook = _no_hook,
        objects: ObjectStore | None = None,
        node_id: str = "a",
        boottime: Clock = boottime_s,
    ) -> Owner:
        lanes = Lanes()
        shared = ShardDependencies(
            objects=HookedObjects(objects or self.objects, hook),  # type: ignore[arg-type]
            manifests=ManifestStore(HookedMeta(self.meta, hook)),  # type: ignore[arg-type]
            lanes=lanes,
            node_id=node_id,
            writer=secrets.token_bytes(16),
            cache=self.cache / node_id,
            scratch=self.root / "scratch" / node_id,
            boottime=boottime,
            disks=DiskWatch([], reserve_bytes=0, process="test"),
        )
        try:
            shard = await open_shard(self.collection, 0, assignment_epoch=0, shared=shared)
        except BaseException:
            lanes.close()
            raise
        owner = Owner(shard, lanes)
        self.owners.append(owner)
        return owner

    async def log_slots(self) -> list[int]:
        return [
            int(stat.key.rsplit("/", 1)[1]) async for stat in self.objects.list("wal/c1/00000/")
        ]

    async def close(self) -> None:
        for owner in self.owners:
            await owner.stop()
        await self.meta.close()
        await self.objects.close()


@contextlib.asynccontextmanager
async def shard_world(
    root: Path, *, collection: Collection | None = None
) -> AsyncIterator[ShardWorld]:
    world = ShardWorld(root, collection=collection)
    try:
        yield world
    finally:
        await world.close()
