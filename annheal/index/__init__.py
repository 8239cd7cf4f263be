"""Vector indexes behind one typed class; the only package that knows FAISS."""

from __future__ import annotations

from annheal.index.building import add_copies, build_flat, build_hnsw, quantized
from annheal.index.carry.merge import CarriedLinks, is_base, merge_hnsw
from annheal.index.codes.shortlist import ShortlistCosts
from annheal.index.costs import WalkCosts, measure_costs
from annheal.index.hits.ranking import best_columns
from annheal.index.hits.scoring import score_errors, scores_of, squared_distances
from annheal.index.hits.topk import TopK, merge_topk
from annheal.index.kernels.supply import warm_up
from annheal.index.live import LiveBitmap
from annheal.index.quantized import can_store
from annheal.index.vector_index import (
    EF_DEFAULT,
    PRODUCT_VALUES_MIN,
    VectorIndex,
    load_mapped,
    set_search_threads,
)
from annheal.index.walk.filtered_walk import (
    RATIO_MAX,
    ROW_MISSING,
    SCORE_MISSING,
    WIDTH_TIMES_MAX,
    Reach,
    WalkResult,
)
from annheal.index.walk.walk_layout import ABORTED, OK, STARVED

__all__ = [
    "ABORTED",
    "EF_DEFAULT",
    "OK",
    "PRODUCT_VALUES_MIN",
    "RATIO_MAX",
    "ROW_MISSING",
    "SCORE_MISSING",
    "STARVED",
    "WIDTH_TIMES_MAX",
    "CarriedLinks",
    "LiveBitmap",
    "Reach",
    "ShortlistCosts",
    "TopK",
    "VectorIndex",
    "WalkCosts",
    "WalkResult",
    "add_copies",
    "best_columns",
    "build_flat",
    "build_hnsw",
    "can_store",
    "is_base",
    "load_mapped",
    "measure_costs",
    "merge_hnsw",
    "merge_topk",
    "quantized",
    "score_errors",
    "scores_of",
    "set_search_threads",
    "squared_distances",
    "warm_up",
]
