"""Compares estimates of recall with the objectives of a collection. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from annheal.model.measures.recall import RecallEstimate, SegmentRecall, SelectivityBand
from annheal.model.measures.recall_summary import (
    QUERIES_KNOWN_MIN,
    RecallVerdict,
    tail_verdict_of,
    verdict_of,
)
from annheal.model.measures.recall_tail import TailObjective

COVERED_SHARE_MIN = 0.8
"""A collection is not said to meet its objective if bands with less than this share of the queries
of the last window are judged, or are answered as they were a minute ago."""
RECOVERED_AFTER_S = 60.0
"""So long after answers have become better, answers of the last minute are still among the earlier
ones, which were worse."""

MET = (RecallVerdict.MET, RecallVerdict.MET_WITH_BAD_TAIL)


@dataclass(frozen=True, slots=True)
class Judge:
    """What estimates are compared with, and when.

    `now_s` is seconds since the epoch; 0 leaves ages out of account. `raised_at_s` says when the
    answers of a band were last made better: see `SegmentRecall.raised_at_s`.
    """

    objective: float
    now_s: float
    tail: TailObjective | None = None
    raised_at_s: Mapping[SelectivityBand, float] = field(default_factory=dict)

    def verdict(self, estimate: RecallEstimate | None) -> RecallVerdict:
        """Return how answers as they would be given now compare with the objective."""
        return verdict_of(estimate, self.objective, now_s=self.now_s)

    def tail_verdict(
        self, estimate: RecallEstimate | None, *, raised: bool = False
    ) -> RecallVerdict | None:
        """Return how single queries compare; `raised`: the answers were made better just now."""
        verdict = tail_verdict_of(estimate, self.tail, now_s=self.now_s)
        return RecallVerdict.RECOVERING if raised and verdict in MET else verdict

    def is_raised(self, band: SelectivityBand) -> bool:
        """Return whether answers of the last minute are worse than those of now."""
        return self.now_s < self.raised_at_s.get(band, 0.0) + RECOVERED_AFTER_S and self.now_s > 0.0

    def are_raised(self, traffic: Mapping[SelectivityBand, float]) -> bool:
        """Return whether that holds for too large a share of the queries, weighted by `traffic`."""
        raised = sum(weight for band, weight in traffic.items() if self.is_raised(band))
        return raised > (1.0 - COVERED_SHARE_MIN) * sum(traffic.values())


def verdict_on_answers(
    verdict: RecallVerdict, served: RecallEstimate | None, objective: float, *, raised: bool
) -> RecallVerdict:
    """Return the verdict on answers of the last minute, from that on answers of now.

    An objective is met if both are at it. What was `served` is not known of all answers, and new
    queries count more in it, so nothing is met either for a minute after answers were `raised`.
    """
    if verdict not in MET:
        return verdict
    known = served is not None and served.evidence >= QUERIES_KNOWN_MIN
    was_below = known and served is not None and served.recall < objective
    return RecallVerdict.RECOVERING if raised or was_below else verdict


def raised_by_band(segments: Iterable[SegmentRecall]) -> dict[SelectivityBand, float]:
    """Return when the answers of each band were last made better, in any segment."""
    found: dict[SelectivityBand, float] = {}
    for one in segments:
        found[one.band] = max(one.raised_at_s, found.get(one.band, 0.0))
    return found
