"""A model that runs in this process, behind the Protocol: loaded at its first use, on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from annheal.embedding.onnx_model import OnnxModel
from annheal.embedding.protocol import Vectors
from annheal.errors import FailedPrecondition
from annheal.runtime.offload import Offload


class LocalEmbedder:
    """An `OnnxModel` on one thread; batches beyond wait their turn.

    A batch that was begun is finished even when its caller is cancelled.

    Args:
        load: loads the model; its `FailedPrecondition` is what callers of `embed` get.
        name: what people know it by.
        dimension: floats of a vector, as the collection says.
        nice: steps by which the model's threads have a lower priority.
    """

    def __init__(
        self, load: Callable[[], OnnxModel], *, name: str, dimension: int, nice: int = 0
    ) -> None:
        self._load = load
        self._name = name
        self._dimension = dimension
        self._model: OnnxModel | None = None
        self._loading = asyncio.Lock()
        self._offload = Offload(threads=1, name="embedder", nice=nice)

    @property
    def name(self) -> str:
        """The model."""
        return self._name

    @property
    def dimension(self) -> int:
        """Floats of a vector."""
        return self._dimension

    async def embed(self, texts: Sequence[str], *, timeout_s: float) -> Vectors:
        """Run the model; see `annheal.embedding.protocol.Embedder`."""
        model = await self._loaded()
        return await self._offload.run(model.embed, list(texts))

    async def close(self) -> None:
        """Let the batch under way end, and start nothing more."""
        await self._offload.close()

    async def _loaded(self) -> OnnxModel:
        if self._model is not None:
            return self._model
        async with self._loading:
            if self._model is None:
                model = await self._offload.run(self._load)
                if model.dimension not in (None, self._dimension):
                    raise FailedPrecondition(
                        f"{self._name} gives vectors of {model.dimension} floats, but the"
                        f" collection's model has {self._dimension}",
                        reason="EMBEDDER_DIMENSION",
                    )
                self._model = model
            return self._model
