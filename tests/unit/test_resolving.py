"""Updates and writes on condition: in groups, over segments, after a restart, under contention."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from annheal.errors import InvalidArgument
from annheal.model.records import ARROW_TYPES, EVERYTHING, RecordPatch, Versions
from annheal.model.values.answer_size import ANSWER_TOO_LARGE
from annheal.model.write import (
    ANY_VERSION,
    DeleteIds,
    Update,
    Upsert,
    VersionConflict,
    WriteAnswer,
)
from annheal.shard_node.owner import resolving, write_path
from annheal.shard_node.search.reads import get_records, live_sequences
from tests.support.model_checker import read_all
from tests.support.shards import (
    SCHEMA,
    Owner,
    ShardWorld,
    record_batch,
    record_patch,
    shard_world,
)

COUNTER = "counter"
NO_ATTRIBUTES = pa.RecordBatch.from_arrays([], names=[])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ShardWorld]:
    async with shard_world(tmp_path) as one:
        yield one


def versions(*numbers: int) -> Versions:
    return np.array(numbers, dtype=np.int64)


def size_patch(record_id: str, size: int) -> RecordPatch:
    column = pa.array([size], type=ARROW_TYPES[SCHEMA[1].type])
    return RecordPatch(
        pa.array([record_id]), pa.RecordBatch.from_arrays([column], names=[SCHEMA[1].name])
    )


def counted(owner: Owner) -> tuple[int, int]:
    """Return the counter and its version."""
    found = get_records(owner.shard.view, (COUNTER,), EVERYTHING)
    assert found.attributes is not None
    assert found.versions is not None
    return found.attributes.column("size")[0].as_py(), int(found.versions[0])


async def increment(owner: Owner) -> int:
    """Add 1 to the counter by compare and swap; return how many attempts it took."""
    attempts = 0
    while True:
        attempts += 1
        size, version = counted(owner)
        answer = await owner.write(Update(size_patch(COUNTER, size + 1), versions(version)))
        if answer.upserted:
            assert not answer.conflicts
            return attempts
        (conflict,) = answer.conflicts
        assert conflict.version > version


async def test_no_increment_is_lost_under_contention(world: ShardWorld) -> None:
    owner = await world.open()
    await owner.write(Upsert(record_batch([COUNTER])))
    await owner.write(Update(size_patch(COUNTER, 0)))

    async def client() -> int:
        return sum([await increment(owner) for _ in range(10)])

    async def others() -> None:
        for number in range(30):
            await owner.upsert(*(f"r{one}" for one in range(number, number + 5)), version=number)

    task = asyncio.create_task(others())
    attempts = sum(await asyncio.gather(client(), client(), client(), client()))
    await task
    assert counted(owner)[0] == 40
    assert attempts > 40, "nobody ever lost: there was no contention"
    await owner.shard.flush()
    assert await increment(owner) == 1
    await owner.stop()
    owner = await world.open(node_id="b")
    assert counted(owner)[0] == 41, "replayed from the log"


async def test_one_of_many_inserts_wins(world: ShardWorld) -> None:
    owner = await world.open()
    answers = await asyncio.gather(
        *(
            owner.write(Upsert(record_batch(["a"], version=version), versions(0)))
            for version in range(12)
        )
    )
    (winner,) = [one for one in range(12) if answers[one].upserted]
    (version,) = live_sequences(owner.shard.view, ["a"]).tolist()
    for number, answer in enumerate(answers):
        assert answer.conflicts == (() if number == winner else (VersionConflict("a", version),))
    assert read_all(owner.shard.view) == {"a": winner}


async def test_updates_of_different_records_share_a_log_object(world: ShardWorld) -> None:
    owner = await world.open()
    names = [f"r{number}" for number in range(20)]
    await owner.upsert(*names, version=1)
    before = len(await world.log_slots())
    updates = [owner.update(name, version=2) for name in names]
    again = [owner.update(name, version=3) for name in names[:3]]
    answers = await asyncio.gather(*updates, *again)
    assert all(answer.upserted == 1 for answer in answers)
    assert len(await world.log_slots()) - before == 2
    assert read_all(owner.shard.view) == {name: 3 if name in names[:3] else 2 for name in names}


async def test_a_group_that_becomes_too_large_is_cut(
    world: ShardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await world.open()
    names = [f"r{number}" for number in range(8)]
    await owner.upsert(*names, version=1)
    before = len(await world.log_slots())
    monkeypatch.setattr(write_path, "GROUP_BYTES_MAX", 100)
    monkeypatch.setattr(write_path, "_size_bytes", lambda operation: 1)
    writes = [owner.update(name, version=2) for name in names]
    answers = await asyncio.gather(*writes, owner.delete("r0"), owner.upsert("r1", version=3))
    assert [answer.upserted for answer in answers] == [1] * 8 + [0, 1]
    assert len(await world.log_slots()) - before > 2
    assert read_all(owner.shard.view) == {"r1": 3} | dict.fromkeys(names[2:], 2)


async def test_an_update_never_brings_a_deleted_record_back(world: ShardWorld) -> None:
    owner = await world.open()
    await owner.upsert("a", "b", version=1)
    await owner.shard.flush()
    (old,) = live_sequences(owner.shard.view, ["a"]).tolist()
    answers = await asyncio.gather(
        owner.delete("a"), owner.update("a", version=2), owner.update("a", version=3)
    )
    assert [answer.missing for answer in answers] == [(), ("a",), ("a",)]
    conditional = await owner.update("a", "b", version=4, if_versions=versions(old, ANY_VERSION))
    assert conditional.conflicts == (VersionConflict("a", 0),)
    assert conditional.upserted == 1
    gone = await owner.write(DeleteIds(("a",), versions(old)))
    assert (gone.deleted, gone.conflicts) == (0, (VersionConflict("a", 0),))
    assert read_all(owner.shard.view) == {"b": 4}


async def test_nothing_to_write_is_answered_without_a_log_object(world: ShardWorld) -> None:
    owner = await world.open()
    written = await owner.upsert("a", version=1)
    slots = await world.log_slots()
    answer = await owner.update("nobody", version=2)
    assert answer == WriteAnswer(written.sequence, missing=("nobody",))
    assert await world.log_slots() == slots


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (Update(record_patch(["a"], version=1), versions(0)), "if_versions[0]"),
        (Update(record_patch(["a"], version=1), versions(1, 1)), "if_versions"),
        (Upsert(record_batch(["a"]), versions(-2)), "if_versions[0]"),
        (DeleteIds(("a",), versions(0)), "if_versions[0]"),
        (Update(record_patch(["a", "a"], version=1)), "ids"),
        (
            Update(replace(record_patch(["a"], version=1), payloads=pa.array([b"{"]))),
            "payloads[0]",
        ),
        (
            Update(replace(record_patch(["a"], version=1), vectors=np.zeros((1, 3), np.float32))),
            "vectors",
        ),
        (Update(RecordPatch(pa.array(["a"]), NO_ATTRIBUTES)), "attributes"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_field(
    world: ShardWorld, operation: Update | Upsert | DeleteIds, field: str
) -> None:
    owner = await world.open()
    await owner.upsert("a", version=1)
    with pytest.raises(InvalidArgument) as refused:
        await owner.write(operation)
    assert refused.value.violations[0].field == field
    assert read_all(owner.shard.view) == {"a": 1}


async def test_an_update_of_too_large_records_is_refused(
    world: ShardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await world.open()
    await owner.upsert("a", "b", "c", version=1)
    monkeypatch.setattr(resolving, "REQUEST_BYTES_MAX", 150)
    with pytest.raises(InvalidArgument) as refused:
        await owner.update("a", "b", "c", version=2)
    assert refused.value.reason == ANSWER_TOO_LARGE
    assert "update fewer a call" in refused.value.message
    assert (await owner.update("a", version=2)).upserted == 1
    assert read_all(owner.shard.view) == {"a": 2, "b": 1, "c": 1}
