"""Summarises the findings of one measurement by band, segment and filter. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from annheal.model.measures.recall import (
    FILTERS_REPORTED_MAX,
    FilterRecall,
    RecallEstimate,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
)
from annheal.shard_node.owner.shard_state import MeasuredSegment
from annheal.shard_node.recall.measure import GroupFinding, Recalls, SegmentFinding, estimate_of

WALKS_MIN = 8
"""Queries whose walk cost must have been measured before that of a segment is reported."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The result of a shard's latest measurement; `objective` and `k` are those it was made for.

    `objective` is 0 where it is not known.
    """

    bands: tuple[ShardBandRecall, ...] = ()
    segments: tuple[SegmentRecall, ...] = ()
    filters: tuple[FilterRecall, ...] = ()
    walks: Mapping[str, float] = field(default_factory=dict)
    """Mean walk cost of queries without a filter, by segment id."""
    objective: float = 0.0
    k: int = 0


def segment_estimates(
    found: Iterable[GroupFinding], *, measured_at_s: float
) -> dict[tuple[str, SelectivityBand], RecallEstimate]:
    """Return the estimate of each (segment id, band) that was searched."""
    slices: dict[tuple[str, SelectivityBand], list[tuple[int, SegmentFinding]]] = defaultdict(list)
    for finding in found:
        for part in finding.segments:
            slices[part.segment_id, part.band].append((finding.group.k, part))
    estimates: dict[tuple[str, SelectivityBand], RecallEstimate] = {}
    for slot, parts in sorted(slices.items()):
        plans: Counter[str] = Counter()
        for _, part in parts:
            plans[part.plan.value] += len(part.recalls)
        estimate = estimate_of(
            [part.recalls for _, part in parts],
            [k for k, _ in parts],
            plans,
            measured_at_s=measured_at_s,
        )
        if estimate is not None:
            estimates[slot] = estimate
    return estimates


def band_recalls(
    shard: int,
    found: Iterable[GroupFinding],
    *,
    seen: dict[SelectivityBand, int],
    measured_at_s: float,
) -> tuple[ShardBandRecall, ...]:
    """Return the recall of the shard's answers in each band that has queries."""
    bands: dict[SelectivityBand, list[GroupFinding]] = defaultdict(list)
    for finding in found:
        bands[finding.band].append(finding)
    recalls: list[ShardBandRecall] = []
    for band, findings in sorted(bands.items()):
        estimate = estimate_of(
            [one.recalls for one in findings],
            [one.group.k for one in findings],
            _plans(findings),
            measured_at_s=measured_at_s,
        )
        if estimate is not None:
            same = sum(one.same for one in findings)
            repeated = sum(one.repeated for one in findings)
            recalls.append(
                ShardBandRecall(shard, band, estimate, same / repeated, seen.get(band, 0))
            )
    return tuple(recalls)


def with_seen(
    bands: Iterable[ShardBandRecall], seen: Mapping[tuple[int, SelectivityBand], int], *, k: int
) -> tuple[ShardBandRecall, ...]:
    """Return `bands` with the counts of now, and those that were searched but not measured yet.

    Measuring waits for its interval; a count must not, or it would deny searches just made.
    """
    found = {(one.shard, one.band): one for one in bands}
    for slot, queries in seen.items():
        known = found.get(slot)
        found[slot] = (
            ShardBandRecall(*slot, _unmeasured(k), math.nan, queries)
            if known is None
            else replace(known, seen=queries)
        )
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


def _plans(findings: Iterable[GroupFinding]) -> Counter[str]:
    """Return how often each plan searched a segment for a query."""
    plans: Counter[str] = Counter()
    for finding in findings:
        for part in finding.segments:
            plans[part.plan.value] += len(part.recalls)
    return plans
