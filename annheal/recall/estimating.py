"""The estimate of mean recall from the recall of single queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from annheal.model.measures.recall import RECALL_STEPS, RecallEstimate
from annheal.model.measures.recall_tail import TailEstimate, TailObjective
from annheal.model.measures.shard_queries import Numbers
from annheal.recall.interval import Interval, mean_interval

Recalls = npt.NDArray[np.float64]
REPEATED_WITHIN_S = 1.0
"""The same query again within the same second is a repetition and no new evidence."""
_ROUNDING = 1e-9


def recall_estimate(
    recalls: Recalls,
    asked: Counter[int],
    plans: Mapping[str, int],
    *,
    measured_at_s: float,
    arrivals: npt.NDArray[np.int64] | None = None,
) -> RecallEstimate:
    """Return the estimate from the recall of each query, (n,) with n >= 1.

    `asked` counts queries by k. The estimate's `k` is the most frequent one. Its interval supposes
    nothing about how recall varies between queries (`annheal/recall/interval.py`). `arrivals` are
    those of `arrivals_of`; None: no query was repeated.
    """
    interval = mean_interval(recalls) if arrivals is None else interval_of(recalls, arrivals)
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


def arrivals_of(queries: Numbers, asked_at_s: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the number of the arrival of each query, (n,), from 0 on.

    `queries` (n,) are equal for equal queries, `asked_at_s` (n,) is seconds since the epoch. The
    repetitions of a query within `REPEATED_WITHIN_S` are one arrival.
    """
    moments = np.floor(asked_at_s / REPEATED_WITHIN_S).astype(np.int64)
    order = np.lexsort((moments, queries))
    in_order = queries[order], moments[order]
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = (np.diff(in_order[0]) != 0) | (np.diff(in_order[1]) != 0)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(is_new) - 1
    return numbers


def interval_of(recalls: Recalls, arrivals: npt.NDArray[np.int64]) -> Interval:
    """Return the mean of `recalls` (n,) with its interval.

    Queries of the same arrival, numbered from 0 on in `arrivals` (n,), count each in the mean and
    together once in the interval: a client that repeats a query in a loop shows once how hard such
    queries are. A query that is asked at different times shows each time what the traffic is like:
    that half of it is one query is known, and counting that query once would leave it open.
    """
    times = np.bincount(arrivals).astype(np.float64)
    means = np.bincount(arrivals, weights=recalls) / times
    return mean_interval(means, times=times)


def audited_estimate(
    estimate: RecallEstimate,
    recalls: Recalls,
    queries: Numbers,
    asked_at_s: npt.NDArray[np.float64],
) -> tuple[RecallEstimate | None, int]:
    """Return the recall of queries that `estimate` was not made from, since its window began.

    All are (n,), as in `arrivals_of`. Also how many were asked after its window; None: there are
    none.
    """
    since = asked_at_s >= estimate.window_begin_s
    if not since.any():
        return None, 0
    recalls, queries, asked_at_s = recalls[since], queries[since], asked_at_s[since]
    interval = interval_of(recalls, arrivals_of(queries, asked_at_s))
    audited = RecallEstimate(
        k=estimate.k,
        recall=interval.mean,
        low=interval.low,
        high=interval.high,
        queries=len(queries),
        measured_at_s=estimate.measured_at_s,
        plans={},
        window_begin_s=float(asked_at_s.min()),
        window_end_s=float(asked_at_s.max()),
        distinct=len(np.unique(queries)),
    )
    return audited, int(np.count_nonzero(asked_at_s > estimate.window_end_s))


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
