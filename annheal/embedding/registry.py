"""From a collection's specification to its embedder: the kinds there are, plugins included.

A plugin is a package with an entry point in the group `annheal.embedders`: its name is the kind,
its value a function like `Make`. docs/embedders.md shows one.
"""

from __future__ import annotations

from importlib import metadata
from typing import Final, Protocol, cast

from annheal.embedding.host import EmbedderHost
from annheal.embedding.protocol import Embedder
from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.suggestions import suggestion
from annheal.model.texts.spec import OPTION_NAMES, EmbedderSpec

ENTRY_POINTS: Final = "annheal.embedders"


class Make(Protocol):
    """Makes an embedder, without reading a file or opening a connection: those come with use.

    Raises `InvalidArgument`, which names the field of the specification, for what is wrong.
    """

    def __call__(self, spec: EmbedderSpec, *, dimension: int, host: EmbedderHost) -> Embedder:
        """Return an embedder whose vectors have `dimension` floats."""
        ...


_OF_TEXTS = (
    "kind", "query_prefix", "document_prefix", "batch_texts", "batch_tokens",
    "text_characters_max", "requests_per_minute", "tokens_per_minute", "timeout_s", "retries",
    "concurrency",
)  # fmt: skip
_OF_ENDPOINTS = ("url", "remote_model", "key_env", "key_file", "send_dimension")
_OF_FOLDERS = ("folder", "pooling", "normalize", "tokens_max")


def make_embedder(spec: EmbedderSpec, *, dimension: int, host: EmbedderHost) -> Embedder:
    """Return the embedder that `spec` describes; whether it works is seen when it is used.

    Raises `InvalidArgument` for a kind that is not installed here, and for options that the kind
    needs and lacks, or does not have.
    """
    return _maker(spec.kind)(spec, dimension=dimension, host=host)


def kinds() -> tuple[str, ...]:
    """Return the kinds that can be made here, sorted."""
    plugins = {point.name for point in metadata.entry_points(group=ENTRY_POINTS)}
    return tuple(sorted({*_KINDS, *plugins}))


def _maker(kind: str) -> Make:
    own = _KINDS.get(kind)
    if own is not None:
        return own
    found = [one for one in metadata.entry_points(group=ENTRY_POINTS) if one.name == kind]
    if not found:
        raise InvalidArgument.of(
            "kind", f"no embedder of kind {kind!r} is installed here; {suggestion(kind, kinds())}"
        )
    return cast("Make", found[0].load())


def _make_openai(spec: EmbedderSpec, *, dimension: int, host: EmbedderHost) -> Embedder:
    _check(spec, needs=("url", "remote_model"), knows=_OF_ENDPOINTS)
    if not host.allows(spec.url):
        raise InvalidArgument.of(
            "url",
            "is not one of the addresses that this server may ask; its setting embedder_urls"
            " lists them",
        )
    from annheal.embedding.openai_http import OpenAiEmbedder

    return OpenAiEmbedder(spec, dimension=dimension, host=host)


def _make_onnx(spec: EmbedderSpec, *, dimension: int, host: EmbedderHost) -> Embedder:
    _check(spec, needs=("folder",), knows=_OF_FOLDERS)
    from annheal.embedding.local import LocalEmbedder
    from annheal.embedding.onnx_model import OnnxModel, load_folder

    def load() -> OnnxModel:
        return load_folder(
            host.model_folder(spec),
            pooling=spec.pooling,
            normalize=spec.normalize,
            tokens_max=spec.tokens_max,
        )

    return LocalEmbedder(load, name=f"model {spec.folder}", dimension=dimension, nice=host.nice)


def _make_shipped(spec: EmbedderSpec, *, dimension: int, host: EmbedderHost) -> Embedder:
    from annheal.embedding.local import LocalEmbedder
    from annheal.embedding.shipped import load_shipped, shipped_model

    _check(spec, needs=(), knows=())
    model = shipped_model(spec.kind)
    if dimension != model.dimension:
        raise InvalidArgument.of(
            "kind", f"{spec.kind} has {model.dimension} floats, but the model has {dimension}"
        )
    return LocalEmbedder(
        lambda: load_shipped(model), name=spec.kind, dimension=dimension, nice=host.nice
    )


_KINDS: Final[dict[str, Make]] = {
    "openai": _make_openai,
    "onnx": _make_onnx,
    "minilm_l6": _make_shipped,
}


def _check(spec: EmbedderSpec, *, needs: tuple[str, ...], knows: tuple[str, ...]) -> None:
    usual = EmbedderSpec(spec.kind)
    found = [
        FieldViolation(name, f"is not set; an embedder of kind {spec.kind} needs it")
        for name in needs
        if not getattr(spec, name)
    ]
    found += [
        FieldViolation(name, f"an embedder of kind {spec.kind} has no such option; leave it out")
        for name in OPTION_NAMES
        if name not in (*_OF_TEXTS, *knows) and getattr(spec, name) != getattr(usual, name)
    ]
    if found:
        text = "; ".join(f"{one.field}: {one.description}" for one in found)
        raise InvalidArgument(text, violations=found)
