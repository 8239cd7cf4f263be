"""The reach at which adaptive walks have the recall of walks of a fixed width, at the build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.bands import has_bands
from annheal.compactor.build.recalls import recalls_of
from annheal.compactor.build.slices import queries_walked, slices
from annheal.index import Reach, VectorIndex, squared_distances
from annheal.model.records import Float32Matrix
from annheal.runtime.stop import YieldPoint
from annheal.segment import RecallPoint

REACH_QUERIES = 250
"""Queries that reaches are measured with; recalls of the same ones are compared, so few will do."""
RATIO_MIN = 1.0001


def with_reaches(
    index: VectorIndex,
    queries: Float32Matrix,
    truth: npt.NDArray[np.float32],
    points: Sequence[RecallPoint],
    *,
    recalls: Sequence[float],
    yield_point: YieldPoint,
) -> list[RecallPoint]:
    """Return `points`, of one k and by ascending ef, with the reach that has their recall.

    `recalls` are those of walks of fixed width at each point, of the first `REACH_QUERIES` of
    `queries` (n, d); their exact best scores are in `truth` (n, k). An adaptive walk is measured
    for each point at the ratio of the ef-th to the k-th distance of a typical query, and recall is
    interpolated linearly in the ratio. Points keep a reach of 0 where the adaptive walk would
    compare more rows, and all of them do in a small index (no bands), without kernels and for inner
    products.
    """
    if not points or not has_bands(index.rows) or not index.can_adapt:
        return list(points)
    k = points[0].k
    few, efs = np.ascontiguousarray(queries[:REACH_QUERIES]), [point.ef for point in points]
    ratios = typical_ratios(index, few, k=k, efs=efs, yield_point=yield_point)
    # Every point needs one below it; with a ratio of 1 a walk ends at the floor of its width.
    tried = [(RATIO_MIN, efs[0]), *zip(ratios, efs, strict=True)]
    found_recalls, visited = [], []
    for ratio, ef in tried:
        walks = [
            index.walk_adaptive(few[part], k=k, ef=ef, reach=Reach(ratio, k))
            for part in slices(len(few), queries_walked(ef), yield_point)
        ]
        scores = np.concatenate([walk.scores for walk in walks])
        found_recalls.append(float(recalls_of(scores, truth[: len(few)]).mean()))
        visited.append(float(np.concatenate([walk.visited for walk in walks]).mean()))
    rising = np.maximum.accumulate(found_recalls)
    rising = rising[: int(rising.argmax()) + 1]  # wider walks find no more
    found: list[RecallPoint] = []
    for point, recall in zip(points, recalls, strict=True):
        reach = float(np.interp(recall, rising, [ratio for ratio, _ in tried][: len(rising)]))
        cost = float(np.interp(recall, rising, visited[: len(rising)]))
        cheaper = recall <= rising[-1] and cost < (point.visited or np.inf)
        found.append(replace(point, reach=round(reach, 5)) if cheaper else point)
    return found


def typical_ratios(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    k: int,
    efs: Sequence[int],
    yield_point: YieldPoint,
) -> list[float]:
    """Return for each of `efs` the median over `queries` of the ef-th to the k-th distance.

    Distances are Euclidean. The ratios rise with ef and are at least `RATIO_MIN`.
    """
    wide = max(efs)
    scores = np.concatenate(
        [
            index.search(queries[part], k=wide, ef=wide)[0]
            for part in slices(len(queries), queries_walked(wide), yield_point)
        ]
    )
    squares = squared_distances(scores.astype(np.float64), metric=index.metric)
    distances = np.sqrt(np.maximum(squares, 1e-12))
    medians = np.median(distances[:, [ef - 1 for ef in efs]] / distances[:, [k - 1]], axis=0)
    rising = np.maximum.accumulate(np.maximum(medians, RATIO_MIN))
    return [float(ratio) for ratio in rising]
