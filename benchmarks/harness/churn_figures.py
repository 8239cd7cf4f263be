"""What the rows of the churn benchmark must fulfil, and their picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.drawing import Line, Panel, drawing
from benchmarks.harness.report import Requirement, Row

HEALING = "annheal"
HEALING_OFF = "annheal, healing off"
FAISS = "faiss, tombstones"
HNSWLIB = "hnswlib, replacing"
FRESH = "annheal, fresh build"
REFERENCE = "annheal, as in cycle 0"
SYSTEMS = {"annheal": HEALING, "unhealed": HEALING_OFF, "faiss": FAISS, "hnswlib": HNSWLIB}
"""Systems by the words of the command line, in the order of the picture."""

RECALL_MIN = 0.95
RECALL_LOSS_MAX = 0.01
P99_RATIO_MAX = 1.3
FOOTPRINT_RATIO_MAX = 1.5

_COLORS = {
    HEALING: "#0f766e",
    HEALING_OFF: "#d97706",
    FAISS: "#2563eb",
    HNSWLIB: "#9333ea",
}
_PANELS = (
    ("recall", "recall@10", "higher is better", 3, False),
    (
        "p99_ms",
        "p99 latency, ms",
        "one caller, idle; servers over gRPC, libraries in process",
        1,
        True,
    ),
    ("memory_mb", "resident memory, MB", "whole process", 0, True),
    ("disk_mb", "disk, MB", "everything stored; libraries: index file", 0, True),
)


def loss_along_line(recalls: Sequence[float]) -> float:
    """Return by how much recall falls from the first to the last of equally spaced values.

    That is the fall of the line of least squares. Each build chooses its own ef, so recall varies
    from cycle to cycle (ADR 41); two single cycles differ by more than is lost or won over all.
    """
    if len(recalls) < 2:
        return 0.0
    slope = float(np.polyfit(np.arange(len(recalls)), recalls, 1)[0])
    return -slope * (len(recalls) - 1)


def check(rows: Sequence[Row]) -> list[Requirement]:
    """Return what is required of Annheal with healing, and whether it holds; [] without it."""
    own = sorted((row for row in rows if row["system"] == HEALING), key=lambda row: row["cycle"])
    fresh = next((row for row in rows if row["system"] == FRESH), None)
    if not own or fresh is None:
        return []
    last = own[-1]
    recalls = [row["recall"] for row in own]
    worst, lost = min(recalls), loss_along_line(recalls)
    slowest = max(own, key=lambda row: row["p99_ratio"])
    ghosts = sum(row["ghosts"] for row in own)
    failures = sum(row["failures"] for row in own)
    found = [
        Requirement(
            f"recall >= {RECALL_MIN} at every cycle", worst >= RECALL_MIN, f"lowest {worst:.4f}"
        ),
        Requirement(
            f"recall falls by no more than {RECALL_LOSS_MAX} over all cycles",
            lost <= RECALL_LOSS_MAX,
            f"by {lost:.4f} along the line of best fit; cycle 0 {own[0]['recall']:.4f},"
            f" last {last['recall']:.4f}",
        ),
        Requirement(
            f"p99 at rest <= {P99_RATIO_MAX} times that of a server left as in cycle 0",
            slowest["p99_ratio"] <= P99_RATIO_MAX,
            f"highest in cycle {slowest['cycle']}, {slowest['p99_ms']:.2f} ms:"
            f" {slowest['p99_ratio']:.2f} times",
        ),
        Requirement("no ghosts", ghosts == 0, f"{ghosts} hits were deleted or replaced"),
        Requirement("no query or write failed", failures == 0, f"{failures} failed"),
    ]
    for key, what in (("memory_mb", "memory"), ("disk_mb", "disk")):
        ratio = last[key] / fresh[key]
        found.append(
            Requirement(
                f"{what} within {FOOTPRINT_RATIO_MAX} times a fresh build",
                ratio <= FOOTPRINT_RATIO_MAX,
                f"{last[key]:.0f} MB, fresh {fresh[key]:.0f} MB: {ratio:.2f} times",
            )
        )
    return found


def draw(rows: Sequence[Row]) -> str:
    """Return the picture as SVG: a panel for each figure, a line for each system."""
    systems = [name for name in SYSTEMS.values() if any(row["system"] == name for row in rows)]
    panels = []
    for key, title, note, digits, from_zero in _PANELS:
        lines = [
            Line(
                name,
                _COLORS[name],
                tuple(
                    (float(row["cycle"]), float(row[key])) for row in rows if row["system"] == name
                ),
                bold=name == HEALING,
            )
            for name in systems
        ]
        panels.append(Panel(title, note, tuple(lines), digits=digits, from_zero=from_zero))
    cycles = max((row["cycle"] for row in rows), default=0)
    live = [row["live_rows"] for row in rows if row["cycle"] in (0, cycles)]
    subtitle = (
        f"{cycles} cycles, each deletes and upserts a tenth of the rows that live"
        f" ({live[0]:,} in the beginning, {live[-1]:,} in the end)"
    )
    return drawing(panels, title="An index under churn", subtitle=subtitle, x_title="cycle")
