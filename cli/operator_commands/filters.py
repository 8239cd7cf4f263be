"""`annheal filters`: are the filters that live queries use answered as well as promised?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from annheal.cli.operator_commands.recall import (
    NOT_SAMPLED,
    NOT_SEARCHED,
    filter_document,
    plans_text,
    render_bands,
    window_text,
)
from annheal.cli.output import share, table
from annheal.cli.state import state_of
from annheal.cli.user_commands.records import Collection
from annheal.filters import format_expression
from annheal.model.measures.recall import RECALL_UNKNOWN, FilterRecall
from annheal.model.measures.recall_summary import (
    TAIL_RECALL,
    RecallSlice,
    RecallSummary,
    RecallVerdict,
    traffic_of,
)

_NOT_VALIDATED = (
    RecallVerdict.MET_WITH_BAD_TAIL,
    RecallVerdict.UNKNOWN,
    RecallVerdict.RECOVERING,
)


def filters(context: typer.Context, collection: Collection) -> None:
    """Show whether filtered live queries meet the recall objective.

    By selectivity: what share of the live queries there is, the plans that answered them, recall
    with its interval, and a verdict; then the most selective filters, one by one.
    """
    state = state_of(context)
    with state.client() as client:
        summary = client.recall(collection)
    state.output.show(_as_document(summary), lambda _: _render(summary))
    for node, error in summary.errors.items():
        state.output.note(f"node {node} was not asked: {error}")


def is_validated(one: RecallSlice, objective: float) -> bool:
    """Return whether the whole interval lies at the objective or above."""
    if one.verdict in _NOT_VALIDATED:
        return False
    return one.estimate is not None and one.estimate.queries > 0 and one.estimate.low >= objective


def sentence(one: RecallSlice, objective: float) -> str:
    """Return the verdict on one band in words."""
    estimate = one.estimate
    if one.verdict is RecallVerdict.UNMEASURED or estimate is None:
        return f"{one.name}: unknown; {one.seen:,} live queries, none of them measured yet"
    found = f"recall@{estimate.k} {estimate.recall:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"
    queries = f"{estimate.queries:,} sampled queries"
    if one.verdict is RecallVerdict.UNKNOWN:
        return (
            f"{one.name}: unknown; {found}, but the {window_text(estimate)} are too few or too old"
            f" to be sure of {objective:g}"
        )
    if is_validated(one, objective):
        return f"{one.name}: validated; {found} on {queries} meets {objective:g}"
    if one.verdict is RecallVerdict.MET_WITH_BAD_TAIL:
        tail = estimate.share_below(TAIL_RECALL) or 0.0
        return (
            f"{one.name}: met, with a bad tail; {found} on {queries}, {tail:.1%} of which find less"
            " than half"
        )
    if one.verdict is RecallVerdict.RECOVERING:
        return (
            f"{one.name}: recovering; {found} on {queries} meets {objective:g} now, but answers"
            " of the last minute were worse"
        )
    if one.verdict is RecallVerdict.MET:
        return (
            f"{one.name}: met so far; {found}, but {queries} are too few to be sure of"
            f" {objective:g}"
        )
    if one.verdict is RecallVerdict.UNCLEAR:
        return f"{one.name}: not shown; {found} on {queries} may or may not reach {objective:g}"
    return f"{one.name}: NOT met; {found} on {queries} is below {objective:g}"


def validated_share(summary: RecallSummary) -> float | None:
    """Return the share of the present queries in bands that are validated; None without a query."""
    return _share_of(
        summary, [one for one in summary.bands if is_validated(one, summary.recall_objective)]
    )


def _share_of(summary: RecallSummary, bands: Sequence[RecallSlice]) -> float | None:
    """Return the share of the present queries in `bands`."""
    weights = traffic_of(summary.bands)
    total = sum(weights)
    some = sum(weight for one, weight in zip(summary.bands, weights, strict=True) if one in bands)
    return some / total if total else None


def _as_document(summary: RecallSummary) -> dict[str, Any]:
    bands = []
    for one in summary.bands:
        estimate = one.estimate
        bands.append(
            {
                "band": one.name,
                "seen": one.seen,
                "recent": one.recent,
                "share": _share_of(summary, [one]),
                "recall": estimate.recall if estimate else None,
                "low": estimate.low if estimate else None,
                "high": estimate.high if estimate else None,
                "queries": estimate.queries if estimate else 0,
                "distinct": estimate.distinct if estimate else 0,
                "window_begin_s": estimate.window_begin_s if estimate else None,
                "window_end_s": estimate.window_end_s if estimate else None,
                "served": one.served.recall if one.served else None,
                "plans": estimate.plans if estimate else {},
                "verdict": one.verdict,
                "validated": is_validated(one, summary.recall_objective),
                "sentence": sentence(one, summary.recall_objective),
            }
        )
    return {
        "collection": summary.collection,
        "recall_objective": summary.recall_objective,
        "sampled_share": summary.sampled_share,
        "validated_share": validated_share(summary),
        "bands": bands,
        "filters": [filter_document(one) for one in summary.filters],
        "errors": summary.errors,
    }


def _render(summary: RecallSummary) -> RenderableType:
    if not summary.bands:
        return f"unknown: {NOT_SEARCHED if summary.sampled_share else NOT_SAMPLED}"
    objective = summary.recall_objective
    parts: list[RenderableType] = [render_bands(summary), ""]
    parts += [Text(sentence(one, objective)) for one in summary.bands]
    if summary.filters:
        parts += ["", _render_filters(summary.filters, objective)]
    validated = validated_share(summary)
    if validated is not None:
        parts += ["", Text(f"{validated:.1%} of the live queries are in bands that are validated")]
    return Group(*parts)


def _render_filters(found: tuple[FilterRecall, ...], objective: float) -> RenderableType:
    def cells(one: FilterRecall) -> tuple[object, ...]:
        known = one.recall != RECALL_UNKNOWN
        below = known and one.recall < objective
        return (
            format_expression(one.filter),
            one.matches,
            share(one.matches, one.live_rows),
            one.queries,
            Text(f"{one.recall:.4f}", style="red" if below else "") if known else None,
            plans_text(one.plans),
        )

    return table(
        ["FILTER", ">MATCHES", ">SELECTIVITY", ">QUERIES", ">RECALL", "PLANS"], map(cells, found)
    )
