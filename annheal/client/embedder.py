"""Text to vectors, on the CPU, with a model that a package ships (extra `text`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from annheal.embedding.onnx_model import OnnxModel
from annheal.embedding.shipped import (
    DEFAULT_MODEL,
    MODELS,
    EmbeddingModel,
    load_shipped,
    shipped_model,
)
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.records import Float32Matrix
from annheal.model.texts.spec import TEXT_CHARACTERS_LIMIT
from annheal.model.values.columns import attribute_column
from annheal.model.values.unfit import UnfitValue

__all__ = ["DEFAULT_MODEL", "MODELS", "Embedder"]


class Embedder:
    """A loaded model. `embed` may be called from several threads; it uses the CPU's cores."""

    def __init__(self, model: EmbeddingModel, *, loaded: OnnxModel) -> None:
        self.model = model
        self._loaded = loaded

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL, *, threads: int | None = None) -> Embedder:
        """Load a model by name; about half a second.

        Raises:
            InvalidArgument: there is no such model.
            FailedPrecondition: the extra `text` is not installed; the message says how to.
        """
        model = shipped_model(name)
        return cls(model, loaded=load_shipped(model, threads=threads))

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
            if len(text) > TEXT_CHARACTERS_LIMIT:
                raise InvalidArgument.of(
                    f"texts[{row}]", f"is above {TEXT_CHARACTERS_LIMIT} characters"
                )
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        return self._loaded.embed(texts)
