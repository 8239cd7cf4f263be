"""Rows with equal vectors: the graph holds one of them, to which the others have a link.

Rows with equal vectors link to one another in an HNSW graph and to little else, and fill the beam
of a walk that comes near. So a graph holds each vector once. The other rows with it, its *copies*,
come last in the index. They have one link each, to the row in the graph, and no link leads to them:
a walk never meets them. They are added to what a walk found.
"""

from __future__ import annotations

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
"""Links that should lead to a row with so many copies or more, by the places of a row's links."""
_CHUNK_ROWS = 50_000
_BIT_OF_ROW = (1 << np.arange(8)).astype(np.uint8)
COPIES_LOOKED_AT = 256
"""Copies of one row whose liveness is tested at a time."""


class Copies:
    """The copies of an index: rows `first` and up; immutable.

    Attributes:
        first: the first copy; the rows before it are in the graph.
        rows: all rows, copies included.
        originals: (rows - first,) int32, the row in the graph that each copy equals; ascending.
    """

    __slots__ = ("_graph_rows", "first", "originals", "rows")

    def __init__(self, originals: Int32s, *, first: int) -> None:
        """Raises ValueError for originals that are not ascending rows of the graph."""
        ordered = bool((originals[1:] >= originals[:-1]).all())
        if not len(originals) or not ordered or originals[0] < 0 or originals[-1] >= first:
            raise ValueError(f"copies of rows outside the {first} of the graph, or unordered")
        self.first = first
        self.originals = originals
        self.rows = first + len(originals)
        self._graph_rows = LiveBitmap.from_mask(np.arange(self.rows) < first)

    def graph_rows(self, live: LiveBitmap | None) -> LiveBitmap:
        """Return the rows of the graph that are in `live` (None: all rows) or have a copy in it."""
        if live is None:
            return self._graph_rows
        copies = np.arange(self.first, self.rows, dtype=np.int64)
        originals = self.originals[live.contains(copies)]
        packed = live.packed & self._graph_rows.packed
        np.bitwise_or.at(packed, originals >> 3, _BIT_OF_ROW[originals & 7])
        return LiveBitmap.from_packed(packed, rows=self.rows)

    def add_to(self, rows: Int64s, scores: Scores, *, k: int, live: LiveBitmap | None) -> Int64s:
        """Return `rows` (n, m) of the graph with copies, as far as they may be among the best k.

        `scores` (n, m) are those of the rows. Of each row there are itself, if it is in `live`, and
        its first k copies that are; so with copies in the order of their ids the best k by score
        and id are among them. -1 pads the (n, m') result; without copies it is `rows`.
        """
        start = np.searchsorted(self.originals, rows, side="left")
        stop = np.searchsorted(self.originals, rows, side="right")
        touched = np.flatnonzero((stop > start).any(axis=1))
        if not len(touched):
            return rows
        wide = {
            query: self._row_with_copies(
                rows[query], scores[query], start[query], stop[query], k=k, live=live
            )
            for query in touched.tolist()
        }
        width = max(rows.shape[1], *map(len, wide.values()))
        result = np.full((len(rows), width), -1, dtype=np.int64)
        result[:, : rows.shape[1]] = rows
        for query, found in wide.items():
            result[query] = -1
            result[query, : len(found)] = found
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
        """Return the rows of one query with their copies, best first, k and what ties with them."""
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
        """Return the first k live ones of the copies from `start` to `stop` (exclusive)."""
        if live is None:
            return np.arange(start, min(stop, start + k), dtype=np.int64) + self.first
        found: list[Int64s] = []
        missing = k
        step = max(COPIES_LOOKED_AT, k)
        for begin in range(start, stop, step):
            some = np.arange(begin, min(stop, begin + step), dtype=np.int64) + self.first
            some = some[live.contains(some)][:missing]
            found.append(some)
            missing -= len(some)
            if not missing:
                break
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def append_copies(index: Any, vectors: Float32Matrix, originals: Int32s) -> None:
    """Add copies with their `vectors` (c, d) to an HNSW index of FAISS, each with its one link."""
    hnsw = index.hnsw
    offsets = faiss.vector_to_array(hnsw.offsets)
    width = int(faiss.vector_to_array(hnsw.cum_nneighbor_per_level)[1])
    count = len(originals)
    links = np.full((count, width), -1, dtype=np.int32)
    links[:, 0] = originals
    more = offsets[-1] + width * np.arange(1, count + 1, dtype=np.uint64)
    neighbors = faiss.vector_to_array(hnsw.neighbors)
    _link_from_near(neighbors, offsets[:-1].astype(np.int64), width, originals)
    levels = np.concatenate([faiss.vector_to_array(hnsw.levels), np.ones(count, dtype=np.int32)])
    neighbors = np.concatenate([neighbors, links.reshape(-1)])
    faiss.copy_array_to_vector(levels, hnsw.levels)
    faiss.copy_array_to_vector(np.concatenate([offsets, more]), hnsw.offsets)
    faiss.copy_array_to_vector(neighbors, hnsw.neighbors)
    index.storage.add(np.ascontiguousarray(vectors))
    index.ntotal += count


def _link_from_near(neighbors: Int32s, offsets: Int64s, width: int, originals: Int32s) -> None:
    """Give rows with copies more links that lead to them, where they have few.

    HNSW leaves some rows without any (55 of 20,400 random vectors of 48 dimensions). That costs one
    hit of a few queries, but all ten hits where the row has ten copies. `neighbors` is changed.
    """
    degree = _links_to(neighbors, offsets, width)
    enough = max(1, int(width * LINKS_TO_SHARE))
    rows, copies = np.unique(originals, return_counts=True)
    wanted = np.minimum(copies, enough)
    for row, least in zip(rows[degree[rows] < wanted], wanted[degree[rows] < wanted], strict=True):
        for source in _near(neighbors, offsets, width, int(row)):
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


def _near(neighbors: Int32s, offsets: Int64s, width: int, row: int) -> list[int]:
    """Return the neighbours of a row on level 0, and then theirs, each once."""
    own = neighbors[offsets[row] : offsets[row] + width]
    found = [own[own >= 0]]
    for neighbor in found[0].tolist():
        theirs = neighbors[offsets[neighbor] : offsets[neighbor] + width]
        found.append(theirs[theirs >= 0])
    return list(dict.fromkeys(np.concatenate(found).tolist()))


def _links_to(neighbors: Int32s, offsets: Int64s, width: int) -> Int64s:
    """Return how many links of level 0 lead to each row."""
    degree = np.zeros(len(offsets), dtype=np.int64)
    for start in range(0, len(offsets), _CHUNK_ROWS):
        places = offsets[start : start + _CHUNK_ROWS, None] + np.arange(width)
        links = neighbors[places]
        degree += np.bincount(links[links >= 0], minlength=len(offsets))
    return degree


def copies_of(graph: HnswGraph, *, first: int, rows: int) -> Copies:
    """Return the copies of an index with `rows` rows, by their links.

    Raises ValueError where the links are not as `append_copies` writes them.
    """
    if not 0 < first < rows:
        raise ValueError(f"copies from row {first} on of {rows}")
    starts = graph.offsets[first:rows]
    originals = np.array(graph.neighbors[starts], dtype=np.int32)
    return Copies(originals, first=first)
