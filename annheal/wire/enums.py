"""Names of enumerations on the wire and in the domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType, Metric, VectorStorage
from annheal.model.filter import ComparisonOp
from annheal.model.measures.latency import TrendVerdict
from annheal.model.measures.part_health import PartKind
from annheal.model.measures.recall import Rung, SelectivityBand
from annheal.model.measures.recall_audit import AuditVerdict
from annheal.model.measures.recall_summary import RecallVerdict
from annheal.model.search import Consistency
from annheal.model.texts.spec import Pooling
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.model.topology.shard import ShardPhase, WorkerRole
from annheal.model.topology.task import TaskPhase, TaskReason
from annheal.v1 import admin_pb2, collections_pb2, filter_pb2, session_pb2

DomainT = TypeVar("DomainT", bound=str)


class EnumCodec(Generic[DomainT]):
    """One enumeration, both ways. Number 0 means unspecified on the wire and nothing else does."""

    def __init__(self, numbers: Mapping[DomainT, int]) -> None:
        self._numbers: dict[str, int] = {value: number for value, number in numbers.items()}
        self._domain: dict[int, DomainT] = {n: value for value, n in numbers.items()}
        self._choices = ", ".join(value for value in numbers)

    def encode(self, value: str) -> Any:
        """Return the number of `value`, 0 for one that this version does not know.

        Any, because the generated stubs ask for classes that hold nothing but ints.
        """
        return self._numbers.get(value, 0)

    def encode_checked(self, value: str, *, field: str) -> Any:
        """Return the number of `value`; raises `InvalidArgument` for one that is no choice."""
        if value not in self._numbers:
            raise InvalidArgument.of(field, f"{value!r} is none of {self._choices}")
        return self._numbers[value]

    def decode(self, number: int, *, field: str) -> DomainT:
        """Return the domain's value; raises `InvalidArgument` for 0 and unknown numbers."""
        try:
            return self._domain[number]
        except KeyError:
            text = "is not set" if number == 0 else f"has the unknown value {number}"
            raise InvalidArgument.of(field, f"{text}; it is one of {self._choices}") from None

    def known(self, number: int) -> DomainT | None:
        """Return the domain's value, or None for what this version does not know."""
        return self._domain.get(number)

    def decode_or(self, number: int, default: DomainT) -> DomainT:
        """Return the domain's value, or `default` for what this version does not know."""
        return self._domain.get(number, default)

    def decode_text(self, number: int) -> str:
        """Return the domain's value, or an empty text for what this version does not know."""
        return self._domain.get(number, "")


METRIC = EnumCodec(
    {
        Metric.COSINE: collections_pb2.METRIC_COSINE,
        Metric.INNER_PRODUCT: collections_pb2.METRIC_INNER_PRODUCT,
        Metric.L2: collections_pb2.METRIC_L2,
    }
)
POOLING = EnumCodec(
    {Pooling.MEAN: collections_pb2.POOLING_MEAN, Pooling.CLS: collections_pb2.POOLING_CLS}
)
VECTOR_STORAGE = EnumCodec(
    {
        VectorStorage.FLOAT32: collections_pb2.VECTOR_STORAGE_FLOAT32,
        VectorStorage.FP16: collections_pb2.VECTOR_STORAGE_FP16,
        VectorStorage.INT8: collections_pb2.VECTOR_STORAGE_INT8,
    }
)
ATTRIBUTE_TYPE = EnumCodec(
    {
        AttributeType.KEYWORD: collections_pb2.ATTRIBUTE_TYPE_KEYWORD,
        AttributeType.KEYWORD_LIST: collections_pb2.ATTRIBUTE_TYPE_KEYWORD_LIST,
        AttributeType.INT64: collections_pb2.ATTRIBUTE_TYPE_INT64,
        AttributeType.FLOAT64: collections_pb2.ATTRIBUTE_TYPE_FLOAT64,
        AttributeType.BOOL: collections_pb2.ATTRIBUTE_TYPE_BOOL,
        AttributeType.TIMESTAMP: collections_pb2.ATTRIBUTE_TYPE_TIMESTAMP,
    }
)
COMPARISON_OP = EnumCodec(
    {
        ComparisonOp.EQ: filter_pb2.COMPARISON_OP_EQ,
        ComparisonOp.NE: filter_pb2.COMPARISON_OP_NE,
        ComparisonOp.LT: filter_pb2.COMPARISON_OP_LT,
        ComparisonOp.LE: filter_pb2.COMPARISON_OP_LE,
        ComparisonOp.GT: filter_pb2.COMPARISON_OP_GT,
        ComparisonOp.GE: filter_pb2.COMPARISON_OP_GE,
    }
)
CONSISTENCY = EnumCodec(
    {
        Consistency.EVENTUAL: session_pb2.CONSISTENCY_EVENTUAL,
        Consistency.SESSION: session_pb2.CONSISTENCY_SESSION,
        Consistency.STRONG: session_pb2.CONSISTENCY_STRONG,
    }
)
WORKER_ROLE = EnumCodec(
    {
        WorkerRole.COORDINATOR: admin_pb2.WORKER_ROLE_COORDINATOR,
        WorkerRole.COMPACTOR: admin_pb2.WORKER_ROLE_COMPACTOR,
    }
)
SHARD_PHASE = EnumCodec(
    {
        ShardPhase.LOADING: admin_pb2.SHARD_PHASE_LOADING,
        ShardPhase.SERVING: admin_pb2.SHARD_PHASE_SERVING,
        ShardPhase.FAILED: admin_pb2.SHARD_PHASE_FAILED,
        ShardPhase.RELEASED: admin_pb2.SHARD_PHASE_RELEASED,
    }
)
TIER = EnumCodec(
    {
        Tier.GROWING: admin_pb2.SEGMENT_TIER_GROWING,
        Tier.HOT: admin_pb2.SEGMENT_TIER_HOT,
        Tier.WARM: admin_pb2.SEGMENT_TIER_WARM,
        Tier.COLD: admin_pb2.SEGMENT_TIER_COLD,
    }
)
INDEX_KIND = EnumCodec(
    {
        IndexKind.FLAT: admin_pb2.SEGMENT_INDEX_KIND_FLAT,
        IndexKind.HNSW: admin_pb2.SEGMENT_INDEX_KIND_HNSW,
    }
)
TASK_PHASE = EnumCodec(
    {
        TaskPhase.PENDING: admin_pb2.TASK_PHASE_PENDING,
        TaskPhase.BUILT: admin_pb2.TASK_PHASE_BUILT,
        TaskPhase.PUBLISHED: admin_pb2.TASK_PHASE_PUBLISHED,
        TaskPhase.FAILED: admin_pb2.TASK_PHASE_FAILED,
        TaskPhase.CANCELLED: admin_pb2.TASK_PHASE_CANCELLED,
    }
)
TASK_REASON = EnumCodec(
    {
        TaskReason.MERGE: admin_pb2.COMPACTION_REASON_MERGE,
        TaskReason.TOMBSTONES: admin_pb2.COMPACTION_REASON_TOMBSTONES,
        TaskReason.MANUAL: admin_pb2.COMPACTION_REASON_MANUAL,
        TaskReason.RECALL: admin_pb2.COMPACTION_REASON_RECALL,
        TaskReason.WALK_COST: admin_pb2.COMPACTION_REASON_WALK_COST,
        TaskReason.BACKFILL: admin_pb2.COMPACTION_REASON_BACKFILL,
        TaskReason.MODEL_PURGE: admin_pb2.COMPACTION_REASON_MODEL_PURGE,
    }
)
BAND = EnumCodec(
    {
        SelectivityBand.UNFILTERED: admin_pb2.SELECTIVITY_BAND_UNFILTERED,
        SelectivityBand.FROM_50: admin_pb2.SELECTIVITY_BAND_FROM_50_PERCENT,
        SelectivityBand.FROM_10: admin_pb2.SELECTIVITY_BAND_FROM_10_PERCENT,
        SelectivityBand.FROM_1: admin_pb2.SELECTIVITY_BAND_FROM_1_PERCENT,
        SelectivityBand.FROM_0_1: admin_pb2.SELECTIVITY_BAND_FROM_0_1_PERCENT,
        SelectivityBand.BELOW_0_1: admin_pb2.SELECTIVITY_BAND_BELOW_0_1_PERCENT,
    }
)
RECALL_RUNG = EnumCodec(
    {
        Rung.GRAPH: admin_pb2.RECALL_RUNG_GRAPH,
        Rung.CODES: admin_pb2.RECALL_RUNG_CODES,
        Rung.EXACT: admin_pb2.RECALL_RUNG_EXACT,
    }
)
RECALL_VERDICT = EnumCodec(
    {
        RecallVerdict.UNMEASURED: admin_pb2.RECALL_VERDICT_UNMEASURED,
        RecallVerdict.MET: admin_pb2.RECALL_VERDICT_MET,
        RecallVerdict.UNCLEAR: admin_pb2.RECALL_VERDICT_UNCLEAR,
        RecallVerdict.MISSED: admin_pb2.RECALL_VERDICT_MISSED,
        RecallVerdict.MET_WITH_BAD_TAIL: admin_pb2.RECALL_VERDICT_MET_WITH_BAD_TAIL,
        RecallVerdict.UNKNOWN: admin_pb2.RECALL_VERDICT_UNKNOWN,
        RecallVerdict.NOT_JUDGED: admin_pb2.RECALL_VERDICT_NOT_JUDGED,
        RecallVerdict.RECOVERING: admin_pb2.RECALL_VERDICT_RECOVERING,
    }
)
AUDIT_VERDICT = EnumCodec(
    {
        AuditVerdict.CONTAINED: admin_pb2.AUDIT_VERDICT_CONTAINED,
        AuditVerdict.OUTSIDE: admin_pb2.AUDIT_VERDICT_OUTSIDE,
        AuditVerdict.UNKNOWN: admin_pb2.AUDIT_VERDICT_UNKNOWN,
    }
)
TREND_VERDICT = EnumCodec(
    {
        TrendVerdict.UNKNOWN: admin_pb2.TREND_VERDICT_UNKNOWN,
        TrendVerdict.STEADY: admin_pb2.TREND_VERDICT_STEADY,
        TrendVerdict.SLOWER: admin_pb2.TREND_VERDICT_SLOWER,
        TrendVerdict.FASTER: admin_pb2.TREND_VERDICT_FASTER,
    }
)
PART_KIND = EnumCodec(
    {
        PartKind.OBJECT_WRITES: admin_pb2.PART_OBJECT_WRITES,
        PartKind.OBJECT_READS: admin_pb2.PART_OBJECT_READS,
        PartKind.METADATA: admin_pb2.PART_METADATA,
        PartKind.LOG: admin_pb2.PART_LOG,
        PartKind.DISK: admin_pb2.PART_DISK,
        PartKind.EMBEDDER: admin_pb2.PART_EMBEDDER,
    }
)
