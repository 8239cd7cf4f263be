"""The three steps of a group commit side by side: nothing is lost, reordered or written twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from annheal.errors import Fenced, ResourceExhausted, Unavailable
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.write import Upsert, WriteAnswer
from annheal.shard_node.owner import write_path
from annheal.shards.wal import WalEntry
from tests.support.model_checker import ABSENT, ShardModel, check_reads
from tests.support.shards import (
    Owner,
    ShardWorld,
    record_batch,
    shard_world,
    size_of,
)

PATIENCE_S = 20.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ShardWorld]:
    async with shard_world(tmp_path) as opened:
        yield opened


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next group be encoded during every put, however small it is."""
    monkeypatch.setattr(write_path, "EARLY_GROUP_BYTES_MIN", 1)


class PutGate:
    """A hook that holds the first put into the log after `close`, and may let it fail.

    It counts the puts under way: at most one may be.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._open = asyncio.Event()
        self._open.set()
        self.held = asyncio.Event()
        self.under_way = 0
        self.most = 0

    def close(self) -> None:
        self._open.clear()

    def open(self, *, error: Exception | None = None) -> None:
        self._error = error
        self._open.set()

    async def __call__(self, moment: str, operation: str, key: str) -> None:
        if operation != "put_if_absent" or not key.startswith("wal/"):
            return
        if moment == "after":
            self.under_way -= 1
            return
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if not self._open.is_set():
            self.held.set()
            await self._open.wait()
            error, self._error = self._error, None
            if error is not None:
                self.under_way -= 1
                raise error


@dataclass(frozen=True, slots=True)
class Held:
    """An owner whose write `first` of record `a` waits at the gate for its put into the log.

    `encoded` gets the slot of every log object that the owner encodes.
    """

    owner: Owner
    gate: PutGate
    first: asyncio.Task[WriteAnswer]
    encoded: list[int]

    @property
    def waiting(self) -> int:
        """How many writes wait to be encoded."""
        return len(self.owner.shard._writes._waiting)


@pytest.fixture
async def held(world: ShardWorld, monkeypatch: pytest.MonkeyPatch) -> Held:
    gate, encoded = PutGate(), list[int]()
    owner = await world.open(hook=gate)
    encode = owner.shard._wal.encode

    def noted(entries: list[WalEntry], *, slot: int, last_sequence: int) -> bytes:
        encoded.append(slot)
        return encode(entries, slot=slot, last_sequence=last_sequence)

    monkeypatch.setattr(owner.shard._wal, "encode", noted)
    gate.close()
    first = asyncio.create_task(owner.upsert("a", version=1))
    async with asyncio.timeout(PATIENCE_S):
        await gate.held.wait()
    return Held(owner, gate, first, encoded)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def check_reopened(world: ShardWorld, owner: Owner, model: ShardModel) -> None:
    check_reads(owner.shard.view, model)
    again = await world.open(node_id="b")
    check_reads(again.shard.view, model)


@pytest.mark.usefixtures("early")
async def test_a_group_is_encoded_during_the_put_before_it(world: ShardWorld, held: Held) -> None:
    second = asyncio.create_task(held.owner.upsert("a", "b", version=2))
    await until(lambda: len(held.encoded) == 2)
    held.gate.open()
    await asyncio.gather(held.first, second)
    assert held.encoded == [1, 2], "nothing had to be encoded again"
    assert held.gate.most == 1
    model = ShardModel()
    model.acknowledge({"a": 2, "b": 2})
    await check_reopened(world, held.owner, model)


@pytest.mark.usefixtures("early")
async def test_a_group_takes_the_slot_that_the_one_before_did_not(
    world: ShardWorld, held: Held
) -> None:
    second = asyncio.create_task(held.owner.upsert("b", version=2))
    await until(lambda: held.encoded == [1, 2])
    held.gate.open(error=ResourceExhausted("no room in the store"))
    with pytest.raises(ResourceExhausted, match="no room"):
        await held.first
    assert (await second).upserted == 1
    assert held.encoded == [1, 2, 1]
    await held.owner.upsert("c", version=3)
    assert await world.log_slots() == [0, 1, 2], "slots have no gaps"
    model = ShardModel()
    model.acknowledge({"b": 2, "c": 3})
    await check_reopened(world, held.owner, model)


@pytest.mark.usefixtures("early")
async def test_a_write_that_ran_out_of_time_before_its_put_is_not_written(
    world: ShardWorld, held: Held
) -> None:
    late = asyncio.create_task(
        held.owner.write(Upsert(record_batch(["late"], version=1)), timeout_s=0.2)
    )
    patient = asyncio.create_task(held.owner.upsert("patient", version=1))
    with pytest.raises(Unavailable, match="was not begun"):
        await late
    held.gate.open()
    await asyncio.gather(held.first, patient)
    model = ShardModel()
    model.acknowledge({"a": 1, "patient": 1})
    await check_reopened(world, held.owner, model)


@pytest.mark.usefixtures("early")
async def test_a_group_whose_callers_all_left_is_no_log_object(
    world: ShardWorld, held: Held
) -> None:
    late = asyncio.create_task(
        held.owner.write(Upsert(record_batch(["late"], version=1)), timeout_s=0.2)
    )
    with pytest.raises(Unavailable):
        await late
    held.gate.open()
    await held.first
    await held.owner.upsert("b", version=1)
    assert await world.log_slots() == [0, 1, 2]
    model = ShardModel()
    model.acknowledge({"a": 1, "b": 1})
    await check_reopened(world, held.owner, model)


@pytest.mark.usefixtures("early")
async def test_a_delete_by_filter_sees_every_write_before_it(world: ShardWorld, held: Held) -> None:
    size = size_of("a", 1)
    assert size is not None
    deleting = asyncio.create_task(
        held.owner.delete_where(Comparison("size", ComparisonOp.EQ, size))
    )
    after = asyncio.create_task(held.owner.upsert("a", version=1))
    await until(lambda: held.waiting == 2)
    held.gate.open()
    assert (await deleting).deleted == 1, "record a was ordered before the delete"
    await asyncio.gather(held.first, after)
    model = ShardModel()
    model.acknowledge({"a": 1})
    await check_reopened(world, held.owner, model)


@pytest.mark.usefixtures("early")
async def test_what_is_encoded_and_not_put_when_the_shard_closes_is_refused(
    world: ShardWorld, held: Held
) -> None:
    second = asyncio.create_task(held.owner.upsert("b", version=1))
    await until(lambda: held.encoded == [1, 2])
    held.owner.shard.close()
    held.gate.open()
    await held.first
    with pytest.raises(Fenced, match="was released"):
        await second
    async with asyncio.timeout(PATIENCE_S):
        await held.owner.task
    model = ShardModel()
    model.acknowledge({"a": 1, "b": ABSENT})
    again = await world.open(node_id="b")
    check_reads(again.shard.view, model)


async def test_small_writes_during_a_put_become_one_log_object(
    world: ShardWorld, held: Held
) -> None:
    others = [asyncio.create_task(held.owner.upsert(f"r{n}", version=1)) for n in range(20)]
    await until(lambda: held.waiting == 20)
    held.gate.open()
    await asyncio.gather(held.first, *others)
    assert await world.log_slots() == [0, 1, 2], "the fence, the held write, all of the others"
