"""Whether a merge extends the graph of a source, its base, or rebuilds the graph. Pure.

A rebuild inserts every row into an empty graph. To add a row to the base costs as much as in a
rebuild; to remove a dead row and repair its neighbours costs about twice as much. So a base saves
time while few of its rows are dead and few rows are new. The loss of recall (drift) is measured
after the build, by comparison with the last rebuilt graph (`drift_reason`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from annheal.model.collection import IndexSettings
from annheal.segment import RecallPoint

BASE_ROWS_MIN = 10_000
"""Rows of an output below which the graph is always rebuilt, which takes about a second."""
DEAD_SHARE_MAX = 0.3
"""Share of a base's rows that may be dead. Ten replacements of 0.3 of the rows lost no recall, but
each took 0.8 of a rebuild's time. `COST_SHARE_MAX` refuses a base earlier, from about 0.26 on."""
REPAIR_COST = 2.0
"""Cost to remove a row from a base, by the cost to add one.

Measured: 2.2 at 95,000 rows of which 0.06 are removed, 2.0 at 20,000 of which 0.2 are. It is
higher for smaller shares (3 at 0.05 to 0.1) and lower for larger ones (0.8 at 0.5).
"""
COST_SHARE_MAX = 0.7
"""Expected cost of an incremental merge, as a share of a rebuild's, above which it is rebuilt."""
MERGES_MAX = 20
"""Incremental merges of one graph; the next merge rebuilds it.

At 95,000 rows the recall of an extended graph was 0.003 below that of a rebuilt one after one
merge, and 0.005 below after ten.
"""
DRIFT_MAX = 0.015
"""How much lower the recall of an extended graph may be than that of the last rebuilt one.

Both are measured at the same ef with 1,000 queries, which alone gives differences of about 0.006.
"""
GROWTH_DRIFT = 0.012
"""Recall that a rebuilt graph loses per doubling of its rows (0.976 at 20,000, 0.951 at 89,000)."""


@dataclass(frozen=True, slots=True)
class BaseCandidate:
    """A source as a possible base.

    Attributes:
        rows: all rows of the source.
        kept_rows: rows that stay in its graph: live and not held out.
        settings: the settings of its graph; None when it has no graph that can be extended.
        merges: incremental merges of its graph since the last rebuild.
        reference: the recall curve after that rebuild.
    """

    rows: int
    kept_rows: int
    settings: IndexSettings | None
    merges: int = 0
    reference: Sequence[RecallPoint] = ()


@dataclass(frozen=True, slots=True)
class BasePlan:
    """`base` is the position of the base among the sources; None: rebuild, for the reason `why`."""

    base: int | None
    why: str = ""


def plan_base(
    sources: Sequence[BaseCandidate],
    *,
    rows: int,
    rebuild_why: str,
    allowed: Sequence[IndexSettings],
    recall_k: int,
) -> BasePlan:
    """Return the base of a merge with `rows` rows: the source with the largest graph, if it is fit.

    `rebuild_why`, unless it is empty, forces a rebuild and says why. `allowed` are the settings
    that a graph of the collection may have now; `recall_k` is the k of its recall objective.
    """
    if rebuild_why:
        return BasePlan(None, rebuild_why)
    if rows < BASE_ROWS_MIN:
        return BasePlan(None, "few rows")
    graphs = [n for n, source in enumerate(sources) if source.settings is not None]
    if not graphs:
        return BasePlan(None, "no source has a graph")
    best = max(graphs, key=lambda n: sources[n].kept_rows)
    refusal = _refusal_reason(sources[best], rows=rows, allowed=allowed, recall_k=recall_k)
    return BasePlan(None, refusal) if refusal else BasePlan(best)


def cost_share(source: BaseCandidate, *, rows: int) -> float:
    """Return the expected cost of an incremental merge on `source`, as a share of a rebuild's.

    `rows` are those of the output.
    """
    removed = source.rows - source.kept_rows
    return (rows - source.kept_rows + REPAIR_COST * removed) / rows


def drift_reason(
    curve: Sequence[RecallPoint],
    reference: Sequence[RecallPoint],
    *,
    k: int,
    objective: float,
    growth: float,
) -> str:
    """Return why an extended graph with the recall curve `curve` is refused, "" when it is not.

    It must meet the objective at `k`. At the ef at which the last rebuilt graph, with the curve
    `reference`, met the objective, its recall may be lower by `DRIFT_MAX`, and by `GROWTH_DRIFT`
    for each doubling of the rows. `growth` is the number of rows by that of the rebuilt graph.
    """
    measured = {p.ef: p for p in curve if p.k == k and not p.band}
    best = max((point.recall for point in measured.values()), default=0.0)
    if best < objective:
        return f"recall {best:.4f} is below the objective"
    before = sorted((p for p in reference if p.k == k and not p.band), key=lambda p: p.ef)
    met = next((point for point in before if point.recall >= objective), None)
    if met is None:
        return "the last rebuilt graph did not meet the objective: no recall to compare with"
    # A curve ends at a high recall: for a larger ef recall is at least that of its last point.
    found = measured.get(met.ef) or max(measured.values(), key=lambda point: point.ef)
    tolerated = DRIFT_MAX + GROWTH_DRIFT * max(0.0, math.log2(growth))
    if found.recall < met.recall - tolerated:
        return (
            f"recall {found.recall:.4f} at ef {met.ef} was {met.recall:.4f} after the last rebuild"
        )
    return ""


def _refusal_reason(
    base: BaseCandidate, *, rows: int, allowed: Sequence[IndexSettings], recall_k: int
) -> str:
    """Return why the graph of `base` should not be extended, "" when it may be."""
    if base.settings not in allowed:
        return f"its settings {base.settings} are no longer those of the collection"
    if base.merges >= MERGES_MAX:
        return f"the graph has had {base.merges} merges since its last rebuild"
    if not any(point.k == recall_k and not point.band for point in base.reference):
        return "the recall of the graph was not measured at the collection's k"
    dead = base.rows - base.kept_rows
    if dead > DEAD_SHARE_MAX * base.rows:
        return f"{dead} of {base.rows} rows of the graph are dead"
    share = cost_share(base, rows=rows)
    if share > COST_SHARE_MAX:
        return f"an incremental merge would cost {share:.2f} of a rebuild"
    return ""
