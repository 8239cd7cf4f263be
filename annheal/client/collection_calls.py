"""Calls that create, describe, change and drop collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, get_type_hints

import msgspec
import numpy as np

from annheal.client.arguments import as_count, as_flag, as_mapping, as_text, as_word
from annheal.client.connection import ServerConnection, never
from annheal.client.inputs import as_schema
from annheal.errors import InvalidArgument
from annheal.model.collection import (
    AttributeType,
    Collection,
    CollectionSettings,
    IndexSettings,
    Metric,
    ModelSpec,
)
from annheal.model.suggestions import suggestion
from annheal.model.texts.spec import EmbedderSpec, TextModel, embedder_violations
from annheal.model.texts.template import parse_template
from annheal.model.topology.cluster import CollectionStatus
from annheal.runtime.retry import is_retryable


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection and what it holds at the moment (`status` None: it was not asked for)."""

    collection: Collection
    status: CollectionStatus | None


class CollectionCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection

    async def create_collection(
        self,
        name: str,
        dimension: int,
        *,
        metric: Metric | str = Metric.COSINE,
        attributes: Mapping[str, AttributeType | str] | None = None,
        shard_count: int = 1,
        model: str = "default",
        embedder: EmbedderSpec | Mapping[str, Any] | str | None = None,
        source: str = "",
        index: IndexSettings | Mapping[str, Any] | None = None,
        settings: CollectionSettings | Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Collection:
        """Create a collection; returns when its shards are served.

        Args:
            name: a letter, then up to 63 letters, digits, "_" and "-".
            dimension: floats per vector.
            metric: "cosine", "inner_product" or "l2".
            attributes: what filters may use, name to type: "keyword", "keyword_list", "int64",
                "float64", "bool" or "timestamp".
            shard_count: parts that can lie on different nodes.
            model: the name that tags the vectors; "minilm_l6" to search by text that clients embed.
            embedder: how the server turns texts into vectors: a kind ("minilm_l6"), or options such
                as `{"kind": "openai", "url": "http://localhost:8080/v1", "remote_model": "m"}`;
                docs/embedders.md lists them.
            source: the text of a record that is written without text and vector, such as
                `"{name}: {summary}"` over its attributes and payload.
            index: build parameters, `{"m": 16, "ef_construction": 100}`.
            settings: fields of `CollectionSettings`, `{"recall_objective": 0.98}`.
            timeout_s: time for the call; the client's by default.

        Raises:
            AlreadyExists: the name is taken.
            InvalidArgument: a field is wrong; `violations` name it.
            UnknownOutcome: the answer was lost; it is not sent again by itself.
        """
        spec = ModelSpec(
            as_text(model, "model"),
            as_count(dimension, "dimension", least=1),
            as_word(metric, Metric, "metric"),
        )
        text_models = _text_models(spec.name, embedder, source)
        schema = as_schema(attributes)
        index_settings = _filled(IndexSettings(), index, field="index")
        collection_settings = _filled(CollectionSettings(), settings, field="settings")
        api = self._connection.api
        created = await self._connection.write(
            lambda left_s: api.create_collection(
                as_text(name, "name"),
                models=[spec],
                text_models=text_models,
                schema=schema,
                shard_count=as_count(shard_count, "shard_count", least=1),
                index=index_settings,
                settings=collection_settings,
                timeout_s=left_s,
            ),
            deadline=self._connection.deadline(timeout_s),
            retryable=never,
        )
        self._connection.forget(name)
        self._connection.learn(created)
        return created

    async def get_collection(self, name: str, *, timeout_s: float | None = None) -> Collection:
        """Describe a collection; raises `NotFound`."""
        info = await self.describe_collection(name, with_status=False, timeout_s=timeout_s)
        return info.collection

    async def describe_collection(
        self, name: str, *, with_status: bool = True, timeout_s: float | None = None
    ) -> CollectionInfo:
        """Describe a collection and count what it holds; raises `NotFound`."""
        api = self._connection.api
        as_text(name, "name")
        as_flag(with_status, "with_status")
        collection, status = await self._connection.read(
            lambda left_s: api.get_collection(name, with_status=with_status, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )
        self._connection.learn(collection)
        return CollectionInfo(collection, status)

    async def list_collections(self, *, timeout_s: float | None = None) -> list[Collection]:
        """Return all collections by name."""
        api, deadline = self._connection.api, self._connection.deadline(timeout_s)
        found: list[Collection] = []
        token = ""
        while True:

            async def page(left_s: float, token: str = token) -> tuple[tuple[Collection, ...], str]:
                return await api.list_collections(page_token=token, timeout_s=left_s)

            collections, token = await self._connection.read(page, deadline=deadline)
            found.extend(collections)
            if not token:
                return found

    async def update_collection(
        self,
        name: str,
        *,
        settings: Mapping[str, Any] | None = None,
        index: Mapping[str, Any] | None = None,
        embedder: Mapping[str, Any] | None = None,
        model: str | None = None,
        if_revision: int | None = None,
        timeout_s: float | None = None,
    ) -> Collection:
        """Change settings, field by field; None sets a field back to its default.

        Of the `embedder`, what says where and how fast it works can be changed (docs/embedders.md);
        it is that of the serving model, or of `model`.
        Nodes use them as soon as the metadata store has told them, moments after the return.
        Raises `Conflict` unless the collection is at `if_revision` (when given).
        """
        as_text(name, "name")
        changes = {f"settings.{k}": v for k, v in as_mapping(settings, "settings").items()}
        changes.update({f"index.{k}": v for k, v in as_mapping(index, "index").items()})
        changes.update({f"embedder.{k}": v for k, v in as_mapping(embedder, "embedder").items()})
        revision = None if if_revision is None else as_count(if_revision, "if_revision", most=2**62)
        if not changes:
            raise InvalidArgument.of("settings", "names nothing to change")
        tag = "" if model is None else as_text(model, "model")
        api = self._connection.api
        updated = await self._connection.write(
            lambda left_s: api.update_collection(
                name, changes=changes, if_revision=revision, model=tag, timeout_s=left_s
            ),
            deadline=self._connection.deadline(timeout_s),
            retryable=is_retryable if if_revision is None else never,
        )
        self._connection.learn(updated)
        return updated

    async def add_model(
        self,
        collection: str,
        model: str,
        dimension: int,
        *,
        metric: Metric | str = Metric.COSINE,
        embedder: EmbedderSpec | Mapping[str, Any] | str | None = None,
        source: str = "",
        timeout_s: float | None = None,
    ) -> Collection:
        """Add a model: records may have vectors of it beside those of the others.

        Searches are answered from the serving model's vectors as before, unless they name this one.
        Adding the same model again changes nothing.

        Args:
            collection: its name.
            model: the name that tags the vectors; never one that a removed model had.
            dimension: floats per vector.
            metric: "cosine", "inner_product" or "l2".
            embedder: as in `create_collection`.
            source: as in `create_collection`.
            timeout_s: time for the call; the client's by default.

        Raises:
            NotFound: there is no such collection.
            AlreadyExists: the name means another model; the message says how that one differs.
            InvalidArgument: a field is wrong, or the collection has 4 models.
        """
        spec = ModelSpec(
            as_text(model, "model"),
            as_count(dimension, "dimension", least=1),
            as_word(metric, Metric, "metric"),
        )
        text_model = next(iter(_text_models(spec.name, embedder, source)), None)
        api = self._connection.api
        as_text(collection, "collection")
        changed = await self._connection.write(
            lambda left_s: api.add_model(
                collection, model=spec, text_model=text_model, timeout_s=left_s
            ),
            deadline=self._connection.deadline(timeout_s),
        )
        self._connection.learn(changed)
        return changed

    async def remove_model(
        self, collection: str, model: str, *, timeout_s: float | None = None
    ) -> Collection:
        """Remove a model that does not serve: its vectors cannot be read or searched any more.

        Its name cannot be used again in this collection. Raises `NotFound` for a collection or a
        model that is not there, `FailedPrecondition` for the serving model.
        """
        api = self._connection.api
        as_text(collection, "collection")
        as_text(model, "model")
        changed = await self._connection.write(
            lambda left_s: api.remove_model(collection, model=model, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )
        self._connection.learn(changed)
        return changed

    async def drop_collection(self, name: str, *, timeout_s: float | None = None) -> None:
        """Drop a collection and everything in it; raises `NotFound`."""
        api = self._connection.api
        as_text(name, "name")
        try:
            await self._connection.write(
                lambda left_s: api.drop_collection(name, timeout_s=left_s),
                deadline=self._connection.deadline(timeout_s),
                # A repeated drop could hit a collection that was created anew.
                retryable=never,
            )
        finally:
            self._connection.forget(name)


def _text_models(
    model: str, given: EmbedderSpec | Mapping[str, Any] | str | None, source: str
) -> tuple[TextModel, ...]:
    as_text(source, "source")
    if given is None:
        if source:
            raise InvalidArgument.of("source", "needs an embedder for the text that it gives")
        return ()
    spec = as_embedder(given)
    if source:
        parse_template(source)
    return (TextModel(model, spec, source),)


def as_embedder(given: EmbedderSpec | Mapping[str, Any] | str) -> EmbedderSpec:
    """Return the specification that a kind or a mapping of options means.

    Raises `InvalidArgument` for unknown options and values that do not fit.
    """
    if isinstance(given, EmbedderSpec):
        spec = given
    else:
        options: dict[str, Any] = (
            {"kind": given} if isinstance(given, str) else dict(as_mapping(given, "embedder"))
        )
        if isinstance(options.get("options"), Mapping):
            options["options"] = tuple(sorted(options["options"].items()))
        if not options.get("kind"):
            raise InvalidArgument.of("embedder.kind", "is not set, for example openai or onnx")
        spec = _filled(EmbedderSpec(""), options, field="embedder")
    violations = embedder_violations(spec, field="embedder")
    if violations:
        text = "; ".join(f"{one.field}: {one.description}" for one in violations)
        raise InvalidArgument(text, violations=violations)
    return spec


def _filled(base: Any, given: Any, *, field: str) -> Any:
    if given is None or isinstance(given, type(base)):
        return given
    hints = get_type_hints(type(base))
    values: dict[str, Any] = {}
    for name, value in as_mapping(given, field).items():
        if name not in hints:
            raise InvalidArgument.of(f"{field}.{name}", f"is no setting; {suggestion(name, hints)}")
        plain = value.item() if isinstance(value, np.generic) else value
        try:
            if plain is not None:  # None stands for the default, as in an update
                values[name] = msgspec.convert(plain, hints[name])
        except msgspec.ValidationError as error:
            raise InvalidArgument.of(f"{field}.{name}", _mend(value, hints[name], error)) from error
    return replace(base, **values)


def _mend(value: object, hint: Any, error: Exception) -> str:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return f"{value!r} is none of {', '.join(hint)}"
    return f"{value!r}: {error}"
