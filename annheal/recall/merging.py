"""Recall of merged answers, from what each shard found of the same queries. Pure.

The answer to a query over several shards has the best k of the hits that the shards found. With
the exact hits of each shard, the exact answer is known as well: its k-th score is the k-th largest
of all shards' exact scores. An exact hit of a shard belongs into the answer if its score is at
least that, and it is in the merged answer if its shard found it, because fewer than k hits are
better. So the recall of the answer is the number of exact hits that belong and were found, divided
by the number of those that belong. A shard that missed its ninth hit has lost nothing if only its
best two belong into the answer.

Only queries that all shards measured count. Shards hold the same queries because a query's number
decides whether it is sampled (`shard_node/recall/thinning.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from annheal.filters import filter_key
from annheal.model.filter import Filter
from annheal.model.measures.recall import RecallEstimate
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.measures.shard_queries import FOUND, KNOWN, SERVED, Numbers, ShardQueries
from annheal.recall.estimating import Recalls, arrivals_of, recall_estimate, tail_estimate

SCORE_TOLERANCE = 1e-6
"""Scores of the same row may differ by this share of them between two ways of searching."""
DEPTH_DEVIATIONS, DEPTH_MORE = 6.0, 8
"""A shard of S has a binomial number of the k hits of an answer. More than so many standard
deviations above the mean, and so many more, happen to fewer than one query in 10^8."""

Scores = npt.NDArray[np.float32]
Marks = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
ValueT = TypeVar("ValueT", np.float32, np.uint8)
ColumnT = TypeVar("ColumnT", np.int64, np.uint64, np.bool_)


def depth_max(k: int, *, shard_count: int) -> int:
    """Return how many of a shard's exact hits are needed to know those of an answer of `k` hits."""
    share = 1.0 / shard_count
    spread = math.sqrt(k * share * (1.0 - share))
    return min(k, math.ceil(k * share + DEPTH_DEVIATIONS * spread) + DEPTH_MORE)


def filter_number(filter: Filter) -> int:
    """Return the number of a filter in `ShardQueries.filters`: equal for equal filters, not 0."""
    return int.from_bytes(filter_key(filter)[:8], "little") | 1


def tag_number(tag: str) -> int:
    """Return the number of a tag in `ShardQueries.tags`: equal for equal tags, 0 for no tag."""
    return xxhash.xxh3_64_intdigest(tag.encode()) | 1 if tag else 0


@dataclass(frozen=True, slots=True, eq=False)
class MergedQueries:
    """The queries that all shards measured; position i of each column is one of them.

    Attributes:
        same, ks, filters, own, objectives, sampled_at_s: see `ShardQueries`; (m,).
        in_band, tags: likewise, where all shards agree; else False and 0.
        matches, live_rows: (m,) of all shards.
        recalls: (m,) of the merged answer as it would be given now; NaN without an exact hit.
        served: (m,) of the answer that was given; NaN where it is not known.
        measured_at_s, valid_s: of the oldest measurement, and the shortest time.
        incomplete: queries of bands that some shards measured and others did not.
        undecided: queries of which the parts were too short to tell.
    """

    same: Numbers
    ks: npt.NDArray[np.int64]
    filters: Numbers
    own: Mask
    objectives: npt.NDArray[np.float64]
    in_band: Mask
    tags: Numbers
    sampled_at_s: npt.NDArray[np.float64]
    matches: npt.NDArray[np.int64]
    live_rows: npt.NDArray[np.int64]
    recalls: Recalls
    served: Recalls
    measured_at_s: float
    valid_s: float
    incomplete: int
    undecided: int

    def estimate(
        self, of: Mask, plans: Mapping[str, int], *, tail: TailObjective | None = None
    ) -> RecallEstimate | None:
        """Return the estimate from the queries `of` (m,) bool; None if there are none.

        With the share of queries that have enough recall for the objective `tail`.
        """
        found = self._estimate(self.recalls, of, plans)
        if found is None or tail is None:
            return found
        chosen = of & ~np.isnan(self.recalls)
        _, queries = np.unique(self.same[chosen], return_inverse=True)
        return replace(found, tail=tail_estimate(self.recalls[chosen], queries, tail))

    def served_estimate(self, of: Mask) -> RecallEstimate | None:
        """Return the same of the answers that were given."""
        return self._estimate(self.served, of, {})

    def _estimate(
        self, recalls: Recalls, of: Mask, plans: Mapping[str, int]
    ) -> RecallEstimate | None:
        chosen = of & ~np.isnan(recalls)
        if not chosen.any():
            return None
        times = self.sampled_at_s[chosen]
        asked = Counter[int](self.ks[chosen].tolist())
        found = recall_estimate(
            recalls[chosen],
            asked,
            plans,
            measured_at_s=self.measured_at_s,
            arrivals=arrivals_of(self.same[chosen], times),
        )
        return replace(
            found,
            window_begin_s=float(times.min()),
            window_end_s=float(times.max()),
            valid_until_s=float(times.max()) + self.valid_s,
            distinct=len(np.unique(self.same[chosen])),
        )


def merge_queries(parts: Sequence[ShardQueries], *, shard_count: int) -> MergedQueries:
    """Return the queries of which each of `shard_count` shards has a part in `parts`.

    Of two parts of one shard the last one counts. A number that appears twice in a part counts
    once.
    """
    by_shard = {part.shard: part for part in parts}
    shards = [by_shard[shard] for shard in sorted(by_shard)]
    numbers = [np.unique(part.numbers) for part in shards]
    of_bands = [part.numbers[part.in_band] for part in shards]
    every = np.unique(np.concatenate(of_bands)) if shards else np.empty(0, dtype=np.uint64)
    complete = every[:0]
    if len(shards) == shard_count:
        complete = reduce(np.intersect1d, numbers)
    if not len(complete):
        return _nothing(incomplete=len(every))
    places = np.stack([_places(part.numbers, complete) for part in shards])
    ks = np.stack([part.ks[place] for part, place in zip(shards, places, strict=True)])
    same_k = (ks == ks[0]).all(axis=0)  # one call, one k: anything else is another query
    complete, places = complete[same_k], places[:, same_k]
    first = shards[0]
    at = places[0]
    in_band = np.logical_and.reduce(_taken_from([one.in_band for one in shards], places))
    tags = _taken_from([one.tags for one in shards], places)
    tags = np.where((tags == tags[0]).all(axis=0), tags[0], np.uint64(0))
    recalls, served = np.full(len(at), np.nan), np.full(len(at), np.nan)
    decided = np.ones(len(at), dtype=np.bool_)
    for k in np.unique(first.ks[at]).tolist():
        of = np.flatnonzero(first.ks[at] == k)
        hits = _Hits.of(shards, places[:, of])
        recalls[of], decided[of] = hits.recalls(k)
        served[of] = hits.served_recalls(k)
    at, places = at[decided], places[:, decided]
    return MergedQueries(
        same=first.same[at],
        ks=first.ks[at],
        filters=first.filters[at],
        own=first.own[at],
        objectives=first.objectives[at],
        in_band=in_band[decided],
        tags=tags[decided],
        sampled_at_s=first.sampled_at_s[at],
        matches=_total([part.matches for part in shards], places),
        live_rows=_total([part.live_rows for part in shards], places),
        recalls=recalls[decided],
        served=served[decided],
        measured_at_s=min(part.measured_at_s for part in shards),
        valid_s=min(part.valid_s for part in shards),
        incomplete=len(every) - int(np.count_nonzero(in_band)),
        undecided=int(np.count_nonzero(~decided)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Hits:
    """The exact hits of q queries with one k: scores (q, S, d), -inf where there is none.

    `gone` is (q, g), padded with -inf; `last` (q, S) the lowest score of each part, and `more`
    (q, S) whether the shard has further hits.
    """

    scores: Scores
    marks: Marks
    last: Scores
    more: Mask
    is_served: Mask
    cuts: Scores
    gone: Scores

    @classmethod
    def of(cls, shards: Sequence[ShardQueries], places: npt.NDArray[np.intp]) -> _Hits:
        """Return the hits of the queries at `places` (S, q) of each shard."""
        chosen = list(zip(shards, places, strict=True))
        depth = max(int(part.depths[place].max()) for part, place in chosen)
        width = max(int(part.gone[place].max()) for part, place in chosen)
        scores, marks, gone = [], [], []
        for part, place in chosen:
            of_part, held = _padded(part.scores, part.depths, place, width=depth)
            scores.append(of_part)
            marks.append(np.where(held, _taken(part.marks, part.depths, place, width=depth), 0))
            gone.append(_padded(part.gone_scores, part.gone, place, width=width)[0])
        stacked = np.stack(scores, axis=1)
        lowest = np.where(np.isneginf(stacked), np.inf, stacked).min(axis=2, initial=np.inf)
        return cls(
            scores=stacked,
            marks=np.stack(marks, axis=1).astype(np.uint8),
            last=np.where(np.isposinf(lowest), -np.inf, lowest).astype(np.float32),
            more=np.stack([part.more[place] for part, place in chosen], axis=1),
            is_served=np.logical_and.reduce([part.served[place] for part, place in chosen]),
            cuts=np.stack([part.cuts[place] for part, place in chosen]).max(axis=0),
            gone=np.concatenate(gone, axis=1),
        )

    def recalls(self, k: int) -> tuple[Recalls, Mask]:
        """Return the recall of each merged answer, and whether the parts are enough to tell."""
        wanted, lowest = _kth(self.scores.reshape(len(self.scores), -1), k)
        belongs = self.scores >= lowest[:, None, None]
        found = np.count_nonzero(belongs & (self.marks & FOUND > 0), axis=(1, 2))
        return _ratio(found, wanted), self._decided(lowest)

    def served_recalls(self, k: int) -> Recalls:
        """Return the recall of each answer that was given; NaN where it is not known.

        Rows that were written since are left out on both sides. A hit whose row is gone keeps its
        place in the answer, and neither counts as found nor as missed.
        """
        known = self.marks & KNOWN > 0
        then = np.where(known, self.scores, -np.inf).astype(np.float32).reshape(len(known), -1)
        places, lowest = _kth(np.concatenate([then, self.gone], axis=1), k)
        lowest = np.maximum(lowest, self.cuts)
        belongs = known & (self.scores >= lowest[:, None, None])
        lost = np.count_nonzero(self.gone >= lowest[:, None], axis=1)
        wanted = np.minimum(np.count_nonzero(belongs, axis=(1, 2)), places - lost)
        found = np.count_nonzero(belongs & (self.marks & SERVED > 0), axis=(1, 2))
        recalls = _ratio(found, wanted)
        recalls[~(self.is_served & self._decided(lowest))] = np.nan
        return recalls

    def _decided(self, lowest: Scores) -> Mask:
        beyond: Mask = self.more & (self.last >= lowest[:, None])
        decided: Mask = ~np.logical_or.reduce(beyond, axis=1)
        return decided


def _kth(scores: Scores, k: int) -> tuple[npt.NDArray[np.int64], Scores]:
    """Return how many of the `k` best scores (q, m) each query has, and the lowest of them.

    The latter is lowered by the tolerance; +inf where there is no score.
    """
    ordered = -np.sort(-scores, axis=1)
    wanted = np.minimum(k, np.count_nonzero(~np.isneginf(scores), axis=1))
    last = ordered[np.arange(len(ordered)), np.maximum(wanted - 1, 0)] if ordered.size else wanted
    lowest = np.where(wanted > 0, last - np.abs(last) * SCORE_TOLERANCE, np.inf)
    return wanted, lowest.astype(np.float32)


def _ratio(found: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> Recalls:
    """Return `found` of `wanted`; of equal scores at the end more may be found than are wanted."""
    shares = np.minimum(found, wanted) / np.maximum(wanted, 1)
    recalls: Recalls = np.where(wanted > 0, shares, np.nan)
    return recalls


def _padded(
    flat: Scores, counts: npt.NDArray[np.int64], places: npt.NDArray[np.intp], *, width: int
) -> tuple[Scores, Mask]:
    """Return the values of the queries at `places`, (q, width), and which of them there are."""
    held = np.arange(width) < counts[places][:, None]
    values = np.where(held, _taken(flat, counts, places, width=width), -np.inf)
    return values.astype(np.float32), held


def _taken(
    flat: npt.NDArray[ValueT],
    counts: npt.NDArray[np.int64],
    places: npt.NDArray[np.intp],
    *,
    width: int,
) -> npt.NDArray[ValueT]:
    """Return (q, width) values of `flat`, from the first one of each query on."""
    if not len(flat):
        return np.zeros((len(places), width), dtype=flat.dtype)
    starts = np.cumsum(counts) - counts
    at = starts[places][:, None] + np.arange(width)
    taken: npt.NDArray[ValueT] = flat[np.minimum(at, len(flat) - 1)]
    return taken


def _places(numbers: Numbers, wanted: Numbers) -> npt.NDArray[np.intp]:
    """Return the first position of each of the `wanted` numbers, which are all there."""
    known, first = np.unique(numbers, return_index=True)
    return first[np.searchsorted(known, wanted)]


def _taken_from(
    columns: Sequence[npt.NDArray[ColumnT]], places: npt.NDArray[np.intp]
) -> npt.NDArray[ColumnT]:
    """Return the values of each shard's column at its `places` (S, q), (S, q)."""
    return np.stack([column[place] for column, place in zip(columns, places, strict=True)])


def _total(
    columns: Sequence[npt.NDArray[np.int64]], places: npt.NDArray[np.intp]
) -> npt.NDArray[np.int64]:
    total: npt.NDArray[np.int64] = np.sum(_taken_from(columns, places), axis=0)
    return total


def _nothing(*, incomplete: int) -> MergedQueries:
    whole, real = np.empty(0, dtype=np.int64), np.empty(0)
    unsigned = np.empty(0, dtype=np.uint64)
    return MergedQueries(
        unsigned,
        whole,
        unsigned,
        np.empty(0, dtype=np.bool_),
        real,
        np.empty(0, dtype=np.bool_),
        unsigned,
        real,
        whole,
        whole,
        real,
        real,
        measured_at_s=0.0,
        valid_s=0.0,
        incomplete=incomplete,
        undecided=0,
    )
