"""How searches take now against earlier ones of the same volume, for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from annheal.cli.output import table
from annheal.model.measures.latency import LatencyTrend, TrendRatio, TrendVerdict

_STYLES = {
    TrendVerdict.UNKNOWN: "dim",
    TrendVerdict.STEADY: "green",
    TrendVerdict.SLOWER: "bold red",
    TrendVerdict.FASTER: "green",
}


def render_latency(trends: Mapping[str, LatencyTrend]) -> RenderableType:
    """Return a row for each node: its volume, its times by those before, and what that says.

    A node with nothing to compare gets a sentence instead, and one that got slower one more.
    """
    known = [item for item in sorted(trends.items()) if item[1].p50 is not None]
    columns = ["NODE", ">QUERIES/S", ">P50", ">OF BEFORE", ">P99", ">OF BEFORE", "SEARCHES"]
    parts: list[RenderableType] = []
    if known:
        parts.append(table(columns, (_row(node, trend) for node, trend in known)))
    return Group(*parts, *(Text(words) for words in sentences(trends)))


def sentences(trends: Mapping[str, LatencyTrend]) -> list[str]:
    """Return what is to be said of each node whose searches are slower or cannot be compared."""
    said = []
    for node, trend in sorted(trends.items()):
        if trend.p50 is None:
            said.append(f"node {node}: searches by volume are not comparable yet: {trend.reason}")
        elif trend.verdict is TrendVerdict.SLOWER:
            said.append(
                f"node {node}: half of the searches take {trend.p50.ratio:.2f} times"
                f" ({trend.p50.low:.2f} to {trend.p50.high:.2f}) what they took at this volume"
                f"; {_cause(trend.visited)}"
            )
    return said


def _row(node: str, trend: LatencyTrend) -> tuple[object, ...]:
    return (
        node,
        f"{trend.queries_per_s:,.3g}",
        *_seconds(trend.p50),
        *_seconds(trend.p99),
        Text(trend.verdict.value, style=_STYLES[trend.verdict]),
    )


def _seconds(ratio: TrendRatio | None) -> tuple[object, object]:
    if ratio is None:
        return None, None
    return f"{ratio.now * 1e3:.3g} ms", f"{ratio.ratio:.2f}"


def _cause(visited: TrendRatio | None) -> str:
    """Return what lies near: more rows compared, or a slower machine."""
    if visited is not None and visited.verdict is TrendVerdict.SLOWER:
        return (
            f"{visited.ratio:.2f} times as many rows are compared for a query (a higher ef, more"
            " rows, other filters)"
        )
    return "not because more rows are compared: look at the machine"
