"""What an embedder is: the contract of the three kinds that come with Annheal, and of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32] | Sequence[npt.NDArray[np.float32]]
"""(n, d) float32, or n rows (d,) float32 where an answer may hold rows of different lengths."""


class Refused(Exception):
    """The embedder answered that it does not take this batch because of a text in it.

    Which text it was need not be known: the batch is sent again in halves, down to single texts.
    `reason` is shown to people; it must not hold a key.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadAnswer(Exception):
    """The answer cannot be told apart text by text: vectors are missing, or are not in order.

    As with `Refused`, the batch is sent again in halves: what comes back for one text alone
    cannot belong to another text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Embedder(Protocol):
    """Something that turns texts into vectors of one model.

    Equal texts give equal vectors but for rounding, and embedding changes nothing, so every call
    may be repeated. Calls may run at the same time. Batches are cut, calls repeated, rates limited
    and answers checked by `annheal.embedding.texts.TextEmbedder`; an embedder does one attempt.
    """

    @property
    def name(self) -> str:
        """What people know it by, such as `text-embedding-3-small at https://api.openai.com/v1`."""
        ...

    @property
    def dimension(self) -> int:
        """Floats of a vector."""
        ...

    async def embed(self, texts: Sequence[str], *, timeout_s: float) -> Vectors:
        """Return one vector a text, in the order of the texts; prefixes are there already.

        Args:
            texts: at least one; not more than the specification's `batch_texts`.
            timeout_s: seconds after which the caller does not wait any longer.

        Raises:
            Refused: a text cannot be embedded, whatever the state of the embedder.
            BadAnswer: what came back cannot be told apart.
            ResourceExhausted: too many requests; `retry_after_s` where the embedder says so.
            Unavailable: there was no usable answer; the same call may succeed later.
            FailedPrecondition: the set-up is wrong (no key, no such model): trying again is
                useless until somebody changes it.
        """
        ...

    async def close(self) -> None:
        """Give connections and threads back; calls under way may fail."""
        ...
