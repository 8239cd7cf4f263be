from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.errors import InvalidArgument
from annheal.model.collection import (
    AttributeField,
    AttributeType,
    Collection,
    CollectionSettings,
    IndexSettings,
    Metric,
    ModelSpec,
)
from annheal.model.limits import PAYLOAD_DEPTH_MAX
from annheal.model.records import Projection, RecordBatch, arrow_schema
from annheal.model.search import SearchOptions
from annheal.model.validation import (
    validate_batch,
    validate_collection,
    validate_ids,
    validate_projection,
    validate_search,
    validate_vectors,
)
from annheal.model.values.payloads import validate_payloads

SCHEMA = (
    AttributeField("word", AttributeType.KEYWORD),
    AttributeField("words", AttributeType.KEYWORD_LIST),
    AttributeField("ratio", AttributeType.FLOAT64),
)
COLLECTION = Collection(
    id="c", name="ok", models=(ModelSpec("m", 4, Metric.COSINE),), schema=SCHEMA, shard_count=1
)
COSINE, L2 = COLLECTION.model, ModelSpec("m", 4, Metric.L2)


def matrix(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def fields(error: pytest.ExceptionInfo[InvalidArgument]) -> list[str]:
    return [violation.field for violation in error.value.violations]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: replace(c, name="-x"), "name"),
        (lambda c: replace(c, name="x" * 65), "name"),
        (lambda c: replace(c, models=()), "models"),
        (lambda c: replace(c, models=(ModelSpec("m", 0, Metric.L2),)), "models[0].dimension"),
        (lambda c: replace(c, models=(ModelSpec("", 4, Metric.L2),)), "models[0].name"),
        (lambda c: replace(c, schema=(SCHEMA[0], SCHEMA[0])), "schema[1].name"),
        (lambda c: replace(c, schema=SCHEMA[:1] * 65), "schema"),
        (lambda c: replace(c, shard_count=1_025), "shard_count"),
        (lambda c: replace(c, replica_count=2), "replica_count"),
        (lambda c: replace(c, index=IndexSettings(m=1)), "index.m"),
        (
            lambda c: replace(c, settings=CollectionSettings(recall_objective=float("nan"))),
            "settings.recall_objective",
        ),
        (
            lambda c: replace(c, settings=CollectionSettings(recall_budget=-1.0)),
            "settings.recall_budget",
        ),
        (
            lambda c: replace(c, settings=CollectionSettings(recall_budget=10_001.0)),
            "settings.recall_budget",
        ),
        (
            lambda c: replace(c, settings=CollectionSettings(seal_age_s=0.0)),
            "settings.seal_age_s",
        ),
    ],
)
def test_a_collection_names_the_field_that_is_wrong(
    change: Callable[[Collection], Collection], field: str
):
    validate_collection(COLLECTION)
    with pytest.raises(InvalidArgument) as error:
        validate_collection(change(COLLECTION))
    assert field in fields(error)


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        ([], "ids"),
        (["a"] * 11, "ids"),
        (["a", ""], "ids[1]"),
        (["a", "é" * 257], "ids[1]"),
        (["a", None], "ids[1]"),
        (["\ud800"], "ids"),
    ],
)
def test_ids_have_1_to_512_bytes(ids: list[Any], field: str):
    validate_ids(["a", "é" * 256], rows_max=10)
    with pytest.raises(InvalidArgument) as error:
        validate_ids(ids, rows_max=10)
    assert fields(error) == [field]


def test_cosine_vectors_get_unit_length_and_unit_ones_keep_every_bit():
    once = validate_vectors(matrix([3, 4, 0, 0], [1e-30, 0, 0, 0], [3e38] * 4), model=COSINE)
    assert np.allclose(np.linalg.norm(once, axis=1), 1.0, atol=1e-6)
    assert np.allclose(once[0], [0.6, 0.8, 0, 0])
    again = validate_vectors(once, model=COSINE)
    assert again is once or np.array_equal(again, once)
    mixed = validate_vectors(np.concatenate([once, matrix([0, 2, 0, 0])]), model=COSINE)
    assert np.array_equal(mixed[:3], once)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(value: float):
    for model in (COSINE, L2):
        with pytest.raises(InvalidArgument, match="position 2") as error:
            validate_vectors(matrix([1, 2, 3, 4], [1, 2, value, 4]), model=model)
        assert fields(error) == ["vectors[1]"]


def test_zero_vectors_are_refused_under_cosine_only():
    rows = matrix([1, 0, 0, 0], [0, 0, 0, 0])
    with pytest.raises(InvalidArgument) as error:
        validate_vectors(rows, model=COSINE)
    assert fields(error) == ["vectors[1]"]
    assert np.array_equal(validate_vectors(rows, model=L2), rows)


def test_lengths_that_overflow_and_wrong_dimensions_are_refused():
    with pytest.raises(InvalidArgument, match="overflows"):
        validate_vectors(matrix([3e38] * 4), model=L2)
    with pytest.raises(InvalidArgument, match="overflows"):  # to its opposite it is infinitely far
        validate_vectors(matrix([1.8e19, 0, 0, 0]), model=L2)
    for wrong in (np.ones((1, 3)), np.ones(4)):
        with pytest.raises(InvalidArgument, match="dimension"):
            validate_vectors(wrong.astype(np.float32), model=L2)


def record_batch(
    *, word: Any = "x", words: Any = ("x",), ratio: Any = 0.5, payload: Any = b"{}"
) -> RecordBatch:
    columns = arrow_schema(SCHEMA)
    values: list[Any] = [["a", word], [None, words], [None, ratio]]
    return RecordBatch(
        ids=pa.array(["p", "q"]),
        vectors=matrix([1, 0, 0, 0], [0, 1, 0, 0]),
        attributes=pa.RecordBatch.from_arrays(
            [pa.array(value, type=kind) for value, kind in zip(values, columns.types, strict=True)],
            schema=columns,
        ),
        payloads=pa.array([None, payload], type=pa.binary()),
    )


def test_a_good_batch_passes_as_it_is():
    batch = record_batch()
    assert validate_batch(batch, collection=COLLECTION) is batch


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"word": "x" * 4_097}, "attributes.word[1]"),
        ({"words": ["x"] * 1_025}, "attributes.words[1]"),
        ({"words": ["x", None]}, "attributes.words[1]"),
        ({"words": ["x" * 4_097]}, "attributes.words[1]"),
        ({"ratio": float("inf")}, "attributes.ratio[1]"),
        ({"payload": b"{"}, "payloads[1]"),
        ({"payload": b'"' + b"x" * (1 << 20) + b'"'}, "payloads[1]"),
        ({"payload": b'"\xff"'}, "payloads"),
        ({"payload": b"[" * 5_000 + b"]" * 5_000}, "payloads[1]"),
        ({"payload": b"[" * 257 + b'"]"' + b"]" * 257}, "payloads[1]"),
        ({"payload": b'{"price":1e999}'}, "payloads[1]"),
        ({"payload": b"[-1e999]"}, "payloads[1]"),
        ({"payload": b'{"price":NaN}'}, "payloads[1]"),
    ],
)
def test_values_beyond_their_limits_are_named(changes: dict[str, Any], field: str):
    with pytest.raises(InvalidArgument) as error:
        validate_batch(record_batch(**changes), collection=COLLECTION)
    assert fields(error) == [field]


def test_payloads_that_are_accepted_can_be_read_back():
    deepest = b"[" * PAYLOAD_DEPTH_MAX + b"]" * PAYLOAD_DEPTH_MAX
    long_list = b"[" + b",".join([b'{"a":"\\"["}'] * 1_000) + b"]"
    for payload in (deepest, long_list, b"1e-999", b"1" * 300, b'"1e999 NaN"'):
        assert validate_batch(record_batch(payload=payload), collection=COLLECTION) is not None
        msgspec.json.decode(payload)
    for too_large in (b"1e999", b'{"n":[1E+400]}', b"1" * 310 + b".5", b"1" * 5_000):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(too_large)
        with pytest.raises(InvalidArgument, match=r"payloads\[1\]: .*send it as text or null"):
            validate_batch(record_batch(payload=too_large), collection=COLLECTION)
    payloads = pa.array([b"{}", None, b'{"n":1e999}', b"[1e5]"] * 50, type=pa.binary())
    validate_payloads(payloads[3:6])
    with pytest.raises(InvalidArgument, match=r"payloads\[3\]"):
        validate_payloads(payloads[3:8])


def test_columns_must_be_those_of_the_schema_and_all_of_one_length():
    batch = record_batch()
    fewer = replace(batch, attributes=batch.attributes.select(["word"]))
    with pytest.raises(InvalidArgument, match="the schema has"):
        validate_batch(fewer, collection=COLLECTION)
    short = replace(batch, vectors=batch.vectors[:1])
    with pytest.raises(InvalidArgument, match="1 rows for 2 ids"):
        validate_batch(short, collection=COLLECTION)


def test_searches_and_projections_have_limits():
    many = np.zeros((1_000, 4), dtype=np.float32)
    validate_search(many, SearchOptions(k=1_000), model=COSINE)
    for queries, options, field in (
        (many, SearchOptions(k=1_001), "k"),
        (many[:0], SearchOptions(k=1), "queries"),
        (np.zeros((1_001, 4), dtype=np.float32), SearchOptions(k=1), "queries"),
        (many[:1], SearchOptions(k=0), "k"),
        (many[:1], SearchOptions(k=1, ef=16_385), "ef"),
        (many[:1], SearchOptions(k=1, recall_objective=0.0), "recall_objective"),
        (many[:1], SearchOptions(k=1, model="other"), "model"),
    ):
        with pytest.raises(InvalidArgument) as error:
            validate_search(queries, options, model=COSINE)
        assert fields(error) == [field]
    validate_projection(Projection(("word",)), collection=COLLECTION)
    with pytest.raises(InvalidArgument, match="'year'"):
        validate_projection(Projection(("word", "year")), collection=COLLECTION)


def test_models_of_a_projection_are_known_and_named_once() -> None:
    two = replace(COLLECTION, models=(COSINE, ModelSpec("next", 8, Metric.L2)))
    validate_projection(Projection(vector=True, models=("next", "m")), collection=two)
    for models, vector, text in (
        (("nxt",), True, "did you mean next"),
        (("m", "m"), True, "twice"),
        (("m",), False, "set vector"),
    ):
        with pytest.raises(InvalidArgument, match=text) as error:
            validate_projection(Projection(vector=vector, models=models), collection=two)
        assert fields(error)[0].startswith("models")
