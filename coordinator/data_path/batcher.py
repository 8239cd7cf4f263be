"""Natural batching: searches that wait for the same node leave together.

There is no timer. While a call to the node is under way, searches gather; when it returns, the
oldest group of equal searches leaves as one call. An idle node is called at once, a busy one gets
larger batches, and what a query costs falls as the load grows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from annheal.coordinator.data_path.merge import slice_answer
from annheal.errors import AnnhealError, DeadlineExceeded, ResourceExhausted, Unavailable
from annheal.model.measures.shard_queries import Numbers
from annheal.model.records import Float32Matrix
from annheal.model.search import Consistency, SearchAnswer, SearchOptions, SearchRequest
from annheal.rpc.port import ShardNode
from annheal.runtime.deadline import Deadline
from annheal.runtime.tasks import TaskScope

BATCH_HITS_MAX = 65_536
"""Queries times k that are gathered into one call (one request alone may be larger)."""
_RETRY_AFTER_S = 0.05
_NO_SEQUENCES: Mapping[int, int] = {}

LaneKey: TypeAlias = tuple[str, bool]
"""Collection, and whether exact."""
GroupKey: TypeAlias = tuple[str, tuple[int, ...], SearchOptions, Consistency]


class _Waiter:
    """One caller's queries and the future of its answer."""

    __slots__ = ("alone", "deadline", "future", "min_sequences", "numbers", "queries")

    def __init__(
        self,
        queries: Float32Matrix,
        future: asyncio.Future[SearchAnswer],
        deadline: Deadline,
        min_sequences: Mapping[int, int],
        numbers: Numbers | None,
        alone: bool,
    ) -> None:
        self.queries = queries
        self.numbers = numbers
        self.future = future
        self.deadline = deadline
        self.min_sequences = min_sequences
        self.alone = alone


@dataclass(slots=True)
class _Lane:
    """Searches of one collection, exact or not: each has its own calls and waits for no other."""

    groups: dict[GroupKey, deque[_Waiter]] = field(default_factory=dict)
    calls: int = 0


class SearchBatcher:
    """Sends searches to one node, at most `calls_max` of a kind and collection at a time.

    The node shares its cores fairly between collections, and keeps exact searches from holding up
    the others; one collection's searches therefore do not wait here for another's.

    Args:
        node: the node.
        scope: owns the calls, so that a caller that goes away takes nobody's answer with it.
        queries_max: queries gathered into one call; a request with more goes alone.
        waiting_max: queries that may wait; more are refused with `ResourceExhausted`.
        calls_max: calls under way, for each collection and each of approximate and exact searches.
    """

    def __init__(
        self,
        node: ShardNode,
        *,
        scope: TaskScope,
        queries_max: int = 128,
        waiting_max: int = 8_192,
        calls_max: int = 1,
    ) -> None:
        self._node = node
        self._scope = scope
        self._queries_max = queries_max
        self._waiting_max = waiting_max
        self._calls_max = calls_max
        self._lanes: dict[LaneKey, _Lane] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Queries that wait to be sent."""
        return self._waiting

    @property
    def lanes(self) -> int:
        """Kinds and collections with searches that wait or are under way."""
        return len(self._lanes)

    async def search(
        self,
        queries: Float32Matrix,
        *,
        collection_id: str,
        shards: tuple[int, ...],
        options: SearchOptions,
        consistency: Consistency,
        deadline: Deadline,
        min_sequences: Mapping[int, int] = _NO_SEQUENCES,
        numbers: Numbers | None = None,
    ) -> SearchAnswer:
        """Return the hits of `queries` (n, d) among `shards`, all of which the node serves.

        `numbers` is that of `SearchRequest`: for one collection always there, or never.

        Queries with equal collection, shards, options and consistency share a call; the sequences
        that session reads ask for are joined by their maximum. The caller bounds the wait: an
        answer that comes after its deadline, or after it was cancelled, is dropped. When all
        callers of a call have gone it is cancelled, so that the node stops too. Raises what
        the node raises, and `ResourceExhausted` when too many queries wait.
        """
        if self._scope.closed:
            raise _stopping()
        count = len(queries)
        if self._waiting and self._waiting + count > self._waiting_max:
            raise ResourceExhausted(
                f"{self._waiting} queries wait for the node already; the limit is"
                f" {self._waiting_max}",
                retry_after_s=_RETRY_AFTER_S,
            )
        future: asyncio.Future[SearchAnswer] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(queries, future, deadline, min_sequences, numbers, options.explain)
        lane_key = (collection_id, options.exact)
        lane = self._lanes.setdefault(lane_key, _Lane())
        key = (collection_id, shards, options, consistency)
        group = lane.groups.get(key)
        if group is None:
            group = lane.groups[key] = deque()
        group.append(waiter)
        self._waiting += count
        self._pump(lane_key, lane)
        return await future

    def _pump(self, lane_key: LaneKey, lane: _Lane) -> None:
        while lane.groups and lane.calls < self._calls_max:
            key, batch = self._next_batch(lane)
            if not batch:
                continue
            lane.calls += 1
            call = self._scope.start(self._send(lane, key, batch), name="search")
            call.add_done_callback(partial(self._ended, lane_key, lane, batch))
            for waiter in batch:
                waiter.future.add_done_callback(partial(_left, batch, call))
        if not lane.groups and not lane.calls:
            self._lanes.pop(lane_key, None)

    def _next_batch(self, lane: _Lane) -> tuple[GroupKey, list[_Waiter]]:
        """Take the oldest group's waiters, as many as fit; empty when all had gone away."""
        key = next(iter(lane.groups))
        group = lane.groups.pop(key)
        limit = min(self._queries_max, max(1, BATCH_HITS_MAX // key[2].hits_max))
        batch: list[_Waiter] = []
        count = 0
        while group:
            waiter = group[0]
            size = len(waiter.queries)
            if waiter.future.done():
                group.popleft()
                self._waiting -= size
                continue
            if batch and (count + size > limit or waiter.alone or batch[0].alone):
                break
            group.popleft()
            self._waiting -= size
            batch.append(waiter)
            count += size
        if group:
            lane.groups[key] = group  # behind the other groups: each gets its turn
        return key, batch

    async def _send(self, lane: _Lane, key: GroupKey, batch: list[_Waiter]) -> None:
        try:
            _deliver(batch, await self._call(key, batch))
        except AnnhealError as error:
            self._fail(lane, key, batch, error)
        except Exception as error:  # noqa: BLE001 - a bug; each caller raises it
            _reject(batch, error)

    def _ended(
        self, lane_key: LaneKey, lane: _Lane, batch: list[_Waiter], call: asyncio.Task[None]
    ) -> None:
        """Let the next batch go; runs also for a call that was cancelled before it began."""
        lane.calls -= 1
        if call.cancelled():
            _reject(batch, _stopping())
        if not self._scope.closed:
            self._pump(lane_key, lane)
            return
        for group in lane.groups.values():
            _reject(list(group), _stopping())
        lane.groups.clear()

    async def _call(self, key: GroupKey, batch: list[_Waiter]) -> SearchAnswer:
        collection_id, shards, options, consistency = key
        if len(batch) == 1:
            queries, sequences = batch[0].queries, dict(batch[0].min_sequences)
            numbers = batch[0].numbers
        else:
            queries = np.concatenate([waiter.queries for waiter in batch])
            sequences = _joined(batch)
            parts = [waiter.numbers for waiter in batch if waiter.numbers is not None]
            numbers = np.concatenate(parts) if len(parts) == len(batch) else None
        timeout_s = max(waiter.deadline.remaining_s for waiter in batch)
        if timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed while the search waited for its node")
        request = SearchRequest(
            collection_id=collection_id,
            shards=shards,
            queries=queries,
            options=options,
            consistency=consistency,
            min_sequences=sequences,
            timeout_s=timeout_s,
            numbers=numbers,
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await self._node.search(request)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the node answered") from error

    def _fail(self, lane: _Lane, key: GroupKey, batch: list[_Waiter], error: AnnhealError) -> None:
        """Tell the waiters; when one of several may be at fault, each is sent again on its own."""
        if len(batch) == 1 or error.retryable or isinstance(error, DeadlineExceeded):
            _reject(batch, error)
            return
        group = lane.groups.setdefault(key, deque())
        for waiter in reversed(batch):
            waiter.alone = True
            group.appendleft(waiter)
            self._waiting += len(waiter.queries)


def _left(
    batch: list[_Waiter], call: asyncio.Task[None], future: asyncio.Future[SearchAnswer]
) -> None:
    """Cancel the call when none of its callers waits any more."""
    if not call.done() and all(waiter.future.done() for waiter in batch):
        call.cancel()


def _stopping() -> Unavailable:
    return Unavailable("the coordinator is stopping", retry_after_s=1.0)


def _joined(batch: list[_Waiter]) -> dict[int, int]:
    joined: dict[int, int] = {}
    for waiter in batch:
        for shard, sequence in waiter.min_sequences.items():
            joined[shard] = max(sequence, joined.get(shard, 0))
    return joined


def _deliver(batch: list[_Waiter], answer: SearchAnswer) -> None:
    if len(batch) == 1:
        if not batch[0].future.done():
            batch[0].future.set_result(answer)
        return
    starts = np.zeros(len(answer.counts) + 1, dtype=np.int64)
    np.cumsum(answer.counts, out=starts[1:])
    first = 0
    for waiter in batch:
        size = len(waiter.queries)
        if not waiter.future.done():
            waiter.future.set_result(slice_answer(answer, first=first, queries=size, starts=starts))
        first += size


def _reject(batch: list[_Waiter], error: BaseException) -> None:
    for waiter in batch:
        if not waiter.future.done():
            waiter.future.set_exception(error)
