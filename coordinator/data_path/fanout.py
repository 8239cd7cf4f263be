"""One search over all shards: to the owner of each, under one deadline, merged.

Shards whose owner is away or has changed are asked again, each at its present owner, until the
deadline; answers that have arrived are kept. With `allow_partial` the search does not wait for
them much longer than for the others, and names them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from annheal.coordinator.data_path.merge import empty_answer, merge_answers
from annheal.coordinator.data_path.router import ROUTE_POLICY, Router, reroutable
from annheal.errors import AnnhealError, DeadlineExceeded, Unavailable
from annheal.model.collection import Collection
from annheal.model.measures.shard_queries import Numbers
from annheal.model.records import Float32Matrix
from annheal.model.search import Consistency, SearchAnswer, SearchOptions
from annheal.model.topology.shard import ShardId
from annheal.runtime.deadline import Deadline

_NO_SEQUENCES: Mapping[int, int] = {}
_NAMED_MAX = 8
# With allow_partial, this share of the caller's time is kept for merging and sending the answer.
_PARTIAL_RESERVE = 0.1


@dataclass(frozen=True, slots=True)
class SearchCall:
    """A search as it goes to every shard; `queries` (n, d) float32 are normalised already.

    `numbers` is that of `SearchRequest`.
    """

    collection: Collection
    queries: Float32Matrix
    options: SearchOptions
    consistency: Consistency
    min_sequences: Mapping[int, int]
    deadline: Deadline
    numbers: Numbers | None = None

    def merged(
        self, answers: Sequence[SearchAnswer], *, missing_shards: Sequence[ShardId] = ()
    ) -> SearchAnswer:
        """Return one answer of those of several nodes."""
        return merge_answers(
            answers,
            k=self.options.k,
            fallback_k=self.options.fallback_k,
            missing_shards=missing_shards,
        )


class Fanout:
    """Searches collections through the router; `draw` numbers the queries."""

    def __init__(
        self, router: Router, *, partial_patience_s: float, draw: random.Random | None = None
    ) -> None:
        self._router = router
        self._draw = draw or random.Random()
        self._partial_patience_s = partial_patience_s

    async def search(
        self,
        collection: Collection,
        queries: Float32Matrix,
        *,
        options: SearchOptions,
        deadline: Deadline,
        consistency: Consistency = Consistency.EVENTUAL,
        min_sequences: Mapping[int, int] = _NO_SEQUENCES,
        allow_partial: bool = False,
    ) -> SearchAnswer:
        """Return the best `options.k` hits of each query (n, d), checked and normalised before.

        Raises `Unavailable` that names the shards that no node could answer for, unless
        `allow_partial`: then the answer names them. `DeadlineExceeded` when a node was too slow.
        """
        numbers = self._numbers(len(queries)) if collection.shard_count > 1 else None
        call = SearchCall(
            collection, queries, options, consistency, min_sequences, deadline, numbers
        )
        if allow_partial:
            return await self._search_patiently(call, patience_s=self._partial_patience_s)
        groups = self._router.groups(collection)
        if len(groups) == 1:
            owner, shards = next(iter(groups.items()))
            if owner:
                try:
                    async with asyncio.timeout(deadline.remaining_s):
                        return await self._ask(call, owner, shards)
                except TimeoutError as error:
                    raise _too_slow(collection, shards) from error
                except AnnhealError as error:
                    if not reroutable(error):
                        raise
        return await self._search_patiently(call, patience_s=None)

    def _numbers(self, queries: int) -> Numbers:
        return np.frombuffer(self._draw.randbytes(8 * queries), dtype=np.uint64)

    async def _search_patiently(
        self, call: SearchCall, *, patience_s: float | None
    ) -> SearchAnswer:
        """Ask until every shard has answered; after `patience_s` (None: never) go without."""
        collection, deadline = call.collection, call.deadline
        answers: list[SearchAnswer] = []
        groups = list(self._router.groups(collection).items())
        patience = Deadline.after(patience_s if patience_s is not None else deadline.remaining_s)
        missing: list[int] = []
        last: AnnhealError | None = None
        for attempt in range(ROUTE_POLICY.attempts_max):
            version = self._router.version
            try:
                found, missing, last = await self._ask_all(
                    call, groups, partial=patience_s is not None
                )
            except DeadlineExceeded:
                if last is None:
                    raise
                # Why the tries before failed says more than that the last one had no time left.
                return self._settle(call, answers, missing, last, partial=False)
            answers += found
            if not missing:
                return call.merged(answers)
            delay_s = ROUTE_POLICY.delay_s(attempt, jitter=0.5)
            delay_s = max(delay_s, (last.retry_after_s or 0.0) if last is not None else 0.0)
            if patience.passed or delay_s >= deadline.remaining_s:
                return self._settle(call, answers, missing, last, partial=patience_s is not None)
            await self._router.wait_change(version, min(delay_s, patience.remaining_s))
            groups = _halved(self._router.group(collection, missing), times=attempt + 1)
        raise Unavailable("the search was tried too often", reason="SHARDS_NOT_SERVED")

    async def _ask_all(
        self, call: SearchCall, groups: Sequence[tuple[str, tuple[int, ...]]], *, partial: bool
    ) -> tuple[list[SearchAnswer], list[int], AnnhealError | None]:
        """Return the answers, the shards that are still missing, and the last error."""
        asked = {
            asyncio.create_task(self._ask(call, owner, shards), name="ask"): shards
            for owner, shards in groups
            if owner
        }
        answers: list[SearchAnswer] = []
        missing = [shard for owner, shards in groups if not owner for shard in shards]
        last: AnnhealError | None = None
        timeout_s = call.deadline.remaining_s * (1.0 - _PARTIAL_RESERVE if partial else 1.0)
        try:
            if asked:
                await asyncio.wait(asked, timeout=timeout_s)
            for task, shards in asked.items():
                if not task.done():
                    if not partial:
                        raise _too_slow(call.collection, shards)
                    missing.extend(shards)
                    last = _too_slow(call.collection, shards)
                    continue
                error = task.exception()
                if error is None:
                    answers.append(task.result())
                elif isinstance(error, AnnhealError) and reroutable(error):
                    missing.extend(shards)
                    last = error
                else:
                    raise error
        finally:
            unfinished = [task for task in asked if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
        return answers, sorted(missing), last

    async def _ask(self, call: SearchCall, owner: str, shards: tuple[int, ...]) -> SearchAnswer:
        wanted = call.min_sequences
        if wanted:
            wanted = {shard: wanted[shard] for shard in shards if shard in wanted}
        return await self._router.link(owner).searches.search(
            call.queries,
            collection_id=call.collection.id,
            shards=shards,
            options=call.options,
            consistency=call.consistency,
            deadline=call.deadline,
            min_sequences=wanted,
            numbers=call.numbers,
        )

    def _settle(
        self,
        call: SearchCall,
        answers: Sequence[SearchAnswer],
        missing: Sequence[int],
        last: AnnhealError | None,
        *,
        partial: bool,
    ) -> SearchAnswer:
        if partial:
            found = answers or [empty_answer(len(call.queries))]
            shards = [ShardId(call.collection.id, shard) for shard in missing]
            return call.merged(found, missing_shards=shards)
        because = f": {last.message}" if last is not None else ": no live node owns them"
        named = _named(missing)
        raise Unavailable(
            f"shards {named} of collection {call.collection.name!r} do not answer{because}",
            reason="SHARDS_NOT_SERVED",
            metadata={"collection": call.collection.name, "shards": named},
            retry_after_s=1.0,
        )


def _halved(
    groups: Mapping[str, tuple[int, ...]], *, times: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Cut each group into parts of its 2^-`times`.

    A node answers for all shards of a call or for none, so that one shard that it cannot serve
    (damaged, not loaded yet) must be told from its neighbours.
    """
    parts: list[tuple[str, tuple[int, ...]]] = []
    for owner, shards in groups.items():
        size = max(1, len(shards) >> times)
        parts += [(owner, shards[start : start + size]) for start in range(0, len(shards), size)]
    return parts


def _too_slow(collection: Collection, shards: Sequence[int]) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the deadline passed before shards {_named(shards)} of collection"
        f" {collection.name!r} answered",
        metadata={"collection": collection.name, "shards": _named(shards)},
    )


def _named(shards: Sequence[int]) -> str:
    text = ", ".join(str(shard) for shard in shards[:_NAMED_MAX])
    return text if len(shards) <= _NAMED_MAX else f"{text} and {len(shards) - _NAMED_MAX} more"
