"""Collections and their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from annheal.errors import Conflict, InvalidArgument
from annheal.model.collection import (
    AttributeField,
    Collection,
    CollectionSettings,
    IndexSettings,
    ModelSpec,
    Schema,
)
from annheal.model.suggestions import suggestion
from annheal.model.texts.spec import CHANGEABLE, EmbedderSpec, TextModel
from annheal.model.topology.cluster import CollectionStatus
from annheal.model.validation import usable_model
from annheal.v1 import collections_pb2 as pb
from annheal.wire.enums import ATTRIBUTE_TYPE, METRIC, POOLING, VECTOR_STORAGE
from annheal.wire.timestamps import decode_seconds, encode_seconds

SettingsT = TypeVar("SettingsT", CollectionSettings, IndexSettings)

_SETTINGS = tuple(f.name for f in dataclasses.fields(CollectionSettings))
_INDEX = tuple(f.name for f in dataclasses.fields(IndexSettings))
_STORAGE = "settings.storage"
_EMBEDDER_PLAIN: Final = (
    "kind", "url", "remote_model", "folder", "key_env", "key_file", "query_prefix",
    "document_prefix", "send_dimension",
)  # fmt: skip
_EMBEDDER_WITH_DEFAULT: Final = (
    "normalize", "tokens_max", "batch_texts", "batch_tokens", "text_characters_max",
    "requests_per_minute", "tokens_per_minute", "timeout_s", "retries", "concurrency",
)  # fmt: skip
_PATHS = frozenset(
    (
        "settings",
        "index",
        *(f"settings.{n}" for n in _SETTINGS),
        *(f"index.{n}" for n in _INDEX),
        *(f"embedder.{n}" for n in CHANGEABLE),
    )
)


# ------------------------------------------------------------------------------------ collections


def encode_collection(collection: Collection) -> pb.Collection:
    """Return `collection` with every setting filled in."""
    return pb.Collection(
        id=collection.id,
        name=collection.name,
        models=_encode_models(_serving_first(collection), collection.text_models),
        attributes=_encode_schema(collection.schema),
        shard_count=collection.shard_count,
        replica_count=collection.replica_count,
        index=_encode_index(collection.index),
        settings=_encode_settings(collection.settings),
        created_at=encode_seconds(collection.created_at_s),
        revision=collection.revision,
        serving=collection.model.name,
    )


def _serving_first(collection: Collection) -> list[ModelSpec]:
    """Return the models that are not removed; older clients take the first for the serving one."""
    return sorted(collection.usable_models, key=lambda one: one != collection.model)


def decode_collection(message: pb.Collection) -> Collection:
    """Return the collection of an answer."""
    return Collection(
        id=message.id,
        name=message.name,
        models=_decode_models(message.models),
        schema=_decode_schema(message.attributes),
        shard_count=message.shard_count,
        replica_count=message.replica_count,
        index=_overlay(IndexSettings(), message.index, _INDEX),
        settings=_overlay(CollectionSettings(), message.settings, _SETTINGS),
        created_at_s=decode_seconds(message.created_at),
        revision=message.revision,
        text_models=_decode_text_models(message.models),
        serving=message.serving or (message.models[0].name if message.models else ""),
    )


def encode_collection_status(status: CollectionStatus) -> pb.CollectionStatus:
    """Return what a collection holds, as a message."""
    return pb.CollectionStatus(
        shards_serving=status.shards_serving,
        live_rows=status.live_rows,
        dead_rows=status.dead_rows,
        unindexed_rows=status.unindexed_rows,
        segments=status.segments,
        size_bytes=status.size_bytes,
    )


def decode_collection_status(message: pb.CollectionStatus) -> CollectionStatus:
    """Return what a collection holds."""
    return CollectionStatus(
        shards_serving=message.shards_serving,
        live_rows=message.live_rows,
        dead_rows=message.dead_rows,
        unindexed_rows=message.unindexed_rows,
        segments=message.segments,
        size_bytes=message.size_bytes,
    )


# --------------------------------------------------------------------------------------- requests


def encode_create_collection(
    name: str,
    *,
    models: Sequence[ModelSpec],
    text_models: Sequence[TextModel] = (),
    schema: Schema = (),
    shard_count: int | None = None,
    replica_count: int | None = None,
    index: IndexSettings | None = None,
    settings: CollectionSettings | None = None,
    serving: str = "",
) -> pb.CreateCollectionRequest:
    """Return a create; what is None is the server's to choose."""
    return pb.CreateCollectionRequest(
        name=name,
        models=_encode_models(models, text_models),
        attributes=_encode_schema(schema),
        shard_count=shard_count,
        replica_count=replica_count,
        index=None if index is None else _encode_index(index),
        settings=None if settings is None else _encode_settings(settings),
        serving=serving,
    )


def decode_create_collection(
    request: pb.CreateCollectionRequest, *, collection_id: str, created_at_s: float
) -> Collection:
    """Return the collection to create, for `validate_collection` to check."""
    return Collection(
        id=collection_id,
        name=request.name,
        models=_decode_models(request.models),
        schema=_decode_schema(request.attributes),
        shard_count=request.shard_count if request.HasField("shard_count") else 1,
        replica_count=request.replica_count if request.HasField("replica_count") else 1,
        index=_overlay(IndexSettings(), request.index, _INDEX),
        settings=_overlay(CollectionSettings(), request.settings, _SETTINGS),
        created_at_s=created_at_s,
        text_models=_decode_text_models(request.models),
        serving=request.serving,
    )


def encode_update_collection(
    name: str,
    *,
    changes: dict[str, Any],
    if_revision: int | None = None,
    model: str = "",
) -> pb.UpdateCollectionRequest:
    """Return an update of single fields: `changes` by path, None for the default.

    `model` is the one whose embedder is changed, empty for the serving one.

    Paths are those of the mask, for example `{"settings.recall_objective": 0.99}`. Raises
    `InvalidArgument` for an unknown path or a value of the wrong type.
    """
    request = pb.UpdateCollectionRequest(
        name=name, update_mask=FieldMask(paths=list(changes)), model=model
    )
    if if_revision is not None:
        request.if_revision = if_revision
    for path, value in changes.items():
        _check_path(path)
        group, _, leaf = path.partition(".")
        if value is None:
            continue
        if not leaf:
            raise InvalidArgument.of(path, "names a group; give values field by field")
        if path == _STORAGE:
            request.settings.storage = VECTOR_STORAGE.encode_checked(value, field=path)
            continue
        try:
            setattr(getattr(request, group), leaf, value)
        except (TypeError, ValueError) as error:
            raise InvalidArgument.of(path, str(error)) from error
    return request


def apply_update(request: pb.UpdateCollectionRequest, *, collection: Collection) -> Collection:
    """Return `collection` as the update wants it, for validation to check; `revision` is kept.

    Raises `InvalidArgument` for an unknown path in the mask and `Conflict` when the collection is
    at another revision than the update asks for.
    """
    if request.HasField("if_revision") and request.if_revision != collection.revision:
        raise Conflict(
            f"collection {collection.name!r} is at revision {collection.revision}, the update is"
            f" for {request.if_revision}; read it again",
            reason="REVISION_CHANGED",
        )
    paths = list(request.update_mask.paths)
    for path in paths:
        _check_path(path)
    if not paths:
        settings = _overlay(collection.settings, request.settings, _SETTINGS)
        index = _overlay(collection.index, request.index, _INDEX)
    else:
        settings = _replace(
            collection.settings, CollectionSettings(), request.settings, _leaves(paths, "settings")
        )
        index = _replace(collection.index, IndexSettings(), request.index, _leaves(paths, "index"))
    text_models = _changed_embedder(request, collection, _leaves(paths, "embedder"))
    return dataclasses.replace(collection, settings=settings, index=index, text_models=text_models)


def _changed_embedder(
    request: pb.UpdateCollectionRequest, collection: Collection, leaves: Sequence[str]
) -> tuple[TextModel, ...]:
    """Return the text models with the options `leaves` of one model's embedder changed."""
    if not leaves:
        if request.HasField("embedder"):
            raise InvalidArgument.of("update_mask", "must name the options of the embedder")
        if request.model:
            raise InvalidArgument.of("model", "is set, but no option of its embedder is changed")
        return collection.text_models
    model = usable_model(request.model or collection.model.name, collection=collection)
    changed = collection.text_model(model.name)
    if changed is None:
        raise InvalidArgument.of(
            "embedder",
            f"model {model.name!r} of collection {collection.name!r} has none; clients send its"
            " vectors",
        )
    wanted = _decode_embedder(request.embedder, field="embedder")
    values = {name: getattr(wanted, name) for name in leaves}
    embedder = dataclasses.replace(changed.embedder, **values)
    return tuple(
        dataclasses.replace(one, embedder=embedder) if one is changed else one
        for one in collection.text_models
    )


def _check_path(path: str) -> None:
    if path not in _PATHS:
        raise InvalidArgument.of(
            "update_mask", f"{path!r} cannot be changed; {suggestion(path, _PATHS)}"
        )


def _leaves(paths: Sequence[str], group: str) -> list[str]:
    if group in paths:
        return list(_SETTINGS if group == "settings" else _INDEX)
    return [path.partition(".")[2] for path in paths if path.startswith(f"{group}.")]


def encode_add_model(
    collection: str, *, model: ModelSpec, text_model: TextModel | None
) -> pb.AddModelRequest:
    """Return the request to add a model, with how texts become its vectors."""
    (message,) = _encode_models([model], () if text_model is None else (text_model,))
    return pb.AddModelRequest(collection=collection, model=message)


def decode_add_model(request: pb.AddModelRequest) -> tuple[ModelSpec, TextModel | None]:
    """Return the model to add, and how texts become its vectors."""
    if not request.HasField("model"):
        raise InvalidArgument.of("model", "is not set")
    message = request.model
    spec = ModelSpec(
        name=message.name,
        dimension=message.dimension,
        metric=METRIC.decode(message.metric, field="model.metric"),
    )
    return spec, _decode_text_model(message, field="model")


# ------------------------------------------------------------------------------------------ parts


def _encode_models(
    models: Sequence[ModelSpec], text_models: Sequence[TextModel]
) -> list[pb.ModelSpec]:
    messages = [
        pb.ModelSpec(name=m.name, dimension=m.dimension, metric=METRIC.encode(m.metric))
        for m in models
    ]
    _add_text_models(messages, text_models)
    return messages


def _decode_models(messages: Sequence[pb.ModelSpec]) -> tuple[ModelSpec, ...]:
    return tuple(
        ModelSpec(
            name=message.name,
            dimension=message.dimension,
            metric=METRIC.decode(message.metric, field=f"models[{number}].metric"),
        )
        for number, message in enumerate(messages)
    )


def _add_text_models(messages: Sequence[pb.ModelSpec], text_models: Sequence[TextModel]) -> None:
    """Add to the messages of models what `text_models` say about them."""
    by_name = {one.model: one for one in text_models}
    for message in messages:
        found = by_name.get(message.name)
        if found is not None:
            message.embedder.CopyFrom(_encode_embedder(found.embedder))
            message.source = found.source


def _decode_text_models(messages: Sequence[pb.ModelSpec]) -> tuple[TextModel, ...]:
    """Return how texts become vectors, for those of the models that say so."""
    found = (
        _decode_text_model(message, field=f"models[{number}]")
        for number, message in enumerate(messages)
    )
    return tuple(one for one in found if one is not None)


def _decode_text_model(message: pb.ModelSpec, *, field: str) -> TextModel | None:
    """Return how texts become vectors of a model; None: it does not say so.

    A source without an embedder comes with an embedder without a kind, which validation refuses.
    """
    if not (message.HasField("embedder") or message.source):
        return None
    return TextModel(
        model=message.name,
        embedder=_decode_embedder(message.embedder, field=f"{field}.embedder"),
        source=message.source,
    )


def _encode_embedder(spec: EmbedderSpec) -> pb.EmbedderSpec:
    """Return `spec` with every option filled in."""
    values: dict[str, Any] = {
        name: getattr(spec, name) for name in (*_EMBEDDER_PLAIN, *_EMBEDDER_WITH_DEFAULT)
    }
    return pb.EmbedderSpec(
        **values, pooling=POOLING.encode(spec.pooling), options=dict(spec.options)
    )


def _decode_embedder(message: pb.EmbedderSpec, *, field: str) -> EmbedderSpec:
    """Return the specification, defaults for what is not set; ranges are for the validation."""
    values: dict[str, Any] = {name: getattr(message, name) for name in _EMBEDDER_PLAIN}
    values |= {n: getattr(message, n) for n in _EMBEDDER_WITH_DEFAULT if message.HasField(n)}
    if message.pooling:
        values["pooling"] = POOLING.decode(message.pooling, field=f"{field}.pooling")
    return EmbedderSpec(**values, options=tuple(sorted(message.options.items())))


def _encode_schema(schema: Schema) -> list[pb.AttributeField]:
    return [pb.AttributeField(name=f.name, type=ATTRIBUTE_TYPE.encode(f.type)) for f in schema]


def _decode_schema(messages: Sequence[pb.AttributeField]) -> Schema:
    return tuple(
        AttributeField(
            name=message.name,
            type=ATTRIBUTE_TYPE.decode(message.type, field=f"attributes[{number}].type"),
        )
        for number, message in enumerate(messages)
    )


def _encode_settings(settings: CollectionSettings) -> pb.CollectionSettings:
    values = {name: getattr(settings, name) for name in _SETTINGS}
    values["storage"] = VECTOR_STORAGE.encode_checked(settings.storage, field=_STORAGE)
    return pb.CollectionSettings(**values)


def _encode_index(index: IndexSettings) -> pb.IndexSettings:
    return pb.IndexSettings(m=index.m, ef_construction=index.ef_construction)


def _overlay(
    base: SettingsT, message: pb.CollectionSettings | pb.IndexSettings, names: Sequence[str]
) -> SettingsT:
    given = {name: _given(message, name) for name in names if message.HasField(name)}
    return dataclasses.replace(base, **given)


def _given(message: pb.CollectionSettings | pb.IndexSettings, name: str) -> Any:
    value = getattr(message, name)
    return VECTOR_STORAGE.decode(value, field=_STORAGE) if name == "storage" else value


def _replace(
    current: SettingsT,
    defaults: SettingsT,
    message: pb.CollectionSettings | pb.IndexSettings,
    names: Sequence[str],
) -> SettingsT:
    values = {
        name: _given(message, name) if message.HasField(name) else getattr(defaults, name)
        for name in names
    }
    return dataclasses.replace(current, **values)
