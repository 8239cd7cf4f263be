import datetime

from annheal.v1 import collections_pb2 as _collections_pb2
from annheal.v1 import filter_pb2 as _filter_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_COORDINATOR: _ClassVar[WorkerRole]
    WORKER_ROLE_COMPACTOR: _ClassVar[WorkerRole]

class ShardPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHARD_PHASE_UNSPECIFIED: _ClassVar[ShardPhase]
    SHARD_PHASE_LOADING: _ClassVar[ShardPhase]
    SHARD_PHASE_SERVING: _ClassVar[ShardPhase]
    SHARD_PHASE_FAILED: _ClassVar[ShardPhase]
    SHARD_PHASE_RELEASED: _ClassVar[ShardPhase]

class SegmentTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_TIER_UNSPECIFIED: _ClassVar[SegmentTier]
    SEGMENT_TIER_GROWING: _ClassVar[SegmentTier]
    SEGMENT_TIER_HOT: _ClassVar[SegmentTier]
    SEGMENT_TIER_WARM: _ClassVar[SegmentTier]
    SEGMENT_TIER_COLD: _ClassVar[SegmentTier]

class SegmentIndexKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_INDEX_KIND_UNSPECIFIED: _ClassVar[SegmentIndexKind]
    SEGMENT_INDEX_KIND_FLAT: _ClassVar[SegmentIndexKind]
    SEGMENT_INDEX_KIND_HNSW: _ClassVar[SegmentIndexKind]

class TaskPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_PHASE_UNSPECIFIED: _ClassVar[TaskPhase]
    TASK_PHASE_PENDING: _ClassVar[TaskPhase]
    TASK_PHASE_BUILT: _ClassVar[TaskPhase]
    TASK_PHASE_PUBLISHED: _ClassVar[TaskPhase]
    TASK_PHASE_FAILED: _ClassVar[TaskPhase]
    TASK_PHASE_CANCELLED: _ClassVar[TaskPhase]

class CompactionReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPACTION_REASON_UNSPECIFIED: _ClassVar[CompactionReason]
    COMPACTION_REASON_MERGE: _ClassVar[CompactionReason]
    COMPACTION_REASON_TOMBSTONES: _ClassVar[CompactionReason]
    COMPACTION_REASON_MANUAL: _ClassVar[CompactionReason]
    COMPACTION_REASON_RECALL: _ClassVar[CompactionReason]
    COMPACTION_REASON_WALK_COST: _ClassVar[CompactionReason]
    COMPACTION_REASON_BACKFILL: _ClassVar[CompactionReason]
    COMPACTION_REASON_MODEL_PURGE: _ClassVar[CompactionReason]

class Part(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PART_UNSPECIFIED: _ClassVar[Part]
    PART_OBJECT_WRITES: _ClassVar[Part]
    PART_OBJECT_READS: _ClassVar[Part]
    PART_METADATA: _ClassVar[Part]
    PART_LOG: _ClassVar[Part]
    PART_DISK: _ClassVar[Part]
    PART_EMBEDDER: _ClassVar[Part]

class SelectivityBand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SELECTIVITY_BAND_UNSPECIFIED: _ClassVar[SelectivityBand]
    SELECTIVITY_BAND_UNFILTERED: _ClassVar[SelectivityBand]
    SELECTIVITY_BAND_FROM_50_PERCENT: _ClassVar[SelectivityBand]
    SELECTIVITY_BAND_FROM_10_PERCENT: _ClassVar[SelectivityBand]
    SELECTIVITY_BAND_FROM_1_PERCENT: _ClassVar[SelectivityBand]
    SELECTIVITY_BAND_FROM_0_1_PERCENT: _ClassVar[SelectivityBand]
    SELECTIVITY_BAND_BELOW_0_1_PERCENT: _ClassVar[SelectivityBand]

class RecallRung(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECALL_RUNG_UNSPECIFIED: _ClassVar[RecallRung]
    RECALL_RUNG_GRAPH: _ClassVar[RecallRung]
    RECALL_RUNG_CODES: _ClassVar[RecallRung]
    RECALL_RUNG_EXACT: _ClassVar[RecallRung]

class RecallVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECALL_VERDICT_UNSPECIFIED: _ClassVar[RecallVerdict]
    RECALL_VERDICT_UNMEASURED: _ClassVar[RecallVerdict]
    RECALL_VERDICT_MET: _ClassVar[RecallVerdict]
    RECALL_VERDICT_UNCLEAR: _ClassVar[RecallVerdict]
    RECALL_VERDICT_MISSED: _ClassVar[RecallVerdict]
    RECALL_VERDICT_MET_WITH_BAD_TAIL: _ClassVar[RecallVerdict]
    RECALL_VERDICT_UNKNOWN: _ClassVar[RecallVerdict]
    RECALL_VERDICT_NOT_JUDGED: _ClassVar[RecallVerdict]
    RECALL_VERDICT_RECOVERING: _ClassVar[RecallVerdict]

class TrendVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TREND_VERDICT_UNSPECIFIED: _ClassVar[TrendVerdict]
    TREND_VERDICT_UNKNOWN: _ClassVar[TrendVerdict]
    TREND_VERDICT_STEADY: _ClassVar[TrendVerdict]
    TREND_VERDICT_SLOWER: _ClassVar[TrendVerdict]
    TREND_VERDICT_FASTER: _ClassVar[TrendVerdict]

class AuditVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_VERDICT_UNSPECIFIED: _ClassVar[AuditVerdict]
    AUDIT_VERDICT_CONTAINED: _ClassVar[AuditVerdict]
    AUDIT_VERDICT_OUTSIDE: _ClassVar[AuditVerdict]
    AUDIT_VERDICT_UNKNOWN: _ClassVar[AuditVerdict]
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_COORDINATOR: WorkerRole
WORKER_ROLE_COMPACTOR: WorkerRole
SHARD_PHASE_UNSPECIFIED: ShardPhase
SHARD_PHASE_LOADING: ShardPhase
SHARD_PHASE_SERVING: ShardPhase
SHARD_PHASE_FAILED: ShardPhase
SHARD_PHASE_RELEASED: ShardPhase
SEGMENT_TIER_UNSPECIFIED: SegmentTier
SEGMENT_TIER_GROWING: SegmentTier
SEGMENT_TIER_HOT: SegmentTier
SEGMENT_TIER_WARM: SegmentTier
SEGMENT_TIER_COLD: SegmentTier
SEGMENT_INDEX_KIND_UNSPECIFIED: SegmentIndexKind
SEGMENT_INDEX_KIND_FLAT: SegmentIndexKind
SEGMENT_INDEX_KIND_HNSW: SegmentIndexKind
TASK_PHASE_UNSPECIFIED: TaskPhase
TASK_PHASE_PENDING: TaskPhase
TASK_PHASE_BUILT: TaskPhase
TASK_PHASE_PUBLISHED: TaskPhase
TASK_PHASE_FAILED: TaskPhase
TASK_PHASE_CANCELLED: TaskPhase
COMPACTION_REASON_UNSPECIFIED: CompactionReason
COMPACTION_REASON_MERGE: CompactionReason
COMPACTION_REASON_TOMBSTONES: CompactionReason
COMPACTION_REASON_MANUAL: CompactionReason
COMPACTION_REASON_RECALL: CompactionReason
COMPACTION_REASON_WALK_COST: CompactionReason
COMPACTION_REASON_BACKFILL: CompactionReason
COMPACTION_REASON_MODEL_PURGE: CompactionReason
PART_UNSPECIFIED: Part
PART_OBJECT_WRITES: Part
PART_OBJECT_READS: Part
PART_METADATA: Part
PART_LOG: Part
PART_DISK: Part
PART_EMBEDDER: Part
SELECTIVITY_BAND_UNSPECIFIED: SelectivityBand
SELECTIVITY_BAND_UNFILTERED: SelectivityBand
SELECTIVITY_BAND_FROM_50_PERCENT: SelectivityBand
SELECTIVITY_BAND_FROM_10_PERCENT: SelectivityBand
SELECTIVITY_BAND_FROM_1_PERCENT: SelectivityBand
SELECTIVITY_BAND_FROM_0_1_PERCENT: SelectivityBand
SELECTIVITY_BAND_BELOW_0_1_PERCENT: SelectivityBand
RECALL_RUNG_UNSPECIFIED: RecallRung
RECALL_RUNG_GRAPH: RecallRung
RECALL_RUNG_CODES: RecallRung
RECALL_RUNG_EXACT: RecallRung
RECALL_VERDICT_UNSPECIFIED: RecallVerdict
RECALL_VERDICT_UNMEASURED: RecallVerdict
RECALL_VERDICT_MET: RecallVerdict
RECALL_VERDICT_UNCLEAR: RecallVerdict
RECALL_VERDICT_MISSED: RecallVerdict
RECALL_VERDICT_MET_WITH_BAD_TAIL: RecallVerdict
RECALL_VERDICT_UNKNOWN: RecallVerdict
RECALL_VERDICT_NOT_JUDGED: RecallVerdict
RECALL_VERDICT_RECOVERING: RecallVerdict
TREND_VERDICT_UNSPECIFIED: TrendVerdict
TREND_VERDICT_UNKNOWN: TrendVerdict
TREND_VERDICT_STEADY: TrendVerdict
TREND_VERDICT_SLOWER: TrendVerdict
TREND_VERDICT_FASTER: TrendVerdict
AUDIT_VERDICT_UNSPECIFIED: AuditVerdict
AUDIT_VERDICT_CONTAINED: AuditVerdict
AUDIT_VERDICT_OUTSIDE: AuditVerdict
AUDIT_VERDICT_UNKNOWN: AuditVerdict

class Node(_message.Message):
    __slots__ = ("node_id", "address", "zone", "capacity", "started_at", "version", "draining", "shards", "shards_serving", "live_rows", "memory_bytes", "error")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_SERVING_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    address: str
    zone: str
    capacity: float
    started_at: _timestamp_pb2.Timestamp
    version: str
    draining: bool
    shards: int
    shards_serving: int
    live_rows: int
    memory_bytes: int
    error: str
    def __init__(self, node_id: _Optional[str] = ..., address: _Optional[str] = ..., zone: _Optional[str] = ..., capacity: _Optional[float] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[str] = ..., draining: _Optional[bool] = ..., shards: _Optional[int] = ..., shards_serving: _Optional[int] = ..., live_rows: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("worker_id", "role", "address", "started_at", "version")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: WorkerRole
    address: str
    started_at: _timestamp_pb2.Timestamp
    version: str
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[_Union[WorkerRole, str]] = ..., address: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[str] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("collection", "collection_id", "shard", "owner", "epoch", "target", "replicas", "phase", "live_rows", "dead_rows", "unindexed_rows", "applied_sequence", "wal_slots", "memory_bytes", "segments", "error")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    UNINDEXED_ROWS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAL_SLOTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    collection: str
    collection_id: str
    shard: int
    owner: str
    epoch: int
    target: str
    replicas: _containers.RepeatedScalarFieldContainer[str]
    phase: ShardPhase
    live_rows: int
    dead_rows: int
    unindexed_rows: int
    applied_sequence: int
    wal_slots: int
    memory_bytes: int
    segments: int
    error: str
    def __init__(self, collection: _Optional[str] = ..., collection_id: _Optional[str] = ..., shard: _Optional[int] = ..., owner: _Optional[str] = ..., epoch: _Optional[int] = ..., target: _Optional[str] = ..., replicas: _Optional[_Iterable[str]] = ..., phase: _Optional[_Union[ShardPhase, str]] = ..., live_rows: _Optional[int] = ..., dead_rows: _Optional[int] = ..., unindexed_rows: _Optional[int] = ..., applied_sequence: _Optional[int] = ..., wal_slots: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., segments: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("shard", "segment_id", "tier", "model", "index_kind", "rows", "dead_rows", "size_bytes", "generation", "created_at", "min_sequence", "max_sequence", "recall", "ef", "rebuild", "stuck", "visited", "visited_baseline", "built_for", "without_kernels", "models")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DEAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    VISITED_FIELD_NUMBER: _ClassVar[int]
    VISITED_BASELINE_FIELD_NUMBER: _ClassVar[int]
    BUILT_FOR_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_KERNELS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    segment_id: str
    tier: SegmentTier
    model: str
    index_kind: SegmentIndexKind
    rows: int
    dead_rows: int
    size_bytes: int
    generation: int
    created_at: _timestamp_pb2.Timestamp
    min_sequence: int
    max_sequence: int
    recall: float
    ef: int
    rebuild: bool
    stuck: bool
    visited: float
    visited_baseline: float
    built_for: CompactionReason
    without_kernels: bool
    models: _containers.RepeatedCompositeFieldContainer[ModelCoverage]
    def __init__(self, shard: _Optional[int] = ..., segment_id: _Optional[str] = ..., tier: _Optional[_Union[SegmentTier, str]] = ..., model: _Optional[str] = ..., index_kind: _Optional[_Union[SegmentIndexKind, str]] = ..., rows: _Optional[int] = ..., dead_rows: _Optional[int] = ..., size_bytes: _Optional[int] = ..., generation: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., min_sequence: _Optional[int] = ..., max_sequence: _Optional[int] = ..., recall: _Optional[float] = ..., ef: _Optional[int] = ..., rebuild: _Optional[bool] = ..., stuck: _Optional[bool] = ..., visited: _Optional[float] = ..., visited_baseline: _Optional[float] = ..., built_for: _Optional[_Union[CompactionReason, str]] = ..., without_kernels: _Optional[bool] = ..., models: _Optional[_Iterable[_Union[ModelCoverage, _Mapping]]] = ...) -> None: ...

class ModelCoverage(_message.Message):
    __slots__ = ("model", "rows", "lacking", "index_kind", "size_bytes", "skipped", "waits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    rows: int
    lacking: int
    index_kind: SegmentIndexKind
    size_bytes: int
    skipped: int
    waits: bool
    def __init__(self, model: _Optional[str] = ..., rows: _Optional[int] = ..., lacking: _Optional[int] = ..., index_kind: _Optional[_Union[SegmentIndexKind, str]] = ..., size_bytes: _Optional[int] = ..., skipped: _Optional[int] = ..., waits: _Optional[bool] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "collection", "collection_id", "phase", "priority", "created_at", "finished_at", "attempts", "worker", "step", "progress", "error", "estimated_bytes", "estimated_disk_bytes", "why", "compaction")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    COMPACTION_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    collection: str
    collection_id: str
    phase: TaskPhase
    priority: int
    created_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    attempts: int
    worker: str
    step: str
    progress: float
    error: str
    estimated_bytes: int
    estimated_disk_bytes: int
    why: str
    compaction: CompactionWork
    def __init__(self, task_id: _Optional[str] = ..., collection: _Optional[str] = ..., collection_id: _Optional[str] = ..., phase: _Optional[_Union[TaskPhase, str]] = ..., priority: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[int] = ..., worker: _Optional[str] = ..., step: _Optional[str] = ..., progress: _Optional[float] = ..., error: _Optional[str] = ..., estimated_bytes: _Optional[int] = ..., estimated_disk_bytes: _Optional[int] = ..., why: _Optional[str] = ..., compaction: _Optional[_Union[CompactionWork, _Mapping]] = ...) -> None: ...

class CompactionWork(_message.Message):
    __slots__ = ("shard", "reason", "sources", "tier", "output_segment_id", "rows_in", "rows_out", "model")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_IN_FIELD_NUMBER: _ClassVar[int]
    ROWS_OUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    shard: int
    reason: CompactionReason
    sources: _containers.RepeatedScalarFieldContainer[str]
    tier: SegmentTier
    output_segment_id: str
    rows_in: int
    rows_out: int
    model: str
    def __init__(self, shard: _Optional[int] = ..., reason: _Optional[_Union[CompactionReason, str]] = ..., sources: _Optional[_Iterable[str]] = ..., tier: _Optional[_Union[SegmentTier, str]] = ..., output_segment_id: _Optional[str] = ..., rows_in: _Optional[int] = ..., rows_out: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class ShardMove(_message.Message):
    __slots__ = ("collection", "shard", "source", "target")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    source: str
    target: str
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., source: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class PartHealth(_message.Message):
    __slots__ = ("part", "process", "place", "failing_since_s", "error", "succeeded_at_s", "note")
    PART_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    FAILING_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    part: Part
    process: str
    place: str
    failing_since_s: float
    error: str
    succeeded_at_s: float
    note: str
    def __init__(self, part: _Optional[_Union[Part, str]] = ..., process: _Optional[str] = ..., place: _Optional[str] = ..., failing_since_s: _Optional[float] = ..., error: _Optional[str] = ..., succeeded_at_s: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class CheckHealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckHealthResponse(_message.Message):
    __slots__ = ("parts", "errors")
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[PartHealth]
    errors: _containers.ScalarMap[str, str]
    def __init__(self, parts: _Optional[_Iterable[_Union[PartHealth, _Mapping]]] = ..., errors: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetClusterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterStatusResponse(_message.Message):
    __slots__ = ("version", "leader", "nodes", "workers", "collections", "shards", "totals", "tasks_pending", "tasks_failed", "warnings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    TASKS_PENDING_FIELD_NUMBER: _ClassVar[int]
    TASKS_FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    version: str
    leader: str
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    collections: int
    shards: int
    totals: _collections_pb2.CollectionStatus
    tasks_pending: int
    tasks_failed: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., leader: _Optional[str] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., collections: _Optional[int] = ..., shards: _Optional[int] = ..., totals: _Optional[_Union[_collections_pb2.CollectionStatus, _Mapping]] = ..., tasks_pending: _Optional[int] = ..., tasks_failed: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class ListShardsRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class ListShardsResponse(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    def __init__(self, shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ...) -> None: ...

class ListSegmentsRequest(_message.Message):
    __slots__ = ("collection", "shard")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ...) -> None: ...

class ListSegmentsResponse(_message.Message):
    __slots__ = ("segments", "missing_shards")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    missing_shards: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., missing_shards: _Optional[_Iterable[int]] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class FlushResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CompactRequest(_message.Message):
    __slots__ = ("collection", "shard", "full", "segment_ids", "tier", "dry_run")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    full: bool
    segment_ids: _containers.RepeatedScalarFieldContainer[str]
    tier: SegmentTier
    dry_run: bool
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., full: _Optional[bool] = ..., segment_ids: _Optional[_Iterable[str]] = ..., tier: _Optional[_Union[SegmentTier, str]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class CompactResponse(_message.Message):
    __slots__ = ("task_ids", "planned")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    planned: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, task_ids: _Optional[_Iterable[str]] = ..., planned: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("collection", "phase", "page_size", "page_token")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collection: str
    phase: TaskPhase
    page_size: int
    page_token: str
    def __init__(self, collection: _Optional[str] = ..., phase: _Optional[_Union[TaskPhase, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "next_page_token")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    next_page_token: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class GetTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class CancelTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class CancelTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class RetryTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class RetryTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class MeasureRecallRequest(_message.Message):
    __slots__ = ("collection", "sample_size", "k", "ef", "filter", "seed")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SIZE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    collection: str
    sample_size: int
    k: int
    ef: int
    filter: _filter_pb2.Filter
    seed: int
    def __init__(self, collection: _Optional[str] = ..., sample_size: _Optional[int] = ..., k: _Optional[int] = ..., ef: _Optional[int] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class MeasureRecallResponse(_message.Message):
    __slots__ = ("recall", "recall_low", "recall_high", "queries", "k", "recall_objective", "approximate_p50_s", "exact_p50_s", "shards")
    RECALL_FIELD_NUMBER: _ClassVar[int]
    RECALL_LOW_FIELD_NUMBER: _ClassVar[int]
    RECALL_HIGH_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    APPROXIMATE_P50_S_FIELD_NUMBER: _ClassVar[int]
    EXACT_P50_S_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    recall: float
    recall_low: float
    recall_high: float
    queries: int
    k: int
    recall_objective: float
    approximate_p50_s: float
    exact_p50_s: float
    shards: _containers.RepeatedCompositeFieldContainer[ShardRecall]
    def __init__(self, recall: _Optional[float] = ..., recall_low: _Optional[float] = ..., recall_high: _Optional[float] = ..., queries: _Optional[int] = ..., k: _Optional[int] = ..., recall_objective: _Optional[float] = ..., approximate_p50_s: _Optional[float] = ..., exact_p50_s: _Optional[float] = ..., shards: _Optional[_Iterable[_Union[ShardRecall, _Mapping]]] = ...) -> None: ...

class ShardRecall(_message.Message):
    __slots__ = ("shard", "recall", "expected")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    recall: float
    expected: int
    def __init__(self, shard: _Optional[int] = ..., recall: _Optional[float] = ..., expected: _Optional[int] = ...) -> None: ...

class RecallEstimate(_message.Message):
    __slots__ = ("k", "recall", "low", "high", "queries", "measured_at", "plans", "recall_shares", "window_begin", "window_end", "valid_until", "distinct", "tail")
    class PlansEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    K_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    RECALL_SHARES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BEGIN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_END_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    k: int
    recall: float
    low: float
    high: float
    queries: int
    measured_at: _timestamp_pb2.Timestamp
    plans: _containers.ScalarMap[str, int]
    recall_shares: _containers.RepeatedScalarFieldContainer[float]
    window_begin: _timestamp_pb2.Timestamp
    window_end: _timestamp_pb2.Timestamp
    valid_until: _timestamp_pb2.Timestamp
    distinct: int
    tail: TailEstimate
    def __init__(self, k: _Optional[int] = ..., recall: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., queries: _Optional[int] = ..., measured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., plans: _Optional[_Mapping[str, int]] = ..., recall_shares: _Optional[_Iterable[float]] = ..., window_begin: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., window_end: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., valid_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., distinct: _Optional[int] = ..., tail: _Optional[_Union[TailEstimate, _Mapping]] = ...) -> None: ...

class TailEstimate(_message.Message):
    __slots__ = ("recall", "objective", "share", "low", "high")
    RECALL_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    recall: float
    objective: float
    share: float
    low: float
    high: float
    def __init__(self, recall: _Optional[float] = ..., objective: _Optional[float] = ..., share: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class SegmentRecall(_message.Message):
    __slots__ = ("shard", "segment_id", "tier", "model", "band", "estimate", "ef", "ef_limit", "rebuild", "stuck", "rung", "below", "answered", "raised_at")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    EF_LIMIT_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    RAISED_AT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    segment_id: str
    tier: SegmentTier
    model: str
    band: SelectivityBand
    estimate: RecallEstimate
    ef: int
    ef_limit: int
    rebuild: bool
    stuck: bool
    rung: RecallRung
    below: bool
    answered: RecallEstimate
    raised_at: _timestamp_pb2.Timestamp
    def __init__(self, shard: _Optional[int] = ..., segment_id: _Optional[str] = ..., tier: _Optional[_Union[SegmentTier, str]] = ..., model: _Optional[str] = ..., band: _Optional[_Union[SelectivityBand, str]] = ..., estimate: _Optional[_Union[RecallEstimate, _Mapping]] = ..., ef: _Optional[int] = ..., ef_limit: _Optional[int] = ..., rebuild: _Optional[bool] = ..., stuck: _Optional[bool] = ..., rung: _Optional[_Union[RecallRung, str]] = ..., below: _Optional[bool] = ..., answered: _Optional[_Union[RecallEstimate, _Mapping]] = ..., raised_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class FilterRecall(_message.Message):
    __slots__ = ("shard", "filter", "matches", "live_rows", "recall", "queries", "plans")
    class PlansEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    filter: _filter_pb2.Filter
    matches: int
    live_rows: int
    recall: float
    queries: int
    plans: _containers.ScalarMap[str, int]
    def __init__(self, shard: _Optional[int] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., matches: _Optional[int] = ..., live_rows: _Optional[int] = ..., recall: _Optional[float] = ..., queries: _Optional[int] = ..., plans: _Optional[_Mapping[str, int]] = ...) -> None: ...

class RecallSlice(_message.Message):
    __slots__ = ("name", "verdict", "estimate", "stability", "seen", "served", "recent", "tail_verdict")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    TAIL_VERDICT_FIELD_NUMBER: _ClassVar[int]
    name: str
    verdict: RecallVerdict
    estimate: RecallEstimate
    stability: float
    seen: int
    served: RecallEstimate
    recent: int
    tail_verdict: RecallVerdict
    def __init__(self, name: _Optional[str] = ..., verdict: _Optional[_Union[RecallVerdict, str]] = ..., estimate: _Optional[_Union[RecallEstimate, _Mapping]] = ..., stability: _Optional[float] = ..., seen: _Optional[int] = ..., served: _Optional[_Union[RecallEstimate, _Mapping]] = ..., recent: _Optional[int] = ..., tail_verdict: _Optional[_Union[RecallVerdict, str]] = ...) -> None: ...

class TrendRatio(_message.Message):
    __slots__ = ("now", "ratio", "low", "high")
    NOW_FIELD_NUMBER: _ClassVar[int]
    RATIO_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    now: float
    ratio: float
    low: float
    high: float
    def __init__(self, now: _Optional[float] = ..., ratio: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class LatencyTrend(_message.Message):
    __slots__ = ("verdict", "reason", "window_s", "queries_per_s", "windows", "baseline_windows", "p50", "p99", "visited")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    QUERIES_PER_S_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    P50_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    VISITED_FIELD_NUMBER: _ClassVar[int]
    verdict: TrendVerdict
    reason: str
    window_s: float
    queries_per_s: float
    windows: int
    baseline_windows: int
    p50: TrendRatio
    p99: TrendRatio
    visited: TrendRatio
    def __init__(self, verdict: _Optional[_Union[TrendVerdict, str]] = ..., reason: _Optional[str] = ..., window_s: _Optional[float] = ..., queries_per_s: _Optional[float] = ..., windows: _Optional[int] = ..., baseline_windows: _Optional[int] = ..., p50: _Optional[_Union[TrendRatio, _Mapping]] = ..., p99: _Optional[_Union[TrendRatio, _Mapping]] = ..., visited: _Optional[_Union[TrendRatio, _Mapping]] = ...) -> None: ...

class GetRecallRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class GetRecallResponse(_message.Message):
    __slots__ = ("collection", "collection_id", "recall_objective", "sampled_share", "overall", "bands", "shards", "tiers", "models", "segments", "filters", "errors", "latency", "own", "recall_tail_objective", "recall_objective_share", "coverage", "merged", "changed_at", "tags")
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LatencyEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LatencyTrend
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[LatencyTrend, _Mapping]] = ...) -> None: ...
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_SHARE_FIELD_NUMBER: _ClassVar[int]
    OVERALL_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    RECALL_TAIL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_SHARE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    collection_id: str
    recall_objective: float
    sampled_share: float
    overall: RecallSlice
    bands: _containers.RepeatedCompositeFieldContainer[RecallSlice]
    shards: _containers.RepeatedCompositeFieldContainer[RecallSlice]
    tiers: _containers.RepeatedCompositeFieldContainer[RecallSlice]
    models: _containers.RepeatedCompositeFieldContainer[RecallSlice]
    segments: _containers.RepeatedCompositeFieldContainer[SegmentRecall]
    filters: _containers.RepeatedCompositeFieldContainer[FilterRecall]
    errors: _containers.ScalarMap[str, str]
    latency: _containers.MessageMap[str, LatencyTrend]
    own: _containers.RepeatedCompositeFieldContainer[RecallSlice]
    recall_tail_objective: float
    recall_objective_share: float
    coverage: _containers.RepeatedCompositeFieldContainer[BandCoverage]
    merged: MergedRecall
    changed_at: _timestamp_pb2.Timestamp
    tags: _containers.RepeatedCompositeFieldContainer[RecallSlice]
    def __init__(self, collection: _Optional[str] = ..., collection_id: _Optional[str] = ..., recall_objective: _Optional[float] = ..., sampled_share: _Optional[float] = ..., overall: _Optional[_Union[RecallSlice, _Mapping]] = ..., bands: _Optional[_Iterable[_Union[RecallSlice, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[RecallSlice, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[RecallSlice, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[RecallSlice, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[SegmentRecall, _Mapping]]] = ..., filters: _Optional[_Iterable[_Union[FilterRecall, _Mapping]]] = ..., errors: _Optional[_Mapping[str, str]] = ..., latency: _Optional[_Mapping[str, LatencyTrend]] = ..., own: _Optional[_Iterable[_Union[RecallSlice, _Mapping]]] = ..., recall_tail_objective: _Optional[float] = ..., recall_objective_share: _Optional[float] = ..., coverage: _Optional[_Iterable[_Union[BandCoverage, _Mapping]]] = ..., merged: _Optional[_Union[MergedRecall, _Mapping]] = ..., changed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tags: _Optional[_Iterable[_Union[RecallSlice, _Mapping]]] = ...) -> None: ...

class MergedRecall(_message.Message):
    __slots__ = ("complete", "incomplete", "own_top_k")
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    OWN_TOP_K_FIELD_NUMBER: _ClassVar[int]
    complete: int
    incomplete: int
    own_top_k: RecallSlice
    def __init__(self, complete: _Optional[int] = ..., incomplete: _Optional[int] = ..., own_top_k: _Optional[_Union[RecallSlice, _Mapping]] = ...) -> None: ...

class BandAudit(_message.Message):
    __slots__ = ("shard", "band", "estimate", "audited", "later", "verdict", "reason")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    AUDITED_FIELD_NUMBER: _ClassVar[int]
    LATER_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    shard: int
    band: SelectivityBand
    estimate: RecallEstimate
    audited: RecallEstimate
    later: int
    verdict: AuditVerdict
    reason: str
    def __init__(self, shard: _Optional[int] = ..., band: _Optional[_Union[SelectivityBand, str]] = ..., estimate: _Optional[_Union[RecallEstimate, _Mapping]] = ..., audited: _Optional[_Union[RecallEstimate, _Mapping]] = ..., later: _Optional[int] = ..., verdict: _Optional[_Union[AuditVerdict, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class BandCoverage(_message.Message):
    __slots__ = ("shard", "band", "windows", "contained", "measured_at")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    CONTAINED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    band: SelectivityBand
    windows: int
    contained: int
    measured_at: _timestamp_pb2.Timestamp
    def __init__(self, shard: _Optional[int] = ..., band: _Optional[_Union[SelectivityBand, str]] = ..., windows: _Optional[int] = ..., contained: _Optional[int] = ..., measured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AuditRecallRequest(_message.Message):
    __slots__ = ("collection", "shard", "queries_max", "merged")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    QUERIES_MAX_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    queries_max: int
    merged: bool
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., queries_max: _Optional[int] = ..., merged: _Optional[bool] = ...) -> None: ...

class AuditRecallResponse(_message.Message):
    __slots__ = ("audits",)
    AUDITS_FIELD_NUMBER: _ClassVar[int]
    audits: _containers.RepeatedCompositeFieldContainer[BandAudit]
    def __init__(self, audits: _Optional[_Iterable[_Union[BandAudit, _Mapping]]] = ...) -> None: ...

class LiveQuery(_message.Message):
    __slots__ = ("vector", "k", "band", "asked_at", "filter", "recall_objective", "ef", "number")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    BAND_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    RECALL_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    vector: bytes
    k: int
    band: SelectivityBand
    asked_at: _timestamp_pb2.Timestamp
    filter: _filter_pb2.Filter
    recall_objective: float
    ef: int
    number: int
    def __init__(self, vector: _Optional[bytes] = ..., k: _Optional[int] = ..., band: _Optional[_Union[SelectivityBand, str]] = ..., asked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., recall_objective: _Optional[float] = ..., ef: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class ShownHit(_message.Message):
    __slots__ = ("id", "score")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class WorstQuery(_message.Message):
    __slots__ = ("query", "recall", "returned", "missed", "missed_count")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    MISSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    query: LiveQuery
    recall: float
    returned: _containers.RepeatedCompositeFieldContainer[ShownHit]
    missed: _containers.RepeatedCompositeFieldContainer[ShownHit]
    missed_count: int
    def __init__(self, query: _Optional[_Union[LiveQuery, _Mapping]] = ..., recall: _Optional[float] = ..., returned: _Optional[_Iterable[_Union[ShownHit, _Mapping]]] = ..., missed: _Optional[_Iterable[_Union[ShownHit, _Mapping]]] = ..., missed_count: _Optional[int] = ...) -> None: ...

class ListWorstQueriesRequest(_message.Message):
    __slots__ = ("collection", "queries_max")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    QUERIES_MAX_FIELD_NUMBER: _ClassVar[int]
    collection: str
    queries_max: int
    def __init__(self, collection: _Optional[str] = ..., queries_max: _Optional[int] = ...) -> None: ...

class ListWorstQueriesResponse(_message.Message):
    __slots__ = ("queries", "sampled", "reviewed", "errors")
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    REVIEWED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[WorstQuery]
    sampled: int
    reviewed: int
    errors: _containers.ScalarMap[str, str]
    def __init__(self, queries: _Optional[_Iterable[_Union[WorstQuery, _Mapping]]] = ..., sampled: _Optional[int] = ..., reviewed: _Optional[int] = ..., errors: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RebalanceRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class RebalanceResponse(_message.Message):
    __slots__ = ("moves",)
    MOVES_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[ShardMove]
    def __init__(self, moves: _Optional[_Iterable[_Union[ShardMove, _Mapping]]] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("moves",)
    MOVES_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[ShardMove]
    def __init__(self, moves: _Optional[_Iterable[_Union[ShardMove, _Mapping]]] = ...) -> None: ...

class UndrainNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class UndrainNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MoveShardRequest(_message.Message):
    __slots__ = ("collection", "shard", "node_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    node_id: str
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., node_id: _Optional[str] = ...) -> None: ...

class MoveShardResponse(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: ShardMove
    def __init__(self, move: _Optional[_Union[ShardMove, _Mapping]] = ...) -> None: ...

class CollectGarbageRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class CollectGarbageResponse(_message.Message):
    __slots__ = ("kinds", "dry_run", "grace_seconds")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedCompositeFieldContainer[GarbageKind]
    dry_run: bool
    grace_seconds: float
    def __init__(self, kinds: _Optional[_Iterable[_Union[GarbageKind, _Mapping]]] = ..., dry_run: _Optional[bool] = ..., grace_seconds: _Optional[float] = ...) -> None: ...

class GarbageKind(_message.Message):
    __slots__ = ("kind", "deleted_objects", "deleted_bytes", "waiting_objects", "waiting_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DELETED_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    DELETED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    deleted_objects: int
    deleted_bytes: int
    waiting_objects: int
    waiting_bytes: int
    def __init__(self, kind: _Optional[str] = ..., deleted_objects: _Optional[int] = ..., deleted_bytes: _Optional[int] = ..., waiting_objects: _Optional[int] = ..., waiting_bytes: _Optional[int] = ...) -> None: ...

class TestEmbedderRequest(_message.Message):
    __slots__ = ("collection", "text", "query", "model")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    text: str
    query: bool
    model: str
    def __init__(self, collection: _Optional[str] = ..., text: _Optional[str] = ..., query: _Optional[bool] = ..., model: _Optional[str] = ...) -> None: ...

class TestEmbedderResponse(_message.Message):
    __slots__ = ("model", "embedder", "dimension", "norm", "duration_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    embedder: str
    dimension: int
    norm: float
    duration_s: float
    def __init__(self, model: _Optional[str] = ..., embedder: _Optional[str] = ..., dimension: _Optional[int] = ..., norm: _Optional[float] = ..., duration_s: _Optional[float] = ...) -> None: ...
