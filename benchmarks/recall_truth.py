"""Is what the server says of its recall true, about now, and is the objective kept?

Each condition is planted on an embedded server of its own with default settings: rows, an index,
and phases of queries that are sent at a fixed rate. Everything that the recall monitor publishes is
compared with the recall of the answers that were really given, against exact comparison of the rows
that lived at the time. Half of the conditions (`--set tune`) may be looked at while constants are
chosen; the other half is for reports.

With `--results FILE` a run can be done in pieces: what has ended is taken from the file.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from annheal.errors import AnnhealError
from annheal.model.collection import Metric
from annheal.model.measures.recall import band_of
from annheal.model.measures.recall_summary import OWN_EF
from benchmarks.datasets.conditions import BY_NAME, CONDITIONS, REPORT, TUNE, Ask, Condition
from benchmarks.datasets.planted import plant
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.drawing import Line, Panel
from benchmarks.harness.finished import FinishedParts
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.recall_figures import draw, panel_of
from benchmarks.harness.recall_windows import (
    ANSWERS_MIN,
    BAND,
    BELOW_MAX,
    OVERALL,
    OWN,
    Answers,
    Window,
    apart,
    falls,
    met_while_below_s,
    seconds_to_notice,
    seconds_to_objective,
    windows_of,
    with_truth,
)
from benchmarks.harness.report import (
    Column,
    Report,
    Requirement,
    Row,
    git_commit,
    print_report,
    report_console,
)
from benchmarks.systems.observed_server import Observed, Passed, observed_server

SECONDS = 120.0
RATE = 50.0
ALL = "all"
INTERVAL_S = 60.0
"""The default of `recall_interval_s`."""
COVERAGE_MIN, WINDOWS_MIN = 0.95, 500
WIDE_QUERIES_MIN, WIDTH_MAX = 200, 0.05
NOTICE_MAX_S, OBJECTIVE_MAX_S = 30.0, 60.0
LATE_MAX_MS = 500.0
"""If 5 % of a phase's answers come later than this, the machine was too slow for the rate: what the
phase says of times is worthless."""
NAMED_MAX = 6
"""Conditions that a requirement names; there may be more that fail it."""
SHOWN_MINUTE_S = 60.0

COLUMNS = (
    Column("condition", "condition"),
    Column("phase", "phase"),
    Column("windows", "windows"),
    Column("contained_share", "true", 2),
    Column("true_recall", "truth", 4),
    Column("estimate", "estimate", 4),
    Column("interval", "interval"),
    Column("verdict", "verdict"),
    Column("met_while_below_s", "wrong", 0),
    Column("seconds_to_notice", "noticed", 0),
    Column("seconds_to_objective", "kept", 0),
    Column("flagged_share", "flagged", 2),
    Column("cost_ratio", "cost", 2),
    Column("late_ms", "late ms", 0),
)
"""Of the lines of phases: true recall of the last minute, and what was published last."""

Say = Callable[[str], None]
Part = tuple[Condition, float]
"""A condition, and the seconds between two measurements."""


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """What is particular to this benchmark; `at_once` conditions run side by side, `svg` is where
    the picture goes.

    Each condition is run once for each of `intervals_s`, the seconds between two measurements.
    What has ended is in the file `results`, and taken from there: of the present commit only, or of
    `any_commit`.
    """

    conditions: tuple[Condition, ...]
    rate: float
    at_once: int
    svg: Path | None = None
    intervals_s: tuple[float, ...] = (INTERVAL_S,)
    results: Path | None = None
    any_commit: bool = False


class Judged:
    """What was observed of one condition, compared with the truth."""

    def __init__(
        self,
        condition: Condition,
        metric: Metric,
        observed: Observed,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.condition = condition
        self.interval_s = interval_s
        self.observed = observed
        self._recalls = observed.history.recalls(
            metric,
            observed.questions,
            [one.given for one in observed.answered],
        )
        self._times_s = np.array([one.answered_s for one in observed.answered])
        flags = [one.below_objective for one in observed.answered]
        self._flags = np.array(flags, dtype=np.bool_)
        self._slices: dict[str, Answers] = {}

    def answers(self, name: str) -> Answers:
        """Return the answers that a slice is about."""
        found = self._slices.get(name)
        if found is None:
            wanted = {ask: self._is_of(ask, name) for ask in self.observed.matching}
            chosen = np.array([wanted[one.ask] for one in self.observed.answered], dtype=np.bool_)
            found = Answers(self._times_s[chosen], self._recalls[chosen], self._flags[chosen])
            self._slices[name] = found
        return found

    def _is_of(self, ask: Ask, name: str) -> bool:
        if name.startswith(OWN):
            own = OWN_EF if ask.objective is None else f"{ask.objective:g}"
            return ask.has_own_setting and own == name.removeprefix(OWN)
        if ask.has_own_setting or name == OVERALL:
            return not ask.has_own_setting
        million = 1_000_000
        matches = round(self.observed.matching[ask] * million)
        band = band_of(matches, million, filtered=ask.matching is not None)
        return band.value == name.removeprefix(BAND)

    def windows(self) -> list[Window]:
        """Return all windows of which the truth is known."""
        found = [
            with_truth(one, self.answers(one.slice)) for one in windows_of(self.observed.published)
        ]
        return [one for one in found if one.answers]

    def rows(self) -> list[Row]:
        """Return a row for each phase, and before it one for each of its windows."""
        windows, rows = self.windows(), list[Row]()
        alone = apart(windows)
        first_s = self.observed.passed[0].change_s
        for number, passed in enumerate(self.observed.passed):
            line = self._phase(passed, windows)
            shared = {
                key: line[key]
                for key in ("seconds_to_notice", "seconds_to_objective", "cost_ratio")
            }
            rows += [
                {
                    "condition": self.condition.name,
                    "set": self.condition.set_name,
                    "phase": passed.phase.name,
                    "window": place,
                    "interval_s": self.interval_s,
                    "begin_s": one.begin_s - first_s,
                    "apart": one in alone,
                    **_window_row(one),
                    **shared,
                }
                for place, one in enumerate(windows)
                if self._phase_of(one) == number
            ]
            rows.append(line)
        return rows

    def panel(self) -> Panel:
        """Return the picture of the condition."""
        passed = self.observed.passed
        return panel_of(
            self.condition.name,
            self.answers(OVERALL),
            self.windows(),
            phases=[(one.phase.name, one.change_s) for one in passed],
            end_s=passed[-1].end_s,
        )

    def _phase_of(self, window: Window) -> int:
        """Return the number of the phase in which a window was published."""
        changes = [one.change_s for one in self.observed.passed]
        return max(0, int(np.searchsorted(changes, window.seen_s, side="right")) - 1)

    def _phase(self, passed: Passed, windows: Sequence[Window]) -> Row:
        begin_s, end_s = passed.change_s, passed.end_s
        published = [one for one in self.observed.published if one.seen_s <= end_s]
        objective = published[-1].summary.recall_objective
        slice = OVERALL if self.answers(OVERALL).count(begin_s, end_s) else OWN
        known = self.answers(slice)
        own = [one for one in windows if begin_s <= one.seen_s <= end_s]
        last = next((one for one in reversed(own) if one.slice == OVERALL), None)
        fell = falls(known, change_s=begin_s, end_s=end_s, objective=objective)
        kept_s = seconds_to_objective(known, change_s=begin_s, end_s=end_s, objective=objective)
        wrong = met_while_below_s(
            self.observed.published, self.answers, begin_s=begin_s, end_s=end_s
        )
        noticed_s = None
        if fell:
            noticed_s = seconds_to_notice(self.observed.published, change_s=begin_s, end_s=end_s)
        return {
            "condition": self.condition.name,
            "set": self.condition.set_name,
            "phase": passed.phase.name,
            "window": None,
            "interval_s": self.interval_s,
            "objective": objective,
            "seconds": end_s - begin_s,
            "queries": known.count(begin_s, end_s),
            "windows": len(own),
            "contained_share": _share(one.contained for one in own),
            "true_recall": known.mean(max(begin_s, end_s - SHOWN_MINUTE_S), end_s),
            "estimate": None if last is None else last.recall,
            "low": None if last is None else last.low,
            "high": None if last is None else last.high,
            "contained": None if last is None else last.contained,
            "verdict": published[-1].summary.overall.verdict.value,
            "met_while_below_s": max(wrong.values(), default=0.0),
            "fell": fell,
            "kept": None if known.count(begin_s, end_s) < ANSWERS_MIN else kept_s is not None,
            "seconds_to_notice": noticed_s,
            "seconds_to_objective": kept_s,
            "flagged_share": known.flagged(begin_s, end_s) / max(1, known.count(begin_s, end_s)),
            "cost_ratio": passed.cost_ratio,
            "late_ms": passed.late_ms,
            "failures": len(self.observed.failures),
        }


def _window_row(one: Window) -> Row:
    return {
        "slice": one.slice,
        "true_recall": one.true_recall,
        "true_recall_weighted": one.weighted_recall,
        "estimate": one.recall,
        "low": one.low,
        "high": one.high,
        "contained": one.contained,
        "contained_weighted": one.contained_weighted,
        "verdict": one.verdict.value,
        "queries": one.queries,
        "answers": one.answers,
        "is_served": one.is_served,
        "estimate_now": one.now_recall,
        "window_s": one.end_s - one.begin_s,
    }


def _shown(row: Row) -> Row:
    """Return the row of a phase as the table has it: "never" where something was to happen."""
    interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    noticed_s, kept_s = row["seconds_to_notice"], row["seconds_to_objective"]
    often = "" if row["interval_s"] == INTERVAL_S else f", every {row['interval_s']:g} s"
    return {
        **row,
        "phase": row["phase"] + often,
        "interval": interval,
        "verdict": row["verdict"].replace("met, with a bad tail", "met, bad tail"),
        "seconds_to_notice": "never" if noticed_s is None and row["fell"] else noticed_s,
        "seconds_to_objective": "never" if row["kept"] is False else kept_s,
    }


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def requirements(rows: Sequence[Row], *, names: Sequence[str] = ()) -> list[Requirement]:
    """Return what the rows must fulfil, and whether they do; `names` are the conditions."""
    windows = [row for row in rows if row["window"] is not None]
    phases = [row for row in rows if row["window"] is None]
    timed = [row for row in phases if row["interval_s"] == INTERVAL_S]
    held = sum(row["contained"] for row in windows)
    alone = [row for row in windows if row["apart"]]
    held_alone = sum(row["contained"] for row in alone)
    weighted = sum(row["contained_weighted"] for row in windows)
    missed = [row for row in windows if not row["contained"]]
    large = [row for row in windows if row["queries"] >= WIDE_QUERIES_MIN]
    wide = [row for row in large if row["high"] - row["low"] > WIDTH_MAX]
    wrong = [row for row in timed if row["met_while_below_s"] > 0]
    fell = [row for row in timed if row["fell"]]
    unnoticed = [row for row in fell if not _within(row["seconds_to_notice"], NOTICE_MAX_S)]
    long = [row for row in timed if row["kept"] is not None]
    lost = [row for row in long if not _within(row["seconds_to_objective"], OBJECTIVE_MAX_S)]
    late = [row for row in phases if row["late_ms"] > LATE_MAX_MS]
    absent = sorted(set(names) - {row["condition"] for row in phases})
    return [
        Requirement(
            "every condition was run",
            not absent,
            f"{len(names) - len(absent)} of {len(names)}; not run: {', '.join(absent) or 'none'}",
        ),
        Requirement(
            f"the interval contains the truth in {COVERAGE_MIN:.0%} of the windows",
            bool(windows) and held >= COVERAGE_MIN * len(windows),
            f"{held} of {len(windows)} ({WINDOWS_MIN} are to be measured), {weighted} with the"
            f" weights of the sample; of those that share no query {held_alone} of {len(alone)};"
            f" not in {_names(missed)}",
        ),
        Requirement(
            f"at most {WIDTH_MAX:g} wide from {WIDE_QUERIES_MIN} queries on",
            not wide,
            f"{len(wide)} of {len(large)} are wider: {_names(wide)}",
        ),
        Requirement(
            f"never met while the last minute is below the objective by more than {BELOW_MAX:g}",
            not wrong,
            f"wrong in {len(wrong)} of {len(timed)} phases: {_names(wrong)}",
        ),
        Requirement(
            f"noticed within {NOTICE_MAX_S:g} s where recall fell below the objective",
            not unnoticed,
            f"late or never in {len(unnoticed)} of {len(fell)} phases: {_names(unnoticed)}",
        ),
        Requirement(
            f"within {OBJECTIVE_MAX_S:g} s of each change the objective is kept, or every answer"
            " says that it is not",
            not lost,
            f"late or never in {len(lost)} of {len(long)} phases: {_names(lost)}",
        ),
        Requirement(
            f"95 % of the answers of each phase came within {LATE_MAX_MS:g} ms",
            not late,
            f"later in {len(late)} of {len(phases)} phases, which say nothing: {_names(late)}",
        ),
    ]


def _within(value: float | None, most: float) -> bool:
    return value is not None and value <= most


def _names(rows: Iterable[Row]) -> str:
    """Return which conditions these are, the first of them."""
    found = list(dict.fromkeys(row["condition"] for row in rows))
    if not found:
        return "none"
    more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
    return ", ".join(found[:NAMED_MAX]) + more


async def measure(
    condition: Condition,
    dataset: Dataset,
    own: TruthOptions,
    *,
    seconds: float,
    say: Say,
    interval_s: float = INTERVAL_S,
) -> Judged:
    """Run one condition on a server of its own and judge what was published."""
    planted = plant(condition.data, dataset)
    say(f"{condition.name}: {len(planted.vectors):,} rows x {planted.vectors.shape[1]}")
    seed = (CONDITIONS.index(condition),) if condition in CONDITIONS else (0,)
    async with observed_server(
        condition,
        planted,
        rate=own.rate,
        seconds=seconds,
        seed=seed,
        say=say,
        interval_s=interval_s,
    ) as server:
        observed = await server.run()
    for failure in observed.failures[:3]:
        say(f"  {condition.name}: {failure}")
    return await asyncio.to_thread(
        Judged, condition, planted.metric, observed, interval_s=interval_s
    )


async def run(
    dataset: Dataset,
    own: TruthOptions,
    *,
    seconds: float,
    say: Say,
    ended: Callable[[Judged], None],
    parts: Sequence[Part] | None = None,
) -> None:
    """Run `parts`, so many at once; `ended` is called with each that was judged.

    A part that could not be run is left out, and the others go on.
    """
    free = asyncio.Semaphore(own.at_once)

    async def one(condition: Condition, interval_s: float) -> None:
        async with free:
            try:
                ended(
                    await measure(
                        condition, dataset, own, seconds=seconds, say=say, interval_s=interval_s
                    )
                )
            except (RuntimeError, AnnhealError) as error:
                say(f"{condition.name} could not be run: {error}")

    async with asyncio.TaskGroup() as group:
        for condition, interval_s in parts_of(own) if parts is None else parts:
            group.create_task(one(condition, interval_s))


def parts_of(own: TruthOptions) -> list[Part]:
    """Return what is to be run: each condition with each interval."""
    return [(one, interval_s) for interval_s in own.intervals_s for one in own.conditions]


def key_of(part: Part, dataset: Dataset, own: TruthOptions, *, seconds: float) -> Row:
    """Return what the result of a part depends on, besides the code."""
    condition, interval_s = part
    return {
        "condition": condition.name,
        "interval_s": interval_s,
        "rate": own.rate,
        "seconds": seconds,
        "dataset": dataset.name,
        "rows": dataset.rows,
        "queries": len(dataset.queries),
    }


def result_of(judged: Judged) -> Row:
    """Return what is kept of a part that has ended."""
    return {"rows": judged.rows(), "panel": asdict(judged.panel())}


def restored_panel(kept: dict[str, Any]) -> Panel:
    """Return the picture of a part from its result."""
    lines = tuple(
        Line(**{**line, "points": tuple((x, y) for x, y in line["points"])})
        for line in kept["lines"]
    )
    return Panel(**{**kept, "lines": lines})


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, TruthOptions]:
    """Return the shared options and those of this benchmark; with --list, print and exit."""
    parser = argparse.ArgumentParser(
        prog="recall_truth.py", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("--conditions", metavar="A,B", help="these conditions only; --list names them")
    add("--set", default=ALL, choices=(TUNE, REPORT, ALL), help="one half of the conditions (all)")
    add("--rate", type=float, default=RATE, metavar="N", help=f"queries a second ({RATE:g})")
    add("--rows", type=int, metavar="N", help="use the first N rows only, as --limit")
    add("--at-once", type=int, default=1, metavar="N", help="conditions that run at once (1)")
    add("--svg", type=Path, metavar="FILE", help="draw what was true and what was said")
    add(
        "--intervals",
        type=_intervals,
        default=(INTERVAL_S,),
        metavar="S,S",
        help="measure recall every S seconds; each condition is run once for each S (60)",
    )
    add("--results", type=Path, metavar="FILE", help="keep results here, and take them from here")
    add("--any-commit", action="store_true", help="take results of other commits too")
    add("--list", action="store_true", help="list the conditions and exit")
    given, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        print(f"{parser.format_help().strip()}\n", flush=True)
    if given.list:
        for one in CONDITIONS:
            print(f"{one.name:18} {one.set_name:7} {', '.join(p.name for p in one.phases)}")
        parser.exit()
    options = parse_options(rest, description=__doc__ or "", seconds=SECONDS, modes=("embedded",))
    if given.rate <= 0 or given.at_once < 1 or (given.rows is not None and given.rows < 1):
        parser.error("--rate, --at-once, --rows: out of range")
    if given.rows is not None:
        options = replace(options, limit=given.rows)
    conditions = [one for one in CONDITIONS if given.set in (ALL, one.set_name)]
    if given.conditions is not None:
        names = [name.strip() for name in given.conditions.split(",")]
        unknown = [name for name in names if name not in BY_NAME]
        if unknown:
            parser.error(f"--conditions: there is no {unknown[0]!r}; --list names them")
        conditions = [one for one in conditions if one.name in names]
        if not conditions:
            parser.error(f"--conditions: none of them is in the set {given.set!r}")
    if given.any_commit and given.results is None:
        parser.error("--any-commit: of which results? give --results as well")
    if given.results is not None and not given.results.parent.is_dir():
        parser.error(f"--results: {given.results.parent} is no folder")
    return options, TruthOptions(
        tuple(conditions),
        given.rate,
        given.at_once,
        given.svg,
        given.intervals,
        given.results,
        given.any_commit,
    )


def _intervals(text: str) -> tuple[float, ...]:
    found = tuple(float(part) for part in text.split(","))
    if not all(0 < one < float("inf") for one in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text} are no different positive numbers")
    return found


def _collected(dataset: Dataset, own: TruthOptions, *, seconds: float, say: Say) -> list[Row]:
    """Return the results of all parts, those that have ended before from the file."""
    commit = git_commit()
    file = FinishedParts(own.results)
    kept: dict[tuple[str, float], Row] = {}

    def ended(one: Judged) -> None:
        key = key_of((one.condition, one.interval_s), dataset, own, seconds=seconds)
        line = file.add(key, commit=commit, result=result_of(one))
        kept[one.condition.name, one.interval_s] = line

    parts = parts_of(own)
    for part in parts:
        key = key_of(part, dataset, own, seconds=seconds)
        line = file.find(key, commit=None if own.any_commit else commit)
        if line is not None:
            kept[part[0].name, part[1]] = line
    if kept:
        say(f"{len(kept)} of {len(parts)} parts are taken from {own.results}")
    left = [part for part in parts if (part[0].name, part[1]) not in kept]
    try:
        asyncio.run(run(dataset, own, seconds=seconds, say=say, ended=ended, parts=left))
    except KeyboardInterrupt:
        say("interrupted: only the conditions that have ended are reported")
    return [kept[one.name, s] for one, s in parts if (one.name, s) in kept]


def main() -> int:
    """Run the benchmark."""
    options, own = parse()
    console = report_console()
    dataset = load_dataset(options)

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    lines = _collected(dataset, own, seconds=options.seconds, say=say)
    rows = [row for line in lines for row in line["result"]["rows"]]
    checks = requirements(rows, names=[one.name for one in own.conditions])
    commits = sorted({line["commit"] for line in lines})
    if len(commits) > 1:
        say(f"results of several commits: {', '.join(commits)}")
    phases = [_shown(row) for row in rows if row["window"] is None]
    shown = Report("recall_truth", replace(options, json=None), dataset, phases, checks)
    print_report(shown, title="Recall as published and as it was", columns=COLUMNS, console=console)
    path = Report("recall_truth", options, dataset, rows, checks).write()
    if path is not None:
        console.print(f"written to {path}", highlight=False)
    if own.svg is not None:
        own.svg.parent.mkdir(parents=True, exist_ok=True)
        first_s = own.intervals_s[0]
        panels = [one["result"]["panel"] for one in lines if one["key"]["interval_s"] == first_s]
        own.svg.write_text(draw([restored_panel(one) for one in panels]))
        console.print(f"drawn to {own.svg}", highlight=False)
    late = max((row["late_ms"] for row in rows if row["window"] is None), default=0.0)
    return 1 if late > LATE_MAX_MS else 0


if __name__ == "__main__":
    sys.exit(main())
