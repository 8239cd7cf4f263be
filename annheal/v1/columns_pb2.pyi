from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FloatArray(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("model", "dimension", "packed", "floats", "validity")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    FLOATS_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    dimension: int
    packed: bytes
    floats: FloatArray
    validity: bytes
    def __init__(self, model: _Optional[str] = ..., dimension: _Optional[int] = ..., packed: _Optional[bytes] = ..., floats: _Optional[_Union[FloatArray, _Mapping]] = ..., validity: _Optional[bytes] = ...) -> None: ...

class AttributeColumn(_message.Message):
    __slots__ = ("name", "validity", "keywords", "keyword_lists", "int64s", "float64s", "bools", "timestamps_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_LISTS_FIELD_NUMBER: _ClassVar[int]
    INT64S_FIELD_NUMBER: _ClassVar[int]
    FLOAT64S_FIELD_NUMBER: _ClassVar[int]
    BOOLS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    validity: bytes
    keywords: KeywordColumn
    keyword_lists: KeywordListColumn
    int64s: bytes
    float64s: bytes
    bools: bytes
    timestamps_us: bytes
    def __init__(self, name: _Optional[str] = ..., validity: _Optional[bytes] = ..., keywords: _Optional[_Union[KeywordColumn, _Mapping]] = ..., keyword_lists: _Optional[_Union[KeywordListColumn, _Mapping]] = ..., int64s: _Optional[bytes] = ..., float64s: _Optional[bytes] = ..., bools: _Optional[bytes] = ..., timestamps_us: _Optional[bytes] = ...) -> None: ...

class KeywordColumn(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class KeywordListColumn(_message.Message):
    __slots__ = ("lengths", "values")
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lengths: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class RecordColumns(_message.Message):
    __slots__ = ("ids", "vectors", "attributes", "payloads", "versions")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    vectors: _containers.RepeatedCompositeFieldContainer[Vectors]
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeColumn]
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Iterable[_Union[Vectors, _Mapping]]] = ..., attributes: _Optional[_Iterable[_Union[AttributeColumn, _Mapping]]] = ..., payloads: _Optional[_Iterable[bytes]] = ..., versions: _Optional[_Iterable[int]] = ...) -> None: ...

class Projection(_message.Message):
    __slots__ = ("all_attributes", "attributes", "payload", "vector", "version", "models")
    ALL_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    all_attributes: bool
    attributes: _containers.RepeatedScalarFieldContainer[str]
    payload: bool
    vector: bool
    version: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, all_attributes: _Optional[bool] = ..., attributes: _Optional[_Iterable[str]] = ..., payload: _Optional[bool] = ..., vector: _Optional[bool] = ..., version: _Optional[bool] = ..., models: _Optional[_Iterable[str]] = ...) -> None: ...
