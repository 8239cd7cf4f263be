"""Compares the hits that a client got with the exact answer of now: recall as it was served.

A sampled query is searched again to see what the node would answer now. Users got an earlier
answer, perhaps of another plan or ef. So a sample keeps the hits that were returned, and they are
compared with the same exact answer. Rows that were written or deleted since are left out on both
sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index import TopK
from annheal.model.records import IDS_ONLY
from annheal.model.search import SearchAnswer
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.reads import live_sequences
from annheal.shards.routing import hash_ids, shards_of

HITS_BYTES_MAX = 4_096
"""Bytes of the ids and scores that a sample keeps of an answer; those of the best hits."""
SCORE_TOLERANCE = 1e-6
"""Scores of the same row may differ by this share of them between two ways of searching."""
_SCORE_BYTES, _UTF8_BYTES_MAX = 4, 4

Source = SegmentView | GrowingView
Recalls = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ServedHits:
    """The hits of one query as they were returned, best first, of all shards in the request.

    Attributes:
        ids, scores: the best hits, as many as fit into `HITS_BYTES_MAX`; scores (m,) float32.
        is_whole: whether these are all hits of the answer.
        sequences: the last sequence that was visible, by shard that was searched.
    """

    ids: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    is_whole: bool
    sequences: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ShardTruth:
    """The exact answers of one shard's `view`; `best.parts` are positions in `sources`."""

    view: ShardView
    sources: Sequence[Source]
    best: TopK
    shard: int
    shard_count: int


def served_hits(answer: SearchAnswer, query: int) -> ServedHits:
    """Return what `answer` has for the query at position `query`; a copy."""
    start = sum(answer.counts[:query].tolist())
    ids = answer.records.ids[start : start + int(answer.counts[query])]
    kept = _fitting(ids)
    return ServedHits(
        tuple(ids[:kept]),
        answer.scores[start : start + kept].copy(),
        kept == len(ids),
        answer.sequences,
    )


def _fitting(ids: Sequence[str]) -> int:
    """Return how many of the first ids fit, with their scores."""
    if _UTF8_BYTES_MAX * sum(map(len, ids)) + _SCORE_BYTES * len(ids) <= HITS_BYTES_MAX:
        return len(ids)
    room = HITS_BYTES_MAX
    for kept, name in enumerate(ids):
        room -= len(name.encode()) + _SCORE_BYTES
        if room < 0:
            return kept
    return len(ids)


def served_recalls(
    truth: ShardTruth, served: Sequence[ServedHits | None], places: npt.NDArray[np.int64], *, k: int
) -> Recalls:
    """Return the recall of each answer in `served` (n,), as far as this shard is concerned.

    `places` (n,) has the position of the answer's query in `truth.best`. Of an answer over several
    shards only this shard's part is judged: of the rows that belong into the answer, given the hits
    of the other shards, the share that was returned. NaN where no row of the shard belongs into it,
    or where the answer is not kept.
    """
    recalls = np.full(len(served), np.nan)
    found: dict[int, _TrueRows] = {}
    for number, (hits, place) in enumerate(zip(served, places.tolist(), strict=True)):
        if hits is None or truth.shard not in hits.sequences:
            continue
        if place not in found:
            found[place] = _true_rows(truth, place)
        recalls[number] = _recall(truth, found[place], hits, k=k)
    return recalls


@dataclass(frozen=True, slots=True)
class ServedRanks:
    """What an answer had of the exact hits of one shard, of which there are r.

    Attributes:
        known: (r,) bool, whether the hit was visible to the answer, and is not replaced since.
        served: (r,) bool, whether it was in the answer.
        gone: scores of hits of the shard whose rows were replaced or deleted since, float32.
        cut: the lowest score of the answer that is kept; -inf: it is kept whole.
    """

    known: npt.NDArray[np.bool_]
    served: npt.NDArray[np.bool_]
    gone: npt.NDArray[np.float32]
    cut: float


def served_ranks(
    truth: ShardTruth, served: Sequence[ServedHits | None], places: npt.NDArray[np.int64]
) -> tuple[ServedRanks | None, ...]:
    """Return what each answer in `served` (n,) had of the shard's exact hits; None: not known.

    `places` is that of `served_recalls`.
    """
    found: dict[int, _TrueRows] = {}
    ranks: list[ServedRanks | None] = []
    for hits, place in zip(served, places.tolist(), strict=True):
        if hits is None or truth.shard not in hits.sequences:
            ranks.append(None)
            continue
        if place not in found:
            found[place] = _true_rows(truth, place)
        ranks.append(_served_of(truth, found[place], hits))
    return tuple(ranks)


def _served_of(truth: ShardTruth, true: _TrueRows, hits: ServedHits) -> ServedRanks:
    """Return what one answer had. A hit as good as the last exact one counts for one of those."""
    here = _of_shard(truth, hits)
    alive = _alive(truth, hits, here)
    known = true.sequences <= hits.sequences[truth.shard]
    named = {name for name, is_alive in zip(hits.ids, alive.tolist(), strict=True) if is_alive}
    served = known & np.fromiter((name in named for name in true.ids), np.bool_, len(true.ids))
    if len(true.scores):
        last = float(true.scores[-1])
        good = alive & (hits.scores >= last - abs(last) * SCORE_TOLERANCE)
        equal = int(np.count_nonzero(good)) - int(np.count_nonzero(served))
        missing = np.flatnonzero(known & ~served)
        served[missing[len(missing) - min(max(0, equal), len(missing)) :]] = True
    cut = -np.inf if hits.is_whole else float(hits.scores[-1]) if len(hits.scores) else np.inf
    return ServedRanks(known, served, hits.scores[here & ~alive], cut)


@dataclass(frozen=True, slots=True)
class _TrueRows:
    """The exact hits of one query in the shard, best first."""

    ids: list[str]
    scores: npt.NDArray[np.float32]
    sequences: npt.NDArray[np.int64]


def _true_rows(truth: ShardTruth, place: int) -> _TrueRows:
    present = truth.best.rows[place] >= 0
    rows, parts = truth.best.rows[place][present], truth.best.parts[place][present]
    ids, sequences = [""] * len(rows), np.empty(len(rows), dtype=np.int64)
    for part in np.unique(parts).tolist():
        where = np.flatnonzero(parts == part)
        source = truth.sources[part]
        held = source if isinstance(source, GrowingView) else source.segment
        sequences[where] = held.sequences[rows[where]]
        for position, name in zip(
            where.tolist(), held.take(rows[where], IDS_ONLY).ids, strict=True
        ):
            ids[position] = name
    return _TrueRows(ids, truth.best.scores[place][present], sequences)


def _recall(truth: ShardTruth, true: _TrueRows, hits: ServedHits, *, k: int) -> float:
    """Return the recall of one answer, NaN if no row of the shard belongs into it."""
    here = _of_shard(truth, hits)
    alive = _alive(truth, hits, here)
    known = true.sequences <= hits.sequences[truth.shard]
    scores = true.scores[known]
    # The rows of the answer that are left: of it all, or of the best hits if not all are kept.
    wanted = (k if hits.is_whole else len(hits.ids)) - int(np.count_nonzero(here & ~alive))
    others = hits.scores[~here]
    together = np.sort(np.concatenate([others, scores]))[::-1][: max(0, wanted)]
    if not len(together) or not len(scores):
        return float("nan")
    last = float(together[-1])
    expected = min(int(np.count_nonzero(scores >= last)), len(together))
    if not expected:
        return float("nan")
    belonging = {
        name
        for name, score, old in zip(true.ids, true.scores.tolist(), known.tolist(), strict=True)
        if old and score >= last
    }
    lowest = last - abs(last) * SCORE_TOLERANCE
    good = sum(
        is_alive and (score >= lowest or name in belonging)
        for name, score, is_alive in zip(
            hits.ids, hits.scores.tolist(), alive.tolist(), strict=True
        )
    )
    return float(min(good, expected) / expected)


def _alive(
    truth: ShardTruth, hits: ServedHits, here: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which of the hits that are `here`, (m,) bool, have the same row now as then."""
    sequence = hits.sequences[truth.shard]
    alive = here.copy()
    if truth.view.sequence != sequence:
        named = [name for name, own in zip(hits.ids, here.tolist(), strict=True) if own]
        now = live_sequences(truth.view, named)
        alive[here] = (now >= 0) & (now <= sequence)
    return alive


def _of_shard(truth: ShardTruth, hits: ServedHits) -> npt.NDArray[np.bool_]:
    """Return which of the hits are rows of this shard, (m,) bool."""
    if len(hits.sequences) == 1:
        return np.ones(len(hits.ids), dtype=np.bool_)
    shards = shards_of(hash_ids(hits.ids), shard_count=truth.shard_count)
    own: npt.NDArray[np.bool_] = shards == truth.shard
    return own
