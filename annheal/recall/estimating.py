"""The estimate of mean recall from the recall of single queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

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
    parts: Iterable[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]],
    objective: TailObjective,
) -> TailEstimate:
    """Return the share of queries with a recall of at least `objective.recall`.

    Each part has recalls (n,) and, for each of them, the number of its query within the part, (n,).
    A query that was asked ten times counts ten times in the share, and once in the interval, which
    is that of Clopper and Pearson if no query was asked twice.
    """
    reached: list[npt.NDArray[np.float64]] = []
    times: list[npt.NDArray[np.float64]] = []
    for recalls, queries in parts:
        counts = np.bincount(queries).astype(np.float64)
        good = recalls >= objective.recall - _ROUNDING
        asked = counts > 0
        # Answers of one query may differ, where they were given at different times.
        shares = np.bincount(queries, weights=good)[asked] / counts[asked]
        reached.append(shares)
        times.append(counts[asked])
    interval = mean_interval(np.concatenate(reached), times=np.concatenate(times))
    return TailEstimate(objective, interval.mean, interval.low, interval.high)
