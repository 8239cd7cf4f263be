from __future__ import annotations

import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.errors import DataCorruption, FailedPrecondition
from annheal.segment import DeleteVector, decode_delete_vector, encode_delete_vector


@settings(deadline=None)  # the machine may be busy
@given(data=st.data(), rows=st.integers(1, 70))
def test_delete_vector_is_the_set_of_rows_given(data: st.DataObject, rows: int) -> None:
    steps = data.draw(st.lists(st.lists(st.integers(0, rows - 1), max_size=8), max_size=5))
    vector, dead = DeleteVector.empty(rows), set[int]()
    for step in steps:
        before, before_count = vector, vector.dead_count
        vector = vector.with_dead(np.array(step, dtype=np.int64))
        dead |= set(step)
        assert before.dead_count == before_count == int(before.dead_mask().sum())
    assert vector.dead_rows().tolist() == sorted(dead)
    assert vector.live_rows().tolist() == sorted(set(range(rows)) - dead)
    assert (vector.dead_count, vector.live_count) == (len(dead), rows - len(dead))
    assert vector.is_dead(np.arange(rows)).tolist() == [row in dead for row in range(rows)]
    if dead:
        assert vector.live is not None
        np.testing.assert_array_equal(vector.live.mask(), ~vector.dead_mask())
        # Padding bits stay zero, or counting set bits would find rows that do not exist.
        assert vector.live.count == vector.live_count
        assert int(np.bitwise_count(vector.live.packed).sum()) == vector.live_count
    else:
        assert vector.live is None
    again = decode_delete_vector(encode_delete_vector(vector), key="k", rows=rows)
    np.testing.assert_array_equal(again.dead_mask(), vector.dead_mask())


@pytest.mark.parametrize("row", [-1, 10])
def test_row_outside_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        DeleteVector.empty(10).with_dead(np.array([row]))


def test_every_flipped_byte_is_found() -> None:
    body = encode_delete_vector(DeleteVector.empty(20).with_dead(np.array([3])))
    for position in range(len(body)):
        damaged = bytearray(body)
        damaged[position] ^= 0x10
        with pytest.raises(DataCorruption, match="deletes/x"):
            decode_delete_vector(bytes(damaged), key="deletes/x", rows=20)
    for length in range(len(body)):
        with pytest.raises(DataCorruption, match="deletes/x"):
            decode_delete_vector(body[:length], key="deletes/x", rows=20)


def test_delete_vector_of_another_segment_is_refused() -> None:
    body = encode_delete_vector(DeleteVector.empty(20))
    with pytest.raises(DataCorruption, match="21 rows"):
        decode_delete_vector(body, key="k", rows=21)


def test_newer_format_asks_for_an_upgrade() -> None:
    content = struct.pack("<4sHHQQ", b"ANDV", 2, 0, 8, 0) + b"\x00"
    body = content + xxhash.xxh3_128_digest(content)
    with pytest.raises(FailedPrecondition, match="upgrade"):
        decode_delete_vector(body, key="k", rows=8)
