"""Merging the answers of several nodes into the best k of each query. Pure.

Hits are ordered by score, best first; equal scores by id (as text, ascending), so that equal states
give equal answers whichever node answers first. An id appears once, with its best score (INV-3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from annheal.model.limits import ANSWER_BYTES_MAX
from annheal.model.records import RecordSet, slice_records, take_records
from annheal.model.search import SearchAnswer, with_fallback
from annheal.model.topology.shard import ShardId
from annheal.model.values.answer_size import HITS_FIX, check_answer_size, records_bytes


def merge_answers(
    answers: Sequence[SearchAnswer],
    *,
    k: int,
    fallback_k: int = 0,
    missing_shards: Sequence[ShardId] = (),
    bytes_max: int = ANSWER_BYTES_MAX,
) -> SearchAnswer:
    """Return the best `k` hits of each query over all `answers`, which are for the same n queries.

    Beside them the best `fallback_k` by the fallback model, if there is one: scores of two models
    are not compared here. One answer alone is passed on as it is: the node has ordered it. Raises
    ValueError for none, and `InvalidArgument` when the hits are more than `bytes_max` bytes.
    """
    if not answers:
        raise ValueError("there is no answer to merge")
    missing = tuple(sorted({*missing_shards, *(m for a in answers for m in a.missing_shards)}))
    if len(answers) == 1:
        only = answers[0]
        return only if missing == only.missing_shards else _with_missing(only, missing)
    if any(answer.by_fallback is not None for answer in answers):
        own, rest = (
            merge_answers(
                [_by_fallback(answer, fallback) for answer in answers],
                k=fallback_k if fallback else k,
                missing_shards=missing,
                bytes_max=bytes_max,
            )
            for fallback in (False, True)
        )
        return with_fallback(own, replace(rest, explain=()))
    scores = np.concatenate([answer.scores for answer in answers])
    queries = np.concatenate(
        [np.repeat(np.arange(len(answer.counts)), answer.counts) for answer in answers]
    )
    ids = np.concatenate([np.asarray(answer.records.ids, dtype=object) for answer in answers])
    rows, counts = _best(queries, scores, ids, k=k, query_count=len(answers[0].counts))
    sequences: dict[int, int] = {}
    for answer in answers:
        sequences.update(answer.sequences)
    records = take_records([answer.records for answer in answers], rows)
    check_answer_size(records_bytes(records), field="k", fix=HITS_FIX, bytes_max=bytes_max)
    return SearchAnswer(
        counts=counts,
        scores=scores[rows],
        records=records,
        explain=tuple(entry for answer in answers for entry in answer.explain),
        sequences=sequences,
        missing_shards=missing,
        below_objective=any(answer.below_objective for answer in answers),
    )


def empty_answer(queries: int) -> SearchAnswer:
    """Return the answer without hits to that many queries."""
    return SearchAnswer(
        counts=np.zeros(queries, dtype=np.int32),
        scores=np.zeros(0, dtype=np.float32),
        records=RecordSet(ids=[]),
    )


def slice_answer(
    answer: SearchAnswer, *, first: int, queries: int, starts: npt.NDArray[np.int64]
) -> SearchAnswer:
    """Return the hits of `queries` queries from `first` on; `starts` (n + 1) bounds each one's."""
    low, high = int(starts[first]), int(starts[first + queries])
    return SearchAnswer(
        counts=answer.counts[first : first + queries],
        scores=answer.scores[low:high],
        records=slice_records(answer.records, low, high),
        explain=answer.explain,
        sequences=answer.sequences,
        missing_shards=answer.missing_shards,
        below_objective=answer.below_objective,
        by_fallback=None if answer.by_fallback is None else answer.by_fallback[low:high],
    )


def _by_fallback(answer: SearchAnswer, fallback: bool) -> SearchAnswer:
    """Return the hits of one kind; in an answer without kinds all are of the first."""
    if answer.by_fallback is not None:
        return answer.of_fallback(fallback)
    return empty_answer(len(answer.counts)) if fallback else answer


def _best(
    queries: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    ids: npt.NDArray[np.object_],
    *,
    k: int,
    query_count: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the chosen rows, query by query and best first, and how many each query has."""
    if not len(ids):
        return np.zeros(0, dtype=np.int64), np.zeros(query_count, dtype=np.int32)
    hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
    order = np.lexsort((hashes, -scores, queries))
    if _needs_ids(queries[order], scores[order], queries, hashes):
        order = _ordered_by_id(queries, scores, ids)
    ordered = queries[order]
    starts = np.searchsorted(ordered, np.arange(query_count))
    kept = np.arange(len(order)) - starts[ordered] < k
    counts = np.bincount(ordered[kept], minlength=query_count).astype(np.int32)
    return order[kept], counts


def _needs_ids(
    queries: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    unordered: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.int64],
) -> bool:
    """Return whether a query has equal scores or (perhaps) an id twice: text compares slowly."""
    if bool(((queries[1:] == queries[:-1]) & (scores[1:] == scores[:-1])).any()):
        return True
    by_hash = np.lexsort((hashes, unordered))
    left, right = by_hash[:-1], by_hash[1:]
    same = (unordered[left] == unordered[right]) & (hashes[left] == hashes[right])
    return bool(same.any())


def _ordered_by_id(
    queries: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    ids: npt.NDArray[np.object_],
) -> npt.NDArray[np.int64]:
    """Return the rows by query, score and id, without the worse hits of an id that repeats."""
    _, codes = np.unique(ids, return_inverse=True)
    order = np.lexsort((codes, -scores, queries))
    pairs = queries[order] * (int(codes.max()) + 1) + codes[order]
    _, first = np.unique(pairs, return_index=True)
    first.sort()
    return order[first]


def _with_missing(answer: SearchAnswer, missing: tuple[ShardId, ...]) -> SearchAnswer:
    return replace(answer, missing_shards=missing)
