"""Arrow streams from outside: what is read lies in the stream, or the stream is refused."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.errors import InvalidArgument
from annheal.model.records import ModelVectors, RecordBatch, RecordSet
from annheal.wire.arrow_ipc import decode_batch, decode_columns, encode_batch, encode_columns

PAYLOAD_BYTES = 4_661
"""A length that stands nowhere else in the stream."""
VALID = encode_batch(
    RecordBatch(
        ids=pa.array(["a"]),
        vectors=np.ones((1, 2), dtype=np.float32),
        attributes=pa.RecordBatch.from_arrays([pa.array([["x", "y"]])], names=["tags"]),
        payloads=pa.array([b"p" * PAYLOAD_BYTES], pa.binary()),
    )
)


def stream_of(columns: dict[str, Any], *, batches: int = 1, **options: Any) -> bytes:
    rows = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return stream_of_batches([rows] * batches, **options)


def stream_of_batches(
    batches: list[pa.RecordBatch], *, metadata: dict[bytes, bytes] | None = None, **options: Any
) -> bytes:
    sink = pa.BufferOutputStream()
    write = pa.ipc.IpcWriteOptions(**options)
    wanted = {b"attributes": b"1", **(metadata or {})}
    with pa.ipc.new_stream(sink, batches[0].schema.with_metadata(wanted), options=write) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(wanted))
    return sink.getvalue().to_pybytes()


def vectors(*rows: list[float] | None, dimension: int = 2) -> Any:
    return pa.array(rows, type=pa.list_(pa.float32(), dimension))


GOOD: dict[str, Any] = {
    "id": pa.array(["a", "b"]),
    "vector": vectors([1.0, 2.0], [3.0, 4.0]),
    "payload": pa.array([b"{}", None], pa.binary()),
}


def out_of_bounds() -> bytes:
    """Let the payload end 4,096 bytes behind the stream's memory."""
    place = VALID.rindex(struct.pack("<ii", 0, PAYLOAD_BYTES))  # its offsets, in the body
    beyond = struct.pack("<ii", 0, len(VALID) + 4_096)
    return VALID[:place] + beyond + VALID[place + len(beyond) :]


BAD = {
    "values beyond the memory": out_of_bounds(),
    "zstd": stream_of(GOOD, compression="zstd"),
    "lz4": stream_of(GOOD, compression="lz4"),
    "a bomb": stream_of(
        {**GOOD, "payload": pa.array([b"\0" * (4 << 20)] * 2, pa.binary())}, compression="zstd"
    ),
    "two batches": stream_of(GOOD, batches=2),
    "a dictionary": stream_of({**GOOD, "a:x": pa.array(["r", "r"]).dictionary_encode()}),
    "a union": stream_of(
        {
            **GOOD,
            "a:x": pa.UnionArray.from_sparse(
                pa.array([0, 0], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]
            ),
        }
    ),
    "an extension": stream_of(
        {
            **GOOD,
            "a:x": pa.ExtensionArray.from_storage(
                pa.uuid(), pa.array([b"0" * 16, b"1" * 16], pa.binary(16))
            ),
        }
    ),
    "a struct": stream_of({**GOOD, "a:x": pa.array([{"y": 1}, {"y": 2}])}),
    "views": stream_of({**GOOD, "payload": pa.array([b"{}", b"{}"], pa.binary_view())}),
    "a missing vector": stream_of({**GOOD, "vector": vectors([1.0, 2.0], None)}),
    "a missing component": stream_of(
        {
            **GOOD,
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array([1.0, None, 2.0, 3.0], pa.float32()), 2
            ),
        }
    ),
    "vectors without floats": stream_of({**GOOD, "vector": vectors([], [], dimension=0)}),
    "vectors of doubles": stream_of(
        {**GOOD, "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float64(), 1))}
    ),
    "ids that are bytes": stream_of({**GOOD, "id": pa.array([b"a", b"b"], pa.binary())}),
    "a payload that is text": stream_of({**GOOD, "payload": pa.array(["a", "b"])}),
    "text that is no UTF-8": VALID.replace(b"xy", b"\xff\xfe"),
    "two columns of one name": stream_of_batches(
        [pa.RecordBatch.from_arrays([*GOOD.values(), GOOD["id"]], names=[*GOOD, "id"])]
    ),
    "further vectors of no model": stream_of({**GOOD, "vector:": GOOD["vector"]}),
    "further vectors of the model itself": stream_of(
        {**GOOD, "vector:m": GOOD["vector"]}, metadata={b"model": b"m"}
    ),
    "a model that is no UTF-8": stream_of(GOOD, metadata={b"model": b"\xff"}),
    "further vectors that are text": stream_of({**GOOD, "vector:m": GOOD["id"]}),
    "a missing further vector": stream_of({**GOOD, "vector:m": vectors([1.0, 2.0], None)}),
    # PyArrow takes the first message for a schema, whatever it is, and dies.
    "rows without a schema": VALID[8 + struct.unpack_from("<i", VALID, 4)[0] :],
    "nothing": b"",
    "half of it": VALID[: len(VALID) // 2],
    "no stream": b"ARROW1\0\0" + b"\xff" * 64,
}


def test_the_layout_is_the_documented_one_and_that_of_one_model_never_changed() -> None:
    batch = RecordBatch(
        ids=pa.array(["a", "b"]),
        vectors=np.array([[1, 2], [3, 4]], dtype=np.float32),
        attributes=pa.RecordBatch.from_arrays([pa.array([7, None], pa.int64())], names=["year"]),
        payloads=pa.array([b"{}", None], pa.binary()),
    )
    columns = {**GOOD, "a:year": batch.attributes.column(0)}
    assert encode_batch(batch) == stream_of(columns)

    next_vectors = np.array([[np.nan] * 3, [5, 6, 7]], dtype=np.float32)
    both = replace(batch, model="m", further=(ModelVectors("n/é", next_vectors),))
    columns["vector:n/é"] = vectors(*next_vectors.tolist(), dimension=3)
    assert encode_batch(both) == stream_of(columns, metadata={b"model": b"m"})


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_plain_rows_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_batch(BAD[name])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(InvalidArgument, match="compressed"):
        decode_batch(BAD["a bomb"])
    assert pa.total_allocated_bytes() == before
    assert pa.default_memory_pool().max_memory() == peak


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_stream_is_refused_or_holds_only_its_own_bytes(data: st.DataObject) -> None:
    damaged = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        batch = decode_batch(bytes(damaged))
    except InvalidArgument:
        return
    size = batch.payloads.nbytes + batch.ids.nbytes + batch.vectors.nbytes
    assert size <= len(VALID)
    batch.payloads.validate(full=True)
    batch.ids.validate(full=True)
    assert all(len(one) <= len(VALID) for one in batch.payloads.to_pylist() if one is not None)


def test_keyword_columns_of_answers_travel_plainly() -> None:
    encoded = pa.RecordBatch.from_arrays(
        [pa.array(["red", None]).dictionary_encode()], names=["colour"]
    )
    stream = encode_columns(RecordSet(ids=["a", "b"], attributes=encoded))
    found = decode_columns(stream, ids=["a", "b"])
    assert found.attributes is not None
    assert found.attributes.column("colour") == pa.array(["red", None])
