"""Texts that the server embeds: created, written and searched through the SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annheal import AsyncClient
from annheal.coordinator.app import Coordinator
from annheal.coordinator.metrics import CoordinatorMetrics
from annheal.coordinator.service import services
from annheal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from annheal.model.limits import QUERY_TEXTS_MAX, UPSERT_TEXTS_MAX
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.model.texts.spec import EmbedderSpec
from annheal.rpc import methods
from annheal.rpc.channel import Connection
from annheal.rpc.server import RpcServer
from annheal.runtime.metrics import Metrics
from annheal.v1 import records_pb2
from annheal.wire.search import encode_search
from tests.support.embedding_server import (
    DIMENSION,
    KEY,
    MODEL,
    EmbeddingServer,
    Fault,
    serve_embeddings,
    vector_of,
)
from tests.support.memory_cluster import eventually, memory_cluster
from tests.support.ports import free_port

VARIABLE = "ANNHEAL_EMBEDDER_KEY_TEST"
NAME = "packages"
IDS = [f"p{number}" for number in range(20)]
TEXTS = [f"package {number}" for number in range(20)]


@dataclass(slots=True)
class Served:
    """A cluster, a client of it, and the endpoint that its collections name."""

    coordinator: Coordinator
    client: AsyncClient
    endpoint: EmbeddingServer

    async def create(self, name: str = NAME, **changes: Any) -> None:
        embedder = {
            "kind": "openai", "url": self.endpoint.url, "remote_model": MODEL, "key_env": VARIABLE,
            "query_prefix": "query: ", "retries": 1, **changes.pop("embedder", {}),
        }  # fmt: skip
        await self.client.create_collection(
            name, DIMENSION, model="hash", embedder=embedder, metric="inner_product", **changes
        )


@pytest.fixture(scope="module")
def serving() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as found:
        yield found


@pytest.fixture
async def served(
    tmp_path: Path, serving: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    monkeypatch.setenv(VARIABLE, KEY)
    serving.reset()
    async with memory_cluster(tmp_path) as cluster:
        await cluster.add_node("a")
        coordinator = await cluster.add_coordinator(embedder_texts_max=300)
        server = RpcServer(services(coordinator))
        address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
        await server.start()
        await server.set_serving(True)
        try:
            async with AsyncClient(address, timeout_s=30.0) as client:
                yield Served(coordinator, client, serving)
        finally:
            await server.stop(grace_s=1.0)


async def test_texts_are_written_and_found(served: Served) -> None:
    await served.create()
    written = await served.client.upsert(NAME, IDS, texts=TEXTS)
    assert written.count == len(IDS)
    stored = await served.client.get(NAME, IDS, include=["vector"])
    for record, text in zip(stored, TEXTS, strict=True):
        np.testing.assert_allclose(record.vector, vector_of(text), atol=1e-6)
    # The query is embedded as "query: package 3", as the specification's prefix says.
    found = await served.client.search(NAME, text="package 3", k=20)
    scores = {
        record: float(vector_of("query: package 3") @ vector_of(text))
        for record, text in zip(IDS, TEXTS, strict=True)
    }
    assert found.ids == sorted(scores, key=lambda one: -scores[one])
    assert {header["Authorization"] for header in served.endpoint.headers} == {f"Bearer {KEY}"}
    several = await served.client.search_batch(NAME, texts=["package 3", "package 5"], k=1)
    assert [len(one) for one in several] == [1, 1]


async def test_vectors_of_clients_stay_possible(served: Served) -> None:
    await served.create()
    await served.client.upsert(NAME, ["a"], [vector_of("mine")], model="hash")
    await served.client.upsert(NAME, ["b"], texts=["theirs"])
    assert (await served.client.search(NAME, vector_of("mine"), k=1)).ids == ["a"]
    assert (await served.client.search(NAME, id="b", k=1)).ids == ["b"]


async def test_the_source_gives_the_text(served: Served) -> None:
    await served.create(source="{name}: {summary}", attributes={"name": "keyword"})
    await served.client.upsert(
        NAME,
        ["a", "b"],
        attributes={"name": ["faiss", "numpy"]},
        payloads=[{"summary": "search"}, {"summary": "arrays"}],
    )
    stored = await served.client.get(NAME, ["a", "b"], include="all")
    np.testing.assert_allclose(stored[0].vector, vector_of("faiss: search"), atol=1e-6)
    np.testing.assert_allclose(stored[1].vector, vector_of("numpy: arrays"), atol=1e-6)
    with pytest.raises(InvalidArgument, match=r"records\[1\]: 'summary' of its source is missing"):
        await served.client.upsert(
            NAME,
            ["c", "d"],
            attributes={"name": ["x", "y"]},
            payloads=[{"summary": "search"}, {}],
        )
    assert await served.client.count(NAME) == 2


async def test_records_row_by_row_have_texts_too(served: Served) -> None:
    await served.create()
    async with Connection(served.client.address) as connection:
        request = records_pb2.UpsertRequest(
            collection=NAME,
            records=[records_pb2.Record(id=one, text=text) for one, text in zip("ab", TEXTS)],  # noqa: B905 - two of them
        )
        answer = await connection.call(methods.UPSERT, request, timeout_s=60.0)
        assert answer.upserted == 2
        request.records[1].text = ""
        with pytest.raises(InvalidArgument, match=r"records\[1\].text: is empty"):
            await connection.call(methods.UPSERT, request, timeout_s=60.0)
        request.records[1].vectors.add().packed = vector_of("b").tobytes()
        with pytest.raises(InvalidArgument, match=r"records\[0\].vectors: there is none"):
            await connection.call(methods.UPSERT, request, timeout_s=60.0)


async def test_a_text_that_is_refused_is_named_and_nothing_is_written(served: Served) -> None:
    await served.create()
    served.endpoint.refuses = lambda text: text == TEXTS[7]
    with pytest.raises(InvalidArgument, match=r"texts\[7\]: .*maximum context length") as caught:
        await served.client.upsert(NAME, IDS, texts=TEXTS)
    assert caught.value.reason == "TEXT_NOT_EMBEDDED"
    assert await served.client.count(NAME) == 0
    with pytest.raises(InvalidArgument, match="text: is empty"):
        await served.client.search(NAME, text=" ")


async def test_nothing_is_embedded_for_records_that_are_refused_anyway(served: Served) -> None:
    await served.create(attributes={"name": "keyword"})
    with pytest.raises(InvalidArgument, match=r"attributes\.name"):
        await served.client.upsert(NAME, ["a"], texts=["a"], attributes={"name": ["x" * 5_000]})
    with pytest.raises(InvalidArgument, match="ids"):
        await served.client.upsert(NAME, ["x" * 600], texts=["a"])
    assert served.endpoint.requests == []


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (Fault.WRONG_KEY, FailedPrecondition, "EMBEDDER_KEY_REFUSED"),
        (Fault.NO_MODEL, FailedPrecondition, "EMBEDDER_REJECTED"),
        (Fault.WRONG_DIMENSION, FailedPrecondition, "EMBEDDER_BAD_ANSWER"),
        (Fault.NAN, FailedPrecondition, "EMBEDDER_BAD_ANSWER"),
        (Fault.ERROR, Unavailable, "EMBEDDER_UNAVAILABLE"),
        (Fault.RATE_LIMIT, ResourceExhausted, "EMBEDDER_RATE_LIMIT"),
    ],
)
async def test_what_is_wrong_with_the_embedder_is_told(
    served: Served, fault: Fault, kind: type[Exception], reason: str
) -> None:
    await served.create()
    served.endpoint.always = fault
    # Without the SDK, which tries again what may pass until its time is over.
    async with Connection(served.client.address) as connection:
        with pytest.raises(kind, match=MODEL) as caught:
            await connection.call(
                methods.SEARCH, encode_search(NAME, k=1, texts=["a"]), timeout_s=60.0
            )
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    assert KEY not in str(caught.value)
    served.endpoint.always = Fault.NONE
    await served.client.search(NAME, text="a")


async def test_a_slow_embedder_does_not_outlast_the_caller(served: Served) -> None:
    await served.create()
    served.endpoint.always = Fault.SLOW
    began_s = asyncio.get_running_loop().time()
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await served.client.search(NAME, text="a", timeout_s=0.5)
    assert asyncio.get_running_loop().time() - began_s < served.endpoint.slow_s / 2
    await eventually(lambda: served.coordinator.texts.under_way == 0)
    call = asyncio.create_task(served.client.search(NAME, text="a"))
    await eventually(lambda: served.coordinator.texts.under_way == 1)
    call.cancel()
    await asyncio.wait({call})
    await eventually(lambda: served.coordinator.texts.under_way == 0)


async def test_limits_are_kept(served: Served) -> None:
    await served.create()
    with pytest.raises(InvalidArgument, match=f"embeds at most {QUERY_TEXTS_MAX} texts"):
        await served.client.search_batch(NAME, texts=["a"] * (QUERY_TEXTS_MAX + 1))
    count = UPSERT_TEXTS_MAX + 1
    request = records_pb2.UpsertRequest(collection=NAME, texts=["a"] * count)
    request.columns.ids.extend(str(number) for number in range(count))
    async with Connection(served.client.address) as connection:
        with pytest.raises(InvalidArgument, match=f"at most {UPSERT_TEXTS_MAX} texts"):
            await connection.call(methods.UPSERT, request, timeout_s=60.0)
        # 300 at a time: two calls of 200 do not fit.
        del request.texts[200:], request.columns.ids[200:]
        served.endpoint.always = Fault.SLOW
        first = asyncio.create_task(connection.call(methods.UPSERT, request, timeout_s=30.0))
        await eventually(lambda: served.coordinator.texts.under_way == 200)
        with pytest.raises(ResourceExhausted, match="the limit is 300") as caught:
            await connection.call(methods.UPSERT, request, timeout_s=60.0)
        assert caught.value.reason == "EMBEDDER_BUSY"
        served.endpoint.always = Fault.NONE
        served.endpoint.release.set()
        assert (await first).upserted == 200


async def test_without_an_embedder_the_error_says_so(served: Served) -> None:
    await served.client.create_collection(NAME, DIMENSION, model="hash")
    with pytest.raises(FailedPrecondition, match="has no embedder") as caught:
        await served.client.upsert(NAME, ["a"], texts=["a"])
    assert caught.value.reason == "NO_EMBEDDER"
    with pytest.raises(InvalidArgument, match="an embedder of the server"):
        await served.client.search(NAME, text="a")


async def test_without_a_source_records_need_a_text(served: Served) -> None:
    await served.create()
    with pytest.raises(InvalidArgument, match="vectors: are missing, and so are texts"):
        await served.client.upsert(NAME, ["a"], payloads=[{"a": 1}])


async def test_texts_belong_to_the_collections_own_model(served: Served) -> None:
    await served.create()
    with pytest.raises(InvalidArgument, match="model"):
        await served.client.upsert(NAME, ["a"], texts=["a"], model="other")
    with pytest.raises(InvalidArgument, match=r"texts.model: is 'other'"):
        await served.client.search(NAME, text="a", model="other")
    with pytest.raises(InvalidArgument, match="give one of the two"):
        await served.client.upsert(NAME, ["a"], [vector_of("a")], texts=["a"])


async def test_a_collection_cannot_name_what_the_server_cannot_make(served: Served) -> None:
    for change, said in (
        ({"kind": "opnai"}, r"models\[0\].embedder.kind: no embedder of kind 'opnai'"),
        ({"url": ""}, r"models\[0\].embedder.url: is not set"),
        ({"folder": "m"}, r"models\[0\].embedder.folder: .*no such option"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            await served.create(embedder=change)
    assert await served.client.list_collections() == []


async def test_the_key_is_shown_nowhere(served: Served) -> None:
    await served.create(source="{name}")
    shown = await served.client.get_collection(NAME)
    found = shown.text_model("hash")
    assert found is not None
    assert (found.embedder.key_env, found.source) == (VARIABLE, "{name}")
    assert KEY not in repr(shown)
    assert KEY not in json.dumps(repr(served.coordinator.texts.__dict__))


async def test_collections_that_say_the_same_share_an_embedder(served: Served) -> None:
    for name in ("one", "two"):
        await served.create(name)
        await served.client.search(name, text="a")
    await served.create("three", embedder={"batch_texts": 1})
    await served.client.search("three", text="a")
    assert served.coordinator.texts.embedder_count == 2


async def test_one_text_can_be_tried(served: Served) -> None:
    await served.create()
    found = await served.client.test_embedder(NAME, "a")
    assert served.endpoint.requests == [["query: a"]]
    assert (found.model, found.dimension) == ("hash", DIMENSION)
    assert found.embedder == f"{MODEL} at {served.endpoint.url}"
    assert found.norm == pytest.approx(1.0, abs=1e-5)
    assert found.duration_s > 0
    await served.client.test_embedder(NAME, "a", as_query=False)
    assert served.endpoint.requests[-1] == ["a"]


async def test_the_embedder_of_a_model_that_does_not_serve_works_too(served: Served) -> None:
    """It can be tried, is looked after, and embeds queries that name its model."""
    await served.client.create_collection(NAME, DIMENSION, model="old")
    spec = {
        "kind": "openai",
        "url": served.endpoint.url,
        "remote_model": MODEL,
        "query_prefix": "new: ",
        "retries": 0,
    }
    await served.client.add_model(NAME, "new", DIMENSION, embedder=spec)
    found = await served.client.test_embedder(NAME, "a", model="new")
    assert (found.model, served.endpoint.requests) == ("new", [["new: a"]])
    with pytest.raises(FailedPrecondition, match="no embedder for its model 'old'"):
        await served.client.test_embedder(NAME, "a")
    with pytest.raises(InvalidArgument, match=r"'old' \(\d+ floats\), 'new'"):
        await served.client.test_embedder(NAME, "a", model="other")
    health = await served.client.health()
    (part,) = [one for one in health.parts if one.kind is PartKind.EMBEDDER]
    assert part.works

    await served.client.upsert(
        NAME, ["x", "y"], {"new": [vector_of("new: x"), vector_of("new: y")]}
    )
    (hit,) = await served.client.search(NAME, text="y", model="new", k=1)
    assert (hit.id, served.endpoint.requests[-1]) == ("y", ["new: y"])
    with pytest.raises(InvalidArgument, match="cannot be compared"):
        await served.client.search(NAME, text="y")


async def test_health_says_whether_the_embedder_is_there(served: Served) -> None:
    async def embedders() -> list[PartHealth]:
        health = await served.client.health()
        return [one for one in health.parts if one.kind is PartKind.EMBEDDER]

    assert await embedders() == []
    await served.create(embedder={"retries": 0})
    (part,) = await embedders()
    assert part.works
    assert part.place == f"{MODEL} at {served.endpoint.url}"
    asked = len(served.endpoint.requests)
    await embedders()
    assert len(served.endpoint.requests) == asked  # it has answered a moment ago
    served.endpoint.always = Fault.WRONG_KEY
    with pytest.raises(FailedPrecondition):
        await served.client.search(NAME, text="a")
    (part,) = await embedders()
    assert not part.works
    assert "EMBEDDER_KEY_REFUSED" in part.error
    assert KEY not in part.error
    served.endpoint.always = Fault.NONE
    await served.client.search(NAME, text="a")
    (part,) = await embedders()
    assert part.works


async def test_requests_texts_and_failures_are_counted(served: Served) -> None:
    metrics = Metrics()
    CoordinatorMetrics(served.coordinator, metrics)
    await served.create(embedder={"batch_texts": 10})
    await served.client.upsert(NAME, IDS, texts=TEXTS)
    served.endpoint.refuses = lambda text: text == "bad"
    with pytest.raises(InvalidArgument):
        await served.client.upsert(NAME, ["a", "b"], texts=["bad", " "])

    def counted(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"collection": NAME, **labels})

    assert counted("annheal_embedder_requests_total") == 3
    assert counted("annheal_embedder_seconds_count") == 3
    assert counted("annheal_embedder_texts_total") == 20
    assert counted("annheal_embedder_failures_total", reason="refused") == 1
    assert counted("annheal_embedder_failures_total", reason="text_refused") == 1
    assert counted("annheal_embedder_failures_total", reason="text_empty") == 1


async def test_an_embedder_can_move_while_its_collection_lives(served: Served) -> None:
    await served.create("moves", embedder={"url": f"http://127.0.0.1:{free_port()}", "retries": 0})
    client = served.client
    with pytest.raises(Unavailable):
        await client.search("moves", text="package 3", timeout_s=2.0)
    changed = await client.update_collection(
        "moves", embedder={"url": served.endpoint.url, "batch_texts": 3, "retries": None}
    )
    (embedder,) = [one.embedder for one in changed.text_models]
    assert (embedder.batch_texts, embedder.retries) == (3, EmbedderSpec("openai").retries)
    assert embedder.query_prefix == "query: "
    await client.upsert("moves", IDS, texts=TEXTS)
    assert len(await client.search("moves", text="package 3", k=2)) == 2


@pytest.mark.parametrize(
    ("embedder", "field"),
    [
        ({"remote_model": "other"}, "update_mask"),
        ({"query_prefix": ""}, "update_mask"),
        ({"batch_texts": 0}, "models[0].embedder.batch_texts"),
        ({"key_env": "HOME"}, "models[0].embedder.key_env"),
        ({"url": "ftp://somewhere"}, "models[0].embedder.url"),
    ],
)
async def test_what_decides_over_vectors_cannot_be_changed(
    served: Served, embedder: dict[str, Any], field: str
) -> None:
    await served.create("stays")
    before = await served.client.get_collection("stays")
    with pytest.raises(InvalidArgument) as refused:
        await served.client.update_collection("stays", embedder=embedder)
    assert refused.value.violations[0].field == field
    assert await served.client.get_collection("stays") == before
    await served.client.create_collection("plain", DIMENSION)
    with pytest.raises(InvalidArgument, match="clients send its vectors"):
        await served.client.update_collection("plain", embedder={"retries": 1})
