"""The contract of `Embedder`, as tests to be run over every kind."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import numpy.typing as npt

from annheal.embedding.protocol import Embedder, Refused

TEXTS = [
    "download files over http",
    "an HTTP client library",
    "colours for the terminal",
    "Größe, naïve, 日本語, 🙂",
    "a",
    "numbers 1 2 3",
]
TIMEOUT_S = 60.0
# Quantized models round by what else is in a batch.
SAME_COSINE_MIN = 0.98


async def vectors_of(embedder: Embedder, texts: list[str]) -> npt.NDArray[np.float32]:
    """Return the vectors as one matrix."""
    return np.asarray(await embedder.embed(texts, timeout_s=TIMEOUT_S))


def cosines(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the cosine of every row of `left` with every row of `right`."""
    left = left / np.linalg.norm(left, axis=1, keepdims=True)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    return np.asarray(left @ right.T)


class EmbedderContract:
    """Subclasses have a fixture `embedder`."""

    async def test_one_vector_a_text(self, embedder: Embedder) -> None:
        found = await vectors_of(embedder, TEXTS)
        assert found.shape == (len(TEXTS), embedder.dimension)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert found.any(axis=1).all()

    async def test_vectors_are_in_the_order_of_the_texts(self, embedder: Embedder) -> None:
        together = await vectors_of(embedder, TEXTS)
        alone = np.concatenate([await vectors_of(embedder, [text]) for text in TEXTS])
        same = cosines(together, alone)
        assert np.diag(same).min() > SAME_COSINE_MIN
        assert (same.argmax(axis=1) == np.arange(len(TEXTS))).all()

    async def test_equal_texts_have_equal_vectors(self, embedder: Embedder) -> None:
        found = await vectors_of(embedder, [TEXTS[0], TEXTS[1], TEXTS[0]])
        np.testing.assert_allclose(found[0], found[2], atol=1e-5)

    async def test_calls_at_the_same_time_do_not_mix(self, embedder: Embedder) -> None:
        asked = [TEXTS[start:] + TEXTS[:start] for start in range(len(TEXTS))]
        alone = await vectors_of(embedder, TEXTS)
        for start, found in enumerate(
            await asyncio.gather(*(vectors_of(embedder, texts) for texts in asked))
        ):
            expected = np.roll(np.arange(len(TEXTS)), -start)
            assert (cosines(found, alone).argmax(axis=1) == expected).all()

    async def test_a_long_text_is_embedded_or_refused(self, embedder: Embedder) -> None:
        with contextlib.suppress(Refused):
            found = await vectors_of(embedder, ["word " * 4_000])
            assert found.shape == (1, embedder.dimension)

    async def test_it_works_after_a_call_was_cancelled(self, embedder: Embedder) -> None:
        call = asyncio.create_task(vectors_of(embedder, TEXTS))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        assert (await vectors_of(embedder, TEXTS)).shape == (len(TEXTS), embedder.dimension)

    async def test_closing_twice_does_nothing(self, embedder: Embedder) -> None:
        await vectors_of(embedder, TEXTS[:1])
        await embedder.close()
        await embedder.close()

    async def test_it_has_a_name(self, embedder: Embedder) -> None:
        assert embedder.name
