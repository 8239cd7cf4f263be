import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MigrationPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MIGRATION_PHASE_UNSPECIFIED: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_PREPARE: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_BACKFILL: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_VALIDATE: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_READY: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_COMMITTED: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_ROLLED_BACK: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_PURGING: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_PURGED: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_ABORTING: _ClassVar[MigrationPhase]
    MIGRATION_PHASE_ABORTED: _ClassVar[MigrationPhase]

class UnfitRecords(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNFIT_RECORDS_UNSPECIFIED: _ClassVar[UnfitRecords]
    UNFIT_RECORDS_SKIP: _ClassVar[UnfitRecords]
    UNFIT_RECORDS_STOP: _ClassVar[UnfitRecords]
MIGRATION_PHASE_UNSPECIFIED: MigrationPhase
MIGRATION_PHASE_PREPARE: MigrationPhase
MIGRATION_PHASE_BACKFILL: MigrationPhase
MIGRATION_PHASE_VALIDATE: MigrationPhase
MIGRATION_PHASE_READY: MigrationPhase
MIGRATION_PHASE_COMMITTED: MigrationPhase
MIGRATION_PHASE_ROLLED_BACK: MigrationPhase
MIGRATION_PHASE_PURGING: MigrationPhase
MIGRATION_PHASE_PURGED: MigrationPhase
MIGRATION_PHASE_ABORTING: MigrationPhase
MIGRATION_PHASE_ABORTED: MigrationPhase
UNFIT_RECORDS_UNSPECIFIED: UnfitRecords
UNFIT_RECORDS_SKIP: UnfitRecords
UNFIT_RECORDS_STOP: UnfitRecords

class MigrationSettings(_message.Message):
    __slots__ = ("rows_per_second", "tasks_max", "canary_share", "shadow_share", "unfit")
    ROWS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TASKS_MAX_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SHARE_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FIELD_NUMBER: _ClassVar[int]
    rows_per_second: float
    tasks_max: int
    canary_share: float
    shadow_share: float
    unfit: UnfitRecords
    def __init__(self, rows_per_second: _Optional[float] = ..., tasks_max: _Optional[int] = ..., canary_share: _Optional[float] = ..., shadow_share: _Optional[float] = ..., unfit: _Optional[_Union[UnfitRecords, str]] = ...) -> None: ...

class GateThresholds(_message.Message):
    __slots__ = ("recall_min", "overlap_min", "lacking_share_max", "latency_ratio_max", "bridge_error_max", "ndcg_gain_min", "recall_gain_min")
    RECALL_MIN_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_MIN_FIELD_NUMBER: _ClassVar[int]
    LACKING_SHARE_MAX_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIO_MAX_FIELD_NUMBER: _ClassVar[int]
    BRIDGE_ERROR_MAX_FIELD_NUMBER: _ClassVar[int]
    NDCG_GAIN_MIN_FIELD_NUMBER: _ClassVar[int]
    RECALL_GAIN_MIN_FIELD_NUMBER: _ClassVar[int]
    recall_min: float
    overlap_min: float
    lacking_share_max: float
    latency_ratio_max: float
    bridge_error_max: float
    ndcg_gain_min: float
    recall_gain_min: float
    def __init__(self, recall_min: _Optional[float] = ..., overlap_min: _Optional[float] = ..., lacking_share_max: _Optional[float] = ..., latency_ratio_max: _Optional[float] = ..., bridge_error_max: _Optional[float] = ..., ndcg_gain_min: _Optional[float] = ..., recall_gain_min: _Optional[float] = ...) -> None: ...

class MigrationTransition(_message.Message):
    __slots__ = ("event", "phase", "at", "who", "why", "forced")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    event: str
    phase: MigrationPhase
    at: _timestamp_pb2.Timestamp
    who: str
    why: str
    forced: bool
    def __init__(self, event: _Optional[str] = ..., phase: _Optional[_Union[MigrationPhase, str]] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., who: _Optional[str] = ..., why: _Optional[str] = ..., forced: _Optional[bool] = ...) -> None: ...

class GateReport(_message.Message):
    __slots__ = ("number", "at", "queries", "k", "recall", "overlap", "rank_correlation", "latency_ratio", "memory_ratio", "bridge_error", "ndcg_gain", "recall_gain")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    RANK_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RATIO_FIELD_NUMBER: _ClassVar[int]
    BRIDGE_ERROR_FIELD_NUMBER: _ClassVar[int]
    NDCG_GAIN_FIELD_NUMBER: _ClassVar[int]
    RECALL_GAIN_FIELD_NUMBER: _ClassVar[int]
    number: int
    at: _timestamp_pb2.Timestamp
    queries: int
    k: int
    recall: float
    overlap: float
    rank_correlation: float
    latency_ratio: float
    memory_ratio: float
    bridge_error: float
    ndcg_gain: float
    recall_gain: float
    def __init__(self, number: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queries: _Optional[int] = ..., k: _Optional[int] = ..., recall: _Optional[float] = ..., overlap: _Optional[float] = ..., rank_correlation: _Optional[float] = ..., latency_ratio: _Optional[float] = ..., memory_ratio: _Optional[float] = ..., bridge_error: _Optional[float] = ..., ndcg_gain: _Optional[float] = ..., recall_gain: _Optional[float] = ...) -> None: ...

class GateFinding(_message.Message):
    __slots__ = ("name", "value", "threshold", "at_least", "passed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    threshold: float
    at_least: bool
    passed: bool
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., threshold: _Optional[float] = ..., at_least: _Optional[bool] = ..., passed: _Optional[bool] = ...) -> None: ...

class MigrationCoverage(_message.Message):
    __slots__ = ("at", "rows", "rows_lacking", "rows_lacking_old", "segments", "segments_left", "shards_unreported", "rows_per_s")
    AT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_LACKING_FIELD_NUMBER: _ClassVar[int]
    ROWS_LACKING_OLD_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_LEFT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_UNREPORTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    rows: int
    rows_lacking: int
    rows_lacking_old: int
    segments: int
    segments_left: int
    shards_unreported: int
    rows_per_s: float
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rows: _Optional[int] = ..., rows_lacking: _Optional[int] = ..., rows_lacking_old: _Optional[int] = ..., segments: _Optional[int] = ..., segments_left: _Optional[int] = ..., shards_unreported: _Optional[int] = ..., rows_per_s: _Optional[float] = ...) -> None: ...

class SkipCount(_message.Message):
    __slots__ = ("reason", "rows")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    rows: int
    def __init__(self, reason: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class SegmentProgress(_message.Message):
    __slots__ = ("shard", "segment_id", "model", "rows_done", "skipped")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    segment_id: str
    model: str
    rows_done: int
    skipped: _containers.RepeatedCompositeFieldContainer[SkipCount]
    def __init__(self, shard: _Optional[int] = ..., segment_id: _Optional[str] = ..., model: _Optional[str] = ..., rows_done: _Optional[int] = ..., skipped: _Optional[_Iterable[_Union[SkipCount, _Mapping]]] = ...) -> None: ...

class SkippedRecord(_message.Message):
    __slots__ = ("id", "shard", "model", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    shard: int
    model: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., shard: _Optional[int] = ..., model: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Migration(_message.Message):
    __slots__ = ("collection", "collection_id", "from_model", "to_model", "phase", "paused", "settings", "thresholds", "history", "validations", "report", "coverage", "segments", "skipped", "error", "possible", "findings")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_MODEL_FIELD_NUMBER: _ClassVar[int]
    TO_MODEL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    VALIDATIONS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    POSSIBLE_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    collection_id: str
    from_model: str
    to_model: str
    phase: MigrationPhase
    paused: bool
    settings: MigrationSettings
    thresholds: GateThresholds
    history: _containers.RepeatedCompositeFieldContainer[MigrationTransition]
    validations: int
    report: GateReport
    coverage: MigrationCoverage
    segments: _containers.RepeatedCompositeFieldContainer[SegmentProgress]
    skipped: _containers.RepeatedCompositeFieldContainer[SkippedRecord]
    error: str
    possible: _containers.RepeatedScalarFieldContainer[str]
    findings: _containers.RepeatedCompositeFieldContainer[GateFinding]
    def __init__(self, collection: _Optional[str] = ..., collection_id: _Optional[str] = ..., from_model: _Optional[str] = ..., to_model: _Optional[str] = ..., phase: _Optional[_Union[MigrationPhase, str]] = ..., paused: _Optional[bool] = ..., settings: _Optional[_Union[MigrationSettings, _Mapping]] = ..., thresholds: _Optional[_Union[GateThresholds, _Mapping]] = ..., history: _Optional[_Iterable[_Union[MigrationTransition, _Mapping]]] = ..., validations: _Optional[int] = ..., report: _Optional[_Union[GateReport, _Mapping]] = ..., coverage: _Optional[_Union[MigrationCoverage, _Mapping]] = ..., segments: _Optional[_Iterable[_Union[SegmentProgress, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[SkippedRecord, _Mapping]]] = ..., error: _Optional[str] = ..., possible: _Optional[_Iterable[str]] = ..., findings: _Optional[_Iterable[_Union[GateFinding, _Mapping]]] = ...) -> None: ...

class PlanMigrationRequest(_message.Message):
    __slots__ = ("collection", "to_model", "sample_size")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TO_MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SIZE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    to_model: str
    sample_size: int
    def __init__(self, collection: _Optional[str] = ..., to_model: _Optional[str] = ..., sample_size: _Optional[int] = ...) -> None: ...

class PlanMigrationResponse(_message.Message):
    __slots__ = ("collection", "from_model", "to_model", "rows", "rows_lacking", "sampled", "sampled_without_text", "reasons", "embedder", "characters", "tokens", "rows_per_s", "duration_s", "disk_bytes", "memory_bytes", "warnings")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FROM_MODEL_FIELD_NUMBER: _ClassVar[int]
    TO_MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_LACKING_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_WITHOUT_TEXT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    from_model: str
    to_model: str
    rows: int
    rows_lacking: int
    sampled: int
    sampled_without_text: int
    reasons: _containers.RepeatedCompositeFieldContainer[SkipCount]
    embedder: str
    characters: int
    tokens: int
    rows_per_s: float
    duration_s: float
    disk_bytes: int
    memory_bytes: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, collection: _Optional[str] = ..., from_model: _Optional[str] = ..., to_model: _Optional[str] = ..., rows: _Optional[int] = ..., rows_lacking: _Optional[int] = ..., sampled: _Optional[int] = ..., sampled_without_text: _Optional[int] = ..., reasons: _Optional[_Iterable[_Union[SkipCount, _Mapping]]] = ..., embedder: _Optional[str] = ..., characters: _Optional[int] = ..., tokens: _Optional[int] = ..., rows_per_s: _Optional[float] = ..., duration_s: _Optional[float] = ..., disk_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class StartMigrationRequest(_message.Message):
    __slots__ = ("collection", "to_model", "settings", "thresholds", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TO_MODEL_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    to_model: str
    settings: MigrationSettings
    thresholds: GateThresholds
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., to_model: _Optional[str] = ..., settings: _Optional[_Union[MigrationSettings, _Mapping]] = ..., thresholds: _Optional[_Union[GateThresholds, _Mapping]] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class StartMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class GetMigrationRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class GetMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class ListMigrationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMigrationsResponse(_message.Message):
    __slots__ = ("migrations", "next_page_token")
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    migrations: _containers.RepeatedCompositeFieldContainer[Migration]
    next_page_token: str
    def __init__(self, migrations: _Optional[_Iterable[_Union[Migration, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateMigrationRequest(_message.Message):
    __slots__ = ("collection", "settings", "thresholds", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    settings: MigrationSettings
    thresholds: GateThresholds
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., settings: _Optional[_Union[MigrationSettings, _Mapping]] = ..., thresholds: _Optional[_Union[GateThresholds, _Mapping]] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class UpdateMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class PauseMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class PauseMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class ResumeMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ResumeMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class ValidateMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ValidateMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class CommitMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why", "force")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    force: bool
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class CommitMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class RollbackMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class RollbackMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class AbortMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class AbortMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...

class PurgeMigrationRequest(_message.Message):
    __slots__ = ("collection", "who", "why")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    who: str
    why: str
    def __init__(self, collection: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class PurgeMigrationResponse(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: Migration
    def __init__(self, migration: _Optional[_Union[Migration, _Mapping]] = ...) -> None: ...
