"""Recall of live queries: as a node reports it, and joined for operators."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from annheal.errors import InvalidArgument
from annheal.model.limits import ANSWER_BYTES_MAX
from annheal.model.measures.recall import (
    RECALL_UNKNOWN,
    BandCoverage,
    CollectionRecall,
    FilterRecall,
    OwnSettingRecall,
    RecallEstimate,
    Rung,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
    TagRecall,
)
from annheal.model.measures.recall_audit import AuditVerdict, BandAudit
from annheal.model.measures.recall_summary import (
    ALL_SHARDS,
    MergedRecall,
    RecallSlice,
    RecallSummary,
    RecallVerdict,
)
from annheal.model.measures.recall_tail import TailEstimate, TailObjective
from annheal.model.measures.recall_worst import LiveQuery, ShownHit, WorstQuery, WorstReport
from annheal.model.measures.shard_queries import ShardQueries
from annheal.v1 import admin_pb2, internal_pb2
from annheal.wire.enums import AUDIT_VERDICT, BAND, RECALL_RUNG, RECALL_VERDICT, TIER
from annheal.wire.filters import decode_filter, encode_filter
from annheal.wire.latency import decode_trend, encode_trend
from annheal.wire.timestamps import decode_seconds, encode_seconds

_FLOAT32 = np.dtype("<f4")
_QUERY_COLUMNS = (
    "same", "ks", "filters", "own", "objectives", "matches", "live_rows", "sampled_at_s", "depths",
    "more", "served", "cuts", "gone", "in_band", "tags",
)  # fmt: skip


def encode_recall_reports(
    reports: Iterable[CollectionRecall],
) -> internal_pb2.ReportRecallResponse:
    """Return what one node measured."""
    return internal_pb2.ReportRecallResponse(
        collections=[
            internal_pb2.CollectionRecall(
                collection_id=report.collection_id,
                recall_objective=report.recall_objective,
                sampled_share=report.sampled_share,
                shards=[_encode_shard_band(one) for one in report.shards],
                segments=[_encode_segment(one) for one in report.segments],
                filters=[_encode_filter_recall(one) for one in report.filters],
                latency=None if report.latency is None else encode_trend(report.latency),
                own=[_encode_own(one) for one in report.own],
                coverage=[_encode_coverage(one) for one in report.coverage],
                queries=[_encode_queries(one) for one in report.queries],
                changed_at=encode_seconds(report.changed_at_s),
                tags=[_encode_tag(one) for one in report.tags],
            )
            for report in reports
        ]
    )


def decode_recall_reports(
    message: internal_pb2.ReportRecallResponse,
) -> tuple[CollectionRecall, ...]:
    """Return what one node measured; bands that this version does not know are left out.

    Raises `InvalidArgument` for columns of different lengths.
    """
    return tuple(
        CollectionRecall(
            collection_id=report.collection_id,
            recall_objective=report.recall_objective,
            sampled_share=report.sampled_share,
            shards=tuple(
                _decode_shard_band(one) for one in report.shards if BAND.decode_text(one.band)
            ),
            segments=_decode_segments(report.segments),
            filters=tuple(_decode_filter_recall(one) for one in report.filters),
            latency=decode_trend(report.latency) if report.HasField("latency") else None,
            own=tuple(_decode_own(one) for one in report.own),
            coverage=_decode_coverage(report.coverage),
            queries=tuple(_decode_queries(one) for one in report.queries),
            changed_at_s=decode_seconds(report.changed_at),
            tags=tuple(_decode_tag(one) for one in report.tags),
        )
        for report in message.collections
    )


def encode_recall_summary(summary: RecallSummary) -> admin_pb2.GetRecallResponse:
    """Return the joined view of a collection."""
    return admin_pb2.GetRecallResponse(
        collection=summary.collection,
        collection_id=summary.collection_id,
        recall_objective=summary.recall_objective,
        sampled_share=summary.sampled_share,
        overall=_encode_slice(summary.overall),
        bands=[_encode_slice(one) for one in summary.bands],
        shards=[_encode_slice(one) for one in summary.shards],
        tiers=[_encode_slice(one) for one in summary.tiers],
        models=[_encode_slice(one) for one in summary.models],
        segments=[_encode_segment(one) for one in summary.segments],
        filters=[_encode_filter_recall(one) for one in summary.filters],
        errors=summary.errors,
        latency={node: encode_trend(trend) for node, trend in summary.latency.items()},
        own=[_encode_slice(one) for one in summary.own],
        coverage=[_encode_coverage(one) for one in summary.coverage],
        recall_tail_objective=summary.tail_objective.recall if summary.tail_objective else 0.0,
        recall_objective_share=summary.tail_objective.share if summary.tail_objective else 0.0,
        merged=None if summary.merged is None else _encode_merged(summary.merged),
        changed_at=encode_seconds(summary.changed_at_s),
        tags=[_encode_slice(one) for one in summary.tags],
    )


def decode_recall_summary(message: admin_pb2.GetRecallResponse) -> RecallSummary:
    """Return the joined view of a collection."""
    return RecallSummary(
        collection=message.collection,
        collection_id=message.collection_id,
        recall_objective=message.recall_objective,
        sampled_share=message.sampled_share,
        overall=_decode_slice(message.overall),
        bands=tuple(_decode_slice(one) for one in message.bands),
        shards=tuple(_decode_slice(one) for one in message.shards),
        tiers=tuple(_decode_slice(one) for one in message.tiers),
        models=tuple(_decode_slice(one) for one in message.models),
        segments=_decode_segments(message.segments),
        filters=tuple(_decode_filter_recall(one) for one in message.filters),
        errors=dict(message.errors),
        latency={node: decode_trend(trend) for node, trend in message.latency.items()},
        own=tuple(_decode_slice(one) for one in message.own),
        coverage=_decode_coverage(message.coverage),
        tail_objective=(
            TailObjective(message.recall_tail_objective, message.recall_objective_share)
            if message.recall_tail_objective
            else None
        ),
        merged=_decode_merged(message.merged) if message.HasField("merged") else None,
        changed_at_s=decode_seconds(message.changed_at),
        tags=tuple(_decode_slice(one) for one in message.tags),
    )


def encode_live_queries(queries: Iterable[LiveQuery]) -> list[admin_pb2.LiveQuery]:
    """Return sampled queries, as many of the first as fit into an answer."""
    messages: list[admin_pb2.LiveQuery] = []
    room = ANSWER_BYTES_MAX
    for one in queries:
        message = _encode_live_query(one)
        room -= message.ByteSize()
        if room < 0:
            break
        messages.append(message)
    return messages


def decode_live_queries(messages: Iterable[admin_pb2.LiveQuery]) -> tuple[LiveQuery, ...]:
    """Return sampled queries; bands that this version does not know are left out."""
    return tuple(_decode_live_query(one) for one in messages if BAND.decode_text(one.band))


def encode_worst(report: WorstReport) -> admin_pb2.ListWorstQueriesResponse:
    """Return a list of the worst queries."""
    return admin_pb2.ListWorstQueriesResponse(
        queries=[
            admin_pb2.WorstQuery(
                query=_encode_live_query(one.query),
                recall=one.recall,
                returned=[admin_pb2.ShownHit(id=hit.id, score=hit.score) for hit in one.returned],
                missed=[admin_pb2.ShownHit(id=hit.id, score=hit.score) for hit in one.missed],
                missed_count=one.missed_count,
            )
            for one in report.queries
        ],
        sampled=report.sampled,
        reviewed=report.reviewed,
        errors=report.errors,
    )


def decode_worst(message: admin_pb2.ListWorstQueriesResponse, *, collection: str) -> WorstReport:
    """Return a list of the worst queries."""
    return WorstReport(
        collection,
        message.sampled,
        message.reviewed,
        tuple(
            WorstQuery(
                _decode_live_query(one.query),
                one.recall,
                tuple(ShownHit(hit.id, hit.score) for hit in one.returned),
                tuple(ShownHit(hit.id, hit.score) for hit in one.missed),
                one.missed_count,
            )
            for one in message.queries
            if BAND.decode_text(one.query.band)
        ),
        dict(message.errors),
    )


def _encode_live_query(one: LiveQuery) -> admin_pb2.LiveQuery:
    return admin_pb2.LiveQuery(
        vector=one.vector.astype("<f4").tobytes(),
        k=one.k,
        band=BAND.encode(one.band),
        asked_at=encode_seconds(one.asked_at_s),
        filter=None if one.filter is None else encode_filter(one.filter),
        recall_objective=one.objective,
        ef=one.ef,
        number=one.number,
    )


def _decode_live_query(message: admin_pb2.LiveQuery) -> LiveQuery:
    if len(message.vector) % 4:
        raise InvalidArgument.of("vector", f"{len(message.vector)} bytes are no float32 values")
    return LiveQuery(
        vector=np.frombuffer(message.vector, dtype="<f4").astype(np.float32),
        k=message.k,
        band=SelectivityBand(BAND.decode(message.band, field="band")),
        asked_at_s=decode_seconds(message.asked_at),
        filter=decode_filter(message.filter) if message.HasField("filter") else None,
        objective=message.recall_objective if message.HasField("recall_objective") else None,
        ef=message.ef if message.HasField("ef") else None,
        number=message.number if message.HasField("number") else None,
    )


def encode_audits(audits: Iterable[BandAudit]) -> list[admin_pb2.BandAudit]:
    """Return audits of estimates."""
    return [
        admin_pb2.BandAudit(
            shard=max(0, one.shard),  # of all shards the request says it
            band=BAND.encode(one.band),
            estimate=_encode_estimate(one.estimate),
            audited=_encode_optional(one.audited),
            later=one.later,
            verdict=AUDIT_VERDICT.encode(one.verdict),
            reason=one.reason,
        )
        for one in audits
    ]


def decode_audits(messages: Iterable[admin_pb2.BandAudit]) -> tuple[BandAudit, ...]:
    """Return audits of estimates; bands that this version does not know are left out."""
    return tuple(
        BandAudit(
            shard=message.shard,
            band=SelectivityBand(BAND.decode(message.band, field="band")),
            estimate=_decode_estimate(message.estimate),
            audited=_decode_estimate(message.audited) if message.HasField("audited") else None,
            later=message.later,
            verdict=AUDIT_VERDICT.decode_or(message.verdict, AuditVerdict.UNKNOWN),
            reason=message.reason,
        )
        for message in messages
        if BAND.decode_text(message.band)
    )


def _encode_coverage(one: BandCoverage) -> admin_pb2.BandCoverage:
    return admin_pb2.BandCoverage(
        shard=one.shard,
        band=BAND.encode(one.band),
        windows=one.windows,
        contained=one.contained,
        measured_at=encode_seconds(one.measured_at_s),
    )


def _decode_coverage(messages: Iterable[admin_pb2.BandCoverage]) -> tuple[BandCoverage, ...]:
    return tuple(
        BandCoverage(
            shard=message.shard,
            band=SelectivityBand(BAND.decode(message.band, field="band")),
            windows=message.windows,
            contained=message.contained,
            measured_at_s=decode_seconds(message.measured_at),
        )
        for message in messages
        if BAND.decode_text(message.band)
    )


def _encode_merged(one: MergedRecall) -> admin_pb2.MergedRecall:
    return admin_pb2.MergedRecall(
        complete=one.complete,
        incomplete=one.incomplete,
        own_top_k=_encode_slice(one.own_top_k),
    )


def _decode_merged(message: admin_pb2.MergedRecall) -> MergedRecall:
    return MergedRecall(message.complete, message.incomplete, _decode_slice(message.own_top_k))


def _encode_estimate(estimate: RecallEstimate) -> admin_pb2.RecallEstimate:
    return admin_pb2.RecallEstimate(
        k=estimate.k,
        recall=estimate.recall,
        low=estimate.low,
        high=estimate.high,
        queries=estimate.queries,
        measured_at=encode_seconds(estimate.measured_at_s),
        plans=estimate.plans,
        recall_shares=estimate.shares,
        window_begin=encode_seconds(estimate.window_begin_s),
        window_end=encode_seconds(estimate.window_end_s),
        valid_until=encode_seconds(estimate.valid_until_s),
        distinct=estimate.distinct,
        tail=None if estimate.tail is None else _encode_tail(estimate.tail),
    )


def _encode_tail(tail: TailEstimate) -> admin_pb2.TailEstimate:
    return admin_pb2.TailEstimate(
        recall=tail.objective.recall,
        objective=tail.objective.share,
        share=tail.share,
        low=tail.low,
        high=tail.high,
    )


def _decode_tail(message: admin_pb2.TailEstimate) -> TailEstimate:
    objective = TailObjective(message.recall, message.objective)
    return TailEstimate(objective, message.share, message.low, message.high)


def _encode_optional(estimate: RecallEstimate | None) -> admin_pb2.RecallEstimate | None:
    return None if estimate is None else _encode_estimate(estimate)


def _decode_estimate(message: admin_pb2.RecallEstimate) -> RecallEstimate:
    return RecallEstimate(
        k=message.k,
        recall=message.recall,
        low=message.low,
        high=message.high,
        queries=message.queries,
        measured_at_s=decode_seconds(message.measured_at),
        plans=dict(message.plans),
        shares=tuple(message.recall_shares),
        window_begin_s=decode_seconds(message.window_begin),
        window_end_s=decode_seconds(message.window_end),
        valid_until_s=decode_seconds(message.valid_until),
        distinct=message.distinct,
        tail=_decode_tail(message.tail) if message.HasField("tail") else None,
    )


def _encode_shard_band(one: ShardBandRecall) -> internal_pb2.ShardBandRecall:
    return internal_pb2.ShardBandRecall(
        shard=one.shard,
        band=BAND.encode(one.band),
        estimate=_encode_estimate(one.estimate),
        stability=None if math.isnan(one.stability) else one.stability,
        seen=one.seen,
        recent=one.recent,
        served=_encode_optional(one.served),
    )


def _decode_shard_band(message: internal_pb2.ShardBandRecall) -> ShardBandRecall:
    return ShardBandRecall(
        shard=message.shard,
        band=SelectivityBand(BAND.decode(message.band, field="band")),
        estimate=_decode_estimate(message.estimate),
        stability=message.stability if message.HasField("stability") else math.nan,
        seen=message.seen,
        recent=message.recent,
        served=_decode_estimate(message.served) if message.HasField("served") else None,
    )


def _encode_own(one: OwnSettingRecall) -> internal_pb2.OwnSettingRecall:
    return internal_pb2.OwnSettingRecall(
        shard=one.shard,
        objective=one.objective,
        estimate=_encode_estimate(one.estimate),
        served=_encode_optional(one.served),
    )


def _decode_own(message: internal_pb2.OwnSettingRecall) -> OwnSettingRecall:
    return OwnSettingRecall(
        shard=message.shard,
        objective=message.objective if message.HasField("objective") else None,
        estimate=_decode_estimate(message.estimate),
        served=_decode_estimate(message.served) if message.HasField("served") else None,
    )


def _encode_tag(one: TagRecall) -> internal_pb2.TagRecall:
    return internal_pb2.TagRecall(
        shard=one.shard,
        tag=one.tag,
        estimate=_encode_estimate(one.estimate),
        served=_encode_optional(one.served),
        seen=one.seen,
        recent=one.recent,
    )


def _decode_tag(message: internal_pb2.TagRecall) -> TagRecall:
    return TagRecall(
        shard=message.shard,
        tag=message.tag,
        estimate=_decode_estimate(message.estimate),
        served=_decode_estimate(message.served) if message.HasField("served") else None,
        seen=message.seen,
        recent=message.recent,
    )


def _encode_queries(one: ShardQueries) -> internal_pb2.ShardQueries:
    return internal_pb2.ShardQueries(
        shard=one.shard,
        measured_at=encode_seconds(one.measured_at_s),
        valid_s=one.valid_s,
        numbers=one.numbers.tolist(),
        same=one.same.tolist(),
        ks=one.ks.tolist(),
        filters=one.filters.tolist(),
        own=one.own.tolist(),
        objectives=one.objectives.tolist(),
        matches=one.matches.tolist(),
        live_rows=one.live_rows.tolist(),
        sampled_at_s=one.sampled_at_s.tolist(),
        depths=one.depths.tolist(),
        more=one.more.tolist(),
        scores=one.scores.astype(_FLOAT32, copy=False).tobytes(),
        marks=one.marks.tobytes(),
        served=one.served.tolist(),
        cuts=one.cuts.tolist(),
        gone=one.gone.tolist(),
        gone_scores=one.gone_scores.astype(_FLOAT32, copy=False).tobytes(),
        in_band=one.in_band.tolist(),
        tags=one.tags.tolist(),
    )


def _decode_queries(message: internal_pb2.ShardQueries) -> ShardQueries:
    count = len(message.numbers)
    found = ShardQueries(
        shard=message.shard,
        measured_at_s=decode_seconds(message.measured_at),
        valid_s=message.valid_s,
        numbers=np.array(message.numbers, dtype=np.uint64),
        same=np.array(message.same, dtype=np.uint64),
        ks=np.array(message.ks, dtype=np.int64),
        filters=np.array(message.filters, dtype=np.uint64),
        own=np.array(message.own, dtype=np.bool_),
        objectives=np.array(message.objectives, dtype=np.float64),
        matches=np.array(message.matches, dtype=np.int64),
        live_rows=np.array(message.live_rows, dtype=np.int64),
        sampled_at_s=np.array(message.sampled_at_s, dtype=np.float64),
        depths=np.array(message.depths, dtype=np.int64),
        more=np.array(message.more, dtype=np.bool_),
        scores=_floats(message.scores, field="queries.scores"),
        marks=np.frombuffer(message.marks, dtype=np.uint8),
        served=np.array(message.served, dtype=np.bool_),
        cuts=np.array(message.cuts, dtype=np.float32),
        gone=np.array(message.gone, dtype=np.int64),
        gone_scores=_floats(message.gone_scores, field="queries.gone_scores"),
        # A node that knows no tags says nothing of them.
        in_band=np.array(message.in_band or [True] * count, dtype=np.bool_),
        tags=np.array(message.tags or [0] * count, dtype=np.uint64),
    )
    for name in _QUERY_COLUMNS:
        if len(getattr(found, name)) != len(found.numbers):
            raise InvalidArgument.of(
                f"queries.{name}",
                f"has {len(getattr(found, name))} items for {len(found.numbers)} queries",
            )
    for name, counts in (("scores", "depths"), ("marks", "depths"), ("gone_scores", "gone")):
        expected = sum(getattr(found, counts).tolist())
        if len(getattr(found, name)) != expected:
            raise InvalidArgument.of(
                f"queries.{name}",
                f"has {len(getattr(found, name))} items; {counts} add up to {expected}",
            )
    return found


def _floats(packed: bytes, *, field: str) -> npt.NDArray[np.float32]:
    if len(packed) % _FLOAT32.itemsize:
        raise InvalidArgument.of(field, f"has {len(packed)} bytes, no whole number of floats")
    return np.frombuffer(packed, dtype=_FLOAT32)


def _encode_segment(one: SegmentRecall) -> admin_pb2.SegmentRecall:
    return admin_pb2.SegmentRecall(
        shard=one.shard,
        segment_id=one.segment_id,
        tier=TIER.encode(one.tier),
        model=one.model,
        band=BAND.encode(one.band),
        estimate=_encode_estimate(one.estimate),
        ef=one.ef,
        ef_limit=one.ef_limit,
        rebuild=one.rebuild,
        stuck=one.stuck,
        rung=RECALL_RUNG.encode(one.rung),
        below=one.below,
        answered=_encode_optional(one.answered),
        raised_at=encode_seconds(one.raised_at_s),
    )


def _decode_segments(messages: Iterable[admin_pb2.SegmentRecall]) -> tuple[SegmentRecall, ...]:
    return tuple(
        SegmentRecall(
            shard=message.shard,
            segment_id=message.segment_id,
            tier=TIER.decode_text(message.tier),
            model=message.model,
            band=SelectivityBand(BAND.decode(message.band, field="band")),
            estimate=_decode_estimate(message.estimate),
            ef=message.ef,
            ef_limit=message.ef_limit,
            rebuild=message.rebuild,
            stuck=message.stuck,
            rung=RECALL_RUNG.decode_or(message.rung, Rung.GRAPH),
            below=message.below,
            answered=_decode_estimate(message.answered) if message.HasField("answered") else None,
            raised_at_s=decode_seconds(message.raised_at),
        )
        for message in messages
        if BAND.decode_text(message.band)
    )


def _encode_filter_recall(one: FilterRecall) -> admin_pb2.FilterRecall:
    return admin_pb2.FilterRecall(
        shard=None if one.shard == ALL_SHARDS else one.shard,
        filter=encode_filter(one.filter),
        matches=one.matches,
        live_rows=one.live_rows,
        recall=None if one.recall == RECALL_UNKNOWN else one.recall,
        queries=one.queries,
        plans=one.plans,
    )


def _decode_filter_recall(message: admin_pb2.FilterRecall) -> FilterRecall:
    return FilterRecall(
        shard=message.shard if message.HasField("shard") else ALL_SHARDS,
        filter=decode_filter(message.filter),
        matches=message.matches,
        live_rows=message.live_rows,
        recall=message.recall if message.HasField("recall") else RECALL_UNKNOWN,
        queries=message.queries,
        plans=dict(message.plans),
    )


def _encode_slice(one: RecallSlice) -> admin_pb2.RecallSlice:
    return admin_pb2.RecallSlice(
        name=one.name,
        verdict=RECALL_VERDICT.encode(one.verdict),
        estimate=None if one.estimate is None else _encode_estimate(one.estimate),
        stability=one.stability,
        seen=one.seen,
        served=_encode_optional(one.served),
        recent=one.recent,
        tail_verdict=None if one.tail_verdict is None else RECALL_VERDICT.encode(one.tail_verdict),
    )


def _decode_slice(message: admin_pb2.RecallSlice) -> RecallSlice:
    return RecallSlice(
        name=message.name,
        verdict=RECALL_VERDICT.decode_or(message.verdict, RecallVerdict.UNMEASURED),
        estimate=_decode_estimate(message.estimate) if message.HasField("estimate") else None,
        stability=message.stability if message.HasField("stability") else None,
        tail_verdict=RECALL_VERDICT.known(message.tail_verdict),
        seen=message.seen,
        served=_decode_estimate(message.served) if message.HasField("served") else None,
        recent=message.recent,
    )
