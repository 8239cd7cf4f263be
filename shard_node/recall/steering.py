"""Steers the ef of one segment by the recall that was measured of it."""

from __future__ import annotations

from annheal.model.measures.recall import SegmentRecall, SelectivityBand
from annheal.model.topology.manifest import IndexKind
from annheal.model.topology.shard import ShardId
from annheal.model.topology.task import TaskReason
from annheal.segment import Segment
from annheal.shard_node.recall.ef_control import (
    EfController,
    next_state,
    queries_until_next,
    with_answers,
)
from annheal.shard_node.recall.result import SegmentEstimate
from annheal.shard_node.recall.watched import Goal, report_state
from annheal.shard_node.search.ef_scale import EF_CONTROL_MAX, scaled_ef
from annheal.shard_node.search.recall_curves import choose_ef, curve_factor


def steered(
    controller: EfController,
    shard: ShardId,
    goal: Goal,
    segment: Segment,
    band: SelectivityBand,
    found: SegmentEstimate,
) -> tuple[SegmentRecall, int | None]:
    """Update the controller with an estimate; return both, for reports.

    Also after how many new queries recall is measured again; None: at the interval.
    """
    sources = segment.meta.build.sources
    before = after = controller.state(segment.id, band, sources=sources)
    ef = limit = 0
    soon: int | None = None
    if segment.kind is IndexKind.HNSW:
        curve_ef = choose_ef(segment.recall_curve, k=goal.k, objective=goal.objective)
        after = next_state(
            before,
            estimate=found.estimate,
            serials=found.serials.tolist(),
            curve_ef=curve_ef,
            objective=goal.objective,
            by_curve=lambda fewer: curve_factor(
                segment.recall_curve,
                k=goal.k,
                ef=scaled_ef(curve_ef, before.scale),
                fewer=fewer,
            ),
            rebuilt=segment.meta.build.reason == TaskReason.RECALL,
        )
        if found.by_codes_only and found.answered is not None:
            after = with_answers(after, answered=found.answered, objective=goal.objective)
        controller.store(segment.id, band, after)
        soon = queries_until_next(before, after, estimate=found.estimate, objective=goal.objective)
        ef, limit = scaled_ef(curve_ef, after.scale), max(curve_ef, EF_CONTROL_MAX)
    result = SegmentRecall(
        shard=shard.number,
        segment_id=segment.id,
        tier=segment.entry.tier.value,
        model=segment.entry.model,
        band=band,
        estimate=found.estimate,
        ef=ef,
        ef_limit=limit,
        rebuild=after.rebuild,
        stuck=after.stuck,
        rung=found.rung,
        below=after.shortfall is not None,
        answered=found.answered,
        raised_at_s=after.raised_at_s,
    )
    report_state(shard, result, before, after)
    return result, soon
