import datetime

from annheal.v1 import admin_pb2 as _admin_pb2
from annheal.v1 import columns_pb2 as _columns_pb2
from annheal.v1 import filter_pb2 as _filter_pb2
from annheal.v1 import records_pb2 as _records_pb2
from annheal.v1 import search_pb2 as _search_pb2
from annheal.v1 import session_pb2 as _session_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchShardsRequest(_message.Message):
    __slots__ = ("collection_id", "shards", "dimension", "queries", "k", "filter", "exact", "ef", "recall_objective", "projection", "explain", "model", "consistency", "min_sequences", "query_numbers", "tag", "fallback", "fallback_k")
    class MinSequencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUERY_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_K_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shards: _containers.RepeatedScalarFieldContainer[int]
    dimension: int
    queries: bytes
    k: int
    filter: _filter_pb2.Filter
    exact: bool
    ef: int
    recall_objective: float
    projection: _columns_pb2.Projection
    explain: bool
    model: str
    consistency: _session_pb2.Consistency
    min_sequences: _containers.ScalarMap[int, int]
    query_numbers: bytes
    tag: str
    fallback: str
    fallback_k: int
    def __init__(self, collection_id: _Optional[str] = ..., shards: _Optional[_Iterable[int]] = ..., dimension: _Optional[int] = ..., queries: _Optional[bytes] = ..., k: _Optional[int] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., exact: _Optional[bool] = ..., ef: _Optional[int] = ..., recall_objective: _Optional[float] = ..., projection: _Optional[_Union[_columns_pb2.Projection, _Mapping]] = ..., explain: _Optional[bool] = ..., model: _Optional[str] = ..., consistency: _Optional[_Union[_session_pb2.Consistency, str]] = ..., min_sequences: _Optional[_Mapping[int, int]] = ..., query_numbers: _Optional[bytes] = ..., tag: _Optional[str] = ..., fallback: _Optional[str] = ..., fallback_k: _Optional[int] = ...) -> None: ...

class SearchShardsResponse(_message.Message):
    __slots__ = ("counts", "scores", "ids", "columns", "explain", "sequences", "missing_shards", "below_objective", "by_fallback")
    class SequencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    BELOW_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    BY_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    scores: bytes
    ids: _containers.RepeatedScalarFieldContainer[str]
    columns: bytes
    explain: _containers.RepeatedCompositeFieldContainer[_search_pb2.SegmentExplain]
    sequences: _containers.ScalarMap[int, int]
    missing_shards: _containers.RepeatedScalarFieldContainer[int]
    below_objective: bool
    by_fallback: bytes
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., scores: _Optional[bytes] = ..., ids: _Optional[_Iterable[str]] = ..., columns: _Optional[bytes] = ..., explain: _Optional[_Iterable[_Union[_search_pb2.SegmentExplain, _Mapping]]] = ..., sequences: _Optional[_Mapping[int, int]] = ..., missing_shards: _Optional[_Iterable[int]] = ..., below_objective: _Optional[bool] = ..., by_fallback: _Optional[bytes] = ...) -> None: ...

class WriteShardRequest(_message.Message):
    __slots__ = ("collection_id", "shard", "upsert", "delete_ids", "delete_where", "rows")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    DELETE_IDS_FIELD_NUMBER: _ClassVar[int]
    DELETE_WHERE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    upsert: bytes
    delete_ids: DeleteIds
    delete_where: _filter_pb2.Filter
    rows: RowWrite
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., upsert: _Optional[bytes] = ..., delete_ids: _Optional[_Union[DeleteIds, _Mapping]] = ..., delete_where: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., rows: _Optional[_Union[RowWrite, _Mapping]] = ...) -> None: ...

class RowWrite(_message.Message):
    __slots__ = ("upsert", "update", "delete_ids", "if_versions")
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    DELETE_IDS_FIELD_NUMBER: _ClassVar[int]
    IF_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    upsert: bytes
    update: bytes
    delete_ids: DeleteIds
    if_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, upsert: _Optional[bytes] = ..., update: _Optional[bytes] = ..., delete_ids: _Optional[_Union[DeleteIds, _Mapping]] = ..., if_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class DeleteIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class WriteShardResponse(_message.Message):
    __slots__ = ("sequence", "upserted", "deleted", "missing", "conflicts")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    UPSERTED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    upserted: int
    deleted: int
    missing: _containers.RepeatedScalarFieldContainer[str]
    conflicts: _containers.RepeatedCompositeFieldContainer[_records_pb2.VersionConflict]
    def __init__(self, sequence: _Optional[int] = ..., upserted: _Optional[int] = ..., deleted: _Optional[int] = ..., missing: _Optional[_Iterable[str]] = ..., conflicts: _Optional[_Iterable[_Union[_records_pb2.VersionConflict, _Mapping]]] = ...) -> None: ...

class GetFromShardRequest(_message.Message):
    __slots__ = ("collection_id", "shard", "ids", "projection", "consistency", "min_sequence")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    ids: _containers.RepeatedScalarFieldContainer[str]
    projection: _columns_pb2.Projection
    consistency: _session_pb2.Consistency
    min_sequence: int
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., ids: _Optional[_Iterable[str]] = ..., projection: _Optional[_Union[_columns_pb2.Projection, _Mapping]] = ..., consistency: _Optional[_Union[_session_pb2.Consistency, str]] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class GetFromShardResponse(_message.Message):
    __slots__ = ("ids", "columns")
    IDS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    columns: bytes
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., columns: _Optional[bytes] = ...) -> None: ...

class CountShardRequest(_message.Message):
    __slots__ = ("collection_id", "shard", "filter", "consistency", "min_sequence")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    filter: _filter_pb2.Filter
    consistency: _session_pb2.Consistency
    min_sequence: int
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., consistency: _Optional[_Union[_session_pb2.Consistency, str]] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class CountShardResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ScanShardRequest(_message.Message):
    __slots__ = ("collection_id", "shard", "rows_max", "after_hash", "after_id", "filter", "projection")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    AFTER_HASH_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    rows_max: int
    after_hash: int
    after_id: str
    filter: _filter_pb2.Filter
    projection: _columns_pb2.Projection
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., rows_max: _Optional[int] = ..., after_hash: _Optional[int] = ..., after_id: _Optional[str] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., projection: _Optional[_Union[_columns_pb2.Projection, _Mapping]] = ...) -> None: ...

class ScanShardResponse(_message.Message):
    __slots__ = ("ids", "columns", "last_hash", "last_id", "finished")
    IDS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    LAST_HASH_FIELD_NUMBER: _ClassVar[int]
    LAST_ID_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    columns: bytes
    last_hash: int
    last_id: str
    finished: bool
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., columns: _Optional[bytes] = ..., last_hash: _Optional[int] = ..., last_id: _Optional[str] = ..., finished: _Optional[bool] = ...) -> None: ...

class ListShardStatesRequest(_message.Message):
    __slots__ = ("collection_id",)
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    def __init__(self, collection_id: _Optional[str] = ...) -> None: ...

class ListShardStatesResponse(_message.Message):
    __slots__ = ("states",)
    STATES_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[ShardState]
    def __init__(self, states: _Optional[_Iterable[_Union[ShardState, _Mapping]]] = ...) -> None: ...

class ShardState(_message.Message):
    __slots__ = ("collection_id", "shard", "node_id", "phase", "epoch", "live_rows", "dead_rows", "unindexed_rows", "applied_sequence", "wal_slots", "memory_bytes", "error", "segments")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    UNINDEXED_ROWS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAL_SLOTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    node_id: str
    phase: _admin_pb2.ShardPhase
    epoch: int
    live_rows: int
    dead_rows: int
    unindexed_rows: int
    applied_sequence: int
    wal_slots: int
    memory_bytes: int
    error: str
    segments: _containers.RepeatedCompositeFieldContainer[_admin_pb2.Segment]
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., node_id: _Optional[str] = ..., phase: _Optional[_Union[_admin_pb2.ShardPhase, str]] = ..., epoch: _Optional[int] = ..., live_rows: _Optional[int] = ..., dead_rows: _Optional[int] = ..., unindexed_rows: _Optional[int] = ..., applied_sequence: _Optional[int] = ..., wal_slots: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., error: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[_admin_pb2.Segment, _Mapping]]] = ...) -> None: ...

class CheckNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckNodeResponse(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[_admin_pb2.PartHealth]
    def __init__(self, parts: _Optional[_Iterable[_Union[_admin_pb2.PartHealth, _Mapping]]] = ...) -> None: ...

class ReportRecallRequest(_message.Message):
    __slots__ = ("collection_id",)
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    def __init__(self, collection_id: _Optional[str] = ...) -> None: ...

class ReportRecallResponse(_message.Message):
    __slots__ = ("collections",)
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[CollectionRecall]
    def __init__(self, collections: _Optional[_Iterable[_Union[CollectionRecall, _Mapping]]] = ...) -> None: ...

class CollectionRecall(_message.Message):
    __slots__ = ("collection_id", "recall_objective", "sampled_share", "shards", "segments", "filters", "latency", "own", "coverage", "queries", "changed_at", "tags")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_SHARE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    recall_objective: float
    sampled_share: float
    shards: _containers.RepeatedCompositeFieldContainer[ShardBandRecall]
    segments: _containers.RepeatedCompositeFieldContainer[_admin_pb2.SegmentRecall]
    filters: _containers.RepeatedCompositeFieldContainer[_admin_pb2.FilterRecall]
    latency: _admin_pb2.LatencyTrend
    own: _containers.RepeatedCompositeFieldContainer[OwnSettingRecall]
    coverage: _containers.RepeatedCompositeFieldContainer[_admin_pb2.BandCoverage]
    queries: _containers.RepeatedCompositeFieldContainer[ShardQueries]
    changed_at: _timestamp_pb2.Timestamp
    tags: _containers.RepeatedCompositeFieldContainer[TagRecall]
    def __init__(self, collection_id: _Optional[str] = ..., recall_objective: _Optional[float] = ..., sampled_share: _Optional[float] = ..., shards: _Optional[_Iterable[_Union[ShardBandRecall, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[_admin_pb2.SegmentRecall, _Mapping]]] = ..., filters: _Optional[_Iterable[_Union[_admin_pb2.FilterRecall, _Mapping]]] = ..., latency: _Optional[_Union[_admin_pb2.LatencyTrend, _Mapping]] = ..., own: _Optional[_Iterable[_Union[OwnSettingRecall, _Mapping]]] = ..., coverage: _Optional[_Iterable[_Union[_admin_pb2.BandCoverage, _Mapping]]] = ..., queries: _Optional[_Iterable[_Union[ShardQueries, _Mapping]]] = ..., changed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tags: _Optional[_Iterable[_Union[TagRecall, _Mapping]]] = ...) -> None: ...

class ShardBandRecall(_message.Message):
    __slots__ = ("shard", "band", "estimate", "stability", "seen", "recent", "served")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    band: _admin_pb2.SelectivityBand
    estimate: _admin_pb2.RecallEstimate
    stability: float
    seen: int
    recent: int
    served: _admin_pb2.RecallEstimate
    def __init__(self, shard: _Optional[int] = ..., band: _Optional[_Union[_admin_pb2.SelectivityBand, str]] = ..., estimate: _Optional[_Union[_admin_pb2.RecallEstimate, _Mapping]] = ..., stability: _Optional[float] = ..., seen: _Optional[int] = ..., recent: _Optional[int] = ..., served: _Optional[_Union[_admin_pb2.RecallEstimate, _Mapping]] = ...) -> None: ...

class ShardQueries(_message.Message):
    __slots__ = ("shard", "measured_at", "valid_s", "numbers", "same", "ks", "filters", "own", "objectives", "matches", "live_rows", "sampled_at_s", "depths", "more", "scores", "marks", "served", "cuts", "gone", "gone_scores", "in_band", "tags")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    KS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVES_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_AT_S_FIELD_NUMBER: _ClassVar[int]
    DEPTHS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    GONE_SCORES_FIELD_NUMBER: _ClassVar[int]
    IN_BAND_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    measured_at: _timestamp_pb2.Timestamp
    valid_s: float
    numbers: _containers.RepeatedScalarFieldContainer[int]
    same: _containers.RepeatedScalarFieldContainer[int]
    ks: _containers.RepeatedScalarFieldContainer[int]
    filters: _containers.RepeatedScalarFieldContainer[int]
    own: _containers.RepeatedScalarFieldContainer[bool]
    objectives: _containers.RepeatedScalarFieldContainer[float]
    matches: _containers.RepeatedScalarFieldContainer[int]
    live_rows: _containers.RepeatedScalarFieldContainer[int]
    sampled_at_s: _containers.RepeatedScalarFieldContainer[float]
    depths: _containers.RepeatedScalarFieldContainer[int]
    more: _containers.RepeatedScalarFieldContainer[bool]
    scores: bytes
    marks: bytes
    served: _containers.RepeatedScalarFieldContainer[bool]
    cuts: _containers.RepeatedScalarFieldContainer[float]
    gone: _containers.RepeatedScalarFieldContainer[int]
    gone_scores: bytes
    in_band: _containers.RepeatedScalarFieldContainer[bool]
    tags: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, shard: _Optional[int] = ..., measured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., valid_s: _Optional[float] = ..., numbers: _Optional[_Iterable[int]] = ..., same: _Optional[_Iterable[int]] = ..., ks: _Optional[_Iterable[int]] = ..., filters: _Optional[_Iterable[int]] = ..., own: _Optional[_Iterable[bool]] = ..., objectives: _Optional[_Iterable[float]] = ..., matches: _Optional[_Iterable[int]] = ..., live_rows: _Optional[_Iterable[int]] = ..., sampled_at_s: _Optional[_Iterable[float]] = ..., depths: _Optional[_Iterable[int]] = ..., more: _Optional[_Iterable[bool]] = ..., scores: _Optional[bytes] = ..., marks: _Optional[bytes] = ..., served: _Optional[_Iterable[bool]] = ..., cuts: _Optional[_Iterable[float]] = ..., gone: _Optional[_Iterable[int]] = ..., gone_scores: _Optional[bytes] = ..., in_band: _Optional[_Iterable[bool]] = ..., tags: _Optional[_Iterable[int]] = ...) -> None: ...

class OwnSettingRecall(_message.Message):
    __slots__ = ("shard", "objective", "estimate", "served")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    objective: float
    estimate: _admin_pb2.RecallEstimate
    served: _admin_pb2.RecallEstimate
    def __init__(self, shard: _Optional[int] = ..., objective: _Optional[float] = ..., estimate: _Optional[_Union[_admin_pb2.RecallEstimate, _Mapping]] = ..., served: _Optional[_Union[_admin_pb2.RecallEstimate, _Mapping]] = ...) -> None: ...

class TagRecall(_message.Message):
    __slots__ = ("shard", "tag", "estimate", "served", "seen", "recent")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    tag: str
    estimate: _admin_pb2.RecallEstimate
    served: _admin_pb2.RecallEstimate
    seen: int
    recent: int
    def __init__(self, shard: _Optional[int] = ..., tag: _Optional[str] = ..., estimate: _Optional[_Union[_admin_pb2.RecallEstimate, _Mapping]] = ..., served: _Optional[_Union[_admin_pb2.RecallEstimate, _Mapping]] = ..., seen: _Optional[int] = ..., recent: _Optional[int] = ...) -> None: ...

class AuditShardRequest(_message.Message):
    __slots__ = ("collection_id", "shard", "queries_max")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    QUERIES_MAX_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    queries_max: int
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., queries_max: _Optional[int] = ...) -> None: ...

class AuditShardResponse(_message.Message):
    __slots__ = ("audits",)
    AUDITS_FIELD_NUMBER: _ClassVar[int]
    audits: _containers.RepeatedCompositeFieldContainer[_admin_pb2.BandAudit]
    def __init__(self, audits: _Optional[_Iterable[_Union[_admin_pb2.BandAudit, _Mapping]]] = ...) -> None: ...

class ListSampledQueriesRequest(_message.Message):
    __slots__ = ("collection_id",)
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    def __init__(self, collection_id: _Optional[str] = ...) -> None: ...

class ListSampledQueriesResponse(_message.Message):
    __slots__ = ("queries",)
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[_admin_pb2.LiveQuery]
    def __init__(self, queries: _Optional[_Iterable[_Union[_admin_pb2.LiveQuery, _Mapping]]] = ...) -> None: ...

class FlushShardRequest(_message.Message):
    __slots__ = ("collection_id", "shard")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shard: int
    def __init__(self, collection_id: _Optional[str] = ..., shard: _Optional[int] = ...) -> None: ...

class FlushShardResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PublishCompactionRequest(_message.Message):
    __slots__ = ("task", "output", "part")
    TASK_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    task: _admin_pb2.Task
    output: SegmentEntry
    part: VectorPart
    def __init__(self, task: _Optional[_Union[_admin_pb2.Task, _Mapping]] = ..., output: _Optional[_Union[SegmentEntry, _Mapping]] = ..., part: _Optional[_Union[VectorPart, _Mapping]] = ...) -> None: ...

class SegmentEntry(_message.Message):
    __slots__ = ("segment", "meta_checksum", "lacking", "parts")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    META_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    segment: _admin_pb2.Segment
    meta_checksum: str
    lacking: int
    parts: _containers.RepeatedCompositeFieldContainer[VectorPart]
    def __init__(self, segment: _Optional[_Union[_admin_pb2.Segment, _Mapping]] = ..., meta_checksum: _Optional[str] = ..., lacking: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[VectorPart, _Mapping]]] = ...) -> None: ...

class VectorPart(_message.Message):
    __slots__ = ("part_id", "model", "index_kind", "rows", "size_bytes", "meta_checksum", "created_at", "skipped")
    PART_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    META_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    part_id: str
    model: str
    index_kind: _admin_pb2.SegmentIndexKind
    rows: int
    size_bytes: int
    meta_checksum: str
    created_at: _timestamp_pb2.Timestamp
    skipped: int
    def __init__(self, part_id: _Optional[str] = ..., model: _Optional[str] = ..., index_kind: _Optional[_Union[_admin_pb2.SegmentIndexKind, str]] = ..., rows: _Optional[int] = ..., size_bytes: _Optional[int] = ..., meta_checksum: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., skipped: _Optional[int] = ...) -> None: ...

class PublishCompactionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
