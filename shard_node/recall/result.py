"""Summarises the findings of one measurement by band, segment and filter. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import xxhash

from annheal.model.measures.recall import (
    FILTERS_REPORTED_MAX,
    OWN_OBJECTIVES_MAX,
    FilterRecall,
    OwnSettingRecall,
    RecallEstimate,
    Rung,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
    band_of,
)
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.measures.shard_queries import FOUND, KNOWN, SERVED, ShardQueries
from annheal.recall.estimating import tail_estimate
from annheal.recall.merging import depth_max, filter_number
from annheal.shard_node.owner.shard_state import MeasuredSegment
from annheal.shard_node.recall.measure import (
    ExactHits,
    GroupFinding,
    QueryGroup,
    Recalls,
    SegmentFinding,
    estimate_of,
)
from annheal.shard_node.recall.sampling.sampled_query import Change, SampledQuery
from annheal.shard_node.search.planner import PlanKind

QUERIES_BYTES_MAX = 1_048_576
"""Bytes of exact hits that a shard reports: of more, the queries with the largest numbers are left
out, which are the same in all shards."""
_BYTES_PER_HIT = 5
WALKS_MIN = 8
"""Queries whose walk cost must have been measured before that of a segment is reported."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The result of a shard's latest measurement.

    `objective`, `k` and `tail` are the collection's objectives that it was made for; `objective` is
    0 where it is not known.
    """

    bands: tuple[ShardBandRecall, ...] = ()
    segments: tuple[SegmentRecall, ...] = ()
    filters: tuple[FilterRecall, ...] = ()
    walks: Mapping[str, float] = field(default_factory=dict)
    """Mean walk cost of queries without a filter, by segment id."""
    objective: float = 0.0
    k: int = 0
    own: tuple[OwnSettingRecall, ...] = ()
    tail: TailObjective | None = None
    queries: ShardQueries | None = None
    """What was found of each query; None where the shard has all records of its collection."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a measurement ended, in seconds since the epoch, and how long it says something.

    `valid_s` is the age of the newest query at which an estimate becomes too old.
    """

    measured_at_s: float
    valid_s: float


@dataclass(frozen=True, slots=True)
class SegmentEstimate:
    """The estimate of one segment's graph in one band, and the serials of its queries, (n,).

    `answered` is that of the answers where other methods than the graph give some of them, `rung`
    the method of most of these. `by_codes_only`: codes give all of them.
    """

    estimate: RecallEstimate
    serials: npt.NDArray[np.int64]
    answered: RecallEstimate | None = None
    rung: Rung = Rung.GRAPH
    by_codes_only: bool = False


def segment_estimates(
    found: Iterable[GroupFinding], *, moment: Moment, tail: TailObjective | None = None
) -> dict[tuple[str, SelectivityBand], SegmentEstimate]:
    """Return the estimate of each (segment id, band) that was searched.

    `tail`: the collection's objective about single queries.
    """
    slices: dict[tuple[str, SelectivityBand], list[tuple[QueryGroup, SegmentFinding]]]
    slices = defaultdict(list)
    for finding in found:
        for part in finding.segments:
            slices[part.segment_id, part.band].append((finding.group, part))
    estimates: dict[tuple[str, SelectivityBand], SegmentEstimate] = {}
    for slot, parts in sorted(slices.items()):
        found_of = _segment_estimate(parts, moment, tail)
        if found_of is not None:
            estimates[slot] = found_of
    return estimates


def _segment_estimate(
    parts: Sequence[tuple[QueryGroup, SegmentFinding]],
    moment: Moment,
    tail: TailObjective | None,
) -> SegmentEstimate | None:
    groups = [group for group, _ in parts]
    plans: Counter[str] = Counter()
    for _, part in parts:
        plans[part.plan.value] += len(part.recalls)
    estimate = _estimate(groups, [part.recalls for _, part in parts], plans, moment, tail)
    if estimate is None:
        return None
    serials = np.concatenate([part.serials for _, part in parts])
    lifted = Counter[Rung]()
    for _, part in parts:
        if part.answered_by is not None:
            by_codes = part.answered_by is PlanKind.SHORTLIST
            lifted[Rung.CODES if by_codes else Rung.EXACT] += len(part.answered)
    if not lifted:
        return SegmentEstimate(estimate, serials)
    used = [part.used for _, part in parts]
    plans = Counter()
    for plan, recalls in used:
        plans[plan.value] += len(recalls)
    return SegmentEstimate(
        estimate,
        serials,
        answered=_estimate(groups, [recalls for _, recalls in used], plans, moment, tail),
        rung=lifted.most_common(1)[0][0],
        by_codes_only=lifted[Rung.CODES] == estimate.queries,
    )


def band_recalls(
    shard: int,
    found: Iterable[GroupFinding],
    *,
    seen: Mapping[SelectivityBand, int],
    moment: Moment,
    tail: TailObjective | None = None,
) -> tuple[ShardBandRecall, ...]:
    """Return the recall of the shard's answers in each band that has queries; `tail` as above."""
    bands: dict[SelectivityBand, list[GroupFinding]] = defaultdict(list)
    for finding in found:
        bands[finding.band].append(finding)
    recalls: list[ShardBandRecall] = []
    for band, findings in sorted(bands.items()):
        estimate, served = _planned_and_served(findings, moment, tail)
        if estimate is not None:
            same = sum(one.same for one in findings)
            repeated = sum(one.repeated for one in findings)
            recalls.append(
                ShardBandRecall(
                    shard, band, estimate, same / repeated, seen.get(band, 0), served=served
                )
            )
    return tuple(recalls)


def own_recalls(
    shard: int, found: Iterable[GroupFinding], *, moment: Moment
) -> tuple[OwnSettingRecall, ...]:
    """Return the recall of queries with settings of their own, by the objective that they set."""
    by_objective: dict[float | None, list[GroupFinding]] = defaultdict(list)
    for finding in found:
        by_objective[finding.group.objective].append(finding)
    recalls: list[OwnSettingRecall] = []
    for objective, findings in by_objective.items():
        estimate, served = _planned_and_served(findings, moment)
        if estimate is not None:
            recalls.append(OwnSettingRecall(shard, objective, estimate, served))
    recalls.sort(key=lambda one: (-one.estimate.queries, one.objective or 0.0))
    return tuple(recalls[:OWN_OBJECTIVES_MAX])


def shard_queries(
    shard: int, found: Iterable[GroupFinding], *, moment: Moment, shard_count: int
) -> ShardQueries | None:
    """Return what the shard found of each numbered query; None if there is none."""
    rows = [
        _FoundQuery(finding, finding.exact, place, index, number)
        for finding in found
        if finding.exact is not None
        for index, place in enumerate(finding.group.places.tolist())
        if (number := finding.group.samples[index].number) is not None
    ]
    rows.sort(key=lambda one: one.number)
    parts: list[tuple[_FoundQuery, _HitsOfQuery]] = []
    room = QUERIES_BYTES_MAX
    for row in rows:
        hits = row.hits(shard_count=shard_count)
        room -= _BYTES_PER_HIT * len(hits.scores)
        if room < 0:
            break
        parts.append((row, hits))
    if not parts:
        return None
    groups = [row.finding.group for row, _ in parts]
    unsigned = np.uint64
    return ShardQueries(
        shard=shard,
        measured_at_s=moment.measured_at_s,
        valid_s=moment.valid_s,
        numbers=np.array([row.number for row, _ in parts], dtype=unsigned),
        same=np.array([row.same for row, _ in parts], dtype=unsigned),
        ks=np.array([group.k for group in groups], dtype=np.int64),
        filters=np.array(
            [0 if one.filter is None else filter_number(one.filter) for one in groups],
            dtype=unsigned,
        ),
        own=np.array([group.has_own_setting for group in groups], dtype=np.bool_),
        objectives=np.array(
            [math.nan if one.objective is None else one.objective for one in groups]
        ),
        matches=np.array([row.finding.matches for row, _ in parts], dtype=np.int64),
        live_rows=np.array([row.finding.live_rows for row, _ in parts], dtype=np.int64),
        sampled_at_s=np.array([row.sample.sampled_at_s for row, _ in parts]),
        depths=np.array([len(hits.scores) for _, hits in parts], dtype=np.int64),
        more=np.array([hits.more for _, hits in parts], dtype=np.bool_),
        scores=np.concatenate([hits.scores for _, hits in parts]),
        marks=np.concatenate([hits.marks for _, hits in parts]),
        served=np.array([hits.is_served for _, hits in parts], dtype=np.bool_),
        cuts=np.array([hits.cut for _, hits in parts], dtype=np.float32),
        gone=np.array([len(hits.gone) for _, hits in parts], dtype=np.int64),
        gone_scores=np.concatenate([hits.gone for _, hits in parts]),
    )


@dataclass(frozen=True, slots=True)
class _HitsOfQuery:
    """A query's part of the columns of `ShardQueries`."""

    scores: npt.NDArray[np.float32]
    marks: npt.NDArray[np.uint8]
    more: bool
    is_served: bool
    cut: float
    gone: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _FoundQuery:
    """The sample `index` of a group, whose query is at `place` among the different ones."""

    finding: GroupFinding
    exact: ExactHits
    place: int
    index: int
    number: int

    @property
    def sample(self) -> SampledQuery:
        return self.finding.group.samples[self.index]

    @property
    def same(self) -> int:
        """A number that is equal for equal queries."""
        group = self.finding.group
        digest = xxhash.xxh3_64(self.sample.vector.tobytes())
        digest.update(group.key)
        digest.update(group.k.to_bytes(4, "little"))
        return digest.intdigest()

    def hits(self, *, shard_count: int) -> _HitsOfQuery:
        """Return the hits that are needed to know those of the answer over all shards."""
        every = self.exact.scores[self.place]
        present = int(np.count_nonzero(~np.isneginf(every)))
        depth = min(present, depth_max(self.finding.group.k, shard_count=shard_count))
        marks = np.where(self.exact.found[self.place, :depth], FOUND, 0).astype(np.uint8)
        served = self.exact.served[self.index]
        if served is not None:
            marks |= np.where(served.known[:depth], KNOWN, 0).astype(np.uint8)
            marks |= np.where(served.served[:depth], SERVED, 0).astype(np.uint8)
        return _HitsOfQuery(
            every[:depth].astype(np.float32),
            marks,
            # An answer of k hits can need no more than k of a shard.
            more=depth < present,
            is_served=served is not None,
            cut=-math.inf if served is None else served.cut,
            gone=np.empty(0, dtype=np.float32) if served is None else served.gone,
        )


def with_earlier(
    present: ShardResult, earlier: ShardResult, *, segment_ids: Collection[str]
) -> ShardResult:
    """Return `present` with those earlier estimates of which it has none.

    A band without queries of late is not measured; what is known of it stays, with its window.
    `segment_ids` are the segments that exist. Recall of another k is dropped, and conclusions from
    another objective.
    """
    if earlier.k not in (0, present.k):
        return present
    bands = {(one.shard, one.band) for one in present.bands}
    slots = {(one.segment_id, one.band) for one in present.segments}
    filters = {one.filter for one in present.filters}
    objectives = {one.objective for one in present.own}
    same_goal = (earlier.objective, earlier.tail) == (present.objective, present.tail)
    kept = [
        one if same_goal else without_conclusions(one)
        for one in earlier.segments
        if one.segment_id in segment_ids and (one.segment_id, one.band) not in slots
    ]
    rare = [
        one
        for one in earlier.filters
        if one.filter not in filters
        and (one.shard, band_of(one.matches, one.live_rows, filtered=True)) not in bands
    ]
    walks = {name: walk for name, walk in earlier.walks.items() if name in segment_ids}
    return replace(
        present,
        bands=(
            *present.bands,
            *(one for one in earlier.bands if (one.shard, one.band) not in bands),
        ),
        segments=(*present.segments, *kept),
        filters=(*present.filters, *rare)[:FILTERS_REPORTED_MAX],
        walks={**walks, **present.walks},
        own=(*present.own, *(one for one in earlier.own if one.objective not in objectives))[
            :OWN_OBJECTIVES_MAX
        ],
    )


def without_conclusions(one: SegmentRecall) -> SegmentRecall:
    """Return the recall of a segment without what followed from it for an earlier objective."""
    return replace(one, rebuild=False, stuck=False, rung=Rung.GRAPH, below=False, answered=None)


def before_change(result: ShardResult, change: Change) -> ShardResult:
    """Return `result` after a change of the queries: its estimates of them are too old."""

    def ended(estimate: RecallEstimate) -> RecallEstimate:
        until_s = min(estimate.valid_until_s or math.inf, change.noticed_at_s)
        return replace(estimate, valid_until_s=until_s)

    if change.own:
        own = tuple(replace(one, estimate=ended(one.estimate)) for one in result.own)
        return replace(result, own=own)
    return replace(
        result,
        bands=tuple(
            replace(one, estimate=ended(one.estimate)) if one.band is change.band else one
            for one in result.bands
        ),
        segments=tuple(
            replace(one, estimate=ended(one.estimate)) if one.band is change.band else one
            for one in result.segments
        ),
    )


def with_seen(
    bands: Iterable[ShardBandRecall],
    seen: Mapping[tuple[int, SelectivityBand], int],
    *,
    k: int,
    recent: Mapping[tuple[int, SelectivityBand], int] | None = None,
) -> tuple[ShardBandRecall, ...]:
    """Return `bands` with the counts of now, and those that were searched but not measured yet.

    Measuring waits for its interval; a count must not, or it would deny searches just made.
    `recent` are the queries of the last window.
    """
    found = {(one.shard, one.band): one for one in bands}
    for slot, queries in seen.items():
        known = found.get(slot)
        found[slot] = (
            ShardBandRecall(*slot, _unmeasured(k), math.nan, queries)
            if known is None
            else replace(known, seen=queries)
        )
    for slot, queries in (recent or {}).items():
        if slot in found:
            found[slot] = replace(found[slot], recent=queries)
    return tuple(one for _, one in sorted(found.items()))


def _unmeasured(k: int) -> RecallEstimate:
    return RecallEstimate(k, recall=0.0, low=0.0, high=1.0, queries=0, measured_at_s=0.0, plans={})


def filter_recalls(shard: int, found: Iterable[GroupFinding]) -> tuple[FilterRecall, ...]:
    """Return the recall under each sampled filter, fewest matches first."""
    together: dict[bytes, list[GroupFinding]] = defaultdict(list)
    for finding in found:
        if finding.group.filter is not None and len(finding.recalls):
            together[finding.group.key].append(finding)
    recalls = [_of_filter(shard, findings) for findings in together.values()]
    recalls.sort(key=lambda one: (one.matches, one.recall))
    return tuple(recalls[:FILTERS_REPORTED_MAX])


def segment_walks(found: Iterable[GroupFinding], *, k: int) -> dict[str, float]:
    """Return the mean walk cost by segment id, of queries with at most `k` neighbours.

    Segments with fewer than `WALKS_MIN` such queries are left out.
    """
    works: dict[str, list[Recalls]] = defaultdict(list)
    for finding in found:
        for part in finding.segments:
            if finding.group.k <= k:
                works[part.segment_id].append(part.work)
    together = {segment_id: np.concatenate(parts) for segment_id, parts in works.items()}
    return {
        segment_id: float(work.mean())
        for segment_id, work in together.items()
        if len(work) >= WALKS_MIN
    }


def measured_segments(result: ShardResult) -> dict[str, MeasuredSegment]:
    """Return, by segment id, recall and ef of the band of lowest recall.

    `rebuild` and `stuck` are true if they are of any band.
    """
    measured: dict[str, MeasuredSegment] = {}
    for one in result.segments:
        before = measured.get(one.segment_id)
        present = MeasuredSegment(one.estimate.recall, one.ef, one.rebuild, one.stuck)
        if before is not None:
            worst = min(before, present, key=lambda each: each.recall)
            present = MeasuredSegment(
                worst.recall,
                worst.ef,
                before.rebuild or present.rebuild,
                before.stuck or present.stuck,
            )
        measured[one.segment_id] = present
    return {
        segment_id: replace(segment, visited=result.walks.get(segment_id, 0.0))
        for segment_id, segment in measured.items()
    }


def _of_filter(shard: int, findings: Sequence[GroupFinding]) -> FilterRecall:
    latest = findings[-1]
    assert latest.group.filter is not None
    queries = sum(len(one.recalls) for one in findings)
    return FilterRecall(
        shard=shard,
        filter=latest.group.filter,
        matches=latest.matches,
        live_rows=latest.live_rows,
        recall=sum(float(one.recalls.sum()) for one in findings) / queries,
        queries=queries,
        plans=dict(_plans(findings)),
    )


def _planned_and_served(
    findings: Sequence[GroupFinding], moment: Moment, tail: TailObjective | None = None
) -> tuple[RecallEstimate | None, RecallEstimate | None]:
    """Return the estimates of answers as they would be given now, and as they were given."""
    groups, plans = [one.group for one in findings], _plans(findings)
    return (
        _estimate(groups, [one.recalls for one in findings], plans, moment, tail),
        _estimate(groups, [one.served for one in findings], Counter(), moment),
    )


def _estimate(
    groups: Sequence[QueryGroup],
    recalls: Sequence[Recalls],
    plans: Counter[str],
    moment: Moment,
    tail: TailObjective | None = None,
) -> RecallEstimate | None:
    """Return the estimate from the `recalls` of `groups`, with the window that it stands on."""
    estimate = estimate_of(
        recalls, [group.k for group in groups], plans, measured_at_s=moment.measured_at_s
    )
    if estimate is None:
        return None
    times = [one.sampled_at_s for group in groups for one in group.samples]
    return replace(
        estimate,
        window_begin_s=min(times),
        window_end_s=max(times),
        valid_until_s=max(times) + moment.valid_s,
        distinct=min(estimate.queries, sum(len(group.queries) for group in groups)),
        tail=None if tail is None else tail_estimate(_by_query(groups, recalls), tail),
    )


def _by_query(
    groups: Sequence[QueryGroup], recalls: Sequence[Recalls]
) -> list[tuple[Recalls, npt.NDArray[np.int64]]]:
    """Return the recalls with the number of the query of each.

    A group has the recall of all its samples, or of none if no row matches its filter.
    """
    return [
        (part, group.places)
        for group, part in zip(groups, recalls, strict=True)
        if len(part) == len(group.places)
    ]


def _plans(findings: Iterable[GroupFinding]) -> Counter[str]:
    """Return how often each plan searched a segment for a query."""
    plans: Counter[str] = Counter()
    for finding in findings:
        for part in finding.segments:
            plan, recalls = part.used
            plans[plan.value] += len(recalls)
    return plans
