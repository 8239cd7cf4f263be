"""Line charts as SVG, two panels a row. Nothing to install, and readable as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

PANEL_WIDTH, PANEL_HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 52, 38
_HEAD, _LEGEND, _MARGIN = 62, 34, 16
_TICKS = 4
_STYLE = """
  text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2937; }
  .title { font-size: 18px; font-weight: 600; }
  .note { font-size: 11px; fill: #6b7280; }
  .panel { font-size: 13px; font-weight: 600; }
  .tick { font-size: 11px; fill: #6b7280; }
  .legend { font-size: 12px; }
  .paper { fill: #ffffff; }
  .grid { stroke: #e5e7eb; stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb; }
    .note, .tick { fill: #9ca3af; }
    .paper { fill: #111827; }
    .grid { stroke: #374151; }
  }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) of one name, ascending by x; without a name it is not in the legend."""

    name: str
    color: str
    points: tuple[tuple[float, float], ...]
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart; ticks of y have `digits` after the point. `from_zero`: y begins at 0.

    `x_title` is what x is, if that is particular to this chart.
    """

    title: str
    note: str
    lines: tuple[Line, ...]
    digits: int = 0
    from_zero: bool = True
    x_title: str = ""


def drawing(panels: Sequence[Panel], *, title: str, subtitle: str, x_title: str) -> str:
    """Return the panels as one SVG document with a legend."""
    rows = math.ceil(len(panels) / 2)
    width = 2 * PANEL_WIDTH + 2 * _MARGIN
    height = _HEAD + rows * PANEL_HEIGHT + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
        _text(_MARGIN + 8, 30, title, "title"),
        _text(_MARGIN + 8, 50, subtitle, "note"),
    ]
    for number, panel in enumerate(panels):
        x = _MARGIN + number % 2 * PANEL_WIDTH
        y = _HEAD + number // 2 * PANEL_HEIGHT
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(panel, panel.x_title or x_title)
        parts.append("</g>")
    parts += _legend(panels[0].lines if panels else (), height - 12)
    return "\n".join([*parts, "</svg>", ""])


def ticks(low: float, high: float) -> list[float]:
    """Return round values about evenly from `low` to `high`, the first at most `low`."""
    span = high - low or abs(high) or 1.0
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _panel(panel: Panel, x_title: str) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    if not points:
        return []
    right = max(x for x, _ in points)
    ys = [y for _, y in points]
    values = ticks(0.0 if panel.from_zero else min(ys), max(ys))
    low, high = values[0], values[-1]
    inner_width = PANEL_WIDTH - _LEFT - _RIGHT
    inner_height = PANEL_HEIGHT - _TOP - _BOTTOM

    def at_x(x: float) -> float:
        return _LEFT + inner_width * x / (right or 1.0)

    def at_y(y: float) -> float:
        return _TOP + inner_height * (high - y) / (high - low)

    parts = [_text(_LEFT, 18, panel.title, "panel"), _text(_LEFT, 34, panel.note, "note")]
    for value in values:
        y = at_y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{PANEL_WIDTH - _RIGHT}" y1="{y:.1f}"'
            f' y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{value:,.{panel.digits}f}", "tick", "end"))
    for value in ticks(0.0, right):
        if value <= right and value == int(value):
            y = PANEL_HEIGHT - _BOTTOM + 16
            parts.append(_text(at_x(value), y, f"{value:.0f}", "tick", "middle"))
    middle = _LEFT + inner_width / 2
    parts.append(_text(middle, PANEL_HEIGHT - 6, x_title, "tick", "middle"))
    for line in sorted(panel.lines, key=lambda one: one.bold):
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        stroke = 3 if line.bold else 1.75
        parts.append(
            f'<polyline fill="none" stroke="{line.color}" stroke-width="{stroke}"'
            f' stroke-linejoin="round" stroke-linecap="round" points="{path}"/>'
        )
    return parts


def _legend(lines: Sequence[Line], y: float) -> list[str]:
    parts: list[str] = []
    x = float(_MARGIN + 8)
    for line in (one for one in lines if one.name):
        stroke = 3 if line.bold else 1.75
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="{y - 4}" y2="{y - 4}" stroke="{line.color}"'
            f' stroke-width="{stroke}" stroke-linecap="round"/>'
        )
        parts.append(_text(x + 28, y, line.name, "legend"))
        x += 28 + 7.0 * len(line.name) + 28
    return parts


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
