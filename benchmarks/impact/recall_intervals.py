"""Do 95 % intervals of mean recall contain the true mean, and how wide are they?

Samples of queries are drawn from planted populations whose mean recall is known, and each method
computes its interval. *Coverage* is the share of the samples whose interval contains the mean. Then
bands that are sampled by themselves are combined, weighted by their share of the traffic.
`--repeats` is the number of samples of each population, k and n; slow methods get at most 150.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.recall.interval import Interval, Stratum, combine_strata, mean_interval
from benchmarks.datasets.recall_populations import (
    BANDS,
    BY_NAME,
    POPULATIONS,
    Bands,
    Drawn,
    RecallPopulation,
)
from benchmarks.harness.dataset import Dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import (
    Column,
    Report,
    Requirement,
    Row,
    print_report,
    report_console,
)
from benchmarks.systems.interval_methods import METHODS, SLOW, normal, wilson_kish

Values = npt.NDArray[np.float64]

SEED = 11
REPEATS = 400
REPEATS_SLOW = 150
KS = (1, 10, 100)
NS = (8, 16, 32, 64, 128, 256, 1024)
N_COVERED_MIN, COVERAGE_MIN = 32, 0.95
N_NARROW_MIN, MEAN_NARROW_MIN, WIDTH_MAX = 200, 0.9, 0.05
WIDTH_POSSIBLE_MAX = 0.045
"""A normal interval with the true standard deviation wider than this leaves no room for another."""
COST_N, COST_MAX_MS, COST_CALLS = 1024, 1.0, 200
CHOSEN, BEFORE = "one worse value", "Wilson, Kish"
BANDS_K = 10
ALL = "all"

METHOD_COLUMNS = (
    Column("method", "method"),
    Column("n", "n"),
    Column("coverage_min", "lowest coverage", 3),
    Column("at", "where"),
    Column("below", "cells below"),
    Column("cells", "of"),
    Column("width", "width", 3),
)
CELL_COLUMNS = (
    Column("population", "population"),
    Column("k", "k"),
    Column("n", "n"),
    Column("coverage", "coverage", 3),
    Column("width", "width", 3),
    Column("coverage_before", "before: coverage", 3),
    Column("width_before", "width", 3),
)
BAND_COLUMNS = (
    Column("population", "bands"),
    Column("method", "method"),
    Column("coverage", "coverage", 3),
    Column("width", "width", 3),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """The measurement of one method for one population, k and n.

    `possible` is the width of a normal interval with the population's standard deviation.
    """

    population: str
    k: int
    n: int
    method: str
    mean: float
    samples: int
    coverage: float
    width: float
    possible: float

    @property
    def covers(self) -> bool:
        """Whether coverage is 95 %, to three standard errors of the simulation."""
        error = math.sqrt(COVERAGE_MIN * (1.0 - COVERAGE_MIN) / self.samples)
        return self.coverage >= COVERAGE_MIN - 3.0 * error

    def row(self) -> Row:
        """Return the row of the JSON report."""
        return {
            "population": self.population,
            "k": self.k,
            "n": self.n,
            "method": self.method,
            "mean": self.mean,
            "samples": self.samples,
            "coverage": self.coverage,
            "width": self.width,
            "possible": self.possible,
        }


def measure_population(
    population: RecallPopulation, *, n: int, k: int, repeats: int
) -> Iterator[Cell]:
    """Yield the measurement of each method."""
    random = np.random.default_rng([SEED, n, k])
    drawn = population.draw(random, samples=repeats, n=n, k=k)
    possible = 2.0 * 1.96 * float(drawn.values.std()) / math.sqrt(n)
    for name, method in METHODS.items():
        few = min(repeats, REPEATS_SLOW) if name in SLOW else repeats
        values, truth = drawn.values[:few], drawn.truth[:few]
        if name == CHOSEN and (drawn.population or drawn.times is not None):
            low, high = chosen_ends(drawn)
        else:
            low, high = method(values, k)
        yield Cell(
            population.name,
            k,
            n,
            name,
            population.mean,
            few,
            coverage_of(low, high, truth),
            float((high - low).mean()),
            possible,
        )


def chosen_ends(drawn: Drawn) -> tuple[Values, Values]:
    """Return the ends, (r,), by the method in use, told how the samples were drawn."""
    found: list[Interval] = []
    for number, row in enumerate(drawn.values):
        if drawn.times is None:
            found.append(mean_interval(row, population=drawn.population))
            continue
        times = drawn.times[number]
        found.append(mean_interval(row[times > 0.0], times=times[times > 0.0]))
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def coverage_of(low: Values, high: Values, truth: Values) -> float:
    """Return the share of the intervals that contain the truth, to rounding."""
    return float(np.mean((low <= truth + 1e-9) & (truth - 1e-9 <= high)))


def measure_bands(bands: Bands, *, repeats: int) -> Iterator[Cell]:
    """Yield the measurement of each way to combine bands."""
    random = np.random.default_rng([SEED, BANDS_K])
    samples = [
        BY_NAME[name].draw(random, samples=repeats, n=n, k=BANDS_K).values if n else None
        for name, n in zip(bands.populations, bands.samples, strict=True)
    ]
    shares = bands.assumed or bands.shares
    ways = {
        CHOSEN: [_with_ends(part, CHOSEN) for part in samples],
        "before": [_with_ends(part, BEFORE) for part in samples],
        "normal": [_with_ends(part, "normal") for part in samples],
    }
    measured_only = {"before", "normal"}
    for name, parts in ways.items():
        low, high = np.empty(repeats), np.empty(repeats)
        for number in range(repeats):
            joined = combine_strata(
                Stratum(share, None if part is None else part[number])
                for share, part in zip(shares, parts, strict=True)
                if part is not None or name not in measured_only
            )
            assert joined is not None
            low[number], high[number] = joined.low, joined.high
        coverage = coverage_of(low, high, np.full(repeats, bands.mean))
        width = float((high - low).mean())
        yield Cell(
            bands.name,
            BANDS_K,
            sum(bands.samples),
            name,
            bands.mean,
            repeats,
            coverage,
            width,
            math.nan,
        )


def _with_ends(values: Values | None, method: str) -> list[Interval] | None:
    if values is None:
        return None
    if method == CHOSEN:
        return [mean_interval(row) for row in values]
    low, high = (wilson_kish if method == BEFORE else normal)(values, BANDS_K)
    means = values.mean(axis=1)
    return [Interval(*one) for one in zip(means.tolist(), low.tolist(), high.tolist(), strict=True)]


def method_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return a row for each method and n: the lowest coverage, and where; the mean width."""
    rows: list[Row] = []
    for method in METHODS:
        for n in NS:
            same = [one for one in cells if one.method == method and one.n == n]
            worst = min(same, key=lambda one: one.coverage)
            rows.append(
                {
                    "method": method,
                    "n": n,
                    "coverage_min": worst.coverage,
                    "at": f"{worst.population}, k {worst.k}",
                    "below": sum(not one.covers for one in same),
                    "cells": len(same),
                    "width": float(np.mean([one.width for one in same])),
                }
            )
    return rows


def cell_rows(cells: Sequence[Cell], *, ns: Sequence[int], k: int) -> list[Row]:
    """Return a row for each population and n: the method in use and the one before."""
    by_key = {(one.population, one.k, one.n, one.method): one for one in cells}
    rows: list[Row] = []
    for population in POPULATIONS:
        for n in ns:
            chosen = by_key[population.name, k, n, CHOSEN]
            before = by_key[population.name, k, n, BEFORE]
            row = chosen.row()
            row["coverage_before"], row["width_before"] = before.coverage, before.width
            rows.append(row)
    return rows


def requirements(
    cells: Sequence[Cell], bands: Sequence[Cell], *, cost_ms: float
) -> list[Requirement]:
    """Return what the method in use must keep."""
    mine = [one for one in cells if one.method == CHOSEN and one.n >= N_COVERED_MIN]
    mine += [one for one in bands if one.method == CHOSEN and not _assumes(one)]
    worst = min(mine, key=lambda one: one.coverage)
    narrow = [
        one
        for one in cells
        if one.method == CHOSEN
        and one.n >= N_NARROW_MIN
        and one.mean >= MEAN_NARROW_MIN
        # Of a burst only the first query counts: 256 draws are about 40 queries.
        and BY_NAME[one.population].kind != "bursts"
    ]
    widest = max(
        (one for one in narrow if one.possible <= WIDTH_POSSIBLE_MAX), key=lambda one: one.width
    )
    impossible = sorted({(one.population, one.k) for one in narrow if one.width > WIDTH_MAX})
    return [
        Requirement(
            f"coverage of {COVERAGE_MIN:.0%} from n = {N_COVERED_MIN} on",
            all(one.covers for one in mine),
            f"lowest {worst.coverage:.3f} ({worst.population}, k {worst.k}, n {worst.n}) of"
            f" {len(mine)}, {worst.samples} samples each",
        ),
        Requirement(
            f"width of at most {WIDTH_MAX:g} from n = {N_NARROW_MIN} and a mean of"
            f" {MEAN_NARROW_MIN:g} on, where a normal interval has {WIDTH_POSSIBLE_MAX:g}",
            widest.width <= WIDTH_MAX,
            f"widest {widest.width:.4f} ({widest.population}, k {widest.k}, n {widest.n}); wider"
            f" for {'; '.join(f'{name}, k {k}' for name, k in impossible) or 'none'}",
        ),
        Requirement(
            f"less than {COST_MAX_MS:g} ms for n = {COST_N}",
            cost_ms < COST_MAX_MS,
            f"{cost_ms:.3f} ms of CPU time",
        ),
    ]


def _assumes(cell: Cell) -> bool:
    """Return whether the bands were combined by wrong shares on purpose."""
    return any(one.assumed and one.name == cell.population for one in BANDS)


def cost_ms() -> float:
    """Return the CPU time of one estimate of `COST_N` queries, the median of several calls."""
    random = np.random.default_rng(SEED)
    values = BY_NAME["correlated 0.3"].draw(random, samples=1, n=COST_N, k=100).values[0]
    took: list[float] = []
    for _ in range(COST_CALLS):
        began = time.thread_time()
        mean_interval(values)
        took.append(time.thread_time() - began)
    return 1e3 * float(np.median(took))


def planted() -> Dataset:
    """Return an empty data set: the populations are planted."""
    nothing = np.empty((0, 1), dtype=np.float32)
    return Dataset("planted recall", [], nothing, nothing, pa.table({}), {}, None)


def main() -> int:
    """Run the benchmark."""
    options = parse_options(description=__doc__ or "", repeats=REPEATS)
    console = report_console()
    cells: list[Cell] = []
    for population in POPULATIONS:
        console.print(f"{population.name}, mean {population.mean:.4f}", style="dim")
        for k in KS:
            for n in NS:
                cells += measure_population(population, n=n, k=k, repeats=options.repeats)
    bands = [one for case in BANDS for one in measure_bands(case, repeats=options.repeats)]
    checks = requirements(cells, bands, cost_ms=cost_ms())
    shown = replace(options, json=None)
    tables = (
        ("Each method over all populations and k", METHOD_COLUMNS, method_rows(cells)),
        ("The method in use, k = 10", CELL_COLUMNS, cell_rows(cells, ns=(32, 128, 256), k=10)),
        ("Bands combined", BAND_COLUMNS, [one.row() for one in bands]),
    )
    for title, columns, rows in tables:
        table = Report("recall_intervals", shown, planted(), rows)
        print_report(table, title=title, columns=columns, console=console)
    rows = [one.row() for one in (*cells, *bands)]
    whole = Report("recall_intervals", options, planted(), rows, checks)
    return _finish(whole, options, checks)


def _finish(report: Report, options: Options, checks: Sequence[Requirement]) -> int:
    """Print what had to hold, write the JSON and return the exit status."""
    console = report_console()
    for one in checks:
        console.print(f"{'pass' if one.holds else 'FAIL'}  {one.name}: {one.figures}")
    if options.json is not None:
        console.print(f"written to {report.write()}", highlight=False)
    return 0 if all(one.holds for one in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
