"""A graph with links cut: part of its rows can never be found by walking."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from annheal.index import VectorIndex
from annheal.model.collection import IndexSettings, Metric


def damaged_graph(
    vectors: npt.NDArray[np.float32], *, metric: Metric, lost_share: float, seed: int = 1
) -> VectorIndex:
    """Return an HNSW index in which no link leads to a share `lost_share` of the rows."""
    settings = IndexSettings()
    space = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.m, space)
    index.hnsw.efConstruction = settings.ef_construction
    index.add(vectors)
    cut_links(index, lost_share=lost_share, seed=seed)
    return VectorIndex(index, metric=metric)


def cut_links(index: faiss.IndexHNSW, *, lost_share: float, seed: int = 1) -> None:
    """Remove every link that leads to one of a random share `lost_share` of the graph's rows."""
    rows = int(index.ntotal)
    links = faiss.vector_to_array(index.hnsw.neighbors)
    lost = np.random.default_rng(seed).random(rows) < lost_share
    lost[index.hnsw.entry_point] = False
    offsets = faiss.vector_to_array(index.hnsw.offsets).astype(np.int64)
    per_level = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)
    levels = faiss.vector_to_array(index.hnsw.levels)
    for row in range(rows):
        for level in range(levels[row]):
            start = offsets[row] + per_level[level]
            end = offsets[row] + per_level[level + 1]
            present = links[start:end]
            kept = present[(present >= 0) & ~lost[present]]
            links[start:end] = -1
            links[start : start + len(kept)] = kept
    faiss.copy_array_to_vector(links, index.hnsw.neighbors)
