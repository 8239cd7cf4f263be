"""Rows with equal vectors: one of them is in the graph, and the others have a link to it.

In an HNSW graph rows with equal vectors would link almost only to one another, and fill the beam of
every walk near them. So a graph holds each vector once, in the *original* row. The other rows with
the vector, its *copies*, are the last rows of the index. Each has one link, to its original. No
link leads to a copy, so walks do not find them; they are added to the rows that a walk found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from annheal.index.graph import HnswGraph
from annheal.index.live import LiveBitmap
from annheal.model.records import Float32Matrix

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

LINKS_TO_SHARE = 0.25
"""Links that should lead to an original, as a part of the links of a row; at most its copies."""
_CHUNK_ROWS = 50_000
_BIT_OF_ROW = (1 << np.arange(8)).astype(np.uint8)
COPIES_AT_ONCE = 256
"""Copies of one row that are tested for being live at a time."""


class Copies:
    """The copies of an index, which are its rows from `first` on; immutable.

    Attributes:
        first: the first copy; all rows before it are in the graph.
        rows: the number of all rows, copies included.
        originals: (rows - first,) int32, the row in the graph that each copy equals; ascending.
    """

    __slots__ = ("_graph_rows", "first", "originals", "rows")

    def __init__(self, originals: Int32s, *, first: int) -> None:
        """Raises ValueError unless `originals` are ascending rows below `first`."""
        ordered = bool((originals[1:] >= originals[:-1]).all())
        if not len(originals) or not ordered or originals[0] < 0 or originals[-1] >= first:
            raise ValueError(f"copies of rows outside the {first} of the graph, or unordered")
        self.first = first
        self.originals = originals
        self.rows = first + len(originals)
        self._graph_rows = LiveBitmap.from_mask(np.arange(self.rows) < first)

    def graph_rows(self, live: LiveBitmap | None) -> LiveBitmap:
        """Return the rows of the graph that are in `live` (None: all rows) or have a copy there."""
        if live is None:
            return self._graph_rows
        copies = np.arange(self.first, self.rows, dtype=np.int64)
        originals = self.originals[live.contains(copies)]
        packed = live.packed & self._graph_rows.packed
        np.bitwise_or.at(packed, originals >> 3, _BIT_OF_ROW[originals & 7])
        return LiveBitmap.from_packed(packed, rows=self.rows)

    def add_to(self, rows: Int64s, scores: Scores, *, k: int, live: LiveBitmap | None) -> Int64s:
        """Return `rows` (n, m) of the graph, found for n queries, with their copies: (n, m') int64.

        `scores` (n, m) are those of the rows. The result has each row that is in `live`, and its
        first k copies that are. As copies are in the order of their ids, the best k by score and id
        are among these. It is padded with -1; if no row has copies, it is `rows`.
        """
        start = np.searchsorted(self.originals, rows, side="left")
        stop = np.searchsorted(self.originals, rows, side="right")
        with_copies = np.flatnonzero((stop > start).any(axis=1))
        if not len(with_copies):
            return rows
        found = {
            query: self._row_with_copies(
                rows[query], scores[query], start[query], stop[query], k=k, live=live
            )
            for query in with_copies.tolist()
        }
        width = max(rows.shape[1], *map(len, found.values()))
        result = np.full((len(rows), width), -1, dtype=np.int64)
        result[:, : rows.shape[1]] = rows
        for query, best in found.items():
            result[query] = -1
            result[query, : len(best)] = best
        return result

    def _row_with_copies(
        self,
        rows: Int64s,
        scores: Scores,
        start: Int64s,
        stop: Int64s,
        *,
        k: int,
        live: LiveBitmap | None,
    ) -> Int64s:
        """Return rows of one query with copies, best first: k, and all that tie with the last."""
        parts: list[Int64s] = []
        count, last = 0, np.float32(-np.inf)
        for column in np.argsort(-scores, kind="stable").tolist():
            row = int(rows[column])
            if row < 0 or (count >= k and scores[column] < last):
                break
            copies = self._live_copies(int(start[column]), int(stop[column]), k=k, live=live)
            own = np.array([row], dtype=np.int64)
            if live is not None and not live.contains(own)[0]:
                own = own[:0]
            parts += [own, copies]
            count += len(own) + len(copies)
            last = scores[column]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _live_copies(self, start: int, stop: int, *, k: int, live: LiveBitmap | None) -> Int64s:
        """Return the first k live copies of those from `start` to `stop` (exclusive)."""
        if live is None:
            return np.arange(start, min(stop, start + k), dtype=np.int64) + self.first
        found: list[Int64s] = []
        missing = k
        step = max(COPIES_AT_ONCE, k)
        for begin in range(start, stop, step):
            some = np.arange(begin, min(stop, begin + step), dtype=np.int64) + self.first
            some = some[live.contains(some)][:missing]
            found.append(some)
            missing -= len(some)
            if not missing:
                break
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def append_copies(
    index: Any, vectors: Float32Matrix, originals: Int32s, yield_point: Callable[[], None]
) -> None:
    """Add copies of the rows `originals` (c,), with `vectors` (c, d), to a FAISS HNSW index."""
    hnsw = index.hnsw
    offsets = faiss.vector_to_array(hnsw.offsets)
    width = int(faiss.vector_to_array(hnsw.cum_nneighbor_per_level)[1])
    count = len(originals)
    links = np.full((count, width), -1, dtype=np.int32)
    links[:, 0] = originals
    more = offsets[-1] + width * np.arange(1, count + 1, dtype=np.uint64)
    neighbors = faiss.vector_to_array(hnsw.neighbors)
    _add_links_to_originals(neighbors, offsets[:-1].astype(np.int64), width, originals, yield_point)
    levels = np.concatenate([faiss.vector_to_array(hnsw.levels), np.ones(count, dtype=np.int32)])
    neighbors = np.concatenate([neighbors, links.reshape(-1)])
    faiss.copy_array_to_vector(levels, hnsw.levels)
    faiss.copy_array_to_vector(np.concatenate([offsets, more]), hnsw.offsets)
    faiss.copy_array_to_vector(neighbors, hnsw.neighbors)
    index.storage.add(np.ascontiguousarray(vectors))
    index.ntotal += count


def _add_links_to_originals(
    neighbors: Int32s,
    offsets: Int64s,
    width: int,
    originals: Int32s,
    yield_point: Callable[[], None],
) -> None:
    """Change `neighbors` so that enough links lead to each of `originals`.

    HNSW builds graphs in which no link leads to some rows (55 of 20,400 random vectors of 48
    dimensions). A query near such a row misses one hit, but ten hits if the row has ten copies.
    """
    degree = _in_degrees(neighbors, offsets, width)
    enough = max(1, int(width * LINKS_TO_SHARE))
    rows, copies = np.unique(originals, return_counts=True)
    wanted = np.minimum(copies, enough)
    for row, least in zip(rows[degree[rows] < wanted], wanted[degree[rows] < wanted], strict=True):
        yield_point()
        for source in _two_hops(neighbors, offsets, width, int(row)):
            if degree[row] >= least:
                break
            places = neighbors[offsets[source] : offsets[source] + width]
            if source == row or row in places:
                continue
            if places[-1] < 0:
                place = int(np.argmax(places < 0))
            else:
                spare = np.flatnonzero(degree[places] > enough)
                if not len(spare):
                    continue
                place = int(spare[-1])
                degree[places[place]] -= 1
            places[place] = row
            degree[row] += 1


def _two_hops(neighbors: Int32s, offsets: Int64s, width: int, row: int) -> list[int]:
    """Return the neighbours of `row` on level 0, then the neighbours of these, each row once."""
    own = neighbors[offsets[row] : offsets[row] + width]
    found = [own[own >= 0]]
    for neighbor in found[0].tolist():
        links = neighbors[offsets[neighbor] : offsets[neighbor] + width]
        found.append(links[links >= 0])
    return list(dict.fromkeys(np.concatenate(found).tolist()))


def _in_degrees(neighbors: Int32s, offsets: Int64s, width: int) -> Int64s:
    """Return how many links of level 0 lead to each row, (rows,) int64."""
    degree = np.zeros(len(offsets), dtype=np.int64)
    for start in range(0, len(offsets), _CHUNK_ROWS):
        places = offsets[start : start + _CHUNK_ROWS, None] + np.arange(width)
        links = neighbors[places]
        degree += np.bincount(links[links >= 0], minlength=len(offsets))
    return degree


def copies_of(graph: HnswGraph, *, first: int, rows: int) -> Copies:
    """Return the copies of an index with `rows` rows: those from `first` on, by their links.

    Raises ValueError for links that `append_copies` does not write.
    """
    if not 0 < first < rows:
        raise ValueError(f"copies from row {first} on of {rows}")
    starts = graph.offsets[first:rows]
    originals = np.array(graph.neighbors[starts], dtype=np.int32)
    return Copies(originals, first=first)
