"""Every RPC with its types: what servers register and clients call.

A caller that may not import generated messages builds requests with `METHOD.request(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from annheal.v1 import (
    admin_pb2,
    collections_pb2,
    internal_pb2,
    migration_pb2,
    records_pb2,
    search_pb2,
)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

COLLECTION_SERVICE = "annheal.v1.CollectionService"
RECORD_SERVICE = "annheal.v1.RecordService"
SEARCH_SERVICE = "annheal.v1.SearchService"
ADMIN_SERVICE = "annheal.v1.AdminService"
MIGRATION_SERVICE = "annheal.v1.MigrationService"
SHARD_SERVICE = "annheal.v1.ShardService"


@dataclass(frozen=True, slots=True)
class Method(Generic[RequestT, ResponseT]):
    """One unary RPC. A lost answer of one that `mutates` is an unknown outcome."""

    service: str
    name: str
    request: type[RequestT]
    response: type[ResponseT]
    mutates: bool = False

    @property
    def path(self) -> str:
        """The HTTP/2 path."""
        return f"/{self.service}/{self.name}"


CREATE_COLLECTION = Method(
    COLLECTION_SERVICE,
    "CreateCollection",
    collections_pb2.CreateCollectionRequest,
    collections_pb2.CreateCollectionResponse,
    mutates=True,
)
GET_COLLECTION = Method(
    COLLECTION_SERVICE,
    "GetCollection",
    collections_pb2.GetCollectionRequest,
    collections_pb2.GetCollectionResponse,
)
LIST_COLLECTIONS = Method(
    COLLECTION_SERVICE,
    "ListCollections",
    collections_pb2.ListCollectionsRequest,
    collections_pb2.ListCollectionsResponse,
)
UPDATE_COLLECTION = Method(
    COLLECTION_SERVICE,
    "UpdateCollection",
    collections_pb2.UpdateCollectionRequest,
    collections_pb2.UpdateCollectionResponse,
    mutates=True,
)
DROP_COLLECTION = Method(
    COLLECTION_SERVICE,
    "DropCollection",
    collections_pb2.DropCollectionRequest,
    collections_pb2.DropCollectionResponse,
    mutates=True,
)
ADD_MODEL = Method(
    COLLECTION_SERVICE,
    "AddModel",
    collections_pb2.AddModelRequest,
    collections_pb2.AddModelResponse,
    mutates=True,
)
REMOVE_MODEL = Method(
    COLLECTION_SERVICE,
    "RemoveModel",
    collections_pb2.RemoveModelRequest,
    collections_pb2.RemoveModelResponse,
    mutates=True,
)

UPSERT = Method(
    RECORD_SERVICE,
    "Upsert",
    records_pb2.UpsertRequest,
    records_pb2.UpsertResponse,
    mutates=True,
)
UPDATE = Method(
    RECORD_SERVICE,
    "Update",
    records_pb2.UpdateRequest,
    records_pb2.UpdateResponse,
    mutates=True,
)
UPSERT_IF = Method(
    RECORD_SERVICE,
    "UpsertIf",
    records_pb2.UpsertIfRequest,
    records_pb2.UpsertIfResponse,
    mutates=True,
)
DELETE_IF = Method(
    RECORD_SERVICE,
    "DeleteIf",
    records_pb2.DeleteIfRequest,
    records_pb2.DeleteIfResponse,
    mutates=True,
)
DELETE_BY_IDS = Method(
    RECORD_SERVICE,
    "DeleteByIds",
    records_pb2.DeleteByIdsRequest,
    records_pb2.DeleteByIdsResponse,
    mutates=True,
)
DELETE_BY_FILTER = Method(
    RECORD_SERVICE,
    "DeleteByFilter",
    records_pb2.DeleteByFilterRequest,
    records_pb2.DeleteByFilterResponse,
    mutates=True,
)
GET = Method(RECORD_SERVICE, "Get", records_pb2.GetRequest, records_pb2.GetResponse)
COUNT = Method(RECORD_SERVICE, "Count", records_pb2.CountRequest, records_pb2.CountResponse)
SCAN = Method(RECORD_SERVICE, "Scan", records_pb2.ScanRequest, records_pb2.ScanResponse)

SEARCH = Method(SEARCH_SERVICE, "Search", search_pb2.SearchRequest, search_pb2.SearchResponse)

GET_CLUSTER_STATUS = Method(
    ADMIN_SERVICE,
    "GetClusterStatus",
    admin_pb2.GetClusterStatusRequest,
    admin_pb2.GetClusterStatusResponse,
)
CHECK_HEALTH = Method(
    ADMIN_SERVICE,
    "CheckHealth",
    admin_pb2.CheckHealthRequest,
    admin_pb2.CheckHealthResponse,
)
LIST_NODES = Method(
    ADMIN_SERVICE, "ListNodes", admin_pb2.ListNodesRequest, admin_pb2.ListNodesResponse
)
LIST_SHARDS = Method(
    ADMIN_SERVICE, "ListShards", admin_pb2.ListShardsRequest, admin_pb2.ListShardsResponse
)
LIST_SEGMENTS = Method(
    ADMIN_SERVICE, "ListSegments", admin_pb2.ListSegmentsRequest, admin_pb2.ListSegmentsResponse
)
FLUSH = Method(
    ADMIN_SERVICE, "Flush", admin_pb2.FlushRequest, admin_pb2.FlushResponse, mutates=True
)
COMPACT = Method(
    ADMIN_SERVICE, "Compact", admin_pb2.CompactRequest, admin_pb2.CompactResponse, mutates=True
)
LIST_TASKS = Method(
    ADMIN_SERVICE, "ListTasks", admin_pb2.ListTasksRequest, admin_pb2.ListTasksResponse
)
GET_TASK = Method(ADMIN_SERVICE, "GetTask", admin_pb2.GetTaskRequest, admin_pb2.GetTaskResponse)
CANCEL_TASK = Method(
    ADMIN_SERVICE,
    "CancelTask",
    admin_pb2.CancelTaskRequest,
    admin_pb2.CancelTaskResponse,
    mutates=True,
)
RETRY_TASK = Method(
    ADMIN_SERVICE,
    "RetryTask",
    admin_pb2.RetryTaskRequest,
    admin_pb2.RetryTaskResponse,
    mutates=True,
)
MEASURE_RECALL = Method(
    ADMIN_SERVICE,
    "MeasureRecall",
    admin_pb2.MeasureRecallRequest,
    admin_pb2.MeasureRecallResponse,
)
GET_RECALL = Method(
    ADMIN_SERVICE, "GetRecall", admin_pb2.GetRecallRequest, admin_pb2.GetRecallResponse
)
TEST_EMBEDDER = Method(
    ADMIN_SERVICE, "TestEmbedder", admin_pb2.TestEmbedderRequest, admin_pb2.TestEmbedderResponse
)
AUDIT_RECALL = Method(
    ADMIN_SERVICE, "AuditRecall", admin_pb2.AuditRecallRequest, admin_pb2.AuditRecallResponse
)
LIST_WORST_QUERIES = Method(
    ADMIN_SERVICE,
    "ListWorstQueries",
    admin_pb2.ListWorstQueriesRequest,
    admin_pb2.ListWorstQueriesResponse,
)
REBALANCE = Method(
    ADMIN_SERVICE,
    "Rebalance",
    admin_pb2.RebalanceRequest,
    admin_pb2.RebalanceResponse,
    mutates=True,
)
COLLECT_GARBAGE = Method(
    ADMIN_SERVICE,
    "CollectGarbage",
    admin_pb2.CollectGarbageRequest,
    admin_pb2.CollectGarbageResponse,
    mutates=True,
)
DRAIN_NODE = Method(
    ADMIN_SERVICE,
    "DrainNode",
    admin_pb2.DrainNodeRequest,
    admin_pb2.DrainNodeResponse,
    mutates=True,
)
UNDRAIN_NODE = Method(
    ADMIN_SERVICE,
    "UndrainNode",
    admin_pb2.UndrainNodeRequest,
    admin_pb2.UndrainNodeResponse,
    mutates=True,
)
MOVE_SHARD = Method(
    ADMIN_SERVICE,
    "MoveShard",
    admin_pb2.MoveShardRequest,
    admin_pb2.MoveShardResponse,
    mutates=True,
)

SEARCH_SHARDS = Method(
    SHARD_SERVICE,
    "SearchShards",
    internal_pb2.SearchShardsRequest,
    internal_pb2.SearchShardsResponse,
)
WRITE_SHARD = Method(
    SHARD_SERVICE,
    "WriteShard",
    internal_pb2.WriteShardRequest,
    internal_pb2.WriteShardResponse,
    mutates=True,
)
GET_FROM_SHARD = Method(
    SHARD_SERVICE,
    "GetFromShard",
    internal_pb2.GetFromShardRequest,
    internal_pb2.GetFromShardResponse,
)
COUNT_SHARD = Method(
    SHARD_SERVICE, "CountShard", internal_pb2.CountShardRequest, internal_pb2.CountShardResponse
)
SCAN_SHARD = Method(
    SHARD_SERVICE, "ScanShard", internal_pb2.ScanShardRequest, internal_pb2.ScanShardResponse
)
LIST_SHARD_STATES = Method(
    SHARD_SERVICE,
    "ListShardStates",
    internal_pb2.ListShardStatesRequest,
    internal_pb2.ListShardStatesResponse,
)
CHECK_NODE = Method(
    SHARD_SERVICE,
    "CheckNode",
    internal_pb2.CheckNodeRequest,
    internal_pb2.CheckNodeResponse,
)
REPORT_RECALL = Method(
    SHARD_SERVICE,
    "ReportRecall",
    internal_pb2.ReportRecallRequest,
    internal_pb2.ReportRecallResponse,
)
AUDIT_SHARD = Method(
    SHARD_SERVICE, "AuditShard", internal_pb2.AuditShardRequest, internal_pb2.AuditShardResponse
)
LIST_SAMPLED_QUERIES = Method(
    SHARD_SERVICE,
    "ListSampledQueries",
    internal_pb2.ListSampledQueriesRequest,
    internal_pb2.ListSampledQueriesResponse,
)
FLUSH_SHARD = Method(
    SHARD_SERVICE,
    "FlushShard",
    internal_pb2.FlushShardRequest,
    internal_pb2.FlushShardResponse,
    mutates=True,
)
PUBLISH_COMPACTION = Method(
    SHARD_SERVICE,
    "PublishCompaction",
    internal_pb2.PublishCompactionRequest,
    internal_pb2.PublishCompactionResponse,
    mutates=True,
)
PLAN_MIGRATION = Method(
    MIGRATION_SERVICE,
    "PlanMigration",
    migration_pb2.PlanMigrationRequest,
    migration_pb2.PlanMigrationResponse,
)
START_MIGRATION = Method(
    MIGRATION_SERVICE,
    "StartMigration",
    migration_pb2.StartMigrationRequest,
    migration_pb2.StartMigrationResponse,
    mutates=True,
)
GET_MIGRATION = Method(
    MIGRATION_SERVICE,
    "GetMigration",
    migration_pb2.GetMigrationRequest,
    migration_pb2.GetMigrationResponse,
)
LIST_MIGRATIONS = Method(
    MIGRATION_SERVICE,
    "ListMigrations",
    migration_pb2.ListMigrationsRequest,
    migration_pb2.ListMigrationsResponse,
)
UPDATE_MIGRATION = Method(
    MIGRATION_SERVICE,
    "UpdateMigration",
    migration_pb2.UpdateMigrationRequest,
    migration_pb2.UpdateMigrationResponse,
    mutates=True,
)
PAUSE_MIGRATION = Method(
    MIGRATION_SERVICE,
    "PauseMigration",
    migration_pb2.PauseMigrationRequest,
    migration_pb2.PauseMigrationResponse,
    mutates=True,
)
RESUME_MIGRATION = Method(
    MIGRATION_SERVICE,
    "ResumeMigration",
    migration_pb2.ResumeMigrationRequest,
    migration_pb2.ResumeMigrationResponse,
    mutates=True,
)
VALIDATE_MIGRATION = Method(
    MIGRATION_SERVICE,
    "ValidateMigration",
    migration_pb2.ValidateMigrationRequest,
    migration_pb2.ValidateMigrationResponse,
    mutates=True,
)
COMMIT_MIGRATION = Method(
    MIGRATION_SERVICE,
    "CommitMigration",
    migration_pb2.CommitMigrationRequest,
    migration_pb2.CommitMigrationResponse,
    mutates=True,
)
ROLLBACK_MIGRATION = Method(
    MIGRATION_SERVICE,
    "RollbackMigration",
    migration_pb2.RollbackMigrationRequest,
    migration_pb2.RollbackMigrationResponse,
    mutates=True,
)
ABORT_MIGRATION = Method(
    MIGRATION_SERVICE,
    "AbortMigration",
    migration_pb2.AbortMigrationRequest,
    migration_pb2.AbortMigrationResponse,
    mutates=True,
)
PURGE_MIGRATION = Method(
    MIGRATION_SERVICE,
    "PurgeMigration",
    migration_pb2.PurgeMigrationRequest,
    migration_pb2.PurgeMigrationResponse,
    mutates=True,
)


def _by_service() -> dict[str, tuple[Method[Any, Any], ...]]:
    found: dict[str, tuple[Method[Any, Any], ...]] = {}
    for value in list(globals().values()):
        if isinstance(value, Method):
            found[value.service] = (*found.get(value.service, ()), value)
    return found


METHODS: dict[str, tuple[Method[Any, Any], ...]] = _by_service()
"""The methods of each service, by its full name."""
