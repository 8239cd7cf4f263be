"""The garbage collector and the owner of a shard: no manifest references what was deleted (INV-5).

The grace period is zero here, so the collector deletes whatever no manifest references yet: what an
owner has uploaded a moment ago too.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.leader import gc
from annheal.coordinator.leader.gc import GarbageCollector
from annheal.errors import Conflict, FailedPrecondition, Unavailable
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.protocol import Compare, Operation, Put
from annheal.model.topology.manifest import CollectedObjects, Manifest
from annheal.model.topology.task import CompactionTask, TaskReason
from annheal.shards.object_keys import segment_prefix
from tests.support.model_checker import check_manifest
from tests.support.shards import Owner, ShardWorld, shard_world

MOMENTS_MAX = 200
ATTEMPTS_MAX = 3

Change = Callable[[Owner], Awaitable[None]]


class Collector:
    """Runs one round at the given call of an owner to its stores; also a hook of `ShardWorld`."""

    def __init__(self, world: ShardWorld, moment: int) -> None:
        self._garbage = GarbageCollector(
            Catalog(world.meta), world.meta, world.objects, grace_s=0.0, wall_clock=time.time
        )
        self._moment = moment
        self.armed = False
        self.calls = 0
        self.deleted = 0

    async def __call__(self, when: str, operation: str, key: str) -> None:
        if not self.armed:
            return
        self.calls += 1
        if self.calls == self._moment:
            self.deleted = (await self._garbage.collect()).deleted_objects

    async def collect(self) -> int:
        return (await self._garbage.collect()).deleted_objects


async def opened(world: ShardWorld, moment: int) -> tuple[Owner, Collector]:
    collection = world.collection
    await world.meta.commit([Put(keys.collection_key(collection.name), encode_value(collection))])
    collector = Collector(world, moment)
    return await world.open(hook=collector), collector


async def manifest_of(world: ShardWorld) -> Manifest:
    key = keys.manifest_key("c1", 0)
    stored = await world.meta.get(key)
    assert stored is not None
    return decode_value(stored.value, Manifest, key=key)


async def collected_of(world: ShardWorld) -> tuple[str, ...]:
    key = keys.collected_key("c1", 0)
    stored = await world.meta.get(key)
    return () if stored is None else decode_value(stored.value, CollectedObjects, key=key).units


async def flush(owner: Owner) -> None:
    await owner.shard.flush()


async def drop_segment(owner: Owner) -> None:
    """Publish a compaction of the second segment, whose only row is dead."""
    dead = [one.segment.id for one in owner.shard.view.segments if not one.live_count]
    task = CompactionTask("t", "c1", 0, tuple(dead), "warm", TaskReason.TOMBSTONES)
    await owner.shard.publish_compaction(task)


@pytest.mark.parametrize("change", [flush, drop_segment])
async def test_a_round_at_any_moment_of_a_change_deletes_nothing_that_is_referenced(
    tmp_path: Path, change: Change
) -> None:
    deleted: list[int] = []
    for moment in range(1, MOMENTS_MAX):
        async with shard_world(tmp_path / str(moment)) as world:
            owner, collector = await opened(world, moment)
            await owner.upsert("a", "b", "c", version=1)
            await owner.shard.flush()
            await owner.upsert("x", version=1)
            await owner.shard.flush()
            await owner.delete("a", "x")
            await owner.upsert("b", "d", version=2)
            collector.armed = True
            for _ in range(ATTEMPTS_MAX):
                try:
                    await change(owner)
                    break
                except (Conflict, FailedPrecondition, Unavailable):
                    assert collector.deleted, "nothing was deleted, so nothing may fail"
            else:
                pytest.fail("the change was not made")
            collector.armed = False
            await check_manifest(world.objects, await manifest_of(world))
            assert await live_ids(world) == {"b", "c", "d"}
        deleted.append(collector.deleted)
        if collector.calls < moment:
            break
    else:
        pytest.fail("a change makes more calls than were tried")
    assert any(deleted), "no round deleted what an owner had uploaded"


async def live_ids(world: ShardWorld) -> set[str]:
    """Return the ids that another process finds in the shard."""
    view = (await world.open(node_id="b")).shard.view
    found = {
        name for held in view.segments for name in held.segment.ids_at(held.deletes.live_rows())
    }
    for growing in view.growing:
        found |= {growing.ids[row] for row in np.flatnonzero(growing.live_mask())}
    return found


async def test_what_is_deleted_is_named_before_and_until_it_is_gone(tmp_path: Path) -> None:
    async with shard_world(tmp_path) as world:
        owner, collector = await opened(world, 0)
        await owner.upsert("a", version=1)
        await owner.shard.flush()
        for name in ("one", "two"):
            prefix = segment_prefix("c1", 0, name)
            await world.objects.put_if_absent(f"{prefix}segment.json", b"{}")
            assert await collector.collect() == 1
            assert await collected_of(world) == (prefix,)
        assert await collector.collect() == 0
        # What a dead collector named and did not delete stays named.
        key, prefix = keys.collected_key("c1", 0), segment_prefix("c1", 0, "three")
        await world.meta.commit(
            [Put(key, encode_value(CollectedObjects("c1", 0, units=(prefix,))))]
        )
        await world.objects.put_if_absent(f"{prefix}segment.json", b"{}")
        other = segment_prefix("c1", 0, "four")
        await world.objects.put_if_absent(f"{other}segment.json", b"{}")
        assert await collector.collect() == 2
        assert set(await collected_of(world)) == {prefix, other}


async def test_a_manifest_that_changed_meanwhile_keeps_its_objects(tmp_path: Path) -> None:
    async with shard_world(tmp_path) as world:
        owner, _ = await opened(world, 0)
        await owner.upsert("a", version=1)
        await owner.shard.flush()
        prefix = segment_prefix("c1", 0, "orphan")
        await world.objects.put_if_absent(f"{prefix}segment.json", b"{}")

        commit = world.meta.commit

        async def after_the_owner(
            operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
        ) -> int:
            """Let the owner store a manifest just before the collector commits."""
            if operations[0].key.startswith(keys.COLLECTED_PREFIX):
                manifest = await manifest_of(world)
                changed = replace(manifest, version=manifest.version + 1)
                await commit([Put(keys.manifest_key("c1", 0), encode_value(changed))])
            return await commit(operations, compares=compares)

        world.meta.commit = after_the_owner  # type: ignore[method-assign]
        garbage = GarbageCollector(
            Catalog(world.meta), world.meta, world.objects, grace_s=0.0, wall_clock=time.time
        )
        report = await garbage.collect()
        assert (report.deleted_objects, report.kinds[0].waiting_objects) == (0, 1)
        world.meta.commit = commit  # type: ignore[method-assign]
        assert (await garbage.collect()).deleted_objects == 1


async def test_a_round_names_a_limited_number_of_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "COLLECTED_MAX", 2)
    async with shard_world(tmp_path) as world:
        owner, collector = await opened(world, 0)
        await owner.upsert("a", version=1)
        await owner.shard.flush()
        for number in range(5):
            prefix = segment_prefix("c1", 0, f"s{number}")
            await world.objects.put_if_absent(f"{prefix}segment.json", b"{}")
        assert [await collector.collect() for _ in range(4)] == [2, 2, 1, 0]
