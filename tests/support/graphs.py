"""What must hold for the links of every HNSW graph."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from annheal.index import VectorIndex


def links_by_level(index: VectorIndex) -> list[list[list[int]]]:
    """Return the links of every row, for each of its levels from 0 up."""
    hnsw = index._index.hnsw
    neighbors = faiss.vector_to_array(hnsw.neighbors)
    offsets = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
    widths = faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64)
    levels = levels_of(index)
    found = []
    for row in range(index.rows):
        parts = [
            neighbors[offsets[row] + widths[level] : offsets[row] + widths[level + 1]].tolist()
            for level in range(levels[row])
        ]
        assert offsets[row + 1] - offsets[row] == widths[levels[row]]
        found.append(parts)
    return found


def levels_of(index: VectorIndex) -> npt.NDArray[np.int32]:
    """Return how many levels each row has."""
    levels: npt.NDArray[np.int32] = faiss.vector_to_array(index._index.hnsw.levels)
    return levels


def assert_valid_graph(index: VectorIndex, *, m: int) -> None:
    """Assert degree limits, links without repeats to rows of their level, and a top entry."""
    levels = levels_of(index)
    hnsw = index._index.hnsw
    assert len(levels) == index.rows
    assert levels.min() >= 1
    assert levels[hnsw.entry_point] == levels.max() == hnsw.max_level + 1
    for row, parts in enumerate(links_by_level(index)):
        for level, places in enumerate(parts):
            assert len(places) == (2 * m if level == 0 else m)
            links = [place for place in places if place >= 0]
            assert places == links + [-1] * (len(places) - len(links)), "a hole ends the list"
            assert len(set(links)) == len(links), f"row {row} is linked to a row twice"
            assert row not in links
            assert all(place < index.rows and levels[place] > level for place in links)
