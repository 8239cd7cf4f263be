"""Joins the recall that nodes measured on live queries into a summary of each collection.

What users get is an answer over all shards. With several shards its recall is measured with queries
that all of them measured (`answers.py`): a shard's recall of its own best k is another figure.

There are two ways to join estimates, for dependent and for independent parts. Let part i have the
mean r_i, the interval [l_i, h_i], n_i queries and the weight w_i, where the weights add up to 1.
Always r = sum(w_i r_i).

- Shards, and segments, of one band answer the same queries, and a hard query is hard everywhere.
  Their errors may be correlated to any degree, so the bounds are averaged like the means:
  l = sum(w_i l_i), h = sum(w_i h_i), n = max(n_i). Such an interval is never too narrow. A shard
  that was searched but not measured widens it by its weight. w_i is
  proportional to the queries of shard i in this band in the last window, as one filter may be of
  different bands in two shards; for segments, and where no shard has any, to n_i.
- Bands hold different queries, so their errors are independent: they are strata of the traffic and
  joined as such (`annheal.recall.interval.combine_strata`), n = sum(n_i). w_i is proportional to
  the live queries *seen* in the band, not to those sampled, because every band has a reservoir of
  its own and rare bands are over-represented in it. Queries of the last window count; only where
  no shard has any, those since the start do. A band that was searched but not measured widens the
  interval by its weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from annheal.coordinator.recall.answers import AnswerRecall
from annheal.coordinator.recall.judge import (
    COVERED_SHARE_MIN,
    MET,
    Judge,
    raised_by_band,
    verdict_on_answers,
)
from annheal.coordinator.recall.tail import join_dependent_tails, join_independent_tails
from annheal.model.collection import Collection
from annheal.model.measures.latency import LatencyTrend
from annheal.model.measures.recall import (
    FILTERS_REPORTED_MAX,
    RECALL_UNKNOWN,
    CollectionRecall,
    FilterRecall,
    OwnSettingRecall,
    RecallEstimate,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
    TagRecall,
)
from annheal.model.measures.recall_summary import (
    ALL_SHARDS,
    OWN_EF,
    MergedRecall,
    RecallSlice,
    RecallSummary,
    RecallVerdict,
    verdict_of,
)
from annheal.model.measures.recall_tags import OTHER_TAGS, TAGS_MAX
from annheal.model.measures.recall_tail import TailEstimate
from annheal.recall.interval import Interval, Stratum, combine_strata

_UNDECIDED = (RecallVerdict.UNMEASURED, RecallVerdict.UNKNOWN)
Weighted = tuple[RecallEstimate | None, float]
"""An estimate, None if nothing was measured, and its weight; the weights need not add up to 1."""

PartT = TypeVar("PartT")
KeyT = TypeVar("KeyT", bound=Hashable)


def summarise(
    collection: Collection,
    reports: Sequence[CollectionRecall],
    *,
    latency: Mapping[str, LatencyTrend] | None = None,
    errors: Mapping[str, str] | None = None,
    now_s: float = 0.0,
) -> RecallSummary:
    """Return the summary of `collection` from all nodes' reports; each shard is in one of them.

    An estimate that is too old at `now_s`, seconds since the epoch, gets the verdict `unknown`; 0
    leaves ages out of account.
    """
    shards = [one for report in reports for one in report.shards]
    segments = [one for report in reports for one in report.segments]
    settings = collection.settings
    raised_at_s = raised_by_band(segments)
    judge = Judge(settings.recall_objective, now_s, settings.tail_objective, raised_at_s)
    traffic = traffic_by_band(shards)
    answers = AnswerRecall.of(reports, shard_count=collection.shard_count, tail=judge.tail)
    return RecallSummary(
        collection=collection.name,
        collection_id=collection.id,
        recall_objective=judge.objective,
        sampled_share=max((report.sampled_share for report in reports), default=0.0),
        overall=_overall(shards, judge, answers),
        bands=_bands(shards, judge, answers),
        shards=tuple(
            _of_shard(shard, parts, judge)
            for shard, parts in sorted(_grouped(shards, lambda one: one.shard).items())
        ),
        tiers=_of_segments(segments, lambda one: one.tier, traffic, judge),
        models=_of_segments(segments, lambda one: one.model, traffic, judge),
        segments=tuple(
            sorted(segments, key=lambda one: (one.shard, one.segment_id, _rank(one.band)))
        ),
        filters=_join_filters([one for report in reports for one in report.filters], answers),
        latency=dict(latency or {}),
        own=_own(
            (one for report in reports for one in report.own),
            answers,
            now_s=now_s,
            raised=judge.are_raised(traffic),
        ),
        tail_objective=judge.tail,
        coverage=tuple(one for report in reports for one in report.coverage),
        errors=dict(errors or {}),
        merged=None
        if answers is None
        else MergedRecall(
            complete=int(np.count_nonzero(answers.queries.in_band)),
            incomplete=answers.queries.incomplete,
            own_top_k=_overall(shards, judge, None),
        ),
        changed_at_s=max((report.changed_at_s for report in reports), default=0.0),
        tags=_of_tags(
            [one for report in reports for one in report.tags],
            answers,
            judge,
            raised=judge.are_raised(traffic),
        ),
    )


def seen_by_band(shards: Iterable[ShardBandRecall]) -> dict[SelectivityBand, int]:
    """Return the live queries of each band: every shard counts each of them, so the maximum."""
    seen: dict[SelectivityBand, int] = {}
    for one in shards:
        seen[one.band] = max(seen.get(one.band, 0), one.seen)
    return seen


def traffic_by_band(shards: Sequence[ShardBandRecall]) -> dict[SelectivityBand, float]:
    """Return the weights of the bands: searches of a shard in the last window, or all of them.

    A query counts once for each shard, in the band that its filter has there.
    """
    counts: dict[SelectivityBand, float] = {}
    for one, searches in zip(shards, _traffic(shards), strict=True):
        counts[one.band] = counts.get(one.band, 0.0) + searches
    return counts


def recent_by_band(shards: Iterable[ShardBandRecall]) -> dict[SelectivityBand, int]:
    """Return the live queries of the last window of each band, as `seen_by_band` does."""
    recent: dict[SelectivityBand, int] = {}
    for one in shards:
        recent[one.band] = max(recent.get(one.band, 0), one.recent)
    return recent


def _traffic(parts: Sequence[ShardBandRecall]) -> list[int]:
    """Return the queries of each part in the last window; of all time where it has none."""
    recent = [one.recent for one in parts]
    return recent if any(recent) else [one.seen for one in parts]


def join_dependent(
    parts: Iterable[RecallEstimate], traffic: Iterable[float] = ()
) -> RecallEstimate | None:
    """Return one estimate from parts that measured the same queries; None without a part.

    `traffic` has the weight of each part. Without it, and where it is 0 for all measured parts,
    weights are numbers of queries.
    """
    every = list(parts)
    given = list(traffic) or [0.0] * len(every)
    known = [(part, weight) for part, weight in zip(every, given, strict=True) if part.queries]
    if not any(weight for _, weight in known):
        known = [(part, float(part.queries)) for part, _ in known]
    known = [(part, weight) for part, weight in known if weight]
    if not known:
        return None
    total = math.fsum(weight for _, weight in known)
    measured = [part for part, _ in known]
    weights = [weight / total for _, weight in known]

    def mean(value: Callable[[RecallEstimate], float]) -> float:
        return math.fsum(w * value(part) for w, part in zip(weights, measured, strict=True))

    return _estimate(
        measured,
        recall=mean(lambda one: one.recall),
        low=mean(lambda one: one.low),
        high=mean(lambda one: one.high),
        queries=max(part.queries for part in measured),
        distinct=max(part.distinct for part in measured),
        weights=weights,
        tail=join_dependent_tails(measured, weights),
    )


def join_independent(parts: Iterable[Weighted]) -> RecallEstimate | None:
    """Return one estimate from weighted parts with different queries; None if none is measured.

    Parts of weight 0 are left out. If the weights of all measured parts are 0, each has its number
    of queries as weight, and parts that are not measured are left out.
    """
    every = list(parts)
    known = [(part, weight) for part, weight in every if part is not None and part.queries]
    unknown = math.fsum(weight for part, weight in every if part is None or not part.queries)
    measured = [(part, weight) for part, weight in known if weight]
    if not measured:
        measured, unknown = [(part, float(part.queries)) for part, _ in known], 0.0
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
        distinct=sum(part.evidence for part, _ in measured),
        weights=[weight / total for _, weight in measured],
        tail=join_independent_tails(
            [part for part, _ in measured], [weight for _, weight in measured], unknown=unknown
        ),
    )


def _estimate(
    parts: Sequence[RecallEstimate],
    *,
    recall: float,
    low: float,
    high: float,
    queries: int,
    distinct: int,
    weights: Sequence[float],
    tail: TailEstimate | None,
) -> RecallEstimate:
    ages = [part.valid_until_s for part in parts if part.valid_until_s]
    begins = [part.window_begin_s for part in parts if part.window_begin_s]
    return RecallEstimate(
        k=max(part.k for part in parts),
        recall=recall,
        low=low,
        high=high,
        queries=queries,
        measured_at_s=min(part.measured_at_s for part in parts),
        plans=_plans(part.plans for part in parts),
        shares=_join_shares(parts, weights),
        window_begin_s=min(begins, default=0.0),
        window_end_s=max(part.window_end_s for part in parts),
        valid_until_s=min(ages, default=0.0),
        distinct=distinct,
        tail=tail,
    )


def _join_shares(parts: Sequence[RecallEstimate], weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weighted distribution of per-query recall; empty where a part has none."""
    if not all(part.shares for part in parts):
        return ()
    return tuple(
        math.fsum(weight * share for weight, share in zip(weights, column, strict=True))
        for column in zip(*(part.shares for part in parts), strict=True)
    )


def _bands(
    shards: Sequence[ShardBandRecall], judge: Judge, answers: AnswerRecall | None
) -> tuple[RecallSlice, ...]:
    grouped = _by_band(shards, answers)
    seen, recent = seen_by_band(shards), recent_by_band(shards)
    return tuple(
        _slice(
            band.value,
            _of_band(band, grouped[band], answers),
            judge,
            stability=_stability(grouped[band]),
            seen=seen.get(band, 0),
            served=_served_of_band(band, grouped[band], answers),
            recent=recent.get(band, 0),
            shards=_joined(grouped[band]),
            raised=judge.is_raised(band),
        )
        for band in SelectivityBand
        if band in grouped
    )


def _overall(
    shards: Sequence[ShardBandRecall], judge: Judge, answers: AnswerRecall | None
) -> RecallSlice:
    traffic = traffic_by_band(shards)
    bands = _by_band(shards, answers)
    parts = [
        (_of_band(band, held, answers), traffic.get(band, 0.0)) for band, held in bands.items()
    ]
    served = [
        (joined, traffic.get(band, 0.0))
        for band, held in bands.items()
        if (joined := _served_of_band(band, held, answers)) is not None
    ]
    found = _slice(
        "",
        join_independent(parts),
        judge,
        stability=_stability(shards),
        seen=sum(seen_by_band(shards).values()),
        served=join_independent(served),
        recent=sum(recent_by_band(shards).values()),
        shards=_joined(shards),
        raised=judge.are_raised(traffic),
    )
    judged = sum(weight for part, weight in parts if judge.verdict(part) not in _UNDECIDED)
    is_covered = judged >= COVERED_SHARE_MIN * sum(traffic.values())
    if is_covered:
        return found
    verdict = RecallVerdict.UNKNOWN if found.verdict in MET else found.verdict
    tail = RecallVerdict.UNKNOWN if found.tail_verdict in MET else found.tail_verdict
    return replace(found, verdict=verdict, tail_verdict=tail)


def _by_band(
    shards: Sequence[ShardBandRecall], answers: AnswerRecall | None
) -> dict[SelectivityBand, list[ShardBandRecall]]:
    """Return the shards' parts of each band; of one that only whole answers have, none."""
    grouped = _grouped(shards, lambda one: one.band)
    if answers is not None:
        for band in answers.bands:
            grouped.setdefault(band, [])
    return grouped


def _of_band(
    band: SelectivityBand, parts: Sequence[ShardBandRecall], answers: AnswerRecall | None
) -> RecallEstimate | None:
    """Return the recall of the answers of one band."""
    if answers is None:
        return _joined(parts)
    return answers.band(band, _plans(one.estimate.plans for one in parts))


def _served_of_band(
    band: SelectivityBand, parts: Sequence[ShardBandRecall], answers: AnswerRecall | None
) -> RecallEstimate | None:
    return _joined_served(parts) if answers is None else answers.served_band(band)


def _joined(parts: Sequence[ShardBandRecall]) -> RecallEstimate | None:
    """Return the recall of each shard's own best k, weighted by the traffic of the window.

    Queries of a shard that was searched but not measured may have found nothing or everything.
    """
    traffic = _traffic(parts)
    joined = join_dependent((one.estimate for one in parts), traffic)
    unknown = sum(w for one, w in zip(parts, traffic, strict=True) if not one.estimate.queries)
    if joined is None or not unknown:
        return joined
    known = 1.0 - unknown / sum(traffic)
    high = 1.0 - known * (1.0 - joined.high)
    return replace(joined, low=known * joined.low, high=high, tail=None)


def _joined_served(
    parts: Iterable[ShardBandRecall | OwnSettingRecall | TagRecall],
) -> RecallEstimate | None:
    """Return the recall of the answers that were given; None where no part knows it."""
    known = [(one, one.served) for one in parts if one.served is not None]
    shards = [one for one, _ in known if isinstance(one, ShardBandRecall)]
    return join_dependent((served for _, served in known), _traffic(shards))


def _own(
    parts: Iterable[OwnSettingRecall],
    answers: AnswerRecall | None,
    *,
    now_s: float,
    raised: bool,
) -> tuple[RecallSlice, ...]:
    """Return a slice for each objective that clients set, and one for those that set an ef."""
    slices: list[RecallSlice] = []
    for objective, held in _grouped(list(parts), lambda one: one.objective).items():
        if answers is None:
            estimate = join_dependent(one.estimate for one in held)
            served = _joined_served(held)
        else:
            estimate = answers.own(objective, _plans(one.estimate.plans for one in held))
            served = answers.served_own(objective)
        verdict = RecallVerdict.NOT_JUDGED
        if objective is not None:
            verdict = verdict_of(estimate, objective, now_s=now_s)
            verdict = verdict_on_answers(verdict, served, objective, raised=raised)
        name = OWN_EF if objective is None else f"{objective:g}"
        slices.append(RecallSlice(name, verdict, estimate, served=served))
    return tuple(sorted(slices, key=lambda one: one.name))


def _of_tags(
    parts: Sequence[TagRecall], answers: AnswerRecall | None, judge: Judge, *, raised: bool
) -> tuple[RecallSlice, ...]:
    """Return a slice for each tag, the most frequent first; at most `TAGS_MAX` named ones."""
    slices: list[RecallSlice] = []
    for tag, held in _grouped(parts, lambda one: one.tag).items():
        of_shards = join_dependent(one.estimate for one in held)
        slices.append(
            _slice(
                tag,
                of_shards if answers is None else answers.tag(tag),
                judge,
                seen=max(one.seen for one in held),
                served=_joined_served(held) if answers is None else answers.served_tag(tag),
                recent=max(one.recent for one in held),
                shards=of_shards,
                raised=raised,
            )
        )
    slices.sort(key=lambda one: (-one.recent, -one.seen, one.name))
    named = [one for one in slices if one.name != OTHER_TAGS][:TAGS_MAX]
    return (*named, *(one for one in slices if one.name == OTHER_TAGS))


def _of_shard(shard: int, parts: Sequence[ShardBandRecall], judge: Judge) -> RecallSlice:
    traffic = traffic_by_band(parts)
    return _slice(
        str(shard),
        join_independent((one.estimate, traffic[one.band]) for one in parts),
        judge,
        stability=_stability(parts),
        seen=sum(one.seen for one in parts),
        recent=sum(one.recent for one in parts),
    )


def _of_segments(
    segments: Sequence[SegmentRecall],
    name: Callable[[SegmentRecall], str],
    traffic: Mapping[SelectivityBand, float],
    judge: Judge,
) -> tuple[RecallSlice, ...]:
    """Join the segments with the same `name`: first those of one band, then the bands."""
    found = []
    for key, held in sorted(_grouped(segments, name).items()):
        parts = [
            (join_dependent(one.answered or one.estimate for one in same), traffic.get(band, 0.0))
            for band, same in _grouped(held, lambda one: one.band).items()
        ]
        found.append(_slice(key, join_independent(parts), judge))
    return tuple(found)


def _join_filters(
    parts: Sequence[FilterRecall], answers: AnswerRecall | None
) -> tuple[FilterRecall, ...]:
    """Join each filter over the shards; the smallest share of matches comes first."""
    joined = []
    for tree, held in _grouped(parts, lambda one: one.filter).items():
        recall, queries = _mean_of(held) if answers is None else answers.filter(tree)
        joined.append(
            FilterRecall(
                shard=ALL_SHARDS,
                filter=tree,
                matches=sum(one.matches for one in held),
                live_rows=sum(one.live_rows for one in held),
                recall=recall,
                queries=queries,
                plans=_plans(one.plans for one in held),
            )
        )
    joined.sort(key=lambda one: (one.matches / max(1, one.live_rows), -one.queries))
    return tuple(joined[:FILTERS_REPORTED_MAX])


def _mean_of(parts: Sequence[FilterRecall]) -> tuple[float, int]:
    """Return the mean recall under one filter, and the queries."""
    measured = [one for one in parts if one.recall != RECALL_UNKNOWN and one.queries]
    total = sum(one.queries for one in measured)
    if not total:
        return RECALL_UNKNOWN, max(one.queries for one in parts)
    recall = math.fsum(one.recall * one.queries for one in measured) / total
    return recall, max(one.queries for one in parts)


def _slice(
    name: str,
    estimate: RecallEstimate | None,
    judge: Judge,
    *,
    stability: float | None = None,
    seen: int = 0,
    served: RecallEstimate | None = None,
    recent: int = 0,
    shards: RecallEstimate | None = None,
    raised: bool = False,
) -> RecallSlice:
    """Return a slice; where the `shards` measured other queries only, its recall is unknown."""
    verdict = judge.verdict(estimate)
    verdict = verdict_on_answers(verdict, served, judge.objective, raised=raised)
    if verdict is RecallVerdict.UNMEASURED and shards is not None:
        verdict = RecallVerdict.UNKNOWN
    return RecallSlice(
        name,
        verdict,
        estimate,
        stability,
        seen,
        served,
        recent,
        judge.tail_verdict(estimate, raised=raised),
    )


def _stability(parts: Sequence[ShardBandRecall]) -> float | None:
    known = [
        (one.stability, max(1, weight))
        for one, weight in zip(parts, _traffic(parts), strict=True)
        if not math.isnan(one.stability)
    ]
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
