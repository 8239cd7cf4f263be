"""Cells of the tables about recall."""

from __future__ import annotations

from rich.text import Text

from annheal.cli.output import moment
from annheal.model.measures.recall import RecallEstimate
from annheal.model.measures.recall_summary import RecallVerdict

_STYLES = {
    RecallVerdict.MET: "green",
    RecallVerdict.MET_WITH_BAD_TAIL: "bold yellow",
    RecallVerdict.UNCLEAR: "yellow",
    RecallVerdict.MISSED: "bold red",
    RecallVerdict.UNMEASURED: "dim",
    RecallVerdict.UNKNOWN: "dim",
    RecallVerdict.NOT_JUDGED: "dim",
    RecallVerdict.RECOVERING: "yellow",
}


def verdict_text(verdict: RecallVerdict) -> Text:
    """Return a verdict, coloured."""
    return Text(verdict.value, style=_STYLES[verdict])


def until_text(estimate: RecallEstimate | None) -> str | None:
    """Return the time of day at which the last of the queries was asked."""
    end = moment(estimate.window_end_s) if estimate is not None else None
    return None if end is None else end.split()[-1]


def estimate_cells(estimate: RecallEstimate | None) -> tuple[object, object, object]:
    """Return recall, its interval and the number of queries; of no estimate nothing."""
    if estimate is None or not estimate.queries:
        return None, None, 0
    return recall_text(estimate), interval_text(estimate), estimate.queries


def recall_text(estimate: RecallEstimate) -> str:
    """Return the mean recall."""
    return f"{estimate.recall:.4f}"


def interval_text(estimate: RecallEstimate) -> str:
    """Return its 95 % interval."""
    return f"{estimate.low:.4f} to {estimate.high:.4f}"
