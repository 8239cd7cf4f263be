"""Joins the recall that nodes measured on live queries into a summary of each collection.

There are two ways to join estimates, for dependent and for independent parts. Let part i have the
mean r_i, the interval [l_i, h_i], n_i queries and the weight w_i, where the weights add up to 1.
Always r = sum(w_i r_i).

- Shards, and segments, of one band answer the same queries, and a hard query is hard everywhere.
  Their errors may be correlated to any degree, so the bounds are averaged like the means:
  l = sum(w_i l_i), h = sum(w_i h_i), n = max(n_i), w_i proportional to n_i. Such an interval is
  never too narrow.
- Bands hold different queries, so their errors are independent: they are strata of the traffic and
  joined as such (`annheal.recall.interval.combine_strata`), n = sum(n_i). w_i is proportional to
  the live queries *seen* in the band, not to those sampled, because every band has a reservoir of
  its own and rare bands are over-represented in it. A band that was searched but not measured
  widens the interval by its weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import ask_nodes
from annheal.coordinator.data_path.router import Router
from annheal.model.collection import Collection
from annheal.model.measures.latency import LatencyTrend
from annheal.model.measures.recall import (
    FILTERS_REPORTED_MAX,
    RECALL_UNKNOWN,
    CollectionRecall,
    FilterRecall,
    RecallEstimate,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
)
from annheal.model.measures.recall_summary import (
    ALL_SHARDS,
    RecallSlice,
    RecallSummary,
    verdict_of,
)
from annheal.model.topology.shard import ShardId
from annheal.recall.interval import Interval, Stratum, combine_strata

Weighted = tuple[RecallEstimate | None, float]
"""An estimate, None if nothing was measured, and its weight; the weights need not add up to 1."""

PartT = TypeVar("PartT")
KeyT = TypeVar("KeyT", bound=Hashable)


class RecallView:
    """Collects the recall that nodes measured, and joins it."""

    def __init__(self, catalog: Catalog, router: Router, *, timeout_s: float) -> None:
        self._catalog = catalog
        self._router = router
        self._timeout_s = timeout_s

    async def of(self, collection: Collection) -> RecallSummary:
        """Return the summary of one collection; nodes that do not answer are in its `errors`."""
        return (await self._summaries([collection], collection.id))[0]

    async def all(self) -> list[RecallSummary]:
        """Return the summaries of all collections."""
        return await self._summaries(self._catalog.collections(), "")

    async def _summaries(
        self, collections: Iterable[Collection], collection_id: str
    ) -> list[RecallSummary]:
        asked = await ask_nodes(
            self._router,
            self._catalog.nodes(),
            lambda node: node.recall(collection_id),
            timeout_s=self._timeout_s,
            what="report recall",
        )
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
        )


def summarise(
    collection: Collection,
    reports: Sequence[CollectionRecall],
    *,
    latency: Mapping[str, LatencyTrend] | None = None,
    errors: Mapping[str, str] | None = None,
) -> RecallSummary:
    """Return the summary of `collection` from all nodes' reports; each shard is in one of them."""
    shards = [one for report in reports for one in report.shards]
    segments = [one for report in reports for one in report.segments]
    objective = collection.settings.recall_objective
    seen = seen_by_band(shards)
    bands = _bands(shards, objective)
    return RecallSummary(
        collection=collection.name,
        collection_id=collection.id,
        recall_objective=objective,
        sampled_share=max((report.sampled_share for report in reports), default=0.0),
        overall=_overall(shards, objective),
        bands=bands,
        shards=tuple(
            _of_shard(shard, parts, objective)
            for shard, parts in sorted(_grouped(shards, lambda one: one.shard).items())
        ),
        tiers=_of_segments(segments, lambda one: one.tier, seen, objective),
        models=_of_segments(segments, lambda one: one.model, seen, objective),
        segments=tuple(
            sorted(segments, key=lambda one: (one.shard, one.segment_id, _rank(one.band)))
        ),
        filters=_join_filters([one for report in reports for one in report.filters]),
        latency=dict(latency or {}),
        errors=dict(errors or {}),
    )


def seen_by_band(shards: Iterable[ShardBandRecall]) -> dict[SelectivityBand, int]:
    """Return the live queries of each band: every shard counts each of them, so the maximum."""
    seen: dict[SelectivityBand, int] = {}
    for one in shards:
        seen[one.band] = max(seen.get(one.band, 0), one.seen)
    return seen


def join_dependent(parts: Iterable[RecallEstimate]) -> RecallEstimate | None:
    """Return one estimate from parts that measured the same queries; None without a part."""
    measured = [part for part in parts if part.queries]
    total = sum(part.queries for part in measured)
    if not total:
        return None
    weights = [part.queries / total for part in measured]

    def mean(value: Callable[[RecallEstimate], float]) -> float:
        return math.fsum(w * value(part) for w, part in zip(weights, measured, strict=True))

    return _estimate(
        measured,
        recall=mean(lambda one: one.recall),
        low=mean(lambda one: one.low),
        high=mean(lambda one: one.high),
        queries=max(part.queries for part in measured),
        weights=weights,
    )


def join_independent(parts: Iterable[Weighted]) -> RecallEstimate | None:
    """Return one estimate from weighted parts with different queries; None if none is measured.

    If the weights of all measured parts are 0, each has its number of queries as weight, and parts
    that are not measured are left out.
    """
    every = list(parts)
    measured = [(part, weight) for part, weight in every if part is not None and part.queries]
    unknown = math.fsum(weight for part, weight in every if part is None or not part.queries)
    if not any(weight for _, weight in measured):
        measured, unknown = [(part, float(part.queries)) for part, _ in measured], 0.0
    joined = combine_strata(
        [
            *(
                Stratum(weight, Interval(part.recall, part.low, part.high))
                for part, weight in measured
            ),
            Stratum(unknown, None),
        ]
    )
    if joined is None:
        return None
    total = math.fsum(weight for _, weight in measured)
    return _estimate(
        [part for part, _ in measured],
        recall=joined.mean,
        low=joined.low,
        high=joined.high,
        queries=sum(part.queries for part, _ in measured),
        weights=[weight / total for _, weight in measured],
    )


def _estimate(
    parts: Sequence[RecallEstimate],
    *,
    recall: float,
    low: float,
    high: float,
    queries: int,
    weights: Sequence[float],
) -> RecallEstimate:
    return RecallEstimate(
        k=max(part.k for part in parts),
        recall=recall,
        low=low,
        high=high,
        queries=queries,
        measured_at_s=min(part.measured_at_s for part in parts),
        plans=_plans(part.plans for part in parts),
        shares=_join_shares(parts, weights),
    )


def _join_shares(parts: Sequence[RecallEstimate], weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weighted distribution of per-query recall; empty where a part has none."""
    if not all(part.shares for part in parts):
        return ()
    return tuple(
        math.fsum(weight * share for weight, share in zip(weights, column, strict=True))
        for column in zip(*(part.shares for part in parts), strict=True)
    )


def _bands(shards: Sequence[ShardBandRecall], objective: float) -> tuple[RecallSlice, ...]:
    grouped = _grouped(shards, lambda one: one.band)
    seen = seen_by_band(shards)
    return tuple(
        _slice(
            band.value,
            join_dependent(one.estimate for one in grouped[band]),
            objective,
            stability=_stability((one.stability, one.estimate.queries) for one in grouped[band]),
            seen=seen[band],
        )
        for band in SelectivityBand
        if band in grouped
    )


def _overall(shards: Sequence[ShardBandRecall], objective: float) -> RecallSlice:
    seen = seen_by_band(shards)
    parts = [
        (join_dependent(one.estimate for one in held), float(seen[band]))
        for band, held in _grouped(shards, lambda one: one.band).items()
    ]
    return _slice(
        "",
        join_independent(parts),
        objective,
        stability=_stability((one.stability, one.seen) for one in shards),
        seen=sum(seen.values()),
    )


def _of_shard(shard: int, parts: Sequence[ShardBandRecall], objective: float) -> RecallSlice:
    return _slice(
        str(shard),
        join_independent((one.estimate, float(one.seen)) for one in parts),
        objective,
        stability=_stability((one.stability, one.seen) for one in parts),
        seen=sum(one.seen for one in parts),
    )


def _of_segments(
    segments: Sequence[SegmentRecall],
    name: Callable[[SegmentRecall], str],
    seen: Mapping[SelectivityBand, int],
    objective: float,
) -> tuple[RecallSlice, ...]:
    """Join the segments with the same `name`: first those of one band, then the bands."""
    found = []
    for key, held in sorted(_grouped(segments, name).items()):
        parts = [
            (join_dependent(one.estimate for one in same), float(seen.get(band, 0)))
            for band, same in _grouped(held, lambda one: one.band).items()
        ]
        found.append(_slice(key, join_independent(parts), objective))
    return tuple(found)


def _join_filters(parts: Sequence[FilterRecall]) -> tuple[FilterRecall, ...]:
    """Join each filter over the shards; the smallest share of matches comes first."""
    joined = []
    for tree, held in _grouped(parts, lambda one: one.filter).items():
        measured = [one for one in held if one.recall != RECALL_UNKNOWN and one.queries]
        total = sum(one.queries for one in measured)
        joined.append(
            FilterRecall(
                shard=ALL_SHARDS,
                filter=tree,
                matches=sum(one.matches for one in held),
                live_rows=sum(one.live_rows for one in held),
                recall=(
                    math.fsum(one.recall * one.queries for one in measured) / total
                    if total
                    else RECALL_UNKNOWN
                ),
                queries=max(one.queries for one in held),
                plans=_plans(one.plans for one in held),
            )
        )
    joined.sort(key=lambda one: (one.matches / max(1, one.live_rows), -one.queries))
    return tuple(joined[:FILTERS_REPORTED_MAX])


def _slice(
    name: str,
    estimate: RecallEstimate | None,
    objective: float,
    *,
    stability: float | None = None,
    seen: int = 0,
) -> RecallSlice:
    return RecallSlice(name, verdict_of(estimate, objective), estimate, stability, seen)


def _stability(parts: Iterable[tuple[float, int]]) -> float | None:
    known = [(value, max(1, weight)) for value, weight in parts if not math.isnan(value)]
    total = sum(weight for _, weight in known)
    return math.fsum(value * weight for value, weight in known) / total if total else None


def _plans(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part)
    return dict(counts.most_common())


def _grouped(parts: Iterable[PartT], key: Callable[[PartT], KeyT]) -> dict[KeyT, list[PartT]]:
    groups: dict[KeyT, list[PartT]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return groups


def _rank(band: SelectivityBand) -> int:
    return list(SelectivityBand).index(band)
