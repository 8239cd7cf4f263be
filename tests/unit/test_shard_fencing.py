"""INV-1 and INV-4: owners that overlap, stop anywhere, wake up late, or never hear an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from annheal.errors import (
    AnnhealError,
    DataCorruption,
    Fenced,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import manifest_key
from annheal.metastore.protocol import Delete
from annheal.model.topology.manifest import Manifest
from annheal.objectstore.wrappers import (
    Fault,
    FaultKind,
    FaultyObjectStore,
    Operation,
    ScriptedFaults,
)
from annheal.shards.object_keys import wal_key
from annheal.shards.wal import decode_wal_object
from tests.support.model_checker import (
    ABSENT,
    ShardModel,
    check_epochs,
    check_manifest,
    check_reads,
)
from tests.support.shards import DeadError, Gate, Mortal, Owner, ShardWorld, shard_world

PATIENCE_S = 20.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ShardWorld]:
    async with shard_world(tmp_path) as opened:
        yield opened


async def tried(model: ShardModel, owner: Owner, record_id: str, version: int) -> bool:
    """Upsert and tell the model how it ended; return whether it was acknowledged."""
    model.attempt({record_id: version})
    try:
        await owner.upsert(record_id, version=version)
    except (AnnhealError, DeadError):
        return False
    model.acknowledge({record_id: version})
    return True


async def manifest_of(world: ShardWorld) -> Manifest:
    key = manifest_key("c1", 0)
    stored = await world.meta.get(key)
    assert stored is not None
    return decode_value(stored.value, Manifest, key=key)


async def test_a_write_after_a_takeover_is_fenced_and_nothing_acknowledged_is_lost(
    world: ShardWorld,
) -> None:
    model = ShardModel()
    old = await world.open()
    assert await tried(model, old, "x", 1)
    new = await world.open(node_id="b")
    check_epochs([old.shard.epoch, new.shard.epoch])
    model.attempt({"x": 2})
    with pytest.raises(Fenced):
        await old.upsert("x", version=2)
    model.acknowledge({"x": 1})  # Fenced promises that nothing was written
    check_reads(new.shard.view, model)
    async with asyncio.timeout(PATIENCE_S):
        await old.task  # a deposed owner ends by itself
    with pytest.raises(Fenced):
        await old.shard.flush()
    assert await tried(model, new, "x", 3)
    check_reads(new.shard.view, model)


async def overlap(world: ShardWorld, *, holds_at: int, gate_old: bool) -> bool:
    """One owner held at its call number `holds_at` while the other does all it can."""
    model = ShardModel()
    gate = Gate(holds_at)
    first = await world.open()
    for number in range(3):
        assert await tried(model, first, f"r{number}", 1)
    await first.shard.flush()
    if gate_old:
        await first.stop()

        async def act() -> None:
            held = await world.open(hook=gate, node_id="held")
            await tried(model, held, "r0", 2)
            with contextlib.suppress(Fenced):
                await held.shard.flush()
            await tried(model, held, "new", 2)

        acting = asyncio.create_task(act())
        waiting = asyncio.create_task(gate.held.wait())
        await asyncio.wait([acting, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        other = await world.open(node_id="other")
        assert await tried(model, other, "r1", 9)
        await other.shard.flush()
        gate.release()
        await acting
    else:
        opening = asyncio.create_task(world.open(hook=gate, node_id="held"))
        waiting = asyncio.create_task(gate.held.wait())
        await asyncio.wait([opening, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for version in range(2, 4):
            await tried(model, first, f"meanwhile{version}", version)
            try:
                await first.shard.flush()
            except Fenced:
                break
        gate.release()
        other = await opening
    if not other.shard.deposed and await tried(model, other, "r2", 9):
        check_reads(other.shard.view, model)
    last = await world.open(node_id="last")
    check_reads(last.shard.view, model)
    await check_manifest(world.objects, await manifest_of(world))
    return gate.held.is_set()


@pytest.mark.parametrize("gate_old", [True, False], ids=["old owner held", "new owner held"])
async def test_overlapping_owners_at_every_await(tmp_path: Path, gate_old: bool) -> None:
    reached = 0
    while True:
        async with shard_world(tmp_path / str(reached)) as world:
            async with asyncio.timeout(PATIENCE_S):
                if not await overlap(world, holds_at=reached, gate_old=gate_old):
                    break
        reached += 1
    assert reached > 10, "the gate was hardly ever reached"


async def test_concurrent_takeovers_end_with_one_owner(world: ShardWorld) -> None:
    model = ShardModel()
    first = await world.open()
    assert await tried(model, first, "x", 1)
    opened = await asyncio.gather(*(world.open(node_id=f"n{i}") for i in range(4)))
    assert len({owner.shard.epoch for owner in opened}) == len(opened)
    acknowledged = [
        owner
        for version, owner in enumerate(opened, start=2)
        if await tried(model, owner, "x", version)
    ]
    newest = max(opened, key=lambda owner: owner.shard.epoch)
    assert acknowledged in ([], [newest])
    last = await world.open(node_id="last")
    check_reads(last.shard.view, model)


async def test_a_busy_owner_cannot_keep_an_opener_out(world: ShardWorld) -> None:
    model = ShardModel()
    old = await world.open()
    writing = True

    async def write(number: int) -> None:
        version = 1
        while writing and await tried(model, old, f"r{number}", version):
            version += 1

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    async with asyncio.timeout(PATIENCE_S):
        while old.shard.view.sequence < 50:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        new = await world.open(node_id="b")
        await asyncio.gather(*writers)  # each ends with Fenced
    check_reads(new.shard.view, model)


async def test_a_lost_answer_before_a_takeover_is_settled_by_the_same_object(
    world: ShardWorld,
) -> None:
    """The put landed, its answer was lost; the successor replayed, flushed and trimmed the slot."""
    model = ShardModel()
    gate = Gate(holds_at=1_000_000)
    lost = ScriptedFaults([Fault(FaultKind.LOST_ANSWER)], operations=[Operation.PUT])
    faulty = FaultyObjectStore(world.objects, ScriptedFaults([]))
    old = await world.open(objects=faulty, hook=gate)
    assert await tried(model, old, "x", 1)
    faulty.plan = lost
    gate.holds_at = len(gate.calls) + 1  # the second put of the same object
    writing = asyncio.create_task(tried(model, old, "x", 2))
    async with asyncio.timeout(PATIENCE_S):
        await gate.held.wait()
    new = await world.open(node_id="b")
    model.acknowledge({"x": 2})
    check_reads(new.shard.view, model)
    assert await tried(model, new, "y", 1)
    await new.shard.flush()
    assert 2 not in await world.log_slots(), "slot 2 held the write and must be trimmed"
    gate.release()
    # Late but true: the write is in the successor's segment. The next one finds the fence.
    assert await writing
    with pytest.raises(Fenced):
        await old.upsert("z")
    assert await tried(model, new, "x", 3)
    last = await world.open(node_id="last")
    check_reads(last.shard.view, model)


async def test_an_owner_that_wakes_up_after_the_trim_finds_the_fence(world: ShardWorld) -> None:
    model = ShardModel()
    old = await world.open()
    assert await tried(model, old, "x", 1)
    for version in range(2, 6):
        owner = await world.open(node_id=f"n{version}")
        assert await tried(model, owner, "x", version)
        await owner.shard.flush()
    with pytest.raises(Fenced):
        await old.upsert("x", version=9)
    check_reads(owner.shard.view, model)
    # Every fence is still there.
    for slot in await world.log_slots():
        key = wal_key("c1", 0, slot)
        found = decode_wal_object(await world.objects.get(key), key=key)
        assert found.is_fence or slot == (await manifest_of(world)).checkpoint_slot


async def test_an_opener_that_dies_between_fence_and_manifest_does_no_harm(
    world: ShardWorld,
) -> None:
    model = ShardModel()
    old = await world.open()
    assert await tried(model, old, "x", 1)

    async def dies(moment: str, operation: str, key: str) -> None:
        if operation == "meta.commit":
            raise DeadError

    with pytest.raises(DeadError):
        await world.open(hook=dies, node_id="b")
    assert not await tried(model, old, "x", 2), "the fence stands, whoever put it"
    again = await world.open(node_id="a")
    check_epochs([old.shard.epoch, again.shard.epoch])
    check_reads(again.shard.view, model)
    assert await tried(model, again, "x", 3)


async def test_a_strong_read_looks_behind_the_own_unanswered_put(world: ShardWorld) -> None:
    gate = Gate(holds_at=1_000_000)
    old = await world.open(hook=gate)
    await old.upsert("x", version=1)
    await old.shard.verify_owner()
    gate.holds_at = len(gate.calls) + 1  # after the put took effect
    writing = asyncio.create_task(old.upsert("x", version=2))
    async with asyncio.timeout(PATIENCE_S):
        await gate.held.wait()
    await old.shard.verify_owner()  # its own object in the next slot deposes nobody
    new = await world.open(node_id="b")
    await new.upsert("x", version=3)
    with pytest.raises(Fenced):
        await old.shard.verify_owner()
    gate.release()
    await writing  # late, but true: the successor replayed it
    with pytest.raises(Fenced):
        await old.upsert("x", version=4)


class Scripted:
    """Answers the puts of log objects by a script, after (or instead of) the real effect."""

    def __init__(self, script: list[tuple[bool, type[AnnhealError]]]) -> None:
        self.script = script

    def wrap(self, world: ShardWorld) -> None:
        inner = world.objects.put_if_absent

        async def put(key: str, body: bytes) -> None:
            if not self.script or not key.startswith("wal/"):
                return await inner(key, body)
            lands, error = self.script.pop(0)
            if lands:
                await inner(key, body)
            raise error("scripted")

        world.objects.put_if_absent = put  # type: ignore[method-assign, assignment]


async def test_a_full_store_refuses_a_write_and_the_shard_goes_on(world: ShardWorld) -> None:
    model = ShardModel()
    owner = await world.open()
    script = Scripted([])
    script.wrap(world)
    script.script = [(False, ResourceExhausted)]
    with pytest.raises(ResourceExhausted):
        await owner.upsert("x", version=1)
    assert await tried(model, owner, "y", 1)
    check_reads(owner.shard.view, model)


@pytest.mark.parametrize("lands", [True, False])
async def test_full_after_a_lost_answer_is_never_reported_as_not_written(
    world: ShardWorld, lands: bool
) -> None:
    model = ShardModel()
    owner = await world.open()
    script = Scripted([])
    script.wrap(world)
    script.script = [(lands, UnknownOutcome), (False, ResourceExhausted), (False, Unavailable)]
    assert await tried(model, owner, "x", 1)
    assert await tried(model, owner, "y", 1)
    check_reads(owner.shard.view, model)
    last = await world.open(node_id="last")
    check_reads(last.shard.view, model)


async def test_a_cancelled_put_that_lands_is_replayed(world: ShardWorld) -> None:
    model = ShardModel()
    gate = Gate(holds_at=1_000_000)
    owner = await world.open(hook=gate)
    assert await tried(model, owner, "x", 1)
    gate.holds_at = len(gate.calls) + 1
    writing = asyncio.create_task(tried(model, owner, "x", 2))
    async with asyncio.timeout(PATIENCE_S):
        await gate.held.wait()
    await owner.stop()
    assert not await writing, "durable, but not applied: unknown to the caller"
    again = await world.open()
    check_reads(again.shard.view, model)
    assert model.live() == {"x": 2}


async def test_a_closed_shard_ends_its_run_and_fails_what_waits(world: ShardWorld) -> None:
    gate = Gate(holds_at=1_000_000)
    owner = await world.open(hook=gate)
    gate.holds_at = len(gate.calls)
    writes = [asyncio.create_task(owner.upsert(f"r{i}")) for i in range(3)]
    async with asyncio.timeout(PATIENCE_S):
        await gate.held.wait()
        writes.append(asyncio.create_task(owner.upsert("late")))
        await asyncio.sleep(0)
        owner.shard.close()
        gate.release()
        await owner.task
        await asyncio.wait(writes)
    with pytest.raises(Fenced):
        writes[-1].result()
    assert all(isinstance(write.exception(), Fenced) or write.result() for write in writes)


async def test_metadata_older_than_the_log_is_noticed_not_served(world: ShardWorld) -> None:
    """INV-8: a manifest that is lost, or restored from an old backup, is not an empty shard."""
    owner = await world.open()
    key = manifest_key("c1", 0)
    await owner.upsert("x")
    await owner.upsert("y")
    await owner.shard.flush()
    await owner.stop()
    await world.meta.commit([Delete(key)])
    with pytest.raises(DataCorruption, match="backup"):
        await world.open()


async def test_a_segment_that_is_gone_is_named_not_retried_for_ever(world: ShardWorld) -> None:
    owner = await world.open()
    await owner.upsert("x")
    await owner.shard.flush()
    await owner.stop()
    keys = [stat.key async for stat in world.objects.list("segments/")]
    await world.objects.delete([key for key in keys if key.endswith("index.faiss")])
    with pytest.raises(DataCorruption, match=r"index\.faiss"):
        await world.open()


async def run_flush(world: ShardWorld, life: Mortal, *, steps: int | None) -> ShardModel:
    """Flush twice; the owner dies `steps` calls into the second flush (None: never)."""
    model = ShardModel()
    owner = await world.open(hook=life)
    for number in range(4):
        assert await tried(model, owner, f"r{number}", 1)
    await owner.shard.flush()
    await owner.delete("r0", "r3")
    model.acknowledge({"r0": ABSENT, "r3": ABSENT})
    assert await tried(model, owner, "r1", 2)
    life.arm(steps)
    try:
        await owner.shard.flush()
        await tried(model, owner, "after", 1)
    except (AnnhealError, DeadError):
        assert steps is not None
    await owner.stop()
    return model


async def test_recovery_after_a_death_at_every_step_of_a_flush(tmp_path: Path) -> None:
    life = Mortal()
    async with shard_world(tmp_path / "whole") as world:
        await run_flush(world, life, steps=None)
    calls = list(life.calls)
    assert any("meta.commit" in call for call in calls)
    assert any("delete wal/" in call for call in calls)
    for step in range(len(calls)):
        async with shard_world(tmp_path / str(step)) as world:
            model = await run_flush(world, Mortal(), steps=step)
            again = await world.open(node_id="b")
            check_reads(again.shard.view, model)
            await check_manifest(world.objects, await manifest_of(world))
            assert await tried(model, again, "r2", 5)
            await again.shard.flush()
            last = await world.open(node_id="c")
            check_reads(last.shard.view, model)
