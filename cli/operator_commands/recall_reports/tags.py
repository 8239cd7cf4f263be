"""The part of `annheal recall` about tags: what clients call their kinds of queries."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType

from annheal.cli.operator_commands.recall_reports.cells import (
    estimate_cells,
    interval_text,
    recall_text,
    until_text,
    verdict_text,
)
from annheal.cli.output import share, table
from annheal.model.measures.recall_summary import (
    RecallSlice,
    RecallSummary,
    RecallVerdict,
    traffic_of,
)


def render_tags(tags: Sequence[RecallSlice]) -> RenderableType:
    """Return recall by tag; shares are those of the present queries with a tag."""
    weights = traffic_of(tags)
    total = sum(weights)
    columns = [
        "TAG", ">QUERIES", ">SHARE", ">RECALL", "INTERVAL", ">SERVED", ">MEASURED", "UNTIL",
        "OBJECTIVE",
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
                verdict_text(one.verdict),
            )
            for one, weight in zip(tags, weights, strict=True)
        ),
    )


def missed_tags(summary: RecallSummary) -> list[str]:
    """Return a sentence for each tag that certainly misses the objective."""
    sentences = []
    for one in summary.tags:
        if one.verdict is RecallVerdict.MISSED and one.estimate is not None:
            sentences.append(
                f"tag {one.name}: certainly below the objective, with a recall of"
                f" {recall_text(one.estimate)} ({interval_text(one.estimate)}); ef follows the"
                " bands, not the tags: have its clients set a recall_objective of their own"
            )
    return sentences
