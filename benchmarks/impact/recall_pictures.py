"""Draws what a measured recall says and what it hides, from samples of planted populations.

The true recall of these populations is known, so the pictures show how far measurements are from
it. `--svg-dir` is where they are written; docs/recall.md shows them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt

from annheal.recall.interval import mean_interval
from benchmarks.datasets.recall_populations import BY_NAME, RecallPopulation
from benchmarks.harness.drawing import Line, Panel, drawing
from benchmarks.harness.report import report_console

Values = npt.NDArray[np.float64]

SEED = 17
K = 10
SAMPLES, SAMPLE_QUERIES = 60, 64
"""So many samples of so many queries are drawn for the picture of repeated measurements."""
NS = (16, 32, 64, 128, 256, 512, 1024)
REPEATS = 100
TAIL_QUERIES = 20_000
POPULATION = "5 % hard"
TRUE, MEASURED, ENDS = "#0f766e", "#d97706", "#fbbf24"


def repeated(population: RecallPopulation) -> Panel:
    """Return the intervals of many samples beside the true recall, sorted by their means."""
    random = np.random.default_rng(SEED)
    drawn = population.draw(random, samples=SAMPLES, n=SAMPLE_QUERIES, k=K)
    found = sorted((mean_interval(row) for row in drawn.values), key=lambda one: one.mean)
    held = sum(one.low <= population.mean <= one.high for one in found)
    return Panel(
        f"{SAMPLES} measurements of {SAMPLE_QUERIES} queries each",
        f"{held} of the {SAMPLES} intervals contain the true recall of {population.mean:.3f}",
        _lines(
            population.mean,
            range(1, SAMPLES + 1),
            means=[one.mean for one in found],
            lows=[one.low for one in found],
            highs=[one.high for one in found],
        ),
        digits=2,
        from_zero=False,
        x_title="measurement, sorted by its result",
    )


def by_queries(population: RecallPopulation) -> Panel:
    """Return the mean interval over the number of queries that were measured."""
    random = np.random.default_rng(SEED)
    means, lows, highs = [], [], []
    for n in NS:
        drawn = population.draw(random, samples=REPEATS, n=n, k=K)
        found = [mean_interval(row) for row in drawn.values]
        means.append(float(np.mean([one.mean for one in found])))
        lows.append(float(np.mean([one.low for one in found])))
        highs.append(float(np.mean([one.high for one in found])))
    return Panel(
        "More queries, a narrower interval",
        f"from {lows[0]:.2f} to {highs[0]:.2f} with {NS[0]} queries,"
        f" {lows[-1]:.3f} to {highs[-1]:.3f} with {NS[-1]:,}",
        _lines(population.mean, NS, means=means, lows=lows, highs=highs),
        digits=2,
        from_zero=False,
        x_title="queries measured",
    )


def tail(population: RecallPopulation, *, title: str) -> Panel:
    """Return the share of queries that found at most so many of their k neighbours."""
    random = np.random.default_rng(SEED)
    drawn = population.draw(random, samples=1, n=TAIL_QUERIES, k=K).values[0]
    counts = np.bincount(np.rint(drawn * K).astype(np.int64), minlength=K + 1)
    at_most = 100.0 * np.cumsum(counts)[: K - 1] / len(drawn)
    return Panel(
        title,
        f"mean {drawn.mean():.3f}; {at_most[K // 2]:.1f} % found at most {K // 2} of {K}",
        (
            Line(
                "% of the queries that found at most so many", TRUE, _points(range(K - 1), at_most)
            ),
        ),
        digits=0,
    )


def pictures() -> dict[str, str]:
    """Return the pictures as SVG by file name."""
    mixed = BY_NAME[POPULATION]
    alike = RecallPopulation("alike", mixed.mean, lambda random, shape: np.full(shape, mixed.mean))
    return {
        "recall-interval.svg": drawing(
            [repeated(mixed), by_queries(mixed)],
            title="What a measured recall says",
            subtitle="planted queries, of which 95 % are easy and 5 % are hard",
            x_title="",
        ),
        "recall-tail.svg": drawing(
            [tail(alike, title="All queries alike"), tail(mixed, title="95 % easy, 5 % hard")],
            title="What the mean hides",
            subtitle=f"two loads of equal mean recall@{K}",
            x_title=f"neighbours found, of {K}",
        ),
    }


def _lines(
    truth: float,
    xs: Sequence[int],
    *,
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
) -> tuple[Line, ...]:
    return (
        Line("true recall", TRUE, ((xs[0], truth), (xs[-1], truth)), bold=True),
        Line("measured", MEASURED, _points(xs, means)),
        Line("its 95 % interval", ENDS, _points(xs, lows)),
        Line("", ENDS, _points(xs, highs)),
    )


def _points(xs: Sequence[int], ys: Sequence[float] | Values) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in zip(xs, ys, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(prog="recall_pictures.py", description=__doc__)
    parser.add_argument("--svg-dir", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(arguments)
    given.svg_dir.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (given.svg_dir / name).write_text(text)
        report_console().print(f"drawn to {given.svg_dir / name}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
