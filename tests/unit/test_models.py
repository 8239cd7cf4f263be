"""Several models of one collection: what is accepted and stored, and how they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.coordinator.app import Coordinator
from annheal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.limits import MODELS_EVER_MAX, MODELS_MAX
from annheal.model.records import (
    Float32Matrix,
    ModelVectors,
    Projection,
    RecordBatch,
    RecordPatch,
    RecordSet,
)
from annheal.model.texts.spec import EmbedderSpec, TextModel
from annheal.model.validation import (
    usable_model,
    validate_batch,
    validate_collection,
    validate_patch,
)
from annheal.v1 import collections_pb2, columns_pb2, records_pb2
from annheal.wire import records
from annheal.wire import search as wire_search
from annheal.wire.columns import decode_record_set, encode_record_set, encode_vectors
from annheal.wire.lifecycle import collections as wire
from annheal.wire.records import GivenVectors
from annheal.wire.search import PublicSearch
from tests.support.memory_cluster import memory_cluster, soon, spec, started

OLD, NEW, THIRD = (
    ModelSpec("old", 8, Metric.INNER_PRODUCT),
    ModelSpec("new/v2", 4, Metric.COSINE),
    ModelSpec("third", 2, Metric.L2),
)
TEXT = TextModel(
    "new/v2", EmbedderSpec("openai", url="http://localhost:1/v1", remote_model="r"), "{name}"
)
COLLECTION = Collection(
    id="c1", name="papers", models=(OLD, NEW, THIRD), schema=(), shard_count=1, text_models=(TEXT,)
)


# -------------------------------------------------------------------------------------- validation


def many(count: int) -> tuple[ModelSpec, ...]:
    return tuple(ModelSpec(f"m{n}", 2, Metric.L2) for n in range(count))


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"models": (OLD, OLD)}, "models[1].name", "two models called 'old'"),
        ({"models": many(MODELS_MAX + 1)}, "models", f"1 to {MODELS_MAX} at a time"),
        ({"models": (OLD,), "removed": ("old",)}, "models", "0 models"),
        ({"serving": "nw/v2"}, "serving", "did you mean new/v2"),
        ({"serving": "old", "removed": ("old",)}, "serving", "is no model"),
        (
            {
                "models": many(MODELS_EVER_MAX + 1),
                "removed": tuple(f"m{n}" for n in range(MODELS_EVER_MAX)),
            },
            "models",
            f"the limit is {MODELS_EVER_MAX}",
        ),
    ],
)
def test_models_that_do_not_fit_together_are_refused(
    changes: dict[str, object], field: str, words: str
) -> None:
    validate_collection(COLLECTION)
    with pytest.raises(InvalidArgument, match=words) as error:
        validate_collection(replace(COLLECTION, **changes))  # type: ignore[arg-type]
    assert field in [one.field for one in error.value.violations]


def test_the_serving_model_is_the_first_unless_another_is_named() -> None:
    assert COLLECTION.model == OLD
    later = replace(COLLECTION, serving="new/v2", removed=("old",))
    assert later.model == NEW
    assert later.models[0] == OLD, "logs without a name still mean it"
    assert later.usable_models == (NEW, THIRD)
    assert usable_model("", collection=later) == NEW
    for gone in ("old", "other"):
        with pytest.raises(InvalidArgument, match=r"'new/v2' \(4 floats\), 'third' \(2 floats\)"):
            usable_model(gone, collection=later)


# ---------------------------------------------------------------------------------- metadata, wire


def test_metadata_keeps_models_serving_and_removed() -> None:
    later = replace(COLLECTION, serving="new/v2", removed=("old",))
    key = keys.collection_key("papers")
    assert decode_value(encode_value(later), Collection, key=key) == later


def test_clients_see_the_models_that_are_left_the_serving_one_first() -> None:
    later = replace(COLLECTION, serving="third", removed=("old",))
    message = wire.encode_collection(later)
    assert [one.name for one in message.models] == ["third", "new/v2"], "old clients take the first"
    seen = wire.decode_collection(message)
    assert (seen.serving, seen.model, seen.removed) == ("third", THIRD, ())
    assert seen.text_models == (TEXT,)
    message.ClearField("serving")  # of an older server
    assert wire.decode_collection(message).model == THIRD


def test_a_collection_is_created_with_several_models() -> None:
    request = wire.encode_create_collection("papers", models=(OLD, NEW), serving="new/v2")
    made = wire.decode_create_collection(request, collection_id="c", created_at_s=0)
    assert (made.models, made.model) == ((OLD, NEW), NEW)


def test_requests_for_models_travel() -> None:
    for text_model in (TEXT, None):
        request = wire.encode_add_model("papers", model=NEW, text_model=text_model)
        assert wire.decode_add_model(request) == (NEW, text_model)
    with pytest.raises(InvalidArgument, match="model: is not set"):
        wire.decode_add_model(collections_pb2.AddModelRequest(collection="papers"))
    with pytest.raises(InvalidArgument, match=r"model\.metric"):
        wire.decode_add_model(collections_pb2.AddModelRequest(model={"name": "x"}))


def test_an_update_names_the_model_whose_embedder_it_changes() -> None:
    def changed(model: str, **changes: object) -> Collection:
        request = wire.encode_update_collection("papers", changes=changes, model=model)
        return wire.apply_update(request, collection=COLLECTION)

    found = changed("new/v2", **{"embedder.retries": 1})
    assert found.text_models == (replace(TEXT, embedder=replace(TEXT.embedder, retries=1)),)
    for model, changes, words in (
        ("", {"embedder.retries": 1}, "model 'old' of collection 'papers' has none"),
        ("nwe", {"embedder.retries": 1}, r"is 'nwe', but the models .* are 'old' \(8 floats\)"),
        ("new/v2", {"index.m": 8}, "no option of its embedder"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            changed(model, **changes)


# ------------------------------------------------------------------------------ vectors on the wire

BARE = replace(COLLECTION, text_models=())


def matrix(model: ModelSpec, rows: int) -> Float32Matrix:
    numbers = np.random.default_rng(rows).normal(size=(rows, model.dimension))
    return np.ascontiguousarray(numbers, dtype=np.float32)


@st.composite
def given_vectors(draw: st.DrawFn, rows: int) -> list[GivenVectors]:
    """Vectors of some models in any order, of each record at least one."""
    models = draw(st.permutations(BARE.models))[: draw(st.integers(1, 3))]
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    absent = [np.array(draw(flags)) for _ in models]
    absent[0] &= ~np.logical_and.reduce(absent)
    return [
        GivenVectors(one.name, matrix(one, rows), gaps)
        for one, gaps in zip(models, absent, strict=True)
    ]


def expected(given: list[GivenVectors]) -> dict[str, Float32Matrix]:
    return {
        one.model: np.where(one.absent[:, None], np.float32(np.nan), one.vectors)
        for one in given
        if one.absent is not None
    }


def by_model(found: RecordBatch | RecordPatch | RecordSet) -> dict[str, Float32Matrix]:
    assert found.vectors is not None
    own = ModelVectors(found.model or "old", found.vectors)
    return {one.model: one.vectors for one in (own, *found.further)}


def assert_same(left: dict[str, Float32Matrix], right: dict[str, Float32Matrix]) -> None:
    assert left.keys() == right.keys()
    for name, vectors in left.items():
        assert np.array_equal(vectors, right[name], equal_nan=True), name


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 17))
def test_writes_of_several_models_travel_with_their_gaps(data: st.DataObject, rows: int) -> None:
    vectors = data.draw(given_vectors(rows))
    ids = [f"r{row}" for row in range(rows)]
    upsert = records.encode_upsert("papers", ids=ids, further=vectors)
    decoded = records.decode_upsert(
        records_pb2.UpsertRequest.FromString(upsert.SerializeToString()), collection=BARE
    )
    assert isinstance(decoded, RecordBatch)
    assert_same(by_model(decoded), expected(vectors))
    names = [one.name for one in BARE.models]
    order = list(by_model(decoded))
    assert order == sorted(order, key=names.index), "in the order of the models"
    stored = validate_batch(decoded, collection=BARE)
    for name, found in by_model(stored).items():
        assert np.array_equal(np.isnan(found), np.isnan(by_model(decoded)[name]))

    update = records.encode_update("papers", ids=ids, further=vectors)
    patch, _ = records.decode_update(update, collection=BARE)
    assert_same(by_model(patch), expected(vectors))
    validate_patch(patch, collection=BARE)

    by_row = records_pb2.UpsertRequest(collection="papers")
    for row, record_id in enumerate(ids):
        record = by_row.records.add(id=record_id)
        for one in vectors:
            if one.absent is not None and not one.absent[row]:
                record.vectors.add(model=one.model, packed=one.vectors[row].tobytes())
    again = records.decode_upsert(by_row, collection=BARE)
    assert isinstance(again, RecordBatch)
    some = {name: one for name, one in expected(vectors).items() if not np.isnan(one).all()}
    assert_same(by_model(again), some)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 9))
def test_answers_of_several_models_say_what_a_record_lacks(data: st.DataObject, rows: int) -> None:
    vectors = expected(data.draw(given_vectors(rows)))
    own, *further = (ModelVectors(name, one) for name, one in vectors.items())
    read = RecordSet(
        [f"r{row}" for row in range(rows)],
        vectors=own.vectors,
        model=own.model,
        further=tuple(further),
    )
    message = encode_record_set(read, model="old")
    assert all(np.isfinite(np.frombuffer(one.packed, np.float32)).all() for one in message.vectors)
    assert_same(by_model(decode_record_set(message, projection=Projection(vector=True))), vectors)


def test_untagged_vectors_are_of_the_model_that_serves() -> None:
    later = replace(BARE, serving="new/v2")
    request = records.encode_upsert("papers", ids=["a"], vectors=np.ones((1, 4)))
    found = records.decode_upsert(request, collection=later)
    assert isinstance(found, RecordBatch)
    assert found.model == "new/v2", "nodes take no tag for the first model"
    first = records.encode_upsert("papers", ids=["a"], vectors=np.ones((1, 8)), model="old")
    found = records.decode_upsert(first, collection=later)
    assert isinstance(found, RecordBatch)
    assert found.model == ""


def encoded(**parts: object) -> records_pb2.UpsertRequest:
    columns = columns_pb2.RecordColumns(ids=["a", "b"], **parts)  # type: ignore[arg-type]
    return records_pb2.UpsertRequest(collection="papers", columns=columns)


NAN_IN_ONE = np.array([[1, 2, 3, 4], [np.nan, 2, 3, 4]], dtype=np.float32)


@pytest.mark.parametrize(
    ("vectors", "field", "words"),
    [
        (
            [encode_vectors(np.ones((2, 4)), model="newer")],
            "columns.vectors[0].model",
            r"are 'old' \(8 floats\), 'new/v2' \(4 floats\), 'third' \(2 floats\)",
        ),
        (
            [encode_vectors(np.ones((2, 4)), model="old")],
            "columns.vectors[0].dimension",
            r"is 4, but model 'old' has dimension 8; .* there are 'new/v2' \(4 floats\)",
        ),
        (
            [
                encode_vectors(np.ones((2, 8)), model="old"),
                encode_vectors(NAN_IN_ONE, model="new/v2"),
            ],
            "vectors['new/v2'][1]",
            "holds nan at position 0",
        ),
        ([encode_vectors(NAN_IN_ONE, model="new/v2")], "vectors[1]", "holds nan at position 0"),
        (
            [
                encode_vectors(np.ones((2, 8)), model="old", absent=np.array([False, True])),
                encode_vectors(np.ones((2, 4)), model="new/v2", absent=np.array([False, True])),
            ],
            "vectors[1]",
            "there is none; send a vector of at least one model of 'old', 'new/v2', 'third'",
        ),
        (
            [
                encode_vectors(np.ones((2, 8)), model="old"),
                encode_vectors(np.ones((2, 8)), model=""),
            ],
            "columns.vectors[1].model",
            "'old' has an entry before",
        ),
    ],
)
def test_vectors_that_do_not_fit_are_refused_with_the_models_there_are(
    vectors: list[columns_pb2.Vectors], field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as error:
        records.decode_upsert(encoded(vectors=vectors), collection=BARE)
    assert [one.field for one in error.value.violations] == [field]


def test_queries_are_of_one_model_and_whole() -> None:
    def decoded(**changes: object) -> PublicSearch:
        request = wire_search.encode_search("papers", k=1, **changes)  # type: ignore[arg-type]
        return wire_search.decode_search(request, collection=BARE)

    found = decoded(queries=np.ones((1, 4)), model="new/v2")
    assert (found.model, found.options.model) == (NEW, "new/v2")
    assert decoded(query_ids=["a"], model="third").model == THIRD
    assert decoded(texts=["a"], model="third").model == THIRD
    assert decoded(queries=np.ones((1, 8))).options.model == "old", "a node may not know who serves"
    for parts in ({"queries": np.ones((1, 4))}, {"texts": ["a"]}, {"query_ids": ["a"]}):
        with pytest.raises(InvalidArgument, match=r"is 'nwe', but the models of .* \(8 floats\)"):
            decoded(**parts, model="nwe")
    request = wire_search.encode_search("papers", k=1, queries=np.ones((1, 4)), model="new/v2")
    request.vectors.validity = b"\1"
    with pytest.raises(InvalidArgument, match="every row must be a vector"):
        wire_search.decode_search(request, collection=BARE)
    with pytest.raises(InvalidArgument, match="is 8, but model 'new/v2' has dimension 4"):
        decoded(queries=np.ones((1, 8)), model="new/v2")


# ------------------------------------------------------------------------------------- coordinator


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with memory_cluster(tmp_path) as cluster:
        coordinator, _ = await started(cluster, shard_count=1)
        yield coordinator


async def test_a_model_is_added_once(coordinator: Coordinator) -> None:
    collections = coordinator.collections
    added = await collections.add_model("packages", NEW, None, deadline=soon())
    assert [one.name for one in added.models] == ["m", "new/v2"]
    assert added.model.name == "m"
    again = await collections.add_model("packages", NEW, None, deadline=soon())
    assert again == added, "not even a revision changes"
    for other, text_model, words in (
        (replace(NEW, dimension=5), None, "its dimension is 4, not 5"),
        (replace(NEW, metric=Metric.L2), None, "its metric is cosine, not l2"),
        (NEW, TEXT, r"its embedder\.kind is none, not openai"),
    ):
        with pytest.raises(AlreadyExists, match=words):
            await collections.add_model("packages", other, text_model, deadline=soon())


async def test_what_is_wrong_with_a_new_model_is_named_as_its_field(
    coordinator: Coordinator,
) -> None:
    collections = coordinator.collections
    for model, text_model, field in (
        (ModelSpec("x", 0, Metric.L2), None, "model.dimension"),
        (ModelSpec("", 4, Metric.L2), None, "model.name"),
        (NEW, replace(TEXT, embedder=EmbedderSpec("telepathy")), "model.embedder.kind"),
    ):
        with pytest.raises(InvalidArgument) as error:
            await collections.add_model("packages", model, text_model, deadline=soon())
        assert [one.field for one in error.value.violations] == [field]
    for number in range(MODELS_MAX - 1):
        spec = ModelSpec(f"n{number}", 4, Metric.L2)
        await collections.add_model("packages", spec, None, deadline=soon())
    with pytest.raises(InvalidArgument, match=f"1 to {MODELS_MAX} at a time"):
        await collections.add_model("packages", NEW, None, deadline=soon())
    with pytest.raises(NotFound):
        await collections.add_model("packagse", NEW, None, deadline=soon())


async def test_models_that_are_added_at_the_same_time_are_all_there(
    coordinator: Coordinator,
) -> None:
    specs = [ModelSpec(f"n{number}", number + 1, Metric.L2) for number in range(MODELS_MAX - 1)]
    await asyncio.gather(
        *(coordinator.collections.add_model("packages", s, None, deadline=soon()) for s in specs)
    )
    found = await coordinator.collections.get("packages")
    assert set(found.models[1:]) == set(specs)


async def test_the_serving_model_stays_and_names_are_never_used_again(
    coordinator: Coordinator,
) -> None:
    collections = coordinator.collections

    async def removed(name: str) -> Collection:
        return await collections.remove_model("packages", name, deadline=soon())

    with pytest.raises(FailedPrecondition, match="drop the collection, or add another model"):
        await removed("m")
    await collections.add_model("packages", NEW, TEXT, deadline=soon())
    with pytest.raises(FailedPrecondition, match=r"serves the searches .* let another one serve"):
        await removed("m")
    with pytest.raises(NotFound, match="did you mean new/v2"):
        await removed("new/v1")
    found = await removed("new/v2")
    assert (found.usable_models, found.text_models) == (spec("packages").models, ())
    assert await removed("new/v2") == found, "an answer that was lost is asked for again"
    with pytest.raises(AlreadyExists, match="give the new one another name"):
        await collections.add_model("packages", NEW, TEXT, deadline=soon())


async def test_the_first_model_keeps_its_meaning_when_it_is_removed(
    coordinator: Coordinator,
) -> None:
    collections = coordinator.collections
    await collections.add_model("packages", NEW, None, deadline=soon())
    await collections.update(
        "packages", lambda one: replace(one, serving=NEW.name), deadline=soon()
    )
    found = await collections.remove_model("packages", "m", deadline=soon())
    assert (found.models[0].name, found.model, found.usable_models) == ("m", NEW, (NEW,))
