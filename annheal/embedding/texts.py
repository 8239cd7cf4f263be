"""Any number of texts with one embedder: batches, limits, retries, and checks of what comes back.

Every text gets its own vector or a reason. What is wrong with one text is found without failing
its batch: a batch that is refused, or whose answer cannot be told apart, is sent again in halves
down to single texts, and a text whose vector is bad is sent once more alone. A batch of n texts
costs 3 n - 1 requests at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from annheal.embedding.batches import estimated_tokens, plan_batches
from annheal.embedding.protocol import BadAnswer, Embedder, Refused, Vectors
from annheal.embedding.rate_limit import RateLimit
from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from annheal.model.collection import Metric
from annheal.model.records import Float32Matrix
from annheal.model.texts.spec import EmbedderSpec
from annheal.runtime.clock import Clock, monotonic_s
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import RetryPolicy, retry
from annheal.runtime.tasks import run_all

RETRY_DELAY_S_MIN = 0.1
RETRY_DELAY_S_MAX = 10.0
NAMED_MAX = 20
"""Texts that an error names one by one."""


class Purpose(StrEnum):
    """What a text is for: some models want different prefixes."""

    QUERY = "query"
    DOCUMENT = "document"


class Fault(StrEnum):
    """Why a text has no vector."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    REFUSED = "refused"
    BAD_VECTOR = "bad_vector"


@dataclass(frozen=True, slots=True)
class NoVector:
    """A text without a vector: what kind of fault, and the reason in words."""

    fault: Fault
    reason: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors (n, d) float32 of n texts; those in `missing`, by position, are zeros there."""

    vectors: Float32Matrix
    missing: dict[int, NoVector] = field(default_factory=dict)


class Observer(Protocol):
    """Is told of every request and every text, for metrics and health."""

    def request(self, seconds: float, error: Exception | None) -> None:
        """Note one request to the embedder; `error` is what it failed with."""
        ...

    def texts(self, embedded: int, missing: Sequence[NoVector]) -> None:
        """Note what became of the texts of one call."""
        ...


class _Silent:
    def request(self, seconds: float, error: Exception | None) -> None: ...

    def texts(self, embedded: int, missing: Sequence[NoVector]) -> None: ...


class TextEmbedder:
    """An embedder with the limits of its specification. `close` closes the embedder.

    Args:
        embedder: does single requests.
        spec: batches, rates, retries and prefixes.
        metric: under cosine the zero vector counts as bad.
        clock: seconds that never go back.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        embedder: Embedder,
        spec: EmbedderSpec,
        *,
        metric: Metric = Metric.COSINE,
        clock: Clock = monotonic_s,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._embedder = embedder
        self._spec = spec
        self._metric = metric
        self._clock = clock
        self._sleep = sleep
        self._gate = asyncio.Semaphore(spec.concurrency)
        self._limit = RateLimit(
            requests_per_minute=spec.requests_per_minute,
            tokens_per_minute=spec.tokens_per_minute,
            clock=clock,
        )
        self._policy = RetryPolicy(
            delay_s_min=RETRY_DELAY_S_MIN,
            delay_s_max=RETRY_DELAY_S_MAX,
            attempts_max=spec.retries + 1,
        )

    @property
    def name(self) -> str:
        """What people know the embedder by."""
        return self._embedder.name

    @property
    def dimension(self) -> int:
        """Floats of a vector."""
        return self._embedder.dimension

    async def embed(
        self,
        texts: Sequence[str],
        *,
        purpose: Purpose,
        deadline: Deadline,
        observer: Observer | None = None,
    ) -> Embedded:
        """Return a vector or a reason for every text; a text's prefix is put before it here.

        `observer` is told of the requests and of the texts.

        Raises what an embedder raises when nothing can be embedded (see `Embedder.embed`), after
        the retries of the specification, and `DeadlineExceeded`.
        """
        spec, seen = self._spec, observer or _Silent()
        prefix = spec.query_prefix if purpose is Purpose.QUERY else spec.document_prefix
        found = Embedded(np.zeros((len(texts), self.dimension), dtype=np.float32))
        fit: list[int] = []
        for position, text in enumerate(texts):
            unfit = _unfit(text, characters_max=spec.text_characters_max)
            if unfit is None:
                fit.append(position)
            else:
                found.missing[position] = unfit
        ready = {position: prefix + texts[position] for position in fit}
        tokens = {position: estimated_tokens(ready[position]) for position in fit}
        planned = plan_batches(
            [tokens[position] for position in fit],
            texts_max=spec.batch_texts,
            tokens_max=spec.batch_tokens,
        )
        batches = iter([[fit[place] for place in batch] for batch in planned])

        async def work() -> None:
            # Whoever is free takes the next batch.
            for batch in batches:
                await self._embed_batch(batch, ready, tokens, found, deadline, seen)

        workers = min(spec.concurrency, len(planned))
        await run_all((work() for _ in range(workers)), name="embed")
        seen.texts(len(texts) - len(found.missing), list(found.missing.values()))
        return found

    async def close(self) -> None:
        """Close the embedder."""
        await self._embedder.close()

    async def _embed_batch(
        self,
        batch: list[int],
        texts: dict[int, str],
        tokens: dict[int, int],
        found: Embedded,
        deadline: Deadline,
        seen: Observer,
    ) -> None:
        """Fill the rows of `found` for `batch`, its texts' positions."""
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            fault, reason = Fault.BAD_VECTOR, ""
            try:
                rows = await self._request(
                    [texts[position] for position in part],
                    tokens=sum(tokens[position] for position in part),
                    deadline=deadline,
                    seen=seen,
                )
            except Refused as error:
                fault, reason = Fault.REFUSED, error.reason
            except BadAnswer as error:
                reason = error.reason
            else:
                waiting += self._take(part, rows, found)
                continue
            if len(part) == 1:
                found.missing[part[0]] = NoVector(fault, reason)
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]

    def _take(self, part: list[int], rows: Vectors, found: Embedded) -> list[list[int]]:
        """Keep the good vectors of an answer; return the texts to ask for again, one by one."""
        again: list[list[int]] = []
        for position, row in zip(part, rows, strict=True):
            with np.errstate(over="ignore"):  # what overflows is infinite, and found below
                vector = np.asarray(row, dtype=np.float32)
            wrong = self._wrong(vector)
            if not wrong:
                found.vectors[position] = vector
            elif len(part) == 1:
                found.missing[position] = NoVector(Fault.BAD_VECTOR, wrong)
            else:
                again.append([position])
        return again

    def _wrong(self, vector: npt.NDArray[np.float32]) -> str:
        """Return what is wrong with a vector, nothing if it is good."""
        if vector.shape != (self.dimension,):
            floats = vector.shape[0] if vector.ndim == 1 else vector.shape
            return (
                f"{self.name} returned a vector of {floats} floats, but the model has"
                f" {self.dimension}"
            )
        finite = np.isfinite(vector)
        if not finite.all():
            place = int(np.argmin(finite))
            return f"{self.name} returned a vector with {vector[place]} at position {place}"
        if self._metric is Metric.COSINE and not vector.any():
            return f"{self.name} returned the zero vector, which has no direction"
        return ""

    async def _request(
        self, texts: list[str], *, tokens: int, deadline: Deadline, seen: Observer
    ) -> Vectors:
        async def attempt(until: Deadline) -> Vectors:
            async with self._gate:
                await self._admit(tokens, until)
                timeout_s = min(self._spec.timeout_s, until.remaining_s)
                return await self._once(texts, timeout_s, seen)

        return await retry(attempt, deadline=deadline, policy=self._policy, wait=self._sleep)

    async def _admit(self, tokens: int, until: Deadline) -> None:
        """Return when the rate limit lets a request through."""
        while (wait_s := self._limit.wait_s()) > 0.0:
            if wait_s >= until.remaining_s:
                raise ResourceExhausted(
                    f"{self.name}: the limit on its rate lets no request through for"
                    f" {wait_s:.1f} s, which is longer than the call may take",
                    reason="EMBEDDER_RATE_LIMIT",
                    retry_after_s=wait_s,
                )
            await self._sleep(wait_s)
        self._limit.take(tokens=tokens)

    async def _once(self, texts: list[str], timeout_s: float, seen: Observer) -> Vectors:
        began_s = self._clock()
        failed: Exception | None = None
        try:
            async with asyncio.timeout(timeout_s):
                rows = await self._embedder.embed(texts, timeout_s=timeout_s)
            if len(rows) != len(texts):
                raise BadAnswer(f"{self.name} returned {len(rows)} vectors for {len(texts)} texts")
            return rows
        except TimeoutError as error:
            failed = Unavailable(
                f"{self.name} did not answer within {timeout_s:.1f} s", reason="EMBEDDER_TIMEOUT"
            )
            raise failed from error
        except (AnnhealError, Refused, BadAnswer) as error:
            failed = error
            if isinstance(error, ResourceExhausted) and error.retry_after_s:
                self._limit.hold(error.retry_after_s)
            raise
        finally:
            seen.request(self._clock() - began_s, failed)


def refuse_missing(found: Embedded, *, place: Callable[[int], str]) -> None:
    """Raise for the texts without a vector; `place(position)` is the caller's word for a text.

    `InvalidArgument`: whoever wrote the texts must change them. `FailedPrecondition`: the embedder
    is at fault, not the texts.
    """
    if not found.missing:
        return
    violations = [
        FieldViolation(place(position), one.reason)
        for position, one in sorted(found.missing.items())[:NAMED_MAX]
    ]
    text = "; ".join(f"{one.field}: {one.description}" for one in violations)
    more = len(found.missing) - len(violations)
    text += f"; and {more} more" if more else ""
    if all(one.fault is Fault.BAD_VECTOR for one in found.missing.values()):
        raise FailedPrecondition(text, reason="EMBEDDER_BAD_ANSWER")
    raise InvalidArgument(text, violations=violations, reason="TEXT_NOT_EMBEDDED")


def _unfit(text: str, *, characters_max: int) -> NoVector | None:
    if not text.strip():
        return NoVector(Fault.EMPTY, "is empty; there is nothing to embed")
    if len(text) > characters_max:
        return NoVector(
            Fault.TOO_LONG,
            f"has {len(text)} characters; the embedder takes at most {characters_max}",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return NoVector(Fault.REFUSED, f"is no valid Unicode text: {error.reason}")
    return None
