"""Calls of operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from annheal.client.arguments import as_count, as_flag, as_text, as_word
from annheal.client.connection import ServerConnection
from annheal.client.inputs import FilterInput, as_filter, as_ids
from annheal.client.public_api import PublicApi
from annheal.errors import DeadlineExceeded, NotFound
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.measures.part_health import ClusterHealth
from annheal.model.measures.recall_audit import (
    AUDIT_QUERIES_DEFAULT,
    AUDIT_QUERIES_MAX,
    AuditReport,
    BandAudit,
    with_doubts,
)
from annheal.model.measures.recall_summary import RecallSummary
from annheal.model.measures.recall_worst import WORST_DEFAULT, WORST_MAX, WorstReport
from annheal.model.texts.spec import EmbedderTest
from annheal.model.topology.cluster import (
    RECALL_SAMPLE_DEFAULT,
    ClusterStatus,
    CompactionOrder,
    GarbageReport,
    NodeStatus,
    RecallOptions,
    RecallReport,
    ShardMove,
    ShardStatus,
    TaskStatus,
)
from annheal.model.topology.manifest import Tier
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import TaskPhase
from annheal.runtime.deadline import Deadline

POLL_S: Final = 0.2
"""How often tasks that are waited for are looked at."""
OPEN_PHASES: Final = frozenset({TaskPhase.PENDING, TaskPhase.BUILT})

TaskProgress = Callable[[Sequence[TaskStatus]], None]
"""Called with the tasks waited for, whenever they were looked at."""


@dataclass(frozen=True, slots=True)
class SegmentList:
    """Segments by shard and age; `missing_shards` could not be asked."""

    segments: tuple[SegmentState, ...]
    missing_shards: tuple[int, ...]


class AdminCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection

    async def status(self, *, timeout_s: float | None = None) -> ClusterStatus:
        """Summarise the cluster."""
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.status(timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def health(self, *, timeout_s: float | None = None) -> ClusterHealth:
        """Probe what the processes depend on: can they write and read, is there room.

        Each process writes, reads and deletes one small object. Takes some seconds when a part
        does not answer; that is in the answer, with the time since when.
        """
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.health(timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def nodes(self, *, timeout_s: float | None = None) -> tuple[NodeStatus, ...]:
        """List shard nodes that are alive."""
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.nodes(timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def shards(
        self, collection: str = "", *, timeout_s: float | None = None
    ) -> tuple[ShardStatus, ...]:
        """List the shards of one collection, or of all, with their owners."""
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.shards(as_text(collection, "collection"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def segments(
        self, collection: str, *, shard: int | None = None, timeout_s: float | None = None
    ) -> SegmentList:
        """List the segments of a collection as their owners serve them."""
        api = self._connection.api
        as_text(collection, "collection")
        shard = None if shard is None else as_count(shard, "shard")
        segments, missing = await self._connection.read(
            lambda left_s: api.segments(collection, shard=shard, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )
        return SegmentList(segments, missing)

    async def flush(self, collection: str, *, timeout_s: float | None = None) -> None:
        """Seal and flush what is in memory; returns when it is done."""
        api = self._connection.api
        await self._connection.write(
            lambda left_s: api.flush(as_text(collection, "collection"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def compact(
        self,
        collection: str,
        *,
        shard: int | None = None,
        segments: Sequence[str] = (),
        tier: Tier | str | None = None,
        full: bool = False,
        dry_run: bool = False,
        wait: bool = True,
        progress: TaskProgress | None = None,
        timeout_s: float = TIMEOUT_MAX_S,
    ) -> tuple[TaskStatus, ...]:
        """Plan compactions and (with `wait`) follow them to their end.

        Args:
            collection: its name.
            shard: one shard; all by default.
            segments: rewrite these, whatever the rules say, and nothing else.
            tier: rewrite the segments of this tier, and nothing else.
            full: rewrite everything, not only what the rules would choose.
            dry_run: only return the tasks that would be planned of what is flushed, each with
                `why`; nothing is changed.
            wait: return when every task has ended.
            progress: called with the tasks whenever they were looked at.
            timeout_s: time for planning and waiting together.

        Returns the tasks, new ones and those that were under way. A task that failed is among
        them: look at its `phase` and `error`. Raises `DeadlineExceeded` when the time is over
        before they ended; they go on.
        """
        api, deadline = self._connection.api, self._connection.deadline(timeout_s)
        order = CompactionOrder(
            shard=None if shard is None else as_count(shard, "shard"),
            segment_ids=tuple(as_ids(segments, field="segments")),
            tier=None if tier is None else as_word(tier, Tier, "tier"),
            full=as_flag(full, "full"),
            dry_run=as_flag(dry_run, "dry_run"),
        )
        # Planning twice names the tasks that are under way already, so it may be repeated.
        task_ids, planned = await self._connection.write(
            lambda left_s: api.compact(as_text(collection, "collection"), order, timeout_s=left_s),
            deadline=deadline,
        )
        if dry_run:
            return planned
        tasks = await self._look(task_ids, deadline=deadline)
        while True:
            if progress is not None:
                progress(tasks)
            if not wait or all(task.phase not in OPEN_PHASES for task in tasks):
                return tasks
            if deadline.remaining_s <= POLL_S:
                raise DeadlineExceeded("the compactions have not ended yet; they go on")
            await asyncio.sleep(POLL_S)
            tasks = await self._look(task_ids, deadline=deadline)

    async def tasks(
        self,
        collection: str = "",
        *,
        phase: TaskPhase | str | None = None,
        limit: int = 1_000,
        timeout_s: float | None = None,
    ) -> list[TaskStatus]:
        """List tasks, the newest first, at most `limit`."""
        api, deadline = self._connection.api, self._connection.deadline(timeout_s)
        wanted = None if phase is None else as_word(phase, TaskPhase, "phase")
        as_count(limit, "limit")
        as_text(collection, "collection")
        found: list[TaskStatus] = []
        token = ""
        while True:

            async def page(left_s: float, token: str = token) -> tuple[tuple[TaskStatus, ...], str]:
                return await api.list_tasks(
                    collection=collection, phase=wanted, page_token=token, timeout_s=left_s
                )

            tasks, token = await self._connection.read(page, deadline=deadline)
            found.extend(tasks)
            if not token or len(found) >= limit:
                return found[:limit]

    async def task(self, task_id: str, *, timeout_s: float | None = None) -> TaskStatus:
        """Describe one task; raises `NotFound`."""
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.get_task(as_text(task_id, "task_id"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def cancel_task(self, task_id: str, *, timeout_s: float | None = None) -> TaskStatus:
        """Cancel a task that has not been published."""
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.cancel_task(as_text(task_id, "task_id"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def retry_task(self, task_id: str, *, timeout_s: float | None = None) -> TaskStatus:
        """Release a task that was given up after several attempts: it is tried again."""
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.retry_task(as_text(task_id, "task_id"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def measure_recall(
        self,
        collection: str,
        *,
        k: int | None = None,
        sample_size: int = RECALL_SAMPLE_DEFAULT,
        ef: int | None = None,
        filter: FilterInput = None,
        seed: int = 0,
        timeout_s: float | None = None,
    ) -> RecallReport:
        """Compare approximate answers with exact ones, with stored vectors as queries.

        `k` is that of the collection's objective by default. The same seed and rows give the same
        queries.
        """
        as_text(collection, "collection")
        options = RecallOptions(
            as_count(sample_size, "sample_size"),
            None if k is None else as_count(k, "k"),
            None if ef is None else as_count(ef, "ef"),
            as_filter(filter),
            as_count(seed, "seed", most=2**63 - 1),
        )
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.measure_recall(collection, options, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def recall(self, collection: str, *, timeout_s: float | None = None) -> RecallSummary:
        """Return recall as the nodes measure it all the time, on a sample of the live queries.

        Joined over the nodes: overall, by band of selectivity, shard, tier, model, segment and
        filter, each with a 95 % interval and compared with the objective. Costs no searches.
        """
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.recall(as_text(collection, "collection"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def test_embedder(
        self,
        collection: str,
        text: str,
        *,
        as_query: bool = True,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> EmbedderTest:
        """Embed one text with the embedder of a collection, to see whether it works.

        It is that of the serving model, or of `model`. Raises `FailedPrecondition` where the model
        has none, or its set-up is wrong.
        """
        tag = "" if model is None else as_text(model, "model")
        as_text(collection, "collection")
        as_text(text, "text")
        as_flag(as_query, "as_query")
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.test_embedder(
                collection, text, as_query=as_query, model=tag, timeout_s=left_s
            ),
            deadline=self._connection.deadline(timeout_s),
        )

    async def audit_recall(
        self,
        collection: str,
        *,
        queries_max: int = AUDIT_QUERIES_DEFAULT,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
    ) -> AuditReport:
        """Compare the measured recall of every shard with live queries that were not measured.

        Up to `queries_max` queries of each shard are searched again and exactly, now. Of a
        collection with several shards, so is the recall of merged answers with as many.

        Args:
            collection: its name.
            queries_max: for each shard, 1 to 10,000; nodes hold a few hundred of each band.
            progress: called with the shards that are audited, and with all of them.
            timeout_s: for all shards together.
        """
        as_text(collection, "collection")
        as_count(queries_max, "queries_max", least=1, most=AUDIT_QUERIES_MAX)
        api, deadline = self._connection.api, self._connection.deadline(timeout_s)
        described, _ = await self._connection.read(
            lambda left_s: api.get_collection(collection, with_status=False, timeout_s=left_s),
            deadline=deadline,
        )
        audits: list[BandAudit] = []
        shards = described.shard_count
        for shard in range(shards):
            if progress is not None:
                progress(shard, shards)
            # Each of the shards that are left has the same time, and so have merged answers.
            parts = shards - shard + (shards > 1)
            share = Deadline.after(deadline.remaining_s / parts)
            audits += await self._connection.read(
                partial(
                    _audit_shard,
                    api,
                    collection=collection,
                    shard=shard,
                    queries_max=queries_max,
                ),
                deadline=share,
            )
        merged: tuple[BandAudit, ...] = ()
        if shards > 1:
            merged = await self._connection.read(
                lambda left_s: api.audit_merged(
                    collection, queries_max=queries_max, timeout_s=left_s
                ),
                deadline=deadline,
            )
        summary = await self.recall(collection, timeout_s=max(1.0, deadline.remaining_s))
        return AuditReport(collection, tuple(audits), summary.coverage, with_doubts(merged, audits))

    async def worst_queries(
        self,
        collection: str,
        *,
        queries_max: int = WORST_DEFAULT,
        timeout_s: float | None = None,
    ) -> WorstReport:
        """Return the sampled live queries that find least: up to `queries_max` (1 to 100) a band.

        Each is searched again as it was asked, and exactly. They are what users sent. Takes up to
        `timeout_s`; the report says how many queries were searched by then.
        """
        as_text(collection, "collection")
        as_count(queries_max, "queries_max", least=1, most=WORST_MAX)
        api = self._connection.api
        return await self._connection.read(
            lambda left_s: api.worst_queries(collection, queries_max=queries_max, timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def rebalance(
        self, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> tuple[ShardMove, ...]:
        """Even out the shards among the nodes; returns the moves that are ordered (or would be)."""
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.rebalance(dry_run=as_flag(dry_run, "dry_run"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def collect_garbage(
        self, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> GarbageReport:
        """Delete the objects that nothing has named for the grace period; say what there is.

        Raises `FailedPrecondition` with reason NOT_LEADER, and the leader's address in its
        metadata, when the client talks to a coordinator that does not lead.
        """
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.collect_garbage(
                dry_run=as_flag(dry_run, "dry_run"), timeout_s=left_s
            ),
            deadline=self._connection.deadline(timeout_s),
        )

    async def drain(self, node_id: str, *, timeout_s: float | None = None) -> tuple[ShardMove, ...]:
        """Move every shard away from a node and give it no more; returns the moves ordered."""
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.drain(as_text(node_id, "node_id"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def undrain(self, node_id: str, *, timeout_s: float | None = None) -> None:
        """Let a node have shards again."""
        api = self._connection.api
        await self._connection.write(
            lambda left_s: api.undrain(as_text(node_id, "node_id"), timeout_s=left_s),
            deadline=self._connection.deadline(timeout_s),
        )

    async def move_shard(
        self, collection: str, shard: int, node_id: str, *, timeout_s: float | None = None
    ) -> ShardMove:
        """Order a shard to move to a node; follow it with `shards`."""
        api = self._connection.api
        return await self._connection.write(
            lambda left_s: api.move_shard(
                as_text(collection, "collection"),
                shard=as_count(shard, "shard"),
                node_id=as_text(node_id, "node_id"),
                timeout_s=left_s,
            ),
            deadline=self._connection.deadline(timeout_s),
        )

    async def _look(self, task_ids: Sequence[str], *, deadline: Deadline) -> tuple[TaskStatus, ...]:
        api = self._connection.api
        found: list[TaskStatus] = []
        for task_id in task_ids:

            async def once(left_s: float, task_id: str = task_id) -> TaskStatus:
                return await api.get_task(as_text(task_id, "task_id"), timeout_s=left_s)

            try:
                found.append(await self._connection.read(once, deadline=deadline))
            except NotFound:
                continue  # it ended so long ago that it is no longer kept
        return tuple(found)


async def _audit_shard(
    api: PublicApi, left_s: float, *, collection: str, shard: int, queries_max: int
) -> tuple[BandAudit, ...]:
    return await api.audit_recall(collection, shard, queries_max=queries_max, timeout_s=left_s)
