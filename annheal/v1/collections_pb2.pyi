import datetime

from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_INNER_PRODUCT: _ClassVar[Metric]
    METRIC_L2: _ClassVar[Metric]

class VectorStorage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_STORAGE_UNSPECIFIED: _ClassVar[VectorStorage]
    VECTOR_STORAGE_FLOAT32: _ClassVar[VectorStorage]
    VECTOR_STORAGE_FP16: _ClassVar[VectorStorage]
    VECTOR_STORAGE_INT8: _ClassVar[VectorStorage]

class AttributeType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTRIBUTE_TYPE_UNSPECIFIED: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_KEYWORD: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_KEYWORD_LIST: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_INT64: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_FLOAT64: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_BOOL: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_TIMESTAMP: _ClassVar[AttributeType]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_CLS: _ClassVar[Pooling]
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_INNER_PRODUCT: Metric
METRIC_L2: Metric
VECTOR_STORAGE_UNSPECIFIED: VectorStorage
VECTOR_STORAGE_FLOAT32: VectorStorage
VECTOR_STORAGE_FP16: VectorStorage
VECTOR_STORAGE_INT8: VectorStorage
ATTRIBUTE_TYPE_UNSPECIFIED: AttributeType
ATTRIBUTE_TYPE_KEYWORD: AttributeType
ATTRIBUTE_TYPE_KEYWORD_LIST: AttributeType
ATTRIBUTE_TYPE_INT64: AttributeType
ATTRIBUTE_TYPE_FLOAT64: AttributeType
ATTRIBUTE_TYPE_BOOL: AttributeType
ATTRIBUTE_TYPE_TIMESTAMP: AttributeType
POOLING_UNSPECIFIED: Pooling
POOLING_MEAN: Pooling
POOLING_CLS: Pooling

class ModelSpec(_message.Message):
    __slots__ = ("name", "dimension", "metric", "embedder", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dimension: int
    metric: Metric
    embedder: EmbedderSpec
    source: str
    def __init__(self, name: _Optional[str] = ..., dimension: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., embedder: _Optional[_Union[EmbedderSpec, _Mapping]] = ..., source: _Optional[str] = ...) -> None: ...

class EmbedderSpec(_message.Message):
    __slots__ = ("kind", "url", "remote_model", "folder", "key_env", "key_file", "query_prefix", "document_prefix", "pooling", "normalize", "send_dimension", "batch_texts", "batch_tokens", "text_characters_max", "requests_per_minute", "tokens_per_minute", "timeout_s", "retries", "concurrency", "options", "tokens_max")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    REMOTE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    KEY_ENV_FIELD_NUMBER: _ClassVar[int]
    KEY_FILE_FIELD_NUMBER: _ClassVar[int]
    QUERY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    SEND_DIMENSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_TEXTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_CHARACTERS_MAX_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    kind: str
    url: str
    remote_model: str
    folder: str
    key_env: str
    key_file: str
    query_prefix: str
    document_prefix: str
    pooling: Pooling
    normalize: bool
    send_dimension: bool
    batch_texts: int
    batch_tokens: int
    text_characters_max: int
    requests_per_minute: float
    tokens_per_minute: float
    timeout_s: float
    retries: int
    concurrency: int
    options: _containers.ScalarMap[str, str]
    tokens_max: int
    def __init__(self, kind: _Optional[str] = ..., url: _Optional[str] = ..., remote_model: _Optional[str] = ..., folder: _Optional[str] = ..., key_env: _Optional[str] = ..., key_file: _Optional[str] = ..., query_prefix: _Optional[str] = ..., document_prefix: _Optional[str] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., normalize: _Optional[bool] = ..., send_dimension: _Optional[bool] = ..., batch_texts: _Optional[int] = ..., batch_tokens: _Optional[int] = ..., text_characters_max: _Optional[int] = ..., requests_per_minute: _Optional[float] = ..., tokens_per_minute: _Optional[float] = ..., timeout_s: _Optional[float] = ..., retries: _Optional[int] = ..., concurrency: _Optional[int] = ..., options: _Optional[_Mapping[str, str]] = ..., tokens_max: _Optional[int] = ...) -> None: ...

class AttributeField(_message.Message):
    __slots__ = ("name", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: AttributeType
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[AttributeType, str]] = ...) -> None: ...

class IndexSettings(_message.Message):
    __slots__ = ("m", "ef_construction")
    M_FIELD_NUMBER: _ClassVar[int]
    EF_CONSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    m: int
    ef_construction: int
    def __init__(self, m: _Optional[int] = ..., ef_construction: _Optional[int] = ...) -> None: ...

class CollectionSettings(_message.Message):
    __slots__ = ("recall_objective", "recall_k", "seal_rows_max", "seal_bytes_max", "seal_age_s", "tombstone_ratio_max", "tombstone_rows_min", "segment_rows_max", "unindexed_rows_max", "segment_bytes_max", "segment_idle_s", "walk_cost_ratio_max", "compaction_automatic", "storage", "recall_budget", "recall_tail_objective", "recall_objective_share")
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    RECALL_K_FIELD_NUMBER: _ClassVar[int]
    SEAL_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    SEAL_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    SEAL_AGE_S_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONE_RATIO_MAX_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONE_ROWS_MIN_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    UNINDEXED_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IDLE_S_FIELD_NUMBER: _ClassVar[int]
    WALK_COST_RATIO_MAX_FIELD_NUMBER: _ClassVar[int]
    COMPACTION_AUTOMATIC_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    RECALL_BUDGET_FIELD_NUMBER: _ClassVar[int]
    RECALL_TAIL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_SHARE_FIELD_NUMBER: _ClassVar[int]
    recall_objective: float
    recall_k: int
    seal_rows_max: int
    seal_bytes_max: int
    seal_age_s: float
    tombstone_ratio_max: float
    tombstone_rows_min: int
    segment_rows_max: int
    unindexed_rows_max: int
    segment_bytes_max: int
    segment_idle_s: float
    walk_cost_ratio_max: float
    compaction_automatic: bool
    storage: VectorStorage
    recall_budget: float
    recall_tail_objective: float
    recall_objective_share: float
    def __init__(self, recall_objective: _Optional[float] = ..., recall_k: _Optional[int] = ..., seal_rows_max: _Optional[int] = ..., seal_bytes_max: _Optional[int] = ..., seal_age_s: _Optional[float] = ..., tombstone_ratio_max: _Optional[float] = ..., tombstone_rows_min: _Optional[int] = ..., segment_rows_max: _Optional[int] = ..., unindexed_rows_max: _Optional[int] = ..., segment_bytes_max: _Optional[int] = ..., segment_idle_s: _Optional[float] = ..., walk_cost_ratio_max: _Optional[float] = ..., compaction_automatic: _Optional[bool] = ..., storage: _Optional[_Union[VectorStorage, str]] = ..., recall_budget: _Optional[float] = ..., recall_tail_objective: _Optional[float] = ..., recall_objective_share: _Optional[float] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("id", "name", "models", "attributes", "shard_count", "replica_count", "index", "settings", "created_at", "revision", "serving")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_COUNT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    models: _containers.RepeatedCompositeFieldContainer[ModelSpec]
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeField]
    shard_count: int
    replica_count: int
    index: IndexSettings
    settings: CollectionSettings
    created_at: _timestamp_pb2.Timestamp
    revision: int
    serving: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelSpec, _Mapping]]] = ..., attributes: _Optional[_Iterable[_Union[AttributeField, _Mapping]]] = ..., shard_count: _Optional[int] = ..., replica_count: _Optional[int] = ..., index: _Optional[_Union[IndexSettings, _Mapping]] = ..., settings: _Optional[_Union[CollectionSettings, _Mapping]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., serving: _Optional[str] = ...) -> None: ...

class CollectionStatus(_message.Message):
    __slots__ = ("shards_serving", "live_rows", "dead_rows", "unindexed_rows", "segments", "size_bytes")
    SHARDS_SERVING_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    UNINDEXED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    shards_serving: int
    live_rows: int
    dead_rows: int
    unindexed_rows: int
    segments: int
    size_bytes: int
    def __init__(self, shards_serving: _Optional[int] = ..., live_rows: _Optional[int] = ..., dead_rows: _Optional[int] = ..., unindexed_rows: _Optional[int] = ..., segments: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("name", "models", "attributes", "shard_count", "replica_count", "index", "settings", "serving")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_COUNT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    name: str
    models: _containers.RepeatedCompositeFieldContainer[ModelSpec]
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeField]
    shard_count: int
    replica_count: int
    index: IndexSettings
    settings: CollectionSettings
    serving: str
    def __init__(self, name: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelSpec, _Mapping]]] = ..., attributes: _Optional[_Iterable[_Union[AttributeField, _Mapping]]] = ..., shard_count: _Optional[int] = ..., replica_count: _Optional[int] = ..., index: _Optional[_Union[IndexSettings, _Mapping]] = ..., settings: _Optional[_Union[CollectionSettings, _Mapping]] = ..., serving: _Optional[str] = ...) -> None: ...

class CreateCollectionResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class GetCollectionRequest(_message.Message):
    __slots__ = ("name", "with_status")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WITH_STATUS_FIELD_NUMBER: _ClassVar[int]
    name: str
    with_status: bool
    def __init__(self, name: _Optional[str] = ..., with_status: _Optional[bool] = ...) -> None: ...

class GetCollectionResponse(_message.Message):
    __slots__ = ("collection", "status")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    status: CollectionStatus
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ..., status: _Optional[_Union[CollectionStatus, _Mapping]] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCollectionsResponse(_message.Message):
    __slots__ = ("collections", "next_page_token")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[Collection]
    next_page_token: str
    def __init__(self, collections: _Optional[_Iterable[_Union[Collection, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateCollectionRequest(_message.Message):
    __slots__ = ("name", "settings", "index", "update_mask", "if_revision", "embedder", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    IF_REVISION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings: CollectionSettings
    index: IndexSettings
    update_mask: _field_mask_pb2.FieldMask
    if_revision: int
    embedder: EmbedderSpec
    model: str
    def __init__(self, name: _Optional[str] = ..., settings: _Optional[_Union[CollectionSettings, _Mapping]] = ..., index: _Optional[_Union[IndexSettings, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., if_revision: _Optional[int] = ..., embedder: _Optional[_Union[EmbedderSpec, _Mapping]] = ..., model: _Optional[str] = ...) -> None: ...

class UpdateCollectionResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class AddModelRequest(_message.Message):
    __slots__ = ("collection", "model")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    model: ModelSpec
    def __init__(self, collection: _Optional[str] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class AddModelResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class RemoveModelRequest(_message.Message):
    __slots__ = ("collection", "model")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    model: str
    def __init__(self, collection: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class RemoveModelResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class DropCollectionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DropCollectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
