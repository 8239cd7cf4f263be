"""Joins the tails of estimates: the shares of queries with enough recall, as mean recall is joined.

`summary.py` says why the parts of one band and those of several bands are joined in different ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from annheal.model.measures.recall import RecallEstimate
from annheal.model.measures.recall_tail import TailEstimate
from annheal.recall.interval import Interval, Stratum, combine_strata


def join_dependent_tails(
    parts: Sequence[RecallEstimate], weights: Sequence[float]
) -> TailEstimate | None:
    """Return the tail of parts that measured the same queries; `weights` add up to 1.

    None unless all parts have one for the same objective. The share is that of pairs of a query and
    a part.
    """
    tails = _tails(parts)
    if not tails:
        return None
    return TailEstimate(
        tails[0].objective,
        math.fsum(weight * tail.share for weight, tail in zip(weights, tails, strict=True)),
        math.fsum(weight * tail.low for weight, tail in zip(weights, tails, strict=True)),
        math.fsum(weight * tail.high for weight, tail in zip(weights, tails, strict=True)),
    )


def join_independent_tails(
    parts: Sequence[RecallEstimate], weights: Sequence[float], *, unknown: float
) -> TailEstimate | None:
    """Return the tail of parts with different queries; None as above.

    `unknown` is the weight of queries that were not measured.
    """
    tails = _tails(parts)
    strata = [
        Stratum(weight, Interval(tail.share, tail.low, tail.high))
        for weight, tail in zip(weights, tails, strict=bool(tails))
    ]
    joined = combine_strata([*strata, Stratum(unknown, None)])
    if joined is None:
        return None
    return TailEstimate(tails[0].objective, joined.mean, joined.low, joined.high)


def _tails(parts: Sequence[RecallEstimate]) -> list[TailEstimate]:
    """Return the tail of each part; none at all if one has none, or one for another objective."""
    tails = [part.tail for part in parts if part.tail is not None]
    same = len(tails) == len(parts) and len({tail.objective for tail in tails}) == 1
    return tails if same else []
