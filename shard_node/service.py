"""The shard service: translates between messages and a shard node, nothing else."""

from __future__ import annotations

from annheal.rpc.port import ShardNode
from annheal.rpc.server import Context, remaining_s
from annheal.v1 import internal_pb2 as pb
from annheal.wire import internal as wire
from annheal.wire.admin import encode_node_health
from annheal.wire.recall import encode_audits, encode_live_queries, encode_recall_reports


class ShardServicer:
    """`annheal.v1.ShardService` over `node`; the caller's deadline becomes `timeout_s`."""

    def __init__(self, node: ShardNode) -> None:
        self._node = node

    async def SearchShards(
        self, request: pb.SearchShardsRequest, context: Context
    ) -> pb.SearchShardsResponse:
        """Search some shards of one collection and merge their hits."""
        search = wire.decode_shard_search(request, timeout_s=remaining_s(context))
        return wire.encode_shard_answer(await self._node.search(search))

    async def WriteShard(
        self, request: pb.WriteShardRequest, context: Context
    ) -> pb.WriteShardResponse:
        """Apply one write to one shard."""
        write = wire.decode_shard_write(request, timeout_s=remaining_s(context))
        return wire.encode_write_answer(await self._node.write(write))

    async def GetFromShard(
        self, request: pb.GetFromShardRequest, context: Context
    ) -> pb.GetFromShardResponse:
        """Read records of one shard by id."""
        return wire.encode_found(await self._node.get(wire.decode_shard_get(request)))

    async def CountShard(
        self, request: pb.CountShardRequest, context: Context
    ) -> pb.CountShardResponse:
        """Count records of one shard."""
        count = await self._node.count(wire.decode_shard_count(request))
        return pb.CountShardResponse(count=count)

    async def ScanShard(
        self, request: pb.ScanShardRequest, context: Context
    ) -> pb.ScanShardResponse:
        """Read a page of one shard."""
        return wire.encode_scan_page(await self._node.scan(wire.decode_shard_scan(request)))

    async def ListShardStates(
        self, request: pb.ListShardStatesRequest, context: Context
    ) -> pb.ListShardStatesResponse:
        """Describe the shards that the node holds."""
        states = await self._node.shard_states(wire.decode_collection_id(request))
        return pb.ListShardStatesResponse(states=[wire.encode_shard_state(s) for s in states])

    async def CheckNode(
        self, request: pb.CheckNodeRequest, context: Context
    ) -> pb.CheckNodeResponse:
        """Probe what the node depends on."""
        return encode_node_health(await self._node.health())

    async def ReportRecall(
        self, request: pb.ReportRecallRequest, context: Context
    ) -> pb.ReportRecallResponse:
        """Report what live queries measured."""
        return encode_recall_reports(await self._node.recall(wire.decode_collection_id(request)))

    async def AuditShard(
        self, request: pb.AuditShardRequest, context: Context
    ) -> pb.AuditShardResponse:
        """Compare the estimates of one shard with other live queries."""
        shard, queries_max = wire.decode_audit(request)
        audits = await self._node.audit_recall(
            shard.collection_id,
            shard.number,
            queries_max=queries_max,
            timeout_s=remaining_s(context),
        )
        return pb.AuditShardResponse(audits=encode_audits(audits))

    async def ListSampledQueries(
        self, request: pb.ListSampledQueriesRequest, context: Context
    ) -> pb.ListSampledQueriesResponse:
        """List sampled live queries."""
        queries = await self._node.sampled_queries(wire.decode_one_collection_id(request))
        return pb.ListSampledQueriesResponse(queries=encode_live_queries(queries))

    async def FlushShard(
        self, request: pb.FlushShardRequest, context: Context
    ) -> pb.FlushShardResponse:
        """Seal, flush, checkpoint and trim one shard."""
        shard = wire.decode_flush(request)
        await self._node.flush(shard.collection_id, shard.number)
        return pb.FlushShardResponse()

    async def PublishCompaction(
        self, request: pb.PublishCompactionRequest, context: Context
    ) -> pb.PublishCompactionResponse:
        """Swap the sources of a compaction for its output."""
        await self._node.publish_compaction(wire.decode_publish(request))
        return pb.PublishCompactionResponse()
