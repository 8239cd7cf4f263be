"""An endpoint that speaks OpenAI's `POST {base}/embeddings`: OpenAI, vLLM, TEI, Ollama, LiteLLM.

One attempt a call; `annheal.embedding.texts` repeats, halves and limits. Redirects are not
followed, so that a key goes to the address of the specification only. The key is read for every
request, so that a file can be replaced while the server runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2
import msgspec
import numpy as np
import numpy.typing as npt

from annheal.embedding.host import EmbedderHost
from annheal.embedding.protocol import BadAnswer, Refused, Vectors
from annheal.errors import AnnhealError, FailedPrecondition, ResourceExhausted, Unavailable
from annheal.model.texts.spec import EmbedderSpec
from annheal.runtime.clock import Clock, wall_s
from annheal.runtime.host.secrets import MASK

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_BYTES_SPARE: Final = 1 << 20
BYTES_PER_FLOAT: Final = 32
"""Of an answer in JSON, at most; what is longer is not read to its end."""
EXCERPT_CHARACTERS: Final = 300
DECODE_OFF_LOOP_BYTES: Final = 256 << 10
RETRY_AFTER_S_MAX: Final = 3_600.0

_REFUSALS: Final = (400, 413, 422)
_TRANSIENT: Final = (408, 409, 424, 425)

# One line a request, at INFO, says nothing that the metrics do not.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class _Item(msgspec.Struct):
    embedding: list[float]
    index: int = -1


class _Answer(msgspec.Struct):
    data: list[_Item]


class OpenAiEmbedder:
    """One model at one endpoint.

    Args:
        spec: `url`, `remote_model`, the key's place and so on.
        dimension: floats of a vector.
        host: has the key.
        wall_clock: seconds since the epoch, to understand a Retry-After that is a date.
    """

    def __init__(
        self,
        spec: EmbedderSpec,
        *,
        dimension: int,
        host: EmbedderHost,
        wall_clock: Clock = wall_s,
    ) -> None:
        self._spec = spec
        self._dimension = dimension
        self._host = host
        self._wall_clock = wall_clock
        self._address = f"{spec.url.rstrip('/')}/embeddings"
        self._client: httpx2.AsyncClient | None = None

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self._spec.remote_model} at {self._spec.url}"

    @property
    def dimension(self) -> int:
        """Floats of a vector."""
        return self._dimension

    async def embed(self, texts: Sequence[str], *, timeout_s: float) -> Vectors:
        """Send one request; see `annheal.embedding.protocol.Embedder`."""
        body: dict[str, Any] = {"model": self._spec.remote_model, "input": list(texts)}
        if self._spec.send_dimension:
            body["dimensions"] = self._dimension
        if self._spec.key_file:
            key = await asyncio.to_thread(self._host.key, self._spec)
        else:
            key = self._host.key(self._spec)
        content = await self._post(body, key=key, rows=len(texts), timeout_s=timeout_s)
        if len(content) < DECODE_OFF_LOOP_BYTES:
            return self._rows(content, len(texts))
        return await asyncio.to_thread(self._rows, content, len(texts))

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _post(
        self, body: Mapping[str, Any], *, key: str, rows: int, timeout_s: float
    ) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        bytes_max = ANSWER_BYTES_SPARE + rows * self._dimension * BYTES_PER_FLOAT
        try:
            async with self._connected().stream(
                "POST",
                self._address,
                content=msgspec.json.encode(body),
                headers=headers,
                timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            ) as response:
                content = await _read(response, bytes_max=bytes_max)
        except httpx2.TimeoutException as error:
            raise Unavailable(
                f"{self.name} did not answer within {timeout_s:.1f} s",
                reason="EMBEDDER_TIMEOUT",
            ) from error
        except httpx2.HTTPError as error:
            text = _masked(f"{type(error).__name__}: {error}", key)
            raise Unavailable(
                f"{self.name} cannot be reached: {text}", reason="EMBEDDER_UNAVAILABLE"
            ) from error
        if response.status_code != httpx2.codes.OK:
            raise self._failure(response, content, key=key)
        if content is None:
            raise Unavailable(
                f"{self.name} sent more than {bytes_max} bytes for {rows} vectors",
                reason="EMBEDDER_BAD_ANSWER",
            )
        return content

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            self._client = httpx2.AsyncClient(
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=self._spec.concurrency),
            )
        return self._client

    def _failure(
        self, response: httpx2.Response, content: bytes | None, *, key: str
    ) -> AnnhealError | Refused:
        status = response.status_code
        said = _masked(_excerpt(content or b""), key)
        text = f"{self.name} answered {status}{f': {said}' if said else ''}"
        retry_after_s = self._retry_after_s(response.headers.get("Retry-After", ""))
        if status in _REFUSALS:
            return Refused(text)
        if status == httpx2.codes.TOO_MANY_REQUESTS:
            return ResourceExhausted(
                text, reason="EMBEDDER_RATE_LIMIT", retry_after_s=retry_after_s
            )
        if status >= httpx2.codes.INTERNAL_SERVER_ERROR or status in _TRANSIENT:
            return Unavailable(text, reason="EMBEDDER_UNAVAILABLE", retry_after_s=retry_after_s)
        if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            return FailedPrecondition(
                f"{text}; see that the key which key_env or key_file name is the right one",
                reason="EMBEDDER_KEY_REFUSED",
            )
        return FailedPrecondition(
            f"{text}; see that url and remote_model are right", reason="EMBEDDER_REJECTED"
        )

    def _retry_after_s(self, header: str) -> float | None:
        """Return the seconds of a Retry-After header (RFC 9110: a number, or a date)."""
        try:
            seconds = float(header)
        except ValueError:
            try:
                moment = parsedate_to_datetime(header)
            except ValueError:
                return None
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            seconds = moment.timestamp() - self._wall_clock()
        return min(max(seconds, 0.0), RETRY_AFTER_S_MAX) if seconds == seconds else None

    def _rows(self, content: bytes, count: int) -> list[npt.NDArray[np.float32]]:
        """Return the vectors in the order of the texts; their lengths are not looked at."""
        answer = _decoded(content, name=self.name)
        if len(answer.data) != count:
            raise BadAnswer(f"{self.name} returned {len(answer.data)} vectors for {count} texts")
        places = [item.index for item in answer.data]
        if any(place != -1 for place in places) and sorted(places) != list(range(count)):
            raise BadAnswer(
                f"{self.name} numbered the vectors of {count} texts {places[:10]}; every index"
                " from 0 on must be there once"
            )
        rows: list[npt.NDArray[np.float32]] = [_EMPTY] * count
        with np.errstate(over="ignore"):  # what overflows is infinite, which is found later
            for number, item in enumerate(answer.data):
                place = number if item.index == -1 else item.index
                rows[place] = np.array(item.embedding, dtype=np.float64).astype(np.float32)
        return rows


_EMPTY = np.empty(0, dtype=np.float32)
_DECODER = msgspec.json.Decoder(_Answer)


async def _read(response: httpx2.Response, *, bytes_max: int) -> bytes | None:
    """Return the body, None if it is longer than `bytes_max`."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > bytes_max:
            return None
        parts.append(part)
    return b"".join(parts)


def _decoded(content: bytes, *, name: str) -> _Answer:
    with contextlib.suppress(msgspec.DecodeError):
        return _DECODER.decode(content)
    # NaN is no JSON, but what Python's own encoder writes for it; others write null.
    try:
        given = json.loads(content)
        items = [
            _Item(
                [np.nan if value is None else float(value) for value in item["embedding"]],
                int(item.get("index", -1)),
            )
            for item in given["data"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unavailable(
            f"{name} sent something else than embeddings:"
            f" {_excerpt(content)[:80]!r} ({type(error).__name__})",
            reason="EMBEDDER_BAD_ANSWER",
        ) from error
    return _Answer(items)


def _excerpt(content: bytes) -> str:
    """Return what an error's body says, in one short line."""
    try:
        given = json.loads(content)
        error = given.get("error", given)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        text = content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= EXCERPT_CHARACTERS else f"{line[:EXCERPT_CHARACTERS]}..."


def _masked(text: str, key: str) -> str:
    return text.replace(key, MASK) if key else text
