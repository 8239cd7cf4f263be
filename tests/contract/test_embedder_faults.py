"""What goes wrong at an endpoint, over real HTTP: every text gets its own vector or a reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annheal.embedding.host import EmbedderHost
from annheal.embedding.openai_http import OpenAiEmbedder
from annheal.embedding.protocol import BadAnswer, Refused
from annheal.embedding.texts import (
    Embedded,
    NoVector,
    Purpose,
    TextEmbedder,
    refuse_missing,
)
from annheal.embedding.texts import Fault as TextFault
from annheal.errors import (
    AnnhealError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from annheal.model.texts.spec import EmbedderSpec
from annheal.runtime.deadline import Deadline
from tests.support.embedding_server import (
    DIMENSION,
    KEY,
    MODEL,
    EmbeddingServer,
    Fault,
    serve_embeddings,
    vector_of,
)

TEXTS = [f"text {number}" for number in range(10)]
VARIABLE = "ANNHEAL_EMBEDDER_KEY_TEST"
PATIENCE_S = 60.0


class Seen:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.errors: list[Exception | None] = []
        self.embedded = 0
        self.missing: list[NoVector] = []

    def request(self, seconds: float, error: Exception | None) -> None:
        assert seconds >= 0
        self.errors.append(error)

    def texts(self, embedded: int, missing: Sequence[NoVector]) -> None:
        self.embedded += embedded
        self.missing += missing


@pytest.fixture(scope="module")
def serving() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as found:
        yield found


@pytest.fixture
def server(serving: EmbeddingServer) -> EmbeddingServer:
    serving.reset()
    return serving


@pytest.fixture
def spec(server: EmbeddingServer) -> EmbedderSpec:
    return EmbedderSpec(
        "openai", url=server.url, remote_model=MODEL, key_env=VARIABLE, batch_texts=4, retries=2
    )


def embedder_of(spec: EmbedderSpec) -> TextEmbedder:
    host = EmbedderHost(environ={VARIABLE: f" {KEY}\n"})
    return TextEmbedder(OpenAiEmbedder(spec, dimension=DIMENSION, host=host), spec)


@pytest.fixture
async def embedder(spec: EmbedderSpec) -> AsyncIterator[TextEmbedder]:
    made = embedder_of(spec)
    yield made
    await made.close()


async def embed(
    embedder: TextEmbedder,
    texts: Sequence[str] = TEXTS,
    *,
    timeout_s: float = PATIENCE_S,
    observer: Seen | None = None,
) -> Embedded:
    return await embedder.embed(
        texts,
        purpose=Purpose.DOCUMENT,
        deadline=Deadline.after(timeout_s),
        observer=observer,
    )


def assert_own_vectors(found: Embedded, texts: Sequence[str], *, missing: set[int]) -> None:
    assert set(found.missing) == missing
    for position, text in enumerate(texts):
        expected = np.zeros(DIMENSION) if position in missing else vector_of(text)
        np.testing.assert_allclose(found.vectors[position], expected, atol=1e-6)


async def test_batches_prefixes_and_the_key_are_as_specified(
    server: EmbeddingServer, spec: EmbedderSpec
) -> None:
    made = embedder_of(
        replace(spec, query_prefix="query: ", document_prefix="passage: ", send_dimension=True)
    )
    await embed(made)
    await made.embed(["what"], purpose=Purpose.QUERY, deadline=Deadline.after(PATIENCE_S))
    await made.close()
    assert sorted(map(len, server.requests)) == [1, 2, 4, 4]
    sent = [text for request in server.requests for text in request]
    assert sorted(sent) == sorted([*(f"passage: {text}" for text in TEXTS), "query: what"])
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    assert {(body["model"], body["dimensions"]) for body in server.bodies} == {(MODEL, DIMENSION)}


async def test_batches_are_cut_by_tokens_too(server: EmbeddingServer, spec: EmbedderSpec) -> None:
    made = embedder_of(replace(spec, batch_texts=100, batch_tokens=10))
    texts = ["x" * 20, "y" * 20, "z" * 20, "w" * 400]  # 5, 5, 5 and 100 tokens
    assert_own_vectors(await embed(made, texts), texts, missing=set())
    await made.close()
    assert sorted(map(len, server.requests)) == [1, 1, 2]


@pytest.mark.parametrize(
    "fault",
    [
        Fault.RATE_LIMIT,
        Fault.RATE_LIMIT_DATE,
        Fault.ERROR,
        Fault.OVERLOADED,
        Fault.TRUNCATED,
        Fault.RESET,
        Fault.NOT_JSON,
        Fault.ENDLESS,
    ],
)
async def test_what_passes_is_tried_again(
    server: EmbeddingServer, spec: EmbedderSpec, fault: Fault
) -> None:
    seen = Seen()
    made = embedder_of(spec)
    server.faults = [fault]
    assert_own_vectors(await embed(made, observer=seen), TEXTS, missing=set())
    await made.close()
    assert len(server.requests) == 4
    assert sum(error is not None for error in seen.errors) == 1
    assert seen.embedded == len(TEXTS)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault.RATE_LIMIT, ResourceExhausted, "answered 429"),
        (Fault.ERROR, Unavailable, "answered 500: 500"),
        (Fault.TRUNCATED, Unavailable, "something else than embeddings"),
        (Fault.RESET, Unavailable, "cannot be reached"),
        (Fault.ENDLESS, Unavailable, "sent more than"),
    ],
)
async def test_what_does_not_pass_is_raised_after_the_retries(
    server: EmbeddingServer,
    embedder: TextEmbedder,
    fault: Fault,
    kind: type[AnnhealError],
    said: str,
) -> None:
    server.always = fault
    with pytest.raises(kind, match=said) as caught:
        await embed(embedder, ["a"])
    assert len(server.requests) == 3  # one try and two more
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("fault", [Fault.WRONG_KEY, Fault.NO_MODEL, Fault.REDIRECT])
async def test_a_wrong_set_up_is_told_at_once(
    server: EmbeddingServer, embedder: TextEmbedder, fault: Fault
) -> None:
    server.always = fault
    with pytest.raises(FailedPrecondition) as caught:
        await embed(embedder, ["a"])
    assert len(server.requests) == 1
    assert KEY not in caught.value.message
    if fault is Fault.WRONG_KEY:
        assert "***" in caught.value.message  # the server repeats the key; its place is shown


async def test_no_server_is_unavailable(spec: EmbedderSpec) -> None:
    made = embedder_of(replace(spec, url="http://127.0.0.1:9/v1", retries=0))
    with pytest.raises(Unavailable, match=r"hash-8 at http://127.0.0.1:9/v1 cannot be reached"):
        await embed(made, ["a"])
    await made.close()


async def test_the_wait_that_the_server_asks_for_holds_every_request_back(
    server: EmbeddingServer, spec: EmbedderSpec
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(min(seconds, 0.02))

    made = TextEmbedder(
        OpenAiEmbedder(spec, dimension=DIMENSION, host=EmbedderHost(environ={VARIABLE: KEY})),
        replace(spec, concurrency=1, retries=20),
        sleep=sleep,
    )
    server.faults, server.retry_after_s = [Fault.RATE_LIMIT], 0.4
    assert_own_vectors(await embed(made), TEXTS, missing=set())
    await made.close()
    assert max(waits) == pytest.approx(0.4, abs=0.15)


async def test_slow_requests_end_in_time(server: EmbeddingServer, spec: EmbedderSpec) -> None:
    made = embedder_of(replace(spec, timeout_s=4.0, retries=1))
    server.faults = [Fault.SLOW]
    assert_own_vectors(await embed(made, ["a"]), ["a"], missing=set())
    await made.close()
    made = embedder_of(replace(spec, timeout_s=0.3, retries=0))
    server.always = Fault.SLOW
    with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
        await embed(made, ["a"])
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await embed(made, ["a"], timeout_s=0.1)
    await made.close()


async def test_a_cancelled_call_leaves_nothing_behind(
    server: EmbeddingServer, embedder: TextEmbedder
) -> None:
    server.always = Fault.SLOW
    call = asyncio.create_task(embed(embedder))
    await asyncio.to_thread(server.arrived.wait, PATIENCE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    server.always = Fault.NONE
    assert_own_vectors(await embed(embedder), TEXTS, missing=set())


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize(
    "fault", [Fault.SHORT, Fault.TWICE, Fault.NAN, Fault.NULL, Fault.HUGE, Fault.WRONG_DIMENSION]
)
async def test_bad_answers_never_give_a_text_a_foreign_vector(
    server: EmbeddingServer, embedder: TextEmbedder, fault: Fault, always: bool
) -> None:
    if not always:
        server.faults = [fault]
        assert_own_vectors(await embed(embedder), TEXTS, missing=set())
        return
    server.always = fault
    found = await embed(embedder)
    # The last text of each batch has the bad vector. One text alone cannot be confused with
    # another: a repeated index 0 is its own.
    missing = {Fault.TWICE: set(), Fault.SHORT: set(range(len(TEXTS)))}.get(fault, {3, 7, 9})
    assert_own_vectors(found, TEXTS, missing=missing)
    assert {one.fault for one in found.missing.values()} <= {TextFault.BAD_VECTOR}
    if missing:
        with pytest.raises(FailedPrecondition, match=r"texts\[\d\]: .*hash-8") as caught:
            refuse_missing(found, place=lambda row: f"texts[{row}]")
        assert caught.value.reason == "EMBEDDER_BAD_ANSWER"


@pytest.mark.parametrize("fault", [Fault.SHUFFLED, Fault.NO_INDEX])
async def test_the_index_says_whose_vector_it_is(
    server: EmbeddingServer, embedder: TextEmbedder, fault: Fault
) -> None:
    server.always = fault
    assert_own_vectors(await embed(embedder), TEXTS, missing=set())


async def test_one_refused_text_does_not_fail_its_batch(
    server: EmbeddingServer, spec: EmbedderSpec
) -> None:
    made = embedder_of(replace(spec, batch_texts=10))
    server.refuses = lambda text: text in ("text 3", "text 8")
    found = await embed(made)
    assert_own_vectors(found, TEXTS, missing={3, 8})
    assert found.missing[3].fault is TextFault.REFUSED
    assert "maximum context length" in found.missing[3].reason
    with pytest.raises(InvalidArgument, match=r"texts\[3\]: .*; texts\[8\]: ") as caught:
        refuse_missing(found, place=lambda row: f"texts[{row}]")
    assert [one.field for one in caught.value.violations] == ["texts[3]", "texts[8]"]
    await made.close()


async def test_a_server_that_refuses_everything_is_asked_a_bounded_number_of_times(
    server: EmbeddingServer, spec: EmbedderSpec
) -> None:
    made = embedder_of(replace(spec, batch_texts=10))
    server.refuses = lambda text: True
    assert_own_vectors(await embed(made), TEXTS, missing=set(range(10)))
    assert len(server.requests) == 2 * len(TEXTS) - 1
    await made.close()


async def test_texts_that_cannot_be_embedded_are_not_sent(
    server: EmbeddingServer, spec: EmbedderSpec
) -> None:
    made = embedder_of(replace(spec, text_characters_max=20))
    texts = ["", " \n", "x" * 21, "\ud800", "good"]
    found = await embed(made, texts)
    assert_own_vectors(found, [*texts[:3], "", "good"], missing={0, 1, 2, 3})
    assert [found.missing[row].fault for row in range(4)] == [
        TextFault.EMPTY, TextFault.EMPTY, TextFault.TOO_LONG, TextFault.REFUSED,
    ]  # fmt: skip
    assert server.requests == [["good"]]
    await made.close()


async def test_rates_are_kept(server: EmbeddingServer, spec: EmbedderSpec) -> None:
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        await asyncio.sleep(0)

    made = TextEmbedder(
        OpenAiEmbedder(spec, dimension=DIMENSION, host=EmbedderHost(environ={VARIABLE: KEY})),
        replace(spec, batch_texts=1, requests_per_minute=60, concurrency=1),
        clock=lambda: now_s,
        sleep=sleep,
    )
    assert_own_vectors(await embed(made), TEXTS, missing=set())
    assert now_s == pytest.approx(9, abs=0.1)  # one at once, nine more, one a second
    with pytest.raises(ResourceExhausted, match="limit on its rate") as caught:
        await embed(made, ["a"], timeout_s=0.5)
    assert caught.value.retry_after_s == pytest.approx(1, abs=0.1)
    await made.close()


async def test_keys_are_read_again_from_their_file(
    server: EmbeddingServer, spec: EmbedderSpec, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "openai"
    made = OpenAiEmbedder(
        replace(spec, key_env="", key_file="openai"),
        dimension=DIMENSION,
        host=EmbedderHost(tmp_path),
    )
    with pytest.raises(FailedPrecondition, match=r"no key for the embedder: file .*/keys/openai"):
        await made.embed(["a"], timeout_s=PATIENCE_S)
    for key in ("first", "second"):
        path.write_text(f"{key}\n")
        await made.embed(["a"], timeout_s=PATIENCE_S)
        assert server.headers[-1]["Authorization"] == f"Bearer {key}"
    path.write_text("two\nlines")
    with pytest.raises(FailedPrecondition, match="holds characters") as caught:
        await made.embed(["a"], timeout_s=PATIENCE_S)
    assert "lines" not in str(caught.value)
    await made.close()


async def test_a_key_that_is_not_set_is_named(spec: EmbedderSpec) -> None:
    made = OpenAiEmbedder(spec, dimension=DIMENSION, host=EmbedderHost(environ={}))
    with pytest.raises(FailedPrecondition, match=f"variable {VARIABLE} of the server's"):
        await made.embed(["a"], timeout_s=PATIENCE_S)


async def test_the_key_is_in_no_log(
    server: EmbeddingServer, embedder: TextEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults = [Fault.ERROR, Fault.RESET, Fault.TRUNCATED]
    with pytest.raises(Unavailable):
        await embed(embedder, ["a"])
    assert KEY not in caplog.text
    assert KEY not in repr(embedder.__dict__)


FAULTS = st.lists(st.sampled_from([f for f in Fault if f is not Fault.SLOW]), max_size=12)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(max_size=12), max_size=12),
    faults=FAULTS,
    batch=st.integers(1, 6),
    refused=st.sets(st.characters(), max_size=3),
)
def test_every_text_gets_its_own_vector_or_a_reason(
    serving: EmbeddingServer, texts: list[str], faults: list[Fault], batch: int, refused: set[str]
) -> None:
    serving.reset()
    serving.faults, serving.retry_after_s = list(faults), 0.001
    serving.refuses = lambda text: bool(refused & set(text))
    spec = EmbedderSpec("openai", url=serving.url, remote_model=MODEL, batch_texts=batch, retries=0)

    async def run() -> Embedded | None:
        made = TextEmbedder(
            OpenAiEmbedder(spec, dimension=DIMENSION, host=EmbedderHost()),
            spec,
            sleep=lambda seconds: asyncio.sleep(0),
        )
        try:
            return await embed(made, texts)
        except AnnhealError:
            return None  # nothing was embedded, and whoever asked knows it
        finally:
            await made.close()

    found = asyncio.run(run())
    if found is None:
        return
    assert found.vectors.shape == (len(texts), DIMENSION)
    for position, text in enumerate(texts):
        if position in found.missing:
            assert found.missing[position].reason
            assert not found.vectors[position].any()
        else:
            np.testing.assert_allclose(found.vectors[position], vector_of(text), atol=1e-6)


class Broken:
    """A plugin that does not keep to the contract."""

    dimension = DIMENSION
    name = "broken"

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def embed(self, texts: Sequence[str], *, timeout_s: float) -> list[np.ndarray]:  # type: ignore[type-arg]
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer  # type: ignore[return-value]

    async def close(self) -> None:
        return


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ([], TextFault.BAD_VECTOR),
        (np.zeros((1, DIMENSION), np.float32), TextFault.BAD_VECTOR),
        (np.ones((1, DIMENSION, 2), np.float32), TextFault.BAD_VECTOR),
        (BadAnswer("mixed up"), TextFault.BAD_VECTOR),
        (Refused("too rude"), TextFault.REFUSED),
    ],
)
async def test_what_a_plugin_returns_is_checked(answer: object, fault: TextFault) -> None:
    spec = EmbedderSpec("broken", retries=0)
    found = await embed(TextEmbedder(Broken(answer), spec), ["a"])
    assert found.missing[0].fault is fault
