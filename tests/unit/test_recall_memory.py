"""What a shard remembers of its recall: bytes, keys, and who wins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xxhash

from annheal.errors import DataCorruption
from annheal.filters import validate_filter
from annheal.model.collection import AttributeField, AttributeType
from annheal.model.filter import And, Comparison, ComparisonOp, Exists, Membership, Not, Or, Prefix
from annheal.model.limits import DIMENSION_MAX
from annheal.model.measures.recall import Rung, SegmentRecall, SelectivityBand, Shortfall
from annheal.objectstore.local import LocalObjectStore
from annheal.recall import (
    QUERIES_MAX,
    VECTORS_BYTES_MAX,
    EfMemory,
    LoggedQuery,
    RecallMemory,
    decode_memory,
    encode_memory,
    load_memory,
    queries_max,
    store_memory,
)
from annheal.shards.object_keys import ObjectKind, memory_key
from tests.golden.write_recall_v1 import GOLDEN, golden_memory
from tests.support.recall_reports import estimate, shard_band

BAND = SelectivityBand.FROM_10
FILTERS = (
    None,
    Comparison("year", ComparisonOp.GE, 2024),
    And((Prefix("name", "a'b\\"), Not(Exists("année")))),
    Or((Membership("x", (1.5, 2.5)), Comparison("ok", ComparisonOp.EQ, True))),
)
MEMORY = RecallMemory(
    "m",
    12.5,
    ef=(EfMemory("s1", BAND, 2.0, 1.4, 7, rebuild=True),),
    segments=(SegmentRecall(0, "s1", "warm", "m", BAND, estimate(0.9, 0.8, 1.0), 64, 1_024, True),),
    bands=(shard_band(0, BAND, estimate(0.9, 0.8, 1.0)),),
    queries=tuple(LoggedQuery(10, BAND, 3.0, one) for one in FILTERS),
    vectors=np.random.default_rng(1).standard_normal((len(FILTERS), 6)).astype(np.float32),
)


def same(left: RecallMemory, right: RecallMemory) -> bool:
    none = np.empty((0, 0), dtype=np.float32)
    np.testing.assert_array_equal(left.vectors, right.vectors)
    facts = [dataclasses.replace(one, vectors=none) for one in (left, right)]
    return all(
        getattr(facts[0], field.name) == getattr(facts[1], field.name)
        for field in dataclasses.fields(RecallMemory)
        if field.name != "vectors"
    )


def test_a_memory_comes_back_as_it_was() -> None:
    assert same(decode_memory(encode_memory(MEMORY), key="k"), MEMORY)
    empty = RecallMemory("m", 1.0)
    assert same(decode_memory(encode_memory(empty), key="k"), empty)
    unstable = shard_band(0, BAND, estimate(1, 1, 1), stability=math.nan)
    back = decode_memory(encode_memory(dataclasses.replace(MEMORY, bands=(unstable,))), key="k")
    assert math.isnan(back.bands[0].stability)


def test_the_bytes_of_the_first_version_are_read() -> None:
    """Written before queries had an objective or an ef of their own, and estimates a window."""
    stored = (GOLDEN / "memory.recall").read_bytes()
    found = decode_memory(stored, key="k")
    assert same(found, golden_memory())
    assert all((one.objective, one.ef) == (None, None) for one in found.queries)
    estimate = found.bands[0].estimate
    assert (estimate.window_end_s, estimate.valid_until_s, estimate.evidence) == (0.0, 0.0, 100)
    assert found.bands[0].served is None


def test_settings_of_queries_and_windows_of_estimates_come_back() -> None:
    measured = dataclasses.replace(
        estimate(0.9, 0.8, 1.0), window_begin_s=1.0, window_end_s=2.0, valid_until_s=3.0, distinct=7
    )
    band = dataclasses.replace(shard_band(0, BAND, measured), served=measured, recent=4)
    queries = (LoggedQuery(10, BAND, 3.0, None, 0.99, 40),)
    memory = dataclasses.replace(MEMORY, bands=(band,), queries=queries, vectors=MEMORY.vectors[:1])
    assert same(decode_memory(encode_memory(memory), key="k"), memory)


def test_what_is_known_against_a_graph_comes_back() -> None:
    failing = EfMemory("s1", BAND, 2.0, shortfall=Shortfall(0.4, Rung.EXACT))
    segment = dataclasses.replace(
        MEMORY.segments[0], rung=Rung.CODES, below=True, answered=estimate(1.0, 0.9, 1.0)
    )
    memory = dataclasses.replace(MEMORY, ef=(failing,), segments=(segment,))
    assert same(decode_memory(encode_memory(memory), key="k"), memory)
    first = decode_memory((GOLDEN / "memory.recall").read_bytes(), key="k")
    assert all(one.shortfall is None for one in first.ef)
    assert all((one.rung, one.below) == (Rung.GRAPH, False) for one in first.segments)


def test_a_filter_means_the_same_once_it_is_checked_again() -> None:
    schema = (AttributeField("at", AttributeType.TIMESTAMP),)
    moment = datetime(2024, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
    asked = validate_filter(Comparison("at", ComparisonOp.LT, moment), schema)
    memory = dataclasses.replace(
        MEMORY, queries=(LoggedQuery(10, BAND, 3.0, asked),), vectors=MEMORY.vectors[:1]
    )
    (query,) = decode_memory(encode_memory(memory), key="k").queries
    assert query.filter is not None
    assert validate_filter(query.filter, schema) == asked


def test_a_filter_too_long_is_left_out() -> None:
    long = Membership("x", tuple(f"value-{n}" for n in range(1_000)))
    memory = dataclasses.replace(
        MEMORY, queries=(LoggedQuery(10, BAND, 3.0, long),), vectors=MEMORY.vectors[:1]
    )
    assert decode_memory(encode_memory(memory), key="k").queries[0].filter is None


def test_every_damage_is_noticed() -> None:
    stored = encode_memory(MEMORY)
    for place in range(0, len(stored), 7):
        damaged = bytearray(stored)
        damaged[place] ^= 1
        with pytest.raises(DataCorruption, match="the key"):
            decode_memory(bytes(damaged), key="the key")
    for length in (0, 10, len(stored) - 1):
        with pytest.raises(DataCorruption):
            decode_memory(stored[:length], key="k")
    newer = bytearray(stored[:-16])
    newer[4] = 2
    with pytest.raises(DataCorruption, match="version 2"):
        decode_memory(bytes(newer) + xxhash.xxh3_128_digest(bytes(newer)), key="k")


@pytest.mark.parametrize("dimension", [1, 384, 4_096, DIMENSION_MAX])
def test_queries_are_bounded_in_number_and_bytes(dimension: int) -> None:
    limit = queries_max(dimension)
    assert 1 <= limit <= QUERIES_MAX
    assert limit * dimension * 4 <= VECTORS_BYTES_MAX


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    store = LocalObjectStore(tmp_path)
    yield store
    await store.close()


async def keys(objects: LocalObjectStore) -> list[str]:
    return [stat.key async for stat in objects.list(ObjectKind.RECALL.prefix)]


async def test_a_shard_has_one_memory_the_newest(objects: LocalObjectStore) -> None:
    assert await load_memory(objects, "c", 3) is None
    for number in range(1, 4):
        memory = dataclasses.replace(MEMORY, written_at_s=float(number))
        await store_memory(objects, "c", 3, memory, epoch=7, number=number)
    assert await keys(objects) == [memory_key("c", 3, epoch=7, number=3)]
    found = await load_memory(objects, "c", 3)
    assert found is not None
    assert found.written_at_s == 3.0
    assert await load_memory(objects, "c", 4) is None


async def test_a_deposed_owner_hides_nothing(objects: LocalObjectStore) -> None:
    newer = dataclasses.replace(MEMORY, written_at_s=2.0)
    await store_memory(objects, "c", 0, newer, epoch=8, number=1)
    await store_memory(objects, "c", 0, MEMORY, epoch=7, number=99)  # late
    found = await load_memory(objects, "c", 0)
    assert found is not None
    assert found.written_at_s == 2.0
    await store_memory(objects, "c", 0, newer, epoch=8, number=2)
    assert await keys(objects) == [memory_key("c", 0, epoch=8, number=2)]


async def test_a_damaged_memory_is_passed_over(
    objects: LocalObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    await objects.put_if_absent(memory_key("c", 0, epoch=1, number=1), b"nonsense")
    assert await load_memory(objects, "c", 0) is None
    assert "a recall memory is lost" in caplog.text
