"""What was published of recall, window by window, and what was true of the answers. Pure.

A *window* is one published estimate. Its true recall is the mean recall of all answers that were
given from the first to the last of the queries that it stands on. New queries count more in the
sample (docs/operations/recall.md), so there is also the mean with the weights of the sample; the
two differ while recall changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from annheal.model.measures.recall_summary import OWN_EF, RecallSlice, RecallSummary, RecallVerdict

Values = npt.NDArray[np.float64]

OVERALL = ""
BAND, OWN = "band ", "own "
MET = (RecallVerdict.MET, RecallVerdict.MET_WITH_BAD_TAIL)
BELOW = (RecallVerdict.MISSED, RecallVerdict.UNCLEAR)
TAKEN_BACK = (RecallVerdict.UNKNOWN, RecallVerdict.RECOVERING)

HORIZON_S = 30.0
"""The weight of a query in the sample falls by the factor e in this time, with default settings."""
SPAN_TOLERANCE_S = 0.1
"""A client has its answer about so long after the node noted the query, at most."""
MINUTE_S = 60.0
BELOW_MAX = 0.01
"""An objective that is missed by no more than this counts as kept."""
ANSWERS_MIN = 100
"""Fewer answers say nothing about a mean that has to be within `BELOW_MAX`."""
BLOCK_S = 5.0
FIRST_S = 15.0
"""Whether a change of the load brings recall below the objective is seen in so many seconds."""
SUFFIX_TOLERANCE = 0.005
"""From when on the objective is kept, the mean until the phase's end is this close to it."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the server said at `seen_s`, seconds since the epoch."""

    seen_s: float
    summary: RecallSummary


@dataclass(frozen=True, slots=True)
class Window:
    """One published estimate of one slice, compared with the truth.

    `slice` is "" for all queries without settings of their own, else "band <band>" or
    "own <objective or ef>". `is_served`: the estimate is about the answers that were given;
    otherwise about those that would be given now, as no others are known. `now_recall` is about
    these in any case. True recall is NaN if no answer of the window is known; `weighted_recall` has
    the weights of the sample.
    """

    slice: str
    seen_s: float
    begin_s: float
    end_s: float
    recall: float
    low: float
    high: float
    queries: int
    verdict: RecallVerdict
    is_served: bool
    now_recall: float
    true_recall: float = float("nan")
    weighted_recall: float = float("nan")
    answers: int = 0

    @property
    def contained(self) -> bool:
        """Whether the interval contains the true recall."""
        return self._holds(self.true_recall)

    @property
    def contained_weighted(self) -> bool:
        """Whether it contains the true recall with the weights of the sample."""
        return self._holds(self.weighted_recall)

    def _holds(self, recall: float) -> bool:
        return self.low - 1e-9 <= recall <= self.high + 1e-9

    @property
    def width(self) -> float:
        """The width of the interval."""
        return self.high - self.low


class Answers:
    """Recall of answers by the time at which they came; both (n,), NaN recall is left out.

    `flags`, (n,), says which of them carried `below_objective`; None: none did.
    """

    def __init__(
        self, times_s: Values, recalls: Values, flags: npt.NDArray[np.bool_] | None = None
    ) -> None:
        known = ~np.isnan(recalls)
        order = np.argsort(times_s[known], kind="stable")
        self._times_s = times_s[known][order]
        self._recalls = recalls[known][order]
        flags = np.zeros(len(times_s), dtype=np.bool_) if flags is None else flags
        self._flag_sums = np.concatenate([[0], np.cumsum(flags[known][order])])
        self._sums = np.concatenate([[0.0], np.cumsum(self._recalls)])

    def count(self, begin_s: float, end_s: float) -> int:
        """Return how many answers came from `begin_s` to `end_s`."""
        first, last = self._places(begin_s, end_s)
        return last - first

    def mean(self, begin_s: float, end_s: float) -> float:
        """Return their mean recall, NaN without one."""
        first, last = self._places(begin_s, end_s)
        if first >= last:
            return float("nan")
        return float(self._sums[last] - self._sums[first]) / (last - first)

    def flagged(self, begin_s: float, end_s: float) -> int:
        """Return how many of them said that they are below the objective."""
        first, last = self._places(begin_s, end_s)
        return int(self._flag_sums[last] - self._flag_sums[first])

    def weighted_mean(self, begin_s: float, end_s: float, *, horizon_s: float) -> float:
        """Return their mean with weights that fall by the factor e in `horizon_s`."""
        first, last = self._places(begin_s, end_s)
        if first >= last:
            return float("nan")
        weights = np.exp((self._times_s[first:last] - end_s) / horizon_s)
        return float(weights @ self._recalls[first:last] / weights.sum())

    def _places(self, begin_s: float, end_s: float) -> tuple[int, int]:
        first, last = np.searchsorted(self._times_s, [begin_s, end_s])
        return int(first), max(int(first), int(last))


def slices_of(summary: RecallSummary) -> Iterator[tuple[str, RecallSlice, float]]:
    """Yield name, slice and objective of everything that is judged; bands only if several are."""
    yield OVERALL, summary.overall, summary.recall_objective
    for one in summary.own:
        yield OWN + one.name, one, float("nan") if one.name == OWN_EF else float(one.name)
    measured = [one for one in summary.bands if one.estimate is not None and one.estimate.queries]
    if len(measured) > 1:
        for one in measured:
            yield BAND + one.name, one, summary.recall_objective


def windows_of(published: Sequence[Published]) -> list[Window]:
    """Return a window for each estimate of each slice that a new measurement gave.

    Bands and shards are joined anew by the traffic of every moment; that is no new measurement.
    """
    last: dict[str, frozenset[tuple[str, float]]] = {}
    found: list[Window] = []
    for one in published:
        for name, part, _ in slices_of(one.summary):
            now = part.estimate
            if now is None or not now.queries:
                continue
            measured = _measurements(one.summary, part)
            if last.get(name) == measured:
                continue
            last[name] = measured
            judged = part.served or now
            found.append(
                Window(
                    slice=name,
                    seen_s=one.seen_s,
                    begin_s=judged.window_begin_s,
                    end_s=judged.window_end_s + SPAN_TOLERANCE_S,
                    recall=judged.recall,
                    low=judged.low,
                    high=judged.high,
                    queries=judged.queries,
                    verdict=part.verdict,
                    is_served=part.served is not None,
                    now_recall=now.recall,
                )
            )
    return found


def _measurements(summary: RecallSummary, part: RecallSlice) -> frozenset[tuple[str, float]]:
    """Return when what the slice stands on was measured, by band and by shard."""
    joined = (part, *summary.bands, *summary.shards) if part is summary.overall else (part,)
    return frozenset(
        (one.name, one.estimate.measured_at_s) for one in joined if one.estimate is not None
    )


def apart(windows: Sequence[Window]) -> list[Window]:
    """Return windows that have no query in common: as many as follow one another in time.

    Those of bands are left out, as their queries are among all queries.
    """
    found: list[Window] = []
    until_s: dict[str, float] = {}
    for one in sorted(windows, key=lambda one: one.end_s):
        if one.slice.startswith(BAND) or one.begin_s < until_s.get(one.slice, -math.inf):
            continue
        found.append(one)
        until_s[one.slice] = one.end_s - SPAN_TOLERANCE_S
    return found


def with_truth(window: Window, answers: Answers) -> Window:
    """Return the window with what was true of the answers of its slice."""
    span = window.begin_s, window.end_s
    return replace(
        window,
        true_recall=answers.mean(*span),
        weighted_recall=answers.weighted_mean(*span, horizon_s=HORIZON_S),
        answers=answers.count(*span),
    )


def met_while_below_s(
    published: Sequence[Published],
    answers: Callable[[str], Answers],
    *,
    begin_s: float,
    end_s: float,
) -> dict[str, float]:
    """Return, by slice, the seconds in which it was said to be met and was not.

    It was not if the mean of the last minute's answers was below the objective by more than
    `BELOW_MAX`.
    """
    found: dict[str, float] = {}
    inside = [one for one in published if begin_s <= one.seen_s <= end_s]
    for number, one in enumerate(inside):
        until_s = inside[number + 1].seen_s if number + 1 < len(inside) else end_s
        for name, part, objective in slices_of(one.summary):
            found.setdefault(name, 0.0)
            known, since_s = answers(name), one.seen_s - MINUTE_S
            if part.verdict in MET and known.count(since_s, one.seen_s) >= ANSWERS_MIN:
                below = known.mean(since_s, one.seen_s) < objective - BELOW_MAX
                found[name] += (until_s - one.seen_s) * below
    return found


def falls(answers: Answers, *, change_s: float, end_s: float, objective: float) -> bool:
    """Return whether answers just after a change were below the objective by `BELOW_MAX`."""
    first_s = min(end_s, change_s + FIRST_S)
    return answers.mean(change_s, first_s) < objective - BELOW_MAX


def seconds_to_notice(
    published: Sequence[Published], *, change_s: float, end_s: float
) -> float | None:
    """Return when the server noticed that recall is below the objective; None: never.

    It notices when a new estimate says that the objective is missed or that this is unclear, when
    it takes back that it is met, or when it raises ef.
    """
    before = [one.summary for one in published if one.seen_s < change_s]
    was_met = bool(before) and before[-1].overall.verdict in MET
    efs = _efs(before[-1]) if before else {}
    for one in published:
        if not change_s <= one.seen_s <= end_s:
            continue
        verdict = one.summary.overall.verdict
        now = _efs(one.summary)
        raised = any(ef > efs.get(slot, ef) for slot, ef in now.items())
        taken_back = was_met and verdict in TAKEN_BACK
        estimate = one.summary.overall.estimate
        is_new = estimate is not None and estimate.window_end_s > change_s
        if raised or taken_back or (is_new and verdict in BELOW):
            return one.seen_s - change_s
        efs = {**now, **efs}
    return None


def _efs(summary: RecallSummary) -> dict[tuple[str, str], int]:
    return {(one.segment_id, one.band.value): one.ef for one in summary.segments if one.ef}


def seconds_to_objective(
    answers: Answers, *, change_s: float, end_s: float, objective: float
) -> float | None:
    """Return from when after a change the answers keep the objective to the end; None: never.

    That is the first block of `BLOCK_S` from which on the mean of all answers is within
    `SUFFIX_TOLERANCE` of the objective, and that is itself within `BELOW_MAX`. A block in which
    every answer said that it is below the objective counts as one that keeps it.
    """
    starts_s = [change_s + BLOCK_S * n for n in range(math.ceil((end_s - change_s) / BLOCK_S))]
    counts = np.zeros(len(starts_s))
    means = np.full(len(starts_s), objective)
    for place, start_s in enumerate(starts_s):
        span = start_s, min(end_s, start_s + BLOCK_S)
        counts[place] = answers.count(*span)
        if answers.flagged(*span) < counts[place]:
            means[place] = answers.mean(*span)
    for place, start_s in enumerate(starts_s):
        rest = counts[place:]
        if rest.sum() < ANSWERS_MIN:
            return None
        kept = means[place] >= objective - BELOW_MAX
        if kept and rest @ means[place:] / rest.sum() >= objective - SUFFIX_TOLERANCE:
            return start_s - change_s
    return None
