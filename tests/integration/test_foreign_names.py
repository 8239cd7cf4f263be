"""Strangers' files between Annheal's objects and keys stop nothing, are logged once, and stay."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from prometheus_client import generate_latest

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.leader.gc import GarbageCollector
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import collection_key, shard_key
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.measures.part_health import PartKind
from annheal.model.topology.shard import Assignment
from annheal.model.topology.state import ShardState
from annheal.model.write import CountRequest, DeleteIds, Upsert, WriteRequest
from annheal.objectstore.factory import open_object_store
from annheal.objectstore.own import OwnObjects
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.recall import RecallMemory, load_memory, store_memory
from annheal.runtime.metrics import Metrics
from annheal.runtime.tasks import TaskScope
from annheal.shard_node import ownership
from annheal.shard_node.app import not_listening, running_node
from annheal.shard_node.node import Node
from annheal.shard_node.ownership import REOPEN_DELAY_MAX_S, reopen_delay_s
from annheal.shard_node.settings import ShardNodeSettings
from annheal.shards.object_keys import ObjectKind, parse_key, wal_prefix
from tests.support.s3_server import S3Server
from tests.support.shards import DIMENSION, record_batch, shard_collection
from tests.unit.test_object_keys import FOREIGN

PATIENCE_S = 30.0
COLLECTION = shard_collection()


@pytest.fixture(autouse=True)
def _quick_reopening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "REOPEN_DELAY_S", 0.02)


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "objects")
        return
    server: S3Server = request.getfixturevalue("s3_server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setitem(os.environ, name, value)
        yield server.url(prefix=uuid4().hex)


@asynccontextmanager
async def serving(folder: Path, meta: SqliteMetaStore, objects: ObjectStore) -> AsyncIterator[Node]:
    settings = ShardNodeSettings("a", data_dir=folder / "node")
    async with running_node(settings, meta, objects, listen=not_listening) as (node, _):
        await settled(node)
        yield node


async def settled(node: Node, *, shards: int = 1) -> tuple[ShardState, ...]:
    """Return the states of all shards as soon as each is served or has failed."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            states = await node.shard_states()
            if len(states) == shards and all(one.phase != "loading" for one in states):
                return states
            await asyncio.sleep(0.02)


async def litter(store: ObjectStore, segment_id: str) -> set[str]:
    """Put strangers' objects everywhere; return their keys."""
    folders = [f"{kind}/c1/00000" for kind in ObjectKind if kind is not ObjectKind.DROPPED]
    folders += ["wal", "segments/c1", f"segments/c1/00000/{segment_id}"]
    folders += [f"deletes/c1/00000/{segment_id}"]
    keys = {f"{folder}/{name}" for folder in folders for name in FOREIGN}
    keys |= {f"dropped/{name}" for name in (".DS_Store", "c1.bak")}
    for key in keys:
        await store.put_if_absent(key, b"not ours")
    return keys


async def litter_metadata(meta: SqliteMetaStore) -> None:
    manifest = await meta.get("manifests/c1/00000")
    assert manifest is not None
    assignment = encode_value(Assignment("c1", 0, target="a"))
    await meta.commit(
        [
            Put("shards/c1/00000.bak", assignment),
            Put("shards/c1/00001", assignment),
            Put("shards/junk", b"junk"),
            Put("manifests/c1/00000.bak", manifest.value),
            Put("manifests/junk", b"junk"),
            Put("nodes/junk", b"junk"),
        ]
    )


async def test_strangers_stop_no_shard_and_are_never_deleted(
    tmp_path: Path, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    meta, store = SqliteMetaStore(tmp_path / "meta.sqlite"), open_object_store(store_url)
    metrics = Metrics()
    objects = OwnObjects(store, metrics)
    await meta.commit(
        [
            Put(collection_key("things"), encode_value(COLLECTION)),
            Put(shard_key("c1", 0), encode_value(Assignment("c1", 0, target="a"))),
        ]
    )
    async with serving(tmp_path, meta, objects) as node:
        await node.write(WriteRequest("c1", 0, Upsert(record_batch(["a", "b", "c"]))))
        await node.flush("c1", 0)
        await node.write(WriteRequest("c1", 0, DeleteIds(("a",))))
        await node.flush("c1", 0)
        (state,) = await node.shard_states()
    memory = RecallMemory("m", 1.0, vectors=np.zeros((0, DIMENSION), dtype=np.float32))
    await store_memory(objects, "c1", 0, memory, epoch=1, number=1)

    foreign = await litter(store, state.segments[0].segment_id)
    await litter_metadata(meta)
    ours = {one async for one in keys_of(store)} - foreign

    for used in (objects, store):  # with and without the wrapper that reports
        async with serving(tmp_path, meta, used) as node:
            (state,) = await node.shard_states()
            assert (state.phase, state.error) == ("serving", "")
            assert await node.count(CountRequest("c1", 0)) == 2
            await node.write(WriteRequest("c1", 0, Upsert(record_batch(["b"], version=1))))
            await node.flush("c1", 0)
            notes = {one.kind: one.note for one in await node.health()}
            reported = notes[PartKind.OBJECT_READS]
            assert ("not Annheal's and ignored" in reported) is (used is objects), reported
        assert await load_memory(used, "c1", 0) is not None
        await store_memory(used, "c1", 0, memory, epoch=2 + (used is store), number=1)
        await collect(meta, used)

    left = {one async for one in keys_of(store)}
    assert foreign <= left  # never deleted
    assert {one for one in ours if one.startswith("segments/")} <= left
    said = [one for one in caplog.messages if "not one of Annheal's" in one]
    assert len(said) == len(set(said)) == len(foreign)
    assert b'annheal_foreign_objects_total{part="wal"}' in generate_latest(metrics.registry)
    await store.close()
    await meta.close()


async def keys_of(store: ObjectStore) -> AsyncIterator[str]:
    for kind in ObjectKind:
        async for stat in store.list(kind.prefix):
            yield stat.key


async def collect(meta: SqliteMetaStore, objects: ObjectStore) -> None:
    """Collect garbage, and again after the grace period."""
    scope, clock = TaskScope("test"), iter((4e9, 5e9))
    now_s = [next(clock)]
    catalog = Catalog(meta)
    await catalog.start(scope)
    collector = GarbageCollector(catalog, meta, objects, grace_s=60.0, wall_clock=lambda: now_s[0])
    await collector.collect()
    now_s[0] = next(clock)
    report = await collector.collect()
    assert report.kinds
    await scope.stop()


class Broken:
    """A store in which the log of one shard provokes what nobody expected."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.broken = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        if self.broken and prefix.startswith(wal_prefix("c1", 0)):
            raise KeyError(prefix)
        return self._inner.list(prefix, after=after)


async def test_what_nobody_expected_fails_one_shard_and_no_process(tmp_path: Path) -> None:
    meta, store = SqliteMetaStore(tmp_path / "meta.sqlite"), open_object_store(str(tmp_path / "o"))
    await meta.commit(
        [
            Put(collection_key("things"), encode_value(COLLECTION)),
            *(
                Put(shard_key("c1", number), encode_value(Assignment("c1", number, target="a")))
                for number in (0, 1)
            ),
        ]
    )
    settings = ShardNodeSettings("a", data_dir=tmp_path / "node")
    async with running_node(settings, meta, store, listen=not_listening) as (node, _):
        await settled(node, shards=2)
        await node.write(WriteRequest("c1", 0, Upsert(record_batch(["a"]))))
    broken = Broken(store)
    async with running_node(settings, meta, broken, listen=not_listening) as (node, scope):  # type: ignore[arg-type]
        failed, served = await settled(node, shards=2)
        assert (failed.phase, served.phase) == ("failed", "serving")
        assert "KeyError" in failed.error
        await node.write(WriteRequest("c1", 1, Upsert(record_batch(["b"]))))
        broken.broken = False
        async with asyncio.timeout(PATIENCE_S):
            while (await node.shard_states())[0].phase != "serving":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await node.count(CountRequest("c1", 0)) == 1
    assert scope is not None
    await store.close()
    await meta.close()


def test_a_shard_that_fails_again_and_again_is_tried_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ownership, "REOPEN_DELAY_S", 2.0)
    assert [reopen_delay_s(n) for n in (0, 1, 2, 3)] == [2.0, 2.0, 4.0, 8.0]
    assert reopen_delay_s(10_000) == REOPEN_DELAY_MAX_S


def test_the_strangers_are_strangers() -> None:
    assert all(parse_key(f"wal/c1/00000/{name}") is None for name in FOREIGN)
