"""Stores and restores recall memories, so that measurements survive a restart or a move of a shard.

A memory is an object beside the shard's segments. It is written at a bounded rate, and read when
the node gets the shard. It is not needed for correctness: without a memory recall is measured from
the beginning, and entries of segments that are gone are ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from annheal.errors import AnnhealError, InvalidArgument
from annheal.filters import validate_filter
from annheal.model.collection import Collection
from annheal.model.measures.recall import SegmentRecall, SelectivityBand
from annheal.model.topology.shard import ShardId
from annheal.objectstore.protocol import ObjectStore
from annheal.recall import (
    MEASUREMENTS_MAX,
    EfMemory,
    LoggedQuery,
    RecallMemory,
    load_memory,
    queries_max,
    store_memory,
)
from annheal.recall.coverage import CoverageBook
from annheal.shard_node.recall.ef_control import EfController, EfState, for_changed_goal
from annheal.shard_node.recall.result import ShardResult, without_conclusions
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery
from annheal.shard_node.recall.watched import WatchedShard
from annheal.shard_node.search.ef_scale import EF_CONTROL_MAX

STATE_GAP_S = 30.0
"""Least seconds between two writes for a changed state of the controller."""
SAMPLE_GAP_S = 600.0
"""Least seconds between two writes for new sampled queries alone."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Written:
    """The last write of a shard: its number within the epoch, and what it contained.

    `decided`: the states of the controller and the audits; `sample_version`: the sampled queries.
    """

    epoch: int
    number: int
    at_s: float
    decided: tuple[tuple[object, ...], ...]
    sample_version: int


class RecallKeeper:
    """Writes and restores recall memories. Used on the event loop only.

    Args:
        objects: the store.
        sampler: its queries are stored too if `keep_queries`.
        controller: its states are stored.
        coverage: the audits counted, which are stored.
        clock: a monotonic clock, in seconds.
        now_s: seconds since the epoch.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        sampler: RecallSampler,
        controller: EfController,
        keep_queries: bool,
        coverage: CoverageBook | None = None,
        clock: Callable[[], float],
        now_s: Callable[[], float],
    ) -> None:
        self._objects = objects
        self._sampler = sampler
        self._controller = controller
        self._coverage = coverage or CoverageBook()
        self._keep_queries = keep_queries
        self._clock = clock
        self._now_s = now_s
        self._written: dict[ShardId, _Written] = {}

    def is_restored(self, shard: ShardId, owned: WatchedShard) -> bool:
        """Return whether `restore` was called since this node owns the shard."""
        written = self._written.get(shard)
        return written is not None and written.epoch == owned.epoch

    async def restore(self, shard: ShardId, owned: WatchedShard) -> ShardResult | None:
        """Load the memory of the former owner; return its measurements of present segments.

        Loaded states and queries do not replace those that this process has already. If the
        collection's objectives or k differ from the memory's, the conclusions from the old ones are
        dropped. None without a memory of the collection's k. Raises `Unavailable` when the store
        cannot be read.
        """
        memory = await load_memory(self._objects, shard.collection_id, shard.number)
        # This owner has written nothing yet, so the first measurement is written without a wait.
        self._written[shard] = _Written(owned.epoch, 0, float("-inf"), (), 0)
        if memory is None:
            return None
        self._coverage.restore(shard, memory.coverage)
        collection = owned.collection
        if memory.model == collection.model.name:
            self._sampler.restore(shard.collection_id, _sampled(memory, collection))
        version = self._sampler.version(shard.collection_id)
        present = {held.segment.id for held in owned.serving_view.segments}
        settings = collection.settings
        same_goal = (memory.objective, memory.k, memory.tail) == (
            settings.recall_objective,
            settings.recall_k,
            settings.tail_objective,
        )
        for one in memory.ef:
            known = self._controller.state(one.segment_id, one.band)
            if one.segment_id in present and known == EfState():
                state = _state(one, version)
                kept = state if same_goal else for_changed_goal(state)
                self._controller.store(one.segment_id, one.band, kept)
        _log.info(
            "shard %s: restored its recall memory: %d states, %d queries",
            shard,
            len(memory.ef),
            len(memory.queries),
        )
        if memory.k not in (0, settings.recall_k):
            return None  # recall of another k
        segments = [one for one in memory.segments if one.segment_id in present]
        if not same_goal:
            segments = [without_conclusions(one) for one in segments]
        return ShardResult(
            bands=memory.bands,
            segments=tuple(segments),
            objective=settings.recall_objective,
            k=settings.recall_k,
            tail=settings.tail_objective,
        )

    async def save(
        self, shard: ShardId, owned: WatchedShard, result: ShardResult, *, leaving: bool = False
    ) -> bool:
        """Write the memory of a shard if it has changed; return whether it was written.

        Changes wait for `STATE_GAP_S` or `SAMPLE_GAP_S`, unless the node is `leaving`. Raises what
        the store raises.
        """
        before = self._written.get(shard)
        if before is None or before.epoch != owned.epoch:
            before = _Written(owned.epoch, 0, float("-inf"), (), 0)
        ef = _states(self._controller, result)
        version = self._sampler.version(shard.collection_id)
        waited_s = self._clock() - before.at_s
        coverage = self._coverage.of(shard)
        decided = (*(_decided(one) for one in ef), *((one,) for one in coverage))
        changed = decided != before.decided and (leaving or waited_s >= STATE_GAP_S)
        sampled = version != before.sample_version and (leaving or waited_s >= SAMPLE_GAP_S)
        if not (changed or sampled):
            return False
        queries, vectors = self._queries(shard, owned.collection)
        memory = RecallMemory(
            owned.collection.model.name,
            self._now_s(),
            objective=result.objective,
            k=result.k,
            ef=ef,
            segments=_worst(result.segments),
            bands=result.bands,
            queries=queries,
            vectors=vectors,
            tail=result.tail,
            coverage=coverage,
        )
        number = before.number + 1
        # Counted even if the write fails: the object may exist, and no key is used twice.
        self._written[shard] = _Written(owned.epoch, number, self._clock(), before.decided, 0)
        await store_memory(
            self._objects,
            shard.collection_id,
            shard.number,
            memory,
            epoch=owned.epoch,
            number=number,
        )
        self._written[shard] = _Written(owned.epoch, number, self._clock(), decided, version)
        return True

    async def save_leaving(self, held: Sequence[tuple[ShardId, WatchedShard, ShardResult]]) -> None:
        """Write the changed memory of every shard before the node leaves; failures are logged."""
        for shard, owned, result in held:
            try:
                await self.save(shard, owned, result, leaving=True)
            except AnnhealError as error:
                _log.warning("the recall memory of %s was not written: %s", shard, error)

    def forget_all_but(self, shards: Sequence[ShardId]) -> None:
        """Forget the writes of all other shards: this node does not own them any more."""
        present = set(shards)
        for gone in [one for one in self._written if one not in present]:
            del self._written[gone]

    def _queries(
        self, shard: ShardId, collection: Collection
    ) -> tuple[tuple[LoggedQuery, ...], np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        """Return sampled queries, as many of each band as fit, the newest first."""
        dimension = collection.model.dimension
        limit = queries_max(dimension) if self._keep_queries else 0
        kept: list[tuple[SelectivityBand, SampledQuery]] = []
        bands = [
            sorted(
                ((band, one) for one in queries if len(one.vector) == dimension),
                key=lambda pair: -pair[1].sampled_at_s,
            )
            for band, queries in self._sampler.by_band(shard.collection_id)
        ]
        for place in range(max(map(len, bands), default=0)):
            kept += [of_band[place] for of_band in bands if place < len(of_band)]
        kept = kept[:limit]
        vectors = np.zeros((len(kept), dimension), dtype=np.float32)
        for place, (_, one) in enumerate(kept):
            vectors[place] = one.vector
        return tuple(
            LoggedQuery(one.k, band, one.sampled_at_s, one.filter, one.objective, one.ef)
            for band, one in kept
        ), vectors


def _sampled(
    memory: RecallMemory, collection: Collection
) -> list[tuple[SelectivityBand, SampledQuery]]:
    """Return the queries of a memory whose model and filter still fit the collection."""
    if memory.vectors.shape[1] != collection.model.dimension:
        return []
    found = []
    for query, vector in zip(memory.queries, memory.vectors, strict=True):
        wanted = query.filter
        if wanted is not None:
            try:
                wanted = validate_filter(wanted, collection.schema)
            except InvalidArgument:
                continue
        elif query.band is not SelectivityBand.UNFILTERED:
            continue  # its filter was too long to be stored
        sampled = SampledQuery(
            vector.copy(),
            query.k,
            wanted,
            query.sampled_at_s,
            objective=query.objective,
            ef=query.ef,
        )
        found.append((query.band, sampled))
    return found


def _worst(segments: tuple[SegmentRecall, ...]) -> tuple[SegmentRecall, ...]:
    """Return up to `MEASUREMENTS_MAX` of them, those of the lowest recall."""
    if len(segments) <= MEASUREMENTS_MAX:
        return segments
    return tuple(sorted(segments, key=lambda one: one.estimate.recall)[:MEASUREMENTS_MAX])


def _states(controller: EfController, result: ShardResult) -> tuple[EfMemory, ...]:
    """Return the states of the measured segments that differ from the default."""
    states = []
    for one in result.segments:
        state = controller.state(one.segment_id, one.band)
        if state.scale > 1.0 or state.rebuild or state.stuck or state.shortfall is not None:
            states.append(
                EfMemory(
                    one.segment_id,
                    one.band,
                    state.scale,
                    state.floor,
                    state.floor_runs,
                    state.rebuild,
                    state.stuck,
                    state.shortfall,
                )
            )
    states.sort(key=lambda state: (-state.scale, state.segment_id, state.band))
    return tuple(states[:MEASUREMENTS_MAX])


def _decided(one: EfMemory) -> tuple[object, ...]:
    """Return what a state decides; that its interval has changed is not worth a write."""
    rung = None if one.shortfall is None else one.shortfall.rung
    return one.segment_id, one.band, one.scale, one.rebuild, one.stuck, rung


def _state(memory: EfMemory, sample_version: int) -> EfState:
    """Return the state of a memory; its sample was counted, so the restored one is not fresh."""
    return EfState(
        scale=min(max(memory.scale, 1.0), float(EF_CONTROL_MAX)),
        sample_version=sample_version,
        floor=memory.floor,
        floor_runs=memory.floor_runs,
        rebuild=memory.rebuild,
        stuck=memory.stuck,
        shortfall=memory.shortfall,
    )
