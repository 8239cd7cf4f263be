from annheal.v1 import columns_pb2 as _columns_pb2
from annheal.v1 import filter_pb2 as _filter_pb2
from annheal.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QueryIds(_message.Message):
    __slots__ = ("ids", "model")
    IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class QueryTexts(_message.Message):
    __slots__ = ("texts", "model")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "vectors", "query_ids", "texts", "k", "filter", "projection", "consistency", "session", "exact", "ef", "recall_objective", "timeout_ms", "allow_partial", "explain", "tag")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    QUERY_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    collection: str
    vectors: _columns_pb2.Vectors
    query_ids: QueryIds
    texts: QueryTexts
    k: int
    filter: _filter_pb2.Filter
    projection: _columns_pb2.Projection
    consistency: _session_pb2.Consistency
    session: _session_pb2.SessionToken
    exact: bool
    ef: int
    recall_objective: float
    timeout_ms: int
    allow_partial: bool
    explain: bool
    tag: str
    def __init__(self, collection: _Optional[str] = ..., vectors: _Optional[_Union[_columns_pb2.Vectors, _Mapping]] = ..., query_ids: _Optional[_Union[QueryIds, _Mapping]] = ..., texts: _Optional[_Union[QueryTexts, _Mapping]] = ..., k: _Optional[int] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., projection: _Optional[_Union[_columns_pb2.Projection, _Mapping]] = ..., consistency: _Optional[_Union[_session_pb2.Consistency, str]] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ..., exact: _Optional[bool] = ..., ef: _Optional[int] = ..., recall_objective: _Optional[float] = ..., timeout_ms: _Optional[int] = ..., allow_partial: _Optional[bool] = ..., explain: _Optional[bool] = ..., tag: _Optional[str] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("counts", "scores", "ids", "records", "session", "missing_shards", "explain", "below_objective", "joined")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    BELOW_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    scores: bytes
    ids: _containers.RepeatedScalarFieldContainer[str]
    records: _columns_pb2.RecordColumns
    session: _session_pb2.SessionToken
    missing_shards: _containers.RepeatedScalarFieldContainer[int]
    explain: _containers.RepeatedCompositeFieldContainer[SegmentExplain]
    below_objective: bool
    joined: JoinedModels
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., scores: _Optional[bytes] = ..., ids: _Optional[_Iterable[str]] = ..., records: _Optional[_Union[_columns_pb2.RecordColumns, _Mapping]] = ..., session: _Optional[_Union[_session_pb2.SessionToken, _Mapping]] = ..., missing_shards: _Optional[_Iterable[int]] = ..., explain: _Optional[_Iterable[_Union[SegmentExplain, _Mapping]]] = ..., below_objective: _Optional[bool] = ..., joined: _Optional[_Union[JoinedModels, _Mapping]] = ...) -> None: ...

class JoinedModels(_message.Message):
    __slots__ = ("model", "fallback", "by_fallback", "joined_by")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    BY_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    JOINED_BY_FIELD_NUMBER: _ClassVar[int]
    model: str
    fallback: str
    by_fallback: bytes
    joined_by: str
    def __init__(self, model: _Optional[str] = ..., fallback: _Optional[str] = ..., by_fallback: _Optional[bytes] = ..., joined_by: _Optional[str] = ...) -> None: ...

class SegmentExplain(_message.Message):
    __slots__ = ("shard", "segment_id", "plan", "rows", "live_rows", "matches", "ef", "visited", "duration_s", "without_kernels")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    VISITED_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_KERNELS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    segment_id: str
    plan: str
    rows: int
    live_rows: int
    matches: int
    ef: int
    visited: int
    duration_s: float
    without_kernels: bool
    def __init__(self, shard: _Optional[int] = ..., segment_id: _Optional[str] = ..., plan: _Optional[str] = ..., rows: _Optional[int] = ..., live_rows: _Optional[int] = ..., matches: _Optional[int] = ..., ef: _Optional[int] = ..., visited: _Optional[int] = ..., duration_s: _Optional[float] = ..., without_kernels: _Optional[bool] = ...) -> None: ...
