"""What a collection says about the embedder of its model. docs/embedders.md explains the options.

A specification is stored with the collection and shown to everybody who may read it. It therefore
names where the key of an endpoint is, and never holds the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, urlsplit

from annheal.errors import FieldViolation

KEY_VARIABLE_PREFIX: Final = "ANNHEAL_EMBEDDER_KEY"
"""Only such variables of the environment are read as keys: a collection must not be able to send
any other secret of the server to an address of its own."""
OPTIONS_MAX: Final = 32
OPTION_CHARACTERS_MAX: Final = 1_024
TEXT_CHARACTERS_LIMIT: Final = 1 << 20

_KIND = re.compile(r"^[a-z][a-z0-9_-]{0,63}$")
_KEY_VARIABLE = re.compile(r"^ANNHEAL_EMBEDDER_KEY(_[A-Z0-9_]{1,64})?$")
_FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "tokens_max": (0, 131_072),
    "batch_texts": (1, 2_048),
    "batch_tokens": (1, 1_000_000),
    "text_characters_max": (1, TEXT_CHARACTERS_LIMIT),
    "requests_per_minute": (0.0, 1e6),
    "tokens_per_minute": (0.0, 1e9),
    "timeout_s": (0.1, 600.0),
    "retries": (0, 20),
    "concurrency": (1, 64),
}


CHANGEABLE: Final = (
    "url",
    "key_env",
    "key_file",
    "batch_texts",
    "batch_tokens",
    "text_characters_max",
    "requests_per_minute",
    "tokens_per_minute",
    "timeout_s",
    "retries",
    "concurrency",
)
"""Options that may be changed while a collection lives: where and how fast texts are embedded. The
others decide over the vectors, and belong to another model."""


class Pooling(StrEnum):
    """How an ONNX model's states of single tokens become one vector."""

    MEAN = "mean"
    CLS = "cls"


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """One embedder, as it is stored: everything that is needed to make it, except the key.

    Attributes:
        kind: `openai`, `onnx`, `minilm_l6`, or the name of a plugin.
        url: base address of an endpoint; `/embeddings` is added to it.
        remote_model: name of the model at the endpoint.
        folder: name of a folder with `model.onnx` and `tokenizer.json`, below the server's
            folder of models.
        key_env: variable of the server's environment that holds the key.
        key_file: name of a file that holds the key, in the server's folder of keys.
        query_prefix: put before texts that are searched for, such as `query: `.
        document_prefix: put before texts of records, such as `passage: `.
        pooling: for `onnx`.
        normalize: for `onnx`: bring vectors to unit length.
        tokens_max: for `onnx`: what lies beyond so many tokens of a text is not looked at; 0: as
            the tokenizer says.
        send_dimension: for `openai`: ask for vectors of the model's dimension.
        batch_texts: texts of one request at most.
        batch_tokens: estimated tokens of one request at most; a longer text travels alone.
        text_characters_max: a longer text is refused without a request.
        requests_per_minute: of one server process; 0: no limit.
        tokens_per_minute: estimated tokens, likewise.
        timeout_s: seconds for one request.
        retries: further tries after a failure that may pass.
        concurrency: requests under way at once.
        options: what a plugin needs beside, by name.
    """

    kind: str
    url: str = ""
    remote_model: str = ""
    folder: str = ""
    key_env: str = ""
    key_file: str = ""
    query_prefix: str = ""
    document_prefix: str = ""
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    tokens_max: int = 0
    send_dimension: bool = False
    batch_texts: int = 32
    batch_tokens: int = 16_384
    text_characters_max: int = 32_768
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    timeout_s: float = 30.0
    retries: int = 5
    concurrency: int = 4
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TextModel:
    """How texts become vectors of the model called `model`.

    `source` is a template that gives the text of a record from its payload and attributes;
    `annheal.model.texts.template` has the syntax. Empty: records are written with their text or
    vector.
    """

    model: str
    embedder: EmbedderSpec
    source: str = ""


@dataclass(frozen=True, slots=True)
class EmbedderTest:
    """What one text became: the model, its embedder, floats and length of the vector, seconds."""

    model: str
    embedder: str
    dimension: int
    norm: float
    duration_s: float


OPTION_NAMES: Final = tuple(field.name for field in fields(EmbedderSpec))


def embedder_violations(spec: EmbedderSpec, *, field: str) -> list[FieldViolation]:
    """Return everything that is wrong with `spec`, whatever its kind needs beside.

    Whether there is such a kind, and what it needs, is for `annheal.embedding.registry` to say.
    """
    return [FieldViolation(f"{field}.{name}", text) for name, text in _wrong(spec)]


def _wrong(spec: EmbedderSpec) -> Iterator[tuple[str, str]]:
    if _KIND.fullmatch(spec.kind) is None:
        yield "kind", f"{spec.kind[:80]!r} is no kind of embedder, such as openai or onnx"
    if spec.url:
        yield from (("url", text) for text in _wrong_url(spec.url))
    if spec.key_env and _KEY_VARIABLE.fullmatch(spec.key_env) is None:
        yield (
            "key_env",
            f"{spec.key_env[:80]!r} must be {KEY_VARIABLE_PREFIX}, or {KEY_VARIABLE_PREFIX}_ and"
            " capital letters, digits or '_'; other variables of the server are not read",
        )
    if spec.key_env and spec.key_file:
        yield "key_file", "is set together with key_env; set one of the two"
    for name in ("key_file", "folder"):
        value = getattr(spec, name)
        if value and _FILE_NAME.fullmatch(value) is None:
            yield (
                name,
                f"{value[:80]!r} must be a plain name of letters, digits, '_', '-' or '.', without"
                " a slash: it lies in a folder that the server's settings name",
            )
    for name, (low, high) in _RANGES.items():
        value = getattr(spec, name)
        if not (math.isfinite(value) and low <= value <= high):
            yield name, f"{value} is not between {low:g} and {high:g}"
    for name in ("remote_model", "query_prefix", "document_prefix"):
        if len(getattr(spec, name)) > OPTION_CHARACTERS_MAX:
            yield name, f"has more than {OPTION_CHARACTERS_MAX} characters"
    yield from _wrong_options(spec.options)


def _wrong_options(options: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
    if len(options) > OPTIONS_MAX:
        yield "options", f"{len(options)} options; the limit is {OPTIONS_MAX}"
    for name, value in options:
        if max(len(name), len(value)) > OPTION_CHARACTERS_MAX:
            yield "options", f"{name[:40]!r} has more than {OPTION_CHARACTERS_MAX} characters"


def _wrong_url(url: str) -> Iterator[str]:
    if len(url) > OPTION_CHARACTERS_MAX:
        yield f"has more than {OPTION_CHARACTERS_MAX} characters"
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        yield f"is no address: {error}"
        return
    yield from _wrong_parts(url, parts)


def _wrong_parts(url: str, parts: SplitResult) -> Iterator[str]:
    # Not quoted back: it may hold a password.
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield "must begin with http:// or https:// and name a host"
    if parts.username is not None or parts.password is not None:
        yield "holds a password; name where the key is with key_env or key_file"
    if {".", ".."} & set(parts.path.split("/")) or not re.fullmatch(r"[!-\[\]-~]+", url):
        yield "must have no '.' or '..' in its path, and no space or backslash"
    if parts.query or parts.fragment:
        yield "must not have a query ('?') or a fragment ('#'); give the base address"
