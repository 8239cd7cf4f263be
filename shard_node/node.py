"""A shard node as its callers see it: the coordinator's port `ShardNode`, over owned shards."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from annheal.errors import DeadlineExceeded, Fenced, InvalidArgument
from annheal.index import set_search_threads
from annheal.model.collection import Collection, ModelSpec
from annheal.model.limits import SEARCH_HITS_MAX
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.model.measures.recall import CollectionRecall, band_of
from annheal.model.measures.recall_audit import BandAudit
from annheal.model.measures.recall_worst import LiveQuery
from annheal.model.records import Float32Matrix, Projection, RecordSet
from annheal.model.search import Consistency, SearchAnswer, SearchOptions, SearchRequest
from annheal.model.topology.checks import checked_shards
from annheal.model.topology.shard import ShardId
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask, TaskReason
from annheal.model.validation import validate_search_options
from annheal.model.write import (
    CountRequest,
    GetRequest,
    ScanPage,
    ScanRequest,
    WriteAnswer,
    WriteRequest,
)
from annheal.objectstore.store_watch import StoreWatch
from annheal.runtime.deadline import Deadline
from annheal.runtime.host.disk import DiskWatch
from annheal.runtime.metrics import Metrics
from annheal.runtime.stop import YieldPoint
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.owned_shard import OwnedShard
from annheal.shard_node.owner.shard_state import describe_unserved, with_recall
from annheal.shard_node.ownership import Ownership
from annheal.shard_node.recall.auditor import RecallAuditor
from annheal.shard_node.recall.monitor import RecallMonitor
from annheal.shard_node.rows.view import ShardView
from annheal.shard_node.search.engine import SearchEngine
from annheal.shard_node.search.reads import count_rows, get_records, scan_page
from annheal.shard_node.search.searcher import MatchCount, Searcher, search_by_models

QUERIES_PER_THREAD = 12
"""Queries of one batch for each FAISS thread beyond the first (measured: docs/benchmarks.md)."""

_log = logging.getLogger(__name__)


def search_threads_for(queries: int, *, threads_max: int) -> int:
    """Return how many FAISS threads a batch of `queries` gets.

    Small batches get one: waking a team costs more than it saves, and under load batches grow by
    themselves, so cores come into use as they are needed.
    """
    return max(1, min(threads_max, queries // QUERIES_PER_THREAD))


class Node:
    """Answers searches, reads and writes for the shards that this process owns."""

    def __init__(
        self,
        ownership: Ownership,
        lanes: Lanes,
        *,
        node_id: str,
        engine: SearchEngine,
        monitor: RecallMonitor,
        stores: StoreWatch,
        disks: DiskWatch,
        metrics: Metrics | None = None,
    ) -> None:
        self._ownership = ownership
        self.lanes = lanes
        self._node_id = node_id
        self._engine = engine
        self._monitor = monitor
        self._auditor = RecallAuditor(monitor)
        self.stores = stores
        self._disks = disks
        self._metrics = metrics or Metrics()

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Search the named shards on one view each; merge their hits."""
        began_s = time.perf_counter()
        deadline = Deadline.after(request.timeout_s)
        shards = checked_shards(request.shards)
        owned = [self._owned(request.collection_id, number) for number in shards]
        collection = owned[0].collection
        models = _searched_models(request.options, collection)
        model = models[0]
        _check_queries(request, models)
        if request.consistency is Consistency.STRONG:
            await asyncio.gather(*(shard.verify_owner() for shard in owned))
        views = [
            (shard.id.number, _view(shard, request.min_sequences.get(shard.id.number, 0)))
            for shard in owned
        ]
        # Hits by two models have the vectors of one and the same.
        default = model.name if request.options.fallback else ""
        options = replace(
            request.options,
            projection=_resolved(request.options.projection, collection, default=default),
        )
        queries = np.ascontiguousarray(request.queries)
        exact = request.options.exact
        threads = self._engine.threads(exact=exact)

        def work(yield_point: YieldPoint) -> tuple[SearchAnswer, tuple[MatchCount, ...]]:
            # The number of OpenMP threads belongs to the calling thread.
            set_search_threads(search_threads_for(len(queries), threads_max=threads.count))
            searcher = Searcher(
                collection,
                self._engine.filters,
                ef_scale=self._monitor.controller.scale,
                shortfall=self._monitor.controller.shortfall,
                costs=self._engine.costs,
                code_maker=self._engine.code_maker,
                threads=threads,
                yield_point=yield_point,
            )
            return search_by_models(searcher, views, queries, options, models)

        async with _within(deadline, timeout_s=request.timeout_s):
            answer, match_counts = await self.lanes.search(
                work, collection_id=request.collection_id, exact=exact, deadline=deadline
            )
        self._note_search(
            request, collection, queries[:, : model.dimension], answer, match_counts, began_s
        )
        return answer

    def _note_search(
        self,
        request: SearchRequest,
        collection: Collection,
        queries: Float32Matrix,
        answer: SearchAnswer,
        match_counts: Sequence[MatchCount],
        began_s: float,
    ) -> None:
        """Count a search that began at `began_s`; sample its `queries` if their model serves."""
        model = _model_of(request.options.model, collection)
        if model == collection.model:  # recall is measured of what serves
            sampler = self._monitor.sampler
            sampler.follow(request.collection_id, model.name)
            sampler.note(
                collection.id,
                queries,
                request.options,
                match_counts,
                answer if answer.by_fallback is None else answer.of_fallback(False),
                request.numbers,
            )
        band = band_of(
            sum(match_count.matches for match_count in match_counts),
            sum(match_count.live_rows for match_count in match_counts),
            filtered=request.options.filter is not None,
        )
        took_s = time.perf_counter() - began_s
        self._metrics.observe_node_search(
            collection.name, band, queries=len(queries), duration_s=took_s
        )
        if not (request.options.exact or request.options.explain):
            self._monitor.latency.note(
                request.collection_id,
                queries=len(queries),
                duration_s=took_s,
                visited=sum(match_count.visited for match_count in match_counts),
            )

    async def write(self, request: WriteRequest) -> WriteAnswer:
        """Write to one shard; returns once durable and visible."""
        owned = self._owned(request.collection_id, request.shard)
        return await owned.write(request.operation, timeout_s=request.timeout_s)

    async def get(self, request: GetRequest) -> RecordSet:
        """Read records by id, in the order asked."""
        view = await self._read_view(
            request.collection_id, request.shard, request.consistency, request.min_sequence
        )
        collection = self._owned(request.collection_id, request.shard).collection
        projection = _resolved(request.projection, collection, default=collection.model.name)
        return await self.lanes.read(
            lambda yield_point: get_records(view, request.ids, projection, yield_point=yield_point),
            collection_id=request.collection_id,
        )

    async def count(self, request: CountRequest) -> int:
        """Count matching live records."""
        view = await self._read_view(
            request.collection_id, request.shard, request.consistency, request.min_sequence
        )
        return await self.lanes.read(
            lambda yield_point: count_rows(view, request.filter, yield_point=yield_point),
            collection_id=request.collection_id,
        )

    async def scan(self, request: ScanRequest) -> ScanPage:
        """Read one page of a shard."""
        owned = self._owned(request.collection_id, request.shard)
        view, projection = owned.view, request.projection
        request = replace(
            request,
            projection=_resolved(projection, owned.collection, default=owned.collection.model.name),
        )
        return await self.lanes.read(
            lambda yield_point: scan_page(view, request, yield_point=yield_point),
            collection_id=request.collection_id,
        )

    async def shard_states(self, collection_id: str = "") -> tuple[ShardState, ...]:
        """Describe the shards held, those that could not be opened included."""
        return tuple(
            describe_unserved(shard, node_id=self._node_id, error=self._ownership.error(shard))
            if owned is None
            else with_recall(
                owned.state(), self._monitor.measured_segments(shard), owned.serving_view
            )
            for shard, owned in sorted(self._ownership.held.items())
            if collection_id in ("", shard.collection_id)
        )

    @property
    def needs_space(self) -> bool:
        """Whether a disk has so little room that new rows are refused."""
        return self._disks.low() is not None

    async def health(self) -> tuple[PartHealth, ...]:
        """Probe stores and disks; then the logs that cannot be written, and all logs as one."""
        parts = (*await self.stores.look(), *self._disks.health())
        logs = [one.log for one in self._ownership.held.values() if one is not None]
        failing = [log for log in logs if not log.works]
        written_s = max((log.succeeded_at_s for log in logs), default=0.0)
        return *parts, PartHealth(PartKind.LOG, self._node_id, succeeded_at_s=written_s), *failing

    async def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        """Return what live queries measured of one collection or (when empty) of all held."""
        return self._monitor.recall(collection_id)

    async def audit_recall(
        self, collection_id: str, shard: int, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Compare the present estimates of a shard with queries that they were not made from."""
        owned = self._owned(collection_id, shard)
        return await self._auditor.audit(
            owned.id, owned, queries_max=queries_max, timeout_s=timeout_s
        )

    async def sampled_queries(self, collection_id: str) -> tuple[LiveQuery, ...]:
        """Return the sampled live queries that judge the recall of a collection now."""
        present = any(shard.collection_id == collection_id for shard in self._ownership.held)
        return self._monitor.sampler.live_queries(collection_id) if present else ()

    async def flush(self, collection_id: str, shard: int) -> None:
        """Seal and flush what grows, checkpoint delete vectors, trim the log."""
        await self._owned(collection_id, shard).flush()

    async def publish_compaction(self, task: CompactionTask) -> None:
        """Swap a finished task's sources for its output."""
        owned = self._owned(task.collection_id, task.shard)
        if task.reason is TaskReason.BACKFILL:
            await owned.publish_part(task)
            return
        await owned.publish_compaction(task)
        self._engine.filters.forget(task.sources)

    async def flush_all(self, shards: Iterable[ShardId]) -> None:
        """Flush every shard named that is open here; used when the node is about to leave.

        One that fails does not keep the others from it: the log has what is not flushed.
        """
        owned = [shard for shard in map(self._ownership.get, shards) if shard is not None]
        ends = await asyncio.gather(*(shard.flush() for shard in owned), return_exceptions=True)
        for shard, error in zip(owned, ends, strict=True):
            if isinstance(error, BaseException):
                _log.warning("shard %s was not flushed; the log has its rows: %s", shard.id, error)

    def _owned(self, collection_id: str, number: int) -> OwnedShard:
        shard = ShardId(collection_id, number)
        owned = self._ownership.get(shard)
        if owned is None:
            raise Fenced(
                f"node {self._node_id} does not serve shard {shard}",
                metadata={"shard": str(shard), "node": self._node_id},
            )
        return owned

    async def _read_view(
        self, collection_id: str, number: int, consistency: Consistency, min_sequence: int
    ) -> ShardView:
        owned = self._owned(collection_id, number)
        if consistency is Consistency.STRONG:
            await owned.verify_owner()
        return _view(owned, min_sequence)


@asynccontextmanager
async def _within(deadline: Deadline, *, timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline.remaining_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"the search took longer than {timeout_s:g} s") from None


def _model_of(name: str, collection: Collection) -> ModelSpec:
    """Return the model `name`, empty for the one that serves; refuse one that is not known."""
    model = collection.model_named(name) if name else collection.model
    if model is None or model.name in collection.removed:
        names = ", ".join(repr(one.name) for one in collection.usable_models)
        raise InvalidArgument.of(
            "model", f"is {name!r}; the models of collection {collection.name!r} are {names}"
        )
    return model


def _resolved(projection: Projection, collection: Collection, *, default: str = "") -> Projection:
    """Return `projection` with the models whose vectors are wanted, and their dimensions.

    Without a name that is `default` where a collection has several models; without a default the
    projection stays as it is, for the model of the search.
    """
    if not projection.vector:
        return projection
    names = projection.models
    if not names:
        if not default or len(collection.models) == 1:
            return projection
        names = (default,)
    models = [_model_of(name, collection) for name in names]
    return replace(projection, models=names, dimensions=tuple(model.dimension for model in models))


def _searched_models(options: SearchOptions, collection: Collection) -> tuple[ModelSpec, ...]:
    """Return the model of a search and, if there is one, its fallback."""
    model = _model_of(options.model, collection)
    if not options.fallback:
        return (model,)
    fallback = _model_of(options.fallback, collection)
    if fallback == model:
        raise InvalidArgument.of("fallback", f"is {model.name!r} too; name another model")
    return model, fallback


def _check_queries(request: SearchRequest, models: Sequence[ModelSpec]) -> None:
    """Refuse what would break a search or compare vectors of different models."""
    queries, options = request.queries, request.options
    floats = sum(model.dimension for model in models)
    if queries.ndim != 2 or queries.shape[1] != floats or queries.dtype != np.float32:
        names = " and ".join(repr(model.name) for model in models)
        raise InvalidArgument.of(
            "queries", f"{queries.dtype} {queries.shape}; {names} need float32 (n, {floats})"
        )
    validate_search_options(options, model=models[0])
    if options.fallback:
        fallback = replace(options, k=options.fallback_k, model=models[1].name)
        validate_search_options(fallback, model=models[1])
    hits = len(queries) * options.hits_max
    if hits > SEARCH_HITS_MAX:
        raise InvalidArgument.of("k", f"{hits} hits are wanted; the limit is {SEARCH_HITS_MAX}")
    if request.numbers is not None and len(request.numbers) != len(queries):
        raise InvalidArgument.of(
            "query_numbers", f"are {len(request.numbers)} for {len(queries)} queries; send as many"
        )
    if not np.isfinite(queries).all():
        raise InvalidArgument.of("queries", "hold a value that is not finite")


def _view(owned: OwnedShard, min_sequence: int) -> ShardView:
    """Return the view, or refuse: a deposed owner has not seen what its successor acknowledged."""
    view = owned.view
    if view.sequence < min_sequence:
        raise Fenced(
            f"shard {owned.id} has applied sequence {view.sequence} here; {min_sequence} is asked "
            "for"
        )
    return view
