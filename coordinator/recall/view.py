"""Collects the recall that nodes measured on live queries, and joins it (`summary.py`)."""

from __future__ import annotations

from collections.abc import Iterable

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import NodeAnswers, ask_nodes
from annheal.coordinator.data_path.router import Router
from annheal.coordinator.recall.summary import summarise
from annheal.model.collection import Collection
from annheal.model.measures.recall import CollectionRecall
from annheal.model.measures.recall_summary import RecallSummary
from annheal.model.topology.shard import ShardId
from annheal.runtime.clock import Clock, wall_s


class RecallView:
    """Collects the recall that nodes measured, and joins it."""

    def __init__(
        self, catalog: Catalog, router: Router, *, timeout_s: float, now_s: Clock = wall_s
    ) -> None:
        self._now_s = now_s
        self._catalog = catalog
        self._router = router
        self._timeout_s = timeout_s

    async def of(self, collection: Collection) -> RecallSummary:
        """Return the summary of one collection; nodes that do not answer are in its `errors`."""
        return (await self._summaries([collection], collection.id))[0]

    async def all(self) -> list[RecallSummary]:
        """Return the summaries of all collections."""
        return await self._summaries(self._catalog.collections(), "")

    async def reports(self, collection: Collection) -> list[CollectionRecall]:
        """Return what the owners of the shards of a collection have measured."""
        asked = await self._asked(collection.id)
        return [
            self._owned(report, name)
            for name, found in asked.answers.items()
            for report in found
            if report.collection_id == collection.id
        ]

    async def _asked(self, collection_id: str) -> NodeAnswers[tuple[CollectionRecall, ...]]:
        return await ask_nodes(
            self._router,
            self._catalog.nodes(),
            lambda node: node.recall(collection_id),
            timeout_s=self._timeout_s,
            what="report recall",
        )

    async def _summaries(
        self, collections: Iterable[Collection], collection_id: str
    ) -> list[RecallSummary]:
        asked = await self._asked(collection_id)
        reports = [(name, report) for name, found in asked.answers.items() for report in found]
        return [
            summarise(
                collection,
                [
                    self._owned(report, name)
                    for name, report in reports
                    if report.collection_id == collection.id
                ],
                latency={
                    name: report.latency
                    for name, report in reports
                    if report.collection_id == collection.id and report.latency is not None
                },
                errors=asked.errors,
                now_s=self._now_s(),
            )
            for collection in collections
        ]

    def _owned(self, report: CollectionRecall, node_id: str) -> CollectionRecall:
        """Return the report without shards of which the node is not the owner any more."""

        def owned(shard: int) -> bool:
            stored = self._catalog.assignment(ShardId(report.collection_id, shard))
            return stored is not None and stored.value.owner == node_id

        return CollectionRecall(
            collection_id=report.collection_id,
            recall_objective=report.recall_objective,
            sampled_share=report.sampled_share,
            shards=tuple(one for one in report.shards if owned(one.shard)),
            segments=tuple(one for one in report.segments if owned(one.shard)),
            filters=tuple(one for one in report.filters if owned(one.shard)),
            own=tuple(one for one in report.own if owned(one.shard)),
            coverage=tuple(one for one in report.coverage if owned(one.shard)),
            queries=tuple(one for one in report.queries if owned(one.shard)),
            changed_at_s=report.changed_at_s,
            tags=tuple(one for one in report.tags if owned(one.shard)),
        )
