"""Recall measured on live queries: estimates by slice, and the decisions of the controller."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from annheal.model.filter import Filter
from annheal.model.measures.latency import LatencyTrend
from annheal.model.measures.recall_tail import TailEstimate, TailObjective
from annheal.model.measures.shard_queries import ShardQueries


class SelectivityBand(StrEnum):
    """Bands of the share of live rows that a filter matches, and one for unfiltered queries."""

    UNFILTERED = "unfiltered"
    FROM_50 = "50-100%"
    FROM_10 = "10-50%"
    FROM_1 = "1-10%"
    FROM_0_1 = "0.1-1%"
    BELOW_0_1 = "0-0.1%"


_BANDS = (
    (0.5, SelectivityBand.FROM_50),
    (0.1, SelectivityBand.FROM_10),
    (0.01, SelectivityBand.FROM_1),
    (0.001, SelectivityBand.FROM_0_1),
)


def band_of(matches: int, live_rows: int, *, filtered: bool) -> SelectivityBand:
    """Return the band of a query whose filter matches `matches` of `live_rows` rows."""
    if not filtered:
        return SelectivityBand.UNFILTERED
    share = matches / live_rows if live_rows else 0.0
    return next((band for low, band in _BANDS if share >= low), SelectivityBand.BELOW_0_1)


class Rung(StrEnum):
    """How a segment is answered where recall was measured, from the cheapest to the surest method.

    GRAPH: as its recall curve says, with the ef of the controller. CODES: the matching rows are
    compared by 8-bit codes and the best of them by their vectors. EXACT: all by their vectors.
    """

    GRAPH = "graph"
    CODES = "codes"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A segment in one band whose graph was measured certainly below the objective.

    Attributes:
        high: upper end of the interval of its recall.
        rung: the cheapest method that may answer; GRAPH while a larger ef is tried.
    """

    high: float
    rung: Rung = Rung.GRAPH


FILTERS_REPORTED_MAX = 20
RECALL_UNKNOWN = -1.0
"""The value of a recall that was not measured."""


RECALL_STEPS = 20
"""Steps of the distribution of per-query recall: hits of a query with k 10 are tenths."""


@dataclass(frozen=True, slots=True)
class RecallEstimate:
    """Mean recall@`k` of `queries` sampled queries with its 95 % interval.

    `measured_at_s` is seconds since the epoch. Also the plans that answered them, by count.
    `shares` has the share of the queries whose own recall is from i / `RECALL_STEPS` on and below
    the next step, and last those that found everything; empty where an older node measured.

    The queries were asked from `window_begin_s` to `window_end_s`, and `distinct` of them differ: a
    query that was asked ten times counts ten times in the mean, and once as evidence. After
    `valid_until_s` the estimate is too old to say anything about the queries of now. These are
    seconds since the epoch; 0 where an older node measured.
    """

    k: int
    recall: float
    low: float
    high: float
    queries: int
    measured_at_s: float
    plans: dict[str, int]
    shares: tuple[float, ...] = ()
    window_begin_s: float = 0.0
    window_end_s: float = 0.0
    valid_until_s: float = 0.0
    distinct: int = 0
    tail: TailEstimate | None = None
    """For the collection's objective about the tail; None: it had none, or an older node."""

    def tail_for(self, objective: TailObjective | None) -> TailEstimate | None:
        """Return the estimate of the tail if it was measured for `objective`."""
        same = self.tail is not None and self.tail.objective == objective
        return self.tail if same else None

    @property
    def evidence(self) -> int:
        """The number of different queries, as far as it is known."""
        return self.distinct or self.queries

    def is_valid(self, now_s: float) -> bool:
        """Return whether the estimate is about now; True if it does not say how long it is."""
        return not self.valid_until_s or now_s <= self.valid_until_s

    def share_below(self, recall: float) -> float | None:
        """Return the share of the queries with less than `recall`; None where it is unknown.

        A limit between two steps counts as the next higher step, so the share is never too small.
        """
        if not self.shares:
            return None
        return min(1.0, sum(self.shares[: math.ceil(recall * RECALL_STEPS - 1e-9)]))

    def percentile(self, share: float) -> float | None:
        """Return the recall that all but `share` of the queries reach, rounded down to a step."""
        total = 0.0
        for step, part in enumerate(self.shares):
            total += part
            if total > share:
                return step / RECALL_STEPS
        return 1.0 if self.shares else None


@dataclass(frozen=True, slots=True)
class SegmentRecall:
    """The recall of one segment in one band.

    Attributes:
        estimate: the measured recall of the graph, also where another method answers.
        ef: the ef of searches at present, 0 for a flat segment.
        ef_limit: the largest ef that the controller may choose.
        rebuild: recall is below the objective although `ef` is `ef_limit`: the segment should be
            rebuilt.
        stuck: the segment was rebuilt for that reason already and is below the objective again: an
            operator has to look (INV-7).
        rung: how queries with the collection's settings are answered at present.
        below: whether the graph is known to be below the objective. Where `rung` is GRAPH too, the
            answers say so (`below_objective`).
        answered: the measured recall of the answers by another method than the graph; None where
            the graph answers.
        raised_at_s: when `ef` was last raised, or a surer method began to answer, in seconds since
            the epoch; 0: never, or not known.
    """

    shard: int
    segment_id: str
    tier: str
    model: str
    band: SelectivityBand
    estimate: RecallEstimate
    ef: int
    ef_limit: int
    rebuild: bool = False
    stuck: bool = False
    rung: Rung = Rung.GRAPH
    below: bool = False
    answered: RecallEstimate | None = None
    raised_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FilterRecall:
    """Recall of the sampled queries that have one filter in common, over one shard.

    `matches` of `live_rows` rows match it. `recall` is the mean of `queries` of them.
    """

    shard: int
    filter: Filter
    matches: int
    live_rows: int
    recall: float
    queries: int
    plans: dict[str, int]


@dataclass(frozen=True, slots=True)
class ShardBandRecall:
    """One shard's answers (all its segments merged) in one band.

    `stability` is the share of queries that gave the same answer twice on one view (NaN when not
    measured); `seen` is how many live queries of the band this node has answered with the shard,
    `recent` those of about the last window.

    `estimate` is about the answers that the node would give now, `served` about those that it gave:
    it compares the hits that were returned with the same exact answers. None: none are kept.
    """

    shard: int
    band: SelectivityBand
    estimate: RecallEstimate
    stability: float
    seen: int
    recent: int = 0
    served: RecallEstimate | None = None


@dataclass(frozen=True, slots=True)
class OwnSettingRecall:
    """One shard's answers to queries whose clients set a recall objective or an ef of their own.

    They are not judged by the collection's objective: those with an `objective` are judged by it,
    those that set only an ef (`objective` None) are not judged. `estimate` and `served` as above.
    """

    shard: int
    objective: float | None
    estimate: RecallEstimate
    served: RecallEstimate | None = None


@dataclass(frozen=True, slots=True)
class TagRecall:
    """One shard's answers to queries of one tag, without settings of their own.

    `seen` counts the tag's live queries that the node has answered, `recent` those of about the
    last window. `estimate` and `served` as above; no queries in `estimate`: none was measured yet.
    """

    shard: int
    tag: str
    estimate: RecallEstimate
    served: RecallEstimate | None = None
    seen: int = 0
    recent: int = 0


OWN_OBJECTIVES_MAX = 20
"""Different objectives of queries that are reported, those of the most queries."""


@dataclass(frozen=True, slots=True)
class BandCoverage:
    """The audits of a shard's estimates in one band so far: those that said something.

    `measured_at_s` (seconds since the epoch) is the estimate that was audited last; it counts once.
    """

    shard: int
    band: SelectivityBand
    windows: int
    contained: int
    measured_at_s: float


@dataclass(frozen=True, slots=True)
class CollectionRecall:
    """The recall that one node measured of one collection; the coordinator joins the nodes'.

    `sampled_share` is the share of live queries that is sampled at present. `filters` are the
    sampled filters, fewest matches first, at most `FILTERS_REPORTED_MAX` a shard. `latency` is the
    trend of the node's search latency for the collection. `own` is about queries with settings of
    their own, which are in none of the other measurements. `tags` is about queries that have a tag;
    they are in the bands as well. `coverage` has the audits so far.
    `queries` says what each shard found of each measured query, where a collection has several
    shards. `changed_at_s` is when a change of the distribution of the queries was last noticed, in
    seconds since the epoch; 0: never.
    """

    collection_id: str
    recall_objective: float
    sampled_share: float
    shards: tuple[ShardBandRecall, ...]
    segments: tuple[SegmentRecall, ...]
    filters: tuple[FilterRecall, ...] = ()
    latency: LatencyTrend | None = None
    own: tuple[OwnSettingRecall, ...] = ()
    coverage: tuple[BandCoverage, ...] = ()
    queries: tuple[ShardQueries, ...] = ()
    changed_at_s: float = 0.0
    tags: tuple[TagRecall, ...] = ()
