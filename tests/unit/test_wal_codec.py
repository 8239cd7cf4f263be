"""The log's bytes: round trips, every damaged byte, newer versions, and format 1 for ever."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.errors import DataCorruption, FailedPrecondition
from annheal.model.records import RecordBatch
from annheal.shards.object_keys import parse_slot, wal_key, wal_prefix
from annheal.shards.wal import (
    FENCE_BYTES,
    DeleteEntry,
    UpsertEntry,
    WalObject,
    decode_record_batch,
    decode_wal_object,
    empty_attributes,
    encode_record_batch,
    encode_wal_object,
    is_fence_size,
)
from tests.golden.write_wal_v1 import GOLDEN, WRITER, golden_objects
from tests.golden.write_wal_v2 import GOLDEN as GOLDEN_OF_MODELS
from tests.golden.write_wal_v2 import golden_objects as golden_objects_of_models
from tests.support.shards import record_batch

KEY = wal_key("c1", 3, 12)


def assert_same_batch(first: RecordBatch, second: RecordBatch) -> None:
    assert first.ids.equals(second.ids)
    assert first.model == second.model
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert [one.model for one in first.further] == [one.model for one in second.further]
    for one, two in zip(first.further, second.further, strict=True):
        np.testing.assert_array_equal(one.vectors, two.vectors)
    assert first.attributes.equals(second.attributes)
    assert len(first.attributes) == len(second.attributes)
    assert first.payloads.equals(second.payloads)


def assert_same(first: WalObject, second: WalObject) -> None:
    assert (first.epoch, first.slot, first.writer, first.last_sequence) == (
        second.epoch,
        second.slot,
        second.writer,
        second.last_sequence,
    )
    assert len(first.entries) == len(second.entries)
    for one, two in zip(first.entries, second.entries, strict=True):
        if isinstance(one, UpsertEntry) and isinstance(two, UpsertEntry):
            assert one.first_sequence == two.first_sequence
            assert_same_batch(one.batch, two.batch)
        else:
            assert isinstance(one, DeleteEntry)
            assert isinstance(two, DeleteEntry)
            assert one.sequence == two.sequence
            assert one.ids.equals(two.ids)


def with_checksum(body: bytes) -> bytes:
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


ids = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=6)
upserts = ids.map(lambda chosen: UpsertEntry(1, record_batch(chosen, version=1)))
deletes = ids.map(lambda chosen: DeleteEntry(1, pa.array(chosen, type=pa.string())))


@settings(max_examples=50, deadline=None)
@given(
    entries=st.lists(upserts | deletes, max_size=4),
    epoch=st.integers(0, 2**63),
    slot=st.integers(0, 2**63),
)
def test_round_trip(entries: list[UpsertEntry | DeleteEntry], epoch: int, slot: int) -> None:
    written = WalObject(epoch, slot, WRITER, 77, tuple(entries))
    body = encode_wal_object(written)
    found = decode_wal_object(body, key=KEY)
    assert_same(found, written)
    assert found.is_fence == (not entries) == is_fence_size(len(body))


def test_every_damaged_byte_is_detected() -> None:
    body = encode_wal_object(golden_objects()["group.wal"])
    for position in range(len(body)):
        for flip in (0x01, 0x80):
            damaged = bytearray(body)
            damaged[position] ^= flip
            with pytest.raises(DataCorruption, match="00000000000000000012"):
                decode_wal_object(bytes(damaged), key=KEY)


def test_every_cut_is_detected() -> None:
    body = encode_wal_object(golden_objects()["group.wal"])
    for length in range(len(body)):
        with pytest.raises(DataCorruption):
            decode_wal_object(body[:length], key=KEY)
    with pytest.raises(DataCorruption):
        decode_wal_object(body + b"\0", key=KEY)


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [(56, "<I", 9), (56, "<I", 1), (64, "<I", 7), (80, "<Q", 1 << 40), (80, "<Q", 3)],
    ids=["too many entries", "too few entries", "unknown kind", "length too great", "cut body"],
)
def test_a_wrong_layout_under_a_right_checksum_is_named(
    offset: int, layout: str, value: int
) -> None:
    body = bytearray(encode_wal_object(golden_objects()["group.wal"])[:-8])
    struct.pack_into(layout, body, offset, value)
    with pytest.raises(DataCorruption, match=KEY):
        decode_wal_object(with_checksum(bytes(body)), key=KEY)


def test_a_newer_version_is_refused_with_advice() -> None:
    body = bytearray(encode_wal_object(golden_objects()["fence.wal"])[:-8])
    struct.pack_into("<H", body, 4, 3)
    with pytest.raises(FailedPrecondition, match="upgrade"):
        decode_wal_object(with_checksum(bytes(body)), key=KEY)


def test_objects_of_format_1_are_read_for_ever() -> None:
    for name, expected in golden_objects().items():
        body = (GOLDEN / name).read_bytes()
        assert_same(decode_wal_object(body, key=name), expected)
        assert is_fence_size(len(body)) == expected.is_fence
    assert (GOLDEN / "fence.wal").stat().st_size == FENCE_BYTES == 72


def test_objects_of_format_2_are_read_for_ever() -> None:
    for name, expected in golden_objects_of_models().items():
        assert_same(decode_wal_object((GOLDEN_OF_MODELS / name).read_bytes(), key=name), expected)


def test_rows_of_one_model_are_written_as_format_1() -> None:
    """Older processes read the log of a collection that never had a second model."""
    for name, golden in golden_objects().items():
        assert encode_wal_object(golden)[4:6] == (GOLDEN / name).read_bytes()[4:6] == b"\1\0"


def test_attributes_may_have_the_names_that_the_format_uses() -> None:
    columns = [pa.array([1, 2], type=pa.int64()), pa.array(["x", None], type=pa.string())]
    batch = RecordBatch(
        ids=pa.array(["a", "b"], type=pa.string()),
        vectors=np.eye(2, dtype=np.float32),
        attributes=pa.RecordBatch.from_arrays(columns, names=["_id", "_vector"]),
        payloads=pa.array([None, b"{}"], type=pa.binary()),
    )
    assert_same_batch(decode_record_batch(encode_record_batch(batch)), batch)


def test_rows_without_attributes_keep_their_number() -> None:
    batch = RecordBatch(
        ids=pa.array(["a", "b"], type=pa.string()),
        vectors=np.eye(2, dtype=np.float32),
        attributes=empty_attributes(2),
        payloads=pa.array([None, None], type=pa.binary()),
    )
    assert_same_batch(decode_record_batch(encode_record_batch(batch)), batch)


def test_keys_sort_as_slots_do() -> None:
    slots = [0, 1, 9, 10, 99, 100, 10**19]
    keys = [wal_key("c1", 3, slot) for slot in slots]
    assert keys == sorted(keys)
    assert all(key.startswith(wal_prefix("c1", 3)) for key in keys)
    assert [parse_slot(key) for key in keys] == slots
