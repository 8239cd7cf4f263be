"""The picture of the benchmark of published recall: what was true, and what was said, over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.harness.drawing import Line, Panel, drawing
from benchmarks.harness.recall_windows import OVERALL, Answers, Window

BLOCK_S = 10.0
TRUE, ESTIMATE, ENDS = "#0f766e", "#d97706", "#fbbf24"
TRUE_NAME, ESTIMATE_NAME, LOW_NAME, HIGH_NAME = (
    f"recall of the answers, {BLOCK_S:g} s each",
    "published, as served",
    "its interval",
    "",
)


def panel_of(
    name: str,
    answers: Answers,
    windows: Sequence[Window],
    *,
    phases: Sequence[tuple[str, float]],
    end_s: float,
) -> Panel:
    """Return the panel of a condition; `phases` are names and beginnings, as of the first."""
    start_s = phases[0][1]
    blocks = range(math.ceil((end_s - start_s) / BLOCK_S))
    true = [
        (block * BLOCK_S, answers.mean(at_s, at_s + BLOCK_S))
        for block in blocks
        for at_s in [start_s + block * BLOCK_S]
        if answers.count(at_s, at_s + BLOCK_S)
    ]
    overall = [one for one in windows if one.slice == OVERALL]

    def steps(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
        ends = [*(one.seen_s for one in overall[1:]), end_s][: len(overall)]
        return tuple(
            (at_s - start_s, value)
            for one, until_s, value in zip(overall, ends, values, strict=True)
            for at_s in (one.seen_s, until_s)
        )

    changes = ", ".join(f"{label} from {at_s - start_s:.0f} s" for label, at_s in phases)
    lines = (
        Line(TRUE_NAME, TRUE, tuple(true), bold=True),
        Line(ESTIMATE_NAME, ESTIMATE, steps([one.recall for one in overall])),
        Line(LOW_NAME, ENDS, steps([one.low for one in overall])),
        Line(HIGH_NAME, ENDS, steps([one.high for one in overall])),
    )
    return Panel(name, changes, lines, digits=2, from_zero=False)


def draw(panels: Sequence[Panel]) -> str:
    """Return the picture as SVG, a panel for each condition."""
    return drawing(
        panels,
        title="Recall as published and as it was",
        subtitle="each condition on a server of its own with default settings",
        x_title="seconds",
    )
