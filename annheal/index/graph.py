"""Views of the arrays of FAISS indexes, without copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from annheal.model.records import Float32Matrix


class ForeignMemory:
    """The base object of a numpy view of FAISS's memory; it keeps `owner`, the index, alive."""

    def __init__(self, address: int, *, shape: tuple[int, ...], typestr: str, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, True),
            "version": 3,
        }


@dataclass(frozen=True, slots=True)
class HnswGraph:
    """The links of an HNSW graph: read-only views of FAISS's arrays.

    Attributes:
        neighbors: int32; the links of row i begin at offsets[i], those of level 0 first, padded
            with -1. In a mapped index they may be unaligned.
        offsets: (rows + 1,) int64.
        layout: int64, see `walk_layout`.
        width: the number of places for links of a row on level 0.
    """

    neighbors: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    layout: npt.NDArray[np.int64]
    width: int


def graph_of(index: Any, *, rows: int) -> HnswGraph:
    """Return the graph of a FAISS HNSW index with at least one row; the views keep it alive.

    The first `rows` rows of the index are in the graph.
    """
    hnsw = index.hnsw
    starts = faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64)
    head = [hnsw.entry_point, hnsw.max_level, index.d, rows]
    neighbors = ForeignMemory(
        int(hnsw.neighbors.data()),
        shape=(hnsw.neighbors.size(),),
        typestr="<i4",
        owner=index,
    )
    offsets = ForeignMemory(
        int(hnsw.offsets.data()), shape=(hnsw.offsets.size(),), typestr="<i8", owner=index
    )
    return HnswGraph(
        neighbors=np.asarray(neighbors),
        offsets=np.asarray(offsets),
        layout=np.concatenate([np.array(head, dtype=np.int64), starts]),
        width=int(starts[1]),
    )


def stored_vectors(storage: Any, *, owner: Any) -> Float32Matrix:
    """Return the vectors (n, d) of a flat FAISS index; the view keeps `owner` alive."""
    if storage.ntotal == 0:
        return np.empty((0, storage.d), dtype=np.float32)
    shape = (storage.ntotal, storage.d)
    return np.asarray(ForeignMemory(int(storage.get_xb()), shape=shape, typestr="<f4", owner=owner))
