"""Several models of one collection: what is accepted and stored, and how they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from annheal.coordinator.app import Coordinator
from annheal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.limits import MODELS_EVER_MAX, MODELS_MAX
from annheal.model.texts.spec import EmbedderSpec, TextModel
from annheal.model.validation import usable_model, validate_collection
from annheal.v1 import collections_pb2
from annheal.wire import collections as wire
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
