"""Every record has one shard, whoever computes it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.model.limits import SHARD_COUNT_MAX
from annheal.shards.routing import hash_id, hash_ids, shard_of, shards_of

counts = st.integers(1, SHARD_COUNT_MAX)


@given(ids=st.lists(st.text(min_size=1, max_size=20), max_size=20), count=counts)
def test_vectorised_equals_scalar(ids: list[str], count: int) -> None:
    hashes = hash_ids(ids)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [hash_id(record_id) for record_id in ids]
    assert hash_ids(pa.array(ids, type=pa.string())).tolist() == hashes.tolist()
    expected = [shard_of(record_id, shard_count=count) for record_id in ids]
    assert shards_of(hashes, shard_count=count).tolist() == expected


@given(hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1), count=st.integers(1, 2**32 - 1))
def test_every_hash_has_the_shard_of_its_range(hashes: list[int], count: int) -> None:
    found = shards_of(np.array(hashes, dtype=np.uint64), shard_count=count).tolist()
    assert found == [(value * count) >> 64 for value in hashes]
    assert all(0 <= shard < count for shard in found)


@pytest.mark.parametrize("count", [2, 3, 7, 16, 1_000])
def test_the_ends_of_the_hash_space(count: int) -> None:
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert shards_of(ends, shard_count=count).tolist() == [0, count - 1]


@given(record_id=st.text(min_size=1), count=st.integers(1, SHARD_COUNT_MAX // 2))
def test_a_split_in_two_moves_rows_of_one_shard_only(record_id: str, count: int) -> None:
    before = shard_of(record_id, shard_count=count)
    assert shard_of(record_id, shard_count=2 * count) // 2 == before


def test_shards_are_balanced() -> None:
    hashes = hash_ids([f"record-{number}" for number in range(40_000)])
    sizes = np.bincount(shards_of(hashes, shard_count=16), minlength=16)
    # 2,500 each, standard deviation about 48.
    assert sizes.min() > 2_250
    assert sizes.max() < 2_750


def test_the_hash_is_fixed_for_ever() -> None:
    """XXH3-64 with seed 0 of the UTF-8 bytes: a change would lose every stored record."""
    assert hash_id("a") == 0xE6C632B61E964E1F
    assert hash_id("é") == hash_ids(["é"]).tolist()[0]
