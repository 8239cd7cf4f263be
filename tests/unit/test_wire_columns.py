from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeField, AttributeType, Collection, Metric, ModelSpec
from annheal.model.records import (
    ARROW_TYPES,
    Float32Matrix,
    ModelVectors,
    Projection,
    RecordBatch,
    RecordPatch,
    RecordSet,
    Versions,
    arrow_schema,
)
from annheal.v1 import columns_pb2, records_pb2
from annheal.wire.arrow_ipc import (
    decode_batch,
    decode_columns,
    decode_patch,
    encode_batch,
    encode_columns,
    encode_patch,
)
from annheal.wire.columns import (
    decode_attribute,
    decode_attributes,
    decode_projection,
    decode_record_set,
    encode_attribute,
    encode_projection,
    encode_record_set,
    encode_vectors,
)
from annheal.wire.records import decode_upsert, encode_upsert

SCHEMA = tuple(AttributeField(f"f_{kind}", kind) for kind in AttributeType)
COLLECTION = Collection(
    id="c1",
    name="things",
    models=(ModelSpec("m", 3, Metric.COSINE),),
    schema=SCHEMA,
    shard_count=1,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = {
    AttributeType.KEYWORD: TEXT,
    AttributeType.KEYWORD_LIST: st.lists(TEXT, max_size=3),
    AttributeType.INT64: INT64,
    AttributeType.FLOAT64: st.floats(allow_nan=False),
    AttributeType.BOOL: st.booleans(),
    AttributeType.TIMESTAMP: INT64,
}


@st.composite
def batches(draw: st.DrawFn) -> RecordBatch:
    rows = draw(st.integers(1, 12))
    columns = [
        pa.array(
            draw(st.lists(st.none() | VALUES[f.type], min_size=rows, max_size=rows)),
            type=ARROW_TYPES[f.type],
        )
        for f in SCHEMA
    ]
    payloads = draw(st.lists(st.none() | st.binary(min_size=1), min_size=rows, max_size=rows))
    return RecordBatch(
        ids=pa.array([f"id-{n}" for n in range(rows)], type=pa.string()),
        vectors=np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),
        attributes=pa.RecordBatch.from_arrays(columns, schema=arrow_schema(SCHEMA)),
        payloads=pa.array(payloads, type=pa.binary()),
    )


def assert_same(left: RecordBatch, right: RecordBatch) -> None:
    assert left.ids.equals(right.ids)
    assert left.vectors.dtype == right.vectors.dtype == np.float32
    assert np.array_equal(left.vectors, right.vectors)
    assert left.attributes.equals(right.attributes)
    assert left.payloads.equals(right.payloads)


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(0, 3))
def test_columnar_upsert_round_trip_of_slices_too(batch: RecordBatch, start: int) -> None:
    # A slice has an offset into its buffers, which naive packing forgets.
    batch = RecordBatch(
        ids=batch.ids[start:],
        vectors=batch.vectors[start:],
        attributes=batch.attributes[start:],
        payloads=batch.payloads[start:],
    )
    request = encode_upsert(
        "things",
        ids=batch.ids.to_pylist(),
        vectors=batch.vectors,
        attributes={f.name: batch.attributes.column(n) for n, f in enumerate(SCHEMA)},
        payloads=batch.payloads,
    )
    parsed = records_pb2.UpsertRequest.FromString(request.SerializeToString())
    if len(batch):
        assert_same(decode_upsert(parsed, collection=COLLECTION), batch)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_arrow_round_trip(batch: RecordBatch) -> None:
    assert_same(decode_batch(encode_batch(batch)), batch)


MODEL_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@st.composite
def matrices(draw: st.DrawFn, rows: int) -> Float32Matrix:
    """Vectors of which any may be lacking, in a slice of a larger matrix."""
    dimension = draw(st.integers(1, 5))
    numbers = np.arange(rows * dimension, dtype=np.float32).reshape(rows, dimension)
    numbers[draw(st.lists(st.booleans(), min_size=rows, max_size=rows))] = np.nan
    return np.concatenate([numbers, numbers], axis=1)[:, :dimension]


@st.composite
def of_models(draw: st.DrawFn, rows: int) -> tuple[str, Float32Matrix, tuple[ModelVectors, ...]]:
    """The name of a model, empty for one that needs none, its vectors, and those of others."""
    own, *others = draw(st.lists(MODEL_NAMES, min_size=1, max_size=4, unique=True))
    further = tuple(ModelVectors(name, draw(matrices(rows))) for name in others)
    return draw(st.sampled_from(["", own])), draw(matrices(rows)), further


def assert_same_models(
    left: RecordBatch | RecordPatch | RecordSet, right: RecordBatch | RecordPatch | RecordSet
) -> None:
    assert left.model == right.model
    assert [one.model for one in left.further] == [one.model for one in right.further]
    assert_same_matrix(left.vectors, right.vectors)
    for one, other in zip(left.further, right.further, strict=True):
        assert_same_matrix(one.vectors, other.vectors)


def assert_same_matrix(left: Float32Matrix | None, right: Float32Matrix | None) -> None:
    assert (left is None) == (right is None)
    assert left is None or right is None or np.array_equal(left, right, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(batches(), st.data())
def test_vectors_of_several_models_travel_inside_the_cluster(
    batch: RecordBatch, data: st.DataObject
) -> None:
    rows = len(batch)
    model, vectors, further = data.draw(of_models(rows))
    own = vectors if data.draw(st.booleans()) else None
    versions: Versions = np.arange(1, rows + 1)
    tagged = replace(batch, vectors=vectors, model=model, further=further)
    patch = RecordPatch(
        batch.ids, batch.attributes, batch.payloads, own, model=model, further=further
    )
    records = RecordSet(batch.id_list(), None, None, own, versions, model, further)

    found = decode_batch(encode_batch(tagged))
    assert_same_models(found, tagged)
    assert found.attributes.equals(batch.attributes)
    assert found.payloads.equals(batch.payloads)
    assert_same_models(decode_patch(encode_patch(patch)), patch)
    read = decode_columns(encode_columns(records), ids=records.ids)
    assert_same_models(read, records)
    assert read.versions is not None
    assert np.array_equal(read.versions, versions)


def test_records_with_vectors_of_further_models_only_travel() -> None:
    further = (ModelVectors("next", np.ones((2, 3), dtype=np.float32)),)
    records = RecordSet(ids=["a", "b"], further=further)
    assert not records.has_only_ids
    assert_same_models(decode_columns(encode_columns(records), ids=records.ids), records)


@settings(max_examples=40, deadline=None)
@given(batches(), st.booleans(), st.booleans(), st.booleans())
def test_record_sets_keep_what_was_asked_for(
    batch: RecordBatch, attributes: bool, payload: bool, vector: bool
) -> None:
    records = RecordSet(
        ids=batch.ids.to_pylist(),
        attributes=batch.attributes if attributes else None,
        payloads=batch.payloads if payload else None,
        vectors=batch.vectors if vector else None,
    )
    projection = Projection(attributes=None if attributes else (), payload=payload, vector=vector)
    public = encode_record_set(records, model="m")
    for copy in (
        decode_record_set(public, projection=projection),
        decode_columns(encode_columns(records), ids=records.ids),
    ):
        assert copy.ids == records.ids
        for name in ("attributes", "payloads"):
            ours, theirs = getattr(records, name), getattr(copy, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or ours.equals(theirs)
        assert (copy.vectors is None) == (records.vectors is None)
        assert copy.vectors is None or np.array_equal(copy.vectors, batch.vectors)


def test_row_form_means_the_same_as_columns() -> None:
    record = records_pb2.Record(
        id="a",
        vectors=[records_pb2.Vector(floats=columns_pb2.FloatArray(values=[1, 2, 3]))],
        payload=b'{"x": 1}',
    )
    values = record.attributes
    values["f_keyword"].keyword = "blue"
    values["f_keyword_list"].keyword_list.values.extend(["x", "y"])
    values["f_int64"].int64_value = -7
    values["f_float64"].float64_value = 0.5
    values["f_bool"].bool_value = False
    values["f_timestamp"].timestamp_value.FromMicroseconds(1_700_000_000_123_456)
    packed = np.array([4, 5, 6], dtype="<f4").tobytes()
    bare = records_pb2.Record(id="b", vectors=[records_pb2.Vector(model="m", packed=packed)])
    batch = decode_upsert(records_pb2.UpsertRequest(records=[record, bare]), collection=COLLECTION)
    assert batch.ids.to_pylist() == ["a", "b"]
    assert batch.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch.attributes.schema.equals(arrow_schema(SCHEMA))
    assert batch.payloads.to_pylist() == [b'{"x": 1}', None]
    first, second = batch.attributes.to_pylist()
    assert set(second.values()) == {None}
    assert first["f_keyword_list"] == ["x", "y"]
    assert first["f_bool"] is False
    assert batch.attributes.column(5).cast(pa.int64())[0].as_py() == 1_700_000_000_123_456


def columns(**parts: object) -> records_pb2.UpsertRequest:
    base: dict[str, object] = {
        "ids": ["a", "b"],
        "vectors": [encode_vectors(np.ones((2, 3), dtype=np.float32), model="")],
    }
    return records_pb2.UpsertRequest(columns=columns_pb2.RecordColumns(**(base | parts)))


def rows(**parts: object) -> records_pb2.UpsertRequest:
    good = records_pb2.Record(
        id="a", vectors=[records_pb2.Vector(floats=columns_pb2.FloatArray(values=[1, 2, 3]))]
    )
    bad = records_pb2.Record(**({"id": "b", "vectors": good.vectors} | parts))
    return records_pb2.UpsertRequest(records=[good, bad])


def column(name: str = "f_int64", **values: object) -> list[columns_pb2.AttributeColumn]:
    return [columns_pb2.AttributeColumn(name=name, **values)]


def vector(count: int, **parts: object) -> records_pb2.Vector:
    return records_pb2.Vector(floats=columns_pb2.FloatArray(values=[0.5] * count), **parts)


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (records_pb2.UpsertRequest(), "records", "send some records"),
        (
            records_pb2.UpsertRequest(
                columns=columns_pb2.RecordColumns(ids=["a"]), records=[records_pb2.Record()]
            ),
            "columns",
            "set one of the two",
        ),
        (
            columns(vectors=[encode_vectors(np.ones((2, 3)), model="")] * 2),
            "columns.vectors[1].model",
            "'m' has an entry before",
        ),
        (
            columns(vectors=[encode_vectors(np.ones((1, 3)), model="")]),
            "columns.vectors[0]",
            "1 vectors, but there are 2 ids",
        ),
        (
            columns(vectors=[columns_pb2.Vectors(packed=b"\0" * 13)]),
            "columns.vectors[0].packed",
            "13 bytes",
        ),
        (
            columns(vectors=[columns_pb2.Vectors(packed=b"\0" * 16)]),
            "columns.vectors[0]",
            "4 floats, which is no multiple of the dimension 3",
        ),
        (
            columns(vectors=[encode_vectors(np.ones((2, 4)), model="")]),
            "columns.vectors[0].dimension",
            "is 4, but model 'm' has dimension 3",
        ),
        (
            columns(vectors=[encode_vectors(np.ones((2, 3)), model="other")]),
            "columns.vectors[0].model",
            "the models of collection 'things' are 'm' (3 floats)",
        ),
        (columns(vectors=[columns_pb2.Vectors()]), "columns.vectors[0]", "set packed or floats"),
        (columns(payloads=[b"1"]), "columns.payloads", "has 1 rows, but there are 2 ids"),
        (
            columns(attributes=column("nope", int64s=b"\0" * 16)),
            "columns.attributes[0].name",
            "'nope' is not an attribute",
        ),
        (
            columns(attributes=column(int64s=b"\0" * 16) * 2),
            "columns.attributes[1].name",
            "named twice",
        ),
        (
            columns(attributes=column(float64s=b"\0" * 16)),
            "columns.attributes[0]",
            "holds float64s, but attribute 'f_int64' is a int64: set int64s",
        ),
        (columns(attributes=column()), "columns.attributes[0]", "holds no values"),
        (
            columns(attributes=column(int64s=b"\0" * 15)),
            "columns.attributes[0].int64s",
            "15 bytes, but 2 rows of 8 bytes are 16",
        ),
        (
            columns(attributes=column(int64s=b"\0" * 16, validity=b"\3\0")),
            "columns.attributes[0].validity",
            "2 rows need a bitmap of 1",
        ),
        (
            columns(attributes=column("f_bool", bools=b"\1\2")),
            "columns.attributes[0].bools[1]",
            "is 2, but must be 0 or 1",
        ),
        (
            columns(attributes=column("f_keyword", keywords={"values": ["x"]})),
            "columns.attributes[0].keywords",
            "has 1 rows",
        ),
        (
            columns(
                attributes=column("f_keyword_list", keyword_lists={"lengths": [1, 2], "values": []})
            ),
            "columns.attributes[0].keyword_lists",
            "add up to 3, but there are 0 values",
        ),
        (
            rows(vectors=[vector(2)]),
            "records[1].vectors[0]",
            "has 2 floats, but model 'm' needs 3",
        ),
        (rows(vectors=[]), "records[1].vectors", "there is none; send a vector of at least one"),
        (rows(vectors=[vector(3)] * 2), "records[1].vectors[1]", "another vector of model 'm'"),
        (
            columns(vectors=[columns_pb2.Vectors(packed=b"\0" * 24, validity=b"\1")]),
            "vectors[1]",
            "there is none; send a vector of at least one model of 'm'",
        ),
        (
            columns(vectors=[columns_pb2.Vectors(packed=b"\0" * 24, validity=b"\3\0")]),
            "columns.vectors[0].validity",
            "has 2 bytes, but 2 rows need a bitmap of 1",
        ),
        (rows(vectors=[vector(3, model="x")]), "records[1].vectors[0].model", "is 'x'"),
        (
            rows(attributes={"nope": records_pb2.AttributeValue(bool_value=True)}),
            "records[1].attributes",
            "'nope' is not an attribute",
        ),
        (
            rows(attributes={"f_int64": records_pb2.AttributeValue(keyword="7")}),
            "records[1].attributes[f_int64]",
            "holds keyword, but the attribute is a int64: set int64_value",
        ),
        (
            rows(
                attributes={
                    "f_timestamp": records_pb2.AttributeValue(timestamp_value={"nanos": -1})
                }
            ),
            "records[1].attributes[f_timestamp]",
            "nanos is -1",
        ),
        (
            rows(
                attributes={
                    "f_timestamp": records_pb2.AttributeValue(timestamp_value={"seconds": 2**62})
                }
            ),
            "records[1].attributes[f_timestamp]",
            "lies outside the years 1 to 9999",
        ),
    ],
)
def test_wrong_upserts_name_the_field(
    request_: records_pb2.UpsertRequest, field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_upsert(request_, collection=COLLECTION)
    [violation] = caught.value.violations
    assert violation.field == field
    assert words in violation.description
    assert str(caught.value).startswith(field)


def test_attributes_left_out_are_missing_everywhere() -> None:
    batch = decode_attributes((), schema=SCHEMA, rows=3, field="attributes")
    assert batch.num_rows == 3
    assert [c.null_count for c in batch.columns] == [3] * len(SCHEMA)
    assert batch.schema.equals(arrow_schema(SCHEMA))


def test_keywords_under_null_lists_do_not_travel() -> None:
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2, 3], pa.int32()), pa.array(["p", "q", "r"]), mask=pa.array([True, False])
    )
    message = encode_attribute("x", hidden)
    assert list(message.keyword_lists.values) == ["r"]
    assert decode_attribute(message, rows=2, field="x").to_pylist() == [None, ["r"]]


def test_columns_of_unknown_types_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="Arrow type int32"):
        encode_attribute("x", pa.array([1], pa.int32()))


@pytest.mark.parametrize(
    "projection",
    [
        Projection(),
        Projection(None, True, True),
        Projection(("a", "b"), False, True),
        Projection(vector=True, models=("new", "old")),
    ],
)
def test_projection_round_trip(projection: Projection) -> None:
    assert decode_projection(encode_projection(projection)) == projection


def test_projection_of_all_and_some_contradicts_itself() -> None:
    with pytest.raises(InvalidArgument, match="projection: asks for all attributes and for some"):
        decode_projection(columns_pb2.Projection(all_attributes=True, attributes=["a"]))


@pytest.mark.parametrize("stream", [b"", b"garbage", encode_columns(RecordSet(["a"]))])
def test_broken_arrow_streams_are_refused(stream: bytes) -> None:
    with pytest.raises(InvalidArgument, match="upsert: is not an Arrow IPC stream"):
        decode_batch(stream)


def test_truncated_arrow_streams_are_refused() -> None:
    batch = RecordBatch(
        ids=pa.array(["a"]),
        vectors=np.ones((1, 3), dtype=np.float32),
        attributes=pa.RecordBatch.from_arrays([pa.array([1])], names=["x"]),
        payloads=pa.array([b"1"]),
    )
    stream = encode_batch(batch)
    with pytest.raises(InvalidArgument, match="upsert"):
        decode_batch(stream[: len(stream) // 2])


def test_arrow_streams_must_have_as_many_rows_as_ids() -> None:
    stream = encode_columns(RecordSet(["a"], vectors=np.ones((1, 3), dtype=np.float32)))
    with pytest.raises(InvalidArgument, match="has 1 rows, but there are 2 ids"):
        decode_columns(stream, ids=["a", "b"])


def test_collections_without_attributes_take_records() -> None:
    bare = Collection(id="c2", name="bare", models=COLLECTION.models, schema=(), shard_count=1)
    request = encode_upsert("bare", ids=["a", "b"], vectors=np.ones((2, 3)))
    batch = decode_batch(encode_batch(decode_upsert(request, collection=bare)))
    assert batch.ids.to_pylist() == ["a", "b"]
    assert batch.attributes.num_columns == 0
    assert batch.payloads.to_pylist() == [None, None]
