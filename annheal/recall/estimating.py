"""The estimate of mean recall from the recall of single queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from annheal.model.measures.recall import RECALL_STEPS, RecallEstimate
from annheal.model.measures.recall_tail import TailEstimate, TailObjective
from annheal.recall.interval import mean_interval

Recalls = npt.NDArray[np.float64]
_ROUNDING = 1e-9


def recall_estimate(
    recalls: Recalls, asked: Counter[int], plans: Mapping[str, int], *, measured_at_s: float
) -> RecallEstimate:
    """Return the estimate from the recall of each query, (n,) with n >= 1.

    `asked` counts queries by k. The estimate's `k` is the most frequent one. Its interval supposes
    nothing about how recall varies between queries (`annheal/recall/interval.py`).
    """
    interval = mean_interval(recalls)
    return RecallEstimate(
        k=asked.most_common(1)[0][0],
        recall=interval.mean,
        low=interval.low,
        high=interval.high,
        queries=len(recalls),
        measured_at_s=measured_at_s,
        plans=dict(plans),
        shares=recall_shares(recalls),
    )


def recall_shares(recalls: Recalls) -> tuple[float, ...]:
    """Return the share of the queries, at least one, in each step of `RecallEstimate.shares`."""
    steps = np.floor(recalls * RECALL_STEPS + 1e-9).astype(np.int64)
    counts = np.bincount(np.clip(steps, 0, RECALL_STEPS), minlength=RECALL_STEPS + 1)
    return tuple((counts / len(recalls)).tolist())


def tail_estimate(
    recalls: Recalls, queries: npt.NDArray[np.int64], objective: TailObjective
) -> TailEstimate:
    """Return the share of queries with a recall of at least `objective.recall`.

    `recalls` is (n,); `queries` (n,) has the number of the query of each, from 0 on. A query that
    was asked ten times counts ten times in the share, and once in the interval, which is that of
    Clopper and Pearson if no query was asked twice.
    """
    times = np.bincount(queries).astype(np.float64)
    good = recalls >= objective.recall - _ROUNDING
    # Answers of one query may differ, where they were given at different times.
    shares = np.bincount(queries, weights=good) / times
    interval = mean_interval(shares, times=times)
    return TailEstimate(objective, interval.mean, interval.low, interval.high)
