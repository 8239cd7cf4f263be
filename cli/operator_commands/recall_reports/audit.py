"""`annheal recall --audit`: measured recall compared with queries that were not measured."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from annheal.cli.output import moment, table
from annheal.cli.state import State
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.measures.recall import RecallEstimate
from annheal.model.measures.recall_audit import AuditReport, AuditVerdict, BandAudit, covered
from annheal.model.measures.recall_summary import ALL_SHARDS

_STYLES = {
    AuditVerdict.CONTAINED: "green",
    AuditVerdict.OUTSIDE: "bold red",
    AuditVerdict.UNKNOWN: "dim",
}
_WORDS = {
    AuditVerdict.CONTAINED: "yes",
    AuditVerdict.OUTSIDE: "NO",
    AuditVerdict.UNKNOWN: "unknown",
}


def show_audit(state: State, collection: str, *, queries_max: int) -> None:
    """Audit every shard, say how far it is, and show the outcome."""

    def progress(done: int, shards: int) -> None:
        state.output.note(f"auditing shard {done} of {shards} ...")

    with state.client(default_s=TIMEOUT_MAX_S) as client:
        report = client.audit_recall(collection, queries_max=queries_max, progress=progress)
    state.output.show(audit_document(report), lambda _: render_audit(report))


def audit_document(report: AuditReport) -> dict[str, Any]:
    """Return an audit as JSON shows it."""
    windows, contained = covered(report.coverage)
    document: dict[str, Any] = msgspec.to_builtins(report)
    share = contained / windows if windows else None
    return {**document, "windows": windows, "contained": contained, "coverage_share": share}


def render_audit(report: AuditReport) -> RenderableType:
    """Return a line for each estimate, why some say nothing, and the coverage so far."""
    columns = [
        ">SHARD", "BAND", "WINDOW", ">ESTIMATE", "INTERVAL", ">AUDITED", "ITS INTERVAL", ">QUERIES",
        ">LATER", "CONTAINED",
    ]  # fmt: skip
    every = (*report.merged, *report.audits)
    rows = table(columns, (_cells(one) for one in every))
    reasons = [
        Text(f"{_place(one)}, {one.band.value}: {one.reason}", style="dim")
        for one in every
        if one.reason
    ]
    windows, contained = covered(report.coverage)
    so_far = "coverage so far: no window has been audited"
    if windows:
        so_far = (
            f"coverage so far: {contained:,} of {windows:,} audited windows"
            f" ({contained / windows:.1%}); intervals promise 95 %"
        )
    if not report.audits:
        return Group(Text("no live query was measured, so there is nothing to audit"), so_far)
    return Group(rows, *reasons, "", so_far)


def _cells(one: BandAudit) -> tuple[object, ...]:
    audited = one.audited
    return (
        "all" if one.shard == ALL_SHARDS else one.shard,
        one.band.value,
        _window(one.estimate),
        f"{one.estimate.recall:.4f}",
        _interval(one.estimate),
        None if audited is None else f"{audited.recall:.4f}",
        None if audited is None else _interval(audited),
        0 if audited is None else audited.queries,
        one.later,
        Text(_WORDS[one.verdict], style=_STYLES[one.verdict]),
    )


def _place(one: BandAudit) -> str:
    return "answers over all shards" if one.shard == ALL_SHARDS else f"shard {one.shard}"


def _interval(estimate: RecallEstimate) -> str:
    return f"{estimate.low:.4f} to {estimate.high:.4f}"


def _window(estimate: RecallEstimate) -> str | None:
    begin, end = moment(estimate.window_begin_s), moment(estimate.window_end_s)
    if begin is None or end is None:
        return None
    return f"{begin.split()[-1]} to {end.split()[-1]}"
