"""Audits of measured recall: an estimate compared with queries that it was not made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from annheal.errors import InvalidArgument
from annheal.model.measures.recall import BandCoverage, RecallEstimate, SelectivityBand

AUDIT_QUERIES_DEFAULT, AUDIT_QUERIES_MAX = 200, 10_000
"""Queries of one audit of a shard."""
AUDITED_QUERIES_MIN = 32
"""Different queries below which an audit says nothing: their interval contains nearly anything."""


class AuditVerdict(StrEnum):
    """`contained`: estimate and audit agree within their intervals. `unknown`: see the reason."""

    CONTAINED = "contained"
    OUTSIDE = "outside"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BandAudit:
    """The audit of one estimate: the recall in one band of one shard, or of merged answers.

    Attributes:
        shard: its number; `ALL_SHARDS` for answers over all of them.
        estimate: what was measured and is judged.
        audited: recall of queries that the estimate was not made from; None: there are none.
        later: how many of these were asked after the estimate was made.
        reason: why the verdict is unknown, else empty.
    """

    shard: int
    band: SelectivityBand
    estimate: RecallEstimate
    audited: RecallEstimate | None
    later: int
    verdict: AuditVerdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The audits of a collection, and the coverage of all audits of shards so far.

    `merged` are those of answers over several shards.
    """

    collection: str
    audits: tuple[BandAudit, ...]
    coverage: tuple[BandCoverage, ...] = ()
    merged: tuple[BandAudit, ...] = ()


def judged(
    shard: int,
    band: SelectivityBand,
    estimate: RecallEstimate,
    audited: RecallEstimate | None,
    *,
    later: int,
    reason: str = "",
) -> BandAudit:
    """Return the audit of an estimate; `reason` says why it cannot be judged, if so."""
    distinct = 0 if audited is None else audited.distinct
    if not reason and distinct < AUDITED_QUERIES_MIN:
        reason = f"{distinct} queries that it was not made from; {AUDITED_QUERIES_MIN} are needed"
    verdict = AuditVerdict.UNKNOWN
    if not reason and audited is not None:
        same = agree(estimate, audited)
        verdict = AuditVerdict.CONTAINED if same else AuditVerdict.OUTSIDE
    return BandAudit(shard, band, estimate, audited, later, verdict, reason)


def with_doubts(merged: Iterable[BandAudit], audits: Sequence[BandAudit]) -> tuple[BandAudit, ...]:
    """Return audits of merged answers; none of a band is judged if one of its shards is not."""
    reasons = {
        one.band: f"shard {one.shard}: {one.reason}" for one in reversed(audits) if one.reason
    }
    return tuple(
        replace(one, verdict=AuditVerdict.UNKNOWN, reason=one.reason or reasons[one.band])
        if one.band in reasons
        else one
        for one in merged
    )


def checked_audit_queries(queries_max: int) -> int:
    """Return the most queries of an audit; raises `InvalidArgument` for a number out of range."""
    if not 1 <= queries_max <= AUDIT_QUERIES_MAX:
        raise InvalidArgument.of(
            "queries_max", f"{queries_max} is not between 1 and {AUDIT_QUERIES_MAX:,}"
        )
    return queries_max


def covered(coverage: Iterable[BandCoverage]) -> tuple[int, int]:
    """Return how many windows were audited, and how many of them were contained."""
    every = list(coverage)
    return sum(one.windows for one in every), sum(one.contained for one in every)


def agree(estimate: RecallEstimate, audited: RecallEstimate) -> bool:
    """Return whether the 95 % interval of the difference of the two contains 0.

    Both are means of samples, so both have an interval; that of the difference follows from them
    (Zou and Donner 2008, as in `annheal.recall.interval.combine_strata`).
    """
    difference = audited.recall - estimate.recall
    below = math.hypot(audited.recall - audited.low, estimate.high - estimate.recall)
    above = math.hypot(audited.high - audited.recall, estimate.recall - estimate.low)
    return difference - below <= 0.0 <= difference + above
