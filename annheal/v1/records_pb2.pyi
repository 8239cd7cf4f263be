import datetime

from annheal.v1 import columns_pb2 as _columns_pb2
from annheal.v1 import filter_pb2 as _filter_pb2
from annheal.v1 import session_pb2 as _session_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Vector(_message.Message):
    __slots__ = ("model", "packed", "floats")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    FLOATS_FIELD_NUMBER: _ClassVar[int]
    model: str
    packed: bytes
    floats: _columns_pb2.FloatArray
    def __init__(self, model: _Optional[str] = ..., packed: _Optional[bytes] = ..., floats: _Optional[_Union[_columns_pb2.FloatArray, _Mapping]] = ...) -> None: ...

class AttributeValue(_message.Message):
    __slots__ = ("keyword", "keyword_list", "int64_value", "float64_value", "bool_value", "timestamp_value")
    KEYWORD_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_LIST_FIELD_NUMBER: _ClassVar[int]
    INT64_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT64_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_VALUE_FIELD_NUMBER: _ClassVar[int]
    keyword: str
    keyword_list: KeywordList
    int64_value: int
    float64_value: float
    bool_value: bool
    timestamp_value: _timestamp_pb2.Timestamp
    def __init__(self, keyword: _Optional[str] = ..., keyword_list: _Optional[_Union[KeywordList, _Mapping]] = ..., int64_value: _Optional[int] = ..., float64_value: _Optional[float] = ..., bool_value: _Optional[bool] = ..., timestamp_value: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class KeywordList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("id", "vectors", "attributes", "payload", "text")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: AttributeValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[AttributeValue, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    attributes: _containers.MessageMap[str, AttributeValue]
    payload: bytes
    text: str
    def __init__(self, id: _Optional[str] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., attributes: _Optional[_Mapping[str, AttributeValue]] = ..., payload: _Optional[bytes] = ..., text: _Optional[str] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("collection", "columns", "records", "texts")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    columns: _columns_pb2.RecordColumns
    records: _containers.RepeatedCompositeFieldContainer[Record]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, collection: _Optional[str] = ..., columns: _Optional[_Union[_columns_pb2.RecordColumns, _Mapping]] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class UpsertResponse(_message.Message):
    __slots__ = ("upserted", "session")
    UPSERTED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    upserted: int
    session: _session_pb2.SessionToken
    def __init__(self, upserted: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ...) -> None: ...

class VersionConflict(_message.Message):
    __slots__ = ("id", "version")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("collection", "columns", "if_versions")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    IF_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    columns: _columns_pb2.RecordColumns
    if_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, collection: _Optional[str] = ..., columns: _Optional[_Union[_columns_pb2.RecordColumns, _Mapping]] = ..., if_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class UpdateResponse(_message.Message):
    __slots__ = ("updated", "session", "missing", "conflicts")
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    updated: int
    session: _session_pb2.SessionToken
    missing: _containers.RepeatedScalarFieldContainer[str]
    conflicts: _containers.RepeatedCompositeFieldContainer[VersionConflict]
    def __init__(self, updated: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ..., missing: _Optional[_Iterable[str]] = ..., conflicts: _Optional[_Iterable[_Union[VersionConflict, _Mapping]]] = ...) -> None: ...

class UpsertIfRequest(_message.Message):
    __slots__ = ("upsert", "if_versions")
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    IF_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    upsert: UpsertRequest
    if_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, upsert: _Optional[_Union[UpsertRequest, _Mapping]] = ..., if_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class UpsertIfResponse(_message.Message):
    __slots__ = ("upserted", "session", "conflicts")
    UPSERTED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    upserted: int
    session: _session_pb2.SessionToken
    conflicts: _containers.RepeatedCompositeFieldContainer[VersionConflict]
    def __init__(self, upserted: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ..., conflicts: _Optional[_Iterable[_Union[VersionConflict, _Mapping]]] = ...) -> None: ...

class DeleteIfRequest(_message.Message):
    __slots__ = ("collection", "ids", "if_versions")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    IF_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    if_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., if_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class DeleteIfResponse(_message.Message):
    __slots__ = ("deleted", "session", "conflicts")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    session: _session_pb2.SessionToken
    conflicts: _containers.RepeatedCompositeFieldContainer[VersionConflict]
    def __init__(self, deleted: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ..., conflicts: _Optional[_Iterable[_Union[VersionConflict, _Mapping]]] = ...) -> None: ...

class DeleteByIdsRequest(_message.Message):
    __slots__ = ("collection", "ids")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteByIdsResponse(_message.Message):
    __slots__ = ("deleted", "session")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    session: _session_pb2.SessionToken
    def __init__(self, deleted: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ...) -> None: ...

class DeleteByFilterRequest(_message.Message):
    __slots__ = ("collection", "filter")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    filter: _filter_pb2.Filter
    def __init__(self, collection: _Optional[str] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ...) -> None: ...

class DeleteByFilterResponse(_message.Message):
    __slots__ = ("deleted", "session")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    session: _session_pb2.SessionToken
    def __init__(self, deleted: _Optional[int] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("collection", "ids", "projection", "consistency", "session")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    projection: _columns_pb2.Projection
    consistency: _session_pb2.Consistency
    session: _session_pb2.SessionToken
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., projection: _Optional[_Union[_columns_pb2.Projection, _Mapping]] = ..., consistency: _Optional[_Union[_session_pb2.Consistency, str]] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("records", "session")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    records: _columns_pb2.RecordColumns
    session: _session_pb2.SessionToken
    def __init__(self, records: _Optional[_Union[_columns_pb2.RecordColumns, _Mapping]] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection", "filter", "consistency", "session")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    filter: _filter_pb2.Filter
    consistency: _session_pb2.Consistency
    session: _session_pb2.SessionToken
    def __init__(self, collection: _Optional[str] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., consistency: _Optional[_Union[_session_pb2.Consistency, str]] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("collection", "filter", "projection", "page_size", "cursor")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    collection: str
    filter: _filter_pb2.Filter
    projection: _columns_pb2.Projection
    page_size: int
    cursor: str
    def __init__(self, collection: _Optional[str] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., projection: _Optional[_Union[_columns_pb2.Projection, _Mapping]] = ..., page_size: _Optional[int] = ..., cursor: _Optional[str] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("records", "next_cursor")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    records: _columns_pb2.RecordColumns
    next_cursor: str
    def __init__(self, records: _Optional[_Union[_columns_pb2.RecordColumns, _Mapping]] = ..., next_cursor: _Optional[str] = ...) -> None: ...
