"""The contract over every kind of embedder, a plugin among them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from annheal.embedding import registry
from annheal.embedding.host import EmbedderHost
from annheal.embedding.local import LocalEmbedder
from annheal.embedding.onnx_model import OnnxModel, load_folder
from annheal.embedding.protocol import Embedder, Vectors
from annheal.embedding.registry import kinds, make_embedder
from annheal.embedding.shipped import DEFAULT_MODEL, MODELS, load_shipped, model_file
from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.model.texts.spec import EmbedderSpec, Pooling
from tests.contract.embedder_contract import TEXTS, TIMEOUT_S, EmbedderContract, cosines, vectors_of
from tests.support.embedding_server import (
    DIMENSION,
    MODEL,
    EmbeddingServer,
    serve_embeddings,
    vector_of,
)

MINILM = MODELS[DEFAULT_MODEL]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as found:
        yield found


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> EmbedderHost:
    """A folder with one model: the shipped one, with its tokenizer as a file."""
    root = tmp_path_factory.mktemp("embedders")
    folder = root / "models" / "minilm"
    folder.mkdir(parents=True)
    shutil.copy(model_file(MINILM), folder / "model.onnx")
    with resources.as_file(
        resources.files("annheal.embedding") / "bert-base-uncased-vocab.txt"
    ) as vocabulary:
        made = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    made.enable_truncation(128)
    made.save(str(folder / "tokenizer.json"))
    return EmbedderHost(root)


@pytest.fixture(scope="module")
def folder_model(host: EmbedderHost) -> OnnxModel:
    folder = host.model_folder(EmbedderSpec("onnx", folder="minilm"))
    return load_folder(folder, pooling=Pooling.MEAN, normalize=True)


@pytest.fixture(scope="module")
def shipped_model() -> OnnxModel:
    return load_shipped(MINILM)


class TestOpenAiEmbedder(EmbedderContract):
    @pytest.fixture
    async def embedder(self, server: EmbeddingServer) -> AsyncIterator[Embedder]:
        server.reset()
        spec = EmbedderSpec("openai", url=server.url, remote_model=MODEL)
        made = make_embedder(spec, dimension=DIMENSION, host=EmbedderHost())
        yield made
        await made.close()


class TestOnnxFolder(EmbedderContract):
    @pytest.fixture
    async def embedder(self, folder_model: OnnxModel) -> AsyncIterator[Embedder]:
        made = LocalEmbedder(lambda: folder_model, name="minilm", dimension=384)
        yield made
        await made.close()


class TestShippedModel(EmbedderContract):
    @pytest.fixture
    async def embedder(self, shipped_model: OnnxModel) -> AsyncIterator[Embedder]:
        made = LocalEmbedder(lambda: shipped_model, name="minilm", dimension=384)
        yield made
        await made.close()


class HashEmbedder:
    """A plugin."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.name = "hash"

    async def embed(self, texts: Sequence[str], *, timeout_s: float) -> Vectors:
        return [vector_of(text, dimension=self.dimension) for text in texts]

    async def close(self) -> None:
        return


def make_hash(spec: EmbedderSpec, *, dimension: int, host: EmbedderHost) -> Embedder:
    return HashEmbedder(dimension)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with an entry point `hash`."""
    point = metadata.EntryPoint("hash", f"{__name__}:make_hash", registry.ENTRY_POINTS)
    monkeypatch.setattr(
        registry.metadata,
        "entry_points",
        lambda group: (point,) if group == registry.ENTRY_POINTS else (),
    )
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: make_hash)


@pytest.mark.usefixtures("plugin")
class TestPlugin(EmbedderContract):
    @pytest.fixture
    def embedder(self, plugin: None) -> Embedder:
        return make_embedder(EmbedderSpec("hash"), dimension=16, host=EmbedderHost())

    def test_it_is_listed(self) -> None:
        assert kinds() == ("hash", "minilm_l6", "onnx", "openai")


# ----------------------------------------------------------------------------- ONNX in particular


async def test_a_folder_gives_the_same_as_the_shipped_model(host: EmbedderHost) -> None:
    folder = make_embedder(EmbedderSpec("onnx", folder="minilm"), dimension=384, host=host)
    shipped = make_embedder(EmbedderSpec("minilm_l6"), dimension=384, host=host)
    same = cosines(await vectors_of(folder, TEXTS), await vectors_of(shipped, TEXTS))
    assert np.diag(same).min() > 0.999
    await folder.close()
    await shipped.close()


async def test_pooling_and_length_are_as_the_specification_says(host: EmbedderHost) -> None:
    found = {}
    for pooling in Pooling:
        spec = EmbedderSpec("onnx", folder="minilm", pooling=pooling, normalize=False)
        made = make_embedder(spec, dimension=384, host=host)
        found[pooling] = await vectors_of(made, TEXTS)
        await made.close()
    lengths = np.linalg.norm(found[Pooling.MEAN], axis=1)
    assert np.abs(lengths - 1).max() > 0.1
    assert np.diag(cosines(found[Pooling.MEAN], found[Pooling.CLS])).max() < 0.99


async def test_what_lies_beyond_tokens_max_is_not_looked_at(host: EmbedderHost) -> None:
    spec = EmbedderSpec("onnx", folder="minilm", tokens_max=6)
    made = make_embedder(spec, dimension=384, host=host)
    found = await vectors_of(made, ["one two three four five", "one two three four six seven"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    await made.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", None),
        ("tokenizer.json", None),
        ("model.onnx", b"no"),
        ("tokenizer.json", b"{}"),
    ],
)
async def test_a_folder_that_cannot_be_used_is_named(
    host: EmbedderHost, tmp_path: Path, name: str, content: bytes | None
) -> None:
    assert host.folder is not None
    folder = tmp_path / "models" / "broken"
    shutil.copytree(host.folder / "models" / "minilm", folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    made = make_embedder(
        EmbedderSpec("onnx", folder="broken"), dimension=384, host=EmbedderHost(tmp_path)
    )
    with pytest.raises(FailedPrecondition, match=f"broken/{name}"):
        await made.embed(["a"], timeout_s=TIMEOUT_S)
    await made.close()


async def test_another_dimension_is_told_before_anything_is_embedded(host: EmbedderHost) -> None:
    made = make_embedder(EmbedderSpec("onnx", folder="minilm"), dimension=256, host=host)
    with pytest.raises(FailedPrecondition, match="384 floats, but the collection's model has 256"):
        await made.embed(["a"], timeout_s=TIMEOUT_S)
    await made.close()


async def test_without_a_folder_of_embedders_the_error_says_so() -> None:
    made = make_embedder(EmbedderSpec("onnx", folder="minilm"), dimension=384, host=EmbedderHost())
    with pytest.raises(FailedPrecondition, match="set embedder_dir"):
        await made.embed(["a"], timeout_s=TIMEOUT_S)
    await made.close()


# ------------------------------------------------------------------------------------- the registry


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (EmbedderSpec("opnai"), "kind: no embedder of kind 'opnai' .* did you mean openai"),
        (EmbedderSpec("openai", remote_model="m"), "url: is not set"),
        (EmbedderSpec("openai", url="http://h"), "remote_model: is not set"),
        (EmbedderSpec("onnx"), "folder: is not set"),
        (EmbedderSpec("onnx", folder="m", url="http://h"), "url: .*no such option"),
        (EmbedderSpec("minilm_l6", key_file="k"), "key_file: .*no such option"),
        (EmbedderSpec("minilm_l6"), "kind: minilm_l6 has 384 floats, but the model has 8"),
    ],
)
def test_what_a_kind_needs_and_lacks_is_named(spec: EmbedderSpec, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        make_embedder(spec, dimension=DIMENSION, host=EmbedderHost())


def test_only_allowed_addresses_can_be_named() -> None:
    host = EmbedderHost(url_prefixes=("https://api.openai.com/v1", "http://10.0.0.5:8080"))
    for url in ("https://api.openai.com/v1/", "http://10.0.0.5:8080/v1"):
        make_embedder(EmbedderSpec("openai", url=url, remote_model="m"), dimension=8, host=host)
    for url in ("https://api.openai.com.evil.example/v1", "http://10.0.0.5:80801/v1", "http://x"):
        with pytest.raises(InvalidArgument, match="url: is not one of the addresses"):
            make_embedder(EmbedderSpec("openai", url=url, remote_model="m"), dimension=8, host=host)
