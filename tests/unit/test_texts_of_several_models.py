"""Texts of records become vectors of every model that has an embedder; real HTTP embedders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from annheal.coordinator.data_path.texts import Texts
from annheal.embedding.host import EmbedderHost
from annheal.errors import Unavailable
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.records import RecordBatch, lacking
from annheal.model.texts.spec import EmbedderSpec, TextModel
from annheal.model.write import TextRecords
from annheal.runtime.deadline import Deadline
from annheal.runtime.offload import Offload
from tests.support.embedding_server import EmbeddingServer, Fault, serve_embeddings, vector_of
from tests.support.shards import record_batch, shard_collection

OLD = ModelSpec("old", 8, Metric.COSINE)
NEW = ModelSpec("new", 5, Metric.COSINE)
IDS = ["a", "b", "c"]


@pytest.fixture
def servers() -> Iterator[tuple[EmbeddingServer, EmbeddingServer]]:
    with serve_embeddings() as old, serve_embeddings() as new:
        new.dimension = NEW.dimension
        yield old, new


@pytest.fixture
def collection(servers: tuple[EmbeddingServer, EmbeddingServer]) -> Collection:
    specs = [EmbedderSpec("openai", url=one.url, remote_model="m", retries=0) for one in servers]
    return replace(
        shard_collection(),
        models=(OLD, NEW),
        text_models=(
            TextModel(OLD.name, specs[0], "{colour}"),
            TextModel(NEW.name, specs[1], "{colour} {size}"),
        ),
    )


@pytest.fixture
async def texts() -> AsyncIterator[Texts]:
    offload = Offload(threads=1, name="test")
    texts = Texts(EmbedderHost(), offload=offload, texts_max=100, process="test")
    yield texts
    await texts.close()
    await offload.close()


def records(given: tuple[str, ...] | None) -> TextRecords:
    batch = record_batch(IDS)
    return TextRecords(batch.ids, given, batch.attributes, batch.payloads)


async def embedded(texts: Texts, collection: Collection, of: TextRecords) -> RecordBatch:
    return await texts.records(collection, of, deadline=Deadline.after(30.0))


async def test_one_text_is_embedded_by_every_model(texts: Texts, collection: Collection) -> None:
    batch = await embedded(texts, collection, records(("x", "y", "z")))
    assert batch.model == collection.tag_of(OLD)
    np.testing.assert_allclose(batch.vectors, [vector_of(t) for t in "xyz"], atol=1e-6)
    (new,) = batch.further
    assert new.model == NEW.name
    np.testing.assert_allclose(
        new.vectors, [vector_of(t, dimension=NEW.dimension) for t in "xyz"], atol=1e-6
    )


async def test_each_model_has_its_own_source(texts: Texts, collection: Collection) -> None:
    """The size of one record is missing: the new model has no vector of it."""
    of = records(None)
    colours = of.attributes.column("colour").to_pylist()
    sizes = pa.array([1, None, 3], type=pa.int64())
    attributes = of.attributes.set_column(1, of.attributes.schema.field(1), sizes)
    batch = await embedded(texts, collection, replace(of, attributes=attributes))
    np.testing.assert_allclose(batch.vectors, [vector_of(c) for c in colours], atol=1e-6)
    (new,) = batch.further
    assert lacking(new.vectors).tolist() == [False, True, False]
    expected = [vector_of(f"{colours[i]} {i + 1}", dimension=NEW.dimension) for i in (0, 2)]
    np.testing.assert_allclose(new.vectors[[0, 2]], expected, atol=1e-6)


async def test_a_write_does_not_fail_because_a_model_that_does_not_serve_is_away(
    texts: Texts, collection: Collection, servers: tuple[EmbeddingServer, EmbeddingServer]
) -> None:
    old, new = servers
    new.always = Fault.ERROR
    batch = await embedded(texts, collection, records(("x", "y", "z")))
    assert (batch.model, batch.further) == (collection.tag_of(OLD), ())
    new.always = Fault.NONE
    new.refuses = lambda text: text == "y"
    batch = await embedded(texts, collection, records(("x", "y", "z")))
    assert lacking(batch.further[0].vectors).tolist() == [False, True, False]
    old.always = Fault.ERROR
    with pytest.raises(Unavailable):
        await embedded(texts, collection, records(("x", "y", "z")))
    # The other way round once the new model serves.
    new.refuses = lambda text: False
    serving = replace(collection, serving=NEW.name)
    batch = await embedded(texts, serving, records(("x", "y", "z")))
    assert (batch.model, batch.further) == (serving.tag_of(NEW), ())


async def test_a_removed_model_embeds_nothing(
    texts: Texts, collection: Collection, servers: tuple[EmbeddingServer, EmbeddingServer]
) -> None:
    removed = replace(collection, removed=(NEW.name,))
    batch = await embedded(texts, removed, records(("x", "y", "z")))
    assert batch.further == ()
    assert servers[1].requests == []
