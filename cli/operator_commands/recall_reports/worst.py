"""`annheal recall --worst`: the live queries that find least, and what they miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from annheal.cli.output import moment, printable, table
from annheal.cli.state import State
from annheal.filters import format_expression
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.measures.recall_worst import LiveQuery, ShownHit, WorstQuery, WorstReport

SHOWN_MAX = 10
"""Hits of a query that a table names; JSON has up to 100."""


def show_worst(state: State, collection: str, *, queries_max: int) -> None:
    """Look the worst queries up, say that it may take a while, and show them."""
    state.output.note("searching the sampled queries again, and exactly ...")
    with state.client(default_s=TIMEOUT_MAX_S) as client:
        report = client.worst_queries(collection, queries_max=queries_max)
    state.output.show(worst_document(report), lambda _: render_worst(report))


def worst_document(report: WorstReport) -> dict[str, Any]:
    """Return the list as JSON shows it: with vectors, and filters as expressions."""
    return {
        "collection": report.collection,
        "sampled": report.sampled,
        "reviewed": report.reviewed,
        "queries": [_document(one) for one in report.queries],
        "errors": report.errors,
    }


def _document(one: WorstQuery) -> dict[str, Any]:
    query = one.query
    return {
        "band": query.band.value,
        "recall": one.recall,
        "found_nothing": one.found_nothing,
        "asked_at_s": query.asked_at_s,
        "k": query.k,
        "ef": query.ef,
        "recall_objective": query.objective,
        "filter": None if query.filter is None else format_expression(query.filter),
        "vector": query.vector.tolist(),
        "returned": [{"id": hit.id, "score": hit.score} for hit in one.returned],
        "missed": [{"id": hit.id, "score": hit.score} for hit in one.missed],
        "missed_count": one.missed_count,
    }


def render_worst(report: WorstReport) -> RenderableType:
    """Return a table of the queries, then what each returns and misses."""
    errors = [
        Text(f"node {node} was not asked: {error}", style="yellow")
        for node, error in report.errors.items()
    ]
    head = f"{report.reviewed:,} of {report.sampled:,} sampled queries were searched again"
    if not report.queries:
        found = "each of them finds everything" if report.reviewed else "there is none to look at"
        return Group(f"{head}; {found}", *errors)
    rows = table(
        ["#", "BAND", ">RECALL", "ASKED", ">K", ">EF", ">OBJECTIVE", "FILTER", ""],
        (_cells(number, one) for number, one in enumerate(report.queries, start=1)),
    )
    details = [
        Text(f"#{number} {kind}: {_hits(hits, count)}")
        for number, one in enumerate(report.queries, start=1)
        for kind, hits, count in (
            ("returned", one.returned, len(one.returned)),
            ("missed", one.missed, one.missed_count),
        )
    ]
    return Group(head, "", rows, "", *details, *errors)


def _cells(number: int, one: WorstQuery) -> tuple[object, ...]:
    query = one.query
    return (
        f"#{number}",
        query.band.value,
        f"{one.recall:.2f}",
        moment(query.asked_at_s),
        query.k,
        query.ef,
        query.objective,
        _filter(query),
        Text("nothing right", style="bold red") if one.found_nothing else None,
    )


def _filter(query: LiveQuery) -> str | None:
    return None if query.filter is None else printable(format_expression(query.filter))


def _hits(hits: Sequence[ShownHit], count: int) -> str:
    if not hits:
        return "nothing"
    named = ", ".join(f"{printable(hit.id)} ({hit.score:.4g})" for hit in hits[:SHOWN_MAX])
    more = count - min(len(hits), SHOWN_MAX)
    return f"{named} and {more:,} more" if more > 0 else named
