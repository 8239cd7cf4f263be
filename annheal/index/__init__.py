"""Vector indexes behind one typed class; the only package that knows FAISS."""

from __future__ import annotations

from annheal.index.live import LiveBitmap
from annheal.index.topk import TopK, merge_topk
from annheal.index.vector_index import (
    EF_DEFAULT,
    ROW_MISSING,
    SCORE_MISSING,
    VectorIndex,
    build_flat,
    build_hnsw,
    load_mapped,
    set_search_threads,
)

__all__ = [
    "EF_DEFAULT",
    "ROW_MISSING",
    "SCORE_MISSING",
    "LiveBitmap",
    "TopK",
    "VectorIndex",
    "build_flat",
    "build_hnsw",
    "load_mapped",
    "merge_topk",
    "set_search_threads",
]
