"""Merging of ranked hits of segments and shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.hits.ranking import IdsOf, best_columns
from annheal.index.walk.filtered_walk import ROW_MISSING, SCORE_MISSING

PartIds = Callable[[int, npt.NDArray[np.int64]], Sequence[str]]
"""Returns the ids of rows (n,) of the part at a position."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The best k hits of n queries in several parts, best first.

    Attributes:
        scores: (n, k) float32, -inf where there is no hit.
        parts: (n, k) int32, the position of the part with the hit, -1 where there is none.
        rows: (n, k) int64, the row of the hit in its part, -1 where there is none.
    """

    scores: npt.NDArray[np.float32]
    parts: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of hits of each query, (n,) int64."""
        counts: npt.NDArray[np.int64] = np.count_nonzero(self.rows >= 0, axis=1)
        return counts


def merge_topk(
    parts: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
    *,
    k: int,
    queries: int,
    ids_of: PartIds | None = None,
) -> TopK:
    """Return the best `k` hits of `parts`, each (scores (queries, k_i), rows (queries, k_i)).

    Each part is sorted best first and padded with -inf and -1, as `VectorIndex.search` returns it.
    Equal scores are ordered by id; without `ids_of`, by the position of the part, then as in the
    part. The order of a single part is kept.
    """
    if not parts:
        return _empty(queries, k)
    if len(parts) == 1:
        return _single(*parts[0], k=k)
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    numbers = np.repeat(np.arange(len(parts), dtype=np.int32), [part[0].shape[1] for part in parts])
    ids_of_hits = None if ids_of is None else _ids_of_hits(ids_of, numbers, rows)
    order = best_columns(scores, k=k, ids_of=ids_of_hits)
    best_rows = np.take_along_axis(rows, order, axis=1)
    best_parts = numbers[order]
    best_parts[best_rows < 0] = ROW_MISSING
    return _pad(np.take_along_axis(scores, order, axis=1), best_parts, best_rows, k=k)


def _ids_of_hits(
    ids_of: PartIds, numbers: npt.NDArray[np.int32], rows: npt.NDArray[np.int64]
) -> IdsOf:
    """Return a function from (query, column) of hits to ids; `numbers` are the columns' parts."""

    def ids_of_hits(
        queries: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.object_]:
        ids = np.empty(len(queries), dtype=object)
        parts = numbers[columns]
        for part in np.unique(parts).tolist():
            where = np.flatnonzero(parts == part)
            ids[where] = ids_of(part, rows[queries[where], columns[where]])
        return ids

    return ids_of_hits


def _single(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], *, k: int) -> TopK:
    scores, rows = scores[:, :k], rows[:, :k]
    parts = np.where(rows < 0, np.int32(ROW_MISSING), np.int32(0))
    return _pad(scores, parts, rows, k=k)


def _pad(
    scores: npt.NDArray[np.float32],
    parts: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int64],
    *,
    k: int,
) -> TopK:
    queries, found = scores.shape
    if found == k:
        return TopK(scores, parts, rows)
    wide = _empty(queries, k)
    wide.scores[:, :found] = scores
    wide.parts[:, :found] = parts
    wide.rows[:, :found] = rows
    return wide


def _empty(queries: int, k: int) -> TopK:
    return TopK(
        scores=np.full((queries, k), SCORE_MISSING, dtype=np.float32),
        parts=np.full((queries, k), ROW_MISSING, dtype=np.int32),
        rows=np.full((queries, k), ROW_MISSING, dtype=np.int64),
    )
