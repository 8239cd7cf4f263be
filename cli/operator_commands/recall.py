"""`annheal recall`: recall as it is, on live queries all the time or measured now."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from annheal.cli.operator_commands.latency import render_latency
from annheal.cli.operator_commands.recall_reports.audit import show_audit
from annheal.cli.operator_commands.recall_reports.cells import (
    estimate_cells,
    interval_text,
    recall_text,
    until_text,
    verdict_text,
)
from annheal.cli.operator_commands.recall_reports.tags import missed_tags, render_tags
from annheal.cli.operator_commands.recall_reports.worst import show_worst
from annheal.cli.output import facts, moment, print_error, share, table
from annheal.cli.state import State, state_of
from annheal.cli.user_commands.records import Collection, Filter
from annheal.cli.watching import every
from annheal.client import Client
from annheal.errors import AnnhealError, InvalidArgument
from annheal.filters import format_expression
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.measures.recall import (
    RECALL_UNKNOWN,
    FilterRecall,
    RecallEstimate,
    Rung,
    SegmentRecall,
)
from annheal.model.measures.recall_audit import AUDIT_QUERIES_MAX
from annheal.model.measures.recall_summary import (
    OWN_EF,
    TAIL_RECALL,
    MergedRecall,
    RecallSlice,
    RecallSummary,
    RecallVerdict,
    traffic_of,
    verdict_of,
)
from annheal.model.measures.recall_worst import WORST_MAX
from annheal.model.topology.cluster import RECALL_SAMPLE_DEFAULT, RecallReport
from annheal.runtime.clock import wall_s

SEGMENTS_SHOWN_MAX = 20
_ANSWERED = {Rung.CODES: "by codes", Rung.EXACT: "exactly"}
NOT_SEARCHED = "no search since the nodes have the shards (exact and explained ones do not count)"
NOT_SAMPLED = "no node counts live queries (recall_sample_share is 0, or no node has the shards)"
LIVE_QUERIES, STORED_ROWS = "live queries", "stored rows"
INTERVAL_MIN_S = 0.1


def recall(
    context: typer.Context,
    collection: Collection,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Update until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=INTERVAL_MIN_S, help="Seconds between two updates.")
    ] = 2.0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure now, with stored vectors as queries.")
    ] = False,
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Hits; the k of the objective by default.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help=f"Queries; {RECALL_SAMPLE_DEFAULT}.")
    ] = None,
    ef: Annotated[int | None, typer.Option("--ef", help="Beam width of graph walks.")] = None,
    filter: Filter = None,
    audit: Annotated[
        int | None,
        typer.Option(
            "--audit",
            metavar="N",
            min=1,
            max=AUDIT_QUERIES_MAX,
            help="Compare what was measured with up to N other live queries of each shard, now.",
        ),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            "--worst",
            metavar="N",
            min=1,
            max=WORST_MAX,
            help="List the N live queries of each band that find least, and what they miss.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the random sample.")
    ] = None,
) -> None:
    """Show recall as the nodes measure it on live queries; with --measure, measure it now.

    The options -k, --sample, --ef, --filter and --seed belong to --measure, and each of them
    implies it. --audit checks the measured recall itself, --worst lists what hides in the mean.
    """
    state = state_of(context)
    now = measure or any(one is not None for one in (k, sample, ef, filter, seed))
    _check_one_view(measure=now, watch=watch, audit=audit is not None, worst=worst is not None)
    if audit is not None:
        show_audit(state, collection, queries_max=audit)
        return
    if worst is not None:
        show_worst(state, collection, queries_max=worst)
        return
    if watch:
        _watch(state, collection, interval_s=interval)
        return
    if not now:
        with state.client() as client:
            summary = client.recall(collection)
        if state.output.is_json or summary.overall.verdict is not RecallVerdict.UNMEASURED:
            state.output.show(_as_document(summary), lambda _: render_summary(summary))
            return
        state.output.note(_why_unmeasured(summary))
    size = RECALL_SAMPLE_DEFAULT if sample is None else sample
    _measure_now(state, collection, k=k, sample_size=size, ef=ef, filter=filter, seed=seed or 0)


def _measure_now(
    state: State,
    collection: str,
    *,
    k: int | None,
    sample_size: int,
    ef: int | None,
    filter: str | None,
    seed: int,
) -> None:
    with state.client(default_s=TIMEOUT_MAX_S) as client:
        report = client.measure_recall(
            collection, k=k, sample_size=sample_size, ef=ef, filter=filter, seed=seed
        )
    state.output.show(_report_document(report), lambda _: _render_report(report))


def _check_one_view(**views: bool) -> None:
    """Raise `InvalidArgument` if more than one of the options is given."""
    given = [f"--{name}" for name, wanted in views.items() if wanted]
    if len(given) > 1:
        raise InvalidArgument.of(given[-1], f"does not go with {given[0]}; give one of them")


def _why_unmeasured(summary: RecallSummary) -> str:
    """Return why there is no recall of live queries, and what is shown in its place."""
    seen = summary.overall.seen
    why = NOT_SEARCHED if summary.sampled_share else NOT_SAMPLED
    if seen:
        why = (
            f"{seen:,} {'searches' if seen > 1 else 'search'} so far, none of them measured yet"
            f" ({summary.sampled_share:.2%} of the present ones are sampled)"
        )
    return f"live recall is unknown: {why}. Measuring now, with stored vectors as queries"


def _watch(state: State, collection: str, *, interval_s: float) -> None:
    """Show the summary until Ctrl-C: a table that changes, or a line each time for programs."""
    console = state.output.console
    try:
        with state.client(endless=True) as client:
            if not console.is_terminal or state.output.is_json:
                for _ in every(interval_s):
                    summary = client.recall(collection)
                    if state.output.is_json:
                        state.output.line(_as_document(summary))
                    else:
                        console.print(_as_line(summary), highlight=False)
            first = render_summary(client.recall(collection))  # errors of the first look end it
            with Live(first, console=console, auto_refresh=False) as live:
                for turn in every(interval_s):
                    if turn:
                        live.update(_look(client, collection, state), refresh=True)
    except KeyboardInterrupt:
        return  # how a watch ends


def _look(client: Client, collection: str, state: State) -> RenderableType:
    """Return what to show; an error that passes is shown in its place."""
    try:
        return render_summary(client.recall(collection))
    except AnnhealError as error:
        if not error.retryable:
            print_error(error, format=state.output.format)
            raise
        return Text(f"no answer: {error.message}; trying again", style="yellow")


def _as_document(summary: RecallSummary) -> dict[str, Any]:
    """Return the summary as JSON shows it: filters as expressions, what is unknown as null."""
    document: dict[str, Any] = {
        one.name: msgspec.to_builtins(getattr(summary, one.name))
        for one in dataclasses.fields(summary)
        if one.name != "filters"
    }
    document["filters"] = [filter_document(one) for one in summary.filters]
    document["queries_from"] = LIVE_QUERIES
    return document


def filter_document(one: FilterRecall) -> dict[str, Any]:
    """Return a filter's recall as JSON shows it."""
    return {
        "filter": format_expression(one.filter),
        "matches": one.matches,
        "live_rows": one.live_rows,
        "selectivity": one.matches / one.live_rows if one.live_rows else None,
        "recall": None if one.recall == RECALL_UNKNOWN else one.recall,
        "queries": one.queries,
        "plans": one.plans,
    }


def _as_line(summary: RecallSummary) -> str:
    def words(one: RecallSlice) -> str:
        if one.estimate is None:
            return f"{one.name or 'recall'} {one.verdict.value}"
        name = one.name or f"recall@{one.estimate.k}"
        interval = interval_text(one.estimate)
        found = f"{name} {recall_text(one.estimate)} [{interval}] {one.verdict.value}"
        return found if one.name else f"{found}, {window_text(one.estimate)}"

    time_of_day = datetime.now().astimezone().strftime("%H:%M:%S")
    parts = [words(summary.overall), f"objective {summary.recall_objective:g}"]
    parts += [f"{name} {found}" for name, found in _tail_facts(summary)]
    parts += [words(band) for band in summary.bands]
    parts += [f"tag {words(tag)}" for tag in summary.tags]
    parts += [f"node {node}: {error}" for node, error in summary.errors.items()]
    return f"{time_of_day} {summary.collection}: " + "; ".join(parts)


def render_summary(summary: RecallSummary) -> RenderableType:
    """Return the live view: overall, slices, segments, and what is being done."""
    overall = summary.overall
    lines: list[tuple[str, object]] = []
    if overall.estimate is not None:
        estimate = overall.estimate
        lines += [
            (f"recall@{estimate.k}", recall_text(estimate)),
            ("95 % interval", interval_text(estimate)),
        ]
    lines += [
        *_merged_lines(summary.merged),
        ("objective", _objective(summary)),
        *_tail_facts(summary),
        (
            "live queries",
            f"{overall.seen:,}; {summary.sampled_share:.2%} of the present ones are sampled",
        ),
    ]
    if overall.served is not None:
        served = overall.served
        lines.append(
            (
                "as served",
                f"{recall_text(served)} ({interval_text(served)}), {served.queries:,} answers that"
                " were given, compared with exact ones of now",
            )
        )
    if (tail := tail_text(overall.estimate, summary.recall_objective)) is not None:
        lines.append(("worst queries", tail))
    if overall.estimate is not None:
        lines += [
            ("window", window_text(overall.estimate)),
            ("measured", moment(overall.estimate.measured_at_s) or "never"),
        ]
    lines += _change_and_stability(summary)
    parts: list[RenderableType] = [facts(lines)]
    if summary.bands:
        parts += ["", render_bands(summary)]
    if summary.tags:
        parts += ["", render_tags(summary.tags)]
    if summary.own:
        parts += ["", _render_own(summary.own)]
    parts += _render_parts(summary)
    if summary.segments:
        parts += ["", _render_segments(summary)]
    if summary.latency:
        parts += ["", render_latency(summary.latency)]
    parts += [Text(sentence) for sentence in actions(summary)]
    parts += [
        Text(f"node {node} was not asked: {error}", style="yellow")
        for node, error in summary.errors.items()
    ]
    parts += [Text(sentence, style="bold red") for sentence in missed_tags(summary)]
    return Group(*parts)


def _merged_lines(merged: MergedRecall | None) -> list[tuple[str, object]]:
    """Return what recall over several shards is about, and that of each shard's own hits."""
    if merged is None:
        return []
    lines: list[tuple[str, object]] = [
        ("recall of", f"answers; all shards have measured {merged.complete:,} queries")
    ]
    if merged.incomplete:
        lines.append(("left out", f"{merged.incomplete:,} queries that not all shards measured"))
    if (own := merged.own_top_k.estimate) is not None:
        lines.append(
            (
                f"own top {own.k}",
                f"{recall_text(own)} ({interval_text(own)}), of each shard, averaged",
            )
        )
    return lines


def _change_and_stability(summary: RecallSummary) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = []
    if summary.changed_at_s:
        lines.append(("queries changed", f"change detected at {moment(summary.changed_at_s)}"))
    if summary.overall.stability is not None:
        lines.append(("same answer twice", f"{summary.overall.stability:.1%}"))
    return lines


def render_bands(summary: RecallSummary) -> RenderableType:
    """Return recall by selectivity of the filters; shares are those of the present queries."""
    weights = traffic_of(summary.bands)
    total = sum(weights)
    columns = [
        "BAND", ">QUERIES", ">SHARE", ">RECALL", "INTERVAL", ">SERVED", ">MEASURED", "UNTIL",
        ">STABLE", "PLANS", "OBJECTIVE",
    ]  # fmt: skip
    return table(
        columns,
        (
            (
                one.name,
                one.seen,
                share(weight, total),
                *estimate_cells(one.estimate)[:2],
                None if one.served is None else recall_text(one.served),
                *(0 if one.estimate is None else one.estimate.queries, until_text(one.estimate)),
                None if one.stability is None else f"{one.stability:.1%}",
                plans_text(one.estimate.plans) if one.estimate else None,
                verdict_text(one.verdict),
            )
            for one, weight in zip(summary.bands, weights, strict=True)
        ),
    )


def actions(summary: RecallSummary) -> list[str]:
    """Return what is done about segments below the objective, in words; empty when nothing is."""
    sentences = []
    for one in summary.segments:
        where = f"segment {one.segment_id} (shard {one.shard}, {one.band.value})"
        if one.stuck:
            sentences.append(
                f"{where}: below the objective although it was rebuilt; look at its data, raise"
                f" m or ef_construction, or lower the objective{_meanwhile(one)}"
            )
        elif one.rebuild:
            sentences.append(
                f"{where}: ef {one.ef} of at most {one.ef_limit} does not reach the objective; a"
                f" rebuild is asked for{_meanwhile(one)}"
            )
        elif one.below or _missed(one, summary):
            sentences.append(
                f"{where}: below the objective; ef is {one.ef} and may be raised to {one.ef_limit}"
                f"{_meanwhile(one)}"
            )
    return sentences


def plans_text(plans: dict[str, int]) -> str | None:
    """Return plans with their shares, the most frequent first."""
    total = sum(plans.values())
    ranked = sorted(plans.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count / total:.0%}" for name, count in ranked) or None


def _render_parts(summary: RecallSummary) -> list[RenderableType]:
    """Return recall by tier, model and shard, of the hits of each segment or shard."""
    of = "" if summary.merged is None else " (OWN TOP K)"
    parts: list[RenderableType] = []
    for title, slices in (
        ("TIER", summary.tiers), ("MODEL", summary.models), ("SHARD", summary.shards)
    ):  # fmt: skip
        if len(slices) > 1:
            parts += ["", _render_slices(title + of, slices)]
    return parts


def _render_slices(title: str, slices: Sequence[RecallSlice]) -> RenderableType:
    return table(
        [title, ">RECALL", "INTERVAL", ">P5", ">MEASURED", "OBJECTIVE"],
        ((one.name, *_cells_with_tail(one.estimate), verdict_text(one.verdict)) for one in slices),
    )


def _render_own(slices: Sequence[RecallSlice]) -> RenderableType:
    """Return recall of the queries that set an objective, or only an ef."""
    return table(
        ["OWN SETTING", ">RECALL", "INTERVAL", ">SERVED", ">MEASURED", "OBJECTIVE"],
        (
            (
                one.name if one.name == OWN_EF else f"objective {one.name}",
                *estimate_cells(one.estimate)[:2],
                None if one.served is None else recall_text(one.served),
                0 if one.estimate is None else one.estimate.queries,
                verdict_text(one.verdict),
            )
            for one in slices
        ),
    )


def _render_segments(summary: RecallSummary) -> RenderableType:
    ranked = sorted(summary.segments, key=lambda one: one.estimate.recall)
    columns = [
        ">SHARD", "SEGMENT", "TIER", "BAND", ">RECALL", "INTERVAL", ">MEASURED", ">EF", ">EF LIMIT",
        "OBJECTIVE", "STATE",
    ]  # fmt: skip
    rows = table(
        columns,
        (
            (
                one.shard,
                one.segment_id,
                one.tier,
                one.band.value,
                *estimate_cells(one.estimate),
                one.ef or None,
                one.ef_limit or None,
                verdict_text(_verdict(one, summary)),
                _state(one),
            )
            for one in ranked[:SEGMENTS_SHOWN_MAX]
        ),
    )
    left = len(ranked) - SEGMENTS_SHOWN_MAX
    return Group(rows, f"and {left} more, of higher recall") if left > 0 else rows


def _state(one: SegmentRecall) -> str | None:
    """Return what is done about a segment below the objective, and how it is answered."""
    words = ["stuck"] if one.stuck else ["rebuild"] if one.rebuild else []
    if one.rung is not Rung.GRAPH:
        words.append(_ANSWERED[one.rung])
    elif one.below:
        words.append("answers say so")
    return ", ".join(words) or None


def _meanwhile(one: SegmentRecall) -> str:
    """Return how a segment is answered whose graph is below the objective, as words to append."""
    if one.rung is not Rung.GRAPH:
        found = "" if one.answered is None else f", with recall {recall_text(one.answered)}"
        return f"; it is answered {_ANSWERED[one.rung]} instead{found}"
    if one.below:
        return (
            "; its answers say that they are below the objective, as comparing every row would cost"
            " more than recall_budget allows, or a larger ef is tried first"
        )
    return ""


def _missed(one: SegmentRecall, summary: RecallSummary) -> bool:
    return _verdict(one, summary) is RecallVerdict.MISSED


def _verdict(one: SegmentRecall, summary: RecallSummary) -> RecallVerdict:
    return verdict_of(one.estimate, summary.recall_objective, now_s=wall_s())


def _tail_facts(summary: RecallSummary) -> list[tuple[str, object]]:
    """Return how the objective about single queries is met; nothing where there is none."""
    objective, verdict = summary.tail_objective, summary.overall.tail_verdict
    if objective is None or verdict is None:
        return []
    words = Text(f"{objective.share:g} of the queries with at least {objective.recall:g} (")
    words.append_text(verdict_text(verdict)).append(")")
    estimate = summary.overall.estimate
    tail = None if estimate is None else estimate.tail_for(objective)
    if tail is not None:
        words.append(f"; measured {tail.share:.4f} ({tail.low:.4f} to {tail.high:.4f})")
    return [("tail objective", words)]


def _objective(summary: RecallSummary) -> Text:
    words = Text(f"{summary.recall_objective:g} (")
    return words.append_text(verdict_text(summary.overall.verdict)).append(")")


def window_text(estimate: RecallEstimate) -> str:
    """Return when the measured queries were asked, and how many they are."""
    words = f"{estimate.queries:,} queries"
    if estimate.distinct and estimate.distinct < estimate.queries:
        words += f" ({estimate.distinct:,} different ones)"
    if not estimate.window_end_s:
        return f"{words}, of unknown time"
    begin, end = moment(estimate.window_begin_s), moment(estimate.window_end_s)
    return f"{words}, asked from {begin} to {end}"


def _cells_with_tail(estimate: RecallEstimate | None) -> tuple[object, object, object, object]:
    recall, interval, queries = estimate_cells(estimate)
    p5 = None if estimate is None or not estimate.queries else estimate.percentile(0.05)
    return recall, interval, None if p5 is None else f"{p5:.2f}", queries


def tail_text(estimate: RecallEstimate | None, objective: float) -> str | None:
    """Return what the worst queries find, None where it is not known."""
    if estimate is None:
        return None
    p5, below = estimate.percentile(0.05), estimate.share_below(objective)
    half = estimate.share_below(TAIL_RECALL)
    if p5 is None or below is None or half is None:
        return None
    return f"{below:.1%} below the objective, {half:.1%} below a half; p5 {p5:.2f}"


def _stored_rows_verdict(report: RecallReport) -> RecallVerdict:
    """Return `missed` or `not judged`: rows are easier queries than those of users.

    What they find shows that an objective is missed, never that it is met.
    """
    if report.recall_high < report.recall_objective:
        return RecallVerdict.MISSED
    return RecallVerdict.NOT_JUDGED


def _report_document(report: RecallReport) -> dict[str, Any]:
    """Return a measurement with stored rows as JSON shows it."""
    document: dict[str, Any] = msgspec.to_builtins(report)
    return {
        **document,
        "queries_from": STORED_ROWS,
        "verdict": _stored_rows_verdict(report),
    }


def _render_report(report: RecallReport) -> RenderableType:
    verdict = verdict_text(_stored_rows_verdict(report))
    lines = facts(
        [
            (f"recall@{report.k}", f"{report.recall:.4f}"),
            ("95 % interval", f"{report.recall_low:.4f} to {report.recall_high:.4f}"),
            ("objective", Text(f"{report.recall_objective:g} (").append_text(verdict).append(")")),
            (
                "queries",
                f"{report.queries:,} {STORED_ROWS}; they are easier than queries of users, so they"
                " do not show that the objective is met",
            ),
            ("approximate search p50", f"{report.approximate_p50_s * 1e3:.2f} ms"),
            ("exact search p50", f"{report.exact_p50_s * 1e3:.2f} ms"),
        ]
    )
    if len(report.shards) <= 1:
        return lines
    shards = table(
        [">SHARD", ">RECALL", ">NEIGHBOURS"],
        ((s.shard, f"{s.recall:.4f}", s.expected) for s in report.shards),
    )
    return Group(lines, "", shards)
