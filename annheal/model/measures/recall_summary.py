"""Measured recall as operators see it: what the nodes said, joined over shards and segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from annheal.model.measures.latency import LatencyTrend
from annheal.model.measures.recall import FilterRecall, RecallEstimate, SegmentRecall

ALL_SHARDS = -1
"""Stands for the number of a shard where all of them are meant."""


class RecallVerdict(StrEnum):
    """How measured recall compares with the objective.

    `unclear`: the estimate is below it, the upper end of its interval is not. `missed`: even the
    upper end is below.
    """

    UNMEASURED = "unmeasured"
    MET = "met"
    UNCLEAR = "unclear"
    MISSED = "missed"


def verdict_of(estimate: RecallEstimate | None, objective: float) -> RecallVerdict:
    """Return how `estimate` compares with `objective`."""
    if estimate is None or estimate.queries == 0:
        return RecallVerdict.UNMEASURED
    if estimate.recall >= objective:
        return RecallVerdict.MET
    return RecallVerdict.UNCLEAR if estimate.high >= objective else RecallVerdict.MISSED


@dataclass(frozen=True, slots=True)
class RecallSlice:
    """Part of a collection's live queries: a band, a shard, a tier, a model (`name`), or all ("").

    `stability` is the share of queries that got the same answer twice (None: not measured); `seen`
    counts live queries, sampled or not.
    """

    name: str
    verdict: RecallVerdict
    estimate: RecallEstimate | None = None
    stability: float | None = None
    seen: int = 0


@dataclass(frozen=True, slots=True)
class RecallSummary:
    """What is known of a collection's recall; `errors` says which nodes did not answer, and why.

    `filters` are joined over the shards (`shard` is `ALL_SHARDS`), those that match least first.
    `latency` is by node: machines and what else they do differ, so their times are not joined.
    """

    collection: str
    collection_id: str
    recall_objective: float
    sampled_share: float
    overall: RecallSlice
    bands: tuple[RecallSlice, ...] = ()
    shards: tuple[RecallSlice, ...] = ()
    tiers: tuple[RecallSlice, ...] = ()
    models: tuple[RecallSlice, ...] = ()
    segments: tuple[SegmentRecall, ...] = ()
    filters: tuple[FilterRecall, ...] = ()
    latency: Mapping[str, LatencyTrend] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
