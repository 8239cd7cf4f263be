"""Whether a merge goes on with the graph of a source or builds a new one. Pure.

Adding rows to a graph costs what they would cost in a new one; repairing what dead rows leave
behind costs about twice their share of a new one. So a base saves time while few of its rows are
dead and few are new. What it costs in recall is measured after the build (`drift_of`), against the
last graph that was built in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from annheal.model.collection import IndexSettings
from annheal.segment import RecallPoint

BASE_ROWS_MIN = 10_000
"""Rows of an output below which a graph is always built anew: about a second's work."""
DEAD_SHARE_MAX = 0.3
"""Of a base's rows. Replacing 0.3 of them ten times cost no recall, but 0.8 of a rebuild's time.

With the costs below `COST_SHARE_MAX` refuses a base before, from 0.26 on.
"""
REPAIR_COST = 2.0
"""Cost of removing a row from a base, in costs of adding one.

Measured: 2.2 at 95,000 rows with 0.06 of them removed, 2.0 at 20,000 with 0.2. It is higher where
fewer are removed (3 at 0.05 to 0.1) and lower where many are (0.8 at 0.5).
"""
COST_SHARE_MAX = 0.7
"""A merge that is expected to cost more than this share of a rebuild is not worth its drift."""
MERGES_MAX = 20
"""Merges on one graph; the next one builds anew.

At 95,000 rows a merged graph found 0.003 less than a rebuilt one after one merge and 0.005 after
ten.
"""
DRIFT_MAX = 0.015
"""Recall that a merged graph may have less than the last rebuilt one, at the same ef.

Each is measured with 1,000 queries, which alone makes differences of 0.006 usual.
"""
GROWTH_DRIFT = 0.012
"""What a rebuilt graph loses as well when its rows double (0.976 at 20,000, 0.951 at 89,000)."""


@dataclass(frozen=True, slots=True)
class MergeSource:
    """What a source has to offer as a base.

    `rows` and `kept_rows`: all, and those that live on in its graph (live and not held out).
    `settings` is None where there is no graph over full vectors to go on with. `merges`: how many
    merges went on with its graph since it was built in one piece; `reference` the curve of that
    build.
    """

    rows: int
    kept_rows: int
    settings: IndexSettings | None
    merges: int = 0
    reference: Sequence[RecallPoint] = ()


@dataclass(frozen=True, slots=True)
class MergePlan:
    """`base` is the number of the source to go on with; None builds anew, for the reason `why`."""

    base: int | None
    why: str = ""


def plan_merge(
    sources: Sequence[MergeSource],
    *,
    rows: int,
    anew: bool,
    settings: Sequence[IndexSettings],
    recall_k: int,
) -> MergePlan:
    """Return the way to build `rows` rows: on the largest graph that is fit for it, or anew.

    `anew` asks for a new one. `settings` are those that a graph of the collection may have now.
    """
    if anew:
        return MergePlan(None, "it was asked for")
    if rows < BASE_ROWS_MIN:
        return MergePlan(None, "few rows")
    graphs = [n for n, source in enumerate(sources) if source.settings is not None]
    if not graphs:
        return MergePlan(None, "no source has a graph over full vectors")
    best = max(graphs, key=lambda n: sources[n].kept_rows)
    refused = _refusal(sources[best], rows=rows, settings=settings, recall_k=recall_k)
    return MergePlan(None, refused) if refused else MergePlan(best)


def cost_share(source: MergeSource, *, rows: int) -> float:
    """Return the expected cost of a merge of `rows` rows on `source`, by that of a rebuild."""
    removed = source.rows - source.kept_rows
    return (rows - source.kept_rows + REPAIR_COST * removed) / rows


def drift_of(
    curve: Sequence[RecallPoint],
    reference: Sequence[RecallPoint],
    *,
    k: int,
    objective: float,
    growth: float,
) -> str:
    """Return why a merged graph with `curve` must not stay, "" when it may.

    It has to meet the objective at the collection's k, and to find about as much as the last
    rebuilt graph (`reference`) at the ef at which that one met it. `growth`: rows by those of it.
    """
    measured = {p.ef: p for p in curve if p.k == k and not p.band}
    best = max((point.recall for point in measured.values()), default=0.0)
    if best < objective:
        return f"recall {best:.4f} is below the objective"
    before = sorted((p for p in reference if p.k == k and not p.band), key=lambda p: p.ef)
    met = next((point for point in before if point.recall >= objective), None)
    if met is None:
        return "there is nothing to compare it with"
    # A curve ends where it is good enough: beyond its end it is at least as good as there.
    found = measured.get(met.ef) or max(measured.values(), key=lambda point: point.ef)
    tolerated = DRIFT_MAX + GROWTH_DRIFT * max(0.0, math.log2(growth))
    if found.recall < met.recall - tolerated:
        return (
            f"recall {found.recall:.4f} at ef {met.ef} was {met.recall:.4f} after the last rebuild"
        )
    return ""


def _refusal(
    base: MergeSource, *, rows: int, settings: Sequence[IndexSettings], recall_k: int
) -> str:
    if base.settings not in settings:
        return f"its settings {base.settings} are no longer those of the collection"
    if base.merges >= MERGES_MAX:
        return f"{base.merges} merges went on with the same graph"
    if not any(point.k == recall_k and not point.band for point in base.reference):
        return "the graph was not measured at the collection's k"
    dead = base.rows - base.kept_rows
    if dead > DEAD_SHARE_MAX * base.rows:
        return f"{dead} of {base.rows} rows of the graph are dead"
    share = cost_share(base, rows=rows)
    if share > COST_SHARE_MAX:
        return f"it would cost {share:.2f} of a rebuild"
    return ""
