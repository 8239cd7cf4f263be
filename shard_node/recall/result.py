"""Summarises the findings of one measurement by band, segment and filter. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

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
    TagRecall,
    band_of,
)
from annheal.model.measures.recall_tags import TAGS_MAX
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.measures.shard_queries import Numbers, ShardQueries
from annheal.recall.estimating import arrivals_of, recall_estimate, tail_estimate
from annheal.shard_node.owner.shard_state import MeasuredSegment
from annheal.shard_node.recall.measuring.answer_parts import Moment
from annheal.shard_node.recall.measuring.measure import (
    GroupFinding,
    QueryGroup,
    Recalls,
    SegmentFinding,
)
from annheal.shard_node.recall.sampling.sampled_query import Change
from annheal.shard_node.search.planner import PlanKind

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
    tags: tuple[TagRecall, ...] = ()


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


def tag_recalls(
    shard: int, found: Iterable[GroupFinding], *, moment: Moment, tail: TailObjective | None = None
) -> tuple[TagRecall, ...]:
    """Return the recall of the queries of each tag that was measured; `tail` as above."""
    by_tag: dict[str, list[GroupFinding]] = defaultdict(list)
    for finding in found:
        if finding.group.tag:
            by_tag[finding.group.tag].append(finding)
    recalls: list[TagRecall] = []
    for tag, findings in sorted(by_tag.items()):
        estimate, served = _planned_and_served(findings, moment, tail)
        if estimate is not None:
            recalls.append(TagRecall(shard, tag, estimate, served))
    return tuple(recalls)


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
    tags = {one.tag for one in present.tags}
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
        # One more than named ones: all others together.
        tags=(*present.tags, *(one for one in earlier.tags if one.tag not in tags))[: TAGS_MAX + 1],
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
        tags=tuple(replace(one, estimate=ended(one.estimate)) for one in result.tags),
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


def with_traffic(
    tags: Iterable[TagRecall],
    traffic: Mapping[str, tuple[int, int]],
    *,
    shards: Iterable[int],
    k: int,
) -> tuple[TagRecall, ...]:
    """Return `tags` with the counts of now, and those that have no estimate yet, of all `shards`.

    `traffic` has the live queries of each tag, and those of about the last window. A tag without
    any has no place any more, and is left out.
    """
    found = {(one.shard, one.tag): one for one in tags if one.tag in traffic}
    for tag, (seen, recent) in traffic.items():
        for shard in shards:
            known = found.get((shard, tag), TagRecall(shard, tag, _unmeasured(k)))
            found[shard, tag] = replace(known, seen=seen, recent=recent)
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
    """Return the estimate from the `recalls` of `groups`, with the window that it stands on.

    The recalls of a group are those of all its samples, NaN where one is not known, or none if no
    row matches its filter. None if there are none at all.
    """
    parts: list[Recalls] = []
    queries: list[Numbers] = []
    asked_at_s: list[npt.NDArray[np.float64]] = []
    asked: Counter[int] = Counter()
    for group, part in zip(groups, recalls, strict=True):
        if len(part):
            known = ~np.isnan(part)
            parts.append(part[known])
            queries.append(group.identities[group.places[known]])
            moments = np.array([one.sampled_at_s for one in group.samples])
            asked_at_s.append(moments[known])
            asked[group.k] += len(parts[-1])
    together = np.concatenate(parts) if parts else np.empty(0)
    if not len(together):
        return None
    same = np.concatenate(queries)
    different, places = np.unique(same, return_inverse=True)
    arrivals = arrivals_of(same, np.concatenate(asked_at_s))
    times = [one.sampled_at_s for group in groups for one in group.samples]
    return replace(
        recall_estimate(
            together, asked, plans, measured_at_s=moment.measured_at_s, arrivals=arrivals
        ),
        window_begin_s=min(times),
        window_end_s=max(times),
        valid_until_s=max(times) + moment.valid_s,
        distinct=len(different),
        tail=None if tail is None else tail_estimate(together, places, tail),
    )


def _plans(findings: Iterable[GroupFinding]) -> Counter[str]:
    """Return how often each plan searched a segment for a query."""
    plans: Counter[str] = Counter()
    for finding in findings:
        for part in finding.segments:
            plan, recalls = part.used
            plans[plan.value] += len(recalls)
    return plans
