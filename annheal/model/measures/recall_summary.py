"""Measured recall as operators see it: the nodes' reports, joined over shards and segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from annheal.model.measures.latency import LatencyTrend
from annheal.model.measures.recall import FilterRecall, RecallEstimate, SegmentRecall

ALL_SHARDS = -1
"""The shard number that means all shards."""


TAIL_RECALL, TAIL_SHARE_MAX = 0.5, 0.01
"""More than one query in a hundred that finds less than half is more than chance: at a mean of 0.95
and independent misses it happens to three in a million, for k 10."""
QUERIES_KNOWN_MIN = 16
"""Fewer queries do not show that an objective is met: if all of them found everything, the interval
still begins below 0.8."""


class RecallVerdict(StrEnum):
    """How measured recall compares with the objective.

    `unmeasured`: no query was measured. `unknown`: fewer than `QUERIES_KNOWN_MIN` were, and they do
    not show that it is missed. `unclear`: the estimate is below it, the upper end of its interval
    is not. `missed`: even the upper end is below. `met, with a bad tail`: the estimate is not below
    it, but more than `TAIL_SHARE_MAX` of the queries find less than `TAIL_RECALL` of what they
    should.
    """

    UNMEASURED = "unmeasured"
    UNKNOWN = "unknown"
    MET = "met"
    MET_WITH_BAD_TAIL = "met, with a bad tail"
    UNCLEAR = "unclear"
    MISSED = "missed"


def verdict_of(estimate: RecallEstimate | None, objective: float) -> RecallVerdict:
    """Return how `estimate` compares with `objective`."""
    if estimate is None or estimate.queries == 0:
        return RecallVerdict.UNMEASURED
    if estimate.high < objective:
        return RecallVerdict.MISSED
    if estimate.queries < QUERIES_KNOWN_MIN:
        return RecallVerdict.UNKNOWN
    if estimate.recall >= objective:
        tail = estimate.share_below(TAIL_RECALL)
        bad = tail is not None and tail > TAIL_SHARE_MAX
        return RecallVerdict.MET_WITH_BAD_TAIL if bad else RecallVerdict.MET
    return RecallVerdict.UNCLEAR


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
    """The measured recall of a collection; `errors` has the errors of nodes without an answer.

    `filters` are joined over the shards (`shard` is `ALL_SHARDS`), the smallest share of matches
    first. `latency` is by node: nodes and their other load differ, so it is not joined.
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
