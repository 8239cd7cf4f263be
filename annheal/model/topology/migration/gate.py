"""The gate of a migration: what was measured of the new model, compared with the thresholds. Pure.

A measured figure that is missing (None, or NaN) never passes where the gate requires it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GateThresholds:
    """What a new model must reach before it serves.

    Attributes:
        recall_min: recall@k of the new model's index against the exact answers of that model.
        overlap_min: mean share of the old model's top k that the new one returns too. Two models of
            use share a part of their answers; shuffled or constant vectors share next to none.
        lacking_share_max: share of the live records that have no vector of the new model.
        latency_ratio_max: median time of a search by the new model, by that of the old one.
        bridge_error_max: held-out error of the bridge between the models; None: not judged.
        ndcg_gain_min: nDCG@10 of the new model minus that of the old; judged where labels exist.
        recall_gain_min: the same of recall@10 of labelled records.
    """

    recall_min: float = 0.95
    overlap_min: float = 0.1
    lacking_share_max: float = 0.01
    latency_ratio_max: float = 1.5
    bridge_error_max: float | None = None
    ndcg_gain_min: float = -0.02
    recall_gain_min: float = -0.02


@dataclass(frozen=True, slots=True)
class GateReport:
    """What one validation measured; None: not measured.

    Attributes:
        number: the request that it answers (`Migration.validations`).
        at_s: when it was measured, in seconds since the epoch.
        queries: queries that were searched with both models.
        k: hits of each query.
        recall: see `GateThresholds.recall_min`.
        overlap: see `GateThresholds.overlap_min`.
        rank_correlation: of the hits that both models return (Kendall's tau); not judged.
        latency_ratio: see `GateThresholds.latency_ratio_max`.
        memory_ratio: bytes of the new model's vectors and graphs, by those of the old; not judged.
        bridge_error: see `GateThresholds.bridge_error_max`.
        ndcg_gain: see `GateThresholds.ndcg_gain_min`.
        recall_gain: see `GateThresholds.recall_gain_min`.
    """

    number: int
    at_s: float
    queries: int
    k: int
    recall: float | None = None
    overlap: float | None = None
    rank_correlation: float | None = None
    latency_ratio: float | None = None
    memory_ratio: float | None = None
    bridge_error: float | None = None
    ndcg_gain: float | None = None
    recall_gain: float | None = None


@dataclass(frozen=True, slots=True)
class GateFinding:
    """One figure of the gate with its threshold; `value` None: not measured."""

    name: str
    value: float | None
    threshold: float
    at_least: bool
    passed: bool

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.4g}"
        need = "at least" if self.at_least else "at most"
        return f"{self.name} is {found}, needed is {need} {self.threshold:.4g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings; the gate is passed if each of them is."""

    findings: tuple[GateFinding, ...]

    @property
    def passed(self) -> bool:
        """Whether every finding passes."""
        return all(one.passed for one in self.findings)

    @property
    def failures(self) -> str:
        """The findings that do not pass, as one line of text."""
        return "; ".join(str(one) for one in self.findings if not one.passed)


NO_REPORT: Final = GateReport(number=0, at_s=0.0, queries=0, k=0)
"""Stands for a validation that has not taken place: nothing is measured."""


def judge(
    thresholds: GateThresholds, report: GateReport | None, *, lacking_share: float | None
) -> Verdict:
    """Return the verdict on a report (None: there is none).

    `lacking_share` is the share of live records without a vector of the new model, None if it is
    not known. Recall, overlap, latency and the lacking share are always required; the others where
    they were measured, the bridge also only if it has a threshold.
    """
    measured = report or NO_REPORT
    findings = [
        _at_least("recall", measured.recall, thresholds.recall_min),
        _at_least("overlap", measured.overlap, thresholds.overlap_min),
        _at_most("lacking_share", lacking_share, thresholds.lacking_share_max),
        _at_most("latency_ratio", measured.latency_ratio, thresholds.latency_ratio_max),
    ]
    if measured.bridge_error is not None and thresholds.bridge_error_max is not None:
        bound = thresholds.bridge_error_max
        findings.append(_at_most("bridge_error", measured.bridge_error, bound))
    if measured.ndcg_gain is not None:
        findings.append(_at_least("ndcg_gain", measured.ndcg_gain, thresholds.ndcg_gain_min))
    if measured.recall_gain is not None:
        findings.append(_at_least("recall_gain", measured.recall_gain, thresholds.recall_gain_min))
    return Verdict(tuple(findings))


def _at_least(name: str, value: float | None, threshold: float) -> GateFinding:
    known = _known(value)
    return GateFinding(name, known, threshold, True, known is not None and known >= threshold)


def _at_most(name: str, value: float | None, threshold: float) -> GateFinding:
    known = _known(value)
    return GateFinding(name, known, threshold, False, known is not None and known <= threshold)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
