"""Measured recall as operators see it: the nodes' reports, joined over shards and segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from annheal.model.measures.latency import LatencyTrend
from annheal.model.measures.recall import BandCoverage, FilterRecall, RecallEstimate, SegmentRecall
from annheal.model.measures.recall_tail import TailObjective

ALL_SHARDS = -1
"""The shard number that means all shards."""
OWN_EF = "ef"
"""The name of the slice of queries that set an ef and no objective."""


TAIL_RECALL, TAIL_SHARE_MAX = 0.5, 0.01
"""More than one query in a hundred that finds less than half is more than chance: at a mean of 0.95
and independent misses it happens to three in a million, for k 10."""
QUERIES_KNOWN_MIN = 16
"""Fewer different queries do not show that an objective is met: if all of them found everything,
the interval still begins below 0.8."""


class RecallVerdict(StrEnum):
    """How measured recall compares with the objective.

    `unmeasured`: nothing was measured. `unknown`: what was measured is too old, or too few queries
    were. `not judged`: the queries have no objective, as they set an ef. `unclear`: the estimate is
    below the objective, the upper end of its interval is not. `missed`: even the upper end is
    below. `met, with a bad tail`: the estimate is not below it, but more than `TAIL_SHARE_MAX` of
    the queries find less than `TAIL_RECALL` of what they should. `recovering`: answers as they
    would be given now meet it, but those of the last minute did not, or were worse than now.
    """

    UNMEASURED = "unmeasured"
    MET = "met"
    MET_WITH_BAD_TAIL = "met, with a bad tail"
    UNCLEAR = "unclear"
    MISSED = "missed"
    UNKNOWN = "unknown"
    NOT_JUDGED = "not judged"
    RECOVERING = "recovering"


def verdict_of(
    estimate: RecallEstimate | None, objective: float, *, now_s: float = 0.0
) -> RecallVerdict:
    """Return how `estimate` compares with `objective` at `now_s`, seconds since the epoch.

    0 leaves the age of the estimate out of account.
    """
    if estimate is None or estimate.queries == 0:
        return RecallVerdict.UNMEASURED
    if not estimate.is_valid(now_s):
        return RecallVerdict.UNKNOWN
    if estimate.high < objective:
        return RecallVerdict.MISSED
    if estimate.evidence < QUERIES_KNOWN_MIN:
        return RecallVerdict.UNKNOWN
    if estimate.recall >= objective:
        tail = estimate.share_below(TAIL_RECALL)
        bad = tail is not None and tail > TAIL_SHARE_MAX
        return RecallVerdict.MET_WITH_BAD_TAIL if bad else RecallVerdict.MET
    return RecallVerdict.UNCLEAR


def tail_verdict_of(
    estimate: RecallEstimate | None, objective: TailObjective | None, *, now_s: float = 0.0
) -> RecallVerdict | None:
    """Return how the tail of `estimate` compares with `objective`; None without an objective.

    `unmeasured`: it was not measured for this objective. `unknown`: it is too old at `now_s` (0
    leaves ages out of account), or of fewer than `objective.queries_min` different queries.
    """
    if objective is None:
        return None
    tail = None if estimate is None else estimate.tail_for(objective)
    if estimate is None or tail is None:
        return RecallVerdict.UNMEASURED
    if not estimate.is_valid(now_s):
        return RecallVerdict.UNKNOWN
    if tail.high < objective.share:
        return RecallVerdict.MISSED
    if estimate.evidence < objective.queries_min:
        return RecallVerdict.UNKNOWN
    return RecallVerdict.MET if tail.share >= objective.share else RecallVerdict.UNCLEAR


@dataclass(frozen=True, slots=True)
class RecallSlice:
    """Part of a collection's live queries: a band, tag, shard, tier, model (`name`), or all ("").

    `stability` is the share of queries that got the same answer twice (None: not measured); `seen`
    counts live queries, sampled or not, `recent` those of about the last window. `estimate` is
    about answers as the nodes would give them now, `served` about the answers that they gave (None:
    not known). `tail_verdict` is about the collection's objective for single queries; None: it has
    none.
    """

    name: str
    verdict: RecallVerdict
    estimate: RecallEstimate | None = None
    stability: float | None = None
    seen: int = 0
    served: RecallEstimate | None = None
    recent: int = 0
    tail_verdict: RecallVerdict | None = None


@dataclass(frozen=True, slots=True)
class MergedRecall:
    """What the recall of answers over several shards stands on.

    It is measured with the `complete` queries that all shards measured. `incomplete` ones, which
    some shards did not measure, are in estimates of shards and segments only. `own_top_k` is the
    recall of each shard's own best k, averaged over the shards: it says how well shards search, and
    is usually lower than what users get, because few of a shard's k hits belong into an answer.
    """

    complete: int
    incomplete: int
    own_top_k: RecallSlice


def traffic_of(slices: Sequence[RecallSlice]) -> list[int]:
    """Return the weight of each slice: its queries of the last window.

    Where none of the slices has any, it is the queries since the start.
    """
    recent = [one.recent for one in slices]
    return recent if any(recent) else [one.seen for one in slices]


@dataclass(frozen=True, slots=True)
class RecallSummary:
    """The measured recall of a collection; `errors` has the errors of nodes without an answer.

    `filters` are joined over the shards (`shard` is `ALL_SHARDS`), the smallest share of matches
    first. `latency` is by node: nodes and their other load differ, so it is not joined. `own` has
    queries that set an objective (the slice's name) or only an ef ("ef"); they are in no other
    slice. `tail_objective` is the collection's; None: it has none. `coverage` has the audits so
    far. `changed_at_s` is when a node last noticed a change of the distribution of the queries, in
    seconds since the epoch; 0: never. `tags` has the queries of each tag that clients state, the
    most frequent first; they are in the bands as well.

    `overall`, `bands`, `filters` and `own` are about the answers that users get. `shards`, `tiers`,
    `models` and `segments` are about the best k of each shard, or of each segment. With one shard
    these are the same hits, and `merged` is None.
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
    own: tuple[RecallSlice, ...] = ()
    tail_objective: TailObjective | None = None
    coverage: tuple[BandCoverage, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    merged: MergedRecall | None = None
    changed_at_s: float = 0.0
    tags: tuple[RecallSlice, ...] = ()
