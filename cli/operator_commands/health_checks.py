"""Whether indexes are healthy: questions answered from the state of a cluster. Pure functions.

An operator should be able to answer them before a vector index degrades unnoticed: are degraded
segments rewritten, are segments well, is recall tracked, are searches watched apart from the
system's load, do dead rows and staleness raise an alarm, are filters validated against the filters
of live queries, and which model made the vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from annheal.cli.operator_commands.filters import validated_share
from annheal.cli.operator_commands.latency import sentences
from annheal.filters import format_expression
from annheal.model.collection import Collection
from annheal.model.measures.latency import TrendVerdict
from annheal.model.measures.recall import RECALL_UNKNOWN, Rung
from annheal.model.measures.recall_summary import RecallSummary, RecallVerdict
from annheal.model.topology.cluster import ClusterStatus, ShardStatus, TaskStatus
from annheal.model.topology.manifest import IndexKind
from annheal.model.topology.state import SegmentState
from annheal.model.topology.task import TaskPhase

UNINDEXED_SHARE_WATCHED = 0.5
"""Of `unindexed_rows_max`: nearer to it, and writes will soon be told to wait."""
VALIDATED_SHARE_MIN = 0.9
"""Of the live queries, which should lie in bands whose recall is surely at the objective."""


class Health(StrEnum):
    """`watch`: nothing is broken yet. `unknown`: there is nothing to judge by."""

    GOOD = "good"
    UNKNOWN = "unknown"
    WATCH = "watch"
    BAD = "bad"


_HEALTH = {
    RecallVerdict.MET: Health.GOOD,
    RecallVerdict.UNCLEAR: Health.WATCH,
    RecallVerdict.RECOVERING: Health.WATCH,
}
"""Every other verdict on what was measured is bad."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question; `advice` is empty where nothing is to be done."""

    question: str
    health: Health
    answer: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a cluster says of one collection at about the same time."""

    collection: Collection
    shards: tuple[ShardStatus, ...]
    segments: tuple[SegmentState, ...]
    missing_shards: tuple[int, ...]
    tasks: tuple[TaskStatus, ...]
    recall: RecallSummary


def examine_cluster(status: ClusterStatus) -> tuple[Finding, ...]:
    """Return whether all parts are there."""
    compactors = sum(worker.role == "compactor" for worker in status.workers)
    silent = [node.registration.node_id for node in status.nodes if node.error]
    parts = (
        f"{len(status.nodes):,} shard nodes, {compactors:,} compactors,"
        f" {status.totals.shards_serving:,} of {status.shards:,} shards serving"
    )
    question = "do all processes run?"
    away = [one for one in status.warnings if one.startswith("the metadata store is away")]
    if away and not silent and status.totals.shards_serving == status.shards:
        advice = "see the answer about the metadata store"
        return (Finding(question, Health.UNKNOWN, f"{parts}; {away[0]}", advice),)
    if not status.leader:
        return (Finding(question, Health.BAD, f"{parts}; no coordinator leads", "start one"),)
    if silent or status.totals.shards_serving < status.shards:
        names = f"; {', '.join(silent)} do not answer" if silent else ""
        advice = "see `annheal shards` and the nodes' logs"
        return (Finding(question, Health.BAD, parts + names, advice),)
    if not compactors:
        advice = "start `annheal serve compactor`: without one no segment is rewritten"
        return (Finding(question, Health.BAD, parts, advice),)
    return (Finding(question, Health.GOOD, parts),)


def examine(observed: Observed) -> tuple[Finding, ...]:
    """Return an answer to each question about one collection."""
    return (
        _degraded(observed),
        _segments(observed),
        _recall(observed),
        *_tail(observed),
        _latency(observed),
        _dead_rows(observed),
        _staleness(observed),
        _filters(observed),
        _models(observed),
    )


def _degraded(observed: Observed) -> Finding:
    question = "are degraded segments rewritten?"
    phases = Counter(task.phase for task in observed.tasks)
    open_tasks = sum(
        count for phase, count in phases.items() if phase in (TaskPhase.PENDING, TaskPhase.BUILT)
    )
    done = f"{phases[TaskPhase.PUBLISHED]:,} compactions done, {open_tasks:,} open"
    failed = [task for task in observed.tasks if task.phase is TaskPhase.FAILED]
    if failed:
        advice = f"see the cause, then `annheal tasks retry {failed[0].task_id}`"
        answer = f"{done}, {len(failed):,} failed; the last: {failed[0].error}"
        return Finding(question, Health.BAD, answer, advice)
    if not observed.collection.settings.compaction_automatic:
        advice = f"run `annheal compact {observed.collection.name}`, or set compaction_automatic"
        return Finding(question, Health.WATCH, f"{done}; only on request", advice)
    return Finding(question, Health.GOOD, f"{done}; automatic")


def _segments(observed: Observed) -> Finding:
    question = "are the segments in order?"
    if observed.missing_shards:
        missing = ", ".join(map(str, observed.missing_shards))
        answer = f"the owners of shards {missing} do not answer"
        return Finding(question, Health.BAD, answer, "see `annheal shards`")
    tiers = Counter(segment.tier for segment in observed.segments)
    with_graph = sum(s.rows for s in observed.segments if s.index_kind == IndexKind.HNSW)
    rows = sum(segment.rows for segment in observed.segments)
    kinds = ", ".join(f"{count:,} {tier}" for tier, count in sorted(tiers.items())) or "none yet"
    share = f"; {with_graph / rows:.0%} of their rows have a graph" if rows else ""
    stuck = [segment for segment in observed.segments if segment.stuck]
    if stuck:
        answer = f"{kinds}{share}; {len(stuck):,} below the objective although rebuilt"
        advice = "look at their data, raise m or ef_construction, or lower the objective"
        return Finding(question, Health.BAD, answer, advice)
    bare = sum(segment.without_kernels for segment in observed.segments)
    if bare:
        answer = f"{kinds}{share}; {bare:,} are searched without compiled kernels"
        advice = (
            "filters are slower until they are compiled; else see the nodes' logs for the cause"
        )
        return Finding(question, Health.WATCH, answer, advice)
    return Finding(question, Health.GOOD, kinds + share)


def _recall(observed: Observed) -> Finding:
    question = "does recall meet the objective?"
    overall, objective = observed.recall.overall, observed.recall.recall_objective
    estimate = overall.estimate
    if estimate is None or overall.verdict is RecallVerdict.UNMEASURED:
        answer = f"{overall.seen:,} live queries, none of them measured yet"
        advice = f"search, or run `annheal recall {observed.collection.name} --measure`"
        return Finding(question, Health.UNKNOWN, answer, advice)
    answer = (
        f"recall@{estimate.k} {estimate.recall:.4f} ({estimate.low:.4f} to {estimate.high:.4f}) on"
        f" {estimate.queries:,} live queries; the objective is {objective:g}"
    )
    if overall.verdict is RecallVerdict.UNKNOWN:
        answer += "; they are too few, too old, or not of the bands that are searched now"
        advice = f"search, or run `annheal recall {observed.collection.name} --measure`"
        return Finding(question, Health.UNKNOWN, answer, advice)
    health = _HEALTH.get(overall.verdict, Health.BAD)
    rebuilt = sum(segment.rebuild for segment in observed.segments)
    lifted, flagged = _without_graph(observed.recall)
    if lifted:
        answer += f"; {lifted:,} segments are answered by codes or exactly, as their graphs miss it"
    if flagged:
        answer += f"; answers of {flagged:,} segments say that they are below it"
    if health is Health.GOOD and (lifted or flagged):
        return Finding(question, Health.WATCH, answer, "see `annheal recall`")
    if health is Health.GOOD:
        return Finding(question, health, answer)
    if overall.verdict is RecallVerdict.RECOVERING:
        answer += "; answers of the last minute were worse"
        return Finding(question, health, answer, "wait for a minute; see `annheal recall`")
    what = f"{rebuilt:,} segments wait for a rebuild" if rebuilt else "ef is being raised"
    return Finding(question, health, answer, f"{what}; see `annheal recall`")


def _tail(observed: Observed) -> list[Finding]:
    """Return the answer about the objective for single queries; nothing where there is none."""
    objective, overall = observed.recall.tail_objective, observed.recall.overall
    if objective is None or overall.tail_verdict is None:
        return []
    question = "do enough queries find enough each?"
    promise = f"promised are {objective.share:g} of them with a recall of {objective.recall:g}"
    name = observed.collection.name
    tail = None if overall.estimate is None else overall.estimate.tail_for(objective)
    if tail is None or overall.tail_verdict is RecallVerdict.UNMEASURED:
        advice = f"search; the next measurement of `annheal recall {name}` shows it"
        return [Finding(question, Health.UNKNOWN, f"not measured yet; {promise}", advice)]
    answer = f"{tail.share:.4f} of them do ({tail.low:.4f} to {tail.high:.4f}); {promise}"
    if overall.tail_verdict is RecallVerdict.UNKNOWN:
        answer += f"; of fewer than {objective.queries_min} different queries, or too old"
        return [Finding(question, Health.UNKNOWN, answer, "search, and look again in a minute")]
    health = _HEALTH.get(overall.tail_verdict, Health.BAD)
    advice = "" if health is Health.GOOD else "ef is being raised; see `annheal recall`"
    return [Finding(question, health, answer, advice)]


def _without_graph(recall: RecallSummary) -> tuple[int, int]:
    """Return how many segments other methods answer, and how many fail and have none."""
    lifted = {one.segment_id for one in recall.segments if one.rung is not Rung.GRAPH}
    below = {one.segment_id for one in recall.segments if one.below and one.rung is Rung.GRAPH}
    return len(lifted), len(below)


def _latency(observed: Observed) -> Finding:
    question = "are searches as fast as before at the same load?"
    trends = observed.recall.latency
    compared = {node: trend for node, trend in trends.items() if trend.p50 is not None}
    if not compared:
        reasons = {trend.reason for trend in trends.values()} or {"no node has answered a search"}
        return Finding(question, Health.UNKNOWN, "; ".join(sorted(reasons)))
    slower = {n: t for n, t in compared.items() if t.verdict is TrendVerdict.SLOWER}
    if slower:
        return Finding(question, Health.WATCH, "; ".join(sentences(slower)))
    worst = max(trend.p50.ratio for trend in compared.values() if trend.p50 is not None)
    answer = f"half of the searches take at most {worst:.2f} times what they took at this volume"
    return Finding(question, Health.GOOD, answer)


def _dead_rows(observed: Observed) -> Finding:
    question = "are dead rows removed?"
    settings = observed.collection.settings
    rows = sum(segment.rows for segment in observed.segments)
    dead = sum(segment.dead_rows for segment in observed.segments)
    answer = f"{dead:,} of {rows:,} rows are dead"
    if rows:
        answer += f" ({dead / rows:.1%})"
    over = [
        segment
        for segment in observed.segments
        if segment.dead_rows >= settings.tombstone_rows_min
        and segment.dead_rows >= settings.tombstone_ratio_max * segment.rows
    ]
    if not over:
        return Finding(question, Health.GOOD, answer)
    answer += f"; {len(over):,} segments have more than {settings.tombstone_ratio_max:.0%}"
    if settings.compaction_automatic:
        return Finding(question, Health.WATCH, answer, "a compaction is due; see `annheal tasks`")
    advice = f"run `annheal compact {observed.collection.name}`"
    return Finding(question, Health.BAD, answer, advice)


def _staleness(observed: Observed) -> Finding:
    question = "are the indexes up to date?"
    settings = observed.collection.settings
    waiting = max((shard.unindexed_rows for shard in observed.shards), default=0)
    total = sum(shard.unindexed_rows for shard in observed.shards)
    answer = f"{total:,} rows wait for a graph"
    drifted = [
        segment
        for segment in observed.segments
        if segment.visited_baseline
        and segment.visited > settings.walk_cost_ratio_max * segment.visited_baseline
    ]
    if drifted:
        worst = max(segment.visited / segment.visited_baseline for segment in drifted)
        answer += f"; walks of {len(drifted):,} segments compare up to {worst:.1f} times the rows"
        answer += " that they did when built"
    if waiting >= settings.unindexed_rows_max:
        return Finding(question, Health.BAD, answer, "writes wait: start more compactors")
    if waiting >= UNINDEXED_SHARE_WATCHED * settings.unindexed_rows_max:
        return Finding(question, Health.WATCH, answer, "writes will wait soon: add compactors")
    if drifted:
        return Finding(question, Health.WATCH, answer, "a rebuild is due; see `annheal tasks`")
    return Finding(question, Health.GOOD, answer)


def _filters(observed: Observed) -> Finding:
    question = "do filtered live queries meet the objective?"
    summary = observed.recall
    validated = validated_share(summary)
    if validated is None:
        return Finding(question, Health.UNKNOWN, "no live query since the nodes have the shards")
    answer = f"{validated:.0%} of the live queries are in bands of selectivity that are validated"
    measured = [one for one in summary.filters if one.recall != RECALL_UNKNOWN]
    if measured:
        worst = min(measured, key=lambda one: one.recall)
        answer += f"; the worst filter, {format_expression(worst.filter)}, has {worst.recall:.4f}"
    missed = [band.name for band in summary.bands if band.verdict is RecallVerdict.MISSED]
    advice = f"see `annheal filters {observed.collection.name}`"
    if missed:
        return Finding(question, Health.BAD, f"{answer}; missed: {', '.join(missed)}", advice)
    if validated < VALIDATED_SHARE_MIN:
        return Finding(question, Health.WATCH, answer, advice)
    return Finding(question, Health.GOOD, answer)


def _models(observed: Observed) -> Finding:
    question = "which model made the vectors?"
    known = {model.name for model in observed.collection.models}
    rows = Counter[str]()
    for segment in observed.segments:
        rows[segment.model] += segment.rows
    serving = observed.collection.model
    answer = f"{serving.name}, {serving.dimension} floats, {serving.metric.value}"
    coverage = coverage_of(observed.segments)
    strange = sorted(set(rows) - known - set(coverage))
    if strange:
        answer += f"; rows of {', '.join(strange)} too"
        return Finding(question, Health.BAD, answer, "these models are not those of the collection")
    for name, (having, lacking) in coverage.items():
        if name == serving.name or having:
            was_removed = "" if name in known else " (removed)"
            answer += f"; {having:,} of {having + lacking:,} records have a vector of {name}"
            answer += was_removed
    if coverage.get(serving.name, (0, 0))[1]:
        advice = "searches do not find records without a vector of the serving model: write them"
        return Finding(question, Health.WATCH, answer, advice)
    return Finding(question, Health.GOOD, answer)


def coverage_of(segments: Sequence[SegmentState]) -> dict[str, tuple[int, int]]:
    """Return how many records have a vector of each model, and how many lack it.

    Empty where the collection has one model, of which every record has a vector.
    """
    found: dict[str, tuple[int, int]] = {}
    for one in (part for segment in segments for part in segment.models):
        having, lacking = found.get(one.model, (0, 0))
        found[one.model] = having + one.rows, lacking + one.lacking
    return found


def worst_of(findings: Sequence[Finding]) -> Health:
    """Return the worst health found; unknown counts as good."""
    order = (Health.BAD, Health.WATCH)
    return next((one for one in order if any(f.health is one for f in findings)), Health.GOOD)
